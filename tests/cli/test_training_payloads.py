"""Words that a shell could take for more, at every place of a run on a host: they arrive as they are, and nothing else
happens."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from guildsync.model.script import parse_flag
from tests.cli.conftest import Cli
from tests.compute.test_ssh import PAYLOADS
from tests.kit.sshd import Client, Sshd
from tests.kit.training import Site, ended, status_of

pytestmark = pytest.mark.servers

MORE = ("$(touch {0})\n", "x\ntouch {0}", "{0}; touch {0}", "--help", "-", "--", "a=b", "\x1b]0;x\x07", "\udcff", "''")
GLOBALS = """\
import json, os, sys
name = "none"
print(json.dumps([name, os.environ["VALUE"], os.environ["SECRET"], os.environ["INIT"], os.getcwd()]))
"""
OPTIONS = """\
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("--name")
parser.add_argument("rest", nargs="*")
args = parser.parse_args()
print(json.dumps([args.name, args.rest]))
"""


@pytest.mark.parametrize(
    "payload",
    [
        *(pytest.param(payload, marks=[pytest.mark.soak] if n % 3 else []) for n, payload in enumerate(PAYLOADS)),
        *(pytest.param(payload, marks=[pytest.mark.soak] if n % 3 else []) for n, payload in enumerate(MORE)),
    ],
)
def test_nothing_that_is_said_is_executed(
    cli: Cli, tmp_path: Path, ssh_user: Client, ssh_host: Sshd, monkeypatch: pytest.MonkeyPatch, payload: str
) -> None:
    word = payload.format("canary")
    name = word.replace("/", "_")
    project = tmp_path / f"project {name}"
    far = tmp_path / f"far {name}"
    (project / f"dir {name}").mkdir(parents=True)
    for directory in (project, project / f"dir {name}"):
        (directory / f"{name}.py").write_text(GLOBALS)
    (project / "options.py").write_text(OPTIONS)
    venv = tmp_path / f"venv {name}".replace("\n", " ")
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/activate").write_text('PATH="${BASH_SOURCE[0]%/*}:$PATH"\nINIT=${INIT}ated\n')
    (venv / "bin/python").symlink_to(sys.executable)
    keys = {
        "type": "ssh",
        "host": "far",
        "guild-home": str(far),
        "venv-path": str(venv),
        "init": "export INIT=activ",
        "env": {"VALUE": word},
    }
    if "\udcff" in word:  # what is no Unicode cannot be configured
        far = tmp_path / "far"
        keys = {"type": "ssh", "host": "far", "guild-home": str(far), "init": "export INIT=activated"}
    config = tmp_path / "c.yml"
    config.write_text(yaml.safe_dump({"remotes": {"gpu": keys}}).replace("${", "$${"))
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(config))
    monkeypatch.setenv("GUILDSYNC_HOME", str(tmp_path / "guild"))
    monkeypatch.setenv("SECRET", word)
    monkeypatch.chdir(project)
    flag = parse_flag(f"name={word}")
    wanted = None if flag.value is None else flag.text
    with ended(Site(("-r", "gpu"), far)) as site:
        given = ["--secret", "SECRET", "--env", f"VALUE={word}", f"--label={word}", f"--tag={word}", *site.words]
        for script in (f"./{name}.py", f"dir {name}/{name}.py"):
            said = cli("run", script, f"name={word}", *given)
            assert said.code == 0, said
            (run,) = (run for run in site.runs if run.name in said.err)
            assert json.loads(said.out) == [wanted, word, word, "activated", str(run)]
            assert status_of(run) == "completed"
            label = yaml.safe_load((run / ".guild/attrs/label").read_bytes().decode("utf-8", "surrogateescape"))
            assert label == word or "\udcff" in word or "\x1b" in word
        if word != "--":  # argparse drops it, wherever it stands
            said = cli("run", "options.py", f"name={word}", *site.words, "--", "--", word, "x")
            assert json.loads(said.out) == [wanted, [word, "x"]], said
        program = "import os, sys; print(os.fsencode(sys.argv[1]).hex())"
        said = cli("run", *site.words, "--", "python3", "-c", program, word)
        assert said.out == f"{os.fsencode(word).hex()}\n", said
    for place in (tmp_path, ssh_host.home):
        assert not list(place.rglob("canary")), "something was executed"


@pytest.mark.parametrize(
    "lines",
    [
        "echo 'open",
        "exit 0",
        "return 0",
        "set --",
        "set -- a b c d",
        "shift 9",
        "} ; {",
        "exec true",
        "false ; # '",
        "(",
        "cat <<X",
    ],
)
def test_an_init_that_is_not_whole_starts_nothing_by_itself(
    cli: Cli, tmp_path: Path, ssh_user: Client, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    """It is said that nothing was started, and the run failed; or the program was started after all."""
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path / "p")
    monkeypatch.setenv("GUILDSYNC_HOME", str(tmp_path / "guild"))
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(tmp_path / "c.yml"))
    keys = {"type": "ssh", "host": "far", "guild-home": str(tmp_path / "far"), "init": lines}
    (tmp_path / "c.yml").write_text(yaml.safe_dump({"remotes": {"gpu": keys}}))
    with ended(Site(("-r", "gpu"), tmp_path / "far")) as site:
        said = cli("run", *site.words, "--", "echo", "started")
        if said.code == 0:
            assert "started\n" in said.out or lines == "exec true"
            assert status_of(site.run) == "completed"
        else:
            assert "started\n" not in said.out.splitlines()[-1:]
            assert status_of(site.run) == "error"
