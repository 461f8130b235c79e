"""What configuration files mean, and what is said about their mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync import config
from guildsync.config import (
    Config,
    Ec2Remote,
    FsspecRemote,
    LocalRemote,
    S3Remote,
    SshRemote,
    duration,
    find_home,
    inline,
    load,
)
from guildsync.errors import NotFound, Usage

EXAMPLE = Path(__file__).parents[1] / "config.example.yml"

Load = Callable[..., Config]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def load_text(home: Path) -> Load:
    """Loads texts as the user's, Guild's and the project's file."""

    def loaded(user: str = "", guild: str = "", project: str = "", **environ: str) -> Config:
        (home / ".guild").mkdir(exist_ok=True)
        (home / "proj" / "deep" / "er").mkdir(parents=True, exist_ok=True)
        (home / "user.yml").write_text(user)
        (home / ".guild" / "config.yml").write_text(guild)
        (home / "proj" / "guildsync.yml").write_text(project)
        return load("/home/.guild", str(home / "user.yml"), str(home / "proj/deep/er"), environ)

    return loaded


def bucket(extra: str = "") -> str:
    return "remotes:\n  b:\n    type: s3\n    bucket: my\n" + extra


# the example


def test_the_example_loads_whole(home: Path) -> None:
    found = load("/h", str(EXAMPLE), str(home), {})
    assert found.warnings == ()
    assert list(found.remotes) == ["remote-gpu", "remote-gpu2", "trainer", "bucket", "archive", "scratch"]
    gpu = found.remote("remote-gpu")
    assert isinstance(gpu, SshRemote)
    assert (gpu.port, gpu.connect_timeout, gpu.private_key) == (22, 10.0, f"{home}/.ssh/gpu001.pem")
    assert (gpu.guild_home, gpu.venv_path, gpu.env) == ("~/.guild", "~/envs/train", {"NCCL_DEBUG": "INFO"})
    other = found.remote("remote-gpu2")
    assert isinstance(other, SshRemote)
    assert (other.host, other.user, other.name) == ("gpu002.mydomain.com", "ubuntu", "remote-gpu2")
    trainer = found.remote("trainer")
    assert isinstance(trainer, Ec2Remote)
    assert (trainer.stop_after, trainer.init_timeout, trainer.root_device_size) == (3600.0, 600.0, 100)
    s3 = found.remote("bucket")
    assert isinstance(s3, S3Remote)
    assert (s3.grace, s3.poll, s3.endpoint_url) == (86400.0, 5.0, "http://127.0.0.1:9000")
    assert found.remote("archive") == FsspecRemote(
        name="archive", url="gs://team-archive/runs", options={"project": "research"}
    )
    assert found.remote("scratch") == LocalRemote(name="scratch", path="/mnt/scratch/guild")
    assert found.choices == config.Choices(exclude=("*.tmp",), flags={"epochs": 10})


def test_the_example_shows_every_key_with_a_comment_or_a_plain_meaning() -> None:
    text = EXAMPLE.read_text()
    shown = set(re.findall(r"^ *([a-z0-9-]+):", text, re.M))
    schema = {key for keys in config._KEYS.values() for key in keys}
    assert schema | {"type", "extends", "remotes"} <= shown
    kinds = dict(re.findall(r"^  ([a-z0-9-]+):\n    type: ([a-z0-9]+)", text, re.M))
    assert set(kinds.values()) == set(config.TYPES)
    own = {kind: set(keys) for kind, keys in config._KEYS.items()}
    ssh = own[SshRemote]
    for block in re.split(r"\n(?=  [a-z0-9-]+:\n)", text)[1:]:
        kind = re.search(r"    type: (\S+)", block)
        if kind:
            here = set(re.findall(r"^    ([a-z0-9-]+):", block, re.M))
            wanted = own[config.TYPES[kind[1]]] - (ssh if kind[1] == "ec2" else set())
            assert wanted - {"description", "keep-env", "poll"} <= here


# layers


