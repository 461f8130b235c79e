import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guildsync.agent import frames
from guildsync.agent.client import FarTree
from guildsync.agent.frames import Channel
from guildsync.agent.server import serve
from guildsync.errors import Damaged, GuildsyncError, NotFound, SafetyStop, Unreachable
from guildsync.model.manifest import EMPTY, digest_of
from guildsync.model.ports import Lost, Piece, Want

sys.path.insert(0, os.path.dirname(__file__))
from memory_tree import DATA, OTHER, RUN, MemoryTree, manifest, updates, want_of_path

ROOT = Path(__file__).parents[2]
OLD_PYTHON = shutil.which("python3.8")
HELLO = {"hello": "guildsync", "version": [1, 7], "capabilities": ["x"], "news": 1}


@contextmanager
def served(tree, idle=10.0, timeout=10.0, beat=1.0):
    near, far = socket.socketpair()
    thread = threading.Thread(target=serve, args=(tree, far, far, idle, beat), daemon=True)
    thread.start()
    with FarTree(near, near, timeout=timeout, beat=0.1) as client:
        yield client
    thread.join(10)
    assert not thread.is_alive()


@contextmanager
def spawned():
    if OLD_PYTHON is None:
        pytest.skip("no python3.8 here")
    env = {**os.environ, "PYENV_VERSION": "3.8.18", "PYTHONPATH": str(ROOT)}
    if subprocess.run([OLD_PYTHON, "-V"], env=env, capture_output=True, check=False).returncode:
        pytest.skip("python3.8 does not start")
    program = str(Path(__file__).with_name("memory_tree.py"))
    with subprocess.Popen([OLD_PYTHON, program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with FarTree(process.stdout, process.stdin, process) as client:
            yield client
        assert process.wait(30) == 0


@pytest.fixture(params=["thread", "python3.8"])
def far(request):
    with served(MemoryTree()) if request.param == "thread" else spawned() as client:
        yield client


WANTS = [want_of_path(path) for path in DATA] + [Want(EMPTY, 1, RUN, b"gone/\xff", 7)]
PIECES = [Piece(want, DATA[want.path]) for want in WANTS[:-1]]


def test_far_is_near_in_one_round_trip_a_call(far):
    near = MemoryTree()
    known = {RUN: [], OTHER: [EMPTY], "0" * 32: []}
    calls = [
        lambda tree: list(tree.runs()),
        lambda tree: (list(tree.runs(deleted=True, sizes=True)), tree.problems),
        lambda tree: (list(tree.runs(deleted=None)), tree.problems),
        lambda tree: list(tree.manifests(known)),
        lambda tree: list(tree.manifests({RUN: {manifest().content, EMPTY}})),
        lambda tree: list(tree.manifests({})),
        lambda tree: list(tree.fetch(iter(WANTS))),
        lambda tree: list(tree.fetch([])),
        lambda tree: tree.missing(WANTS),
        lambda tree: tree.stage(iter(PIECES)),
        lambda tree: tree.commit(updates()),
        lambda tree: list(tree.audit()),
    ]
    for number, call in enumerate(calls, 1):
        assert call(far) == call(near)
        assert far.round_trips == number
    assert far.replica == near.replica
    far.ping()
    assert far.bytes_in > sum(map(len, DATA.values())) < far.bytes_out


def test_the_far_tree_gets_what_was_given():
    tree = MemoryTree()
    with served(tree) as far:
        far.stage(PIECES)
        far.commit(updates())
    assert tree.staged == {piece.want.digest: piece.data for piece in PIECES}
    assert tree.updates == updates()


def test_many_wants_are_many_frames_and_one_round_trip():
    wants = [Want(digest_of(b"%d" % n), 1, RUN, b"dir/%d" % n, 0) for n in range(100_000)]
    with served(MemoryTree()) as far:
        assert len(far.missing(wants)) == 100_000
        assert sum(isinstance(found, Lost) for found in far.fetch(wants)) == 100_000
        assert far.round_trips == 2
        assert far._channel.frames_out >= 200


def test_what_a_far_tree_took_over_is_told():
    class Resuming(MemoryTree):
        def missing(self, wanted):
            self.resumed += 5
            return {want.digest for want in wanted[1:]}

    tree = Resuming()
    with served(tree) as far:
        assert WANTS[0].size == 5
        for count in (1, 2):
            assert far.missing(WANTS[:2]) == {WANTS[1].digest}
            assert far.resumed == 5 * count
            assert far.round_trips == count


# -- errors of the tree


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (SafetyStop("stop", "do this"), SafetyStop, "stop"),
        (NotFound("no"), NotFound, "no"),
        (Unreachable("the tree's own"), Unreachable, "own"),
        (OSError(errno.ENOSPC, "No space left on device", b"/home/\xff"), GuildsyncError, "No space"),
        (ZeroDivisionError("bug"), GuildsyncError, "ZeroDivisionError: bug"),
    ],
)
def test_errors_cross_and_the_next_call_works(raised, expected, message):
    tree = MemoryTree()
    calls = [
        lambda far: list(far.runs()),
        lambda far: list(far.manifests({RUN: []})),
        lambda far: list(far.fetch(WANTS)),
        lambda far: far.missing(WANTS),
        lambda far: far.stage(PIECES),
        lambda far: far.commit(updates()),
        lambda far: list(far.audit()),
    ]
    with served(tree) as far:
        for call in calls:
            tree.fails = raised
            with pytest.raises(expected, match=message) as caught:
                call(far)
            assert type(caught.value) is expected
            assert caught.value.hint == raised.hint if isinstance(raised, GuildsyncError) else True
            tree.fails = None
            assert len(list(far.runs())) == 2


