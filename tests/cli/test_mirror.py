"""push --watch and pull --watch, as people have them."""

from __future__ import annotations

import json
import os
import pty
import signal
import threading
from pathlib import Path

import pytest

from guildsync.cli import mirroring
from guildsync.cli.mirroring import Stop
from tests.cli.conftest import Cli
from tests.kit.mirrors import interrupted, is_same, until_same, watching
from tests.kit.places import THERE, Place, kinds, new_place
from tests.kit.training import Site, status_of
from tests.kit.trees import assert_same, run_ids
from tests.kit.waiting import until

RUN, OTHER, THIRD = run_ids(3)
in_trees = pytest.mark.parametrize("remote", kinds("disk", "ssh"), indirect=True)


@pytest.fixture
def remote(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Place:
    """Where nothing lies yet."""
    return new_place(getattr(request, "param", "disk"), tmp_path, home, request)


def are_same(home: Path, place: Place) -> None:
    for run in run_ids(3):
        until_same(home / "runs" / run, place.home / "runs" / run)


@in_trees
def test_ctrl_c_ends_it_cleanly_with_all_that_was_written(home: Path, remote: Place) -> None:
    with watching("push", THERE, "--watch") as child:
        are_same(home, remote)
        (home / "runs" / RUN / "last").write_bytes(b"words")
        code, out, err = interrupted(child)
    assert (code, err) == (130, "")
    assert out.startswith("Mirrored 3 runs (")
    assert f"to {THERE}" in out
    assert len(out.splitlines()) == 1
    assert_same(home / "runs" / RUN, remote.home / "runs" / RUN)


def test_ctrl_c_twice_ends_it_now() -> None:
    with Stop().armed() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_end_that_takes_too_long_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "GRACE", 0.2)
    with Stop().armed():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(60)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@in_trees
def test_it_ends_after_so_long(cli: Cli, home: Path, remote: Place) -> None:
    said = cli("push", THERE, "--watch", "--for", "0.5s")
    assert (said.code, said.err) == (0, "")
    assert said.last.startswith("Mirrored 3 runs (")
    are_same(home, remote)


def test_json_lines(cli: Cli, home: Path, remote: Place) -> None:
    with watching("push", THERE, "--watch", "--json") as child:
        are_same(home, remote)
        with (home / "runs" / RUN / ".guild/output").open("ab") as file:
            file.write(b"more\n")
        are_same(home, remote)
        code, out, err = interrupted(child)
    assert (code, err) == (130, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["event"] for row in rows] == ["delivered", "delivered", "end"]
    assert [row["runs"] for row in rows] == [3, 1, 3]
    assert (rows[1]["files"], rows[1]["problems"]) == (1, [])
    assert rows[1]["lag"] >= 0
    assert rows[2]["deliveries"] == 2
    assert rows[2]["bytes_sent"] == rows[0]["bytes_sent"] + rows[1]["bytes_sent"]


def test_one_line_stands_on_a_terminal(home: Path, remote: Place) -> None:
    near, far = pty.openpty()
    said = b""
    try:
        with watching("push", THERE, "--watch", stderr=far) as child:
            os.close(far)

            def shows() -> bool:
                nonlocal said
                said += os.read(near, 1 << 16)
                return b"Mirroring to there: 3 runs (" in said

            until(shows, "the line")
            code, out, _ = interrupted(child)
        assert code == 130
        assert out.startswith("Mirrored 3 runs (")
        assert b"\n" not in said.replace(b"^C", b"")
    finally:
        os.close(near)


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--for", "5s"], "--watch"),
        (["--watch", "--for", "soon"], "--for"),
        (["--watch", "--dry-run"], "--dry-run"),
        (["--watch", "--rehash"], "--rehash"),
        (["--watch", "--delete"], "--yes"),
    ],
)
def test_what_makes_no_sense(cli: Cli, home: Path, remote: Place, argv: list[str], word: str) -> None:
    said = cli("push", THERE, *argv)
    assert said.code == 2
    assert word in said.err
    assert not remote.home.exists()


def test_copy_does_not_watch(cli: Cli, remote: Place) -> None:
    assert cli("copy", "local", THERE, "--watch").code == 2


def test_a_second_one_is_refused(cli: Cli, home: Path, remote: Place) -> None:
    """Until the first is gone, however it went."""
    with watching("push", THERE, "--watch") as child:
        are_same(home, remote)
        said = cli("pull", THERE, "--watch", "--for", "1s")
        assert said.code == 1
        assert "mirrors" in said.err
        assert "hint" in said.err
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(60)
        assert cli("push", THERE, "--watch", "--for", "0.1s").code == 0


def test_it_ends_with_the_runs_that_are_named(cli: Cli, home: Path, remote: Place) -> None:
    said = cli("push", THERE, RUN, "--watch")
    assert said.code == 0
    assert said.last.startswith("Mirrored 1 run (")
    assert os.listdir(remote.home / "runs") == [RUN]
    assert cli("push", THERE, "@running", "--watch").code == 3


def test_a_real_training_is_mirrored_while_it_runs(cli: Cli, elsewhere: Site, tmp_path: Path) -> None:
    """From where it was started to its end; the mirror ends with it."""
    assert cli("run", "waiting.py", "--no-wait", *elsewhere.words).code == 0
    run = elsewhere.began()
    here = tmp_path / "guild/runs" / run.name
    with watching("pull", elsewhere.words[1], run.name, "--watch") as child:
        until(lambda: (here / ".guild/output").exists() and (here / ".guild/output").read_bytes(), "its output here")
        assert status_of(here) == status_of(run) == "running"
        assert (here / ".guild/LOCK.remote").read_text() == elsewhere.words[1]
        for number in range(3):
            (run / f"checkpoint {number}").write_bytes(os.urandom(100_000))
            until(lambda number=number: (here / f"checkpoint {number}").exists(), "a checkpoint here")
        assert child.poll() is None
        (run / "go").touch()
        out, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (0, b"")
        assert out.startswith(b"Mirrored 1 run (")
    assert status_of(here) == status_of(run) == "completed"
    assert is_same(run, here)


def test_a_real_training_here_is_pushed_while_it_runs(cli: Cli, project: Path, tmp_path: Path) -> None:
    site = Site((), tmp_path / "guild")
    try:
        assert cli("run", "waiting.py", "--no-wait").code == 0
        run = site.began()
        there = tmp_path / "disk/runs" / run.name
        with watching("push", "disk", run.name, "--watch") as child:
            until(lambda: (there / ".guild/output").exists() and (there / ".guild/output").read_bytes(), "its output")
            assert status_of(there) == "running"
            (run / "go").touch()
            _, err = child.communicate(timeout=60)
            assert (child.returncode, err) == (0, b"")
        assert status_of(there) == "completed"
        assert_same(run, there)
    finally:
        site.end()
