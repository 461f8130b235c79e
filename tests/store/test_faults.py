"""A bucket whose server is busy, breaks off or says nothing any more: tried anew within bounds, then said (P10)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from guildsync.errors import Unreachable
from guildsync.store.fs import PATIENCE, S3, Files, Patience, open_s3
from tests.conftest import new_bucket
from tests.kit.model import Person
from tests.kit.proxy import IN, OUT, Fault, Proxy, proxied, some
from tests.kit.servers import REGION, S3Server, bucket_file
from tests.kit.trees import MIB, assert_same, noise, run_ids, write_run

pytestmark = pytest.mark.servers

KEY = "packs/ab/" + "ab" * 32
HASTE = Patience(connect=1, read=1, total=4)


@pytest.fixture(params=["obstore", "s3fs"])
def engine(request: pytest.FixtureRequest, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    return str(request.param)


@pytest.fixture
def proxy(seaweed: S3Server) -> Iterator[Proxy]:
    with proxied(seaweed.endpoint) as there:
        yield there


@pytest.fixture
def opened(engine: str, proxy: Proxy, s3_bucket: str) -> Callable[[Patience], Files]:
    where = S3(s3_bucket, "team/runs", REGION, endpoint_url=proxy.endpoint, engine=engine)
    return lambda patience: open_s3(where, patience)


# Busy


def work(directory: Path, proxy: Proxy, bucket: str, engine: str) -> int:
    """Two runs go one by one from a home to another, one of them in several packs; answers the number of requests."""
    directory.mkdir()
    file = bucket_file(directory, proxy.endpoint, bucket, engine)
    one, other = (Person(directory / name / "guild", "bucket", str(file)) for name in "ab")
    proxy.forget()
    for number, run in enumerate(run_ids(2)):
        write_run(one.home, run, {"weights": noise(number, 9 * MIB)} if number == 1 else {})
        assert one.push().exit_code == 0
        assert other.pull().exit_code == 0
        assert_same(one.run(run), other.run(run))
    return len(proxy.requests)


def test_a_busy_server_costs_few_more_requests(engine: str, proxy: Proxy, seaweed: S3Server, tmp_path: Path) -> None:
    usual = work(tmp_path / "usual", proxy, new_bucket(seaweed), engine)
    assert proxy.busy_count == 0
    proxy.busy = some(3, among=10)
    busy = work(tmp_path / "busy", proxy, new_bucket(seaweed), engine)
    assert proxy.busy_count >= 0.3 * busy - 1
    assert busy <= 1.6 * usual


def test_a_server_that_is_always_busy_is_unreachable(opened: Callable[[Patience], Files], proxy: Proxy) -> None:
    proxy.busy = lambda _: True
    with pytest.raises(Unreachable) as caught:
        opened(HASTE).get(KEY)
    assert caught.value.exit_code == 5


def test_a_server_that_is_not_there_is_spoken_of_in_the_same_words(
    opened: Callable[[Patience], Files], proxy: Proxy
) -> None:
    """Who tries again says it once: no address of a request in it, and nothing that was counted or measured."""
    proxy.close()
    with pytest.raises(Unreachable) as caught:
        opened(Patience(connect=1, read=1, total=30)).get(KEY)
    assert "http:" not in str(caught.value)
    assert re.search(r"retries|[0-9]\.[0-9]", str(caught.value)) is None


# Broken off


def test_an_answer_that_is_broken_off_is_asked_for_again(opened: Callable[[Patience], Files], proxy: Proxy) -> None:
    files = opened(Patience(connect=1, read=5, total=60))
    data = os.urandom(3 << 20)
    files.put(KEY, data)
    acts: tuple[tuple[Callable[[], bytes], bytes], ...] = (
        (lambda: files.get(KEY), data),
        (lambda: files.read(KEY, 1000, 2 << 20), data[1000 : 2 << 20]),
    )
    for act, wanted in acts:
        for after in (1, 300_000, 1_500_000):
            proxy.forget()
            proxy.reset_after, proxy.resets = after, 1
            assert act() == wanted
            assert proxy.reset_count == 1
            assert len(proxy.requests) == 2


@pytest.mark.parametrize("size", [100_000, 3 * MIB])
def test_a_put_that_is_broken_off_is_made_again(opened: Callable[[Patience], Files], proxy: Proxy, size: int) -> None:
    """Before its first byte, within, before its last one, and when all but the answer was there."""
    files = opened(Patience(connect=1, read=5, total=60))
    breaks = [Fault("PUT", OUT, after) for after in (-1, 0, 1, size // 2, size - 1)] + [Fault("PUT", IN, -1)]
    for number, fault in enumerate(breaks):
        proxy.forget()
        proxy.faults.append(fault)
        name, data = f"packs/{number}", noise(number, size)
        files.put(name, data)
        assert proxy.faults == []
        assert len(proxy.requests) == 2, fault
        assert files.get(name) == data, fault


@pytest.mark.parametrize("after", [-1, 0, 1, 300])
def test_a_listing_that_is_broken_off_is_made_again(
    opened: Callable[[Patience], Files], proxy: Proxy, after: int
) -> None:
    files = opened(Patience(connect=1, read=5, total=60))
    files.put("journal/1", b"x")
    for deep in (False, True):
        proxy.faults.append(Fault("GET", IN, after))
        assert files.list("journal", deep) == {"journal/1": 1}
        assert proxy.faults == []


def test_syncs_over_a_line_that_breaks(engine: str, proxy: Proxy, s3_bucket: str, tmp_path: Path) -> None:
    """Several times in one push and one pull, and nothing of it shows."""
    file = str(bucket_file(tmp_path, proxy.endpoint, s3_bucket, engine))
    a, b = (Person(tmp_path / name / "guild", "bucket", file) for name in "ab")
    (run,) = run_ids(1)
    write_run(a.home, run, {f"part{n}": noise(n, 4 * MIB) for n in range(5)})
    proxy.faults += [Fault("PUT", OUT, MIB + after) for after in (0, 1, 400_000)]
    proxy.faults += [Fault("PUT", OUT, -1), Fault("PUT", IN, -1)]
    assert a.push().problems == []
    proxy.faults += [Fault("GET", IN, after) for after in (65_536, MIB, 2 * MIB)]
    assert b.pull().problems == []
    assert proxy.faults == []
    assert_same(b.run(run), a.run(run))
    assert a.verify().problems == []


# Stalled


LARGE = 3 * MIB
SMALL = 100_000
STALLS = [
    *(("put", LARGE, Fault("PUT", OUT, after, stall=True)) for after in (-1, 0, 1, 65_536, MIB, LARGE - 1)),
    ("put", LARGE, Fault("PUT", IN, -1, stall=True)),
    *(("put", SMALL, Fault("PUT", OUT, after, stall=True)) for after in (-1, 0, 1, SMALL // 2, SMALL - 1)),
    ("put", SMALL, Fault("PUT", IN, -1, stall=True)),
    ("get", LARGE, Fault("GET", OUT, -1, stall=True)),
    *(("get", LARGE, Fault("GET", IN, after, stall=True)) for after in (-1, 0, 1, 65_536, MIB, LARGE - 1)),
    *(("read", LARGE, Fault("GET", IN, after, stall=True)) for after in (-1, 0, MIB)),
    *(("list", 10, Fault("GET", way, -1, stall=True)) for way in (OUT, IN)),
]
"""Where one exchange stops to move: a call, the bytes of its file, and the place on their way."""


CLIENTS = 3
"""Each keeps some connections only, and what stalls has them all."""


@dataclass
class Stalled:
    """One call that met a stall: what came of it, after so many seconds."""

    fault: Fault
    raised: BaseException | None = None
    seconds: float = 0.0


def stalled_file(number: int) -> tuple[str, bytes]:
    return f"stalled-{number:02}/file", noise(number, STALLS[number][1])


def stalled(files: Files, number: int) -> Stalled:
    what, size, fault = STALLS[number]
    name, data = stalled_file(number)
    acts: dict[str, Callable[[], object]] = {
        "put": lambda: files.put(name, data),
        "get": lambda: files.get(name) == data,
        "read": lambda: files.read(name, 5, size) == data[5:],
        "list": lambda: files.list(name.partition("/")[0]) == {name: size},
    }
    said, began = Stalled(fault), time.monotonic()
    try:
        assert acts[what]() in (None, True), "other bytes came"
    except BaseException as exc:  # noqa: BLE001
        said.raised = exc
    said.seconds = time.monotonic() - began
    return said


def all_stalled(opened: Callable[[Patience], Files], proxy: Proxy, patience: Patience, lasting: bool) -> list[Stalled]:
    """All at once, each with its own file."""
    sound = opened(PATIENCE)
    for number, (what, *_) in enumerate(STALLS):
        if what != "put":
            sound.put(*stalled_file(number))
    clients = [opened(patience) for _ in range(CLIENTS)]
    for client in clients:
        client.list("journal")
    for number, (_, _, fault) in enumerate(STALLS):
        path = stalled_file(number)[0].partition("/")[0]
        proxy.faults.append(replace(fault, path=path, lasting=lasting))
    with ThreadPoolExecutor(len(STALLS)) as pool:
        calls = [pool.submit(stalled, clients[number % CLIENTS], number) for number in range(len(STALLS))]
        found = [call.result(120) for call in calls]
    assert len(found) >= 20
    assert proxy.strikes >= len(found)
    proxy.faults.clear()
    for number, each in enumerate(found):
        if each.raised is None:
            assert sound.get(stalled_file(number)[0]) == stalled_file(number)[1], each.fault
    return found


def test_a_connection_that_stalls_is_given_up_for_another(opened: Callable[[Patience], Files], proxy: Proxy) -> None:
    """Wherever it does, and the call ends well."""
    found = all_stalled(opened, proxy, Patience(connect=5, read=1, total=12), lasting=False)
    assert [(each.fault, each.raised) for each in found if each.raised is not None] == []


def test_where_all_stalls_the_call_ends_in_time(opened: Callable[[Patience], Files], proxy: Proxy) -> None:
    """As a server that cannot be reached, exit code 5; a get may end well where each try brings it on a good deal."""
    patience = Patience(connect=1, read=1, total=4)
    found = all_stalled(opened, proxy, patience, lasting=True)
    well = [each.fault for each in found if each.raised is None]
    assert [fault for fault in well if fault.way == OUT or fault.after < MIB] == []
    failed = [each for each in found if each.raised is not None]
    assert [(each.fault, each.raised) for each in failed if not isinstance(each.raised, Unreachable)] == []
    assert [each for each in found if each.seconds > patience.total + 5] == []
    assert Unreachable.exit_code == 5


def test_a_server_that_says_nothing_is_unreachable(opened: Callable[[Patience], Files], proxy: Proxy) -> None:
    files = opened(HASTE)
    files.put(KEY, bytes(100_000))
    proxy.stalled = True
    acts = (
        (files.list, "journal"),
        (files.list, "packs", True),
        (files.get, KEY),
        (files.read, KEY, 10, 20),
        (files.put, "journal/1", b"x"),
        (files.put, KEY, bytes(1 << 20)),
        (files.remove, KEY),
        (files.require_root,),
    )
    threads = []
    said: dict[int, BaseException] = {}

    def run(number: int) -> None:
        act, *given = acts[number]
        try:
            act(*given)  # type: ignore[operator]
        except BaseException as exc:  # noqa: BLE001
            said[number] = exc

    for number in range(len(acts)):
        threads.append(threading.Thread(target=run, args=(number,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join(120)
    assert [type(said.get(number)) for number in range(len(acts))] == [Unreachable] * len(acts)


def test_a_server_that_speaks_again_is_used_again(opened: Callable[[Patience], Files], proxy: Proxy) -> None:
    files = opened(replace(HASTE, total=60))
    data = os.urandom(100_000)
    files.put(KEY, data)
    proxy.stalled = True
    timer = threading.Timer(2.5, lambda: setattr(proxy, "stalled", False))
    timer.start()
    assert files.get(KEY) == data
    timer.join()


# Ctrl-C


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        ("push", Fault("PUT", OUT, MIB, stall=True, lasting=True)),
        ("push", Fault("PUT", IN, -1, stall=True, lasting=True)),
        ("push", Fault("GET", IN, -1, stall=True, lasting=True)),
        ("pull", Fault("GET", IN, MIB, stall=True, lasting=True)),
    ],
)
def test_ctrl_c_ends_what_stalls(
    engine: str, proxy: Proxy, s3_bucket: str, tmp_path: Path, verb: str, fault: Fault
) -> None:
    """At once, and what was there before is as it was."""
    file = str(bucket_file(tmp_path, proxy.endpoint, s3_bucket, engine))
    a, b = (Person(tmp_path / name / "guild", "bucket", file) for name in "ab")
    (run,) = run_ids(1)
    write_run(a.home, run, {f"part{n}": noise(n, 3 * MIB) for n in range(4)})
    if verb == "pull":
        assert a.push().exit_code == 0
    who = {"push": a, "pull": b}[verb]
    proxy.faults.append(fault)
    command = [sys.executable, "-m", "guildsync", verb, "bucket", "--home", str(who.home), "--config", file, "-y"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        try:
            assert proxy.struck.wait(60)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=5)
        finally:
            child.kill()
    assert child.returncode == 130, err
    assert b"interrupted" in err
    assert b"Traceback" not in err
    proxy.faults.clear()
    assert a.push().exit_code == 0
    assert b.pull().exit_code == 0
    assert_same(b.run(run), a.run(run))
    assert a.verify().problems == []
