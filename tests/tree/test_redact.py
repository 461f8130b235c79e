"""Captured environments: what leaves a home is their redacted view, and the file itself is left alone."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guildsync.model.ports import Piece, Want
from guildsync.tree.home import Home
from guildsync.tree.redact import LIMIT, redact
from guildsync.tree.tree import Tree
from tests.kit.trees import run_ids, snapshot, write_run

RUN = run_ids(1)[0]
CANARY = "c4n4ry"
HARMLESS = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_ID": "17", "LANG": "C.UTF-8"}
SECRET_VALUES = [
    CANARY,
    f"x\n{CANARY}\ny",
    f"-----BEGIN KEY-----\n\n{CANARY} =\n  indented {CANARY}\n-----END KEY-----\n",
    f"\n\n {CANARY}: {CANARY}\n\t{CANARY}",
    f"{'long ' * 40}{CANARY} {'words ' * 40}",
    f"() {{  echo '{CANARY}';\n  echo {CANARY}\n}}",
    f"é {CANARY} \u2028 {CANARY} \x85 {CANARY}\x07",
]
SECRET_NAMES = [
    "AWS_SECRET_ACCESS_KEY",
    "WANDB_API_KEY",
    "OPENAI",
    "db_password",
    "CUDA_TOKEN",
    "PYTHON_AUTH",
    "PATHS",
    "XPATH",
    "home",
    "_",
    "BASH_FUNC_which%%",
    "PROGRAMFILES(X86)",
    "with space",
    "1",
    "yes",
    "é",
    "k" * 200,
]


def as_yaml(variables: dict[str, str]) -> bytes:
    """As Guild writes `.guild/attrs/env`."""
    return yaml.safe_dump(variables, default_flow_style=False, sort_keys=False).encode()


def as_exports(variables: dict[str, str]) -> bytes:
    """As a shell writes them."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()).encode()


def as_lines(variables: dict[str, str]) -> bytes:
    return "".join(f"{name}={value}\n" for name, value in variables.items()).encode()


FORMS = [as_yaml, as_exports, as_lines]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", SECRET_VALUES)
@pytest.mark.parametrize("name", SECRET_NAMES)
def test_no_secret_survives_between_harmless_variables(form, name, value):
    data = form({**HARMLESS, name: value, "HOME": "/home/u"})
    found = redact(data)
    assert CANARY.encode() not in found
    assert redact(found) == found
    for harmless in (*HARMLESS.values(), "/home/u"):
        assert harmless.encode() in found


@pytest.mark.parametrize("form", FORMS)
def test_harmless_variables_stay_as_they_are(form):
    data = form(HARMLESS)
    assert redact(data) == data


def test_names_of_secrets_stay():
    found = yaml.safe_load(redact(as_yaml({"API_KEY": CANARY, "PATH": "/bin", "MY_TOKEN": "x\ny"})))
    assert found == {"API_KEY": "redacted", "PATH": "/bin", "MY_TOKEN": "redacted"}
    assert redact(b"export A=1\nB='x'\n") == b"export A=redacted\nB=redacted\n"
    assert redact(b"A=1\r\nB=2") == b"A=redacted\r\nB=redacted"


def test_a_harmless_value_of_several_lines_stays():
    data = as_yaml({"LD_LIBRARY_PATH": "/a b:" * 60, "PATH": "x"})
    assert data.count(b"\n") > 3
    assert redact(data) == data


_SNIPPETS = [
    b"PATH",
    b"KEY",
    b"export ",
    b"=",
    b": ",
    b":",
    b" ",
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b"'",
    b"\xff",
    b"x",
    b"\0",
]


@given(st.lists(st.sampled_from(_SNIPPETS) | st.binary(max_size=3), max_size=30).map(b"".join))
def test_it_is_idempotent_and_invents_no_lines(data):
    once = redact(data)
    assert redact(once) == once
    assert len(once.splitlines()) <= len(data.splitlines())


@given(
    st.dictionaries(
        st.sampled_from(["PATH", "HOME", "A", "B_KEY", "we ird", "LANG"]), st.text(max_size=30), max_size=6
    ),
    st.integers(0, 6),
)
def test_no_secret_survives_whatever_stands_around_it(variables, place):
    rows = list(variables.items())
    rows.insert(place, ("SECRET", f"a\n\n  {CANARY}\n{CANARY}: b"))
    data = yaml.safe_dump(dict(rows), default_flow_style=False, sort_keys=False, allow_unicode=True).encode()
    assert CANARY.encode() not in redact(data)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_run(tmp_path, RUN, env=as_yaml({"API_KEY": CANARY, **HARMLESS}), files={".guild/ENV": b"API_KEY=c4n4ry\n"})
    return tmp_path


def _seen(home: Path, keep_env: bool = False) -> dict[bytes, bytes]:
    """What a Tree shows of the two files, by its manifest and by its objects."""
    tree = Tree(Home(str(home)), keep_env)
    (scan,) = tree.manifests({RUN: ()})
    out = {}
    for path in (b".guild/attrs/env", b".guild/ENV"):
        entry = scan.manifest.by_path[path]
        (piece,) = tree.fetch([Want(entry.digest, entry.size, RUN, path, 0)])
        assert isinstance(piece, Piece)
        out[path] = piece.data
    return out


def test_a_tree_shows_the_view_and_leaves_the_file(home):
    before = snapshot(home / "runs" / RUN)
    seen = _seen(home)
    assert CANARY.encode() not in b"".join(seen.values())
    assert seen[b".guild/ENV"] == b"API_KEY=redacted\n"
    assert snapshot(home / "runs" / RUN) == before
    assert CANARY.encode() in _seen(home, keep_env=True)[b".guild/ENV"]


def test_what_lies_redacted_already_is_the_same_content(home):
    """A no-op stays one: the view of the view's bytes has the same digest."""
    (one,) = Tree(Home(str(home))).manifests({RUN: ()})
    path = home / "runs" / RUN / ".guild/attrs/env"
    path.write_bytes(redact(path.read_bytes()))
    (other,) = Tree(Home(str(home))).manifests({RUN: ()})
    assert one.content == other.content


def test_only_the_two_files_of_a_run_are_seen_so(home):
    other = home / "runs" / RUN / "sub" / ".guild" / "attrs"
    other.mkdir(parents=True)
    (other / "env").write_bytes(b"API_KEY: c4n4ry\n")
    (scan,) = Tree(Home(str(home))).manifests({RUN: ()})
    entry = scan.manifest.by_path[b"sub/.guild/attrs/env"]
    assert entry.size == len(b"API_KEY: c4n4ry\n")


def test_an_environment_too_large_to_read_is_not_sent(home):
    path = home / "runs" / RUN / ".guild" / "ENV"
    os.truncate(path, LIMIT + 1)
    (scan,) = Tree(Home(str(home))).manifests({RUN: ()})
    assert [(problem.path, problem.reason) for problem in scan.problems] == [(b".guild/ENV", "unreadable")]
    assert b".guild/ENV" not in scan.manifest.by_path
