"""Waiting for what other processes do: until something is true, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 60.0
"""Seconds: for a machine that is busy; nothing waits that long when all is well."""


def until(true: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Raises AssertionError, saying `what` never came."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)
