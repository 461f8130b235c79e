"""The Protocols: what verbs ask of replicas, and the values that pass between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import (
    Any,
    Collection,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
    Union,
)

from guildsync.errors import Problem
from guildsync.model.manifest import Digest, Manifest
from guildsync.model.run import NO_METADATA, Attributes, Metadata, Record, RunId, Scalars, Summary

Known = Mapping[RunId, Collection[Digest]]
"""For each run the contents whose manifests the asker has: they need not cross the wire."""


Only = Optional[Collection[RunId]]
"""The runs that a question is about; None: all of them."""


class Want(NamedTuple):
    """An object, and one place where it stands: in file `path` of `run` at `offset`."""

    digest: Digest
    size: int
    run: RunId
    path: bytes
    offset: int


class Piece(NamedTuple):
    """The bytes of a wanted object, verified against its digest by whoever yields it."""

    want: Want
    data: bytes


class Lost(NamedTuple):
    """A wanted object that cannot be had, and why: the problem names the want's run and path."""

    want: Want
    problem: Problem


class Aim(NamedTuple):
    """A commit that never ended: what the run was before it, and what it was to become."""

    before: Manifest
    want: Manifest


class Step(NamedTuple):
    """One step of a check: what was tried, whether it worked, what was found, and what to do about it. `exit_code` is
    what the check ends with where the step failed."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    exit_code: int = 0


class Moment(NamedTuple):
    """Something that was done to a run, and when that was stored: seconds since the epoch by the replica's own clock,
    None where nothing says so any more. `what` is `version`, `delete`, `restore`, `purge`, or the field of the metadata
    that was set (`label`, `marked`, `tag:<t>`, `comment:<id>`), `value` what it says, as JSON can (None: the field was
    put at rest). `current`: it is part of what holds now."""

    stored: Optional[float]
    what: str
    value: Any
    current: bool


@dataclass(frozen=True)
class Scan:
    """One run's entries as a replica answers for them now.

    `manifest` is None when its `content` is among the known, or when it cannot be had (then `problems` say why).
    `settled` is False when what lies there needs another commit although nothing differs.
    `heads` names the versions that a commit made from this scan replaces; `rivals` are contents of further heads.
    `aim` is a commit that never ended (None: all did): such a run is never a source. `scalars` are those that the
    files of `manifest` hold; None where the record says them.
    """

    run: RunId
    content: Digest
    manifest: Optional[Manifest]
    settled: bool = True
    alive: bool = False
    heads: Tuple[str, ...] = ()
    rivals: Tuple[Digest, ...] = ()
    aim: Optional[Aim] = None
    problems: Tuple[Problem, ...] = ()
    scalars: Optional[Scalars] = None


@dataclass(frozen=True)
class Update:
    """What a run is to become. `want` None: only summary and metadata change; `summary` None as well: only metadata.

    `have` is what the plan was made against (None: the run was not there); where it is no longer so, nothing of
    the run is written. `withheld` are paths of `want` whose bytes could not be had. `metadata_was` is the target's
    metadata when the plan was made: only differences to `metadata` are written. `mirrored`: a mirror says so, and will
    soon say more; where versions are kept, only its newest two are.
    """

    run: RunId
    have: Optional[Manifest]
    want: Optional[Manifest]
    summary: Optional[Summary]
    metadata: Metadata = NO_METADATA
    metadata_was: Metadata = NO_METADATA
    heads: Tuple[str, ...] = ()
    withheld: FrozenSet[bytes] = frozenset()
    origin: str = ""
    mirrored: bool = False


@dataclass(frozen=True)
class RawRecord:
    """A run as a Tree lists it: nothing parsed."""

    run: RunId
    attributes: Attributes
    deleted: bool = False
    purged: bool = False


@dataclass(frozen=True)
class RawUpdate:
    """An Update as a Tree takes it. `attributes` maps a metadata attribute to its bytes or None to remove it;
    `markers` are those that stand afterwards, with their bytes (of LOCK.remote, PENDING, STAGED); None leaves them.
    `attributes_were` is what some held when the update was made; where one no longer does, nothing of the run is
    written."""

    run: RunId
    have: Optional[Manifest]
    want: Optional[Manifest]
    attributes: Mapping[str, Optional[bytes]]
    markers: Optional[Mapping[str, bytes]]
    withheld: FrozenSet[bytes] = frozenset()
    attributes_were: Mapping[str, Optional[bytes]] = field(default_factory=dict)


class Collected(NamedTuple):
    """What a collection of garbage freed (or would free): `files` of ours, of `bytes` together; what `waiting` ones of
    `waiting_bytes` a later collection may free, once the grace time is over; how many old `versions` were given up."""

    files: int
    bytes: int
    waiting: int = 0
    waiting_bytes: int = 0
    versions: int = 0


@dataclass(frozen=True)
class Base:
    """What both sides of a pair of replicas had of a run after their last sync.

    `seen` are the contents that the sides had then as wholes: a store whose history of the run knows none of them went
    back in time, and then the base says nothing. The manifest stays encoded until somebody needs it.
    """

    content: Digest
    metadata: Metadata
    status: str
    seen: FrozenSet[Digest]
    encoded: bytes = field(compare=False, repr=False)

    @classmethod
    def of(cls, manifest: Manifest, metadata: Metadata, status: str, seen: Collection[Digest] = ()) -> Base:
        return cls(manifest.content, metadata, status, frozenset(seen), manifest.encode())

    @property
    def manifest(self) -> Manifest:
        return Manifest.decode(self.encoded)


class Traffic(NamedTuple):
    """What crossed to a replica and back: round trips, but not what was tried anew below them; bytes, of a store those
    of its objects, of a connection all."""

    requests: int
    sent: int
    received: int

    def plus(self, other: "Traffic", times: int = 1) -> "Traffic":
        return Traffic(*(one + times * more for one, more in zip(self, other)))  # noqa: B905 - Python 3.8


NO_TRAFFIC = Traffic(0, 0, 0)


class Reads(Protocol):
    """What every kind of replica can be asked, parsed or not."""

    @property
    def replica(self) -> str:
        """The id of this replica, 32 hex digits."""

    @property
    def aliases(self) -> FrozenSet[str]:
        """All ids that this replica ever had: what was kept under one of them counts."""

    @property
    def is_there(self) -> bool:
        """Is anything there yet? What is not there says nothing about what was deleted."""

    @property
    def problems(self) -> Sequence[Problem]:
        """What of the replica as a whole could not be read the last time it was listed."""

    @property
    def traffic(self) -> Optional[Traffic]:
        """With a store or a connection since it was opened; None of a home on this machine."""

    def manifests(self, known: Known) -> Iterable[Scan]:
        """The runs of `known` that are there, as they are now. A run that is not there is left out."""

    def fetch(self, wanted: Iterable[Want]) -> Iterator[Union[Piece, Lost]]:
        """Every wanted object once, in any order: verified, or lost."""


class Writes(Protocol):
    """What every kind of target takes before a commit. Nothing shows until then."""

    def missing(self, wanted: Collection[Want]) -> Set[Digest]:
        """Which of the objects must be staged before a commit can use them."""

    def stage(self, pieces: Iterable[Piece]) -> None:
        """Keep objects for a commit. Calling it twice with the same piece is harmless."""

    @property
    def resumed(self) -> int:
        """Bytes of objects that `missing` left out because an interrupted sync had brought them."""


class Trash(Protocol):
    """Runs that nobody wants any more, and that can be had back until they are purged. What is asked for and so already
    is no problem: an interrupted call is made again."""

    def hide(self, runs: Collection[RunId]) -> List[Problem]:
        """Move living runs to the trash. A run whose process is alive here stays."""

    def reveal(self, runs: Collection[RunId]) -> List[Problem]:
        """Move runs back from the trash; and let those that were purged come again."""

    def purge(self, runs: Collection[RunId]) -> List[Problem]:
        """Give up for good what was last listed of these runs, which are in the trash."""

    def collect(self, grace: Optional[float], dry: bool = False) -> Collected:
        """Free what nothing refers to any more and is older than `grace` seconds (None: what is usual here). Raises
        Damaged, and removes nothing, where what is needed cannot be told. `dry`: only say what would be freed."""


class Source(Reads, Protocol):
    """A replica that can be read."""

    def runs(self, deleted: Optional[bool] = False, sizes: bool = False, only: Only = None) -> Iterable[Record]:
        """The runs that live here (`deleted`: those in the trash; None: both, and those that were purged), as they are
        now; of `only` these, unless None. A run that is in both places lives. `sizes`: measure size, files and scalars
        where they are not known."""


class Target(Source, Writes, Trash, Protocol):
    """A replica that can be written."""

    def commit(self, updates: Sequence[Update]) -> List[Problem]:
        """Make updates whose objects are staged or there already visible, run by run; what it returns was not done."""


@dataclass(frozen=True)
class Order:
    """What is executed for a run, in its directory. `runner_at`: before this word of `argv` stands the path of
    `compute/runner.py`, which only the place itself knows. `init` are shell lines and `activate` is a shell command
    that come first; `secrets` are set in the environment as `env` is, and written down nowhere. `after`: the run is
    to be started once more after it was started then (microseconds; 0: it does not say), where that has ended."""

    argv: Tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    init: Optional[str] = None
    activate: Optional[str] = None
    runner_at: Optional[int] = None
    after: Optional[int] = None


class Output(NamedTuple):
    """What a run printed from some place on. `ended`: there will be no more. `exit_status` is None while it runs, and
    of one that did not get to say. `size`: bytes that it printed so far."""

    data: bytes
    ended: bool
    exit_status: Optional[int]
    size: int


class Executor(Protocol):
    """Processes of runs, beside a Tree."""

    def start(self, run: RunId, order: Order) -> bool:
        """Start a run that is there; False where that was done before. Whoever does not know asks again: no run is
        ever started twice."""

    def output(self, run: RunId, offset: int, wait: float) -> Output:
        """Some of what it printed from `offset` on; comes after `wait` seconds at the latest."""

    def stop(self, run: RunId, patience: float) -> str:
        """TERM, and after `patience` seconds KILL, to what is proven to be the run's; `gone` where nothing ran."""


