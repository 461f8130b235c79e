"""Machines on EC2, with moto behind the door of `tests.kit.cloud`: found, made once, stopped, destroyed; whoever dies
where. After every test all calls that were made are held against the laws of that door: nothing opens ssh to the world,
destroys without being told, changes what is not the caller's, or makes a machine that could be forgotten or stay."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from guildsync.compute.ec2 import OPEN, Ec2Machine
from guildsync.compute.instances import chosen, network_of, owner_of, row_of, surplus
from guildsync.errors import Damaged, GuildsyncError, Refused, Unreachable, Usage
from guildsync.model.machine import Instance
from tests.kit.cloud import ERRORS, IMAGE, KILL_AFTER, KILL_BEFORE, LATE, LOST, REGIONS, Call, Cloud, arn_of, cloud
from tests.kit.machines import PATIENCE, PUBLIC_KEY, Laptop, laptop
from tests.kit.servers import REGION, S3Server

pytestmark = pytest.mark.servers

LIFE = ("start", "stop", "start", "stop", "terminate")
INIT = "echo said-by-init; echo hf_secret_of_init >/dev/null"
ANOTHER = REGIONS[1]


@pytest.fixture(scope="module")
def account(moto_server: S3Server) -> Iterator[Cloud]:
    with cloud(moto_server) as made:
        yield made


@pytest.fixture
def ec2(account: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """An account with machines of others in it, which are as they were in the end."""
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.01)
    for name, value in account.environment().items():
        monkeypatch.setenv(name, value)
    anew(account)
    yield account
    account.heal()
    held(account)


@pytest.fixture
def ann(ec2: Cloud, tmp_path: Path) -> Laptop:
    return laptop(ec2, tmp_path)


def anew(account: Cloud) -> None:
    """An account with machines and a group that are not ann's, one of another owner's remote of the same name."""
    account.clean()
    client = account.client()
    tags = {"guildsync:owner": arn_of("eve"), "guildsync:remote": "trainer", "guildsync:token": "t"}
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    for more in ({}, {"TagSpecifications": [{"ResourceType": "instance", "Tags": listed}]}):
        client.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1, **more)
    client.create_security_group(GroupName="office", Description="office")
    account.others = others(account)


def others(account: Cloud) -> Any:
    groups = account.client().describe_security_groups()["SecurityGroups"]
    instances = [each for each in account.instances() if _tag(each, "owner") in ("", arn_of("eve"))]
    states = [(each["InstanceId"], each["State"]["Name"], each.get("Tags")) for each in instances]
    return states, [group for group in groups if not group.get("Tags")]


def held(account: Cloud) -> None:
    """The laws, over all calls since `anew`."""
    assert account.broken == []
    assert others(account) == account.others


def _tag(instance: Any, name: str) -> str:
    return next((tag["Value"] for tag in instance.get("Tags", ()) if tag["Key"] == f"guildsync:{name}"), "")


def anns(account: Cloud) -> list[Any]:
    """Her machines that cost money, or will."""
    return [each for each in account.live() if _tag(each, "owner") == arn_of("ann")]


def groups(account: Cloud) -> list[Any]:
    found = account.client().describe_security_groups()["SecurityGroups"]
    return [group for group in found if group["GroupName"].startswith("guildsync")]


def allowed(account: Cloud) -> list[str]:
    (group,) = groups(account)
    return [row["CidrIp"] for rule in group["IpPermissions"] for row in rule["IpRanges"]]


def called(account: Cloud, *actions: str) -> list[Call]:
    return [call for call in account.calls if call.action in actions and not call.dry]


def is_known(who: Laptop, instance: Instance) -> bool:
    """Does this client know the machine by the key that it shows, which is not the one that it was made with?"""
    shown = " ".join((who.root(instance.id) / "shown.pub").read_text().split()[:2])
    (line,) = (who.memory / "known_hosts").read_text().splitlines()
    first = json.loads(who.user_data(instance).partition("\n")[2])["ssh_keys"]["ed25519_public"]
    return line == f"{instance.id} {shown}" and shown != first and not (who.memory / "first_hosts").exists()


# -- a life


def test_a_whole_life(ec2: Cloud, ann: Laptop) -> None:
    ann = ann.with_settings(init=INIT, root_device_size=50, stop_after=3600.0)
    assert ann.machine.state() is None
    assert ann.stop() is None
    made = ann.start()
    assert made.is_running
    assert made.address
    assert (made.remote, made.owner, made.region, made.kind) == ("trainer", arn_of("ann"), REGION, "t3.micro")
    assert ann.start() == made == ann.machine.state()
    assert is_known(ann, made)
    assert not (ann.memory / "intent").exists()
    assert (ann.root(made.id) / "var/lib/guildsync/log").read_text() == "said-by-init\n"
    assert allowed(ec2) == [f"{ec2.address}/32"]

    stopped = ann.stop()
    assert stopped is not None
    assert (stopped.id, stopped.state) == (made.id, "stopped")
    assert ann.stop() == stopped
    again = ann.start()
    assert (again.id, again.state) == (made.id, "running")
    assert is_known(ann, again)

    ec2.told.add(made.id)
    gone = ann.terminate()
    assert gone is not None
    assert gone.state == "terminated"
    assert ann.terminate() is None
    assert ann.machine.state() is None
    assert anns(ec2) == groups(ec2) == []
    assert len(called(ec2, "RunInstances")) == len(called(ec2, "TerminateInstances")) == 1


def test_what_a_machine_is_made_of(ec2: Cloud, ann: Laptop) -> None:
    made = ann.with_settings(init=INIT, root_device_size=50, stop_after=3600.0).start()
    (call,) = called(ec2, "RunInstances")
    found = call.parameters
    assert "50" in [value for name, value in found.items() if name.endswith("VolumeSize")]
    user_data = ann.user_data(made)
    assert "hf_secret_of_init" not in user_data + json.dumps(dict(found))
    assert PUBLIC_KEY in user_data
    assert "PRIVATE KEY" not in json.dumps({name: value for name, value in found.items() if name != "UserData"})
    assert user_data.count("BEGIN OPENSSH PRIVATE KEY") == 1
    assert "guildsync-idle.timer" in user_data
    (state,) = (each for each in ec2.instances() if each["InstanceId"] == made.id)
    assert _tag(state, "host-key") == (ann.root(made.id) / "shown.pub").read_text().strip()
    volumes = ec2.client().describe_volumes(Filters=[{"Name": "tag-key", "Values": ["guildsync:token"]}])["Volumes"]
    assert volumes


def test_a_key_pair_and_a_group_of_ones_own(ec2: Cloud, ann: Laptop) -> None:
    client = ec2.client()
    client.create_key_pair(KeyName="ann")
    group = client.create_security_group(GroupName="mine", Description="mine")["GroupId"]
    ann = ann.with_settings(public_key=None, key_name="ann", security_group=group)
    made = ann.start()
    assert ann.machine.admit() is False
    (each,) = anns(ec2)
    assert each["KeyName"] == "ann"
    assert [row["GroupId"] for row in each["SecurityGroups"]] == [group]
    ec2.told.add(made.id)
    ann.terminate()
    assert not called(ec2, *(f"{verb}SecurityGroup{rest}" for verb, rest in _ON_GROUPS))
    client.delete_security_group(GroupId=group)


_ON_GROUPS = (("Create", ""), ("Delete", ""), ("Authorize", "Ingress"), ("Revoke", "Ingress"))


def test_it_is_stopped_when_ec2_says_so(ec2: Cloud, ann: Laptop) -> None:
    made = ann.start()
    ec2.slow = 4
    stopped = ann.stop()
    assert stopped is not None
    assert stopped.is_stopped
    ec2.told.add(made.id)
    gone = ann.terminate()
    assert gone is not None
    assert gone.state == "terminated"
    ec2.slow = 10**6


def test_what_ec2_does_not_say_is_not_said(ec2: Cloud, ann: Laptop) -> None:
    def impatient(**seconds: float) -> Ec2Machine:
        return Ec2Machine(ann.settings, ann.machine._memory, replace(PATIENCE, **seconds))

    ec2.slow = 10**6
    with pytest.raises(Unreachable) as caught:
        impatient(running=0.05).start(ann.reach, print)
    assert "running" in caught.value.message
    ec2._showing.clear()
    ec2.slow = 0
    made = ann.start()
    ec2.slow = 10**6
    for terminate, word in ((False, "stopped"), (True, "destroyed")):
        ec2.told |= {made.id} if terminate else set()
        with pytest.raises(Unreachable) as caught:
            impatient(ended=0.05).stop(terminate, print)
        assert word in caught.value.message


def test_listings_that_lag(ec2: Cloud, ann: Laptop) -> None:
    """What was made is waited for, whoever asks."""
    ec2.lag, ec2.slow = 5, 3
    made = ann.start()
    assert [each["InstanceId"] for each in anns(ec2)] == [made.id]
    assert len(called(ec2, "RunInstances")) == 1


# -- whoever dies where


def told(ec2: Cloud) -> None:
    ec2.told.add("any")


def lived(ec2: Cloud, who: Laptop, step: int) -> None:
    """The life up to a step."""
    for verb in LIFE[:step]:
        getattr(who, verb)()


def ends_right(ec2: Cloud, who: Laptop, step: int) -> None:
    """Nothing is unknown to a listing by tag; the same command ends right; nothing was doubled."""
    found = {row.id for row in who.machine.all(print)}
    assert {each["InstanceId"] for each in anns(ec2)} <= found
    outcome = getattr(who, LIFE[step])()
    live = anns(ec2)
    if LIFE[step] == "start":
        assert outcome.is_running
        assert [each["InstanceId"] for each in live] == [outcome.id]
        assert is_known(who, outcome)
        assert allowed(ec2) == [f"{ec2.address}/32"]
        assert not (who.memory / "intent").exists()
    elif LIFE[step] == "stop":
        assert [each["State"]["Name"] for each in live] == ["stopped"]
    else:
        assert live == groups(ec2) == []
    assert len({each["InstanceId"] for each in ec2.instances() if _tag(each, "owner") == arn_of("ann")}) == 1


def killed_everywhere(ec2: Cloud, directory: Path, step: int, first: int, every: int) -> int:
    """How often it was killed: at calls `first`, `first` + `every`, … of that step, until it ends before."""
    for count, at in enumerate(itertools.count(first, every)):
        for what in (KILL_BEFORE, KILL_AFTER):
            anew(ec2)
            told(ec2)
            who = laptop(ec2, directory / f"{at}-{what}").with_settings(init="echo once")
            lived(ec2, who, step)
            if not who.killed(ec2, LIFE[step], at, what):
                return count
            ends_right(ec2, who, step)
            held(ec2)
            if LIFE[step] == "start":
                (log,) = who.machines.glob("*/var/lib/guildsync/log")
                assert log.read_text() == "once\n"
    raise AssertionError


@pytest.mark.parametrize("step", [0, 1, 4])
def test_killed_at_some_calls(ec2: Cloud, tmp_path: Path, step: int) -> None:
    assert killed_everywhere(ec2, tmp_path, step, first=step % 4, every=9) > 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("step", range(len(LIFE)))
def test_killed_at_every_call(ec2: Cloud, tmp_path: Path, step: int) -> None:
    assert killed_everywhere(ec2, tmp_path, step, first=0, every=1) > 3


def test_killed_at_its_creation_again_and_again(ec2: Cloud, tmp_path: Path) -> None:
    """It is made by the last one, and only once."""
    told(ec2)
    who = laptop(ec2, tmp_path)
    at = next(number for number, call in enumerate(_calls_of_a_start(ec2, tmp_path)) if call.action == "RunInstances")
    anew(ec2)
    for _ in range(3):
        who.killed(ec2, "start", at, KILL_BEFORE)
    token = json.loads((who.memory / "intent").read_text())["token"]
    made = who.start()
    assert made.token == token
    assert len(anns(ec2)) == 1


def _calls_of_a_start(ec2: Cloud, directory: Path) -> list[Call]:
    laptop(ec2, directory, number=9).start()
    return list(ec2.calls)


def failed_everywhere(ec2: Cloud, directory: Path, what: str, step: int, first: int, every: int) -> int:
    """As `killed_everywhere`: calls fail once, which is mended on the way; and for good, which is said."""
    for count, at in enumerate(itertools.count(first, every)):
        for times in (1, 8):
            anew(ec2)
            told(ec2)
            who = laptop(ec2, directory / f"{at}-{times}")
            lived(ec2, who, step)
            ec2.fail(at, what, times)
            with nullcontext() if times == 1 else suppress(Unreachable):
                getattr(who, LIFE[step])()
            arrived, ec2.fault = ec2._seen, None
            if arrived <= at:
                return count
            ends_right(ec2, who, step)
            held(ec2)
    raise AssertionError


FAULTS = (LOST, LATE, *ERRORS)


@pytest.mark.parametrize(("what", "step"), [(what, number % len(LIFE)) for number, what in enumerate(FAULTS)])
def test_some_calls_fail(ec2: Cloud, tmp_path: Path, what: str, step: int) -> None:
    assert failed_everywhere(ec2, tmp_path, what, step, first=step % 3, every=9) > 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("step", range(len(LIFE)))
def test_every_call_fails(ec2: Cloud, tmp_path: Path, what: str, step: int) -> None:
    assert failed_everywhere(ec2, tmp_path, what, step, first=0, every=1) > 3


def test_the_intent_is_durable_before_anything_is_made(
    ec2: Cloud, ann: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, its name, and the directories that were made for it."""
    order: list[str] = []
    sync = os.fsync

    def recorded(fd: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    def before(call: Call) -> None:
        if call.action.startswith(("Create", "Run")) and call.action != "CreateTags":
            intent = json.loads((ann.memory / "intent").read_text())
            assert call.action != "RunInstances" or call.parameters["ClientToken"] == intent["token"]
            order.append(call.action)

    monkeypatch.setattr(os, "fsync", recorded)
    ec2.before = before
    ann.start()
    file = next(index for index, path in enumerate(order) if "/intent." in path)
    assert order[file + 1] == str(ann.memory)
    assert {str(ann.memory), str(ann.memory.parent), str(ann.memory.parents[1])} <= set(order[:file])
    assert file + 1 < order.index("CreateSecurityGroup") < order.index("RunInstances")
    assert (ann.memory.stat().st_mode & 0o777, ann.memory.parent.stat().st_mode & 0o777) == (0o700, 0o700)


def test_a_stop_after_a_start_that_made_nothing(ec2: Cloud, ann: Laptop, tmp_path: Path) -> None:
    at = next(number for number, call in enumerate(_calls_of_a_start(ec2, tmp_path)) if call.action == "RunInstances")
    anew(ec2)
    ann.killed(ec2, "start", at, KILL_BEFORE)
    who = Ec2Machine(ann.settings, ann.machine._memory, replace(PATIENCE, listed=0.05))
    assert who.stop(False, print) is None
    assert not (ann.memory / "intent").exists()
    assert anns(ec2) == []


def test_an_intent_that_nothing_came_of_is_old(ec2: Cloud, ann: Laptop, tmp_path: Path) -> None:
    at = next(number for number, call in enumerate(_calls_of_a_start(ec2, tmp_path)) if call.action == "RunInstances")
    anew(ec2)
    ann.killed(ec2, "start", at, KILL_BEFORE)
    file = ann.memory / "intent"
    old = json.loads(file.read_text())
    file.write_text(json.dumps({**old, "begun": old["begun"] - OPEN - 1}))
    assert ann.start().token != old["token"]


def test_an_intent_that_cannot_be_read(ec2: Cloud, ann: Laptop) -> None:
    ann.memory.mkdir(parents=True)
    (ann.memory / "intent").write_text("{")
    with pytest.raises(Damaged):
        ann.start()
    assert anns(ec2) == []


# -- several clients


def test_a_machine_that_another_laptop_started_is_used(ec2: Cloud, ann: Laptop, tmp_path: Path) -> None:
    other = laptop(ec2, tmp_path, number=1)
    made = ann.with_settings(init="echo once").start()
    found = other.with_settings(init="echo twice").start()
    assert found == made
    assert is_known(other, found)
    assert len(called(ec2, "RunInstances")) == 1
    assert not called(ec2, "GetConsoleOutput")
    assert (ann.root(made.id) / "var/lib/guildsync/log").read_text() == "once\n"
    assert other.stop() is not None
    assert ann.start().id == made.id


def test_a_start_that_died_is_finished_by_another_laptop(ec2: Cloud, tmp_path: Path) -> None:
    """Wherever it died: before the machine had its own key, after it showed it, and before others could learn that."""
    calls = _calls_of_a_start(ec2, tmp_path)
    for number, verb in enumerate(("before-key", "after-key", "before-switch", "after-switch", "CreateTags")):
        anew(ec2)
        directory = tmp_path / str(number)
        who, other = laptop(ec2, directory), laptop(ec2, directory, number=1)
        ec2.console = lambda machine, root=who.machines: (root / machine / "dev/console").read_text()
        at = next(index for index, call in enumerate(calls) if call.action == verb)
        assert who.killed(ec2, "start", at, KILL_BEFORE)
        made = other.start()
        assert is_known(other, made)
        assert who.start() == made
        assert is_known(who, made)
        assert len(anns(ec2)) == 1
        assert bool(called(ec2, "GetConsoleOutput")) == (verb in ("after-switch", "CreateTags"))


@pytest.mark.parametrize("lag", [0, 3])
def test_two_laptops_at_once_end_with_one(ec2: Cloud, ann: Laptop, tmp_path: Path, lag: int) -> None:
    """Each has seen that there is none; the faster one's is used by both."""
    other = laptop(ec2, tmp_path, number=1)
    raced: list[Instance] = []
    once = threading.Lock()

    def before(call: Call) -> None:
        if call.action == "RunInstances" and once.acquire(blocking=False):
            raced.append(other.start())
            ec2.lag = lag
        if call.action == "TerminateInstances":  # only what is not the other's may be destroyed
            ec2.told |= set(call.values("InstanceId")) - {row.id for row in raced}

    ec2.before = before
    found = ann.start()
    assert found.id == raced[0].id
    assert [each["InstanceId"] for each in anns(ec2)] == [found.id]
    assert is_known(ann, found)
    assert is_known(other, found)
    assert not (ann.memory / "intent").exists()


def test_many_laptops_at_once_end_with_one(ec2: Cloud, tmp_path: Path) -> None:
    told(ec2)
    who = [laptop(ec2, tmp_path, number=number) for number in range(4)]
    ready = threading.Barrier(len(who))
    found: list[Instance] = []

    def act(each: Laptop) -> None:
        ready.wait(30)
        found.append(each.start())

    threads = [threading.Thread(target=act, args=(each,)) for each in who]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == len(who)
    assert {each["InstanceId"] for each in anns(ec2)} == {row.id for row in found}
    assert len({row.id for row in found}) == 1
    assert all(is_known(each, found[0]) for each in who)


def test_a_second_machine_is_said_and_stopped_with_the_first(ec2: Cloud, ann: Laptop, tmp_path: Path) -> None:
    """It is not ours to destroy: somebody may use it."""
    first = ann.start()
    other = laptop(ec2, tmp_path, number=1)
    client = ec2.client()
    tags = [{"Key": "guildsync:owner", "Value": "x"}]
    client.create_tags(Resources=[first.id], Tags=tags)
    second = other.start()
    client.create_tags(Resources=[first.id], Tags=[{"Key": "guildsync:owner", "Value": arn_of("ann")}])
    older, younger = sorted((first, second), key=lambda each: (each.since, each.id))  # they may be of one second
    assert ann.start().id == older.id
    assert any(younger.id in line and "second machine" in line for line in ann.said)
    stopped = ann.stop()
    assert stopped is not None
    assert [each["State"]["Name"] for each in anns(ec2)] == ["stopped", "stopped"]


def test_two_people_with_a_remote_of_one_name(ec2: Cloud, ann: Laptop, tmp_path: Path) -> None:
    bob = laptop(ec2, tmp_path, "bob")
    first, second = ann.start(), bob.start()
    assert first.id != second.id
    assert bob.machine.state() == second
    assert ann.machine.state() == first
    everything = {row.id for row in ann.machine.all(print)}
    assert {first.id, second.id} <= everything
    assert bob.stop() is not None
    state = ann.machine.state()
    assert state is not None
    assert state.is_running


# -- the client's address


def test_a_laptop_that_moves(ec2: Cloud, ann: Laptop, tmp_path: Path) -> None:
    made = ann.start()
    assert ann.machine.admit() is False
    ec2.address = "203.0.113.9"
    assert ann.machine.admit() is True
    assert allowed(ec2) == ["203.0.113.9/32"]
    other = laptop(ec2, tmp_path, number=1)
    ec2.address = "192.0.2.1"
    assert other.machine.admit() is True
    assert sorted(allowed(ec2)) == ["192.0.2.1/32", "203.0.113.9/32"]
    ec2.address = "203.0.113.10"
    assert ann.machine.admit() is True
    assert sorted(allowed(ec2)) == ["192.0.2.1/32", "203.0.113.10/32"]
    assert ann.start() == made
    assert allowed(ec2) == ["203.0.113.10/32"]


@pytest.mark.parametrize("said", ["0.0.0.0", "::", "0.0.0.0/0", "", "<html>", "198.51.100.7/8"])
def test_an_address_that_is_none(ec2: Cloud, ann: Laptop, said: str) -> None:
    ec2.address = said
    with pytest.raises(Unreachable):
        ann.start()
    assert anns(ec2) == []


def test_networks() -> None:
    assert network_of("198.51.100.7\n") == "198.51.100.7/32"
    assert network_of("2001:db8::1") == "2001:db8::1/128"
    for text in ("0.0.0.0", "::", "224.0.0.1", "1.2.3.4/24", "x"):
        with pytest.raises(Usage):
            network_of(text)


# -- everything of ours


def test_everything_is_listed(ec2: Cloud, ann: Laptop, tmp_path: Path) -> None:
    """Of all regions; of remotes that are in no configuration any more; disks that no machine has."""
    here = ann.start()
    there = laptop(ec2, tmp_path, number=1).with_settings(region=ANOTHER, remote="forgotten")
    client = ec2.client(ANOTHER)
    tags = [{"Key": f"guildsync:{key}", "Value": "x"} for key in ("owner", "remote", "token")]
    volume = client.create_volume(
        AvailabilityZone=f"{ANOTHER}a", Size=7, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}]
    )["VolumeId"]
    there.start()
    said: list[str] = []
    found = {row.id: row for row in laptop(ec2, tmp_path, number=2).machine.all(said.append)}
    (elsewhere,) = (each["InstanceId"] for each in ec2.live(ANOTHER))
    assert {here.id, elsewhere, volume} <= set(found)
    assert (found[elsewhere].region, found[elsewhere].remote) == (ANOTHER, "forgotten")
    assert found[volume].kind == "volume, 7 GiB"
    assert said == []
    ec2.fail(1, "500", times=10**6)
    assert laptop(ec2, tmp_path, number=2).machine.all(said.append) == []
    assert sorted(line.partition(" ")[0] for line in said) == sorted(REGIONS)


