"""Calls over a channel, one after another, and their answers as they arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from guildsync.agent.frames import Channel, Incoming, Item, error_header, send_item
from guildsync.agent.values import ROWS_LIMITS, rows_of
from guildsync.errors import Damaged, GuildsyncError, Unreachable

AHEAD = 256 << 20
"""Bytes of an unfinished answer that are taken into memory when another call is made meanwhile."""
MAX_LISTING = 1 << 30
"""Bytes of an answer whose length nothing that was asked bounds."""

T = TypeVar("T")


class Calls:
    """What one end asks of the other, for one thread. `made` counts. `decode` checks every item of an answer; one that
    fails the check gives up the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last: _Answer[Any] | None = None
        self._sending = False
        self.made = 0

    def make(
        self,
        name: str,
        decode: Callable[[Item], Iterable[T]],
        limits: Sequence[int] = ROWS_LIMITS,
        arguments: Iterable[Item] = (),
        **flags: bool | str | None,
    ) -> Iterator[T]:
        """One round trip. Values come as they arrive; a consumer that stops early cancels the rest."""
        if self._sending:
            raise GuildsyncError("a call was made by what another call sends")
        if self._last is not None:
            self._last.finish()
        yield from self.begin(name, decode, limits, arguments, **flags)

    def begin(
        self,
        name: str,
        decode: Callable[[Item], Iterable[T]],
        limits: Sequence[int] = ROWS_LIMITS,
        arguments: Iterable[Item] = (),
        **flags: bool | str | None,
    ) -> Iterator[T]:
        """Sends the call now; its values can be had later."""
        self.made += 1
        number = self.made
        answer = self._last = _Answer(self._channel, number, limits, decode)
        self._channel.send({"call": name, "id": number, **flags})
        self._send(number, arguments, answer)
        return self._values(answer)

    def _values(self, answer: _Answer[T]) -> Iterator[T]:
        try:
            yield from answer
        except GeneratorExit:
            answer.cancel()
            raise

    def _send(self, number: int, arguments: Iterable[Item], answer: _Answer[Any]) -> None:
        """What cannot be produced to the end is aborted there, too: half a commit is none."""
        self._sending = True
        try:
            for item in arguments:
                send_item(self._channel, item)
                if self._channel.waiting():
                    break  # an early answer is an error: more of this is of no use
            self._channel.send({"end": True, "id": number})
        except Exception as exc:
            if self._channel.broken is None:
                self._channel.send(error_header(exc, number))
                answer.drop()
            raise
        except BaseException:
            self._channel.fail(Unreachable("the call was interrupted"))  # for Ctrl-C nothing is waited for
            raise
        finally:
            self._sending = False

    def one(self, name: str, decode: Callable[[Any], T], arguments: Iterable[Item] = ()) -> T:
        """The answer of a call that has exactly one."""
        found = list(self.make(name, each(decode), arguments=arguments))
        if len(found) != 1:
            raise Damaged(f"{len(found)} answers to one question")
        return found[0]


class _Answer(Generic[T]):
    """The answer to one call: values that arrived, the last of them perhaps the error that ended it."""

    def __init__(
        self, channel: Channel, number: int, limits: Sequence[int], decode: Callable[[Item], Iterable[T]]
    ) -> None:
        self._channel, self._number, self._decode = channel, number, decode
        self._incoming = Incoming(channel, number, limits)
        self._items = iter(self._incoming)
        self._dropped = False
        self._listed = 0
        self.values: deque[T | GuildsyncError] = deque()

    def __iter__(self) -> Iterator[T]:
        while self.values or self.more():
            if not self.values:
                continue  # an item without a value
            value = self.values.popleft()
            if isinstance(value, GuildsyncError):
                raise value
            yield value

    def more(self) -> bool:
        """Takes in the next item, or the error that is there instead; False at the end."""
        try:
            item = next(self._items, None)
            if item is not None:
                self._listed += len(item[0] or b"")
                if self._listed > MAX_LISTING:
                    raise Damaged("an answer is larger than allowed")
                self.values.extend(self._decode(item))
            return item is not None
        except GuildsyncError as exc:
            self.values.append(exc if self._incoming.ended else self._channel.fail(exc))
            return True
        except BaseException:
            self._channel.fail(Unreachable("the call was interrupted"))
            raise

    def cancel(self) -> None:
        """Nobody wants the rest: the far side stops where it is, and what is on its way is dropped by `finish`."""
        if not self._incoming.ended and self._channel.broken is None:
            try:
                self._channel.send({"cancel": True, "id": self._number})
                self._channel.flush()
            except Unreachable:
                pass  # the next call will say so
        self.drop()

    def drop(self) -> None:
        self._dropped = True
        self.values.clear()

    def finish(self) -> None:
        """Takes in what is left, for whoever goes on reading it after another call."""
        limit = self._channel.bytes_in + AHEAD
        while not self._incoming.ended and self._channel.broken is None:
            if self._channel.bytes_in > limit:
                raise GuildsyncError("a call was made while a large answer was being read")
            self.more()
            if self._dropped:
                self.values.clear()


def each(check: Callable[[Any], T]) -> Callable[[Item], list[T]]:
    """Decodes items that are lists of values, each of which `check` takes or refuses."""
    return lambda item: [check(row) for row in rows_of(item)]


def nothing(_item: Item) -> list[None]:
    """Refuses every item."""
    raise Damaged("an answer where there is none to be")
