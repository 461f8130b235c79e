"""The harness of `scripts/bench` works: it counts, it launches, and it measures all rows. Times are not looked at."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest

from scripts.benchmarks.goals import faster, judge, requests
from scripts.benchmarks.kinds import KINDS
from scripts.benchmarks.launch import TIMED_OUT, launch
from scripts.benchmarks.mirror import Latencies, measured
from scripts.benchmarks.mirrors import FOLDER, Mirror
from scripts.benchmarks.proxy import Requests, proxied
from scripts.benchmarks.results import Cell, Sample, sound
from scripts.benchmarks.tools import Place
from scripts.benchmarks.trees import difference

ROOT = Path(__file__).resolve().parents[1]
WITH_RSYNC = pytest.mark.skipif(shutil.which("rsync") is None, reason="there is no rsync here to be measured beside us")
STREAM = (
    b"PUT /b/k?x-id=PutObject HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nGET /"
    b"GET /b?list-type=2&prefix=r HTTP/1.1\r\nHost: h\r\n\r\n"
    b"POST /b?delete HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    b"GET /b/k HTTP/1.1\r\n\r\n"
)


def sample(seconds: float, trouble: str = "") -> Sample:
    return Sample(0, seconds, 0.1, 1, {"GET": 2}, 10, 10, 1, 0.0, trouble=trouble)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_requests_are_counted_however_the_stream_is_cut(size: int) -> None:
    counts: Counter[str] = Counter()
    counted = Requests(counts)
    for start in range(0, len(STREAM), size):
        counted.feed(STREAM[start : start + size])
    assert counts == {"PUT": 1, "LIST": 1, "POST": 1, "GET": 1}


@pytest.mark.parametrize(("program", "code"), [("pass", 0), ("exit(3)", 3), ("while True: pass", TIMED_OUT)])
def test_a_launch_answers_the_exit_status(tmp_path: Path, program: str, code: int) -> None:
    steps = [[sys.executable, "-c", "print('said')"], [sys.executable, "-c", program]]
    cost = launch(steps, tmp_path, dict(os.environ), tmp_path / "log", timeout=2)
    assert cost["code"] == code
    assert cost["peak"] > 1_000_000
    assert (tmp_path / "log").read_text() == "said\n"


def test_goals_are_judged_by_medians_and_failures_do_not_count() -> None:
    cells = {
        "guildsync": Cell([sample(1), sample(9), sample(2)]),
        "restic": Cell([sample(4)]),
        "rclone": Cell([sample(0.1, trouble="exit 1")]),
    }
    verdicts = judge((faster(0.5, ("restic", "rclone")), requests(1), faster(1, ("rclone",))), sound(cells), 0)
    assert [verdict.met for verdict in verdicts] == [True, False, None]


def test_bytes_that_are_not_http_are_counted_and_delivered() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, proxied(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as proxy:
        near = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
        far, _ = listener.accept()
        with near, far:
            near.sendall(b"SSH-2.0-x\n")
            assert far.recv(100) == b"SSH-2.0-x\n"
            far.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert near.recv(100)
        passed = proxy.take()
    assert (passed["sent"], passed["received"], passed["connections"], passed["requests"]) == (10, 18, 1, {})


def test_a_difference_between_homes_is_named(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for home in (one, two):
        (home / "runs" / "r").mkdir(parents=True)
        (home / "runs" / "r" / "f").write_text("same")
        (home / "runs" / "r" / "env").write_text(home.name)
    assert difference(one, two) == ""
    (two / "runs" / "r" / "f").write_text("SAME")
    assert difference(one, two) == "other contents were delivered: r/f"
    (two / "runs" / "r" / "f").unlink()
    assert difference(one, two) == "1 files were not delivered, 0 are too many: r/f"


def test_rows_and_goals_name_tools_that_there_are() -> None:
    for kind in KINDS.values():
        names = {*kind.peers, *(bound.name for bound in kind.bounds)}
        assert all({*(row.tools or ()), *row.also} <= names for row in kind.rows)
        assert set(kind.quick.split(",")) <= names
        cells = {name: Cell([sample(1)]) for name in names}
        for row in kind.rows:
            for rtt in (0, 50):
                assert all(verdict.met is not None for verdict in judge(row.goals, cells, rtt))


@pytest.mark.servers
@WITH_RSYNC
@pytest.mark.timeout(300)
def test_rows_are_measured_over_ssh(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "scripts.benchmarks", "ssh", "--quick", "--rows", "W2,W6"]
    argv += ["--tools", "guildsync,rsync", "--rtt", "10", "--json", str(tmp_path / "raw.json")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Every tool used the live connection" in done.stdout
    rows = json.loads((tmp_path / "raw.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {"W2 push", "W2 pull", "W2 third", "W6 grown log"}
    for row in rows:
        assert row["verified"] == ("ok" if "pull" not in row["name"] else "")
        for rtt in row["rtts"]:
            bounds = {"one channel"} if row["name"] in {"W2 push", "W2 pull"} else set()
            assert rtt["tools"].keys() == {"guildsync", "rsync"} | bounds
            for samples in rtt["tools"].values():
                assert samples[0]["sent"] > 0
                assert samples[0]["requests"]["session"] > 0


@pytest.mark.soak
@pytest.mark.servers
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "peer"), [("s3", "rclone"), pytest.param("ssh", "rsync", marks=WITH_RSYNC)])
def test_every_row_is_measured(tmp_path: Path, kind: str, peer: str) -> None:
    argv = [sys.executable, "-m", "scripts.benchmarks", kind, "--quick", "--tools", f"guildsync,{peer}"]
    argv += ["--json", str(tmp_path / "raw.json"), "--markdown", str(tmp_path / "table.md")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "raw.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {row.name for row in KINDS[kind].rows}
    assert all(f"## {row['name']}" in done.stdout for row in rows)
    for row in rows:
        assert row["verified"] in {"", "ok"}
        for rtt in row["rtts"]:
            assert sum(rtt["tools"]["guildsync"][0]["requests"].values()) > 0


class Copier(Mirror):
    """A mirror of the simplest kind; `program` is its line for the shell."""

    name = "copier"

    def start(self, place: Place, kind: str) -> list[list[str]]:
        return [["/bin/sh", "-c", self.program, "sh", place.far]]


def _latencies(tmp_path: Path, line: str, flood: int = 0) -> Latencies:
    place = Place(tmp_path / "home", tmp_path / "state", str(tmp_path / "far"), "")
    place.make()
    return measured(Copier(line), place, FOLDER, None, Namespace(writes=3, s3_writes=0, flood=flood))


AGAIN = 'while :; do cp -r runs "$1"; sleep 0.05; done'


def test_a_mirror_is_measured_until_it_is_interrupted(tmp_path: Path) -> None:
    found = _latencies(tmp_path, AGAIN)
    assert found.trouble == ""
    assert len(found.seconds) == 3
    assert min(found.seconds) > 0
    assert len(list((tmp_path / "far/runs").iterdir())) == 21


def test_a_mirror_that_ends_has_no_time(tmp_path: Path) -> None:
    found = _latencies(tmp_path, 'cp -r runs "$1"; echo no such thing >&2; exit 3')
    assert found.trouble == "it ended: no such thing"


def test_a_flood_is_measured_until_all_of_it_is_there(tmp_path: Path) -> None:
    found = _latencies(tmp_path, AGAIN, flood=100)
    assert found.trouble == ""
    assert len(found.seconds) == 1
    assert len(list((tmp_path / "far/runs").glob("*/flood/*/*"))) == 100


def test_a_flood_of_which_something_else_is_there_has_no_time(tmp_path: Path) -> None:
    others = 'for f in runs/*/flood/*/*; do test -f "$f" && mkdir -p "$1/${f%/*}" && echo x > "$1/$f"; done'
    known = 'for r in runs/*; do mkdir -p "$1/$r"; cp -r "$r/.guild" "$1/$r"; done'
    line = f"while :; do {known}; {others}; sleep 0.05; done"
    assert "something else" in _latencies(tmp_path, line, flood=100).trouble


def test_quantiles_are_times_that_were_measured() -> None:
    found = Latencies("", "", [float(number) for number in range(100, 0, -1)])
    assert (found.quantile(0.5), found.quantile(0.99), found.quantile(1)) == (50, 99, 100)
    assert Latencies("", "", [7.0, 7.0]).words == "7.000 / 7.000"
    assert Latencies("", "", [7.0]).words == "7.00"