def test_later_layers_win_key_by_key(load_text: Load, home: Path) -> None:
    guild = "remotes:\n  g:\n    type: ssh\n    host: one\n    user: me\n  only-guild:\n    type: s3\n    bucket: x\n"
    user = "remotes:\n  g:\n    host: two\nexclude: '*.a'\ninclude: ['*.i']\nflags: {lr: 1}\n"
    found = load_text(user, guild, "exclude: ['*.b', '*.c']\n")
    assert found.remote("g") == SshRemote(name="g", host="two", user="me")
    assert found.remote("only-guild") == S3Remote(name="only-guild", bucket="x")
    assert found.choices == config.Choices(include=("*.i",), exclude=("*.b", "*.c"), flags={"lr": 1})
    assert found.sources["g", "host"] == f"{home}/user.yml:3"
    assert found.sources["g", "user"] == f"{home}/.guild/config.yml:5"
    assert found.sources["", "exclude"] == f"{home}/proj/guildsync.yml:1"
    names = [os.path.relpath(path, home) for path in found.files]
    assert names == [".guild/config.yml", "user.yml", "proj/guildsync.yml"]
    assert load_text(user, guild, "exclude: x\n", GUILDSYNC_EXCLUDE="p:q").choices.exclude == ("p", "q")


def test_a_remote_that_changes_its_type_starts_anew(load_text: Load) -> None:
    guild = "remotes:\n  g:\n    type: ssh\n    host: one\n"
    found = load_text("remotes: {g: {type: s3, bucket: b}}", guild)
    assert found.remote("g") == S3Remote(name="g", bucket="b")
    assert found.warnings == ()  # nothing of the ssh remote is left to warn of


def test_where_the_users_file_lies(home: Path) -> None:
    xdg = home / "xdg" / "guildsync"
    xdg.mkdir(parents=True)
    (xdg / "config.yml").write_text(bucket())
    (home / "other.yml").write_text("remotes: {other: {type: s3, bucket: x}}")
    environ = {"XDG_CONFIG_HOME": str(home / "xdg")}
    assert list(load("/h", None, str(home), environ).remotes) == ["b"]
    assert list(load("/h", None, str(home), {}).remotes) == []
    environ["GUILDSYNC_CONFIG"] = "~/other.yml"
    assert list(load("/h", None, str(home), environ).remotes) == ["other"]
    assert list(load("/h", str(xdg / "config.yml"), str(home), environ).remotes) == ["b"]
    for explicit, variables in ((str(home / "no.yml"), {}), (None, {"GUILDSYNC_CONFIG": "no.yml"})):
        with pytest.raises(Usage, match=r"no configuration file .*no\.yml"):
            load("/h", explicit, str(home), variables)


@pytest.mark.parametrize("text", ["remotes: {evil: {type: ssh, host: evil}}", "init: rm", "exclude: x\nproxy: evil"])
def test_a_project_may_only_choose(load_text: Load, text: str) -> None:
    with pytest.raises(Usage, match=r"guildsync\.yml:\d: a project may only choose include, exclude, flags"):
        load_text("", "", text)


def test_guilds_own_file_is_read_leniently(load_text: Load) -> None:
    guild = """
diff: {command: meld}
remotes:
  gpu:
    type: ssh
    host: h
    connect-time: 7
    use-prerelease: true
    init: echo ${NOT_OURS}
  azure: {type: azure-blob, container: c}
  broken: {type: s3, region: x}
  text: no mapping
  local: {type: ssh, host: h}
  ported: {type: ssh, host: h, port: many}
"""
    found = load_text("", guild)
    assert found.remotes == {"gpu": SshRemote(name="gpu", host="h", connect_timeout=7.0, init="echo ${NOT_OURS}")}
    text = "\n".join(found.warnings)
    for word in ("config.yml:8: unknown key 'use-prerelease'", "azure-blob", "no `bucket`", "'local'", "config.yml:14"):
        assert word in text
    assert len(found.warnings) == 6
    assert {name for name, *_ in found.masked()} == {"gpu"}
    assert len(load_text("", "remotes: [").warnings) == 1
    assert len(load_text("", "remotes: 3").warnings) == 1
    assert load_text("", "- a\n").remotes == {}