def big_pieces(count, counter=None):
    data = bytes(1 << 20)
    want = Want(digest_of(data), len(data), RUN, b"zeros", 0)
    for _ in range(count):
        if counter is not None:
            counter.append(1)
        yield Piece(want, data)


def test_an_error_while_staging_stops_the_stream_soon():
    tree = MemoryTree()
    tree.fails = OSError(errno.ENOSPC, "No space left on device")
    sent = []
    with served(tree) as far:
        with pytest.raises(GuildsyncError, match="No space"):
            far.stage(big_pieces(500, sent))
        assert len(sent) < 100
        tree.fails = None
        far.stage(PIECES)


def test_pieces_that_cannot_be_had_abort_the_call():
    def pieces():
        yield PIECES[0]
        raise KeyError("mine")

    tree = MemoryTree()
    with served(tree) as far:
        with pytest.raises(KeyError, match="mine"):
            far.stage(pieces())
        assert len(list(far.runs())) == 2
        with pytest.raises(GuildsyncError, match="by what another call sends"):
            far.stage(piece for piece in far.fetch(WANTS[:1]))
        assert len(list(far.runs())) == 2
    assert list(tree.staged) == [PIECES[0].want.digest]


def test_large_streams_are_bounded_and_slow_ends_do_not_block():
    tree = MemoryTree()
    tree.keep, tree.slow = False, 0.002
    with served(tree, timeout=3, idle=3) as far:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        far.stage(big_pieces(200))
        assert tree.staged_bytes == 200 << 20
        want = next(big_pieces(1)).want
        total = 0
        for piece in far.fetch(want._replace(offset=n) for n in range(200)):
            total += len(piece.data)
        assert total == 200 << 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80 << 10


def test_a_tree_that_takes_its_time_is_no_silence():
    tree = MemoryTree()
    tree.slow = 1.0
    with served(tree, timeout=0.4, beat=0.1) as far:
        far.stage(PIECES[:2])
        assert len(list(far.fetch(WANTS[:1]))) == 1


def test_a_near_end_that_takes_its_time_is_no_silence():
    want = next(big_pieces(1)).want
    with served(MemoryTree(), idle=0.4) as far:
        time.sleep(0.9)
        for n, _ in enumerate(far.fetch([want._replace(offset=n) for n in range(20)])):
            time.sleep(0.9 if n == 1 else 0)

        def slow_pieces():
            yield PIECES[0]
            time.sleep(0.9)
            yield PIECES[1]

        far.stage(slow_pieces())


def test_a_listing_without_end_is_cut_short(monkeypatch):
    monkeypatch.setattr("guildsync.agent.calls.MAX_LISTING", 10_000)
    with lying(item([PROBLEM]) * 1000 + END) as far, pytest.raises(Damaged, match="larger than allowed"):
        list(far.audit())


def test_calls_between_the_items_of_an_answer():
    with served(MemoryTree()) as far:
        scans = far.manifests({RUN: [], OTHER: []})
        first = next(scans)
        assert len(list(far.runs())) == 2
        assert [first, *scans] == list(MemoryTree().manifests({RUN: [], OTHER: []}))


def test_a_consumer_that_stops_cancels():
    tree = MemoryTree()
    tree.slow = 0.001
    want = next(big_pieces(1)).want
    with served(tree) as far:
        for _ in far.fetch([want._replace(offset=n) for n in range(2000)]):
            break
        assert len(list(far.runs())) == 2
        assert tree.yielded < 200
        assert far.bytes_in < 100 << 20


# -- a far side that lies


