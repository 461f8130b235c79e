"""How long a machine is waited for; clocks and sleep are passed in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from guildsync.errors import Unreachable

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """Seconds until a machine must be `listed` after it was made, `running`, `ended` (stopped or destroyed), have
    `answered` over ssh, and shown its key on the `console`; something is looked at `every` so many seconds."""

    listed: float = 120.0
    running: float = 600.0
    ended: float = 900.0
    answered: float = 300.0
    console: float = 600.0
    every: float = 2.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until(self, look: Callable[[], T | None], seconds: float, what: str) -> T:
        """What `look` finds once it finds something. Raises Unreachable, saying `what` did not come."""
        end = self.clock() + seconds
        while (found := look()) is None:
            if self.clock() >= end:
                raise Unreachable(f"{what} within {round(seconds)} s", "give the same command again: it goes on")
            self.sleep(self.every)
        return found
