"""TensorBoard's event files, byte by byte: records, Events, and the values in them."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from tests.kit.trees import _field as field
from tests.kit.trees import _record as record
from tests.kit.trees import _varint as varint

DT_FLOAT, DT_DOUBLE, DT_INT32, DT_STRING, DT_INT64, DT_HALF = 1, 2, 3, 7, 9, 19
WALL_TIME = 1_700_000_000.25


def integer(value: int) -> bytes:
    """A signed number as a varint."""
    return varint(value & 0xFFFFFFFFFFFFFFFF)


def event(*values: bytes, step: int = 0) -> bytes:
    """A serialised Event with these values in its summary; as protobuf has it, a step of 0 is left out."""
    steps = field(2, 0, integer(step)) if step else b""
    return field(1, 1, struct.pack("<d", WALL_TIME)) + steps + field(5, 2, b"".join(field(1, 2, v) for v in values))


def simple_value(tag: str | bytes, number: float) -> bytes:
    return field(1, 2, _bytes(tag)) + field(2, 5, struct.pack("<f", number))


def tensor_value(tag: str | bytes, tensor: bytes, plugin: str | None = "scalars") -> bytes:
    """A value that holds a serialised TensorProto; without metadata where `plugin` is None."""
    metadata = field(9, 2, field(1, 2, field(1, 2, plugin.encode()))) if plugin is not None else b""
    return field(1, 2, _bytes(tag)) + field(8, 2, tensor) + metadata


def tensor(kind: int, elements: bytes, shape: Iterable[int] = ()) -> bytes:
    """A serialised TensorProto; `elements` is the serialised field that holds them."""
    dimensions = b"".join(field(2, 2, field(1, 0, integer(size))) for size in shape)
    return field(1, 0, integer(kind)) + field(2, 2, dimensions) + elements


def content(format_: str, *numbers: float) -> bytes:
    """Elements as `tensor_content`, packed by `struct`."""
    return field(4, 2, struct.pack(f"<{len(numbers)}{format_}", *numbers))


def scalar_event(tag: str | bytes, value: float, step: int, tensor: bool = False) -> bytes:
    """A serialised Event with one scalar, as torch writes it (a simple value) or as TensorFlow 2 does (a tensor)."""
    if not tensor:
        return event(simple_value(tag, value), step=step)
    return event(tensor_value(tag, float_tensor(value)), step=step)


def float_tensor(value: float) -> bytes:
    return tensor(DT_FLOAT, content("f", value))


def event_bytes(*events: bytes) -> bytes:
    """An event file: what every writer begins with, and these serialised Events."""
    version = field(1, 1, struct.pack("<d", WALL_TIME)) + field(3, 2, b"brain.Event:2")
    return b"".join(record(each) for each in (version, *events))


def _bytes(tag: str | bytes) -> bytes:
    return tag.encode() if isinstance(tag, str) else tag
