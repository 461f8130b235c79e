"""What may be configured: every key, what its value may be, and its default."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

POLL, SHORTEST_POLL = 5.0, 0.5
"""Seconds between two looks at a store that is watched: where nothing is said, and at least."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|w)?")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


# What a value may be: each takes a plain YAML value and returns the field's, or raises ValueError with what it must be.


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text (put it in quotes)")
    return value


def parse_word(value: Any) -> str:
    """Text that may stand on a command line: it cannot be taken for an option or for two words."""
    if not _text(value) or not value.isprintable() or " " in value or value.startswith("-"):
        raise ValueError("must not be empty, begin with '-', or hold white space or control characters")
    return str(value)


def is_url(value: str) -> bool:
    return _URL.match(value) is not None


def parse_url(value: Any) -> str:
    """Text that begins like a URL."""
    if not is_url(_text(value)) or re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError("must be a URL such as gs://bucket/path")
    return str(value)


def _path(value: Any) -> str:
    return os.path.expanduser(_text(value))


def _root(value: Any) -> str:
    return _text(value).strip("/")


def _integer(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    if type(value) is not int or value < 0:
        raise ValueError("must be a whole number")
    return value


def parse_port(value: Any) -> int:
    """The number of a TCP port."""
    if not 1 <= (found := _integer(value)) <= 65535:
        raise ValueError("must be a port between 1 and 65535")
    return found


def _boolean(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def duration(value: Any, unit: float = 1.0) -> float:
    """Seconds of `24h`, `5s`, `10m`, `7d`, or of a plain number of `unit` seconds; raises ValueError for all else."""
    match = _DURATION.fullmatch(str(value)) if isinstance(value, (str, int, float)) else None
    seconds = float(match[1]) * (_UNITS[match[2]] if match[2] else unit) if match else math.inf
    if math.isinf(seconds):
        raise ValueError("must be a duration such as 30s, 10m, 24h or 7d")
    return seconds


def _period(value: Any) -> float:
    if (found := duration(value)) < SHORTEST_POLL:
        raise ValueError(f"must be {SHORTEST_POLL:g}s or more: each time costs a request")
    return found


def _minutes(value: Any) -> float:
    return duration(value, 60.0)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a mapping")
    return value


def _environment(value: Any) -> dict[str, str]:
    for name, item in _mapping(value).items():
        if not _VARIABLE_NAME.fullmatch(name) or isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise ValueError(f"must map names of variables to text, which {name!r} does not (put it in quotes)")
    return {name: str(item) for name, item in value.items()}


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise ValueError("must be text or a list of texts")
    return tuple(values)


def _one_of(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}" + nearest(str(value), words))
        return str(value)

    return parse


def _is(parse: Callable[[Any], Any], *others: str) -> Mapping[str, Any]:
    """Metadata of a field that is a key: how it is read, and its other names."""
    return {"parse": parse, "others": others}


# The schema: a field is a key, with `-` for `_`.


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """What the configuration says of a remote, whatever its type. Durations are seconds, paths have `~` expanded.
    `poll`: between two looks of a mirror at a store."""

    type: ClassVar[str]
    name: str
    description: str | None = field(default=None, metadata=_is(_text))
    keep_env: bool = field(default=False, metadata=_is(_boolean))
    poll: float = field(default=POLL, metadata=_is(_period))


_LAYOUT = _is(_one_of("tree", "store"))


@dataclass(frozen=True, kw_only=True)
class LocalRemote(RemoteConfig):
    """Another Guild home on this machine."""

    type: ClassVar[str] = "local"
    path: str = field(metadata=_is(_path))
    layout: str = field(default="tree", metadata=_LAYOUT)


@dataclass(frozen=True, kw_only=True)
class S3Remote(RemoteConfig):
    """A Store in a bucket; `root` has no slash at its ends."""

    type: ClassVar[str] = "s3"
    bucket: str = field(metadata=_is(parse_word))
    root: str = field(default="", metadata=_is(_root))
    region: str | None = field(default=None, metadata=_is(_text))
    profile: str | None = field(default=None, metadata=_is(_text))
    endpoint_url: str | None = field(default=None, metadata=_is(parse_url))
    storage_class: str | None = field(default=None, metadata=_is(_text))
    sse: str | None = field(default=None, metadata=_is(_text))
    grace: float = field(default=86400.0, metadata=_is(duration))
    engine: str = field(default="auto", metadata=_is(_one_of("auto", "obstore", "s3fs")))
    local_env: Mapping[str, str] = field(default_factory=dict, metadata=_is(_environment))


@dataclass(frozen=True, kw_only=True)
class FsspecRemote(RemoteConfig):
    """A Store on any fsspec filesystem."""

    type: ClassVar[str] = "fsspec"
    url: str = field(metadata=_is(parse_url))
    options: Mapping[str, Any] = field(default_factory=dict, metadata=_is(_mapping))


@dataclass(frozen=True, kw_only=True)
class HostRemote(RemoteConfig):
    """What is said of a host that OpenSSH reaches. Paths are the host's own and not expanded, but `private_key`."""

    user: str | None = field(default=None, metadata=_is(parse_word))
    private_key: str | None = field(default=None, metadata=_is(_path))
    proxy: str | None = field(default=None, metadata=_is(parse_word))
    connect_timeout: float = field(default=10.0, metadata=_is(duration, "connect-time"))
    guild_home: str = field(default="~/.guild", metadata=_is(_text))
    python: str = field(default="python3", metadata=_is(_text))
    venv_path: str | None = field(default=None, metadata=_is(_text, "guild-env"))
    conda_env: str | None = field(default=None, metadata=_is(_text))
    venv_activate: str | None = field(default=None, metadata=_is(_text))
    init: str | None = field(default=None, metadata=_is(_text))
    env: Mapping[str, str] = field(default_factory=dict, metadata=_is(_environment))
    layout: str = field(default="tree", metadata=_LAYOUT)


@dataclass(frozen=True, kw_only=True)
class SshRemote(HostRemote):
    """A Guild home on a host that OpenSSH reaches; `host` may be an alias of its configuration."""

    type: ClassVar[str] = "ssh"
    host: str = field(metadata=_is(parse_word))
    port: int | None = field(default=None, metadata=_is(parse_port))


@dataclass(frozen=True, kw_only=True)
class Ec2Remote(HostRemote):
    """A host that is a machine of ours; `root_device_size` is GiB, `init` runs once at its first boot."""

    type: ClassVar[str] = "ec2"
    region: str = field(metadata=_is(_text))
    ami: str = field(metadata=_is(_text))
    instance_type: str = field(metadata=_is(_text))
    public_key: str | None = field(default=None, metadata=_is(_path))
    key_name: str | None = field(default=None, metadata=_is(_text))
    root_device_size: int | None = field(default=None, metadata=_is(_integer))
    init_timeout: float = field(default=600.0, metadata=_is(duration))
    security_group: str | None = field(default=None, metadata=_is(_text))
    subnet: str | None = field(default=None, metadata=_is(_text))
    profile: str | None = field(default=None, metadata=_is(_text))
    stop_after: float | None = field(default=None, metadata=_is(_minutes))


TYPES: Mapping[str, type[RemoteConfig]] = {
    kind.type: kind for kind in (LocalRemote, SshRemote, Ec2Remote, S3Remote, FsspecRemote)
}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a project may choose: which paths of a run count, and flags for its runs."""

    include: tuple[str, ...] = field(default=(), metadata=_is(_texts))
    exclude: tuple[str, ...] = field(default=(), metadata=_is(_texts))
    flags: Mapping[str, Any] = field(default_factory=dict, metadata=_is(_mapping))


KEYS: Mapping[type, Mapping[str, dataclasses.Field[Any]]] = {
    cls: {f.name.replace("_", "-"): f for f in dataclasses.fields(cls) if f.metadata}
    for cls in (*TYPES.values(), Choices)
}
"""The keys of each class by name, as they are written in a file."""
ALIASES = {other: key for keys in KEYS.values() for key, f in keys.items() for other in f.metadata["others"]}
"""Other names of keys."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A question to append to an error: the one of `names` that was probably meant; empty where none is near."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