# mistakes


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            bucket("    regoin: x\n"),
            "user.yml:5: unknown key 'regoin' of s3 remote 'b'; did you mean 'region'?",
            "grace",
        ),
        (bucket("    host: x\n"), "user.yml:5: unknown key 'host' of s3 remote 'b'", "bucket"),
        (bucket("    grace: soon\n"), "user.yml:5: `grace` of s3 remote 'b' must be a duration", "soon"),
        (bucket("    region: 3\n"), "user.yml:5: `region` of s3 remote 'b' must be text", "3"),
        (bucket("    engine: obstor\n"), "one of auto, obstore, s3fs; did you mean 'obstore'?", "obstor"),
        (bucket("    keep-env: maybe\n"), "must be true or false", "maybe"),
        (bucket("    local-env: x\n"), "must be a mapping", "x"),
        (bucket("    local-env: {A: true}\n"), "'A' does not", ""),
        (bucket("    local-env: {A-B: x}\n"), "'A-B' does not", ""),
        (bucket("    endpoint-url: localhost\n"), "must be a URL", "localhost"),
        (bucket("    region: ${NOPE}\n"), "user.yml:5: the variable NOPE is not set", "${NOPE:-default}"),
        (bucket("    region: ${1}\n"), "user.yml:5: a ${", "$${"),
        (bucket("    region: a\n    region: b\n"), "user.yml:6: the key 'region' stands twice", ""),
        (bucket("    storage_class: a\n    storage-class: b\n"), "user.yml:6: `storage-class` stands twice", ""),
        (bucket("    region: 2024-99-99\n"), "user.yml:5: a value that is not timestamp", "quotes"),
        (bucket("    region: !!python/name:os.system x\n"), "user.yml:5", ""),
        (bucket("    [a]: x\n"), "user.yml:5: a key must be text", ""),
        (bucket("    : : -\n"), "user.yml:5", ""),
        ("remotes:\n  b: {type: S3}", "user.yml:2: remote 'b' has an unknown type 'S3'", "ssh, ec2, s3, fsspec"),
        ("remotes:\n  b: {type: [s3]}", "user.yml:2: remote 'b' has an unknown type", ""),
        ("remotes:\n  b: {type: sssh}", "did you mean 'ssh'?", ""),
        ("remotes:\n  b: {bucket: x}", "user.yml:2: remote 'b' has no type", "s3"),
        ("remotes:\n  b:\n", "user.yml:2: remote 'b' has no type", "s3"),
        ("remotes:\n  b: x", "user.yml:2: remote 'b' must be a mapping", ""),
        ("remotes:\n  b: {type: s3}", "user.yml:2: remote 'b' has no `bucket`", ""),
        ("remotes:\n  b: {type: s3, bucket: -x}", "must not be empty, begin with '-'", ""),
        ("remotes:\n  b: {type: ssh, host: '-oProxyCommand=x'}", "`host` of ssh remote 'b' must not", ""),
        ("remotes:\n  b: {type: ssh, host: h, port: 70000}", "between 1 and 65535", ""),
        ("remotes:\n  b: {type: ssh, host: h, port: true}", "whole number", ""),
        ("remotes:\n  local: {type: s3, bucket: b}", "user.yml:2: a remote cannot have the name 'local'", ""),
        ("remotes:\n  all: {type: s3, bucket: b}", "cannot have the name 'all'", ""),
        ("remotes:\n  s3:x: {type: s3, bucket: b}", "cannot have the name 's3:x'", ""),
        ("remotes:\n  a: {extends: b}\n  b: {extends: a}", "extends itself", "a -> b -> a"),
        ("remotes:\n  a: {extends: a}", "extends itself", "a -> a"),
        ("remotes:\n  a: {extends: nothing}\n", "user.yml:2: there is no remote 'nothing' to extend", ""),
        ("remotes:\n  a: {extends: [b]}\n", "there is no remote ['b'] to extend", ""),
        ("remote: {}", "user.yml:1: unknown key 'remote'; did you mean 'remotes'?", "include"),
        ("remotes: 3", "user.yml:1: `remotes` must be a mapping", ""),
        ("include: 3", "user.yml:1: `include` must be text or a list", ""),
        ("- a", "user.yml:1: must be a mapping", ""),
        ("a: [", "user.yml:2: not YAML", ""),
        ("a: b\0", "not YAML", ""),
        ("#" * (1 << 20) + "##", "larger than", ""),
        ("a: " + "[" * 200_000, "nested too deeply", ""),
        ("a: &a [*a]", "user.yml:1: too many values", ""),
        ("a: &a [x]\nb: [" + "*a," * 200 + "]", "too many aliases", ""),
        (
            "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 8)),
            "too many values",
            "",
        ),
    ],
)
def test_mistakes_name_file_line_and_what_is_valid(load_text: Load, text: str, message: str, hint: str) -> None:
    with pytest.raises(Usage) as caught:
        load_text(text)
    assert message in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_odd_bytes_are_a_usage_error(home: Path) -> None:
    (home / "user.yml").write_bytes(b"a: \xff\xfe\xff")
    with pytest.raises(Usage, match="not YAML"):
        load("/h", str(home / "user.yml"), str(home), {})


