"""What of event files is a scalar, whoever wrote it; hostile bytes are passed over."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guildsync.tree import events
from guildsync.tree.events import Events, read_records
from tests.kit import trees
from tests.kit.events import (
    DT_DOUBLE,
    DT_FLOAT,
    DT_HALF,
    DT_INT32,
    DT_INT64,
    DT_STRING,
    WALL_TIME,
    content,
    event,
    field,
    float_tensor,
    integer,
    record,
    scalar_event,
    simple_value,
    tensor,
    tensor_value,
    varint,
)
from tests.kit.trees import MIB

Found = list[tuple[str, int, float]]


def scalars(*serialised: bytes) -> Found:
    """What is handed on of Events, in order."""
    found: Found = []

    def take(tag: str, step: int, number: float) -> Callable[[int, float], None]:
        found.append((tag, step, number))
        return lambda step, number: found.append((tag, step, number))

    taker = Events(take)
    for each in serialised:
        taker.take(each)
    return found


def records(path: Path, offset: int = 0, size: int = 1 << 40) -> tuple[list[bytes], int]:
    found: list[bytes] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        return found, read_records(fd, offset, min(size, os.fstat(fd).st_size), found.append)
    finally:
        os.close(fd)


def header(length: int) -> bytes:
    """What a record of this length begins with."""
    return record(bytes(length))[:12] if length < MIB else struct.pack("<QI", length, events._checksum(length))


@pytest.mark.parametrize("tensors", [False, True])
def test_scalars_as_torch_and_tensorflow_write_them(tensors):
    written = [scalar_event(f"tag{n % 3}", n / 8, n * 37, tensors) for n in range(100)]
    assert scalars(*written) == [(f"tag{n % 3}", n * 37, n / 8) for n in range(100)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["loss", "a", "ü/x"]),
            st.floats(width=32, allow_nan=False),
            st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 1000),
            st.booleans(),
        )
    )
)
def test_any_scalars_in_any_shape(points):
    written = [scalar_event(*point) for point in points]
    assert scalars(*written) == [(tag, step, value) for tag, value, step, _ in points]
    together = [tensor_value(tag, float_tensor(v)) if t else simple_value(tag, v) for tag, v, _, t in points]
    assert scalars(event(*together, step=7)) == [(tag, 7, value) for tag, value, *_ in points]


ELEMENTS = {
    "content": (DT_FLOAT, content("f", 1.5), 1.5),
    "float": (DT_FLOAT, field(5, 5, struct.pack("<f", 1.5)), 1.5),
    "packed float": (DT_FLOAT, field(5, 2, struct.pack("<f", 1.5)), 1.5),
    "double content": (DT_DOUBLE, content("d", 0.1), 0.1),
    "double": (DT_DOUBLE, field(6, 1, struct.pack("<d", 0.1)), 0.1),
    "packed double": (DT_DOUBLE, field(6, 2, struct.pack("<d", 0.1)), 0.1),
    "int32 content": (DT_INT32, content("i", -5), -5.0),
    "int32": (DT_INT32, field(7, 0, integer(-5)), -5.0),
    "packed int32": (DT_INT32, field(7, 2, integer(300)), 300.0),
    "int64 content": (DT_INT64, content("q", 1 << 40), float(1 << 40)),
    "int64": (DT_INT64, field(10, 0, integer(-(1 << 40))), -float(1 << 40)),
    "packed int64": (DT_INT64, field(10, 2, integer(7)), 7.0),
    "half content": (DT_HALF, content("e", 0.25), 0.25),
    "half": (DT_HALF, field(13, 2, varint(0x3400)), 0.25),
    "content before typed": (DT_FLOAT, content("f", 1.5) + field(5, 2, struct.pack("<f", 9)), 1.5),
}


@pytest.mark.parametrize(("kind", "elements", "number"), ELEMENTS.values(), ids=ELEMENTS)
def test_tensors_of_one_number(kind, elements, number):
    for shape in ((), (1,), (1, 1)):
        written = event(tensor_value("x", tensor(kind, elements, shape)), step=3)
        found = scalars(written, written)
        assert found == [("x", 3, number)] * 2
        assert all(type(value) is float for *_, value in found)


NO_SCALARS = {
    "two elements": tensor_value("x", tensor(DT_FLOAT, content("f", 1, 2), [2])),
    "one number for two elements": tensor_value("x", tensor(DT_FLOAT, field(5, 2, struct.pack("<f", 1)), [2])),
    "two numbers": tensor_value("x", tensor(DT_FLOAT, field(5, 5, bytes(4)) * 2)),
    "two packed numbers": tensor_value("x", tensor(DT_INT64, field(10, 2, b"\1\2"))),
    "no element": tensor_value("x", tensor(DT_FLOAT, b"", [0])),
    "no number": tensor_value("x", tensor(DT_FLOAT, b"")),
    "numbers of another type": tensor_value("x", tensor(DT_FLOAT, field(6, 1, bytes(8)))),
    "content of another width": tensor_value("x", tensor(DT_FLOAT, content("d", 1))),
    "text": tensor_value("x", tensor(DT_STRING, field(8, 2, b"text"))),
    "no type": tensor_value("x", content("f", 1)),
    "another plugin": tensor_value("x", float_tensor(1), "pr_curves"),
    "a plugin with a long name": tensor_value("x", float_tensor(1), "scalars" * 20),
    "an image": field(1, 2, b"x") + field(4, 2, field(1, 0, b"\3")),
    "a histogram": field(1, 2, b"x") + field(5, 2, field(1, 1, bytes(8))),
    "a histogram after all": simple_value("x", 1) + field(5, 2, field(1, 1, bytes(8))),
    "nothing": field(1, 2, b"x"),
    "no tag": field(2, 5, bytes(4)),
    "an empty tag": simple_value("", 1),
    "a long tag": simple_value("x" * (events.MAX_TAG + 1), 1),
}


@pytest.mark.parametrize("value", NO_SCALARS.values(), ids=NO_SCALARS)
def test_what_is_no_scalar_is_passed_over_and_hides_no_other(value):
    written = event(simple_value("a", 1), value, simple_value("b", 2), step=1)
    assert scalars(written, written) == [("a", 1, 1.0), ("b", 1, 2.0)] * 2


def test_a_tensor_whose_plugin_was_named_before_counts():
    assert scalars(event(tensor_value("x", float_tensor(2), None))) == [("x", 0, 2.0)]


def test_the_last_value_of_a_kind_counts():
    twice = simple_value("x", 1) + field(2, 5, struct.pack("<f", 2))
    assert scalars(*[event(twice)] * 3) == [("x", 0, 2.0)] * 3
    mixed = [tensor_value("x", float_tensor(1)) + field(2, 5, struct.pack("<f", 3)), simple_value("x", 1)]
    mixed[1] += field(8, 2, float_tensor(4))
    assert scalars(event(*mixed), event(*mixed)) == [("x", 0, 3.0), ("x", 0, 4.0)] * 2


def test_fields_in_any_order_and_unknown_ones():
    summary = field(5, 2, field(1, 2, field(2, 5, struct.pack("<f", 0.5)) + field(1, 2, b"x")))
    step, time = field(2, 0, varint(300)), field(1, 1, struct.pack("<d", WALL_TIME))
    unknown = field(30, 2, b"?") + field(31, 0, varint(1 << 60)) + field(32, 1, bytes(8)) + field(33, 5, bytes(4))
    for written in (summary + step, unknown + summary + step, step + summary + time + unknown, time + step + summary):
        assert scalars(written, written) == [("x", 300, 0.5)] * 2
    inside = field(5, 2, field(9, 2, b"?") + field(1, 2, unknown + simple_value("x", 0.5) + unknown))
    assert scalars(time + step + inside) == [("x", 300, 0.5)]
    assert scalars(time + summary + summary) == [("x", 0, 0.5)] * 2


def test_what_lies_around_a_number_decides_what_it_is():
    """Values of one length that differ in anything but the number are never taken for each other."""
    tag = "x" * 20
    one, other = simple_value(tag, 1), simple_value("y" * 20, 1)
    histogram = field(1, 2, tag.encode()) + field(5, 2, bytes(3))
    assert len(one) == len(other) == len(histogram)
    written = [event(value) for value in (one, other, histogram, one, other)]
    assert scalars(*written) == [(tag, 0, 1.0), ("y" * 20, 0, 1.0)] * 2


@given(st.binary(max_size=200))
@example(b"\x09" + b"\x80" * 30)
@example(b"\x0b")
@example(event(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
@example(event(b"\x0a\x01"))
def test_hostile_events_do_no_harm(data):
    known = scalar_event("x", 1, 1)
    for hostile in (data, known[:9] + data, event(data), event(field(1, 2, b"x") + field(8, 2, data))):
        found = scalars(known, hostile, known)
        assert found[0] == found[-1] == ("x", 1, 1.0)


@given(st.data())
def test_spoilt_events_do_no_harm(data):
    whole = event(simple_value("x", 1), tensor_value("y", float_tensor(1)), step=300)
    position = data.draw(st.integers(0, len(whole) - 1))
    spoilt = whole[:position] + data.draw(st.binary(max_size=3)) + whole[position + data.draw(st.integers(0, 3)) :]
    assert scalars(whole, spoilt, whole)[-2:] == [("x", 300, 1.0), ("y", 300, 1.0)]


def test_what_is_remembered_of_hostile_values_is_bounded(monkeypatch):
    monkeypatch.setattr(events, "_REMEMBERED", 10)
    taker = Events(lambda tag, step, number: lambda step, number: None)
    for n in range(100):
        taker.take(event(field(7, 2, b"%d" % n) + simple_value("x", 1)))
        taker.take(event(simple_value("x", 1) + field(7, 2, bytes(n))))
    assert sum(len(shape.known) for shape in taker._shapes) == 10
    assert len(taker._shapes) <= events._SHAPES


MANY = b"\x08\x01" * 100_000
LARGE = {
    "summaries": b"\x2a\x00" * 100_000,
    "values": event(*[b""] * 100_000),
    "fields of a value": event(MANY),
    "sizes": event(tensor_value("x", field(1, 0, b"\1") + field(2, 2, field(2, 2, MANY)) + content("f", 1))),
    "elements": event(tensor_value("x", tensor(DT_INT64, field(10, 0, b"\1") * 100_000))),
    "fields of a tensor": event(tensor_value("x", b"".join(field(n, 0, b"\1") for n in range(30, 30_000)))),
    "plugins": event(field(1, 2, b"x") + field(9, 2, field(1, 2, b"\x0a\x00" * 100_000))),
}


@pytest.mark.parametrize("hostile", LARGE.values(), ids=LARGE)
def test_no_event_takes_much_memory(hostile):
    tracemalloc.start()
    try:
        scalars(hostile)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunk", [16, 17, 100, MIB])
def test_records_are_whole_whatever_is_read_at_once(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(events, "_CHUNK", chunk)
    wanted = [b"", b"x", b"y" * 30, bytes(500), b"", b"end"]
    (tmp_path / "f").write_bytes(b"".join(map(record, wanted)))
    assert records(tmp_path / "f") == (wanted, sum(len(data) + 16 for data in wanted))


def test_a_record_that_is_not_complete_is_left_for_the_next_time(tmp_path):
    whole = [record(b"first"), record(b"second")]
    for cut in range(len(whole[1])):
        (tmp_path / "f").write_bytes(whole[0] + whole[1][:cut])
        assert records(tmp_path / "f") == ([b"first"], len(whole[0]))
    (tmp_path / "f").write_bytes(b"".join(whole) + record(b"third"))
    assert records(tmp_path / "f", len(whole[0]), len(whole[0] + whole[1])) == ([b"second"], len(whole[0] + whole[1]))


@pytest.mark.parametrize("wrong", [bytes(12), b"\xff" * 12, header(5)[:8] + b"\0\0\0\0", header((1 << 30) + 1)])
def test_a_damaged_length_ends_a_file(tmp_path, wrong):
    (tmp_path / "f").write_bytes(record(b"first") + wrong + record(b"more"))
    os.truncate(tmp_path / "f", 3 << 30)
    assert records(tmp_path / "f") == ([b"first"], 21)


def test_a_large_record_is_passed_over_unread(tmp_path):
    length = events.MAX_RECORD + 1
    with open(tmp_path / "f", "wb") as file:
        file.write(record(b"first") + header(length))
        file.seek(length + 4, os.SEEK_CUR)
        file.write(record(b"last") + header(1 << 30))
    size = os.path.getsize(tmp_path / "f")
    tracemalloc.start()
    try:
        assert records(tmp_path / "f") == ([b"first", b"last"], size - 12)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()
    os.truncate(tmp_path / "f", size + (1 << 30) + 4)
    assert records(tmp_path / "f", size - 12) == ([], size + (1 << 30) + 4)
    assert records(tmp_path / "f", 0, 21 + 12 + length + 3) == ([b"first"], 21)


def test_a_record_of_the_largest_size_is_read(tmp_path):
    (tmp_path / "f").write_bytes(record(b"first") + header(events.MAX_RECORD) + bytes(events.MAX_RECORD + 4))
    found, end = records(tmp_path / "f")
    assert [len(data) for data in found] == [5, events.MAX_RECORD]
    assert end == os.path.getsize(tmp_path / "f")


def test_a_file_that_gets_shorter_while_it_is_read_just_ends(tmp_path):
    (tmp_path / "f").write_bytes(record(b"first") + record(b"second")[:-3])
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    found: list[bytes] = []
    assert read_records(fd, 0, 1000, found.append) == 21
    assert read_records(fd, 500, 1000, found.append) == 500
    os.close(fd)
    assert found == [b"first"]


@given(st.binary(max_size=300))
def test_hostile_files_do_no_harm(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("f") / "f"
    path.write_bytes(data)
    found, end = records(path)
    assert end == sum(len(each) + 16 for each in found)


@given(st.integers(0, (1 << 64) - 1))
def test_check_sums_of_lengths_are_true(length):
    assert struct.pack("<I", events._checksum(length)) == trees._masked_crc32c(struct.pack("<Q", length))