def lying(answer: bytes, *headers):
    """A FarTree whose far side says hello, then `answer` to whatever is asked, and ends."""
    near, far = socket.socketpair()

    def run():
        channel = Channel(far, far, 10)
        with suppress(GuildsyncError):
            channel.receive()
            channel.send(HELLO)
            channel.flush()
            while "end" not in (channel.receive() or [{"end": 1}])[0]:
                pass
            os.set_blocking(far.fileno(), True)
            with suppress(OSError):
                far.sendall(answer)
        channel.close()

    threading.Thread(target=run, daemon=True).start()
    return FarTree(near, near, timeout=5)


def frame(header, body=b""):
    head = frames.dumps(header)
    return len(head).to_bytes(4, "big") + len(body).to_bytes(4, "big") + head + body


def item(*blobs):
    blobs = [blob if blob is None or isinstance(blob, bytes) else frames.dumps(blob) for blob in blobs]
    return frame({"item": [None if b is None else len(b) for b in blobs]}, b"".join(b for b in blobs if b))


END = frame({"end": True, "id": 1})
RECORD = {
    "run": RUN, "deleted": False, "values": {"label": "YQ=="}, "opref": None, "markers": ["LOCK"], "alive": True,
    "inflight": False, "size": None, "files": 3,
}  # fmt: skip
SCAN = {
    "run": RUN, "content": manifest().content, "settled": True, "alive": False, "heads": [], "rivals": [],
    "problems": [],
}  # fmt: skip
ENCODED = manifest().encode()
ODD = [None, True, -1, 1 << 80, 1.5, "", "../x", "/etc/passwd", "a\0", [], [[]], {}, {"../x": "YQ=="}, {"a": 1}, "é"]
PROBLEM = [RUN, "a", "missing", "why"]

CALLS = {
    "runs": lambda far: list(far.runs()),
    "manifests": lambda far: list(far.manifests({RUN: [EMPTY]})),
    "fetch": lambda far: list(far.fetch(WANTS[:2])),
    "missing": lambda far: far.missing(WANTS[:2]),
    "stage": lambda far: far.stage(PIECES[:1]),
    "commit": lambda far: far.commit(updates()[:1]),
    "audit": lambda far: list(far.audit()),
    "ping": lambda far: far.ping(),
}


def lies():
    yield "runs", item([RECORD, RECORD]) + END
    yield "runs", item([{**RECORD, "deleted": True}]) + END
    yield "runs", item([]) + END
    for field in RECORD:
        yield "runs", item([{name: value for name, value in RECORD.items() if name != field}]) + END
    yield "manifests", item(SCAN, ENCODED, None) + item(SCAN, ENCODED, None) + END
    yield "manifests", item({**SCAN, "run": OTHER}, ENCODED, None) + END
    yield "manifests", item({**SCAN, "content": EMPTY}, ENCODED, None) + END
    yield "manifests", item({**SCAN, "content": ""}, ENCODED, None) + END
    yield "manifests", item({**SCAN, "content": ""}, None, None) + END
    yield "manifests", item(SCAN, None, None) + END
    yield "manifests", item(SCAN, ENCODED[:-1], None) + END
    yield "manifests", item(SCAN, ENCODED.replace(b'"a"', b'"../a"'), None) + END
    yield "manifests", item(SCAN, ENCODED, b"[1,[{}]]") + END
    yield "manifests", item({**SCAN, "problems": [[OTHER, "a", "missing", ""]]}, ENCODED, None) + END
    yield "manifests", item({**SCAN, "problems": [[RUN, "../a", "missing", ""]]}, ENCODED, None) + END
    good = item(0, DATA[b"a"])
    lost = [1, [RUN, {"percent": "d/%FF%FE"}, "missing", ""]]
    for bad in (
        item(0, b"hellp"), item(0, b"hell"), item(1, DATA[b"a"]), item(2, b""), item(-1, b""), item(True, b"x"),
        item("0", b"hello"), item([0], b"hello"), good, item(lost, None) * 2, item([0, PROBLEM], None), b"",
        item([1, [RUN, "a", "missing", ""]], None), item([1, [OTHER, lost[1][1], "missing", ""]], None),
        item([1, [RUN, "../a", "missing", ""]], None), item([1], None), item(1, None), item([1, []], None),
        item([1, 9], DATA[b"d/\xff\xfe"][9:]), item([1, -1], b""), item([1, 0, 0], b""), item([1, [EMPTY]], b""),
    ):  # fmt: skip
        yield "fetch", good + bad + END
    yield "missing", item([digest_of(b"other")]) + END
    yield "missing", item(["../x"]) + END
    asked = [want.digest for want in WANTS[:2]]
    total = sum(want.size for want in WANTS[:2])
    for bad in (
        [-1], [total + 1], [True], [1.0], [0, 0], [1, asked[0]], [asked[0], asked[0]], [asked[0], asked[1], 1],
        [str(total)], [asked[0], WANTS[1].size + 1], [[0, 3, EMPTY]], [asked[0], [1, 3, EMPTY]],
        [asked[0], [2, 3, EMPTY]], [asked[0], [0, -3, EMPTY]], [asked[0], [0, 3, "../x"]], [asked[0], [0, 3]],
        [asked[0], []], [asked[0], [-1, 3, EMPTY]],
    ):  # fmt: skip
        yield "missing", item(bad) + END
    yield "commit", item([[OTHER, None, "missing", ""]]) + END
    yield "stage", item([1]) + END
    yield "ping", item([1]) + END
    for name in CALLS:
        yield name, b""
        yield name, b"Last login: never\n"
        yield name, frame({"end": True, "id": 2})
        yield name, frame({"end": True})[:-1]
        yield name, frame({"item": [1 << 40]})
        yield name, frame({"item": [40]}, b"[")
        yield name, frame(HELLO)
        yield name, (1 << 31).to_bytes(4, "big") * 2
        yield name, frame({"error": "Damaged", "message": {}, "id": 1})
        yield name, item([[]] * 5) + END
        yield name, item(b"[" * 100_000) + END


