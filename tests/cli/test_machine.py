"""remote start and stop: moto answers for EC2, and the address of the instance leads to a real sshd on loopback."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guildsync import hosts, machines
from tests.cli.conftest import Cli, environment
from tests.cli.test_asking import answered
from tests.kit.booted import Booted, booted
from tests.kit.cloud import IMAGE, KILL_AFTER, KILL_BEFORE, Call, Cloud, cloud
from tests.kit.servers import REGION, S3Server, free_ports
from tests.kit.sshd import Client, client, sshd
from tests.kit.training import Site, ended, make_project
from tests.kit.trees import write_run
from tests.test_remotes_md import allowed

pytestmark = pytest.mark.servers

WHERE = "54.214.*"
"""What moto takes for the world."""


@dataclass
class Account:
    """What `cloud` has of ours, its one machine on loopback, and what cloud-init does to each new instance."""

    cloud: Cloud
    machine: Booted
    ec2: Any
    booted: list[str]

    @property
    def states(self) -> dict[str, str]:
        """Of each instance, by id."""
        found = [each for page in self.ec2.describe_instances()["Reservations"] for each in page["Instances"]]
        return {each["InstanceId"]: each["State"]["Name"] for each in found}

    @property
    def live(self) -> list[str]:
        return [name for name, state in self.states.items() if state != "terminated"]

    def boot_new_ones(self) -> None:
        for name, state in self.states.items():
            if state == "running" and name not in self.booted:
                asked = self.ec2.describe_instance_attribute(InstanceId=name, Attribute="userData")
                self.machine.boot(base64.b64decode(asked["UserData"]["Value"]).decode())
                self.booted.append(name)

    def let_in(self) -> list[str]:
        """The networks that may use ssh, of all groups that are ours."""
        ours = [{"Name": "tag-key", "Values": ["guildsync:owner"]}]
        groups = self.ec2.describe_security_groups(Filters=ours)["SecurityGroups"]
        return [each["CidrIp"] for group in groups for rule in group["IpPermissions"] for each in rule["IpRanges"]]


@pytest.fixture
def account(moto_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """Nothing is ever done in it that must not be."""
    over = threading.Event()
    with cloud(moto_server) as door, booted(tmp_path / "root") as machine:
        for name, value in door.environment().items():
            monkeypatch.setenv(name, value)
        made = Account(door, machine, door.client(), [])

        def cloud_init() -> None:
            while not over.wait(0.1):
                made.boot_new_ones()

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(cloud_init)
            try:
                yield made
            finally:
                over.set()
            done.result()
        assert not door.broken
        assert door.actions() <= allowed()


@pytest.fixture
def person(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Somebody whose ssh finds the machine where moto says that it is."""
    with client(tmp_path / "user") as user:
        user.home.mkdir()
        user.add(WHERE, account.machine.server, known=False)
        for name, value in user.environment().items():
            monkeypatch.setenv(name, value)
        for module in (hosts, machines):
            monkeypatch.setattr(module, "has_terminal", lambda: False)
        yield user


def configure(tmp_path: Path, account: Account, **keys: object) -> None:
    given = {
        "type": "ec2",
        "region": REGION,
        "ami": IMAGE,
        "instance-type": "t3.nano",
        "root-device-size": 8,
        "public-key": f"{account.machine.server.user_key}.pub",
        "guild-home": f"{tmp_path}/far",
        **keys,
    }
    lines = "".join(f"    {name}: {json.dumps(value)}\n" for name, value in given.items())
    (tmp_path / "c.yml").write_text(f"remotes:\n  trainer:\n{lines}  disk: {{type: local, path: {tmp_path}/disk}}\n")


