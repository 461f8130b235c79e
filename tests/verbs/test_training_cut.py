"""Training on a host behind a wire that is cut, and by clients that are killed: one process, no ghost, every byte."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guildsync.remotes import Home
from tests.kit.sshd import Client, Sshd
from tests.kit.training import Site, ended, make_project, status_of
from tests.kit.waiting import until
from tests.kit.wire import Wire, wire

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
ONCE = """\
import os, time
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
print("begun", flush=True)
for n in range(20):
    print(n, flush=True)
    time.sleep(0.02)
print("done", end="")
"""
PRINTED = b"begun\n" + b"".join(b"%d\n" % n for n in range(20)) + b"done"
LISTED = {"staged", "running", "completed", "error", "lost"}
CHATTY = """\
import hashlib, os, sys
out = sys.stdout.buffer
for n in range(int(sys.argv[1])):
    block = hashlib.shake_128(b"%d" % n).digest(1_000_000)
    out.write(block)
    out.flush()
"""


@dataclass
class Cut:
    """A remote `gpu` behind a wire."""

    directory: Path
    line: Wire
    site: Site

    def client(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "guildsync", "-r", "gpu", *words],
            cwd=self.directory / "project",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def said(self, *words: str) -> tuple[int, bytes, str]:
        with self.client(*words) as child:
            out, err = child.communicate(timeout=200)
        return child.returncode, out, err.decode()

    def settled(self) -> str | None:
        """What became of the run is what a listing says; its id, or None where it never came to be."""
        code, out, err = self.said("runs", "--format", "ids")
        if code == 3:
            return None  # nothing was ever delivered
        assert code == 0, err
        ids = out.decode().split()
        assert ids == [run.name for run in self.site.runs]
        assert {status_of(run) for run in self.site.runs} <= LISTED
        assert len(ids) <= 1
        return ids[0] if ids else None

    def once(self) -> None:
        """It ran once, to its end, whole."""
        run = self.site.run
        until((run / ".guild/attrs/exit_status").exists, f"the end of {run}")
        assert (run / "pids").read_text().count("\n") == 1
        assert (run / ".guild/output").read_bytes() == PRINTED
        until(lambda: status_of(run) == "completed", "completed")


@pytest.fixture
def cut(tmp_path: Path, ssh_host: Sshd, ssh_user: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cut]:
    project = make_project(tmp_path / "project")
    (project / "once.py").write_text(ONCE)
    (project / "chatty.py").write_text(CHATTY)
    monkeypatch.setenv("GUILDSYNC_HOME", str(tmp_path / "guild"))
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(tmp_path / "c.yml"))
    Home(str(tmp_path / "guild")).prepare()
    with wire(ssh_host.port) as line, ended(Site(("-r", "gpu"), tmp_path / "far")) as site:
        ssh_user.add("gpu", ssh_host, Port=str(line.port), HostKeyAlias=f"[127.0.0.1]:{ssh_host.port}")
        (tmp_path / "c.yml").write_text(f"remotes:\n  gpu: {{type: ssh, host: gpu, guild-home: {tmp_path}/far}}\n")
        yield Cut(tmp_path, line, site)


# A whole run takes 130 kB over the wire; where the agent's modules were before, 30 kB.
COLD, WARM = (5_000, 60_000, 105_000, 120_000), (6_000, 12_000, 18_000, 24_000)
MORE_COLD, MORE_WARM = (sorted(random.Random(6).sample(range(1_000, most), 20)) for most in (130_000, 30_000))


@pytest.mark.parametrize(
    ("warm", "at"),
    [
        *((False, at) for at in COLD),
        *((True, at) for at in WARM),
        *(pytest.param(False, at, marks=pytest.mark.soak) for at in MORE_COLD),
        *(pytest.param(True, at, marks=pytest.mark.soak) for at in MORE_WARM),
    ],
)
def test_the_connection_is_cut(cut: Cut, warm: bool, at: int) -> None:
    if warm:
        assert cut.said("check")[0] == 0
        cut.line.cut()
    cut.line.reset(cut_after=at)
    code, out, err = cut.said("run", "once.py")
    assert cut.line.cut_after is None
    if code == 0:
        assert out == PRINTED
    else:
        assert code == 5, err
        assert "hint: " in err
    run = cut.settled()
    if run is None:
        assert code == 5
        return
    assert run in err  # it was named before anything was sent
    code, out, err = cut.said("run", "--start", run[:8])
    assert (code, out) == (0, PRINTED), err
    cut.once()


@pytest.mark.parametrize(
    "seconds", [0.6, 0.9, 1.2, *(pytest.param(n / 8, marks=pytest.mark.soak) for n in range(1, 21))]
)
def test_the_client_is_killed(cut: Cut, seconds: float) -> None:
    with cut.client("run", "once.py") as child:
        time.sleep(seconds)
        os.killpg(child.pid, signal.SIGKILL)
    run = cut.settled()
    if run is not None:
        code, out, err = cut.said("run", "--start", run[:8])
        assert (code, out) == (0, PRINTED), err
        cut.once()


@pytest.mark.parametrize(
    "sent", [20_000, 100_000, *(pytest.param(n * 6_000, marks=pytest.mark.soak) for n in range(20))]
)
def test_the_client_is_suspended_and_another_goes_on(cut: Cut, sent: int) -> None:
    with cut.client("run", "once.py") as child:
        until(lambda: cut.line.sent >= sent or child.poll() is not None, "bytes")
        os.killpg(child.pid, signal.SIGSTOP)
        try:
            run = cut.settled()
            if run is not None:
                code, out, err = cut.said("run", "--start", run[:8])
                assert (code, out) == (0, PRINTED), err
        finally:
            os.killpg(child.pid, signal.SIGCONT)
        out, err_bytes = child.communicate(timeout=200)
        assert (child.returncode, out) == (0, PRINTED), err_bytes
    cut.once()


@pytest.mark.parametrize("megabytes", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_every_byte_comes_once_over_many_connections(cut: Cut, megabytes: int) -> None:
    expected = hashlib.sha256()
    for n in range(megabytes):
        expected.update(hashlib.shake_128(b"%d" % n).digest(1_000_000))
    assert cut.said("run", "chatty.py", "--no-wait", "--", str(megabytes))[0] == 0
    cut.line.reset(cut_after=2_000_000)
    with cut.client("watch") as child:
        assert child.stdout is not None
        got, size, cuts = hashlib.sha256(), 0, 1
        while block := child.stdout.read(1 << 16):
            got.update(block)
            size += len(block)
            if cuts < 4 and cut.line.cut_after is None:
                cuts += 1
                cut.line.reset(cut_after=megabytes * 200_000)
        assert child.stderr is not None
        err = child.stderr.read().decode()
    assert (child.returncode, size) == (0, megabytes * 1_000_000), err
    assert got.digest() == expected.digest()
    assert err.count("trying again") == cuts - (cut.line.cut_after is not None)
    assert err.count("trying again") >= 2
