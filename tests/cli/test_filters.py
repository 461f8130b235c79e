"""Every selector and filter: the same command line chooses the same runs wherever they lie."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guildsync import api
from guildsync.cli import main
from tests.cli.conftest import Cli
from tests.conftest import new_bucket
from tests.kit.events import record, scalar_event
from tests.kit.servers import REGION, S3Server
from tests.kit.trees import event_file, noise, opref, put, run_ids, write_run

HOURS = {"a": 0.5, "b": 5, "c": 72, "d": 9600, "e": None, "f": None}
"""The runs, the newest first, and how long ago they started."""
HEADS = {"a": "1234", "b": "beef", "c": "abcd1", "d": "abcd2", "e": "eeee", "f": "ffff"}
RUNS = {letter: head.ljust(32, "0") for letter, head in HEADS.items()}
EVENTS = ".guild/events.out.tfevents.1700000000.host.1"
BORN = int(time.time() * 1e6)
"""When all of this began."""


def moment(letter: str, hours: float = 0) -> str:
    """When a run started, or so many hours later, as a person of this machine writes it."""
    started = HOURS[letter]
    assert started is not None
    return datetime.fromtimestamp(BORN // 1_000_000 - (started - hours) * 3600).strftime("%Y-%m-%d %H:%M:%S")


def losses(*points: tuple[int, float]) -> bytes:
    return event_file([("loss", step, value) for step, value in points])


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home that commands use: a runs, b failed, c completed, d was stopped, e is staged, f waits."""
    home = tmp_path / "guild"

    def write(letter: str, files: dict[str | bytes, bytes], **attributes: Any) -> None:
        hours, ended = HOURS[letter], attributes.get("exit_status") is not None
        started = None if hours is None else BORN - int(hours * 3_600_000_000)
        stopped = started + 60_000_000 if started is not None and ended else None
        write_run(home, RUNS[letter], files, started=started, stopped=stopped, **attributes)

    flags: dict[str, Any] = {"lr": 0.1, "opt": "adam", "batch-size": 100}
    people = {"label": "Best lr=0.1", "tags": ["good", "paper"], "marked": True, "comments": [{"body": "looks fine"}]}
    running = {".guild/LOCK.remote": b"gpu", EVENTS: losses((1, 4), (20, 0.5))}
    write("a", running, exit_status=None, flags=flags, **people)
    failed = {".guild/opref": b"guildfile:/p abc resnet eval", EVENTS: losses((1, 4), (20, 0.25))}
    write("b", failed, exit_status=1, flags={"lr": "1e-3", "amp": True, "size": 5})
    completed = {"big.bin": noise(3, 200_000), "sub/" + EVENTS: losses((1, 4), (20, 0.125))}
    write("c", completed, exit_status=0, flags={"lr": float("inf"), "opt": "sgd"}, label="baseline", tags=["good"])
    write("d", {EVENTS: losses((1, float("nan")))}, exit_status=-15, flags={"lr": 10, "amp": False})
    write("e", {".guild/STAGED": b"", ".guild/opref": opref("prepare.py")}, exit_status=None, flags=None)
    write("f", {".guild/PENDING": b""}, exit_status=None, label="waits", flags={"list": [1, "two"]})
    monkeypatch.setenv("GUILDSYNC_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


class Line(NamedTuple):
    """`argv` chooses these runs, of which `runs` shows the newest first."""

    argv: list[str]
    chosen: str


def lines(*rows: tuple[str, Sequence[str]]) -> list[Line]:
    return [Line(list(argv), chosen) for chosen, argv in rows]


SELECTORS = lines(
    ("abcdef", []),
    ("a", ["1"]),
    ("f", ["6"]),
    ("bcd", ["2:4"]),
    ("ab", [":2"]),
    ("ef", ["5:"]),
    ("ef", ["5:99"]),
    ("a", ["@latest"]),
    ("abc", ["@latest:3"]),
    ("a", ["@running"]),
    ("b", ["beef"]),
    ("b", ["BEEF0"]),
    ("a", ["1234"]),
    ("c", ["abcd1"]),
    ("d", [RUNS["d"]]),
    ("abcdf", ["2:4", "1", "@running", "ffff", "1"]),
    ("c", ["-Sc", "1"]),
    ("b", ["-Fu", "@latest"]),
    ("c", ["-Ft", "good", "2"]),
)
FILTERS = lines(
    ("abcdf", ["-Fo", "train", "--operation", "eval"]),
    ("b", ["-Fo", "RESNET:"]),
    ("e", ["--operation", "prepare"]),
    ("a", ["-Fl", "best"]),
    ("ac", ["--label", "BEST", "-Fl", "base"]),
    ("bde", ["-Fl", "-"]),
    ("bcde", ["-Fl", "-", "-Fl", "baseline"]),
    ("bde", ["-Fu"]),
    ("bde", ["--unlabeled"]),
    ("ac", ["-Ft", "good"]),
    ("a", ["--tag", "paper", "--tag", "none"]),
    ("", ["-Ft", "goo"]),
    ("a", ["-Fm"]),
    ("a", ["--marked", "-Ft", "good"]),
    ("a", ["-Sr"]),
    ("c", ["-Sc"]),
    ("b", ["-Se"]),
    ("d", ["-St"]),
    ("f", ["-Sp"]),
    ("e", ["-Ss"]),
    ("abcd", ["--running", "--completed", "--error", "--terminated"]),
    ("ef", ["--pending", "--staged"]),
)
STARTED = lines(
    ("a", ["-Fs", "last hour"]),
    ("ab", ["--started", "last 6 hours"]),
    ("ab", ["-Fs", "after 2 days ago"]),
    ("cd", ["-Fs", "before 1 day ago"]),
    ("abcd", ["-Fs", "before 9999-1-1"]),
    ("abc", ["-Fs", "last 6 months"]),
    ("c", ["-Fs", f"between {moment('c', -1)} and {moment('c', 1)}"]),
    ("c", ["-Fs", f"after {moment('c')}", "-Fs", f"before {moment('b')}"]),
    ("d", ["-Fs", moment("d")]),
    ("d", ["-Fs", moment("d").rpartition(":")[0]]),
    ("d", ["-Fs", moment("d").partition(" ")[0]]),
)
EXPRESSIONS = lines(
    ("a", ["-F", "lr = 0.1"]),
    ("ab", ["--filter", "lr < 1"]),
    ("c", ["-F", "lr = inf"]),
    ("cd", ["-F", "lr > 1"]),
    ("bef", ["-F", "opt is undefined and status != terminated"]),
    ("bdef", ["-F", "opt not in [adam, sgd]"]),
    ("b", ["-F", "amp = true"]),
    ("d", ["-F", "amp = false"]),
    ("a", ["-F", "batch-size >= 1e2"]),
    ("f", ["-F", "list contains two"]),
    ("b", ["-F", "op = eval and model = resnet"]),
    ("ac", ["-F", "tags contains good"]),
    ("a", ["-F", "marked = true and comments contains FINE"]),
    ("ac", ["-F", "label contains b"]),
    ("bde", ["-F", "label is undefined"]),
    ("bd", ["-F", "exit_status != 0 and exit_status is not undefined"]),
    ("ab", ["-F", "started > '2 days ago'"]),
    ("c", ["-F", f"started = '{moment('c')}'"]),
    ("a", ["-F", "status in [running, error]", "-F", "lr = 0.1"]),
    ("b", ["-F", "flag:size = 5"]),
    ("b", ["-F", "status in (running, error) and not lr = 0.1", "1"]),
    ("", ["-F", "no-such-thing > 3"]),
    ("c", ["-F", "size > 200000"]),
    ("c", ["-F", "size > 200000 and files > 1"]),
    ("", ["-F", "size is undefined or files is undefined"]),
)
SCALARS = lines(
    ("abcef", ["-F", "loss < 1"]),
    ("a", ["-F", "loss = 0.5"]),
    ("c", ["-F", "scalar:sub/.guild#loss = 0.125"]),
    ("d", ["-F", "loss = nan"]),
    ("ab", ["-F", "max loss = 4 and loss step = 20 and min loss < 1"]),
)
ALL = [*SELECTORS, *FILTERS, *STARTED, *EXPRESSIONS, *SCALARS]


def wrong(cli: Cli, remote: str, table: Sequence[Line] = ALL) -> list[str]:
    """The lines that choose other runs of a remote than they should."""
    letters = {run[:8]: letter for letter, run in RUNS.items()}
    found = []
    for line in table:
        said = cli("runs", "-r", remote, "-a", *line.argv)
        chosen = "".join(letters[row.split()[1]] for row in said.out.splitlines())
        if (said.code, chosen) != (0, line.chosen):
            found.append(f"{line.argv}: {chosen!r} instead of {line.chosen!r} {said.err}")
    return found


PLACES = ("local", "folder", "tree", *(pytest.param(kind, marks=pytest.mark.servers) for kind in ("gpu", "bucket")))


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a remote that has the runs of the home, or of the home itself."""
    kind: str = request.param
    remote = {
        "folder": f"{{type: fsspec, url: 'file://{tmp_path}/folder'}}",
        "tree": f"{{type: local, path: {tmp_path}/tree}}",
        "gpu": f"{{type: ssh, host: far, guild-home: {tmp_path}/far}}",
    }.get(kind, "{}")
    if kind == "gpu":
        request.getfixturevalue("ssh_user")
    if kind == "bucket":
        server: S3Server = request.getfixturevalue("seaweed")
        keys = f"AWS_ACCESS_KEY_ID: {server.access_key}, AWS_SECRET_ACCESS_KEY: {server.secret_key}"
        where = f"bucket: {new_bucket(server)}, region: {REGION}, endpoint-url: '{server.endpoint}'"
        remote = f"{{type: s3, {where}, local-env: {{{keys}}}}}"
    if kind != "local":
        config = tmp_path / "c.yml"
        config.write_text(f"remotes: {{{kind}: {remote}}}\n")
        monkeypatch.setenv("GUILDSYNC_CONFIG", str(config))
        said = cli("push", kind)
        assert said.code == 0, said.err
    return kind


def test_every_line_chooses_the_same_runs_everywhere(cli: Cli, place: str) -> None:
    assert wrong(cli, place) == []
    ids = f"{RUNS['c']}\n{RUNS['a'].upper()} {RUNS['c']}"
    assert [row.split()[1] for row in cli("runs", "-r", place, "-", stdin=ids).out.splitlines()] == [
        RUNS["a"][:8],
        RUNS["c"][:8],
    ]


NOTHING = [
    ["7"],
    ["7:"],
    ["dddd"],
    ["-"],
    ["-Sc", "@running"],
    ["-Fo", "nothing", "@latest"],
    ["-F", "lr = 7", "a" * 32],
]
NO_SELECTORS = [["abc"], ["0"], ["newest"], ["4:2"], ["@oldest"], [":"]]


@pytest.mark.parametrize("place", ["local", "folder"], indirect=True)
def test_what_matches_nothing_or_means_nothing_lists_nothing(cli: Cli, place: str) -> None:
    for code, selectors in [*((3, argv) for argv in NOTHING), *((2, argv) for argv in NO_SELECTORS)]:
        for argv in (selectors, ["@latest", *selectors]):
            said = cli("runs", "-r", place, *argv)
            assert (said.code, said.out) == (code, ""), argv
            assert "hint: " in said.err


@pytest.mark.parametrize("place", ["local", "folder"], indirect=True)
def test_an_ambiguous_beginning_lists_the_matches(cli: Cli, place: str) -> None:
    said = cli("runs", "-r", place, "abcd", "1")
    assert (said.code, said.out) == (2, "")
    assert RUNS["c"] in said.err
    assert RUNS["d"] in said.err
    assert RUNS["b"] not in said.err
    assert cli("runs", "-r", place, "-Sc", "abcd").code == 0  # only one of them completed


def test_verbs_act_on_what_the_filters_choose(cli: Cli, runs: Path, store: str, tmp_path: Path) -> None:
    assert cli("push", store, "-F", "loss > 0.3 and loss < 1").last.startswith("Pushed 1 run (")
    assert cli("push", store, "-Fs", "last 6 hours").last.startswith("Pushed 1 run (")
    assert cli("push", store, "-F", "loss = nan or size > 200000").last.startswith("Pushed 2 runs (")
    assert cli("push", store, "-F", "none > 3").last == "Nothing to push: no runs are chosen"
    other = f"file://{tmp_path}/other"
    assert cli("copy", store, other, "-F", "loss < 0.3", "-Se").last.startswith("Copied 1 run (")
    assert cli("pull", store, "-H", str(tmp_path / "new"), "-F", "max loss = 4").last.startswith("Pulled 2 runs (")
    assert cli("verify", "-r", store, "-F", "started > '2 days ago'").last.startswith("Verified 2 runs (")
    assert cli("info", "-r", store, "-F", "loss < 0.2").out.startswith(f"id: {RUNS['c']}\n")
    assert cli("ls", "-r", store, "-F", "op = eval").code == 0
    assert cli("ls", "-r", store, "-F", "op = none").code == 3
    assert cli("push", store, "-F", "op = none", "1").code == 3


WITH_RUNS = [
    *(["runs"], ["runs", "list", "-d"], ["info"], ["ls"], ["cat", "1", "train.py"], ["verify"], ["push", "bucket"]),
    *(["pull", "bucket"], ["copy", "bucket", "other"], ["runs", "-r", "bucket", "-r", "other"], ["runs", "-r", "all"]),
]
BAD = [
    ["-F", "loss <"],
    ["--filter", "("],
    ["-Fs", "soon"],
    ["--started", "after"],
    ["-F", "lr = 1", "-F", "started = x"],
]


@pytest.mark.parametrize("argv", WITH_RUNS, ids=" ".join)
def test_what_cannot_be_read_is_said_before_anything_is_asked(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    config = tmp_path / "c.yml"
    config.write_text("remotes: {bucket: {type: s3, bucket: b}, other: {type: ssh, host: far}}\n")
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(config))
    monkeypatch.setattr(api.Context, "_opened", lambda *_, **__: pytest.fail("it was opened"))
    for filters in BAD:
        said = cli(*argv, *filters)
        assert (said.code, said.out) == (2, ""), filters
        assert "cannot be read at" in said.err or "is not understood" in said.err
        assert "hint: " in said.err
        assert "warning" not in said.err


def test_hostile_text_in_a_filter_is_shown_harmlessly(cli: Cli, runs: Path) -> None:
    said = cli("runs", "-F", "lr = \x1b[2J\u202e (")
    assert said.code == 2
    assert not set("\x1b\u202e") & set(said.err)
    assert cli("runs", "-F", "(" * 9_000).code == 2
    assert cli("runs", "-F", "x" * 20_000).code == 2


def _with_runs(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _with_runs(command, (*names, name))
        elif {"run", "runs"} & {param.name for param in command.params}:
            yield (*names, name)


def test_every_command_that_takes_runs_has_the_filters(cli: Cli) -> None:
    commands = list(_with_runs(main._program()))
    assert ("push",) in commands
    assert ("runs", "list") in commands
    for command in commands:
        said = cli(*command, "--help")
        for option in (
            "--filter",
            "--started",
            "--operation",
            "--label",
            "--unlabeled",
            "--tag",
            "--marked",
            "--staged",
        ):
            assert option in said.out, command


def test_filters_on_scalars_choose_runs_of_plain_directories_for_every_verb(cli: Cli, home: Path) -> None:
    for n, run in enumerate(run_ids(3)):
        put(home / "runs" / run, ".guild/events.out.tfevents.9", record(scalar_event("mine", n / 10, 1)))
    chosen, few = run_ids(3)[2], ("-F", "mine > 0.15")
    assert cli("runs", *few, "--format", "ids").out.split() == [chosen]
    assert cli("ls", *few).code == 0
    assert cli("verify", *few).last.startswith("Verified 1 run ")
    assert cli("label", *few, "--set", "best").last == "Changed 1 run on local"
    assert cli("delete", "--all", *few, "-y").last == "Deleted 1 run on local"
    assert cli("runs", "-d", "--format", "ids").out.split() == [chosen]
    assert cli("restore", "--all", *few).last == "Restored 1 run on local"
    assert cli("push", f"file://{home}-store", *few).last.startswith("Pushed 1 run ")
