"""The values of `model/ports.py` as items of frames and back; whatever comes back out was checked."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from guildsync.agent.frames import Item, dumps, loads
from guildsync.agent.tails import Begun
from guildsync.errors import REASONS, Damaged, Problem
from guildsync.model.manifest import (
    DIRECTORY,
    FILE,
    LINK,
    MAX_MANIFEST,
    MAX_OBJECT,
    Digest,
    Manifest,
    check_path,
    checked_digest,
    digest_of,
    text,
    untext,
)
from guildsync.model.ports import (
    Aim,
    Collected,
    FileInfo,
    Order,
    Output,
    Piece,
    RawRecord,
    RawUpdate,
    Scan,
    Step,
    Want,
)
from guildsync.model.run import Attributes, RunId, Scalars, checked_run_id

MAX_JSON = 64 << 20
"""Of one item's structured blob: the attributes of a run, the problems of a scan."""
ROWS_LIMITS = (MAX_JSON,)
PIECE_LIMITS = (1 << 18, MAX_OBJECT)
SCAN_LIMITS = (MAX_JSON, MAX_MANIFEST, MAX_MANIFEST, MAX_MANIFEST)
UPDATE_LIMITS = (MAX_JSON, MAX_MANIFEST, MAX_MANIFEST)

_KINDS = frozenset((FILE, DIRECTORY, LINK, "other"))
_BATCH, _BATCH_BYTES = 1000, 1 << 18


def rows(values: Iterable[Any]) -> Iterator[Item]:
    """JSON values as items of up to 1,000 of them or about 256 KiB."""
    batch: list[bytes] = []
    size = 0
    for value in values:
        batch.append(dumps(value))
        size += len(batch[-1])
        if len(batch) == _BATCH or size >= _BATCH_BYTES:
            yield [b"[" + b",".join(batch) + b"]"]
            batch, size = [], 0
    if batch:
        yield [b"[" + b",".join(batch) + b"]"]


def rows_of(item: Item) -> list[Any]:
    """The inverse of `rows` for one item; none is empty."""
    found = loads(item[0])
    if not isinstance(found, list) or not found:
        raise Damaged("a list of values is malformed")
    return found


def known_row(run: RunId, contents: Iterable[Digest]) -> Any:
    return [run, sorted(contents)]


def known_of(row: Any) -> tuple[RunId, frozenset[Digest]]:
    with _well_formed("a known run"):
        run, contents = row
        return checked_run_id(run), frozenset(checked_digest(content) for content in contents)


_WANT = 5
"""Values of the row of a want."""


def want_row(want: Want) -> Any:
    return [want.digest, want.size, want.run, text(want.path), want.offset]


def want_of(row: Any) -> Want:
    with _well_formed("a want"):
        digest, size, run, path, offset = row
        want = Want(checked_digest(digest), _count(size), checked_run_id(run), untext(path), _count(offset))
    check_path(want.path)
    if not 0 < want.size <= MAX_OBJECT:
        raise Damaged(f"a want of {want.size} bytes")
    return want


def asked_row(want: Want, begun: Begun | None) -> Any:
    """A want, and how it may begin where that is at hand."""
    return [*want_row(want), *(begun or ())]


def asked_of(row: Any) -> tuple[Want, Begun | None]:
    with _well_formed("a want"):
        row, more = row[:_WANT], row[_WANT:]
    return want_of(row), begun_of(more) if more else None


def begun_of(row: Any) -> Begun:
    with _well_formed("the beginning of an object"):
        size, digest = row
        return Begun(_count(size), checked_digest(digest))


def lying_of(row: Any) -> tuple[int, Begun]:
    """The number of a want, and what stands in its place."""
    with _well_formed("the beginning of an object"):
        number, *begun = row
        return _count(number), begun_of(begun)


def staged_of(label: Any) -> tuple[Want, int | None]:
    """The want of a piece, and how many of its bytes are left out because they are there."""
    with _well_formed("a piece"):
        row, more = label[:_WANT], label[_WANT:]
        (size,) = more or (None,)
    return want_of(row), None if size is None else _count(size)


def part_of(label: Any) -> tuple[int, int | None]:
    """The number of a want that came, and how many of its bytes were left out."""
    with _well_formed("a piece"):
        number, size = label if isinstance(label, list) else (label, None)
        return _count(number), None if size is None else _count(size)


