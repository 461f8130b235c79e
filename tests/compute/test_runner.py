"""Real scripts, executed by the runner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import guildsync.compute
from guildsync.compute import runner
from guildsync.model.script import analyse

RUNNER = Path(runner.__file__)


def _works(python: str) -> bool:
    found = shutil.which(python)
    return found is not None and subprocess.run([found, "-V"], capture_output=True, check=False).returncode == 0


OTHERS = [python for python in ("python3.7", "python3.8", "python3.12", "python3.13", "python3.14") if _works(python)]


@pytest.fixture(params=[sys.executable, *OTHERS], ids=os.path.basename)
def python(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def execute(
    where: Path, words: list[str], python: str = sys.executable, **flags: Any
) -> subprocess.CompletedProcess[str]:
    runner_words = [RUNNER, "--flags", json.dumps(flags)] if flags else []
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [python, "-u", *runner_words, *words],
        cwd=where,
        env=env,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


SHOW = """\
import json, sys, os
lr = 0.1
epochs: int = 3
layers = [1]
name = other = "a"
nothing = None
_ = json.dump(
    {
        "values": [lr, epochs, layers, name, other, nothing],
        "argv": sys.argv,
        "path": sys.path,
        "name": __name__,
        "file": os.path.abspath(__file__),
        "package": __package__,
        "spec": None if __spec__ is None else __spec__.name,
        "doc": __doc__,
        "main": sys.modules["__main__"].__dict__ is globals(),
        "globals": sorted(set(globals()) - {"__annotations__", "__conditional_annotations__", "__builtins__"}),
        "loader": type(__loader__).__name__,
    },
    sys.stdout,
)
"""


def both(where: Path, words: list[str], python: str, **flags: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a script sees when it is executed by Python itself, and by the runner."""
    found = []
    for values in ({}, flags):
        ran = execute(where, words, python, **values)
        assert ran.returncode == 0, ran.stderr
        found.append(json.loads(ran.stdout))
    return found[0], found[1]


