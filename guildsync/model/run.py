"""A run: its id, status, summary and metadata, and their JSON."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, NewType, Optional, Tuple

from guildsync.errors import Damaged
from guildsync.model.manifest import Digest, canonical

RunId = NewType("RunId", str)
"""32 lower-case hex digits."""

_RUN_ID = re.compile(r"[0-9a-f]{32}\Z")

RUNNING = "running"
COMPLETED = "completed"
ERROR = "error"
TERMINATED = "terminated"
PENDING = "pending"
STAGED = "staged"
INCOMPLETE = "incomplete"
LOST = "lost"
STATUSES = (RUNNING, COMPLETED, ERROR, TERMINATED, PENDING, STAGED, INCOMPLETE, LOST)


def is_run_id(value: str) -> bool:
    return _RUN_ID.match(value) is not None


def checked_run_id(value: object) -> RunId:
    """`value` as a RunId; raises Damaged when it is not one."""
    if not isinstance(value, str) or not is_run_id(value):
        raise Damaged(f"not a run id: {str(value)[:80]!r}")
    return RunId(value)


@dataclass(frozen=True)
class Comment:
    """A remark on a run. `time` is microseconds since the epoch."""

    body: str
    time: Optional[int] = None
    user: Optional[str] = None
    host: Optional[str] = None

    @property
    def id(self) -> str:
        """The same comment has the same id wherever it lies: Guild keeps none."""
        return hashlib.sha256(canonical([self.body, self.time, self.user, self.host])).hexdigest()[:32]

    def to_json(self) -> Dict[str, Any]:
        return {"body": self.body, "time": self.time, "user": self.user, "host": self.host}

    @classmethod
    def from_json(cls, value: Any) -> Comment:
        if not isinstance(value, dict) or not isinstance(value.get("body"), str):
            raise Damaged("a comment is malformed")
        time, user, host = value.get("time"), value.get("user"), value.get("host")
        return cls(
            value["body"],
            time if type(time) is int else None,
            user if isinstance(user, str) else None,
            host if isinstance(host, str) else None,
        )


@dataclass(frozen=True)
class Metadata:
    """What people write on a run; it travels without the run's bytes."""

    label: Optional[str] = None
    tags: FrozenSet[str] = frozenset()
    comments: Tuple[Comment, ...] = ()
    marked: bool = False

    def fields(self) -> Dict[str, Any]:
        """The single values that edits set (`label`, `marked`, `tag:<t>`, `comment:<id>`), without those at rest."""
        out: Dict[str, Any] = {}
        if self.label is not None:
            out["label"] = self.label
        if self.marked:
            out["marked"] = True
        for tag in self.tags:
            out["tag:" + tag] = True
        for comment in self.comments:
            out["comment:" + comment.id] = comment.to_json()
        return out

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Metadata:
        """The inverse of `fields`; unknown fields and empty values are passed over."""
        label = fields.get("label")
        tags = frozenset(name[4:] for name, value in fields.items() if name.startswith("tag:") and value)
        comments = [Comment.from_json(v) for name, v in fields.items() if name.startswith("comment:") and v]
        return cls(
            label if isinstance(label, str) else None,
            tags,
            tuple(sorted(comments, key=lambda comment: (comment.time or 0, comment.id))),
            bool(fields.get("marked")),
        )


NO_METADATA = Metadata()


Scalars = Mapping[str, Mapping[str, Any]]
"""By tag: first, last, min, max (each with the step it is of, as `first_step`), avg and count."""


