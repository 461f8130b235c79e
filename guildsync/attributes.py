"""Raw attribute bytes <-> Summary, Metadata (PyYAML); wraps every Tree."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from guildsync.errors import UNREADABLE, Damaged, Problem
from guildsync.model.manifest import Digest
from guildsync.model.ports import (
    Collected,
    Hints,
    Known,
    Lost,
    Moment,
    Only,
    Piece,
    RawRecord,
    RawTree,
    RawUpdate,
    Scan,
    Step,
    Traffic,
    Update,
    Want,
)
from guildsync.model.run import (
    COMPLETED,
    ERROR,
    INCOMPLETE,
    LOST,
    PENDING,
    RUNNING,
    STAGED,
    TERMINATED,
    Attributes,
    Comment,
    Metadata,
    Record,
    RunId,
    Summary,
    plain,
)

MAX_DOCUMENT = 4 << 20
MAX_DEPTH = 100
MAX_ALIASES = 10
_SURELY_SHALLOW = 1000  # no document is deeper than it has bytes

_METADATA = ("label", "tags", "comments", "marked")
_MEND = "it is no list that YAML can read: mend or remove it; nothing of the run is written before"

_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What PyYAML raises, besides its own errors, for values that do not fit their tags."""

_FLOAT = re.compile(
    r"""(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.[0-9_]+(?:[eE][-+][0-9]+)?
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))\Z""",
    re.X,
)
"""What Guild takes for a float: `1e-5` too, which plain YAML 1.1 takes for a string."""

_OPREF = re.compile(" ".join([r"([^\s'\"\\]+|'[^']*')"] * 4))
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_SIMPLE_FLOAT = re.compile(r"-?[0-9]{1,20}\.[0-9]{1,20}(?:[eE][-+]?[0-9]{1,3})?")
_WORDS = re.compile(r"(?:-{0,2}[A-Za-z]|[/_])(?:[A-Za-z0-9 _./=,+()@%-]*[A-Za-z0-9_./=,+()@%-])?")
_QUOTED = re.compile(r"'([ -&(-~]*)'")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_CONSTANTS: Mapping[str, Any] = {"": None, "true": True, "false": False, "null": None, "{}": {}, "[]": []}
_RESOLVED = frozenset({"yes", "no", "true", "false", "on", "off", "null"})
"""Words, in whatever case, that YAML may take for something else than a string."""


def summary(attributes: Attributes) -> Summary:
    """What a run's attribute files say of it, scalars aside; what of them cannot be read is absent."""
    exit_status = _integer(attributes, "exit_status")
    flags, command = _attribute(attributes, "flags"), _attribute(attributes, "cmd")
    return Summary(
        operation=operation(attributes.opref),
        status=_status(attributes, exit_status),
        started=_integer(attributes, "started"),
        stopped=_integer(attributes, "stopped"),
        exit_status=exit_status,
        flags=flags if isinstance(flags, dict) else {},
        command=tuple(str(word) for word in command) if isinstance(command, list) else (),
        size=attributes.size,
        files=attributes.files,
        scalars=attributes.scalars,
    )


def metadata(attributes: Attributes) -> Metadata:
    """What people wrote on a run; what cannot be read is absent, but a label of any kind is kept as its text."""
    tags, comments = _attribute(attributes, "tags"), _attribute(attributes, "comments")
    return Metadata(
        _label(attributes.values.get("label", b"")),
        frozenset(str(tag) for tag in tags if tag is not None) if isinstance(tags, list) else frozenset(),
        tuple(_comments(comments)) if isinstance(comments, list) else (),
        bool(_attribute(attributes, "marked")),
    )


def encode_metadata(metadata: Metadata) -> dict[str, bytes | None]:
    """The attribute files that say `metadata`, as Guild writes them; None for one that is not to be there.

    `metadata` of these files is the same value again, but for lone surrogates, which no file can hold: they become `?`.
    """
    comments = [{name: value for name, value in c.to_json().items() if value is not None} for c in metadata.comments]
    return {
        "label": None if metadata.label is None else _encode(metadata.label),
        "tags": _encode(sorted(metadata.tags)) if metadata.tags else None,
        "comments": _encode(comments) if comments else None,
        "marked": _encode(True) if metadata.marked else None,
    }


def operation(opref: bytes | None) -> str:
    """The name of an operation as Guild shows it; empty when `opref` is not `TYPE:NAME VERSION MODEL OP`."""
    try:
        package, _, model, name = _words(opref or b"")
    except ValueError:
        return ""
    kind, _, package_name = package.partition(":")
    if kind == "func":
        return f"{name}()"
    if kind == "pending":
        return name
    full = f"{model}:{name}" if model else name
    return f"{package_name}/{full}" if kind == "package" else full