@pytest.mark.parametrize("case", list(lies()), ids=lambda case: case[0])
def test_lies_are_found_out(case):
    name, answer = case
    with lying(answer) as far:
        start = time.monotonic()
        with pytest.raises((Damaged, Unreachable)):
            CALLS[name](far)
        with pytest.raises((Damaged, Unreachable)):
            list(far.runs())
        assert time.monotonic() - start < 4


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_wrong_types_in_every_field(odd):
    rows = [("runs", item([{**RECORD, name: odd}])) for name in RECORD]
    rows += [("manifests", item({**SCAN, name: odd}, ENCODED, None)) for name in SCAN]
    rows += [("audit", item([[*PROBLEM[:n], odd, *PROBLEM[n + 1 :]]])) for n in range(4)]
    rows += [(name, item([odd])) for name in ("runs", "missing", "commit", "audit")]
    rows += [(name, frame({"item": odd})) for name in CALLS]
    for name, answer in rows:
        with lying(answer + END) as far, suppress(Damaged, Unreachable):
            CALLS[name](far)


@pytest.mark.parametrize("field", ["version", "hello"])
def test_hello_is_checked(field):
    for odd in [*ODD, [2, 0]]:
        near, far = socket.socketpair()
        far.sendall(
            frame({**{k: v for k, v in HELLO.items() if k != field}, **({field: odd} if field != "hello" else {})})
        )
        with pytest.raises(GuildsyncError):
            FarTree(near, near, timeout=2)
        far.close()


def test_noise_before_hello_has_a_hint():
    near, far = socket.socketpair()
    far.sendall(b"Welcome to Ubuntu\n")
    with pytest.raises(Damaged) as caught:
        FarTree(near, near, timeout=2)
    assert "start-up file" in caught.value.hint
    far.close()


def test_silence_is_unreachable():
    near, far = socket.socketpair()
    far.sendall(frame(HELLO))
    with FarTree(near, near, timeout=0.3) as client:
        with pytest.raises(Unreachable, match="silent"):
            client.stage(big_pieces(50))
        with pytest.raises(Unreachable):
            client.ping()
    far.close()


FRAMES = st.builds(
    frame,
    st.dictionaries(
        st.sampled_from(["item", "end", "id", "error", "message", "more", "beat", "hint"]),
        st.sampled_from([1, None, "x", True, [1], [5], [2, 5], [2, None], [2, 2, None], -1]),
        max_size=3,
    ),
    st.sampled_from([b"", b"[1]", b"0hello", b"[]", b"{}[]", b"\xff"]) | st.binary(max_size=9),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(CALLS)), st.lists(FRAMES | st.binary(max_size=20), max_size=4).map(b"".join))
def test_any_answer_is_an_answer_or_an_error(name, answer):
    with lying(answer) as far, suppress(GuildsyncError):
        CALLS[name](far)


# -- a near side that lies


def said_by_server(data: bytes, tree=None) -> bytes:
    near, far = socket.socketpair()
    failed = []

    def run():
        try:
            serve(tree or MemoryTree(), far, far, 2, 1)
        except BaseException as exc:
            failed.append(exc)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    with suppress(OSError):
        near.sendall(data)
        near.shutdown(socket.SHUT_WR)
    answer = b""
    with suppress(ConnectionResetError):
        while chunk := near.recv(1 << 16):
            answer += chunk
    thread.join(10)
    near.close()
    assert not thread.is_alive()
    assert not failed
    assert b"Traceback" not in answer
    return answer