class FileInfo(NamedTuple):
    """A file of a home as it lies there: its name in its directory, its kind as in manifests or `other`, its bytes."""

    name: bytes
    kind: str
    size: int
    mtime_ns: int


class Folder(Protocol):
    """The files of a home, by paths relative to it (b"": itself). Nothing outside can be seen. Raise NotFound,
    Refused; Damaged for paths that no manifest may hold."""

    def list(self, path: bytes) -> Iterable[FileInfo]:
        """What a directory holds, sorted by name."""

    def info(self, path: bytes) -> FileInfo: ...

    def read(self, path: bytes, start: int, stop: int) -> Iterable[bytes]:
        """The bytes [start, stop) of a file in pieces, fewer at its end."""


class Hints(Protocol):
    """When to look at a replica again; never what changed there."""

    def wait(self, seconds: float) -> Only:
        """Comes when something may have moved, after `seconds` at the latest: with the runs where to look first (none:
        nothing was seen to move), or None: everywhere. What it misses, only a look at everything finds."""


class RawTree(Reads, Writes, Trash, Protocol):
    """A Tree, near or far, that moves attributes as bytes."""

    def runs(self, deleted: Optional[bool] = False, sizes: bool = False, only: Only = None) -> Iterable[RawRecord]: ...

    @property
    def hints(self) -> Hints: ...

    def commit(self, updates: Sequence[RawUpdate]) -> List[Problem]: ...

    def history(self, run: RunId) -> Sequence[Moment]: ...

    def audit(self) -> Iterator[Problem]: ...

    def check(self) -> Iterator[Step]: ...

    @property
    def folder(self) -> Folder: ...

    @property
    def staging(self) -> str: ...

    def gather(self, wants: Iterable[Want]) -> None: ...


