"""Versions that mirrors committed: how a summary says so, and which of them are given up."""

from __future__ import annotations

import json
from typing import Any

from guildsync.model.manifest import canonical
from guildsync.model.run import Summary
from guildsync.store.journal import Version
from guildsync.store.view import View

KEPT = 2
"""So many of the versions of a run that mirrors committed stay, the newest."""
_KEY = "mirrored"


def summary_text(summary: Summary, mirrored: bool) -> str:
    """The summary as a version holds it. Readers pass over a key that they do not know."""
    said: dict[str, Any] = summary.to_json()
    return canonical({**said, _KEY: True} if mirrored else said).decode()


def is_mirrored(version: Version) -> bool:
    """A mirror committed it; what cannot be understood was pushed by somebody."""
    try:
        said = json.loads(version.summary)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get(_KEY) is True


def outdated(view: View, run: str, newer: int = KEPT) -> frozenset[str]:
    """Rule H1: of the living versions of a run that mirrors committed, those beyond which at least `newer` of the
    others go. None while a head is not settled: it may become void, and then the last one before it shows."""
    if not all(view.settled(head.id) for head in view.heads(run)):
        return frozenset()
    past = [version.id for version in view.past(run) if is_mirrored(version)]
    if not past:
        return frozenset()
    heads = [head.id for head in view.heads(run) if is_mirrored(head)]
    before = [view.before(version) - {version} for version in (*heads, *past)]
    return frozenset(version for version in past if sum(version in each for each in before) >= newer)
