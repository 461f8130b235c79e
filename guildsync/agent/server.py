"""The far end of the pipe: one dispatch table from calls to a Tree."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from guildsync.agent import tails
from guildsync.agent.frames import VERSION, Channel, Header, Incoming, Item, error_header, send_item
from guildsync.agent.values import (
    PIECE_LIMITS,
    ROWS_LIMITS,
    UPDATE_LIMITS,
    asked_of,
    collected_row,
    info_row,
    known_of,
    label_of,
    lost_item,
    order_of,
    piece_item,
    problem_row,
    record_row,
    rows,
    rows_of,
    run_of,
    scan_item,
    staged_of,
    step_row,
    update_of,
    verified,
    want_of,
)
from guildsync.compute.executor import LocalExecutor
from guildsync.compute.local import steps
from guildsync.errors import Damaged, GuildsyncError, Unreachable, Usage
from guildsync.model.manifest import untext
from guildsync.model.ports import Executor, Piece, RawTree, Want
from guildsync.model.run import RunId
from guildsync.tree.home import Home
from guildsync.tree.tree import Tree

IDLE = 60.0
BEAT = 10.0
LONGEST_WAIT = 20.0


def serve(
    tree: RawTree,
    reader: Any,
    writer: Any,
    idle: float = IDLE,
    beat: float = BEAT,
    executor: Optional[Executor] = None,
) -> None:
    """Answers calls until the near end closes its side or is silent for `idle` seconds; then closes both descriptors.

    Errors of a call are answered and the next one is awaited; only frames that make no sense end the service.
    `beat` seconds apart the near end hears that this one lives, however long the tree takes.
    """
    channel = Channel(reader, writer, idle)
    try:
        if _greeted(channel, tree):
            channel.keep_beating(beat)
            while _serve_one(channel, tree, executor):
                pass
    except Unreachable:
        pass  # the near end went away, which it may do at any time
    except GuildsyncError as exc:
        _say_last(channel, exc)
    finally:
        channel.close()


def main(wanted: Mapping[str, Any]) -> None:
    """Serves the home that `wanted` names over stdin and stdout; nothing else reaches them from now on. Its `keep_env`,
    `rehash` and `patient` are those of `Tree`; with `join` objects are staged for another process that serves the same
    home."""
    umask = os.umask(0o077)
    reader, writer = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    home = Home(wanted["home"])
    keep_env, rehash, patient = (wanted.get(name) is True for name in ("keep_env", "rehash", "patient"))
    tree = Tree(home, keep_env, rehash=rehash, patient=patient)
    try:
        if wanted.get("join"):
            tree.join(wanted["join"])
        serve(tree, reader, writer, executor=LocalExecutor(home.runs, umask))
    finally:
        tree.close()


def _greeted(channel: Channel, tree: RawTree) -> bool:
    """The answer says at once what is asked first."""
    frame = channel.receive()
    if frame is None:
        return False
    version = frame[0].get("version")
    error = None
    if "hello" not in frame[0] or not isinstance(version, list) or not version:
        error = GuildsyncError("the first frame is no hello")
    elif version[0] != VERSION[0]:
        said = str(version[0])[:20]
        error = GuildsyncError(
            f"this agent speaks version {VERSION[0]}, not {said}", "use the same guildsync on both sides"
        )
    if error is not None:
        channel.send(error_header(error, None))
    else:
        header: Header = {"hello": "guildsync", "version": VERSION, "capabilities": sorted(CALLS)}
        if tree.is_there:
            header["replica"] = tree.replica
        channel.send(header)
    channel.flush()
    return error is None


def _say_last(channel: Channel, error: GuildsyncError) -> None:
    try:
        channel.broken = None  # for one last frame
        channel.send(error_header(error, None))
        channel.flush()
    except GuildsyncError:
        pass  # nobody listens


def _serve_one(channel: Channel, tree: RawTree, executor: Optional[Executor]) -> bool:
    """False when the near end is done.

    No order of sending blocks both ends: an answer begins when its arguments are in. Only `stage` works while they
    come; if it ends before them, the answer (one frame) is sent, which the near end looks for between any two of its
    frames, and the arguments are read to their end.
    """
    frame = channel.receive()
    if frame is None:
        return False
    header = frame[0]
    name, number = header.get("call"), header.get("id")
    if "cancel" in header:
        return True  # it crossed with the end of the answer
    if not isinstance(name, str) or not isinstance(number, int):
        raise channel.fail(Damaged("a frame that is no call"))
    limits, handler = CALLS.get(name, (ROWS_LIMITS, _unknown))
    if executor is not None and name in EXECUTES:
        handler = partial(EXECUTES[name], executor)
    incoming = Incoming(channel, number, limits)
    try:
        given = incoming if handler is _stage else list(incoming)
        for item in handler(tree, header, given):
            send_item(channel, item)
            if _cancelled(channel, number):
                break
        answer: Header = {"end": True, "id": number}
    except Exception as exc:  # a tree may fail in any way; this end goes on
        if channel.broken is not None:
            raise channel.broken from exc
        answer = error_header(exc, number)
    channel.send(answer)
    channel.flush()
    incoming.skip()
    return True


def _cancelled(channel: Channel, number: int) -> bool:
    if not channel.waiting():
        return False
    frame = channel.receive()
    if frame is None:
        raise channel.fail(Unreachable("the near end went away"))
    if "cancel" not in frame[0] or frame[0].get("id") != number:
        raise channel.fail(Damaged("a frame in the middle of an answer"))
    return True


Handler = Callable[[RawTree, Header, Iterable[Item]], Iterable[Item]]


def _unknown(_tree: RawTree, header: Header, _items: Iterable[Item]) -> Iterable[Item]:
    raise Usage(f"this agent does not know the call {header['call'][:40]!r}", "use the same guildsync on both sides")


def _ping(_tree: RawTree, _header: Header, _items: Iterable[Item]) -> Iterable[Item]:
    return ()


def _runs(tree: RawTree, header: Header, items: Iterable[Item]) -> Iterable[Item]:
    """Records, then the problems of the listing: they are known when it ended."""
    deleted = header.get("deleted", False)
    only = _runs_of(items) if header.get("only") is True else None
    found = tree.runs(None if deleted is None else deleted is True, header.get("sizes") is True, only)
    yield from rows(record_row(record) for record in found)
    yield from rows(problem_row(problem) for problem in tree.problems)


def _manifests(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    known = dict(known_of(row) for row in _all_rows(items))
    return (scan_item(scan) for scan in tree.manifests(known))


def _fetch(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    """What the near end has the beginning of comes without it."""
    begun = dict(map(asked_of, _all_rows(items)))
    numbers = {want: number for number, want in enumerate(begun)}
    for found in tree.fetch(list(begun)):
        number = numbers[found.want]
        if not isinstance(found, Piece):
            yield lost_item(number, found.problem)
            continue
        tail = tails.rest(found.data, begun[found.want])
        left_out = len(found.data) - len(tail)
        yield piece_item([number, left_out] if left_out else number, tail)


def _missing(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    """Digests; what stands in the places of some of them, by the number of the want; then the bytes that are taken over
    from an interrupted sync, if any."""
    wants, before = _wants(items), tree.resumed
    missing = tree.missing(wants)
    begun = tails.lying(tree, wants, missing)
    found: List[Any] = [*sorted(missing), *([number, *begun[number]] for number in sorted(begun))]
    taken_over = tree.resumed - before
    return rows([*found, taken_over] if taken_over else found)


def _stage(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    tree.stage(_received(tree, label_of(item), item[1]) for item in items)
    return ()


def _received(tree: RawTree, label: Any, data: Optional[bytes]) -> Piece:
    """What stands behind the first part of a file is of a file with several, which is hashed as a whole before it gets
    its name: one hash is proof enough."""
    want, left_out = staged_of(label)
    if left_out is not None:
        return tails.completed(tree, want, left_out, data or b"")
    if want.offset and data is not None and len(data) == want.size:
        return Piece(want, data)
    return verified(want, data)


def _staging(tree: RawTree, _header: Header, _items: Iterable[Item]) -> Iterable[Item]:
    return rows([tree.staging])


def _gather(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    tree.gather(_wants(items))
    return ()


def _commit(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    return rows(problem_row(problem) for problem in tree.commit([update_of(item) for item in items]))


def _hide(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    return rows(problem_row(problem) for problem in tree.hide(_runs_of(items)))


def _reveal(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    return rows(problem_row(problem) for problem in tree.reveal(_runs_of(items)))


def _purge(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    return rows(problem_row(problem) for problem in tree.purge(_runs_of(items)))


def _collect(tree: RawTree, header: Header, _items: Iterable[Item]) -> Iterable[Item]:
    return rows([collected_row(tree.collect(None, header.get("dry") is True))])


def _audit(tree: RawTree, _header: Header, _items: Iterable[Item]) -> Iterable[Item]:
    return rows(problem_row(problem) for problem in tree.audit())


def _check(tree: RawTree, header: Header, _items: Iterable[Item]) -> Iterable[Item]:
    """One item a step: whoever has heard enough stops before the next is taken."""
    is_fine = True
    for step in tree.check():
        is_fine = is_fine and step.ok
        yield from rows([step_row(step)])
    if is_fine and header.get("host") is True:
        yield from rows(step_row(step) for step in steps())


def _clock(_tree: RawTree, _header: Header, _items: Iterable[Item]) -> Iterable[Item]:
    return rows([time.time()])


def _list(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    (path,) = _all_rows(items)
    return rows(info_row(info) for info in tree.folder.list(untext(path)))


def _info(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    (path,) = _all_rows(items)
    return rows([info_row(tree.folder.info(untext(path)))])


def _read(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    path, start, stop = _all_rows(items)
    return (piece_item(None, data) for data in tree.folder.read(untext(path), int(start), int(stop)))


def _replica(tree: RawTree, _header: Header, _items: Iterable[Item]) -> Iterable[Item]:
    return rows([tree.replica])


def _there(tree: RawTree, _header: Header, _items: Iterable[Item]) -> Iterable[Item]:
    return rows([tree.is_there])


def _moved(tree: RawTree, _header: Header, items: Iterable[Item]) -> Iterable[Item]:
    """Run ids; null instead: everything may have moved."""
    (seconds,) = _all_rows(items)
    moved = tree.hints.wait(min(float(seconds), LONGEST_WAIT))
    return rows([None] if moved is None else sorted(moved))


def _all_rows(items: Iterable[Item]) -> Iterator[Any]:
    return (row for item in items for row in rows_of(item))


def _runs_of(items: Iterable[Item]) -> List[RunId]:
    return [run_of(row) for row in _all_rows(items)]


def _wants(items: Iterable[Item]) -> List[Want]:
    return [want_of(row) for row in _all_rows(items)]


def _start(executor: Executor, _tree: RawTree, header: Header, items: Iterable[Item]) -> Iterable[Item]:
    (order,) = _all_rows(items)
    return rows([executor.start(run_of(header.get("run")), order_of(order))])


def _output(executor: Executor, _tree: RawTree, header: Header, items: Iterable[Item]) -> Iterable[Item]:
    """The bytes, what is known of its end, and how many there are."""
    offset, wait = _all_rows(items)
    found = executor.output(run_of(header.get("run")), int(offset), min(float(wait), LONGEST_WAIT))
    return [piece_item([found.ended, found.exit_status, found.size], found.data)]


def _stop(executor: Executor, _tree: RawTree, header: Header, items: Iterable[Item]) -> Iterable[Item]:
    (patience,) = _all_rows(items)
    return rows([executor.stop(run_of(header.get("run")), float(patience))])


Executes = Callable[[Executor, RawTree, Header, Iterable[Item]], Iterable[Item]]
EXECUTES: Dict[str, Executes] = {"start": _start, "output": _output, "stop": _stop}
"""What is answered where processes may be started."""

CALLS: Dict[str, Tuple[Sequence[int], Handler]] = {
    "ping": (ROWS_LIMITS, _ping),
    "runs": (ROWS_LIMITS, _runs),
    "moved": (ROWS_LIMITS, _moved),
    "manifests": (ROWS_LIMITS, _manifests),
    "fetch": (ROWS_LIMITS, _fetch),
    "missing": (ROWS_LIMITS, _missing),
    "stage": (PIECE_LIMITS, _stage),
    "staging": (ROWS_LIMITS, _staging),
    "gather": (ROWS_LIMITS, _gather),
    "commit": (UPDATE_LIMITS, _commit),
    "hide": (ROWS_LIMITS, _hide),
    "reveal": (ROWS_LIMITS, _reveal),
    "purge": (ROWS_LIMITS, _purge),
    "collect": (ROWS_LIMITS, _collect),
    "audit": (ROWS_LIMITS, _audit),
    "check": (ROWS_LIMITS, _check),
    "clock": (ROWS_LIMITS, _clock),
    "list": (ROWS_LIMITS, _list),
    "info": (ROWS_LIMITS, _info),
    "read": (ROWS_LIMITS, _read),
    "replica": (ROWS_LIMITS, _replica),
    "there": (ROWS_LIMITS, _there),
}
"""By name: what a call's argument items may hold at most, and who answers it."""
