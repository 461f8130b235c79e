"""EC2 as far as moto has it, behind a door that records every call, fails on demand, and adds what moto lacks: a
ClientToken that counts, states that take their time, listings that lag behind, and callers with names."""

from __future__ import annotations

import base64
import http.client
import os
import re
import signal
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.kit.servers import REGION, S3Server

IMAGE = "ami-12c6146b"
"""One of those that moto has."""
REGIONS = (REGION, "eu-west-1")
"""All that the account may use."""
ADDRESS = "198.51.100.7"
ACCOUNT = "123456789012"
NAMES = ("ann", "bob")
"""People whose access key is their name in capitals."""

_OURS = "guildsync:owner"
_TARGETS = ("InstanceId", "GroupId", "ResourceId")
_CHANGES = ("Start", "Stop", "Terminate", "Authorize", "Revoke", "Delete", "Modify", "CreateTags", "DeleteTags")
_ERROR = "<Response><Errors><Error><Code>{0}</Code><Message>said so</Message></Error></Errors></Response>"
_CALLER = (
    '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
    "<Arn>{0}</Arn><UserId>AIDA</UserId><Account>" + ACCOUNT + "</Account></GetCallerIdentityResult>"
    "</GetCallerIdentityResponse>"
)
_XMLNS = 'xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"'
_NOTHING = f"<DescribeInstancesResponse {_XMLNS}><reservationSet/></DescribeInstancesResponse>"
_ITEMS = "".join(f"<item><regionName>{region}</regionName></item>" for region in REGIONS)
_REGIONS = f"<DescribeRegionsResponse {_XMLNS}><regionInfo>{_ITEMS}</regionInfo></DescribeRegionsResponse>"
_CONSOLE = f"<GetConsoleOutputResponse {_XMLNS}><output>{{0}}</output></GetConsoleOutputResponse>"
_ITS_OWN = ("host", "connection")
_STATES = ("StartInstances", "StopInstances", "TerminateInstances")
_EARLIER = {"stopped": "stopping", "terminated": "shutting-down", "running": "pending"}
_MUST = {
    "MetadataOptions.HttpTokens": "required",
    "InstanceInitiatedShutdownBehavior": "stop",
    "MinCount": "1",
    "MaxCount": "1",
}

LOST, KILL_BEFORE, KILL_AFTER = "lost", "kill before", "kill after"
ERRORS = {"500": (500, "InternalError"), "503": (503, "Unavailable"), "throttled": (503, "RequestLimitExceeded")}
LATE = "500 after"
"""It was done, and the answer says that it was not."""


@dataclass(frozen=True)
class Call:
    """A call that arrived. `service`: ec2, sts, or `ssh` for what is done on a machine, which counts as well."""

    service: str
    action: str
    region: str
    parameters: Mapping[str, str]
    dry: bool = False

    def values(self, start: str) -> list[str]:
        """Of the parameters that begin so."""
        return [value for name, value in self.parameters.items() if name.startswith(start)]


@dataclass
class Fault:
    """What happens to call number `at` (from 0, over all that arrive after it was set) and to the `times` - 1 calls
    after it. `victim`: the process that is killed."""

    at: int
    what: str
    times: int = 1
    victim: int = 0


