"""Runs as rows: a table, `key: value` lines, and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guildsync.cli import words
from guildsync.cli.words import SHORT_ID, clipped, shown
from guildsync.model.run import Metadata, Record, plain

_WIDEST = 40
"""Columns of a terminal that one cell may take, the last of a row apart."""


@dataclass(frozen=True)
class Row:
    """A run as a remote lists it, its index there, and how it compares with the one in this home, if that was told."""

    index: int
    remote: str
    record: Record
    standing: str | None = None

    def to_json(self) -> dict[str, Any]:
        summary, metadata = self.record.summary, self.record.metadata
        return {
            "id": self.record.run,
            "operation": summary.operation,
            "status": summary.status,
            "exit_status": summary.exit_status,
            "started": words.iso_time(summary.started),
            "stopped": words.iso_time(summary.stopped),
            "label": metadata.label,
            "tags": sorted(metadata.tags),
            "marked": metadata.marked,
            "flags": plain(summary.flags),
            "remote": self.remote,
            "size": summary.size,
            "files": summary.files,
            "deleted": self.record.deleted,
            "standing": self.standing,
        }

    def cells(self, remote: bool, compared: bool = False) -> list[str]:
        """In the order of `columns`. `remote`: also where it is; `compared`: and how it compares."""
        summary, metadata = self.record.summary, self.record.metadata
        said = [metadata.label or "", *(f"#{tag}" for tag in sorted(metadata.tags))]
        return [
            str(self.index),
            self.record.run[:SHORT_ID],
            *([shown(self.remote)] if remote else []),
            shown(summary.operation),
            words.local_time(summary.started),
            summary.status,
            *([self.standing or ""] if compared else []),
            shown(" ".join(word for word in said if word)),
        ]

    @staticmethod
    def columns(remote: bool, compared: bool = False) -> list[str]:
        """What the cells are."""
        where, standing = ["where"] if remote else [], ["compared"] if compared else []
        return ["#", "id", *where, "operation", "started", "status", *standing, "label"]


def table(rows: Sequence[Sequence[str]], columns: int | None) -> str:
    """Aligned lines of cells, cut to so many columns; None: whole."""
    if columns is not None:
        rows = [[*(clipped(cell, _WIDEST) for cell in row[:-1]), row[-1]] for row in rows]
    widths = [max(words.width(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        padded = [cell + " " * (wide - words.width(cell)) for cell, wide in zip(row, widths, strict=True)]
        line = "  ".join(padded).rstrip()
        lines.append(line if columns is None else clipped(line, columns))
    return "\n".join(lines)


def details(row: Row, where: str) -> dict[str, Any]:
    """All that is known of one run, as JSON can say it."""
    summary, metadata = row.record.summary, row.record.metadata
    return {
        **row.to_json(),
        "scalars": plain(summary.scalars),
        "command": list(summary.command),
        "comments": [{**each.to_json(), "time": words.iso_time(each.time)} for each in metadata.comments],
        "where": where,
    }


def detail_lines(row: Row, where: str) -> str:
    """`key: value` lines; what a run does not have is left out."""
    summary, metadata = row.record.summary, row.record.metadata
    status = summary.status if summary.exit_status is None else f"{summary.status} (exit {summary.exit_status})"
    lines = [
        f"id: {row.record.run}",
        f"operation: {shown(summary.operation)}",
        f"status: {status}",
        *_line("started", words.local_time(summary.started)),
        *_line("stopped", words.local_time(summary.stopped)),
        *_block("flags", summary.flags),
        *_block("scalars", {name: _scalar(value) for name, value in summary.scalars.items()}),
        *_line("command", shown(" ".join(summary.command))),
        *_line("size", words.size(summary.size) if summary.size is not None else ""),
        *_line("files", str(summary.files) if summary.files is not None else ""),
        *_line("label", shown(metadata.label or "")),
        *_line("tags", ", ".join(shown(tag) for tag in sorted(metadata.tags))),
        *(["marked: yes"] if metadata.marked else []),
    ]
    lines += ["comments:", *(f"  {line}" for line in comment_lines(metadata))] if metadata.comments else []
    lines.append(f"where: {shown(where)}")
    return "\n".join(lines)


def comment_lines(metadata: Metadata) -> list[str]:
    """One line a comment, the oldest first: when, by whom, and what."""
    lines = []
    for comment in metadata.comments:
        by = "@".join(word for word in (comment.user, comment.host) if word)
        lines.append(shown(" ".join(w for w in (words.local_time(comment.time), by) if w) + f": {comment.body}"))
    return lines


def _line(key: str, value: str) -> list[str]:
    return [f"{key}: {value}"] if value else []


def _block(key: str, values: Mapping[str, Any]) -> list[str]:
    return [f"{key}:", *(f"  {shown(name)}: {_value(values[name])}" for name in sorted(values))] if values else []


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else shown(value)


def _scalar(value: Any) -> Any:
    """The last value of a scalar and its step."""
    if not isinstance(value, Mapping) or "last" not in value:
        return value
    step = value.get("last_step", value.get("step"))
    return value["last"] if step is None else f"{value['last']} (step {step})"