def _words(opref: bytes) -> list[str]:
    """As a shell splits them; raises ValueError where it cannot."""
    text = opref.decode()
    usual = _OPREF.fullmatch(text.rstrip("\n"))
    return [word.strip("'") for word in usual.groups()] if usual else shlex.split(text)


class AttributedTree:
    """A Tree as a Replica: attributes are parsed on their way out and encoded on their way in."""

    def __init__(self, tree: RawTree) -> None:
        self._tree = tree
        self._seen: dict[RunId, Mapping[str, bytes]] = {}

    @property
    def replica(self) -> str:
        return self._tree.replica

    @property
    def aliases(self) -> frozenset[str]:
        return self._tree.aliases

    @property
    def is_there(self) -> bool:
        return self._tree.is_there

    @property
    def problems(self) -> Sequence[Problem]:
        return self._tree.problems

    @property
    def traffic(self) -> Traffic | None:
        return self._tree.traffic

    @property
    def hints(self) -> Hints:
        return self._tree.hints

    def runs(self, deleted: bool | None = False, sizes: bool = False, only: Only = None) -> Iterator[Record]:
        for raw in self._tree.runs(deleted, sizes, only):
            values = raw.attributes.values
            self._seen[raw.run] = {name: values[name] for name in _METADATA if name in values}
            yield record(raw)

    def manifests(self, known: Known) -> Iterable[Scan]:
        return self._tree.manifests(known)

    def fetch(self, wanted: Iterable[Want]) -> Iterator[Piece | Lost]:
        return self._tree.fetch(wanted)

    def missing(self, wanted: Collection[Want]) -> set[Digest]:
        return self._tree.missing(wanted)

    def stage(self, pieces: Iterable[Piece]) -> None:
        self._tree.stage(pieces)

    @property
    def resumed(self) -> int:
        return self._tree.resumed

    def commit(self, updates: Sequence[Update]) -> list[Problem]:
        """What was listed last is what an update goes out from. What could not be read is not overwritten."""
        problems: list[Problem] = []
        raw = []
        for update in updates:
            one = raw_update(update, self._seen.get(update.run))
            lost = sorted(name for name, data in one.attributes_were.items() if _is_unread(name, data or b""))
            problems += (Problem(update.run, f".guild/attrs/{name}".encode(), UNREADABLE, _MEND) for name in lost)
            raw += [] if lost else [one]
        return problems + (self._tree.commit(raw) if raw else [])

    def hide(self, runs: Collection[RunId]) -> list[Problem]:
        return self._tree.hide(runs)

    def reveal(self, runs: Collection[RunId]) -> list[Problem]:
        return self._tree.reveal(runs)

    def purge(self, runs: Collection[RunId]) -> list[Problem]:
        return self._tree.purge(runs)

    def collect(self, grace: float | None, dry: bool = False) -> Collected:
        return self._tree.collect(grace, dry)

    def history(self, run: RunId) -> Sequence[Moment]:
        return self._tree.history(run)

    def audit(self) -> Iterator[Problem]:
        return self._tree.audit()

    def check(self) -> Iterator[Step]:
        return self._tree.check()


def record(raw: RawRecord) -> Record:
    known = summary(raw.attributes), metadata(raw.attributes)
    unread = frozenset(name for name in _METADATA if _is_unread(name, raw.attributes.values.get(name, b"")))
    return Record(raw.run, *known, deleted=raw.deleted, purged=raw.purged, unread=unread)


def raw_update(update: Update, seen: Mapping[str, bytes] | None = None) -> RawUpdate:
    """Only attribute files whose field differs from `metadata_was` are written. `seen` are those that were listed."""
    was, now = encode_metadata(update.metadata_was), encode_metadata(update.metadata)
    attributes = {name: data for name, data in now.items() if data != was[name]}
    is_new = update.want is not None and update.have is None
    return RawUpdate(
        update.run,
        update.have,
        update.want,
        attributes,
        None if update.summary is None else _markers(update.summary, update.origin),
        update.withheld,
        {} if seen is None or is_new else {name: seen.get(name) for name in attributes},
    )


def _markers(summary: Summary, origin: str) -> Mapping[str, bytes]:
    markers = {
        RUNNING: {"LOCK.remote": origin.encode(errors="replace")},
        PENDING: {"PENDING": b""},
        STAGED: {"STAGED": b""},
    }
    return markers.get(summary.status, {})


