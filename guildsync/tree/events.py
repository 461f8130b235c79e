"""Event files as TensorBoard reads them: their records, and the scalars in serialised Events."""

from __future__ import annotations

import struct
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from guildsync.model.crc32c import masked
from guildsync.tree.hashing import read_at

Add = Callable[[int, float], None]
"""Takes the next value of one tag: step, number."""
Take = Callable[[str, int, float], Optional[Add]]
"""Takes the next value: tag, step, number. Answers who may be given all that follow of this tag, if anybody."""

MAX_TAG = 1 << 10
"""Values of a longer tag are passed over."""
MAX_RECORD = 16 << 20
"""A longer record is passed over."""
MAX_LENGTH = 1 << 30
"""What is said to be longer is no record."""

_CHUNK = 1 << 20
_HEADER = struct.Struct("<QI")
_AROUND = _HEADER.size + 4
_LENGTHS = 1 << 12

_SHAPES = 8
_REMEMBERED = 10_000
_LONGEST = 2 * MAX_TAG  # of the values that are remembered

_FLOAT, _DOUBLE, _HALF = struct.Struct("<f"), struct.Struct("<d"), struct.Struct("<e")
_TENSORS = {
    1: (_FLOAT, 5),
    2: (_DOUBLE, 6),
    3: (struct.Struct("<i"), 7),
    9: (struct.Struct("<q"), 10),
    19: (_HALF, 13),
}
"""DataType (float, double, int32, int64, half) -> how an element of a tensor's content is read, and the field that
holds the elements where the content does not."""

_MALFORMED = (IndexError, ValueError, struct.error)


def read_records(fd: int, offset: int, size: int, take: Callable[[bytes], None]) -> int:
    """Gives every whole record of [offset, size) to `take`, in order; answers where the first one begins that is not
    whole or not sound. The check sums of lengths are verified, those of data are not. Raises OSError."""
    sound: Dict[int, int] = {}
    need = _HEADER.size
    while offset + need <= size:
        chunk = read_at(fd, min(max(_CHUNK, need), size - offset), offset)
        if len(chunk) < need:
            return offset
        at, need, count = 0, _HEADER.size, len(chunk)
        while at + _HEADER.size <= count:
            length, given = _HEADER.unpack_from(chunk, at)
            if sound.get(length) != given:
                if length > MAX_LENGTH or _checksum(length) != given:
                    return offset + at
                if len(sound) < _LENGTHS:
                    sound[length] = given
            end = at + _AROUND + length
            if end > count and (length <= MAX_RECORD or offset + end > size):
                need = _AROUND + length
                break
            if length <= MAX_RECORD:
                take(chunk[at + _HEADER.size : end - 4])
            at = end
        offset += at
    return offset