# values


def test_variables(load_text: Load) -> None:
    text = bucket(
        "    region: ${A}-${B:-b}\n    root: ${EMPTY:-x}${EMPTY}\n    description: $${A} $A\n"
        "    grace: ${N}\n    local-env: {X: '${A}'}\n"
    )
    assert load_text(text, A="${B}", EMPTY="", N="7").remote("b") == S3Remote(
        name="b", bucket="my", region="${B}-b", root="x", description="${A} $A", grace=7.0, local_env={"X": "${B}"}
    )
    ported = load_text("remotes: {h: {type: ssh, host: h, port: '${P}', keep-env: '${K}'}}", P="2222", K="true")
    assert ported.remote("h") == SshRemote(name="h", host="h", port=2222, keep_env=True)


def test_spellings_of_keys_and_values(load_text: Load) -> None:
    text = "remotes:\n  h: {type: ssh, host: h, connect_time: 1m, guild_env: ~/e, port: null, private-key: ~/k}\n"
    found = load_text(text + "  s: {type: s3, bucket: b, root: /a/b/, poll: 0.5}\n")
    key = os.path.expanduser("~/k")
    assert found.remote("h") == SshRemote(name="h", host="h", connect_timeout=60.0, venv_path="~/e", private_key=key)
    assert found.remote("s") == S3Remote(name="s", bucket="b", root="a/b", poll=0.5)


def test_extends_is_transitive(load_text: Load) -> None:
    text = "remotes:\n  a: {extends: b, user: ua}\n  b: {extends: c, port: 2, user: ub}\n  c: {type: ssh, host: hc}\n"
    assert load_text(text).remote("a") == SshRemote(name="a", host="hc", port=2, user="ua")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("24h", 86400),
        ("5s", 5),
        ("10m", 600),
        ("7d", 604800),
        ("1.5h", 5400),
        ("250ms", 0.25),
        (7, 7),
        (0.5, 0.5),
        (0, 0),
    ],
)
def test_durations(value: Any, seconds: float) -> None:
    assert duration(value) == seconds


