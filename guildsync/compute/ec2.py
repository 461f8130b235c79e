"""Machines on EC2: made, found by their tags, started, stopped, destroyed, and never two where one was asked for.

What can be lost on the way, and what holds then: before anything is made, an intent with its token is durable here, and
what is made carries tags from its first moment on. So a client that died asks once more with the same token, which
makes nothing twice; and any client of the owner finds a machine by its tags, whatever it remembers.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from guildsync.compute.aws import Aws, code_of
from guildsync.compute.firstboot import FirstBoot, console_keys, user_data
from guildsync.compute.group import Groups, own_network
from guildsync.compute.instances import (
    FIRST_KEY,
    HOST_KEY,
    OWNER,
    REMOTE,
    TOKEN,
    Row,
    Settings,
    block_devices,
    chosen,
    is_live,
    key_text,
    owner_of,
    row_of,
    surplus,
    tagged,
    volume_of,
)
from guildsync.compute.memory import Intent, Memory
from guildsync.compute.patience import Patience
from guildsync.compute.pinning import Pinning, Provider, new_key
from guildsync.errors import GuildsyncError, NotFound, Unreachable, Usage
from guildsync.model.ports import Instance, Reach, Say, Step

__all__ = ["Ec2Machine", "Memory", "Patience", "Settings"]

OPEN = 600.0
"""Seconds after which a listing proves that nothing was made of an intent: no call is on its way any more."""
_REGIONS_AT_ONCE = 8
_NOT_NOW = ("IncorrectInstanceState", "InvalidInstanceID.NotFound")
_SPENT = ("IdempotentInstanceTerminated", "IdempotentParameterMismatch")
"""A token of which something was made already, by other words or of what is gone."""


class Ec2Machine:
    """The machine of a remote (see `model.ports.Machine`). `memory` is this remote's alone."""

    def __init__(
        self, settings: Settings, memory: Memory, patience: Patience = Patience(), now: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._memory, self._patience, self._now = settings, memory, patience, now
        self._aws = Aws(settings.profile, settings.region)

    # -- what is there

    def state(self) -> Instance | None:
        row = chosen(self._rows())
        return None if row is None else row.instance

    def all(self, say: Say) -> Sequence[Instance]:
        regions = [row["RegionName"] for row in self._aws.call("describe_regions")["Regions"]]
        with ThreadPoolExecutor(_REGIONS_AT_ONCE) as pool:
            found = list(pool.map(self._in_region, sorted({*regions, self._settings.region})))
        for region in found:
            if isinstance(region, str):
                say(region)
        return [row for region in found if not isinstance(region, str) for row in region]

    def _in_region(self, region: str) -> list[Instance] | str:
        """Or why it cannot be asked."""
        ours = [{"Name": "tag-key", "Values": [TOKEN]}]
        try:
            rows = self._listed(ours, region)
            loose = [*ours, {"Name": "status", "Values": ["available"]}]
            volumes = self._aws.pages("describe_volumes", "Volumes", region=region, Filters=loose)
            return [row.instance for row in rows if is_live(row)] + [volume_of(each, region) for each in volumes]
        except GuildsyncError as exc:
            return f"{region} cannot be asked: {exc.message}"

    # -- start

    def start(self, reach: Reach, say: Say) -> Instance:
        with self._memory.locked(self._patience.clock, self._patience.sleep):
            network = "" if self._settings.security_group else own_network()
            self._find_or_make(say)
            # Once more when it runs: what another client made meanwhile may not have been listed at first.
            self._running(self._one(say)[0], say)
            row, others = self._one(say)
            for other in others:
                say(f"warning: {other.instance.id} is a second machine of this remote; `remote stop` stops both")
            row = self._running(row, say)
            if network:
                self._groups.admit(row.groups, network, self._memory.client(), alone=True)
            pinning = Pinning(
                row, self._memory, self._patience, reach, self._provider(row), self._settings.user == "root"
            )
            pinning.pin(say)
            if self._settings.init:
                pinning.begin(self._settings.init, self._settings.init_timeout, say)
            return row.instance

    def _find_or_make(self, say: Say) -> None:
        rows = self._rows()
        intent = self._open_intent(rows)
        if chosen(rows) is None:
            intent = intent or self._intend()
            self._make(intent, say)
            what = "EC2 does not list the new machine"
            self._patience.until(lambda: self._rows_with(intent.token), self._patience.listed, what)

    def _open_intent(self, rows: Sequence[Row]) -> Intent | None:
        """The one of which something may have been made that still lives. Where another machine is used instead, it
        stays until a listing proves that nothing comes of it any more: what does come is found and given up."""
        intent = self._memory.intent()
        if intent is None:
            return None
        made = _of(rows, intent.token)
        gone = not is_live(made) if made else self._now() - intent.begun > OPEN
        if gone:
            self._memory.forget_intent()
        return None if gone else intent

    def _intend(self) -> Intent:
        settings = self._settings
        if not settings.public_key and not settings.key_name:
            raise Usage(f"{settings.remote}: nothing says who may log in", "say `public-key:` or `key-name:`")
        private, public = new_key()
        authorized = self._public_key()
        first = FirstBoot(private, public, authorized, settings.stop_after, settings.user, settings.guild_home)
        token = uuid.uuid4().hex
        tags = {OWNER: self._owner, REMOTE: settings.remote, TOKEN: token}
        request: dict[str, Any] = {
            "ImageId": settings.ami,
            "InstanceType": settings.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": token,
            "UserData": user_data(first),
            "BlockDeviceMappings": block_devices(self._image(), settings.root_device_size),
            "InstanceInitiatedShutdownBehavior": "stop",
            "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
            "TagSpecifications": [
                *tagged(["instance"], {**tags, FIRST_KEY: public, "Name": f"guildsync {settings.remote}"}),
                *tagged(["volume"], tags),
            ],
        }
        request |= {"KeyName": settings.key_name} if settings.key_name else {}
        request |= {"SubnetId": settings.subnet} if settings.subnet else {}
        intent = Intent(token, self._now(), request)
        self._memory.intend(intent)
        return intent

    def _make(self, intent: Intent, say: Say) -> None:
        """The machine of an intent, once, however often it is asked for."""
        say(f"making a machine: {intent.request['InstanceType']} in {self._settings.region}")
        try:
            group = self._settings.security_group or self._groups.made()
            self._aws.call("run_instances", **intent.request, SecurityGroupIds=[group])
        except Unreachable:
            raise  # it may have been made: the intent stays
        except GuildsyncError as exc:
            if code_of(exc) in _SPENT and self._rows_with(intent.token):
                return
            if not self._rows_with(intent.token):
                self._memory.forget_intent()
            raise

    def _one(self, say: Say) -> tuple[Row, list[Row]]:
        """The machine that is the remote's, after this client's own newer one was given up where another was faster;
        and those that live beside it, which are others' to give up."""
        rows, intent = self._rows(), self._memory.intent()
        mine = surplus(rows, intent.token if intent else None)
        if mine is not None:
            say(f"another client was faster: {mine.instance.id}, just made here, is destroyed")
            self._end(mine, say)
            self._memory.forget_intent()
            rows = self._rows()
        row = chosen(rows)
        if row is None:
            raise self._ended(_of(rows, intent.token if intent else ""))
        return row, [other for other in rows if is_live(other) and other is not row]

    def _running(self, row: Row, say: Say) -> Row:
        machine, said = row.instance.id, [""]

        def look() -> Row | None:
            found = self._row(machine)
            if found is None:
                return None
            if not is_live(found):
                raise self._ended(found)
            if found.instance.state != said[0]:
                said[0] = found.instance.state
                if said[0] != "running":
                    say(f"{machine} is {said[0]}")
            if found.instance.state == "stopped":
                self._ask("start_instances", machine)
            return found if found.instance.is_running and found.instance.address else None

        return self._patience.until(look, self._patience.running, f"{machine} is not running")

    def _ended(self, row: Row | None) -> GuildsyncError:
        self._memory.forget()
        why = f": {row.reason}" if row and row.reason else ""
        return GuildsyncError(f"EC2 ended the machine of {self._settings.remote}{why}", "start it again")

    def _provider(self, row: Row) -> Provider:
        machine = row.instance.id

        def console() -> Sequence[str]:
            """The newest of it, where this kind of machine can show that, else what it showed after it booted."""
            try:
                answer = self._aws.call("get_console_output", InstanceId=machine, Latest=True)
            except Unreachable:
                raise
            except GuildsyncError:
                answer = self._aws.call("get_console_output", InstanceId=machine)
            return console_keys(answer.get("Output", ""), row.first_key)

        def prove(key: str) -> None:
            self._aws.call("create_tags", Resources=[machine], Tags=[{"Key": HOST_KEY, "Value": key}])

        return Provider(console, prove)

    # -- stop

    def stop(self, terminate: bool, say: Say) -> Instance | None:
        with self._memory.locked(self._patience.clock, self._patience.sleep):
            rows = self._made_so_far(say)
            row = chosen(rows)
            if row is not None and not terminate:
                for each in filter(is_live, rows):
                    self._halt(each, say)
                row = self._row(row.instance.id)
            elif row is not None:
                row = self._end(row, say)
                self._memory.forget()
            if terminate and not any(map(is_live, self._rows())) and not self._groups.remove():
                say("its security group is still in use; it costs nothing")
            return None if row is None else row.instance

    def _made_so_far(self, say: Say) -> list[Row]:
        """What there is, and what a start that was interrupted may have made and EC2 does not list yet."""
        rows = self._rows()
        intent = self._open_intent(rows)
        if intent and not _of(rows, intent.token):
            say("a start was interrupted: looking for what it made")
            try:
                self._patience.until(lambda: self._rows_with(intent.token), self._patience.listed, "nothing was seen")
            except Unreachable:
                self._memory.forget_intent()
        return self._rows()

    def _halt(self, row: Row, say: Say) -> None:
        def look() -> Row | None:
            found = self._row(row.instance.id)
            if found and found.instance.is_running:
                say(f"stopping {row.instance.id}")
                self._ask("stop_instances", row.instance.id)
            return found if found and (found.instance.is_stopped or not is_live(found)) else None

        self._patience.until(look, self._patience.ended, f"{row.instance.id} is not stopped")

    def _end(self, row: Row, say: Say) -> Row:
        machine, seen = row.instance.id, [False]

        def look() -> Row | None:
            found = self._row(machine)
            if found and is_live(found):
                if not seen[0]:
                    say(f"destroying {machine}")
                seen[0] = True
                self._ask("terminate_instances", machine)
            return found if found and found.instance.state == "terminated" else None

        return self._patience.until(look, self._patience.ended, f"{machine} is not destroyed")

    def _ask(self, operation: str, machine: str) -> None:
        """Where it is in no state for it yet, it is asked again."""
        try:
            self._aws.call(operation, InstanceIds=[machine])
        except GuildsyncError as exc:
            if code_of(exc) not in _NOT_NOW:
                raise

    # -- the client's address

    def admit(self) -> bool:
        row = chosen(self._rows())
        if row is None or self._settings.security_group:
            return False
        return self._groups.admit(row.groups, own_network(), self._memory.client(), alone=False)

    # -- check

    def check(self) -> Iterator[Step]:
        looks: tuple[tuple[str, Callable[[], str]], ...] = (
            ("credentials", self._checked_credentials),
            ("image", self._checked_image),
            ("key", self._checked_key),
            ("address", self._checked_address),
            ("permissions", self._checked_permissions),
            ("machine", self._checked_machine),
        )
        for name, look in looks:
            try:
                yield Step(name, True, look())
            except GuildsyncError as exc:
                yield Step(name, False, exc.message, exc.hint or "", exc.exit_code)
                return

    def _checked_credentials(self) -> str:
        return f"you are {self._owner}"

    def _checked_image(self) -> str:
        image = self._image()
        return f"{self._settings.ami}: {image.get('Name', 'without a name')}"

    def _checked_key(self) -> str:
        if self._settings.key_name:
            self._aws.call("describe_key_pairs", KeyNames=[self._settings.key_name])
            return f"key pair {self._settings.key_name}"
        key = self._public_key()
        if key is None:
            raise Usage(f"{self._settings.remote}: nothing says who may log in", "say `public-key:` or `key-name:`")
        return f"{key.split(' ')[0]} key"

    def _checked_address(self) -> str:
        if self._settings.security_group:
            return f"whom {self._settings.security_group} lets in is up to you"
        return f"ssh is opened for {own_network()} alone"

    def _checked_permissions(self) -> str:
        """Asked with DryRun: nothing is done. What needs a machine is asked where there is one."""
        settings, row = self._settings, chosen(self._rows())
        tags = {OWNER: self._owner, REMOTE: settings.remote, TOKEN: "check"}
        asked: list[tuple[str, dict[str, Any]]] = [
            (
                "run_instances",
                {
                    "ImageId": settings.ami,
                    "InstanceType": settings.instance_type,
                    "MinCount": 1,
                    "MaxCount": 1,
                    "MetadataOptions": {"HttpTokens": "required"},
                    "TagSpecifications": tagged(["instance", "volume"], tags),
                    **({"SubnetId": settings.subnet} if settings.subnet else {}),
                },
            )
        ]
        if row is not None:
            operations = ("start_instances", "stop_instances", "terminate_instances")
            asked += [(operation, {"InstanceIds": [row.instance.id]}) for operation in operations]
        for operation, parameters in asked:
            try:
                self._aws.call(operation, **parameters, DryRun=True)
            except GuildsyncError as exc:
                if code_of(exc) not in ("DryRunOperation", *_NOT_NOW):
                    raise
        return "it may " + ", ".join(operation.partition("_")[0] for operation, _ in asked)

    def _checked_machine(self) -> str:
        found = self.state()
        return "there is none yet" if found is None else f"{found.id} is {found.state}"

    # -- questions

    @cached_property
    def _owner(self) -> str:
        return owner_of(self._aws.call("get_caller_identity", "sts")["Arn"])

    @cached_property
    def _groups(self) -> Groups:
        return Groups(self._aws, self._settings, self._owner, self._patience)

    def _image(self) -> Any:
        images = self._aws.call("describe_images", ImageIds=[self._settings.ami])["Images"]
        if not images:
            raise Usage(f"there is no image {self._settings.ami} in {self._settings.region}", "look at `ami:`")
        return images[0]

    def _public_key(self) -> str | None:
        text = self._settings.public_key
        if not text or text.startswith(("ssh-", "ecdsa-", "sk-")):
            return key_text(text) if text else None
        try:
            with open(os.path.expanduser(text), encoding="ascii", errors="replace") as file:
                return key_text(file.read(20_000))
        except OSError as exc:
            raise NotFound(f"cannot read public-key {text}: {exc.strerror}", "make one: `ssh-keygen`") from exc

    def _rows(self) -> list[Row]:
        """Of this owner's remote, by tag, and looked at once more: in a filter, some characters stand for any."""
        ours = {OWNER: self._owner, REMOTE: self._settings.remote}
        rows = self._listed([{"Name": f"tag:{key}", "Values": [value]} for key, value in ours.items()])
        return [row for row in rows if [row.instance.owner, row.instance.remote] == list(ours.values())]

    def _rows_with(self, token: str) -> list[Row] | None:
        rows = self._rows()
        return rows if _of(rows, token) else None

    def _row(self, machine: str) -> Row | None:
        return next(iter(self._listed([{"Name": "instance-id", "Values": [machine]}])), None)

    def _listed(self, filters: list[dict[str, Any]], region: str | None = None) -> list[Row]:
        region = region or self._settings.region
        reservations = self._aws.pages("describe_instances", "Reservations", region=region, Filters=filters)
        return [row_of(each, region) for reservation in reservations for each in reservation["Instances"]]


def _of(rows: Sequence[Row], token: str) -> Row | None:
    return next((row for row in rows if row.instance.token == token), None)
