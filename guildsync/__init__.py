"""Moves machine-learning runs between laptops, GPU hosts and buckets, and never loses a checkpoint."""

from __future__ import annotations

from typing import Any

from guildsync.version import VERSION

__version__ = VERSION

_API = (
    "LOCAL",
    "Choice",
    "Context",
    "Filters",
    "Options",
    "Outcome",
    "Paths",
    "Policy",
    "Progress",
    "Record",
    "Remote",
    "Verified",
    "open_context",
)
"""Names of `guildsync.api`, imported when they are first asked for: the modules that travel need none of it."""

__all__ = ["__version__", "remote", *_API]  # noqa: PLE0604 -- they are all text


def remote(name: str) -> Any:
    """The remote of that name, as the configuration around here says; raises NotFound."""
    from guildsync import api

    return api.open_context().remote(name)


def __getattr__(name: str) -> Any:
    if name in _API:
        from guildsync import api

        return getattr(api, name)
    raise AttributeError(f"module 'guildsync' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