@pytest.fixture
def site(person: Client, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The current directory is a project; `trainer` is configured, and does not exist yet."""
    monkeypatch.setenv("GUILDSYNC_HOME", str(tmp_path / "guild"))
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(tmp_path / "c.yml"))
    monkeypatch.chdir(make_project(tmp_path / "project"))
    configure(tmp_path, account)
    with ended(Site(("-r", "trainer"), tmp_path / "far")) as made:
        yield made


START = ("remote", "start", "trainer", "--yes")
STOP = ("remote", "stop", "trainer", "--yes")
NEEDS_IT = [
    ["runs", "-r", "trainer"],
    ["push", "trainer"],
    ["pull", "trainer"],
    ["ls", "-r", "trainer"],
    ["cat", "1", "x", "-r", "trainer"],
    ["diff", "1", "2", "-r", "trainer"],
    ["label", "1", "--set", "x", "-r", "trainer"],
    ["delete", "1", "-r", "trainer", "--yes"],
    ["verify", "-r", "trainer"],
    ["gc", "-r", "trainer", "--yes"],
    ["run", "train.py", "-r", "trainer"],
    ["watch", "-r", "trainer"],
    ["stop", "-r", "trainer", "--yes"],
    ["remote", "status", "trainer"],
]


def test_start_run_watch_pull_stop(cli: Cli, site: Site, account: Account, tmp_path: Path) -> None:
    said = cli(*START)
    assert said.code == 0, said.err
    ((name, state),) = account.states.items()
    assert state == "running"
    assert said.last.startswith(f"trainer can be used: {name}, t3.nano, running at 54.214.")
    assert " since 20" in said.last
    assert account.let_in() == ["198.51.100.7/32"]

    assert cli("run", "train.py", "lr=0.1", "-r", "trainer").out == "lr: 0.1\nloss: 0.25\n"
    assert cli("watch", "-r", "trainer").out == "lr: 0.1\nloss: 0.25\n"
    assert cli("pull", "trainer").code == 0
    (row,) = cli("runs", "--json").json
    assert (row["id"], row["status"]) == (site.run.name, "completed")
    (status,) = cli("remote", "status", "trainer", "--json").json
    assert status["available"]
    assert (status["machine"]["id"], status["machine"]["state"]) == (name, "running")
    checked = cli("check", "-r", "trainer")
    assert checked.code == 0, checked.out

    said = cli(*STOP)
    assert (said.code, said.last) == (
        0,
        f"Stopped {name} of trainer: it is stopped; what lies there is kept, and its disk is paid for",
    )
    assert account.states == {name: "stopped"}
    write_run(tmp_path / "guild", "a" * 32)
    for argv in NEEDS_IT:
        said = cli(*argv)
        assert said.code == 5, argv
        assert "trainer is stopped" in said.err + said.out, argv
        assert "`guildsync remote start trainer` starts it" in said.err, argv
    checked = cli("check", "-r", "trainer")
    assert checked.code == 0
    assert "host: trainer is stopped" in checked.out

    said = cli(*START, "--json")
    assert said.code == 0, said.err
    assert said.json["machine"]["id"] == name
    assert [row["id"] for row in cli("runs", "-r", "trainer", "--json").json] == [site.run.name]


def test_twice_is_once_and_two_homes_share_one(cli: Cli, site: Site, account: Account, tmp_path: Path) -> None:
    for words in ((), (), ("-H", f"{tmp_path}/other"), ("-H", f"{tmp_path}/other")):
        said = cli(*words, *START)
        assert said.code == 0, said.err
        assert len(account.states) == 1
        assert cli(*words, "run", "train.py", "-r", "trainer").code == 0
    assert len(cli("-H", f"{tmp_path}/other", "runs", "-r", "trainer", "--json").json) == 4


def test_a_home_that_did_not_start_it_says_how_to_learn_its_key(
    cli: Cli, site: Site, account: Account, tmp_path: Path
) -> None:
    assert cli(*START).code == 0
    said = cli("-H", f"{tmp_path}/other", "runs", "-r", "trainer")
    assert said.code == 4
    assert "its host key is not known here" in said.err
    assert "`guildsync remote start trainer` learns it" in said.err


def test_where_there_is_none(cli: Cli, site: Site, account: Account) -> None:
    for argv in NEEDS_IT[:3]:
        said = cli(*argv)
        assert said.code == 5, argv
        assert "trainer has no machine yet" in said.err, argv
    said = cli(*STOP)
    assert (said.code, said.last) == (0, "Nothing to stop: trainer has no machine")
    said = cli("remote", "status", "--orphans")
    assert (said.code, said.out, said.err) == (0, "", "no machine of ours is there\n")
    checked = cli("check", "-r", "trainer")
    assert checked.code == 0, checked.out
    assert "trainer has no machine yet" in checked.out
    assert account.states == {}


def test_nobody_is_there_to_be_asked(cli: Cli, site: Site, account: Account) -> None:
    for argv in (START[:3], STOP[:3]):
        if argv == STOP[:3]:
            assert cli(*START).code == 0
        said = cli(*argv)
        assert said.code == 2
        assert "--yes answers" in said.err
    assert list(account.states.values()) == ["running"]


def test_what_would_be_lost_is_named(cli: Cli, site: Site, account: Account, tmp_path: Path) -> None:
    assert cli("run", "train.py", "-l", "kept", "-r", "trainer", "--start-remote").code == 0
    assert cli("pull", "trainer").code == 0
    (name,) = account.states
    code, lines = answered(b"n\n", "remote", "stop", "trainer", "--terminate")
    assert code == 1
    question = f"Destroy {name} (t3.nano) of trainer, and all that lies there? Nothing brings it back. [y/N] n"
    assert lines == ["All runs that lie there are here, too.", question, "error: nothing was done"]
    assert cli("run", "train.py", "-l", "only there", "-r", "trainer").code == 0
    (lost,) = {path.name for path in site.runs} - {path.name for path in (tmp_path / "guild/runs").iterdir()}
    code, lines = answered(b"n\n", "remote", "stop", "trainer", "--terminate")
    assert code == 1
    assert lines[0] == "1 run on trainer will be lost, not being here as there:"
    assert lost[:8] in lines[1]
    assert lines[1].endswith("only there")
    assert cli("runs", "-r", "trainer").code == 0
    assert cli(*STOP).code == 0
    account.cloud.told.add(name)
    code, lines = answered(b"y\n", "remote", "stop", "trainer", "--terminate")
    assert code == 0, lines
    assert lines[0] == "Which runs lie there cannot be told: trainer is stopped"
    assert lines[1:3] == [
        "When they were last listed, 2 runs lay there, 1 of which are not here.",
        f"{lost[:8]}  only there",
    ]
    assert lines[-1] == f"Destroyed {name} of trainer: it is terminated"
    assert account.states[name] == "terminated"


def test_runs_that_would_be_ended_are_named(cli: Cli, site: Site, account: Account) -> None:
    assert cli("run", "waiting.py", "-r", "trainer", "--no-wait", "--start-remote").code == 0
    run = site.began()
    code, lines = answered(b"n\n", "remote", "stop", "trainer")
    assert code == 1
    assert lines[0] == "1 run on trainer will be ended:"
    assert run.name[:8] in lines[1]
    (run / "go").touch()
    assert cli("watch", "-r", "trainer").code == 0


def test_orphans_are_listed_whatever_is_remembered(cli: Cli, site: Site, account: Account, tmp_path: Path) -> None:
    assert cli(*START).code == 0
    (name,) = account.states
    said = cli("-H", f"{tmp_path}/new", "remote", "status", "--orphans")
    assert said.code == 0
    assert name in said.out
    rows = cli("-H", f"{tmp_path}/new", "remote", "status", "--orphans", "trainer", "--json").json
    assert [row["owner"].rpartition("/")[2] for row in rows] == ["ann"]
    assert cli("remote", "status", "--orphans", "-r", "all").out == said.out
    assert [(row["id"], row["remote"], row["state"], row["region"]) for row in rows] == [
        (name, "trainer", "running", REGION)
    ]


def test_a_laptop_that_moved_is_let_in(cli: Cli, site: Site, account: Account, person: Client) -> None:
    """Where nothing answers, the rule is made anew, and it is tried once more."""
    assert cli(*START).code == 0
    account.cloud.address = "203.0.113.9"
    person.end_masters()
    (port,) = free_ports(1)
    is_in = person.home / "is_in"
    is_in.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "import boto3\n"
        f"groups = boto3.client('ec2', {REGION!r}).describe_security_groups()['SecurityGroups']\n"
        "rules = [rule for group in groups for rule in group['IpPermissions']]\n"
        "sys.exit('203.0.113.9/32' not in [each['CidrIp'] for rule in rules for each in rule['IpRanges']])\n"
    )
    is_in.chmod(0o755)
    person.config.write_text(f'Match host {WHERE} !exec "{is_in}"\n    Port {port}\n' + person.config.read_text())
    said = cli("runs", "-r", "trainer", "--json")
    assert said.code == 3, said.err
    assert "there is nothing at" in said.err  # which only the host can say
    assert account.let_in() == ["203.0.113.9/32"]
    account.cloud.address = "192.0.2.1"
    person.config.write_text(person.config.read_text().replace(str(is_in), "false"))
    person.end_masters()
    said = cli("runs", "-r", "trainer")
    assert said.code == 5
    assert "Connection refused" in said.err


def test_one_that_was_destroyed_elsewhere_is_not_said_to_be_kept(cli: Cli, site: Site, account: Account) -> None:
    assert cli(*START).code == 0
    (name,) = account.live

    def somebody_is_faster(call: Call) -> None:
        if call.action == "DescribeInstances" and "ec2:StopInstances" in account.cloud.actions():
            account.ec2.terminate_instances(InstanceIds=[name])

    account.cloud.before = somebody_is_faster
    said = cli(*STOP)
    assert (said.code, said.last) == (0, f"{name} of trainer: it is terminated")


def test_remotes_without_a_machine_say_so(cli: Cli, site: Site, account: Account) -> None:
    for argv in (
        ["remote", "start", "disk", "--yes"],
        ["remote", "stop", "disk", "--yes"],
        ["remote", "start", "--yes"],
        ["remote", "status", "--orphans", "disk"],
        ["run", "train.py", "-r", "disk", "--start-remote"],
    ):
        said = cli(*argv)
        assert said.code == 2, argv
        assert "cannot be started or stopped" in said.err, argv
    rows = {row["name"]: row["can"] for row in cli("remotes", "--json").json}
    assert rows == {"disk": ["sync", "run"], "trainer": ["sync", "run", "start", "stop"]}
    said = cli("remote", "start", "trainer", "-r", "disk", "--yes")
    assert said.code == 2
    assert "both trainer and disk are named" in said.err


def test_an_account_that_only_speaks_sftp(cli: Cli, site: Site, account: Account, tmp_path: Path) -> None:
    configure(tmp_path, account, layout="store")
    assert cli(*START).code == 0
    write_run(tmp_path / "guild", "a" * 32)
    said = cli("push", "trainer")
    assert said.code == 0, said.err
    assert [row["id"] for row in cli("runs", "-r", "trainer", "--json").json] == ["a" * 32]
    assert cli(*STOP).code == 0
    said = cli("runs", "-r", "trainer")
    assert said.code == 5
    assert "trainer is stopped" in said.err


def test_while_it_runs_it_is_a_host_like_any_other(cli: Cli, site: Site, account: Account, tmp_path: Path) -> None:
    assert cli(*START).code == 0
    there = ("-r", "trainer")
    for argv in (
        ["run", "train.py", "lr=0.1", *there],
        ["run", "train.py", "lr=0.2", *there, "--pull"],
        ["run", "train.py", "lr=0.3", *there, "--stage"],
        ["run", "--start", "1", *there, "--no-wait"],
        ["watch", "1", *there],
        ["run", "--restart", "1", *there],
        ["runs", *there],
        ["info", "1", *there],
        ["ls", "1", *there],
        ["cat", "1", "train.py", *there],
        ["diff", "1", "2", *there],
        ["label", "1", "--set", "best", *there],
        ["tag", "1", "--add", "good", *there],
        ["mark", "1", *there],
        ["comment", "1", "--add", "well", *there],
        ["delete", "2", "--yes", *there],
        ["restore", "1", *there],
        ["delete", "2", "--yes", *there],
        ["purge", "1", "--yes", *there],
        ["verify", *there],
        ["gc", "--yes", *there],
        ["pull", "trainer"],
        ["push", "trainer"],
        ["copy", "trainer", "disk"],
        ["copy", "disk", "trainer"],
        ["stop", "--yes", *there],
        ["check", *there],
        ["remote", "status", "trainer"],
    ):
        said = cli(*argv)
        assert said.code == 0, (argv, said.err, said.out)
    rows = cli("runs", "--json", *there).json
    assert [row["id"] for row in cli("runs", "--json", "-r", "disk").json] == [row["id"] for row in rows]
    assert (rows[0]["label"], rows[0]["tags"], rows[0]["marked"]) == ("best", ["good"], True)
    assert len(rows) == 2


def test_a_host_with_another_key_is_not_talked_to(
    cli: Cli, site: Site, account: Account, person: Client, tmp_path: Path
) -> None:
    """Whoever answers at the address must have the key that was learnt; what else is known does not count."""
    assert cli(*START).code == 0
    person.end_masters()
    with sshd() as other:
        (other.directory / "authorized").write_text(account.machine.server.user_key.with_suffix(".pub").read_text())
        person.blocks.clear()
        person.add(WHERE, other, IdentityFile=str(account.machine.server.user_key), StrictHostKeyChecking="no")
        for argv in (["runs", "-r", "trainer"], ["check", "-r", "trainer"]):
            said = cli(*argv)
            assert said.code == 4, said.err
        assert "Accepted" not in other.log


KILLER = """#!/bin/sh
n=$(($(cat "{count}") - 1))
echo "$n" > "{count}"
[ "$n" = 0 ] && [ "{when}" = before ] && kill -KILL $PPID && exit 1
PATH={path} ssh "$@"
code=$?
[ "$n" = 0 ] && kill -KILL $PPID
exit $code
"""


def killed(tmp_path: Path, n: int, when: str, argv: Sequence[str]) -> int:
    """The exit code of a command line that is killed before, or after, its n-th use of ssh."""
    bin_, count = tmp_path / "bin", tmp_path / "count"
    bin_.mkdir(exist_ok=True)
    count.write_text(str(n))
    (bin_ / "ssh").write_text(KILLER.format(count=count, when=when, path=os.environ["PATH"]))
    (bin_ / "ssh").chmod(0o755)
    env = {**environment(), "PATH": f"{bin_}:{os.environ['PATH']}"}
    words = [sys.executable, "-m", "guildsync", *argv]
    return subprocess.run(words, env=env, capture_output=True, timeout=120, check=False).returncode


@pytest.mark.soak
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_it_starts_the_next_one_goes_on(
    cli: Cli, site: Site, account: Account, tmp_path: Path, when: str
) -> None:
    """Each time with a machine of its own."""
    configure(tmp_path, account, init=f"echo once >> {tmp_path}/ran")
    for n in range(1, 30):
        code = killed(tmp_path, n, when, START)
        assert code in (0, -9)
        said = cli(*START)
        assert said.code == 0, said.err
        assert len(account.live) == 1
        assert (tmp_path / "ran").read_text() == "once\n"
        if code == 0:
            break
        account.cloud.told |= {*account.live}
        assert cli("remote", "stop", "trainer", "--terminate", "--yes").code == 0
        assert account.live == []
        (tmp_path / "ran").unlink()
    assert code == 0
    assert n > 4


@pytest.mark.soak
@pytest.mark.parametrize("what", [KILL_BEFORE, KILL_AFTER])
def test_killed_at_any_call_the_next_one_goes_on(cli: Cli, site: Site, account: Account, what: str) -> None:
    """Of what starts, stops, starts and destroys it: there is one, or none, and none is lost."""
    for argv in (START, STOP, START, (*STOP, "--terminate")):
        if "--terminate" in argv:
            account.cloud.told |= {*account.live}
        for n in range(60):
            words = [sys.executable, "-m", "guildsync", *argv]
            with subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
                account.cloud.fail(n, what, victim=child.pid)
                code = child.wait(120)
            account.cloud.heal()
            assert code in (0, -9)
            assert len(account.live) <= 1
            if code == 0:
                break
        assert code == 0
        assert len(account.live) == ("--terminate" not in argv)
    assert cli("remote", "status", "--orphans", "--json").json == []