# -- check, and what is said


def test_check(ec2: Cloud, ann: Laptop) -> None:
    assert [(step.name, step.ok) for step in ann.machine.check()] == [
        (name, True) for name in ("credentials", "image", "key", "address", "permissions", "machine")
    ]
    ann.start()
    before = len(ec2.calls)
    steps = list(ann.machine.check())
    assert "running" in steps[-1].detail
    assert all(call.dry or call.action.startswith(("Describe", "Get")) for call in ec2.calls[before:])


@pytest.mark.parametrize(
    ("changed", "step", "code"),
    [
        ({"ami": "ami-00000000000000000"}, "image", 2),
        ({"public_key": None}, "key", 2),
        ({"public_key": "/nowhere.pub"}, "key", 3),
        ({"public_key": __file__}, "key", 2),
        ({"public_key": None, "key_name": "none"}, "key", 2),
        ({"profile": "none"}, "credentials", 2),
    ],
)
def test_what_check_finds(ec2: Cloud, ann: Laptop, changed: dict[str, Any], step: str, code: int) -> None:
    last = list(ann.with_settings(**changed).machine.check())[-1]
    assert (last.name, last.ok, last.exit_code) == (step, False, code), last
    assert last.hint
    if changed.get("key_name"):
        return  # moto makes machines of any
    with pytest.raises(GuildsyncError):
        ann.with_settings(**changed).start()
    assert anns(ec2) == []
    assert not (ann.memory / "intent").exists()