@dataclass(frozen=True)
class Summary:
    """What listings and comparisons need of a run without any of its objects; times are microseconds."""

    operation: str = ""
    status: str = ERROR
    started: Optional[int] = None
    stopped: Optional[int] = None
    exit_status: Optional[int] = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    scalars: Scalars = field(default_factory=dict)
    command: Tuple[str, ...] = ()
    source: Optional[Digest] = None
    size: Optional[int] = None
    files: Optional[int] = None

    def to_json(self) -> Dict[str, Any]:
        return {
            "operation": self.operation,
            "status": self.status,
            "started": self.started,
            "stopped": self.stopped,
            "exit_status": self.exit_status,
            "flags": plain(self.flags),
            "scalars": plain(self.scalars),
            "command": list(self.command),
            "source": self.source,
            "size": self.size,
            "files": self.files,
        }

    @classmethod
    def from_json(cls, value: Any) -> Summary:
        """Takes what it understands of `value`: a summary is for reading, never for decisions about bytes."""
        if not isinstance(value, dict):
            raise Damaged("a summary is malformed")

        def integer(name: str) -> Optional[int]:
            found = value.get(name)
            return found if type(found) is int else None

        status, operation, source = value.get("status"), value.get("operation"), value.get("source")
        flags, scalars, command = value.get("flags"), value.get("scalars"), value.get("command")
        return cls(
            operation if isinstance(operation, str) else "",
            status if status in STATUSES else ERROR,
            integer("started"),
            integer("stopped"),
            integer("exit_status"),
            flags if isinstance(flags, dict) else {},
            scalars if isinstance(scalars, dict) else {},
            tuple(str(word) for word in command) if isinstance(command, list) else (),
            Digest(source) if isinstance(source, str) else None,
            integer("size"),
            integer("files"),
        )


@dataclass(frozen=True)
class Record:
    """A run as a replica lists it. `content` is None where only a scan can tell; `heads` are the replica's own
    names of the versions that are current, two or more when writers did not see each other. `history` are the contents
    of the first of them and of all that it replaced; None where no history is kept. `purged`: nothing is left of it but
    that it was here. `unread` are the fields of `metadata` that are there and could not be read."""

    run: RunId
    summary: Summary
    metadata: Metadata
    content: Optional[Digest] = None
    manifest: Optional[Digest] = None
    heads: Tuple[str, ...] = ()
    deleted: bool = False
    history: Optional[FrozenSet[Digest]] = None
    purged: bool = False
    unread: FrozenSet[str] = frozenset()


@dataclass(frozen=True)
class Attributes:
    """What a Tree has of a run without understanding it: attribute files and markers as raw bytes. `alive`: a process
    of it runs here. `lost`: one did, started by guildsync, and is gone without having told its end."""

    values: Mapping[str, bytes]
    opref: Optional[bytes]
    markers: FrozenSet[str]
    alive: bool
    inflight: bool
    size: Optional[int] = None
    files: Optional[int] = None
    scalars: Scalars = field(default_factory=dict)
    lost: bool = False


NO_ATTRIBUTES = Attributes({}, None, frozenset(), False, False)


def plain(value: Any) -> Any:
    """`value` as JSON can say it: numbers that are not finite and all foreign kinds become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def find_scalar(scalars: Mapping[str, Any], name: str) -> Optional[str]:
    """The tag of a summary's scalars that a person means by `name`: that of this name, else the first, in the order of
    names, that some directory has of it (`<directory>#<name>`)."""
    if name in scalars:
        return name
    return min((tag for tag in scalars if tag.endswith("#" + name)), default=None)


def merge_metadata(base: Metadata, have: Metadata, want: Metadata) -> Tuple[Metadata, List[str]]:
    """Field by field: what only one side changed counts; where both did, `want` wins and the field is reported."""
    b, h, w = base.fields(), have.fields(), want.fields()
    out: Dict[str, Any] = {}
    overridden = []
    for name in _names(b, h, w):
        was, mine, theirs = b.get(name), h.get(name), w.get(name)
        value = mine if theirs == was else theirs
        if was not in (mine, theirs) and mine != theirs:
            overridden.append(name)
        if value:
            out[name] = value
    return Metadata.from_fields(out), overridden


def agreed_metadata(base: Metadata, have: Metadata, want: Metadata) -> Metadata:
    """The metadata both sides are known to have had: the base of the next sync."""
    b, h, w = base.fields(), have.fields(), want.fields()
    both = {name: (h if h.get(name) == w.get(name) else b).get(name) for name in _names(b, h, w)}
    return Metadata.from_fields({name: value for name, value in both.items() if value})


def _names(*fields: Iterable[str]) -> List[str]:
    return sorted(set().union(*fields))
