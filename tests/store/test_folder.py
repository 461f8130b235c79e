"""A home far away as an fsspec filesystem: what can be seen of it, and what cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guildsync import api
from guildsync.errors import Damaged, GuildsyncError, Refused
from guildsync.store.folder import FolderFileSystem
from guildsync.tree.folder import HomeFolder
from guildsync.tree.home import Home
from tests.kit.trees import MIB, noise, run_ids, write_run

(RUN,) = run_ids(1)
DATA = noise(1, 3 * MIB + 17)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "guild"
    write_run(home, RUN, {"model.pt": DATA, "logs/a": b"a", "logs/[b]*": b"b", os.fsdecode(b"\xff\xfe"): b"c"})
    (home / "runs" / RUN / "out").symlink_to("/etc")
    (home / ".guildsync").mkdir()
    return home


@pytest.fixture(params=["near", pytest.param("far", marks=pytest.mark.servers)])
def fs(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> FolderFileSystem:
    if request.param == "near":
        return FolderFileSystem(lambda: HomeFolder(Home(str(home))))
    request.getfixturevalue("ssh_user")
    file = tmp_path / "guildsync.yml"
    file.write_text(f"remotes:\n  gpu: {{type: ssh, host: far, guild-home: {home}}}\n")
    fs: FolderFileSystem = api.open_context(str(tmp_path / "here"), str(file)).remote("gpu").fs
    return fs


def test_what_lies_there(fs: FolderFileSystem, home: Path, request: pytest.FixtureRequest) -> None:
    assert [name for name in fs.ls("", detail=False) if name != "trash"] == ["runs"]
    assert fs.ls("runs", detail=False) == [f"runs/{RUN}"]
    run = f"runs/{RUN}"
    rows = {row["name"].removeprefix(f"{run}/"): row for row in fs.ls(run)}
    assert rows["model.pt"] == {**rows["model.pt"], "type": "file", "size": len(DATA)}
    assert (rows["logs"]["type"], rows["out"]["type"]) == ("directory", "link")
    assert os.fsdecode(b"\xff\xfe") in rows
    assert fs.cat_file(f"{run}/model.pt") == DATA
    assert fs.cat_file(f"{run}/model.pt", MIB - 1, 2 * MIB + 5) == DATA[MIB - 1 : 2 * MIB + 5]
    assert fs.cat_file(f"{run}/model.pt", -10) == DATA[-10:]
    assert fs.cat_file(f"{run}/logs/[b]*") == b"b"
    assert sorted(fs.find(f"{run}/logs")) == [f"{run}/logs/[b]*", f"{run}/logs/a"]
    with fs.open(f"{run}/model.pt") as file:
        file.seek(MIB)
        assert file.read(10) == DATA[MIB : MIB + 10]
    assert fs.exists(f"{run}/logs/a")
    assert not fs.exists(f"{run}/logs/z")


@pytest.mark.parametrize("path", ["../x", "runs/../../etc", "runs/..", "a//b", "\0"])
def test_nothing_outside_is_seen(fs: FolderFileSystem, path: str) -> None:
    with pytest.raises((Damaged, FileNotFoundError, Refused)):
        fs.cat_file(path)
    with pytest.raises((Damaged, FileNotFoundError, Refused)):
        fs.ls(path)


def test_no_link_is_followed_and_ours_is_not_shown(fs: FolderFileSystem, home: Path) -> None:
    for path in (f"runs/{RUN}/out/passwd", ".guildsync/identity"):
        with pytest.raises((GuildsyncError, OSError)):
            fs.cat_file(path)
    with pytest.raises(GuildsyncError):
        fs.ls(f"runs/{RUN}/out/.")
    with pytest.raises(PermissionError):
        fs.open(f"runs/{RUN}/new", "wb")


def test_runs_may_lie_on_another_disk(home: Path, tmp_path: Path) -> None:
    (home / "runs").rename(tmp_path / "disk")
    (home / "runs").symlink_to(tmp_path / "disk")
    fs = FolderFileSystem(lambda: HomeFolder(Home(str(home))))
    assert fs.info("runs")["type"] == "directory"
    assert fs.cat_file(f"runs/{RUN}/logs/a") == b"a"
