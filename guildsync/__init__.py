"""Moves machine-learning runs between laptops, GPU hosts and buckets, and never loses a checkpoint."""

from __future__ import annotations

from typing import Any

from guildsync.version import VERSION

__version__ = VERSION

_API = (
    "LOCAL",
    "Acted",
    "Choice",
    "Collected",
    "Context",
    "Difference",
    "Filters",
    "Instance",
    "Mirrored",
    "Moment",
    "Options",
    "Outcome",
    "Paths",
    "Policy",
    "Progress",
    "Record",
    "Remote",
    "Request",
    "Scope",
    "Stakes",
    "Survey",
    "Teller",
    "Terms",
    "Verified",
    "open_context",
)
"""Names of `guildsync.api`, imported when they are first asked for: the modules that travel need none of it."""

_PARSERS = ("parse_expression", "parse_range")
"""What makes parts of Filters out of text: imported by the few commands that are given some."""

__all__ = ["__version__", "remote", *_API, *_PARSERS]  # noqa: PLE0604 -- they are all text


def remote(name: str) -> Any:
    """The remote of that name, as the configuration around here says; raises NotFound."""
    from guildsync import api

    return api.open_context().remote(name)


def __getattr__(name: str) -> Any:
    if name in _API:
        from guildsync import api

        return getattr(api, name)
    if name in _PARSERS:
        from guildsync.model import expression, timerange

        return expression.parse if name == "parse_expression" else timerange.parse
    raise AttributeError(f"module 'guildsync' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API, *_PARSERS})