EDIT = {"run": RUN, "attributes": {}, "markers": {}, "withheld": []}
ROW = [EMPTY, 5, RUN, "a", 0]
CLIENT_ERRORS = [
    frame({"call": "fly", "id": 1}) + END,
    frame({"call": "missing", "id": 1}) + item([[*ROW[:3], "../a", 0]]) + END,
    frame({"call": "fetch", "id": 1}) + item([[*ROW[:2], "../..", "a", 0]]) + END,
    frame({"call": "missing", "id": 1}) + item([[EMPTY, 1 << 40, RUN, "a", 0]]) + END,
    frame({"call": "missing", "id": 1}) + item([[EMPTY, 0, RUN, "a", 0]]) + END,
    frame({"call": "stage", "id": 1}) + item(ROW, b"hello") + END,
    frame({"call": "stage", "id": 1}) + item(ROW, None) + END,
    frame({"call": "stage", "id": 1}) + item([*ROW, 3], b"lo") + END,
    frame({"call": "stage", "id": 1}) + item([*ROW, -3], b"lo") + END,
    frame({"call": "stage", "id": 1}) + item([*ROW, 3, 3], b"lo") + END,
    frame({"call": "stage", "id": 1}) + item(1, b"lo") + END,
    frame({"call": "fetch", "id": 1}) + item([[*ROW, 3]]) + END,
    frame({"call": "fetch", "id": 1}) + item([[*ROW, -3, EMPTY]]) + END,
    frame({"call": "fetch", "id": 1}) + item([[*ROW, 3, "../x"]]) + END,
    frame({"call": "fetch", "id": 1}) + item([1]) + END,
    frame({"call": "stage", "id": 1}) + frame({"item": [9, 1 << 30]}) + END,
    frame({"call": "commit", "id": 1}) + item({"run": RUN}, None, None) + END,
    frame({"call": "commit", "id": 1}) + item({**EDIT, "attributes": {"../../x": None}}, None, None) + END,
    frame({"call": "commit", "id": 1}) + item({**EDIT, "withheld": ["../x"]}, None, None) + END,
    frame({"call": "manifests", "id": 1}) + item([["x", []]]) + END,
    frame({"call": "ping", "id": 1}) + frame({"end": True, "id": 9}) + END,
]  # fmt: skip


@pytest.mark.parametrize("data", CLIENT_ERRORS)
def test_the_server_answers_an_error_and_goes_on(data):
    answer = said_by_server(frame(HELLO) + data + frame({"call": "ping", "id": 5}) + frame({"end": True, "id": 5}))
    assert b'"error"' in answer
    assert b'{"end":true,"id":5}' in answer


@pytest.mark.parametrize(
    "data",
    [
        frame({"hello": 1, "version": [2, 0]}),
        frame({"call": "ping", "id": 1}),
        frame(HELLO) + frame({"what": 1}),
        frame(HELLO) + frame({"call": [], "id": 1}),
        frame(HELLO) + b"\xff" * 9,
    ],
)
def test_the_server_says_why_it_ends(data):
    assert b'"error"' in said_by_server(data)


@settings(max_examples=100, deadline=None)
@given(
    st.booleans(),
    st.lists(
        FRAMES
        | st.builds(lambda call: frame({"call": call, "id": 1}), st.sampled_from([*CALLS, 1]))
        | st.binary(max_size=20)
    ).map(b"".join),
)
def test_any_client_is_survived(greets, data):
    said_by_server((frame(HELLO) if greets else b"") + data)


def test_the_server_ends_when_nobody_speaks():
    near, far = socket.socketpair()
    start = time.monotonic()
    serve(MemoryTree(), far, far, idle=0.3)
    assert 0.2 < time.monotonic() - start < 2
    near.close()


@pytest.mark.parametrize("signal", ["kill", "stop"])
def test_a_far_side_that_dies_or_freezes_while_staging(signal):
    with spawned() as far:
        process, far._channel._timeout = far._process, 0.5

        def pieces():
            for number, piece in enumerate(big_pieces(100)):
                if number == 3:
                    process.send_signal(9 if signal == "kill" else 19)
                yield piece

        with pytest.raises(Unreachable):
            far.stage(pieces())
        with pytest.raises(Unreachable):
            list(far.runs())
        process.send_signal(9)
        process.wait()
        process.returncode = 0  # as `spawned` expects of an end that was asked for