class Events:
    """Takes serialised Events, one after the other, and hands on the scalars in them.

    Values are simple values, and numeric tensors of one element whose plugin is `scalars`, or not named (it need be
    named only once a tag).
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._shapes: List[_Shape] = []
        self._remembered = 0

    def take(self, event: bytes) -> None:
        """Any bytes: what cannot be understood is passed over."""
        try:
            at, step, size = 9, 0, len(event)
            if size > 12 and event[0] == 0x09:  # the usual: wall time, step, and a summary to the end
                if event[9] == 0x10:
                    step, at = _varint(event, 10)
                if event[at] == 0x2A:
                    length, at = _varint(event, at + 1)
                    if at + length == size:
                        self._take_summary(event, at, size, _signed(step))
                        return
            self._take_any(event)
        except _MALFORMED:
            pass

    def _take_any(self, event: bytes) -> None:
        step = 0
        for key, start, _ in _fields(event, 0, len(event)):
            if key == 0x10:
                step = _signed(_varint(event, start)[0])
        for key, start, stop in _fields(event, 0, len(event)):
            if key == 0x2A:
                self._take_summary(event, start, stop, step)

    def _take_summary(self, data: bytes, at: int, stop: int, step: int) -> None:
        while at < stop:
            if data[at] != 0x0A:
                _, _, at = next(_fields(data, at, stop))
                continue
            size, start = _varint(data, at + 1)
            at = start + size
            if at > stop:
                raise ValueError("a value beyond its summary")
            if size <= _LONGEST:
                for cut, form, known in self._shapes:
                    place = at - cut
                    if place > start:
                        add = known.get(data[start:place] + data[place + form.size : at])
                        if add is not None:
                            add(step, form.unpack_from(data, place)[0])
                            break
                else:
                    self._take_value(data, start, at, step)
            else:
                self._take_value(data, start, at, step)

    def _take_value(self, data: bytes, start: int, stop: int, step: int) -> None:
        value = _value(data, start, stop)
        if value is None:
            return
        form, place = value.scalar.form, value.scalar.place
        add = self._take(value.tag.decode("utf-8", "replace"), step, value.scalar.number)
        if add is not None and form is not None and stop - start <= _LONGEST and self._remembered < _REMEMBERED:
            shape = self._shape(stop - place, form)
            if shape is not None:
                shape.known[data[start:place] + data[place + form.size : stop]] = add
                self._remembered += 1

    def _shape(self, cut: int, form: struct.Struct) -> Optional[_Shape]:
        for shape in self._shapes:
            if (shape.cut, shape.form) == (cut, form):
                return shape
        if len(self._shapes) == _SHAPES:
            return None
        self._shapes.append(_Shape(cut, form, {}))
        return self._shapes[-1]


class _Shape(NamedTuple):
    """Serialised values that have their number `cut` bytes before their end. `known`: all their bytes but the number's
    -> who takes it. These bytes say how a value is to be read, so nothing else of it need be looked at."""

    cut: int
    form: struct.Struct
    known: Dict[bytes, Add]


class _Scalar(NamedTuple):
    """A number; `form` and `place` say how and where it is read, where it is a float of fixed width."""

    number: float
    form: Optional[struct.Struct] = None
    place: int = 0


class _Value(NamedTuple):
    tag: bytes
    scalar: _Scalar


def _value(data: bytes, start: int, stop: int) -> Optional[_Value]:
    """A serialised Summary.Value; None where it is no scalar. This and all below raise what `_MALFORMED` names."""
    tag = plugin = b""
    scalar: Optional[_Scalar] = None
    tensor: Optional[Tuple[int, int]] = None
    for key, at, end in _fields(data, start, stop):
        if key == 0x0A:
            tag = data[at : min(end, at + MAX_TAG + 1)]
        elif key == 0x15:
            scalar, tensor = _Scalar(_FLOAT.unpack_from(data, at)[0], _FLOAT, at), None
        elif key == 0x42:
            scalar, tensor = None, (at, end)
        elif key in (0x1A, 0x22, 0x2A, 0x32):  # a value of another kind: the last one counts
            scalar = tensor = None
        elif key == 0x4A:
            plugin = _plugin(data, at, end)
    if not 0 < len(tag) <= MAX_TAG:
        return None
    if tensor is not None and plugin in (b"", b"scalars"):
        scalar = _element(data, *tensor)
    return None if scalar is None else _Value(tag, scalar)


def _plugin(data: bytes, start: int, stop: int) -> bytes:
    """The name of the plugin that a serialised SummaryMetadata is for, or how it begins."""
    name = b""
    for key, at, end in _fields(data, start, stop):
        if key == 0x0A:
            for inner, begin, finish in _fields(data, at, end):
                if inner == 0x0A:
                    name = data[begin : min(finish, begin + 16)]
    return name


def _element(data: bytes, start: int, stop: int) -> Optional[_Scalar]:
    """The one element of a serialised TensorProto; None where it has not one, or no number."""
    kind, shape, content = 0, (start, start), (start, start)
    typed: Dict[int, Tuple[int, int, int]] = {}
    for key, at, end in _fields(data, start, stop):
        if key == 0x08:
            kind = _varint(data, at)[0]
        elif key == 0x12:
            shape = at, end
        elif key == 0x22:
            content = at, end
        elif at < end and len(typed) < 16:
            typed[key >> 3] = at, end, typed.get(key >> 3, (0, 0, 0))[2] + 1
    if kind not in _TENSORS or not _is_single(data, *shape):
        return None
    form, field = _TENSORS[kind]
    at, end = content
    if at == end:
        at, end, count = typed.get(field, (0, 0, 0))
        if count != 1:
            return None
        if form not in (_FLOAT, _DOUBLE):
            return _integer(data, at, end, form)
    if end - at != form.size:
        return None
    number = form.unpack_from(data, at)[0]
    return _Scalar(number, form, at) if isinstance(number, float) else _Scalar(float(number))


def _integer(data: bytes, at: int, end: int, form: struct.Struct) -> Optional[_Scalar]:
    """An element that is a varint: an integer, or the bits of a half."""
    value, stop = _varint(data, at)
    if stop != end:
        return None
    if form is _HALF:
        return _Scalar(form.unpack((value & 0xFFFF).to_bytes(2, "little"))[0])
    return _Scalar(float(_signed(value)))


def _is_single(data: bytes, start: int, stop: int) -> bool:
    """Has a tensor of a serialised TensorShapeProto one element?"""
    for key, at, end in _fields(data, start, stop):
        if key == 0x12:
            size = 0
            for inner, begin, _ in _fields(data, at, end):
                if inner == 0x08:
                    size = _varint(data, begin)[0]
            if size != 1:
                return False
    return True


def _fields(data: bytes, at: int, stop: int) -> Iterator[Tuple[int, int, int]]:
    """(number << 3 | wire type, start, stop) of each field of a serialised message, without tag and length."""
    while at < stop:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            _, end = _varint(data, at)
        elif wire == 1:
            end = at + 8
        elif wire == 2:
            size, at = _varint(data, at)
            end = at + size
        elif wire == 5:
            end = at + 4
        else:
            raise ValueError("a wire type that events do not have")
        if end > stop:
            raise ValueError("a field beyond its message")
        yield key, at, end
        at = end


def _varint(data: bytes, at: int) -> Tuple[int, int]:
    """(value, where what follows begins); 64 bits of it count."""
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for shift in range(7, 70, 7):
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + 1
    raise ValueError("a number of more than 64 bits")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _checksum(length: int) -> int:
    """The masked CRC-32C of a record's length."""
    return masked(length.to_bytes(8, "little"))
