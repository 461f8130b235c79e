import json
import os
import socket
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guildsync.agent.frames import (
    MAX_BODY,
    MAX_HEADER,
    Channel,
    Incoming,
    error_from,
    error_header,
    send_item,
)
from guildsync.agent.values import problem_of, problem_row, rows, rows_of
from guildsync.errors import MISSING, Damaged, GuildsyncError, NotFound, Problem, Unreachable

RUN = "ab" * 16


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    near, far = Channel(one, one, timeout=5), Channel(other, other, timeout=5)
    yield near, far
    near.close()
    far.close()


def heard(data: bytes, timeout: float = 5) -> Channel:
    """A channel on which `data` came and then the end."""
    reader, writer = os.pipe()
    channel = Channel(reader, os.open(os.devnull, os.O_WRONLY), timeout)
    thread = threading.Thread(target=lambda: (os.write(writer, data), os.close(writer)))
    thread.start()
    return channel


def frame(header, body=b"") -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">II", len(head), len(body)) + head + body


def test_frames_cross_in_order_and_are_counted(pair):
    near, far = pair
    near.send({"a": 1}, b"body")
    near.send({"b": "é", "unknown": [None]})
    near.flush()
    assert far.receive() == ({"a": 1}, b"body")
    assert far.receive() == ({"b": "é", "unknown": [None]}, b"")
    near.close()
    assert far.receive() is None
    assert (near.frames_out, far.frames_in, near.bytes_out) == (2, 2, far.bytes_in)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\0\0\0", Unreachable),
        (frame({"a": 1}, b"body")[:-1], Unreachable),
        (b"Last login: today\n", Damaged),
        (struct.pack(">ii", -1, 0), Damaged),
        (struct.pack(">ii", 2, -1) + b"{}", Damaged),
        (struct.pack(">II", MAX_HEADER + 1, 0), Damaged),
        (struct.pack(">II", 2, MAX_BODY + 1), Damaged),
        (frame(b""), Damaged),
        (frame(b"[]"), Damaged),
        (frame(b"{'a'}"), Damaged),
        (frame(b"\xff\xfe"), Damaged),
        (frame(b'{"a":' + b"[" * 60_000), Damaged),
    ],
)
def test_what_is_no_frame_is_an_error_and_stays_one(data, error):
    channel = heard(data)
    for _ in range(2):
        with pytest.raises(error):
            channel.receive()
    channel.close()


def test_silence_ends_and_beats_do_not_show(pair):
    near, far = pair
    far._timeout = 0.3
    near.keep_beating(0.05)
    threading.Timer(0.8, lambda: near.send({"a": 1}) or near.flush()).start()
    assert far.receive() == ({"a": 1}, b"")
    near._stop.set()
    time.sleep(0.1)
    assert not far.waiting()
    with pytest.raises(Unreachable, match="silent"):
        far.receive()


def test_a_send_nobody_takes_ends(pair):
    near, _ = pair
    near._timeout = 0.2
    with pytest.raises(Unreachable):
        near.send({}, bytes(MAX_BODY))


def test_an_oversized_frame_is_not_sent(pair):
    near, far = pair
    for header, body in (({"a": "x" * MAX_HEADER}, b""), ({}, bytes(MAX_BODY + 1))):
        with pytest.raises(GuildsyncError):
            near.send(header, body)
    near.send({"fine": True})
    near.flush()
    assert far.receive() == ({"fine": True}, b"")


def test_an_item_takes_several_frames(pair):
    near, far = pair
    blobs = [b"{}", None, os.urandom(9 << 20), b""]

    def send():
        send_item(near, blobs)
        near.send({"end": True, "id": 3})
        near.flush()

    thread = threading.Thread(target=send)
    thread.start()
    incoming = Incoming(far, 3, [10, 10, 10 << 20, 0])
    assert list(incoming) == [blobs]
    assert incoming.ended
    assert far.frames_in == 4
    thread.join()


@pytest.mark.parametrize(
    "data",
    [
        frame({"item": [5]}, b"abc") + frame({"end": True, "id": 1}),
        frame({"item": [5]}, b"abc") + frame({"more": True}),
        frame({"item": [5]}, b"abcdef"),
        frame({"item": [-1]}),
        frame({"item": [True]}, b"a"),
        frame({"item": ["1"]}, b"a"),
        frame({"item": [1 << 70]}, b"a"),
        frame({"item": [1, 1]}, b"ab"),
        frame({"item": 3}, b"ab"),
        frame({"end": True, "id": 2}),
        frame({"what": 1}),
        frame({"error": "Usage", "message": 3, "id": 1}),
        frame({"error": "Usage", "message": "m", "hint": [], "id": 1}),
    ],
)
def test_items_that_lie(data):
    channel = heard(data)
    with pytest.raises(Damaged):
        list(Incoming(channel, 1, [1000]))
    channel.close()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.lists(st.binary(max_size=60).map(frame)).map(b"".join))
def test_any_bytes_are_frames_or_an_error(data):
    channel = heard(data)
    try:
        list(Incoming(channel, 1, [100]))
    except (Damaged, Unreachable):
        pass
    finally:
        channel.close()


@given(st.lists(st.integers() | st.text(), max_size=3000))
def test_rows(values):
    items = list(rows(values))
    assert [row for item in items for row in rows_of(item)] == values
    assert len(items) == (len(values) + 999) // 1000 or len(values) > 900


def test_errors_cross_as_themselves():
    sent = error_from(error_header(NotFound("no run", "look"), 1))
    assert (type(sent), sent.message, sent.hint) == (NotFound, "no run", "look")
    sent = error_from(error_header(PermissionError(13, "Permission denied", "/x"), 1))
    assert (type(sent), sent.message) == (GuildsyncError, "/x: Permission denied")
    sent = error_from(error_header(KeyError("k" * 10_000), 1))
    assert type(sent) is GuildsyncError
    assert len(sent.message) == 2000
    assert type(error_from({"error": ["SystemExit"], "message": ""})) is GuildsyncError


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", ".", "a\0", {"percent": "%2e%2e"}, 7, []]
)
def test_a_problem_stays_in_its_run(path):
    with pytest.raises(Damaged):
        problem_of([RUN, path, MISSING, ""])


@given(
    st.binary(min_size=1).filter(lambda p: b"\0" not in p and not {b"", b".", b".."} & set(p.split(b"/"))), st.text()
)
def test_problems_cross(path, detail):
    problem = Problem(RUN, path, MISSING, detail)
    assert problem_of(json.loads(json.dumps(problem_row(problem)))) == problem
