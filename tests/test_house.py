"""The rooms: who imports whom, what travels, what start-up loads, what is documented."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import guildsync
from guildsync.agent import bootstrap
from guildsync.cli import main
from tests.kit.trees import run_ids, write_run

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "guildsync").rglob("*.py"))
TRAVELS = [ROOT / "guildsync" / name for name in bootstrap.TRAVELS]
HEAVY = {
    *("s3fs", "aiobotocore", "boto3", "botocore", "asyncssh", "fsspec", "sshfs", "obstore", "pydantic"),
    *("rich", "rich.progress", "watchdog", "zstandard", "yaml"),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tool(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_imports_go_down_only() -> None:
    ran = subprocess.run(
        [tool("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_travels_runs_on_python_3_8() -> None:
    ran = subprocess.run(
        [tool("vermin"), "--no-tips", "-t=3.8-", "--violations", *map(str, TRAVELS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("path", TRAVELS, ids=module_name)
def test_what_travels_needs_the_standard_library_and_its_like_alone(path: Path) -> None:
    ours = {module_name(each) for each in TRAVELS}
    for name in _imported(path):
        top = name.partition(".")[0]
        if top == "guildsync":
            assert name in ours or name.rpartition(".")[0] in ours, f"{path}: {name}"
        else:
            assert top in sys.stdlib_module_names, f"{path}: {name}"


def _imported(path: Path) -> set[str]:
    """Every module that is imported anywhere in it; `from a import b` as `a.b` where that is one of our modules."""
    ours = {module_name(each) for each in MODULES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & ours or {str(node.module)}
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_has_a_charter_of_one_sentence(path: Path) -> None:
    charter = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
    lines = charter.splitlines()
    assert len(lines) == 1, f"{path} needs a first docstring line of its own"
    assert lines[0].endswith((".", "?")), f"{path}: {charter}"
    assert not re.search(r"\. [A-Z]", lines[0].removesuffix(" Pure.")), f"{path}: more than one sentence"


@pytest.mark.parametrize(
    "argv",
    [
        *(["--help"], ["runs", "--help"], ["--version"], ["runs"], ["runs", "-a"], ["info"]),
        *(["ls"], ["cat", "1", "train.py"], ["config", "path"]),
    ],
)
def test_start_up_loads_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    for run in run_ids(3):
        write_run(tmp_path, run)
    program = (
        "import sys\n"
        "from guildsync.cli import main\n"
        "code = main.run(sys.argv[1:])\n"
        "print('\\n'.join(['loaded:', *sys.modules]))\n"
        "sys.exit(code)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *argv],
        env={**os.environ, "GUILDSYNC_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    loaded = set(ran.stdout.partition("loaded:\n")[2].split())
    assert "typer" in loaded
    assert not loaded & HEAVY
    if argv in (["--help"], ["--version"]):
        assert "guildsync.api" not in loaded


def test_the_package_shows_the_library_and_loads_it_late() -> None:
    program = "import sys, guildsync; sys.exit('guildsync.api' in sys.modules or 'typer' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=env, timeout=60, check=False).returncode == 0
    for name in guildsync.__all__:
        assert getattr(guildsync, name) is not None
    assert set(guildsync.__all__) <= set(dir(guildsync))
    with pytest.raises(AttributeError):
        guildsync.nothing  # noqa: B018
    assert guildsync.remote("file:///tmp/x").layout == "store"


def _commands(group: Any, prefix: str = "") -> list[str]:
    names = []
    for name, command in group.commands.items():
        names.append(f"{prefix}{name}")
        if hasattr(command, "commands"):
            names += _commands(command, f"{prefix}{name} ")
    return names


def test_every_command_is_documented() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    text = readme.read_text()
    for name in _commands(main._program()):
        assert f"`guildsync {name.removesuffix(' list')}" in text, f"README.md does not mention `guildsync {name}`"


def test_the_guides_commands_exist() -> None:
    """And every transcript of it was answered: `scripts/transcripts` writes them."""
    guide = (ROOT / "docs" / "remote-training.md").read_text()
    commands = re.findall(r"^\$ guildsync ([a-z]+)(?: .*)?\n(.)", guide, re.MULTILINE)
    assert {name for name, _ in commands} >= {"check", "run", "watch", "stop", "pull", "runs"}
    program = main._program()
    for name, answer in commands:
        assert name in program.commands
        assert answer not in "`$", f"`guildsync {name}` says nothing"
    options = set(re.findall(r"(?<=[ `])--[a-z][a-z-]+", guide)) - {"--logdir", "--name", "--flags"}
    known = {option for command in program.commands.values() for param in command.params for option in param.opts}
    known |= {option for param in program.commands["runs"].commands["list"].params for option in param.opts}
    assert options <= known
