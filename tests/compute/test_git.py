"""What a hostile or broken repository can make git do: nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from guildsync.compute.git import work_tree
from guildsync.compute.source import find_source
from guildsync.errors import GuildsyncError, NotFound
from tests.kit.repositories import git, make_project, repository, write


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path, monkeypatch)


def names(directory: Path) -> set[str]:
    return {os.fsdecode(path) for path in find_source(directory.as_posix()).paths}


HOSTILE = """
[core]
	fsmonitor = touch {canary}-fsmonitor; false
	hooksPath = {hooks}
	sshCommand = touch {canary}-ssh
	pager = touch {canary}-pager
	editor = touch {canary}-editor
[filter "evil"]
	clean = touch {canary}-clean; cat
	smudge = touch {canary}-smudge; cat
	required = true
[filter "evil2"]
	process = touch {canary}-process
[diff "evil"]
	textconv = touch {canary}-textconv
	command = touch {canary}-diff
[diff]
	external = touch {canary}-external
[status]
	showUntrackedFiles = no
	submoduleSummary = true
[alias]
	status = !touch {canary}-alias
	ls-files = !touch {canary}-alias
[include]
	path = more
[protocol]
	allow = always
"""
MORE = '[filter "more"]\n\tclean = touch {canary}-more; cat\n'


@pytest.mark.parametrize("nested", [False, True])
def test_a_hostile_repository_executes_nothing(project: Path, tmp_path: Path, nested: bool) -> None:
    repository(project, {"train.py": "", "a.evil": "1\n", "b.evil2": "1\n", "c.more": "1\n"})
    hostile = project
    if nested:
        hostile = project / "inner"
        repository(hostile, {"a.evil": "1\n", "b.evil2": "1\n", "c.more": "1\n"})
    canaries = tmp_path / "canaries"
    canaries.mkdir()
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("fsmonitor-watchman", "post-index-change", "pre-commit", "post-checkout", "reference-transaction"):
        for place in (hooks / name, hostile / ".git/hooks" / name):
            place.parent.mkdir(exist_ok=True)
            place.write_text(f"#!/bin/sh\ntouch {canaries}/hook-{name}\n")
            place.chmod(0o755)
    write(hostile, {".gitattributes": "*.evil filter=evil diff=evil\n*.evil2 filter=evil2\n*.more filter=more\n"})
    with open(hostile / ".git/config", "a") as file:
        file.write(HOSTILE.format(canary=canaries / "c", hooks=hooks))
    (hostile / ".git/more").write_text(MORE.format(canary=canaries / "c"))
    for name in ("a.evil", "b.evil2", "c.more"):  # of the same size: only the content can tell
        (hostile / name).write_text("2\n")
    source = find_source(project.as_posix())
    assert source.dirty
    assert {os.path.basename(name) for name in source.paths} >= {b"a.evil", b"b.evil2", b"c.more", b".gitattributes"}
    assert os.listdir(canaries) == []
    subprocess.run(["git", "status"], cwd=hostile, capture_output=True, check=False)
    assert os.listdir(canaries) != []  # the traps do work


def test_a_filter_that_cannot_be_turned_off_is_not_asked(project: Path, tmp_path: Path) -> None:
    repository(project, {"a.evil": "1\n"})
    canary = tmp_path / "canary"
    write(project, {".git/info/attributes": "*.evil filter=x=y\n"})
    with open(project / ".git/config", "a") as file:
        file.write(f'[filter "x=y"]\n\tclean = touch {canary}; cat\n')
    (project / "a.evil").write_text("2\n")
    assert find_source(project.as_posix()).dirty
    assert not canary.exists()


def test_a_partial_clone_fetches_nothing(project: Path, tmp_path: Path) -> None:
    repository(project, {"a.py": "1\n"})
    canary = tmp_path / "canary"
    with open(project / ".git/config", "a") as file:
        file.write(
            "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tpartialClone = origin\n"
            f'[remote "origin"]\n\tpromisor = true\n\turl = "ext::sh -c touch% {canary}"\n'
            "[protocol]\n\tallow = always\n"
            '[protocol "ext"]\n\tallow = always\n'
        )
    tree = git(project, "rev-parse", "HEAD^{tree}")
    (project / ".git/objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(GuildsyncError, match="git cannot read"):
        find_source(project.as_posix())
    assert not canary.exists()
    subprocess.run(["git", "status"], cwd=project, capture_output=True, check=False)
    assert canary.exists()  # the trap does work


def test_variables_do_not_lead_git_elsewhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = repository(project, {"train.py": ""})
    repository(tmp_path / "other", {"other.py": ""})
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nothing"))
    source = find_source(project.as_posix())
    assert (source.paths, source.commit) == ((b"train.py",), commit)


def test_a_configured_work_tree_elsewhere_shows_nothing_of_it(project: Path, tmp_path: Path) -> None:
    repository(project, {"train.py": ""})
    write(tmp_path, {"elsewhere/secret": ""})
    git(project, "config", "core.worktree", str(tmp_path / "elsewhere"))
    assert "secret" not in names(project)


def test_a_repository_that_git_does_not_read_is_an_error(project: Path) -> None:
    repository(project, {"train.py": "", ".gitignore": "secret\n"})
    write(project, {"secret": ""})
    (project / ".git/config").write_text("[core\n")
    with pytest.raises(GuildsyncError, match="git cannot read"):
        find_source(project.as_posix())


def test_no_git_program_is_an_error(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(project, {"train.py": ""})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="git"):
        find_source(project.as_posix())
    write(tmp_path, {"plain/a.py": ""})
    assert names(tmp_path / "plain") == {"a.py"}


def test_git_that_hangs_is_given_up(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(project, {"train.py": ""})
    write(tmp_path, {"bin/git": "#!/bin/sh\nexec sleep 60\n"})
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr("guildsync.compute.git.DEADLINE", 0.2)
    with pytest.raises(GuildsyncError, match="did not answer"):
        find_source(project.as_posix())


def test_an_empty_git_directory_is_no_repository(project: Path) -> None:
    (project / ".git").mkdir()
    assert work_tree(os.fsencode(project)) is None
