"""ls and cat: which files, which bytes, and how it ends where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

import guildsync
from guildsync import api
from guildsync.errors import DAMAGED, TORN, Damaged, GuildsyncError, NotFound, Problem, Usage
from guildsync.model.manifest import Digest, Entry, Manifest, Part, digest_of, file_entry
from guildsync.model.ports import Lost, Piece, Want
from guildsync.model.run import RunId
from guildsync.verbs import files as verb_files
from guildsync.verbs.files import Files
from tests.cli.conftest import Cli, Said, environment
from tests.kit.trees import MIB, noise, put, run_ids, snapshot, ugly_run, write_run

NEWEST = run_ids(3)[2]


def raw(*argv: str) -> tuple[int, bytes, bytes]:
    """As a process: exit code, and both streams as bytes."""
    ran = subprocess.run(
        [sys.executable, "-m", "guildsync", *argv], capture_output=True, env=environment(), timeout=60, check=False
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.fixture(params=["local", "store"])
def place(request: pytest.FixtureRequest, cli: Cli, home: Path, store: str) -> str:
    """Where the three runs lie: this home, or a store."""
    if request.param == "local":
        return "local"
    assert cli("push", store).code == 0
    return store


def paths(said: Said) -> list[str]:
    return [row["path"] for row in said.json]


def test_ls_of_the_newest_and_of_one_run(cli: Cli, home: Path, place: str) -> None:
    put(home / "runs" / run_ids(1)[0], "only here", b"12345", mode=0o600)
    cli("push", place) if place != "local" else None
    said = cli("ls", "-r", place)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert "file  644  40 kB  checkpoints/model.pt" in lines
    assert "dir   755         checkpoints" in lines
    names = [line.rpartition("  ")[2].strip() for line in lines]
    assert names == sorted(names)
    assert said.out == cli("ls", "1", "-r", place).out == cli("--remote", place, "ls", NEWEST[:8]).out
    assert "only here" not in said.out
    assert "file  600  5 B    only here" in cli("ls", "3", "-r", place).out.splitlines()
    assert cli("ls", "-Fl", "run 1", "-r", place).out == cli("ls", "3", "-r", place).out


def test_ls_of_a_directory_and_of_a_file(cli: Cli, home: Path, place: str) -> None:
    assert paths(cli("ls", "1", "checkpoints", "-r", place, "--json")) == ["checkpoints/model.pt"]
    assert paths(cli("ls", "1", "./checkpoints//", "-r", place, "--json")) == ["checkpoints/model.pt"]
    assert paths(cli("ls", "1", "train.py", "-r", place, "--json")) == ["train.py"]
    inside = paths(cli("ls", "1", ".guild", "-r", place, "--json"))
    assert ".guild/attrs" in inside
    assert ".guild/attrs/flags" in inside
    assert all(path.startswith(".guild/") for path in inside)
    assert paths(cli("ls", "1", ".", "-r", place, "--json")) == paths(cli("ls", "-r", place, "--json"))


def test_rows_of_every_name_kind_mode_and_time(cli: Cli, home: Path, store: str) -> None:
    run = ugly_run(home, run_ids(4)[3])
    os.utime(run / "train.py", ns=(1, 1_700_000_000_123_456_789))
    lying = snapshot(run)
    cli("push", store, run.name)
    here, there = cli("ls", run.name, "--json"), cli("ls", run.name, "--json", "-r", store)
    assert here.code == there.code == 0
    assert here.out.isascii()
    rows = {row["path"]: row for row in there.json}
    assert len(rows) == len(lying) == len(here.json)
    assert rows["train.py"]["digest"] == lying[b"train.py"][3]
    assert rows["train.py"]["mode"] == "644"
    assert rows["train.py"]["target"] is None
    moment = datetime.fromisoformat(rows["train.py"]["mtime"])
    assert moment.timestamp() == pytest.approx(1_700_000_000.123456)
    assert moment.tzinfo is not None
    assert rows["modes/755"]["mode"] == "755"
    assert rows["empty directory"] == {**rows["empty directory"], "kind": "dir", "size": 0, "digest": None}
    link = rows["links/dangling"]
    assert (link["kind"], link["target"], link["mode"], link["digest"]) == ("link", "no/such/file", None, None)
    odd = rows["names/not-utf8-%FF%FE"]
    assert odd["path_encoding"] == "percent"
    assert "path_encoding" not in rows["names/percent%41"]
    assert rows["links/not utf8"]["target"] == "%FF%FE/%80"
    assert rows["links/not utf8"]["target_encoding"] == "percent"


def test_names_are_shown_harmlessly(cli: Cli, home: Path) -> None:
    run = ugly_run(home, run_ids(4)[3])
    said = cli("ls", run.name)
    assert r"names/new\nline" in said.out
    assert r"esc\x1b[31m" in said.out
    assert r"\u202e right to left" in said.out
    assert r"not-utf8-\xff\xfe" in said.out
    assert "links/dangling -> no/such/file" in said.out
    assert not set("\x1b\x07\r\u202e") & set(said.out)


def test_what_is_not_there_is_3(cli: Cli, home: Path, place: str, tmp_path: Path) -> None:
    for argv in (["ls", "1", "nothing"], ["cat", "1", "nothing"], ["cat", "1", "train.py/x"], ["ls", "1", "../x"]):
        said = cli(*argv, "-r", place)
        assert (said.code, said.out) == (3, "")
        assert "hint: `guildsync ls RUN`" in said.err
    assert "did you mean 'train.py'?" in cli("cat", "1", "trian.py", "-r", place).err
    for argv in (["ls", "9"], ["cat", "9", "x"], ["cat", "ffffffff", "x"]):
        assert cli(*argv, "-r", place).code == 3
    assert cli("ls", "-H", str(tmp_path / "none")).code == 3
    assert cli("ls", "-r", f"file://{tmp_path}/none").code == 3


def test_usage(cli: Cli, home: Path, place: str) -> None:
    os.symlink("train.py", home / "runs" / NEWEST / "link")
    cli("push", place) if place != "local" else None
    for path, what in (("checkpoints", "is a directory"), ("link", "is a link to train.py"), ("./", "the run itself")):
        said = cli("cat", "1", path, "-r", place)
        assert (said.code, said.out) == (2, "")
        assert what in said.err
        assert "hint: " in said.err
    assert cli("ls", ":2", "-r", place).code == 2
    assert cli("cat", ":2", "train.py", "-r", place).code == 2
    assert cli("cat", "1").code == 2
    assert cli("cat", "1", "train.py", "--json").code == 2
    assert cli("ls", "-r", "a", "-r", "b").code == 2


def test_cat_writes_the_bytes_of_a_file_verbatim(home: Path, store: str, cli: Cli) -> None:
    run = home / "runs" / NEWEST
    files = {
        "sizes/0": b"",
        "sizes/1": b"\x00",
        "sizes/many parts": noise(1, 5 * MIB + 7),
        "sizes/same parts": bytes(4 * MIB) + noise(2, 10) + bytes(4 * MIB),
        "escapes\x1b[2J": b"\x1b[31m\r\n\xff\xfe no newline at the end",
    }
    for name, data in files.items():
        put(run, name, data)
    put(run, b"odd \xff", b"odd")
    cli("push", store)
    for place in ("local", store):
        for name, data in files.items():
            assert raw("cat", "1", name, "-r", place) == (0, data, b"")
        assert raw("cat", "1", os.fsdecode(b"odd \xff"), "-r", place) == (0, b"odd", b"")


def test_a_reader_of_cat_that_goes_away_ends_it(home: Path) -> None:
    put(home / "runs" / NEWEST, "large", noise(3, 8 * MIB))
    command = f"{sys.executable} -m guildsync cat 1 large; echo $? >&2"
    ran = subprocess.run(
        ["/bin/sh", "-c", f"{{ {command}; }} | head -c 10 >/dev/null"],
        capture_output=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert ran.stderr == b"0\n"
    closed = f"{sys.executable} -m guildsync cat 1 large >&-"
    assert subprocess.run(["/bin/sh", "-c", closed], env=environment(), timeout=60, check=False).returncode == 0


def test_a_full_disk_is_an_error(home: Path) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "guildsync", "cat", "1", "train.py"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=60,
            check=False,
        )
    assert ran.returncode == 1
    assert ran.stderr.startswith(b"error: standard output cannot be written: ")


def test_damage_ends_with_8_behind_the_last_good_byte(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    data = noise(4, 6 * MIB)
    put(home / "runs" / NEWEST, "large", data)
    cli("push", store)
    pack = max((p for p in (tmp_path / "store/packs").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    stored = bytearray(pack.read_bytes())
    stored[len(stored) // 2] ^= 1
    pack.write_bytes(stored)
    code, out, err = raw("cat", "1", "large", "-r", store)
    assert code == 8
    assert err.startswith(b"error: large: ")
    assert len(out) < len(data)
    assert data.startswith(out)
    assert raw("cat", "1", "train.py", "-r", store)[0] == 0


def test_a_file_that_cannot_be_read_is_a_problem_of_ls(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = api.look

    def looked(*asked: object) -> Files:
        files = real(*asked)  # type: ignore[arg-type]
        problem = Problem(files.run, b"gone", "unreadable", "Permission denied")
        return Files(files.source, files.run, files.manifest, (problem,))

    monkeypatch.setattr(api, "look", looked)
    said = cli("ls")
    assert said.code == 7
    assert "train.py" in said.out
    assert f"unreadable: run {NEWEST[:8]}: gone: Permission denied" in said.err
    said = cli("cat", "1", "gone")
    assert said.code == 1
    assert "error: gone: Permission denied" in said.err
    assert cli("cat", "1", "train.py").code == 0


# -- Files, over a source that the test holds in its hand

RUN = RunId("a" * 32)


class Held:
    """A source that answers backwards, each object once, and counts."""

    def __init__(self, objects: dict[Digest, bytes], reason: str = DAMAGED) -> None:
        self.objects, self.reason = objects, reason
        self.asked: list[int] = []

    def fetch(self, wanted: Iterable[Want]) -> Iterator[Piece | Lost]:
        wants = list({want.digest: want for want in wanted}.values())
        self.asked.append(sum(want.size for want in wants))
        for want in reversed(wants):
            data = self.objects.get(want.digest)
            if data is None:
                yield Lost(want, Problem(want.run, want.path, self.reason, "bad"))
            else:
                yield Piece(want, data)


def held(parts: list[bytes], lost: int | None = None, reason: str = DAMAGED, whole: bytes | None = None) -> Files:
    data = b"".join(parts)
    rows = [Part(digest_of(part), len(part)) for part in parts]
    entry: Entry = file_entry(b"f", 0o644, len(data), digest_of(whole or data), 0, rows)
    objects = {digest_of(part): part for part in parts}
    if lost is not None:
        del objects[digest_of(parts[lost])]
    return Files(Held(objects, reason), RUN, Manifest([entry]))  # type: ignore[arg-type]


def test_parts_come_in_order_and_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb_files, "_BYTES_AT_A_TIME", 2 * MIB)
    parts = [noise(n, MIB // 2) for n in range(9)] + [bytes(MIB // 2)] * 20
    files = held(parts)
    assert list(files.read(b"f")) == parts
    assert isinstance(files.source, Held)
    assert max(files.source.asked) <= 2 * MIB
    assert len(files.source.asked) == 3


@pytest.mark.parametrize("lost", [0, 3, 6])
@pytest.mark.parametrize(("reason", "error"), [(DAMAGED, Damaged), (TORN, GuildsyncError)])
def test_what_stands_before_a_lost_part_is_read(
    monkeypatch: pytest.MonkeyPatch, lost: int, reason: str, error: type[GuildsyncError]
) -> None:
    monkeypatch.setattr(verb_files, "_BYTES_AT_A_TIME", 2 * MIB)
    parts = [noise(n, MIB // 2) for n in range(7)]
    got: list[bytes] = []
    with pytest.raises(error) as caught:
        got.extend(held(parts, lost, reason).read(b"f"))
    assert got == parts[:lost]
    assert caught.type is error


def test_good_parts_of_another_file_are_damage() -> None:
    with pytest.raises(Damaged):
        list(held([noise(1, MIB), noise(2, MIB)], whole=b"other").read(b"f"))


def test_below_knows_directories_from_names_that_begin_alike(home: Path) -> None:
    run = home / "runs" / NEWEST
    put(run, "checkpoints.txt", b"")
    context = guildsync.open_context(str(home))
    with context.look() as files:
        assert files.run == NEWEST
        assert [entry.path for entry in files.below(b"checkpoints")] == [b"checkpoints/model.pt"]
        assert b"".join(files.read(b"train.py")) == b"print('hello')\n"
        with pytest.raises(NotFound):
            files.below(b"no")
    with pytest.raises(Usage), context.look(choice=guildsync.Choice()):
        pass
    empty = home.parent / "empty"
    (empty / "runs").mkdir(parents=True)
    with pytest.raises(NotFound), guildsync.open_context(str(empty)).look(choice=guildsync.Choice()):
        pass
    write_run(empty, RUN)
    with guildsync.open_context(str(empty)).look() as files:
        assert files.problems == ()