@pytest.mark.parametrize(
    "value", ["", "h", "-5s", -5, "5 parsecs", "nan", float("nan"), float("inf"), True, None, [1], "٣s"]
)
def test_what_is_no_duration(value: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(value)


# remotes by name and inline


@pytest.mark.parametrize(
    ("spec", "remote"),
    [
        ("ssh:host", SshRemote(name="ssh:host", host="host")),
        ("ssh:me@host:2222", SshRemote(name="ssh:me@host:2222", host="host", user="me", port=2222)),
        ("ssh:me@[::1]:22", SshRemote(name="ssh:me@[::1]:22", host="::1", user="me", port=22)),
        ("s3:bucket", S3Remote(name="s3:bucket", bucket="bucket")),
        ("s3:bucket/a/b/", S3Remote(name="s3:bucket/a/b/", bucket="bucket", root="a/b")),
        ("s3://bucket/a", S3Remote(name="s3://bucket/a", bucket="bucket", root="a")),
        ("file:///tmp/my runs", FsspecRemote(name="file:///tmp/my runs", url="file:///tmp/my runs")),
        ("memory://x", FsspecRemote(name="memory://x", url="memory://x")),
        ("gpu", None),
        ("", None),
        ("/tmp/x", None),
        ("gs:bucket", None),
    ],
)
def test_inline(spec: str, remote: Any) -> None:
    assert inline(spec) == remote


@pytest.mark.parametrize(
    "spec",
    [
        "ssh:",
        "ssh:-oProxyCommand=x",
        "ssh:-l@host",
        "ssh:me@-host",
        "ssh:@host",
        "ssh:ho st",
        "ssh:host\n",
        "ssh:host:",
        "ssh:host:0",
        "ssh:host:x",
        "ssh:host:22:22",
        "ssh:a@b@c",
        "ssh:host\u2028",
        "s3:",
        "s3:/root",
        "s3:-b",
        "s3:b\x1b",
        "s3://",
        "s3:b/ro\not",
        "memory://a\x00b",
    ],
)
def test_inline_remotes_that_are_refused(spec: str) -> None:
    with pytest.raises(Usage, match="cannot be understood"):
        inline(spec)


@given(st.text().map(lambda text: "ssh:" + text))
def test_no_inline_host_can_be_an_option_or_two_words(spec: str) -> None:
    try:
        remote = inline(spec)
    except Usage:
        return
    assert isinstance(remote, SshRemote)
    for word in (remote.host, remote.user or "x"):
        assert word.split() == [word]
        assert word.isprintable()
        assert not word.startswith("-")


def test_names(load_text: Load) -> None:
    found = load_text(bucket() + "  trainer: {type: s3, bucket: t}\n")
    assert found.remote("local") == LocalRemote(name="local", path="/home/.guild")
    assert found.remote("s3:x") == S3Remote(name="s3:x", bucket="x")
    with pytest.raises(NotFound, match=r"no remote 'trainr'; did you mean 'trainer'\?") as caught:
        found.remote("trainr")
    assert caught.value.hint == "configured remotes: b, trainer"
    with pytest.raises(NotFound, match="no remote 'x'"):
        Config("/h", {}).remote("x")


def test_masked(load_text: Load, home: Path) -> None:
    text = bucket("    local-env: {TOKEN: secret}\n")
    text += "  f: {type: fsspec, url: 'ftp://me:secret@host/x', options: {key: secret}}\nflags: {lr: 1}\n"
    rows = list(load_text(text).masked())
    assert "secret" not in repr(rows)
    assert ("b", "local-env", {"TOKEN": "***"}, f"{home}/user.yml:5") in rows
    assert ("f", "url", "ftp://***@host/x", f"{home}/user.yml:6") in rows
    assert ("", "flags", {"lr": 1}, f"{home}/user.yml:7") in rows
    assert len(rows) == 5


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/u")
    both = {"GUILDSYNC_HOME": "/sync", "GUILD_HOME": "~/guild"}
    assert find_home("/opt", both) == "/opt"
    assert find_home(None, both) == "/sync"
    assert find_home(None, {**both, "GUILDSYNC_HOME": ""}) == "/u/guild"
    assert find_home(None, {}) == "/u/.guild"
    assert find_home("here", {}) == os.path.abspath("here")


def test_without_files_yaml_is_not_imported(home: Path) -> None:
    code = (
        f"import sys, guildsync.config as c; c.load('/h', None, {str(home)!r}, {{}}); assert 'yaml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HOME": str(home)})