def piece_item(label: Any, data: bytes) -> Item:
    """`label` names the want: its row towards a target, its number among the wanted from a source; and how many of its
    bytes are left out, if any."""
    return [dumps(label), data]


def lost_item(label: Any, problem: Problem) -> Item:
    return [dumps([label, problem_row(problem)]), None]


def lost_of(label: Any) -> tuple[Any, Problem]:
    with _well_formed("a lost object"):
        number, row = label
    return number, problem_of(row)


def label_of(item: Item) -> Any:
    return loads(item[0])


def verified(want: Want, data: bytes | None) -> Piece:
    """The piece, if these are the bytes that `want` names; else Damaged."""
    if data is None or len(data) != want.size or digest_of(data) != want.digest:
        raise Damaged(f"object {want.digest} arrived with other bytes")
    return Piece(want, data)


def problem_row(problem: Problem) -> Any:
    path = None if problem.path is None else text(problem.path)
    return [problem.run, path, problem.reason, problem.detail]


def problem_of(row: Any) -> Problem:
    """Paths that no manifest may hold are what some problems are about, but none leads out of its run. Without a
    run it is about the replica."""
    with _well_formed("a problem"):
        run, path, reason, detail = row
        name = None if path is None else untext(path)
        if reason not in REASONS or not isinstance(detail, str) or len(detail) > 1 << 16:
            raise Damaged("a problem is malformed")
    if name is not None and (not name or b"\0" in name or {b"", b".", b".."} & set(name.split(b"/"))):
        raise Damaged(f"an unsafe path in a problem: {name[:80]!r}")
    return Problem("" if run == "" else checked_run_id(run), name, reason, detail)


def record_row(record: RawRecord) -> Any:
    found = record.attributes
    return {
        "run": record.run,
        "deleted": record.deleted,
        "purged": record.purged,
        "values": _pack(found.values),
        "opref": _encode(found.opref),
        "markers": sorted(found.markers),
        "alive": found.alive,
        "inflight": found.inflight,
        "size": found.size,
        "files": found.files,
        "scalars": found.scalars,
        "lost": found.lost,
    }


def record_of(row: Any) -> RawRecord:
    with _well_formed("a record"):
        size, files = (None if row[name] is None else _count(row[name]) for name in ("size", "files"))
        attributes = Attributes(
            _values(row["values"]),
            _decode(row["opref"]),
            frozenset(_name(name) for name in row["markers"]),
            _flag(row["alive"]),
            _flag(row["inflight"]),
            size,
            files,
            scalars_of(row["scalars"]),
            _flag(row["lost"]),
        )
        return RawRecord(checked_run_id(row["run"]), attributes, _flag(row["deleted"]), _flag(row["purged"]))


def scan_item(scan: Scan) -> Item:
    head = {
        "run": scan.run,
        "content": scan.content,
        "settled": scan.settled,
        "alive": scan.alive,
        "heads": scan.heads,
        "rivals": scan.rivals,
        "problems": [problem_row(problem) for problem in scan.problems],
        "scalars": scan.scalars,
    }
    aim = scan.aim or (None, None)
    return [dumps(head), _bytes_of(scan.manifest), _bytes_of(aim[0]), _bytes_of(aim[1])]


def scan_of(item: Item) -> Scan:
    """Its content is that of its manifest; without a manifest it may be empty, when problems say why."""
    with _well_formed("a scan"):
        head = loads(item[0])
        manifest, before, want = (_manifest_of(data) for data in item[1:])
        aim = None if before is None or want is None else Aim(before, want)
        problems = tuple(problem_of(row) for row in head["problems"])
        unknown = head["content"] == "" and manifest is None and problems
        content = Digest("") if unknown else checked_digest(head["content"])
        heads = tuple(_name(name) for name in head["heads"])
        rivals = tuple(checked_digest(rival) for rival in head["rivals"])
        run, settled, alive = checked_run_id(head["run"]), _flag(head["settled"]), _flag(head["alive"])
        scalars = None if head["scalars"] is None else scalars_of(head["scalars"])
    if manifest is not None and manifest.content != content:
        raise Damaged(f"the manifest of run {run} does not match its digest")
    if any(problem.run != run for problem in problems):
        raise Damaged(f"the scan of run {run} reports on another run")
    return Scan(run, content, manifest, settled, alive, heads, rivals, aim, problems, scalars)


