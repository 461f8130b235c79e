"""remote status: what is available, and what is wrong where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from guildsync.cli.terminal import Terminal
from guildsync.errors import Damaged, NotFound, Refused, Unreachable, Usage
from tests.cli.conftest import Cli
from tests.conftest import new_bucket
from tests.kit.servers import REGION, S3Server
from tests.kit.sshd import Client, Sshd


def configured(directory: Path, **remotes: str) -> list[str]:
    """The option that names a new configuration of these remotes."""
    file = directory / "c.yml"
    file.write_text("\n".join(["remotes:", *(f"  {name}: {keys}" for name, keys in remotes.items())]) + "\n")
    return ["--config", str(file)]


BAD = "{type: fsspec, url: 'nobody-knows://this'}"


def test_each_kind_of_place_says_that_it_is_there(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    assert cli("push", store).code == 0
    config = configured(
        tmp_path,
        disk=f"{{type: local, path: {home}}}",
        folder=f"{{type: fsspec, url: '{store}'}}",
        new=f"{{type: local, path: {tmp_path}/new, layout: store}}",
        tree=f"{{type: local, path: {tmp_path}/tree}}",
    )
    said = cli(*config, "remote", "status")
    assert (said.code, said.err) == (0, "")
    rows = [line.split() for line in said.out.splitlines()]
    assert rows == [
        ["disk", "local", str(home), "available"],
        ["folder", "fsspec", store, "available"],
        ["new", "local", f"{tmp_path}/new", "available"],
        ["tree", "local", f"{tmp_path}/tree", "available"],
    ]
    document = cli("remote", "status", "--json", *config)
    assert (document.code, document.err) == (0, "")
    assert document.json[0] == {
        "name": "disk",
        "type": "local",
        "where": str(home),
        "available": True,
        "detail": f"3 runs at {home}",
        "machine": None,
    }
    assert [row["detail"] for row in document.json[1:]] == [
        f"3 runs at {store}",
        f"no store at file://{tmp_path}/new yet",
        "no home yet",
    ]


def test_asking_writes_nothing(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    assert cli("push", store).code == 0
    config = configured(
        tmp_path, tree=f"{{type: local, path: {tmp_path}/tree}}", folder=f"{{type: fsspec, url: '{store}'}}"
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if ".guildsync" not in path.parts}
    for name in ("tree", "folder", "local"):
        assert cli(*config, "remote", "status", name).code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if ".guildsync" not in path.parts} == before


def test_one_may_be_named_in_every_way(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    config = configured(tmp_path, folder=f"{{type: fsspec, url: '{store}'}}", other=BAD)
    for argv in (
        ["remote", "status", "folder"],
        ["remote", "status", "-r", "folder"],
        ["-r", "folder", "remote", "status"],
        ["remote", "status", "folder", "-r", "folder"],
    ):
        said = cli(*config, *argv)
        assert (said.code, said.out.split()) == (0, ["folder", "fsspec", store, "available"])
    assert cli("remote", "status", store).out.split() == [store, "fsspec", store, "available"]
    assert cli("remote", "status", "local").out.split() == ["local", "local", str(home), "available"]
    assert len(cli(*config, "remote", "status", "local", "-r", "folder").out.splitlines()) == 2
    assert len(cli(*config, "remote", "status", "-r", "all").out.splitlines()) == 2


def test_a_name_that_means_nothing_is_3_before_any_is_asked(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    config = configured(tmp_path, folder=f"{{type: fsspec, url: '{store}'}}")
    said = cli(*config, "remote", "status", "-r", "folder", "foldr")
    assert (said.code, said.out) == (3, "")
    assert "did you mean 'folder'?" in said.err
    assert cli("remote", "status", "s3:").code == 2


def test_no_remotes(cli: Cli, home: Path) -> None:
    said = cli("remote", "status")
    assert (said.code, said.out) == (0, "")
    assert "no remotes are configured" in said.err
    assert cli("remote", "status", "--json").json == []


def test_of_several_one_that_is_not_available_is_a_warning(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        folder=f"{{type: fsspec, url: '{store}'}}",
        machine="{type: ec2, region: r, ami: a, instance-type: t}",
        wrong=BAD,
    )
    said = cli(*config, "remote", "status")
    assert said.code == 7
    assert [line.split()[0] for line in said.out.splitlines()] == ["folder", "machine", "wrong"]
    assert said.err.startswith("warning: machine: AWS lets nobody in without credentials")
    assert "\nwarning: wrong: " in said.err
    assert "warning: folder" not in said.err
    rows = {row["name"]: row for row in cli(*config, "remote", "status", "--json").json}
    assert {name: row["available"] for name, row in rows.items()} == {"folder": True, "machine": False, "wrong": False}
    assert (rows["machine"]["type"], rows["machine"]["where"]) == ("ec2", "ec2:r/t")
    assert rows["wrong"]["detail"] in said.out
    assert cli(*config, "remote", "status", "machine").code == 4
    assert cli(*config, "remote", "status", "machine", "-r", "wrong").code == 4  # none is there: as the first one


@pytest.mark.parametrize("error", [NotFound, Refused, Unreachable, Damaged, Usage])
def test_one_that_is_not_available_ends_as_a_command_that_needs_it(
    cli: Cli, home: Path, store: str, monkeypatch: pytest.MonkeyPatch, error: type[Unreachable]
) -> None:
    def fail(*_: object) -> None:
        raise error("it \x1b[31mfailed", "do\nthis")

    monkeypatch.setattr("guildsync.remotes._files", fail)
    said = cli("remote", "status", store)
    assert said.code == error.exit_code
    assert said.out == f"{store}  fsspec  {store}  it \\x1b[31mfailed\n"
    assert said.err == "hint: do\\nthis\n"
    said = cli("remote", "status", store, "--json")
    assert said.code == error.exit_code
    assert (said.json[0]["available"], said.json[0]["detail"]) == (False, "it \x1b[31mfailed")


def test_a_damaged_store_is_8(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    assert cli("push", store).code == 0
    for path in (tmp_path / "store/journal").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-9])
    own = str(tmp_path / "empty")
    assert cli("-H", own, "remote", "status", store).code == cli("-H", own, "check", "-r", store).code == 8


def test_what_is_wrong_is_whole_on_a_narrow_terminal(
    cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Terminal, "columns", 30)
    config = configured(tmp_path, wrong=BAD, other=BAD)
    detail = cli(*config, "remote", "status", "--json").json[0]["detail"]
    assert cli(*config, "remote", "status", "wrong").out.endswith(f"{detail}\n")
    said = cli(*config, "remote", "status")
    assert max(map(len, said.out.splitlines())) <= 30
    assert f"warning: wrong: {detail}\n" in said.err


@pytest.mark.parametrize("argv", [["remote"], ["remote", "status"]], ids=" ".join)
def test_help(cli: Cli, argv: list[str]) -> None:
    said = cli(*argv, "--help")
    assert said.code == 0
    assert said.out.startswith("Usage: guildsync remote")
    assert "--remote" in said.out


@pytest.mark.servers
def test_hosts(cli: Cli, home: Path, ssh_user: Client, ssh_host: Sshd, tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        gpu=f"{{type: ssh, host: far, guild-home: {home}}}",
        python=f"{{type: ssh, host: far, guild-home: {home}, python: no-such-python}}",
        silent="{type: ssh, host: 127.0.0.1, port: 1}",
    )
    ssh_user.add("stranger", ssh_host, known=False, UserKnownHostsFile="/dev/null")
    said = cli("remote", "status", "ssh:stranger")  # the first: later ones share the connection of another alias
    assert said.code == 4
    assert "is not a known host" in said.out
    said = cli(*config, "remote", "status", "gpu")
    assert (said.code, said.out) == (0, "gpu  ssh  ssh:far  available\n")
    assert [cli(*config, "remote", "status", name).code for name in ("python", "silent")] == [3, 5]
    said = cli(*config, "remote", "status", "--json")
    assert said.code == 7
    assert {row["name"]: row["available"] for row in said.json} == {
        "gpu": True,
        "python": False,
        "silent": False,
    }
    assert said.json[0]["detail"] == f"3 runs at {home}"


@pytest.mark.servers
def test_buckets(cli: Cli, home: Path, seaweed: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    keys = f"local-env: {{AWS_ACCESS_KEY_ID: {seaweed.access_key}, AWS_SECRET_ACCESS_KEY: {seaweed.secret_key}}}"
    wrong = "local-env: {AWS_ACCESS_KEY_ID: x, AWS_SECRET_ACCESS_KEY: y}"
    bucket, end = new_bucket(seaweed), f"region: {REGION}, endpoint-url: '{seaweed.endpoint}'"
    config = configured(
        tmp_path,
        bucket=f"{{type: s3, bucket: {bucket}, {end}, {keys}}}",
        forbidden=f"{{type: s3, bucket: {bucket}, {end}, {wrong}}}",
        missing=f"{{type: s3, bucket: {bucket}-not, {end}, {keys}}}",
        silent=f"{{type: s3, bucket: {bucket}, region: {REGION}, endpoint-url: 'http://127.0.0.1:1', {keys}}}",
    )
    codes = {name: cli(*config, "remote", "status", name).code for name in ("bucket", "forbidden", "missing", "silent")}
    assert codes == {"bucket": 0, "forbidden": 4, "missing": 3, "silent": 5}
    assert not seaweed.keys(bucket)