def _status(attributes: Attributes, exit_status: int | None) -> str:
    """Guild's order, after what only guildsync knows: that a sync of the run did not end, that its process did without
    a word. (Such a run may still be marked as waiting: the markers are removed after the process is written down.)"""
    if attributes.inflight:
        return INCOMPLETE
    if attributes.lost and "LOCK.remote" not in attributes.markers:
        return LOST
    for marker, status in (("LOCK.remote", RUNNING), ("PENDING", PENDING), ("STAGED", STAGED)):
        if marker in attributes.markers:
            return status
    if exit_status is not None:
        return COMPLETED if exit_status == 0 else TERMINATED if exit_status < 0 else ERROR
    return RUNNING if attributes.alive else ERROR


def _integer(attributes: Attributes, name: str) -> int | None:
    value = _attribute(attributes, name)
    return value if type(value) is int else None


def _attribute(attributes: Attributes, name: str) -> Any:
    """The plain value of an attribute; None where there is none or it cannot be read."""
    document = _document(attributes.values.get(name, b""))
    return document[0] if document else None


def _is_unread(name: str, data: bytes) -> bool:
    """Is there something that is no list, where lists are kept? A label is text, whatever it is."""
    if name not in ("tags", "comments") or not data.strip():
        return False
    document = _document(data)
    return document is None or not (document[0] is None or isinstance(document[0], list))


def _label(data: bytes) -> str | None:
    document = _document(data)
    if document and (document[0] is None or isinstance(document[0], str)):
        return document[0]
    return data.decode(errors="replace").strip() or None


def _comments(values: Iterable[Any]) -> Iterator[Comment]:
    for value in values:
        try:
            yield Comment.from_json(value)
        except Damaged:
            pass  # there is no text in it to keep


def _document(data: bytes) -> tuple[Any] | None:
    """The value of a YAML document as JSON can say it, or None when it is malformed."""
    simple = _simple(data)
    return _parsed(data) if simple is None else (plain(simple[0]),)


def _simple(data: bytes) -> tuple[Any] | None:
    """The value of the shapes that nearly all attributes have, without PyYAML; None for any other.

    Whatever it accepts, PyYAML reads as the same value.
    """
    try:
        lines = data.decode("ascii").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        return None
    if len(lines) == 1 and (scalar := _scalar(lines[0])):
        return scalar
    if lines[0].startswith("- "):
        items = [_scalar(line[2:]) if line.startswith("- ") else None for line in lines]
        return None if None in items else ([item[0] for item in items if item],)
    mapping = {}
    for line in lines:
        key, colon, rest = line.partition(": ")
        value = _scalar(rest)
        if not colon or value is None or not _KEY.fullmatch(key) or key.lower() in _RESOLVED:
            return None
        mapping[key] = value[0]
    return (mapping,)


def _scalar(text: str) -> tuple[Any] | None:
    if text in _CONSTANTS:
        return (_CONSTANTS[text],)
    if _INTEGER.fullmatch(text):
        return (int(text),)
    if _WORDS.fullmatch(text):
        return None if text.lower() in _RESOLVED else (text,)
    if _SIMPLE_FLOAT.fullmatch(text):
        return (float(text),)
    quoted = _QUOTED.fullmatch(text)
    return (quoted[1],) if quoted else None


def _parsed(data: bytes) -> tuple[Any] | None:
    """`_document` by PyYAML. The bytes may be anybody's: deep nesting would end the process, aliases fill memory."""
    import yaml

    if len(data) > MAX_DOCUMENT:
        return None
    loader, _ = _yaml()
    try:
        if (len(data) > _SURELY_SHALLOW or b"*" in data) and not _harmless(yaml.parse(data, loader)):
            return None
        value = plain(yaml.load(data, loader))  # noqa: S506 - it is a SafeLoader
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # raises for a lone surrogate
    except (yaml.YAMLError, *_UNREADABLE):
        return None
    return (value,)


def _harmless(events: Iterable[Any]) -> bool:
    import yaml

    depth = aliases = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > MAX_DEPTH or aliases > MAX_ALIASES:
            return False
    return True


@functools.cache
def _yaml() -> tuple[Any, Any]:
    """Loader and dumper that take for a float what Guild does. Here, since importing PyYAML costs 26 ms."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(str, lambda dumper, text: dumper.represent_str(text.encode(errors="replace").decode()))
    for kind in (Loader, Dumper):
        kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return Loader, Dumper


def encode_values(values: Mapping[str, Any]) -> dict[str, bytes]:
    """Attribute files that say these plain values, as Guild writes them; None leaves one out."""
    return {name: _encode(value) for name, value in values.items() if value is not None}


def _encode(value: Any) -> bytes:
    """One line a scalar and ASCII only, so that no reader's folding or locale can change it."""
    import yaml

    _, dumper = _yaml()
    text = yaml.dump(value, Dumper=dumper, indent=2, default_flow_style=False, width=1 << 30)
    return str(text[:-4] if text.endswith("\n...\n") else text).encode()
