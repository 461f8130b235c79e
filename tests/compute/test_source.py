"""What of a project goes with a run: real repositories, odd names, hostile configurations."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from guildsync.compute.source import Limits, Source, copy_source, find_source
from guildsync.errors import GuildsyncError, NotFound, Usage
from guildsync.tree.scan import View, scan
from tests.kit.repositories import git, make_project, repository, write

NON_UTF8 = b"caf\xe9.py"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path, monkeypatch)


def names(source: Source) -> set[str]:
    return {os.fsdecode(path) for path in source.paths}


def test_a_clean_work_tree(project: Path) -> None:
    commit = repository(project, {"train.py": "lr = 0.1\n", "pkg/a.py": "", ".gitignore": "*.pt\n"})
    source = find_source(project.as_posix())
    assert source == Source(
        os.fsencode(project), (b".gitignore", b"pkg/a.py", b"train.py"), commit, False, len("lr = 0.1\n*.pt\n")
    )


def test_untracked_goes_along_and_ignored_does_not(project: Path) -> None:
    repository(project, {"train.py": "", ".gitignore": "*.pt\n", "pkg/.gitignore": "secret\n!keep.pt\n"})
    write(project, {"new.py": "", "model.pt": "", "pkg/secret": "", "pkg/keep.pt": "", "data/x.csv": ""})
    source = find_source(project.as_posix())
    assert names(source) == {".gitignore", "train.py", "new.py", "pkg/.gitignore", "pkg/keep.pt", "data/x.csv"}
    assert source.dirty


def test_deleted_renamed_staged_only_and_changed(project: Path) -> None:
    repository(project, {"gone.py": "", "old.py": "x = 1\n", "changed.py": "a\n", "dir/a.py": "", "tracked.pt": ""})
    write(project, {"staged.py": "", ".gitignore": "*.pt\n"})
    (project / "gone.py").unlink()
    git(project, "mv", "old.py", "renamed.py")
    git(project, "add", "staged.py")
    (project / "changed.py").write_text("b\n")
    (project / "dir/a.py").unlink()
    (project / "dir").rmdir()
    (project / "dir").write_text("now a file")
    source = find_source(project.as_posix())
    assert names(source) == {"renamed.py", "staged.py", "changed.py", "dir", "tracked.pt", ".gitignore"}
    assert source.dirty


def test_before_the_first_commit(project: Path) -> None:
    git(project, "init", "-q")
    write(project, {"train.py": ""})
    source = find_source(project.as_posix())
    assert (names(source), source.commit, source.dirty) == ({"train.py"}, None, True)


def test_a_subdirectory_of_a_repository_is_all_there_is(project: Path) -> None:
    commit = repository(project, {"a/train.py": "", "b/other.py": "", ".gitignore": "/a/out/\n"})
    write(project, {"a/out/x": "", "b/new.py": ""})
    source = find_source((project / "a").as_posix())
    assert (names(source), source.commit, source.dirty) == ({"train.py"}, commit, False)


def test_unmerged_paths_stand_once(project: Path) -> None:
    repository(project, {"a.py": "1\n"})
    git(project, "checkout", "-qb", "other")
    (project / "a.py").write_text("2\n")
    git(project, "commit", "-qam", "2")
    git(project, "checkout", "-q", "main")
    (project / "a.py").write_text("3\n")
    git(project, "commit", "-qam", "3")
    assert subprocess.run(["git", "merge", "-q", "other"], cwd=project, capture_output=True, check=False).returncode
    assert find_source(project.as_posix()).paths == (b"a.py",)


@pytest.mark.parametrize("with_git", [True, False])
def test_odd_names_and_links(project: Path, tmp_path: Path, with_git: bool) -> None:
    if with_git:
        git(project, "init", "-q")
    odd = [
        b"new\nline",
        b"-dash",
        b"two  spaces",
        b"quo'te\"",
        NON_UTF8,
        "ümlaut".encode(),
        b":(glob)*",
        b"back\\slash",
    ]
    root = os.fsencode(project)
    for name in odd:
        (project / os.fsdecode(name)).write_bytes(name)
    os.mkdir(root + b"/dir-\xff")
    with open(root + b"/dir-\xff/inner", "wb"):
        pass
    os.symlink("/etc/passwd", root + b"/absolute")
    os.symlink("nowhere", root + b"/dangling")
    (tmp_path / "outside").mkdir()
    write(tmp_path, {"outside/secret": "s"})
    os.symlink("../outside", root + b"/to-directory")
    os.mkfifo(root + b"/pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.join(os.fsdecode(root), "socket"))
        source = find_source(root)
    expected = {*odd, b"dir-\xff/inner", b"absolute", b"dangling", b"to-directory"}
    assert set(source.paths) == expected
    assert list(source.paths) == sorted(source.paths)
    into = tmp_path / "into"
    into.mkdir()
    copy_source(source, os.fsencode(into))
    assert os.readlink(into / "to-directory") == "../outside"
    assert os.readlink(into / "absolute") == "/etc/passwd"
    for name in odd:
        assert (into / os.fsdecode(name)).read_bytes() == name


def test_a_tracked_file_behind_a_link_is_not_there(project: Path, tmp_path: Path) -> None:
    repository(project, {"dir/a.py": ""})
    (project / "dir/a.py").unlink()
    (project / "dir").rmdir()
    write(tmp_path, {"outside/a.py": "secret"})
    (project / "dir").symlink_to("../outside")
    assert names(find_source(project.as_posix())) == {"dir"}


def test_submodules_and_nested_repositories_go_along(project: Path, tmp_path: Path) -> None:
    repository(tmp_path / "library", {"lib.py": "", ".gitignore": "*.o\n"})
    repository(project, {"train.py": ""})
    git(project, "submodule", "-q", "add", str(tmp_path / "library"), "lib")
    git(project, "commit", "-qm", "sub")
    assert not find_source(project.as_posix()).dirty
    write(project, {"lib/x.o": "", "lib/new.py": ""})
    repository(project / "nested", {"n.py": ""})
    source = find_source(project.as_posix())
    assert names(source) == {".gitmodules", "train.py", "lib/lib.py", "lib/.gitignore", "lib/new.py", "nested/n.py"}
    assert source.dirty


def test_a_change_within_a_submodule_is_dirty(project: Path, tmp_path: Path) -> None:
    repository(tmp_path / "library", {"lib.py": ""})
    repository(project, {"train.py": ""})
    git(project, "submodule", "-q", "add", str(tmp_path / "library"), "lib")
    git(project, "commit", "-qm", "sub")
    (project / "lib/lib.py").write_text("changed")
    assert find_source(project.as_posix()).dirty


def test_a_directory_that_git_ignores_has_the_rules_of_no_repository(project: Path) -> None:
    repository(project, {".gitignore": "scratch/\n", "a.py": ""})
    write(project, {"scratch/try.py": "", "scratch/__pycache__/try.pyc": ""})
    source = find_source((project / "scratch").as_posix())
    assert (names(source), source.commit) == ({"try.py"}, None)


def test_without_git(project: Path) -> None:
    kept = ["train.py", "pkg/a.py", "pkg/data.bin", ".hidden", "build.py", "envs/cfg"]
    left = [
        *("pkg/__pycache__/a.pyc", "x.pyc", "venv/pyvenv.cfg", "venv/bin/python", "deep/v/lib", "deep/v/pyvenv.cfg"),
        *(".hg/x", ".svn/x", "node_modules/x/y", ".tox/x", ".env", ".mypy_cache/x", ".ipynb_checkpoints/x", "build/x"),
        *("p.egg-info/x", ".guild/attrs/id"),
    ]
    write(project, dict.fromkeys([*kept, *left], ""))
    (project / "empty").mkdir()
    source = find_source(project.as_posix())
    assert names(source) == set(kept)
    assert (source.commit, source.dirty) == (None, False)


def test_a_git_file_below_is_never_content(project: Path) -> None:
    write(project, {"a.py": "", "vendored/.git": "gitdir: elsewhere", "vendored/b.py": "", "other/.git/config": ""})
    assert names(find_source(project.as_posix())) == {"a.py", "vendored/b.py"}


@pytest.mark.parametrize("with_git", [True, False])
def test_guildsyncignore(project: Path, with_git: bool) -> None:
    files = {"train.py": "", "data/big.csv": "", "data/keep.csv": "", "top.bin": "", "sub/top.bin": "", "a.PT": ""}
    if with_git:
        repository(project, files)
    else:
        write(project, files)
    (project / os.fsdecode(NON_UTF8)).touch()
    ignore = b"# comment\n\n/data/*\n!/data/keep.csv\r\n/top.bin\ncaf\xe9*\n"
    (project / ".guildsyncignore").write_bytes(ignore)
    expected = {".guildsyncignore", "train.py", "data/keep.csv", "sub/top.bin", "a.PT"}
    assert names(find_source(project.as_posix())) == expected


def test_guildsyncignore_takes_back_a_default(project: Path) -> None:
    write(project, {"build/x.py": "", "dist/y.py": "", ".git-not": "", ".guildsyncignore": "!build/\n!.git\n"})
    (project / ".git").mkdir()
    (project / ".git/config").touch()
    assert names(find_source(project.as_posix())) == {".git-not", ".guildsyncignore", "build/x.py"}


def test_a_malformed_guildsyncignore(project: Path) -> None:
    write(project, {".guildsyncignore": "!\n"})
    with pytest.raises(Usage, match="guildsyncignore"):
        find_source(project.as_posix())


def test_a_home_inside_of_the_project_stays(project: Path) -> None:
    write(project, {"train.py": "", "home/runs/1/train.py": "", "homes/x": ""})
    without = [os.fsencode(project / "home"), b"/elsewhere", os.fsencode(project)]
    assert names(find_source(project.as_posix(), without=without)) == {"train.py", "homes/x"}


def test_too_much_names_the_five_biggest(project: Path) -> None:
    write(project, {f"file-{size:02}": "x" * size * 1000 for size in range(1, 20)})
    with pytest.raises(Usage) as caught:
        find_source(project.as_posix(), Limits(size=100_000))
    said = caught.value.message
    assert "190.0" in said or "0.2 MB" in said
    assert [f"file-{size:02} ({size}.0 kB)" in said for size in range(19, 13, -1)] == [True] * 5 + [False]
    assert ".guildsyncignore" in str(caught.value.hint)
    assert find_source(project.as_posix(), Limits(size=190_000)).size == 190_000


def test_a_sparse_file_above_the_limit(project: Path) -> None:
    repository(project, {"train.py": ""})
    with open(project / "weights.pt", "wb") as file:
        file.truncate(100_000_001)
    with pytest.raises(Usage, match=r"weights\.pt \(100\.0 MB\)"):
        find_source(project.as_posix())


def test_too_many_names_where_they_lie(project: Path) -> None:
    write(project, {**{f"images/{n}": "" for n in range(12)}, "train.py": "x" * 300})
    with pytest.raises(Usage, match=r"^13 files .* images/ \(12\), \./ \(1\); the biggest are train\.py \(0\.3 kB\)"):
        find_source(project.as_posix(), Limits(files=12))
    with pytest.raises(Usage, match="more than 11 files"):
        find_source(project.as_posix(), Limits(files=1))


def test_what_cannot_be_a_project(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        find_source((tmp_path / "nothing").as_posix())
    (tmp_path / "file").touch()
    with pytest.raises(NotFound):
        find_source((tmp_path / "file").as_posix())


def test_a_copy_is_as_its_source(project: Path, tmp_path: Path) -> None:
    write(project, {"pkg/sub/a.py": "a" * 3_000_000, "run.sh": "", "private": ""})
    (project / "run.sh").chmod(0o6755)
    (project / "private").chmod(0o600)
    os.utime(project / "pkg/sub/a.py", ns=(1, 1_234_567_890_123_456_789))
    (project / "link").symlink_to("run.sh")
    (project / "pkg/sub").chmod(0o550)
    os.utime(project / "pkg", ns=(5, 5_000_000_000))
    into = tmp_path / "into"
    into.mkdir(mode=0o700)
    (into / ".guild").mkdir()
    source = find_source(project.as_posix())
    copy_source(source, os.fsencode(into))
    assert {p.relative_to(into).as_posix() for p in into.rglob("*")} == {
        *("pkg", "pkg/sub", "pkg/sub/a.py", "run.sh", "private", "link", ".guild")
    }
    assert (into / "pkg/sub/a.py").read_text() == "a" * 3_000_000
    assert os.stat(into / "pkg/sub/a.py").st_mtime_ns == 1_234_567_890_123_456_789
    assert os.stat(into / "pkg").st_mtime_ns == 5_000_000_000
    modes = {name: stat.S_IMODE(os.lstat(into / name).st_mode) for name in ("run.sh", "private", "pkg/sub")}
    assert modes == {"run.sh": 0o755, "private": 0o600, "pkg/sub": 0o750}
    assert os.readlink(into / "link") == "run.sh"


def test_copies_of_one_source_have_one_digest(project: Path, tmp_path: Path) -> None:
    write(project, {"pkg/a.py": "a", "run.sh": ""})
    (project / "run.sh").chmod(0o755)
    (project / os.fsdecode(NON_UTF8)).symlink_to("run.sh")
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        copy_source(find_source(project.as_posix()), os.fsencode(tmp_path / name))
        fd = os.open(tmp_path / name, os.O_RDONLY)
        digests.add(scan(name, fd, View()).content)
        os.close(fd)
    assert len(digests) == 1


@pytest.mark.parametrize("become", ["nothing", "directory", "pipe"])
def test_a_file_that_goes_away_is_an_error_with_its_name(project: Path, tmp_path: Path, become: str) -> None:
    write(project, {"a.py": "", "gone.py": ""})
    source = find_source(project.as_posix())
    (project / "gone.py").unlink()
    if become == "directory":
        (project / "gone.py").mkdir()
    elif become == "pipe":
        os.mkfifo(project / "gone.py")
    (tmp_path / "into").mkdir()
    with pytest.raises(NotFound, match=r"gone\.py"):
        copy_source(source, os.fsencode(tmp_path / "into"))


def test_a_directory_that_becomes_a_link_is_not_followed(project: Path, tmp_path: Path) -> None:
    write(project, {"pkg/a.py": ""})
    source = find_source(project.as_posix())
    write(tmp_path, {"outside/a.py": "secret"})
    (project / "pkg/a.py").unlink()
    (project / "pkg").rmdir()
    (project / "pkg").symlink_to("../outside")
    (tmp_path / "into").mkdir()
    with pytest.raises(NotFound, match=r"pkg/a\.py"):
        copy_source(source, os.fsencode(tmp_path / "into"))
    assert not (tmp_path / "into/pkg/a.py").exists()


def test_a_copy_overwrites_nothing_and_follows_no_link(project: Path, tmp_path: Path) -> None:
    write(project, {"a.py": "new", "pkg/b.py": "new"})
    write(tmp_path, {"victim": "old", "outside/x": ""})
    into = tmp_path / "into"
    into.mkdir()
    (into / "a.py").symlink_to("../victim")
    with pytest.raises(GuildsyncError, match=r"a\.py"):
        copy_source(find_source(project.as_posix()), os.fsencode(into))
    (into / "a.py").unlink()
    (into / "pkg").symlink_to("../outside")
    with pytest.raises(GuildsyncError, match=r"pkg/b\.py"):
        copy_source(find_source(project.as_posix()), os.fsencode(into))
    assert (tmp_path / "victim").read_text() == "old"
    assert os.listdir(tmp_path / "outside") == ["x"]
