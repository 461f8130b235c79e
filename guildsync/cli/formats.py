"""Rows for other programs and other pages: ids, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from guildsync.cli.rows import Row
from guildsync.model.run import NO_METADATA, Record, RunId, Summary

TABLE, IDS, CSV, MARKDOWN = "table", "ids", "csv", "md"
FORMATS = (TABLE, IDS, CSV, MARKDOWN)
CLIPPED = (TABLE, MARKDOWN)
"""Forms for people, which have the newest rows only unless all are asked for."""

_MARKUP = re.compile(r"([\\`*_\[\]<>|~&])")
_KEYS = tuple(Row(1, "", Record(RunId(""), Summary(), NO_METADATA)).to_json())


def ids(rows: Sequence[Row]) -> list[str]:
    """Whole ids, each once, wherever the runs are."""
    return list(dict.fromkeys(row.record.run for row in rows))


def csv_text(rows: Sequence[Row]) -> str:
    """A header and a record for each row, as RFC 4180 has them: the keys of the JSON rows, with one column `flag:NAME`
    for each flag of any run; lists are joined by spaces. Text is exact; what is not there is empty."""
    records = [row.to_json() for row in rows]
    flags = sorted({name for record in records for name in record["flags"]})
    keys = [key for key in _KEYS if key != "flags"]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([*keys, *(f"flag:{name}" for name in flags)])
    for record in records:
        values = [*(record[key] for key in keys), *(record["flags"].get(name) for name in flags)]
        writer.writerow([_value(value) for value in values])
    return out.getvalue()


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False)


def markdown(rows: Sequence[Row], remote: bool, compared: bool = False) -> str:
    """A table. Cells are text, whatever is in them: no markup, no links, no further columns."""
    head = Row.columns(remote, compared)
    lines = [head, ["---"] * len(head)]
    lines += [[_MARKUP.sub(r"\\\1", cell) for cell in row.cells(remote, compared)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