class Inspected(Protocol):
    """A replica that can say what is wrong with it."""

    def history(self, run: RunId) -> Sequence[Moment]:
        """What was done to a run, the newest last, also what counts no longer; empty where no history is kept."""

    def audit(self) -> Iterator[Problem]:
        """What is missing, of the wrong size, or was never finished, without reading every byte."""

    def check(self) -> Iterator[Step]:
        """Can it be used? Ends after the first step that failed."""


class Replica(Target, Inspected, Protocol):
    """All of it: what a Remote has."""

    @property
    def hints(self) -> Optional[Hints]:
        """None where nobody could say when to look again."""


class Bases(Protocol):
    """The bases kept at home for every pair of replicas.

    `intend` is called before a commit, `save` after it; `load` answers the intended base when the target proves
    (by `content`) that the commit arrived although nobody was left to save it.
    """

    def load(self, run: RunId, content: Optional[Digest]) -> Optional[Base]: ...

    def intend(self, run: RunId, content: Digest, base: Base) -> None: ...

    def save(self, run: RunId, base: Base) -> None: ...


class Cache(Protocol):
    """Bytes that can be had again elsewhere, kept at home by kind and name. What is kept may vanish, or be damaged:
    whoever loads verifies."""

    def load(self, kind: str, name: str) -> Optional[bytes]: ...

    def keep(self, kind: str, name: str, data: bytes) -> None: ...

    def names(self, kind: str) -> List[str]:
        """What is kept of a kind."""

    def drop(self, kind: str, name: str) -> None:
        """Keep it no longer; what is not kept is no error."""