def update_item(update: RawUpdate) -> Item:
    head = {
        "run": update.run,
        "attributes": _pack(update.attributes),
        "attributes_were": _pack(update.attributes_were),
        "markers": None if update.markers is None else _pack(update.markers),
        "withheld": [text(path) for path in sorted(update.withheld)],
    }
    return [dumps(head), _bytes_of(update.have), _bytes_of(update.want)]


def update_of(item: Item) -> RawUpdate:
    with _well_formed("an update"):
        head = loads(item[0])
        withheld = frozenset(untext(path) for path in head["withheld"])
        attributes, were = (
            {_name(name): _decode(value) for name, value in head[key].items()}
            for key in ("attributes", "attributes_were")
        )
        run = checked_run_id(head["run"])
        markers = None if head["markers"] is None else _values(head["markers"])
    for path in withheld:
        check_path(path)
    return RawUpdate(run, _manifest_of(item[1]), _manifest_of(item[2]), attributes, markers, withheld, were)


def scalars_of(row: Any) -> Scalars:
    """By tag, finite numbers, or other ones as strings."""
    with _well_formed("scalars"):
        for tag, values in row.items():
            if not isinstance(tag, str) or not all(type(value) in (int, float, str) for value in values.values()):
                raise ValueError
        return dict(row)


def run_of(row: Any) -> RunId:
    return checked_run_id(row)


def collected_row(found: Collected) -> Any:
    return list(found)


def collected_of(row: Any) -> Collected:
    with _well_formed("what was collected"):
        return Collected(*map(_count, row))


def order_row(order: Order) -> Any:
    variables = [dict(order.env), dict(order.secrets)]
    return [list(order.argv), *variables, order.init, order.activate, order.runner_at, order.after]


def order_of(row: Any) -> Order:
    with _well_formed("an order"):
        argv, env, secrets, init, activate, runner_at, after = row
        for number in (runner_at, after):
            if number is not None:
                _count(number)
        return Order(tuple(argv), dict(env), dict(secrets), init, activate, runner_at, after)


def output_of(item: Item) -> Output:
    with _well_formed("an output"):
        ended, status, size = label_of(item)
        if status is not None and (type(status) is not int or abs(status) >= 1 << 31):
            raise ValueError
        return Output(item[1] or b"", _flag(ended), status, _count(size))


def word_of(row: Any) -> str:
    with _well_formed("a word"):
        return _name(row)


def info_row(info: FileInfo) -> Any:
    return [text(info.name), info.kind, info.size, info.mtime_ns]


def info_of(row: Any) -> FileInfo:
    with _well_formed("a file"):
        name, kind, size, mtime_ns = row
        found = untext(name)
        if b"/" in found or found in (b".", b"..") or kind not in _KINDS or type(mtime_ns) is not int:
            raise ValueError
        return FileInfo(found, kind, _count(size), mtime_ns)


def step_row(step: Step) -> Any:
    return list(step)


def step_of(row: Any) -> Step:
    with _well_formed("a step of a check"):
        name, ok, detail, hint, exit_code = row
        if not all(isinstance(word, str) and len(word) < 1 << 16 for word in (name, detail, hint)):
            raise ValueError
        return Step(name, _flag(ok), detail, hint, _count(exit_code) & 0xFF)


def seconds_of(row: Any) -> float:
    """Since the epoch."""
    with _well_formed("a time"):
        if type(row) not in (int, float) or not 0 <= row < 1 << 40:
            raise ValueError
        return float(row)


def flag_of(row: Any) -> bool:
    with _well_formed("a yes or no"):
        return _flag(row)


@contextmanager
def _well_formed(what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise Damaged(f"{what} is malformed") from exc


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _name(value: Any) -> str:
    """One name, as of an attribute or a marker: never a path."""
    if not isinstance(value, str) or not 0 < len(value) <= 255 or value in (".", "..") or {"/", "\0"} & set(value):
        raise ValueError
    return value


def _encode(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _decode(value: str | None) -> bytes | None:
    return None if value is None else base64.b64decode(value, validate=True)


def _pack(values: Mapping[str, bytes | None]) -> dict[str, str | None]:
    return {name: _encode(value) for name, value in values.items()}


def _values(packed: Any) -> dict[str, bytes]:
    return {_name(name): base64.b64decode(value, validate=True) for name, value in packed.items()}


def _bytes_of(manifest: Manifest | None) -> bytes | None:
    return None if manifest is None else manifest.encode()


def _manifest_of(data: bytes | None) -> Manifest | None:
    return None if data is None else Manifest.decode(data)
