"""A bucket whose server is busy, breaks off or says nothing any more: tried anew within bounds, then said (P10)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from guildsync.errors import Unreachable
from guildsync.store.fs import S3, Files, Patience, open_s3
from tests.conftest import new_bucket
from tests.kit.model import Person
from tests.kit.proxy import Proxy, proxied, some
from tests.kit.servers import REGION, S3Server
from tests.kit.trees import assert_same, run_ids, write_run

pytestmark = pytest.mark.servers

KEY = "packs/ab/" + "ab" * 32
HASTE = Patience(connect=1, read=1, total=4)
CONFIG = """
remotes:
  bucket:
    type: s3
    bucket: {bucket}
    root: team/runs
    region: {region}
    endpoint-url: {endpoint}
    engine: {engine}
"""


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
    """Five runs go one by one from a home to another; answers the number of requests."""
    directory.mkdir()
    file = directory / "guildsync.yml"
    file.write_text(CONFIG.format(bucket=bucket, region=REGION, endpoint=proxy.endpoint, engine=engine))
    one, other = (Person(directory / name / "guild", "bucket", str(file)) for name in "ab")
    proxy.forget()
    for run in run_ids(5):
        write_run(one.home, run)
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


# Stalled


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
