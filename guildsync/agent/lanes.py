"""Several channels to one home: where the way is long, one alone is bound by its window."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from guildsync.model.ports import Lost, Piece, Want

MUCH = 32 << 20
"""Bytes from which further channels are worth their start."""
LONG = 0.01
"""Seconds of a round trip from which they are."""
_AHEAD = 4
_LOOK = 0.2

Answer = Piece | Lost


class Channel(Protocol):
    def fetch(self, wanted: Iterable[Want]) -> Iterator[Answer]: ...

    def stage(self, pieces: Iterable[Piece]) -> None: ...


def fetched(wanted: Sequence[Want], lanes: Sequence[Channel]) -> Iterator[Answer]:
    """What all lanes answer, each asked for a part of about as many bytes, as it comes."""
    answers: queue.Queue[Any] = queue.Queue(_AHEAD * len(lanes))
    stop = threading.Event()

    def take(lane: Channel, part: Sequence[Want]) -> None:
        for answer in lane.fetch(part):
            if not _put(answers, answer, stop.is_set):
                return

    parts = _parts(wanted, len(lanes))
    workers = [_Worker(take, lane, part) for lane, part in zip(lanes, parts, strict=True)]
    try:
        while True:
            running = any(worker.is_alive() for worker in workers)
            try:
                yield answers.get(timeout=_LOOK if running else 0)
            except queue.Empty:
                _raise_first(workers)
                if not running:
                    return
    except KeyboardInterrupt:
        stop.set()
        raise  # nobody waits for the channels
    finally:
        if not stop.is_set():
            stop.set()
            _join(workers)


def staged(pieces: Iterable[Piece], lanes: Sequence[Channel]) -> list[list[Want]]:
    """Spread pieces over lanes, each of which takes the next when it can; answers what each took."""
    waiting: queue.Queue[Piece | None] = queue.Queue(_AHEAD * len(lanes))
    took: list[list[Want]] = [[] for _ in lanes]

    def given(mine: list[Want]) -> Iterator[Piece]:
        while (piece := waiting.get()) is not None:
            mine.append(piece.want)
            yield piece

    workers = [_Worker(lane.stage, given(mine)) for lane, mine in zip(lanes, took, strict=True)]

    def failed() -> bool:
        return any(worker.error is not None for worker in workers)

    def end() -> None:
        while any(worker.is_alive() for worker in workers):
            _put(waiting, None, lambda: not any(worker.is_alive() for worker in workers))
        _join(workers)

    try:
        for piece in pieces:
            if not _put(waiting, piece, failed):
                break
    except Exception:
        end()
        raise
    end()
    _raise_first(workers)
    return took


class _Worker(threading.Thread):
    def __init__(self, act: Callable[..., None], *args: Any) -> None:
        super().__init__(name="guildsync-lane", daemon=True)
        self._act, self._args = act, args
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._act(*self._args)
        except BaseException as exc:  # noqa: BLE001 -- it is raised where the lanes are used
            self.error = exc


def _put(waiting: queue.Queue[Any], item: Any, is_over: Callable[[], bool]) -> bool:
    while not is_over():
        try:
            waiting.put(item, timeout=_LOOK)
        except queue.Full:
            continue
        return True
    return False


def _join(workers: Iterable[_Worker]) -> None:
    """Their channels end every wait."""
    for worker in workers:
        worker.join()


def _raise_first(workers: Iterable[_Worker]) -> None:
    for worker in workers:
        if worker.error is not None:
            raise worker.error


def _parts(wanted: Sequence[Want], count: int) -> list[list[Want]]:
    """Consecutive ones stay together."""
    total = sum(want.size for want in wanted)
    parts: list[list[Want]] = [[] for _ in range(count)]
    before = 0
    for want in wanted:
        parts[min(count - 1, before * count // max(1, total))].append(want)
        before += want.size
    return parts
