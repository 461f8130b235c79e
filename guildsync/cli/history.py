"""What was done to a run, in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from guildsync.cli import words
from guildsync.cli.rows import table
from guildsync.cli.words import SHORT_ID, number, shown

if TYPE_CHECKING:
    from guildsync.api import Moment

_DONE = {"delete": "deleted", "restore": "restored"}
_UNKNOWN = "-"


def history_rows(moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """The oldest first; times by the clock of the store."""
    return [{**each._asdict(), "stored": words.iso_time(_microseconds(each))} for each in moments]


def history_lines(moments: Sequence[Moment]) -> str:
    """The oldest first: when, what, and whether it holds now."""
    rows = [
        [f"  {words.local_time(_microseconds(each)) or _UNKNOWN}", "*" if each.current else "", shown(_words(each))]
        for each in moments
    ]
    return "history (* holds now):\n" + table(rows, None)


def _microseconds(moment: Moment) -> int | None:
    return None if moment.stored is None else round(moment.stored * 1_000_000)


def _words(moment: Moment) -> str:
    what, value = moment.what, moment.value
    field, _, name = what.partition(":")
    if what == "version":
        return _version(value)
    if what == "purge":
        return f"purged {number(len(value), 'version')}"
    if field == "tag":
        return f"tag {name} {'added' if value else 'removed'}"
    if field == "comment":
        return f"comment: {value['body']}" if isinstance(value, dict) else f"comment {name[:SHORT_ID]} removed"
    if what == "marked":
        return "marked" if value else "unmarked"
    if what in _DONE:
        return _DONE[what]
    return f"{what} removed" if value is None else f"{what}: {value}"


def _version(value: dict[str, Any]) -> str:
    said = [f"version {value['content'][:SHORT_ID]}{': ' + value['status'] if value['status'] else ''}"]
    said += [number(value["files"], "file")] if value["files"] is not None else []
    said += [words.size(value["size"])] if value["size"] is not None else []
    return ", ".join(said) + ("" if value["kept"] else " (given up)")
