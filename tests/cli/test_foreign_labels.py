"""Labels, tags and comments of any text: kept exactly, read by plain YAML, and shown harmlessly."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from guildsync.model.manifest import digest_of
from guildsync.model.ports import Update
from guildsync.model.run import COMPLETED, NO_METADATA, Metadata, RunId, Summary
from guildsync.store.fs import open_url
from tests.cli.conftest import Cli, Said, environment
from tests.cli.test_asking import answered
from tests.kit.model import opened_store
from tests.kit.places import Place
from tests.kit.replicas import Content
from tests.kit.strategies import metadata
from tests.kit.trees import run_ids

RUN = run_ids(3)[2]
WORST = (
    "\x1b]0;owned\x07\x1b[2Jgone\x1b[31m",
    "\u202egpj.exe\u202c \u2066x\u2069 \u200f\u061c",
    "first\nsecond\r\nthird\rfourth\ttab\n",
    "a\0b\x7f\x80\x9b31m\x85",
    "\u2028\u2029\ufeff\u00ad\U000e0041",
    "\u0301 alone, e\u0301 composed, \u00e9 whole",
    "ü\n" * 5_000,
)
LIKE_YAML = (
    *("yes", "No", "on", "null", "~", "true", "1", "-1.5", "1e-5", ".inf", "0x1f", "0o17", "1_000", "1:30"),
    *("2026-11-25", "2026-11-25T10:00:00Z", "- a", ": x", "a: b", "? x", "|", ">", "---", "...", "x\n...", "<<", "="),
    *("'", '"', "''", '"x"', "#c", "a #c", "&a", "*a", "!!python/object/apply:os.system ['true']", "!x", "{a: b}"),
    *(
        "[a",
        "%TAG",
        "@",
        "`",
        "\\",
        "\\n",
        "$(id)",
        "%s",
        " before",
        "after ",
        "-",
        "--set",
        "\u4f60\u597d",
        "👩\u200d🔬",
    ),
)
WORDS = (*WORST, *LIKE_YAML)


def assert_harmless(said: Said) -> None:
    for text in (said.out, said.err):
        bad = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\u200d"}
        assert not bad, f"{bad} in {text[:300]!r}"


def attribute(cli: Cli, place: Place, tmp_path: Path, name: str) -> object:
    """What plain YAML reads in a file of the run: of a tree there, of a store in a home that pulls it."""
    home = tmp_path / f"reader {name}"
    if place.is_tree:
        home = place.home
    else:
        assert cli("pull", place.name, RUN, "-H", str(home)).code == 0
    return yaml.safe_load((home / "runs" / RUN / ".guild/attrs" / name).read_bytes())


def test_the_worst_labels(cli: Cli, place: Place, tmp_path: Path) -> None:
    for number, word in enumerate(WORST):
        assert cli("label", "--set", word, *place).code == 0
        assert cli("runs", RUN, "--json", *place).json[0]["label"] == word
        assert attribute(cli, place, tmp_path / str(number), "label") == word
        more = (["info"], ["label"], ["runs", "-Fl", word[:20]], ["delete", "1", "--dry-run"])
        for argv in (["runs"], ["delete", "1"], *(more if place.kind in ("local", "folder") else ())):
            said = cli(*argv, *place)
            assert said.code == (2 if argv == ["delete", "1"] else 0)
            assert RUN[:8] in said.out + said.err
            assert_harmless(said)
    assert cli("runs", "--json", *place).out.isascii()


def test_all_of_them_as_tags(cli: Cli, place: Place, tmp_path: Path) -> None:
    options = [word for each in WORDS for word in (f"--add={each}",)]
    assert cli("tag", *options, *place).code == 0
    assert cli("runs", RUN, "--json", *place).json[0]["tags"] == sorted(WORDS)
    assert attribute(cli, place, tmp_path, "tags") == sorted(WORDS)
    for argv in (["runs"], ["info"], ["tag"], ["runs", "-Ft", WORST[0]]):
        said = cli(*argv, *place)
        assert (said.code, said.err) == (0, "")
        assert_harmless(said)
    assert cli("tag", *(f"--delete={each}" for each in WORDS if each != "yes"), *place).code == 0
    assert attribute(cli, place, tmp_path / "again", "tags") == ["yes"]


def test_some_of_them_as_comments(cli: Cli, place: Place, tmp_path: Path) -> None:
    for word in (*WORST, "- a", "yes"):
        assert cli("comment", f"--add={word}", *place).code == 0
    document = cli("info", "--json", *place)
    assert document.out.isascii()
    assert [comment["body"] for comment in document.json["comments"]] == [*WORST, "- a", "yes"]
    rows = attribute(cli, place, tmp_path, "comments")
    assert isinstance(rows, list)
    assert [row["body"] for row in rows] == [*WORST, "- a", "yes"]
    assert all(isinstance(row["time"], int) for row in rows)
    for argv in (["comment"], ["info"]):
        said = cli(*argv, *place)
        assert (said.code, said.err) == (0, "")
        assert_harmless(said)
    assert cli("comment", "-d", "2", *place).code == 0
    assert [c["body"] for c in cli("info", "--json", *place).json["comments"]] == [WORST[0], *WORST[2:], "- a", "yes"]


@pytest.mark.parametrize("place", ["local", "folder"], indirect=True)
def test_all_of_them_as_labels(cli: Cli, place: Place, tmp_path: Path) -> None:
    for word in LIKE_YAML:
        assert cli("label", f"--set={word}", *place).code == 0
        assert cli("runs", RUN, "--json", *place).json[0]["label"] == word
        if place.is_tree:
            assert attribute(cli, place, tmp_path, "label") == word
        said = cli("runs", *place)
        assert said.code == 0
        assert_harmless(said)
    for word in (" ", "\n\t", "\u2028", ""):
        assert cli("label", f"--set={word}", *place).code == 0
        assert cli("runs", RUN, "--json", *place).json[0]["label"] is None


@pytest.mark.parametrize("place", ["local", "folder"], indirect=True)
def test_parts_go_behind_before_and_out(cli: Cli, place: Place) -> None:
    assert cli("label", "--set", "b\n", *place).code == 0
    assert cli("label", "--append", "\u202ec", *place).code == 0
    assert cli("label", "--prepend", "- a", *place).code == 0
    assert cli("runs", RUN, "--json", *place).json[0]["label"] == "- a b\n \u202ec"
    assert cli("label", "--remove", "\u202ec", *place).code == 0
    assert cli("runs", RUN, "--json", *place).json[0]["label"] == "- a b\n"


@pytest.mark.parametrize("place", ["local", "folder"], indirect=True)
def test_prompts_are_harmless(cli: Cli, place: Place) -> None:
    assert cli("label", "--set", WORST[0] + WORST[1] + WORST[2], *place).code == 0
    code, lines = answered(b"n\n", "delete", "1", *place)
    assert (code, len(lines)) == (1, 3)
    assert r"\x1b]0;owned\x07\x1b[2Jgone" in lines[0]
    assert r"\u202egpj.exe" in lines[0]
    assert_harmless(Said(code, "\n".join(lines), ""))


def test_what_was_replaced_by_a_push_is_told_harmlessly(cli: Cli, home: Path, store: str) -> None:
    assert cli("push", store).code == 0
    assert cli("label", "--set", WORST[0], "-r", store).code == 0
    assert cli("label", "--set", WORST[1]).code == 0
    said = cli("push", store)
    assert (said.code, said.err) == (0, f"note: run {RUN[:8]}: the label there was replaced\n")
    assert cli("runs", RUN, "--json", "-r", store).json[0]["label"] == WORST[1]


@pytest.mark.parametrize("name", ["\x1b[31mred", "\u202eeno", "a\nb", "x\0y"])
def test_names_that_mean_nothing_are_told_harmlessly(cli: Cli, home: Path, name: str) -> None:
    for argv in (["-r", name], ["-Fl", name, "1"], [name]):
        said = cli("delete", *argv, "-y", *(["--all"] if argv[0] == "-r" else []))
        assert said.code in (2, 3)
        assert said.err.startswith("error: ")
        assert_harmless(said)


# -- the command line as bytes


OPTIONS = (
    *(("label", option) for option in ("--set", "--append", "--prepend", "--remove")),
    *(("tag", "-a"), ("tag", "-d"), ("comment", "-a")),
)


@pytest.mark.parametrize("word", [b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"good \xf0\x9f\x98"])
def test_what_is_no_text_is_refused(cli: Cli, home: Path, word: bytes) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "runs").rglob("*")}
    for argv in OPTIONS:
        said = cli(*argv, os.fsdecode(word))
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("error: ")
        assert " is not valid UTF-8\nhint: give it as text\n" in said.err
        assert_harmless(said)
    ran = _process(b"label", b"--set", word)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert b" is not valid UTF-8\nhint: give it as text\n" in ran.stderr
    ran.stderr.decode()
    assert {path: path.stat().st_mtime_ns for path in (home / "runs").rglob("*")} == before


def _process(*argv: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [os.fsencode(sys.executable), b"-m", b"guildsync", *argv]
    return subprocess.run(command, capture_output=True, env=environment(), timeout=60, check=False)


def test_other_words_that_are_no_text_end_with_a_line(home: Path) -> None:
    for argv, codes in (
        ((b"runs", b"-r", b"\xff"), (2, 3)),
        ((b"label", b"\xff", b"--set", b"x"), (2,)),
        ((b"runs", b"-Fl", b"\xff"), (0,)),
        ((b"cat", b"1", b"\xff"), (3,)),
    ):
        ran = _process(*argv)
        assert ran.returncode in codes
        assert b"Traceback" not in ran.stderr
        ran.stderr.decode()


def test_text_is_kept_as_the_shell_gives_it(home: Path) -> None:
    word = "größer 漢 \u202e'\"$(x)\n".encode()
    assert _process(b"label", b"--set", word).returncode == 0
    stored = (home / "runs" / RUN / ".guild/attrs/label").read_bytes()
    assert yaml.safe_load(stored) == word.decode()
    assert stored.isascii()


# -- what another tool wrote


@pytest.mark.parametrize(
    ("data", "label"),
    [
        (b"\xff\xfe not text", "\ufffd\ufffd not text"),
        (b"1e-5\n", "1e-5"),
        (b"yes", "yes"),
        (b"- a\n", "- a"),
        (b"2026-11-25\n", "2026-11-25"),
        (b"best\n", "best"),
        (b"null\n", None),
        (b"", None),
    ],
)
def test_a_label_of_any_kind_is_its_text_and_stays_until_it_is_changed(
    cli: Cli, home: Path, store: str, data: bytes, label: str | None
) -> None:
    path = home / "runs" / RUN / ".guild/attrs/label"
    path.write_bytes(data)
    assert cli("runs", "1", "--json").json[0]["label"] == label
    assert cli("tag", "-a", "x").code == 0
    assert path.read_bytes() == data
    assert cli("push", store).code == 0
    assert path.read_bytes() == data
    assert cli("runs", "1", "--json", "-r", store).json[0]["label"] == label
    assert cli("label", "--append", "more").code == 0
    assert yaml.safe_load(path.read_bytes()) == (f"{label} more" if label else "more")


# -- through a store


@settings(max_examples=40)
@given(st.lists(metadata(), min_size=1, max_size=3))
def test_any_metadata_comes_out_of_a_store_as_it_went_in(steps: list[Metadata]) -> None:
    """Each commit says only what differs from the one before."""
    content, run = Content({b".guild/opref": b"x"}), RunId(RUN)
    url = f"memory://{digest_of(repr(steps).encode())}"
    with opened_store(url) as store:
        list(store.runs())
        wants = content.wants(run)
        store.stage(content.pieces([want for want in wants if want.digest in store.missing(wants)]))
        assert store.commit([Update(run, None, content.manifest, Summary(status=COMPLETED))]) == []
    was = NO_METADATA
    for now in steps:
        with opened_store(url) as store:
            list(store.runs())
            assert store.commit([Update(run, None, None, None, now, was)]) == []
        with opened_store(url) as store:
            (record,) = store.runs()
            assert record.metadata == now
        was = now
    files = open_url(url)
    files.fs.rm(files.root, recursive=True)
