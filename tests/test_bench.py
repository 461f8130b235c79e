"""The harness of `scripts/bench` works: it counts, it launches, and it measures all rows. Times are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scripts.benchmarks.goals import faster, judge, requests
from scripts.benchmarks.launch import TIMED_OUT, launch
from scripts.benchmarks.proxy import Requests
from scripts.benchmarks.results import Cell, Sample, sound
from scripts.benchmarks.rows import ROWS

ROOT = Path(__file__).resolve().parents[1]
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


@pytest.mark.soak
@pytest.mark.servers
@pytest.mark.timeout(900)
def test_every_row_is_measured(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "scripts.benchmarks", "s3", "--quick", "--tools", "guildsync,rclone"]
    argv += ["--json", str(tmp_path / "raw.json"), "--markdown", str(tmp_path / "table.md")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "raw.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {row.name for row in ROWS}
    assert all(f"## {row['name']}" in done.stdout for row in rows)
    for row in rows:
        assert row["verified"] in {"", "ok"}
        for rtt in row["rtts"]:
            assert sum(rtt["tools"]["guildsync"][0]["requests"].values()) > 0