@dataclass
class Cloud:
    """The running door. `calls` are all since the last `clean`; `told`: ids that somebody asked to destroy, `any`: all
    of ours. `slow`: so many listings show the state before; `lag`: so many do not show what was just made.
    `others`: what is not ours, as it was made. `before` hears of every call; `console` says what a machine's shows."""

    url: str
    moto: S3Server
    calls: list[Call] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    slow: int = 0
    lag: int = 0
    address: str = ADDRESS
    others: Any = None
    before: Callable[[Call], None] = lambda _: None
    console: Callable[[str], str] = lambda _: ""
    fault: Fault | None = None
    _clients: dict[str, Any] = field(default_factory=dict)
    _seen: int = 0
    _tokens: dict[tuple[str, str], tuple[Mapping[str, str], bytes]] = field(default_factory=dict)
    _showing: dict[str, int] = field(default_factory=dict)
    _hidden: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def environment(self, name: str = "ann") -> dict[str, str]:
        """What somebody's processes need to use it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": name.upper(),
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "GUILDSYNC_ADDRESS_URL": f"{self.url}/address",
            "NO_PROXY": "127.0.0.1",
        }

    def client(self, region: str = REGION) -> Any:
        """To moto itself: nothing of it is recorded."""
        if region not in self._clients:
            import boto3

            keys = {"aws_access_key_id": "TRUTH", "aws_secret_access_key": "secret"}
            session = boto3.session.Session()
            self._clients[region] = session.client("ec2", region_name=region, endpoint_url=self.moto.endpoint, **keys)
        return self._clients[region]

    def instances(self, region: str = REGION) -> list[Any]:
        """All that were made, however they are."""
        reservations = self.client(region).describe_instances()["Reservations"]
        return [each for reservation in reservations for each in reservation["Instances"]]

    def live(self, region: str = REGION) -> list[Any]:
        """Those of ours that cost money or may soon."""
        found = [each for each in self.instances(region) if each["State"]["Name"] not in ("terminated",)]
        return [each for each in found if _OURS in {tag["Key"] for tag in each.get("Tags", ())}]

    def actions(self) -> set[str]:
        """What a policy has to allow for the calls so far."""
        return {f"{call.service}:{call.action}" for call in self.calls if call.service != "ssh"}

    def fail(self, at: int, what: str, times: int = 1, victim: int = 0) -> None:
        with self._lock:
            self._seen, self.fault = 0, Fault(at, what, times, victim)

    def heal(self) -> None:
        with self._lock:
            self.fault = None

    def clean(self) -> None:
        """An account in which nothing ever was."""
        _forward(self.moto, "POST", "/moto-api/reset", {}, b"")
        with self._lock:
            self.calls, self.told, self.broken = [], set(), []
            self.slow = self.lag = self._hidden = self._seen = 0
            self.address, self.fault = ADDRESS, None
            self.before, self.console = lambda _: None, lambda _: ""
            self._tokens, self._showing = {}, {}

    # -- the door's side

    def arrived(self, call: Call, key: str) -> str | None:
        """Records it; what is to happen to it."""
        with self._lock:
            self.calls.append(call)
            number, self._seen = self._seen, self._seen + 1
            fault = self.fault
        self.before(call)
        if call.service == "ec2":
            broken = self._laws(call, key)
            with self._lock:
                self.broken += broken
        due = fault is not None and fault.at <= number < fault.at + fault.times
        return fault.what if fault and due else None

    def killed(self) -> None:
        assert self.fault is not None
        os.kill(self.fault.victim, signal.SIGKILL)

    def answer(self, call: Call, key: str, forward: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        if call.service == "sts":
            return 200, _CALLER.format(arn_of(key)).encode()
        if call.service == "ssh":
            return 200, b""
        if call.action == "DescribeRegions":
            return 200, _REGIONS.encode()
        if call.action == "GetConsoleOutput":
            shown = self.console(call.parameters["InstanceId"]).encode()
            return 200, _CONSOLE.format(base64.b64encode(shown).decode()).encode()
        with self._lock:
            if call.action == "RunInstances" and not call.dry:
                return self._run_once(call, forward)
            status, body = forward()
            if status == http.HTTPStatus.OK and call.action in _STATES:
                self._showing |= dict.fromkeys(call.values("InstanceId"), self.slow)
            return (status, self._delayed(body)) if call.action == "DescribeInstances" else (status, body)

    def _run_once(self, call: Call, forward: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        token = (call.region, call.parameters.get("ClientToken", ""))
        if token in self._tokens:
            said, body = self._tokens[token]
            other = _ERROR.format("IdempotentParameterMismatch").encode()
            return (200, body) if said == call.parameters else (400, other)
        status, body = forward()
        if status == http.HTTPStatus.OK:
            self._tokens[token] = (call.parameters, body)
            self._hidden = self.lag
            self._showing |= dict.fromkeys(re.findall(r"<instanceId>(i-\w+)</", body.decode()), self.slow)
        return status, body

    def _delayed(self, body: bytes) -> bytes:
        if self._hidden:
            self._hidden -= 1
            return _NOTHING.encode()
        text = body.decode()
        parts = re.split(r"(?=<instanceId>i-)", text)
        for index, part in enumerate(parts[1:], 1):
            found = re.match(r"<instanceId>(i-\w+)<", part)
            left = self._showing.get(found[1], 0) if found else 0
            if found and left:
                self._showing[found[1]] = left - 1
                for state, earlier in _EARLIER.items():
                    part = part.replace(f"<name>{state}</name>", f"<name>{earlier}</name>")
                parts[index] = part
        return "".join(parts).encode()

    # -- laws

    def _laws(self, call: Call, key: str) -> list[str]:
        """What must hold of every call, whoever makes it; asked of moto before the call is made."""
        broken = []
        if call.action.startswith("Authorize"):
            ranges = [value for name, value in call.parameters.items() if "CidrIp" in name]
            ports = {value for name, value in call.parameters.items() if name.endswith(("FromPort", "ToPort"))}
            if not ranges or ports != {"22"} or any(value != f"{self.address}/32" for value in ranges):
                broken.append(f"opens {ports} to {ranges}")
        if call.action == "TerminateInstances" and not call.dry:
            broken += [f"destroys {each}" for each in call.values("InstanceId") if not {each, "any"} & self.told]
        if call.action == "RunInstances" and not call.dry:
            broken += _made_wrong(call)
        if call.action.startswith(_CHANGES) and not call.dry:
            targets = [each for each in _targets(call) if not self._is_ours(call, each, key)]
            broken += [f"{call.action} of {each}, which is not {key}'s" for each in targets]
        return broken

    def _is_ours(self, call: Call, target: str, key: str) -> bool:
        filters = [{"Name": "resource-id", "Values": [target]}]
        found = self.client(call.region).describe_tags(Filters=filters)["Tags"]
        return any(tag["Key"] == _OURS and tag["Value"] == arn_of(key) for tag in found)


def arn_of(key: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:user/{key.lower()}"


def _targets(call: Call) -> list[str]:
    return [value for name, value in call.parameters.items() if name.partition(".")[0] in _TARGETS]


def _made_wrong(call: Call) -> list[str]:
    found = call.parameters
    wrong = [f"made with {name} {found.get(name)}" for name in _MUST if found.get(name) != _MUST[name]]
    kinds = [value for name, value in found.items() if name.endswith(".ResourceType")]
    keys = [value for name, value in found.items() if name.endswith(".Key")]
    ours = ("guildsync:owner", "guildsync:remote", "guildsync:token")
    if sorted(kinds) != ["instance", "volume"] or any(keys.count(key) != len(kinds) for key in ours):
        wrong.append(f"made with tags {keys} of {kinds}")
    disks = [name for name in found if name.endswith(".DeviceName")]
    gone = [name for name, value in found.items() if name.endswith("DeleteOnTermination") and value == "true"]
    if not disks or len(disks) != len(gone):
        wrong.append("made with a disk that stays")
    if not found.get("ClientToken"):
        wrong.append("made without a token")
    return wrong


def _forward(moto: S3Server, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
    host, port = urllib.parse.urlsplit(moto.endpoint).netloc.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _call_of(headers: Any, body: bytes) -> tuple[Call, str]:
    """The call, and the access key it was made with."""
    parameters = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
    action, dry = parameters.pop("Action"), parameters.pop("DryRun", "") == "true"
    parameters.pop("Version", None)
    found = re.search(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/", headers.get("Authorization", ""))
    assert found is not None
    return Call(found[3], action, found[2], parameters, dry), found[1]


def _handler(cloud: Cloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
            """Nothing is printed."""

        def do_GET(self) -> None:
            if self.path == "/address":
                self._answer(200, cloud.address.encode() + b"\n")
            else:  # /ssh/<what>
                self._serve(Call("ssh", self.path.rpartition("/")[2], REGION, {}), "", lambda: (200, b""))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call, key = _call_of(self.headers, body)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _ITS_OWN}
            self._serve(call, key, lambda: _forward(cloud.moto, "POST", self.path, headers, body))

        def _serve(self, call: Call, key: str, forward: Callable[[], tuple[int, bytes]]) -> None:
            what = cloud.arrived(call, key)
            if what in ERRORS:
                status, code = ERRORS[what]
                self._answer(status, _ERROR.format(code).encode())
                return
            if what == KILL_BEFORE:
                cloud.killed()
                self.close_connection = True
                return
            status, answer = cloud.answer(call, key, forward)
            if what == KILL_AFTER:
                cloud.killed()
            if what in (KILL_AFTER, LOST):
                self.close_connection = True
            elif what == LATE:
                self._answer(500, _ERROR.format("InternalError").encode())
            else:
                self._answer(status, answer)

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                pass  # who asked was killed

    return Handler


@contextmanager
def cloud(moto: S3Server) -> Iterator[Cloud]:
    """A door in front of a moto server, whose account is empty."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.daemon_threads = True
    made = Cloud(f"http://127.0.0.1:{server.server_port}", moto)
    server.RequestHandlerClass = _handler(made)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        made.clean()
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