def test_nobody_without_credentials(ec2: Cloud, ann: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    ann.environment.pop("AWS_ACCESS_KEY_ID")  # type: ignore[attr-defined]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(Refused) as caught:
        ann.start()
    assert caught.value.exit_code == 4
    assert caught.value.hint


def test_another_key_than_the_provider_tells(ec2: Cloud, ann: Laptop) -> None:
    """Whoever shows the key of the first boot after that is not the machine."""
    made = ann.start()
    root = ann.root(made.id)
    first = json.loads(ann.user_data(made).partition("\n")[2])["ssh_keys"]["ed25519_public"]
    (root / "shown.pub").write_text(first)
    (ann.memory / "known_hosts").unlink()
    with pytest.raises(Refused):
        ann.with_settings(init="true").start()
    (ann.memory / "known_hosts").write_text(f"{made.id} {first}\n")
    with pytest.raises(Refused):
        ann.start()


def test_init_that_fails_is_said_and_not_run_again(ec2: Cloud, ann: Laptop) -> None:
    ann = ann.with_settings(init="echo tried >>$HOME/count; echo no space; exit 3")
    for _ in range(2):
        with pytest.raises(GuildsyncError) as caught:
            ann.start()
        assert "no space" in caught.value.message
        assert "3" in caught.value.message
    (each,) = anns(ec2)
    assert (ann.root(each["InstanceId"]) / "count").read_text() == "tried\n"


# -- decisions


@pytest.mark.parametrize(
    ("arn", "owner"),
    [
        ("arn:aws:iam::1:user/ann", "arn:aws:iam::1:user/ann"),
        ("arn:aws:sts::1:assumed-role/train/botocore-session-1700000000", "arn:aws:sts::1:assumed-role/train"),
        (
            "arn:aws:sts::1:assumed-role/AWSReservedSSO_x/ann@example.com",
            "arn:aws:sts::1:assumed-role/AWSReservedSSO_x/ann@example.com",
        ),
    ],
)
def test_owners(arn: str, owner: str) -> None:
    assert owner_of(arn) == owner


def _row(name: str, since: int, state: str = "running", host_key: str = "") -> Any:
    tags = [{"Key": "guildsync:token", "Value": f"t-{name}"}, {"Key": "guildsync:host-key", "Value": host_key}]
    made = datetime.fromtimestamp(since, timezone.utc)
    return row_of({"InstanceId": name, "State": {"Name": state}, "LaunchTime": made, "Tags": tags}, REGION)


def test_which_machine_is_the_remotes() -> None:
    a, b, c = _row("i-a", 2), _row("i-b", 1), _row("i-c", 0, "terminated")
    assert chosen([a, b, c]) == b
    assert chosen([c]) is None
    assert surplus([a, b, c], "t-i-a") == a
    assert surplus([a, b, c], "t-i-b") is None
    assert surplus([a, b, c], None) is None
    assert surplus([_row("i-a", 2, host_key="k"), b], "t-i-a") is None
    tied = [_row("i-b", 1), _row("i-a", 1)]
    assert chosen(tied) == tied[1]
    assert chosen(tied[::-1]) == tied[1]
    assert chosen([_row("i-a", 1), _row("i-b", 1, host_key="k")]) == _row("i-b", 1, host_key="k")
    assert chosen([_row("i-a", 1), _row("i-b", 2, host_key="k")]) == _row("i-a", 1)