def test_a_script_sees_what_it_always_sees_but_other_values(tmp_path: Path, python: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/show.py").write_text(SHOW)
    plain, replaced = both(
        tmp_path, ["sub/show.py", "--flags", "-m", "x y"], python, lr=1e-5, layers=[2, "x"], other=None, nothing=True
    )
    assert plain.pop("values") == [0.1, 3, [1], "a", "a", None]
    assert replaced.pop("values") == [1e-5, 3, [2, "x"], "a", None, True]
    assert replaced == plain
    assert replaced["argv"] == ["sub/show.py", "--flags", "-m", "x y"]


def test_a_module_sees_what_it_always_sees_but_other_values(tmp_path: Path, python: str) -> None:
    (tmp_path / "pkg/deep").mkdir(parents=True)
    (tmp_path / "pkg/__init__.py").touch()
    (tmp_path / "pkg/deep/show.py").write_text(SHOW)
    (tmp_path / "pkg/deep/__main__.py").write_text(SHOW)
    for name in ("pkg.deep.show", "pkg.deep"):
        plain, replaced = both(tmp_path, ["-m", name, "a"], python, epochs=5)
        assert replaced.pop("values") == [0.1, 5, [1], "a", "a", None]
        del plain["values"]
        assert replaced == plain


def test_a_link_to_a_script_has_the_path_of_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/show.py").write_text(SHOW)
    (tmp_path / "link.py").symlink_to("real/show.py")
    plain, replaced = both(tmp_path, ["link.py"], sys.executable, lr=1)
    assert plain["path"] == replaced["path"]
    assert replaced["path"][0] == str(tmp_path / "real")


def test_imports_beside_the_script_and_none_beside_the_runner(tmp_path: Path) -> None:
    (tmp_path / "local.py").write_text("where = 'project'\n")
    (tmp_path / "train.py").write_text(
        "x = 1\nimport local\nprint(local.where, x)\ntry:\n    import ssh\nexcept ImportError: print('no')\n"
    )
    assert execute(tmp_path, ["train.py"], x=2).stdout == "project 2\nno\n"


def test_only_the_first_literal_at_the_top_is_replaced(tmp_path: Path, python: str) -> None:
    (tmp_path / "t.py").write_text(
        "import os\nlr = os.environ.get('NO_SUCH', 5)\nfirst = lr\nlr = 0.1\nsecond = lr\nlr = 0.2\nthird = lr\n"
        "if True:\n    lr = 0.3\ndef f(lr=7):\n    return lr\nprint(first, second, third, lr, f())\n"
    )
    assert execute(tmp_path, ["t.py"], python, lr=9).stdout == "5 9 0.2 0.3 7\n"


@pytest.mark.parametrize(
    "value", [True, None, -1, 10**40, 1e-300, float("inf"), "'\"\n\\\u00e9\U0001f600", [], [[1], None], ""], ids=repr
)
def test_values_arrive_as_they_are(tmp_path: Path, value: Any) -> None:
    (tmp_path / "t.py").write_text("x = 1\nprint(ascii(x))\n")
    assert execute(tmp_path, ["t.py"], x=value).stdout == ascii(value) + "\n"


def test_a_traceback_is_what_python_itself_shows(tmp_path: Path, python: str) -> None:
    (tmp_path / "fail.py").write_text(
        "x = 1\n\n\ndef fail():\n    raise ValueError(f'no {x}')\n\n\ntry:\n    {}['k']\nexcept KeyError:\n    fail()\n"
    )
    plain, replaced = execute(tmp_path, ["fail.py"], python), execute(tmp_path, ["fail.py"], python, x=2)
    assert replaced.returncode == plain.returncode == 1
    absolute = plain.stderr.replace('"fail.py"', f'"{tmp_path / "fail.py"}"')
    assert replaced.stderr == absolute.replace("no 1", "no 2")
    assert "runner" not in replaced.stderr


@pytest.mark.parametrize(
    ("text", "code"),
    [("raise SystemExit(3)", 3), ("raise SystemExit('words')", 1), ("import os; os._exit(4)", 4), ("x = ", 1)],
)
def test_exit_codes_and_words(tmp_path: Path, text: str, code: int) -> None:
    (tmp_path / "t.py").write_text(f"lr = 1\n{text}\n")
    plain, replaced = execute(tmp_path, ["t.py"]), execute(tmp_path, ["t.py"], lr=2)
    assert replaced.returncode == plain.returncode == code
    assert replaced.stderr == plain.stderr


def test_an_interrupt_ends_it_as_python_does(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(
        "import os, signal\nlr = 1\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)\n"
    )
    assert execute(tmp_path, ["t.py"], lr=2).returncode == -signal.SIGINT


def test_hooks_of_the_script_are_used(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(
        "import sys, atexit\nlr = 1\natexit.register(print, 'bye')\n"
        "sys.excepthook = lambda kind, value, trace: print('hook', value, trace.tb_frame.f_code.co_name)\n"
        "raise KeyError(lr)\n"
    )
    ran = execute(tmp_path, ["t.py"], lr=2)
    assert (ran.stdout, ran.returncode) == ("hook 2 <module>\nbye\n", 1)


def test_source_with_an_encoding_and_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("# coding: latin-1\nx = 1\nprint(ascii('\xe9'), x)\n".encode("latin-1"))
    (tmp_path / "b.py").write_bytes(b"\xef\xbb\xbfx = 1\r\nprint(x)\r\n")
    assert execute(tmp_path, ["a.py"], x=2).stdout == "'\\xe9' 2\n"
    assert execute(tmp_path, ["b.py"], x=2).stdout == "2\n"


def test_future_statements_hold_for_the_script_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ndef f(a: x): pass\nprint(f.__annotations__)\n")
    (tmp_path / "b.py").write_text(
        "'''doc'''\nfrom __future__ import annotations\nx = 1\ndef f(a: x): pass\nprint(f.__annotations__, __doc__)\n"
    )
    assert execute(tmp_path, ["a.py"], x=2).stdout == "{'a': 2}\n"
    assert execute(tmp_path, ["b.py"], x=2).stdout == "{'a': 'x'} doc\n"


PROCESSES = """\
import multiprocessing, sys, pickle
lr = 0.1
class Value:
    pass
def show(value):
    return lr, __name__, type(value) is Value, sys.argv
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.map(show, [Value()]))
"""


@pytest.mark.parametrize("how", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("words", [["t.py"], ["-m", "pkg.t"]], ids=["script", "module"])
def test_processes_that_a_script_starts_see_the_values(tmp_path: Path, how: str, words: list[str], python: str) -> None:
    (tmp_path / "pkg").mkdir()
    for place in (tmp_path / "t.py", tmp_path / "pkg/t.py"):
        place.write_text(PROCESSES)
    plain, replaced = execute(tmp_path, [*words, how], python), execute(tmp_path, [*words, how], python, lr=7)
    assert replaced.returncode == 0, replaced.stderr
    assert replaced.stdout == plain.stdout.replace("0.1", "7")


def test_a_value_without_a_place(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("lr = float('1')\nprint(lr)\n")
    ran = execute(tmp_path, ["t.py"], lr=2)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "lr" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "words", [["nothing.py"], ["-m", "nothing"], ["-m", "nothing.at.all"], ["-m", "sys"], ["."], ["-m"]]
)
def test_what_is_not_there(tmp_path: Path, words: list[str]) -> None:
    ran = execute(tmp_path, words, lr=1)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert ran.stderr.startswith(("runner: ", "usage"))


def test_nothing_beside_the_runner_hides_a_module_of_python() -> None:
    names = {path.stem for path in Path(guildsync.compute.__path__[0]).glob("*.py")} - {"__init__"}
    assert not names & sys.stdlib_module_names


LITERALS = st.sampled_from(
    ["1", "-0.5", "'a'", "None", "[1, [2]]", "(1,)", "{}", "x", "f()", "1 + 1", "b'a'", "-x", "..."]
)
TARGETS = st.sampled_from(["a", "b", "_c", "a = b", "a: int", "a, b", "a.b", "a[0]", "a +", "if 1: a"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(TARGETS, LITERALS), max_size=6))
def test_it_finds_what_the_analysis_finds(rows: list[tuple[str, str]]) -> None:
    text = "".join(f"{target}= {literal}\n" for target, literal in rows)
    program = runner.Program(text, "t.py", None, None)
    known = analyse(text).globals
    program.code(dict.fromkeys(known, 1))
    for name in {"a", "b"} - set(known):
        with pytest.raises(runner.Trouble):
            program.code({name: 1})
