"""The near end of the pipe: FarTree; every answer is hostile input."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from guildsync.agent import lanes, tails
from guildsync.agent.calls import Calls, each, nothing
from guildsync.agent.executor import FarExecutor
from guildsync.agent.folder import FarFolder
from guildsync.agent.frames import VERSION, Channel, Item, error_from
from guildsync.agent.hints import FarHints
from guildsync.agent.loader import MARK
from guildsync.agent.values import (
    PIECE_LIMITS,
    ROWS_LIMITS,
    SCAN_LIMITS,
    asked_row,
    collected_of,
    flag_of,
    known_row,
    label_of,
    lost_of,
    lying_of,
    part_of,
    piece_item,
    problem_of,
    record_of,
    rows,
    rows_of,
    scan_of,
    seconds_of,
    step_of,
    update_item,
    verified,
    want_row,
)
from guildsync.errors import Damaged, GuildsyncError, Problem, Unreachable
from guildsync.model.manifest import Digest, checked_digest
from guildsync.model.ports import (
    NO_TRAFFIC,
    Collected,
    Known,
    Lost,
    Only,
    Piece,
    RawRecord,
    RawUpdate,
    Scan,
    Step,
    Traffic,
    Want,
)
from guildsync.model.run import RunId, checked_run_id

TIMEOUT = 30.0
BEAT = 15.0
CLOCKS_APART = 2.0
_PATIENCE = 2.0
"""Seconds that a far side with which something went wrong has to end by itself."""

_HELLO = {"hello": "guildsync", "version": VERSION, "capabilities": []}


class Process(Protocol):
    """What a FarTree owns of the process at the other end; `subprocess.Popen` has it."""

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


class Opening(NamedTuple):
    """How a far side is started that is not there yet: what it must hear before the first frame, and for how many
    seconds it may be silent before it says hello. `lists`: its runs will be asked for."""

    words: bytes
    patience: float
    lists: bool = True


class NeedsModules(GuildsyncError):
    """The host has not got the modules that travel: they must come along."""


class FarTree:
    """A Tree at the other end of a pipe (`model.ports.RawTree`), for one thread.

    Every answer is checked; one that fails the check gives up the connection. `round_trips` counts calls.
    Raises what the far tree raises; Damaged for an answer that lies; Unreachable when `timeout` seconds pass without
    a sign of life.
    """

    def __init__(
        self,
        reader: Any,
        writer: Any,
        process: Process | None = None,
        timeout: float = TIMEOUT,
        beat: float = BEAT,
        opening: Opening | None = None,
    ) -> None:
        """`noise`: what the far side printed before it was ours. `further` may be set to what opens more channels, that
        stage into the directory it is called with."""
        self._channel = Channel(reader, writer, timeout)
        self.noise = b""
        self._process = process
        self._calls = Calls(self._channel)
        self._problems: list[Problem] = []
        self._replica: str | None = None
        self._resumed = 0
        self._listing: Iterator[RawRecord] | None = None
        self._lanes: dict[str, Sequence[FarTree]] = {}
        self._gone = NO_TRAFFIC
        self._lying: dict[Want, tails.Begun] = {}
        self._carried = tails.Carried()
        self.further: Callable[[str], Sequence[FarTree]] | None = None
        try:
            if opening is not None:
                self._open(opening, timeout)
            self._greet()
        except BaseException:
            self.close()
            raise
        self._channel.keep_beating(beat)

    @property
    def replica(self) -> str:
        if self._replica is None:
            self._replica = self._calls.one("replica", checked_run_id)
        return self._replica

    @property
    def aliases(self) -> frozenset[str]:
        return frozenset([self.replica])

    @property
    def is_there(self) -> bool:
        return self._replica is not None or self._calls.one("there", flag_of)

    @property
    def round_trips(self) -> int:
        return self._calls.made

    @property
    def broken(self) -> GuildsyncError | None:
        """What the connection failed with."""
        return self._channel.broken

    @property
    def traffic(self) -> Traffic:
        found = self._gone.plus(Traffic(self.round_trips, self.bytes_out, self.bytes_in))
        for lane in itertools.chain(*self._lanes.values()):
            found = found.plus(lane.traffic)
        return found

    @property
    def bytes_out(self) -> int:
        return self._channel.bytes_out

    @property
    def bytes_in(self) -> int:
        return self._channel.bytes_in

    def close(self) -> None:
        """Ends the far side; twice is harmless. All was answered where nothing failed, so then nobody waits for it."""
        failed = self._channel.broken is not None
        for lane in itertools.chain(*self._lanes.values()):
            lane.close()
        self._channel.close()
        process, self._process = self._process, None
        if process is None or not failed:
            return
        deadline = time.monotonic() + _PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
        process.wait()

    def __enter__(self) -> FarTree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ping(self) -> None:
        for _ in self._calls.make("ping", nothing):
            pass

    # -- reading

    @property
    def problems(self) -> Sequence[Problem]:
        return tuple(self._problems)

    def runs(self, deleted: bool | None = False, sizes: bool = False, only: Only = None) -> Iterator[RawRecord]:
        listing, self._listing = self._listing, None
        if listing is not None and not sizes and deleted is not True and only is None:
            return (found for found in listing if deleted is None or not found.deleted)
        self._problems = []
        records, asked = self._records(deleted, only), rows(only or ())
        is_some = only is not None
        return self._calls.make("runs", records, arguments=asked, deleted=deleted, sizes=sizes, only=is_some)

    def _records(self, deleted: bool | None, only: Only = None) -> Callable[[Item], Iterator[RawRecord]]:
        seen: set[RunId] = set()

        def records(item: Item) -> Iterator[RawRecord]:
            for row in rows_of(item):
                if isinstance(row, list):
                    self._problems.append(problem_of(row))
                    continue
                found = record_of(row)
                unasked = found.run in seen or (only is not None and found.run not in only)
                if unasked or deleted not in (None, found.deleted) or (found.purged and deleted is not None):
                    raise Damaged(f"run {found.run} was not asked for, or comes twice")
                seen.add(found.run)
                yield found

        return records

    def manifests(self, known: Known) -> Iterator[Scan]:
        asked = dict(known)

        def scan(item: Item) -> list[Scan]:
            found = scan_of(item)
            contents = asked.pop(found.run, None)
            if contents is None:
                raise Damaged(f"run {found.run} was not asked for, or comes twice")
            if found.manifest is None and found.content not in contents and not found.problems:
                raise Damaged(f"run {found.run} comes without its manifest")
            return [found]

        arguments = rows(known_row(run, contents) for run, contents in known.items())
        return self._calls.make("manifests", scan, SCAN_LIMITS, arguments)

    def fetch(self, wanted: Iterable[Want]) -> Iterator[Piece | Lost]:
        asked = list(dict.fromkeys(wanted))
        channels = self._channels("", sum(want.size for want in asked))
        return self.fetch_alone(asked) if len(channels) == 1 else lanes.fetched(asked, channels)

    def fetch_alone(self, wanted: Iterable[Want]) -> Iterator[Piece | Lost]:
        """As `fetch`, through this channel alone."""
        asked = list(dict.fromkeys(wanted))
        is_small = len(asked) <= tails.FEW
        begun = self._carried.begun(asked) if is_small else {}
        came: set[int] = set()

        def answer(item: Item) -> list[Piece | Lost]:
            label, data = label_of(item), item[1]
            left_out, problem = None, None
            if data is None:
                number, problem = lost_of(label)
            else:
                number, left_out = part_of(label)
            if type(number) is not int or not 0 <= number < len(asked) or number in came:
                raise Damaged("an object that was not asked for, or comes twice")
            came.add(number)
            want = asked[number]
            if data is not None and left_out is not None:
                data = self._carried.completed(want, left_out, data)
            if problem is None:
                piece = verified(want, data)
                if is_small:
                    self._carried.keep(piece)
                return [piece]
            if (problem.run, problem.path) != (want.run, want.path):
                raise Damaged(f"object {want.digest} is lost for a problem of another path")
            return [Lost(want, problem)]

        arguments = rows(asked_row(want, begun.get(want)) for want in asked)
        yield from self._calls.make("fetch", answer, PIECE_LIMITS, arguments)
        left_out = {want.digest for want in asked} - {asked[number].digest for number in came}
        if left_out:
            raise Damaged(f"{len(left_out)} objects were asked for and did not come")

    def history(self, run: RunId) -> tuple[()]:  # noqa: ARG002 - what every Tree answers, without being asked
        return ()

    def audit(self) -> Iterator[Problem]:
        return self._calls.make("audit", each(problem_of))

    def check(self) -> Iterator[Step]:
        """Also what the machine there is, and whether its clock is ours."""
        failed = False
        for step in self._calls.make("check", each(step_of), host=True):
            failed = failed or not step.ok
            yield step
        if not failed:
            began = time.time()
            there = self._calls.one("clock", seconds_of)
            yield _clock_step(there - (began + time.time()) / 2, time.time() - began)

    @property
    def folder(self) -> FarFolder:
        return FarFolder(self._calls)

    @property
    def hints(self) -> FarHints:
        return FarHints(self._calls)

    @property
    def executor(self) -> FarExecutor:
        return FarExecutor(self._calls)

    # -- writing

    def missing(self, wanted: Collection[Want]) -> set[Digest]:
        wanted = list(wanted)
        left = {want.digest: want.size for want in wanted}
        found: set[Digest] = set()
        self._lying = {}
        taken_over: list[int] = []

        def take(row: Any) -> None:
            if taken_over:
                raise Damaged("an answer goes on after its end")
            if type(row) is int and 0 <= row <= sum(left.values()):
                taken_over.append(row)
                return
            if isinstance(row, list):
                number, begun = lying_of(row)
                if number >= len(wanted) or wanted[number].digest not in found:
                    raise Damaged("the beginning of an object that is not missing")
                self._lying[wanted[number]] = begun
                return
            digest = checked_digest(row)
            if left.pop(digest, None) is None:
                raise Damaged(f"object {digest} was not asked for, or comes twice")
            found.add(digest)

        for _ in self._calls.make("missing", each(take), ROWS_LIMITS, rows(want_row(want) for want in wanted)):
            pass
        self._resumed += sum(taken_over)
        return found

    def stage(self, pieces: Iterable[Piece]) -> None:
        left = iter(pieces)
        if self.further is not None:
            self.stage_alone(_first(left, lanes.MUCH))
            following = next(left, None)
            if following is None:
                return
            left = itertools.chain([following], left)
            channels = self._channels(self.staging, lanes.MUCH)
            if len(channels) > 1:
                self.gather(want for took in lanes.staged(left, channels)[1:] for want in took)
                return
        self.stage_alone(left)

    @property
    def staging(self) -> str:
        return self._calls.one("staging", checked_run_id)

    def gather(self, wants: Iterable[Want]) -> None:
        for _ in self._calls.make("gather", nothing, arguments=rows(want_row(want) for want in wants)):
            pass

    def stage_alone(self, pieces: Iterable[Piece]) -> None:
        """As `stage`, through this channel alone."""
        for _ in self._calls.make("stage", nothing, arguments=map(self._item, pieces)):
            pass

    def _item(self, piece: Piece) -> Item:
        """What stands there already does not cross."""
        tail = tails.rest(piece.data, self._lying.get(piece.want))
        left_out = len(piece.data) - len(tail)
        return piece_item([*want_row(piece.want), *([left_out] if left_out else [])], tail)

    @property
    def resumed(self) -> int:
        return self._resumed

    def commit(self, updates: Sequence[RawUpdate]) -> list[Problem]:
        return self._change("commit", {update.run for update in updates}, map(update_item, updates))

    def hide(self, runs: Collection[RunId]) -> list[Problem]:
        return self._change("hide", runs, rows(runs))

    def reveal(self, runs: Collection[RunId]) -> list[Problem]:
        return self._change("reveal", runs, rows(runs))

    def purge(self, runs: Collection[RunId]) -> list[Problem]:
        return self._change("purge", runs, rows(runs))

    def collect(self, grace: float | None, dry: bool = False) -> Collected:  # noqa: ARG002 - nothing there waits
        (found,) = self._calls.make("collect", each(collected_of), dry=dry)
        return found

    def _change(self, call: str, runs: Collection[RunId], arguments: Iterable[Item]) -> list[Problem]:
        def problem(row: Any) -> Problem:
            found = problem_of(row)
            if found.run not in runs:
                raise Damaged(f"a problem with run {found.run}, which was not to be changed")
            return found

        return list(self._calls.make(call, each(problem), arguments=arguments))

    # -- the call

    def _channels(self, staging: str, size: int) -> Sequence[lanes.Channel]:
        """This one, and further ones to cross so many bytes where the way is long. They stage into `staging`."""
        if self.further is None or size < lanes.MUCH:
            return [_Alone(self)]
        if staging not in self._lanes:
            for old in [name for name in self._lanes if name and staging]:
                for lane in self._lanes.pop(old):
                    self._gone = self._gone.plus(lane.traffic)
                    lane.close()  # it stages where nobody looks any more
            began = time.monotonic()
            self.ping()
            is_long = time.monotonic() - began >= lanes.LONG
            self._lanes[staging] = self.further(staging) if is_long else []
        return [_Alone(each) for each in (self, *self._lanes[staging])]

    def _open(self, opening: Opening, timeout: float) -> None:
        self._channel.timeout = opening.patience
        self._channel.send_raw(opening.words)
        self._channel.send(_HELLO)
        if opening.lists:
            self._listing = self._calls.begin("runs", self._records(None), deleted=None, sizes=False)
        self.noise = self._channel.skip_to(MARK)
        self._channel.timeout = timeout

    def _greet(self) -> None:
        if self._channel.frames_out == 0:
            self._channel.send(_HELLO)
        try:
            frame = self._channel.receive()
        except Damaged as exc:
            hint = "does a start-up file of the shell there print something?"
            raise Damaged("the far side answers with something that is no frame", hint) from exc
        if frame is None:
            raise Unreachable("the far side ended before it said hello")
        header = frame[0]
        if header.get("need") is True:
            raise NeedsModules("the modules that travel are not there")
        if "error" in header:
            raise error_from(header)
        version = header.get("version")
        if "hello" not in header or not isinstance(version, list) or not version:
            raise Damaged("the far side does not say hello")
        if version[0] != VERSION[0]:
            raise GuildsyncError(f"the far side speaks version {str(version[0])[:20]}, not {VERSION[0]}")
        if "replica" in header:
            self._replica = checked_run_id(header["replica"])


class _Alone:
    """One channel of several (`lanes.Channel`)."""

    def __init__(self, far: FarTree) -> None:
        self.fetch, self.stage = far.fetch_alone, far.stage_alone


def _first(pieces: Iterator[Piece], size: int) -> Iterator[Piece]:
    """As many as make up so many bytes; the others stay."""
    while size > 0 and (piece := next(pieces, None)) is not None:
        size -= len(piece.data)
        yield piece


def _clock_step(ahead: float, round_trip: float) -> Step:
    if abs(ahead) <= CLOCKS_APART + round_trip:
        return Step("clock", True, "in step with the one here")
    hint = "nothing depends on it but the times you see: have it set by NTP"
    return Step("clock", True, f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the one here", hint)
