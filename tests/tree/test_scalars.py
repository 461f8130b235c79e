"""Summaries of scalars are those of all values, however often files were looked at while they grew."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync.model.manifest import canonical
from guildsync.model.run import Summary, find_scalar
from guildsync.tree import scalars
from guildsync.tree.dirs import open_directory
from guildsync.tree.scalars import Scalars, is_event_file, summarise
from tests.kit.events import event_bytes, record, scalar_event
from tests.kit.trees import put, run_ids, write_run

NAME = "events.out.tfevents.1700000000.host.1"
EVENTS = NAME.encode()

TENSORBOARDX = bytes.fromhex(
    "1800000000000000a37f4b2209edcf7aa4b8c1da411a0d627261696e2e4576656e743a3291e48f9b"
    "1a00000000000000129bd82d095fed7aa4b8c1da4110642a0d0a0b0a046c6f7373150000803ff6c1cf50"
    "1b000000000000001a0d9e1309b7f17aa4b8c1da4110c8012a0d0a0b0a046c6f7373150000003f1112b3d4"
    "1b000000000000001a0d9e13097ef57aa4b8c1da4110ac022a0d0a0b0a046c6f737315abaaaa3efae14247"
)
"""What tensorboardX 2.6.5 wrote for `loss` 1, 1/2, 1/3 at steps 100, 200, 300."""
TENSORBOARD = bytes.fromhex(
    "4800000000000000fe92489d09b6747ea4b8c1da411a0d627261696e2e4576656e743a32522e0a2c"
    "74656e736f72626f6172642e73756d6d6172792e7772697465722e6576656e745f66696c655f777269746572aad0847d"
    "300000000000000095f5d05f09e8847ea4b8c1da4110642a230a210a046c6f7373420a080112002a040000803f"
    "4a0d0a090a077363616c6172732001da164106"
    "31000000000000009d8383e90955887ea4b8c1da4110c8012a230a210a046c6f7373420a080112002a040000003f"
    "4a0d0a090a077363616c61727320019d262bd0"
    "31000000000000009d8383e909e0887ea4b8c1da4110ac022a230a210a046c6f7373420a080112002a04abaaaa3e"
    "4a0d0a090a077363616c617273200107fc25c3"
)
"""The same by TensorBoard 2.21's own writer, which makes tensors."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def fd(run: Path) -> Iterator[int]:
    found = open_directory(os.fsencode(run))
    yield found
    os.close(found)


@pytest.fixture
def offsets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where each reading of a file begins."""
    seen: list[int] = []
    read = scalars.read_records

    def watched(fd, offset, size, take):
        seen.append(offset)
        return read(fd, offset, size, take)

    monkeypatch.setattr(scalars, "read_records", watched)
    return seen


def all_of(run: Path) -> list[tuple[bytes, int]]:
    """Every event file of a run as it is."""
    found = (os.path.join(root, name) for root, _, names in os.walk(os.fsencode(run)) for name in names)
    return [(os.path.relpath(path, os.fsencode(run)), os.lstat(path).st_size) for path in found if is_event_file(path)]


def look(run: Path, state: bytes | None = None) -> tuple[Scalars, bytes]:
    fd = open_directory(os.fsencode(run))
    try:
        return summarise(fd, all_of(run), state)
    finally:
        os.close(fd)


def last(run: Path, state: bytes | None = None) -> dict[str, float]:
    return {tag: row["last"] for tag, row in look(run, state)[0].items()}


def points(*values: float, tag: str = "loss", start: int = 0) -> bytes:
    return event_bytes(*(scalar_event(tag, value, start + n) for n, value in enumerate(values)))


def expected(series: list[tuple[int, float]]) -> dict[str, object]:
    """The summary of (step, value) in the order they were written, from the definitions."""
    steps = [step for step, _ in series]
    values = np.array([value for _, value in series], dtype=np.float64)
    first = steps.index(min(steps))
    final = len(steps) - 1 - steps[::-1].index(max(steps))
    numbers = [n for n, value in enumerate(values) if not math.isnan(value)] or [0]
    least = next(n for n in numbers if values[n] == min(values[numbers]) or math.isnan(values[n]))
    most = next(n for n in numbers if values[n] == max(values[numbers]) or math.isnan(values[n]))
    where = {"first": first, "last": final, "min": least, "max": most}
    found: dict[str, object] = {"count": len(series)}
    for name, n in where.items():
        found |= {name: float(values[n]), f"{name}_step": steps[n]}
    with np.errstate(invalid="ignore"):
        found["avg"] = float(np.cumsum(values)[-1] / len(values))
    return {k: v if type(v) is int or math.isfinite(v) else repr(v) for k, v in found.items()}


def test_files_are_known_by_their_name():
    assert is_event_file(EVENTS)
    assert is_event_file(b".guild/" + EVENTS)
    assert not is_event_file(b"tfevents/model.pt")


@pytest.mark.parametrize("written", [TENSORBOARDX, TENSORBOARD], ids=["simple values", "tensors"])
def test_what_others_wrote(run, written):
    put(run, NAME, written)
    third = float(np.float32(1 / 3))
    assert look(run)[0] == {
        "loss": {
            "first": 1.0,
            "first_step": 100,
            "last": third,
            "last_step": 300,
            "min": third,
            "min_step": 300,
            "max": 1.0,
            "max_step": 100,
            "avg": (1 + 0.5 + third) / 3,
            "count": 3,
        }
    }


def test_the_run_of_the_kit(tmp_path):
    found = look(write_run(tmp_path, run_ids(1)[0]))[0]
    assert found == {"loss": expected([(s, float(np.float32(1 / (s + 1)))) for s in range(20)])}


POINTS = st.lists(
    st.tuples(
        st.sampled_from(["loss", "acc", "ü#x"]),
        st.sampled_from([0.1, 1.0, -2.5, math.nan, math.inf, -math.inf]) | st.floats(width=32),
        st.integers(-3, 8) | st.integers(-(1 << 63), (1 << 63) - 1),
        st.booleans(),
    ),
    max_size=12,
)


@given(POINTS, st.lists(st.integers(0, 1000), max_size=6))
def test_a_summary_is_that_of_all_values_in_however_many_looks(tmp_path_factory, written, cuts):
    run = tmp_path_factory.mktemp("run")
    whole = event_bytes(*(scalar_event(*point) for point in written))
    state = None
    (run / NAME).touch()
    for cut in [*sorted(cuts), len(whole)]:
        with open(run / NAME, "ab") as file:
            file.write(whole[os.path.getsize(run / NAME) : cut])
        found, state = look(run, state)
        assert (found, state) == look(run)
    assert found == {
        tag: expected([(step, float(np.float32(v))) for t, v, step, _ in written if t == tag])
        for tag in {tag for tag, *_ in written}
    }
    assert canonical(found)


def test_growth_byte_by_byte(run, fd):
    whole = b"".join([points(1, 2, math.nan), points(4, 0.5, start=2)])
    put(run, NAME, whole)
    state = None
    for size in range(len(whole) + 1):
        found, state = summarise(fd, [(EVENTS, size)], state)
        assert (found, state) == summarise(fd, [(EVENTS, size)], None)
    assert found["loss"]["count"] == 5


def test_only_what_a_file_gained_is_read(run, offsets):
    put(run, NAME, points(1, 2))
    put(run, "other/" + NAME, points(9))
    found, state = look(run)
    assert look(run, state) == (found, state)
    sizes = sorted(size for _, size in all_of(run))
    with open(run / NAME, "ab") as file:
        file.write(record(scalar_event("loss", 3, 3)))
    assert last(run, state) == {"loss": 3.0, "other#loss": 9.0}
    assert sorted(offsets) == sorted([0, 0, *sizes, *sizes])


def test_a_size_bounds_what_counts(run, fd):
    put(run, NAME, points(1, 2))
    short = len(points(1))
    assert summarise(fd, [(EVENTS, short)], None)[0]["loss"]["last"] == 1.0
    assert summarise(fd, [(EVENTS, 1 << 70)], None)[0]["loss"]["last"] == 2.0
    assert summarise(fd, [(EVENTS, -5)], None)[0] == {}
    state = summarise(fd, [(EVENTS, 1 << 40)], None)[1]
    assert summarise(fd, [(EVENTS, short)], state)[0]["loss"]["last"] == 1.0


@pytest.mark.parametrize("how", ["renamed", "rewritten", "shorter", "longer and renamed"])
def test_a_file_that_was_replaced_begins_anew(run, how):
    put(run, NAME, points(1, 2, 3))
    old, state = look(run)
    if how == "rewritten":  # the same inode, and not shorter
        put(run, NAME, TENSORBOARD)
    elif how == "shorter":
        put(run, NAME, points(1, 7))
    else:
        put(run, "new", points(4, 5, 6, *([7] if how == "longer and renamed" else [])))
        os.rename(run / "new", run / NAME)
    assert look(run, state) == look(run)
    assert look(run, state)[0] != old


def test_a_file_that_is_gone_counts_no_more(run):
    put(run, NAME, points(1))
    put(run, NAME + ".2", points(2, start=5))
    state = look(run)[1]
    (run / NAME).unlink()
    assert look(run, state)[0]["loss"]["count"] == 1
    assert NAME.encode() + b'"' not in look(run, state)[1]


def test_a_damaged_record_ends_its_file_until_it_is_mended(run):
    good = points(1, 2)
    more = record(scalar_event("loss", 3, 3))
    put(run, NAME, good + bytes(len(more)) + more)
    found, state = look(run)
    assert found["loss"]["last"] == 2.0
    with open(run / NAME, "r+b") as file:
        file.seek(len(good))
        file.write(more)
    assert look(run, state) == look(run)
    assert look(run)[0]["loss"]["count"] == 4


def test_a_directory_is_one_series_in_the_order_of_file_names(run):
    """A restart goes on from an earlier step: what was written last for a step counts as last, and nothing is lost."""
    put(run, NAME + ".10", points(7, 8, start=2))  # before .9: by name
    put(run, NAME + ".9", points(1, 2, 3, 4))
    assert look(run)[0] == {"loss": expected([(2, 7.0), (3, 8.0), (0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)])}


@given(st.lists(POINTS, min_size=1, max_size=4))
def test_several_files_are_as_one(tmp_path_factory, files):
    run = tmp_path_factory.mktemp("run")
    for n, written in enumerate(files):
        put(run, f"{NAME}.{n}", event_bytes(*(scalar_event(*point) for point in written)))
    found = look(run)[0]
    every = [point for written in files for point in written]
    assert found.keys() == {tag for tag, *_ in every}
    for tag, row in found.items():
        wanted = expected([(step, float(np.float32(v))) for t, v, step, _ in every if t == tag])
        sums = row.pop("avg"), wanted.pop("avg")
        assert row == wanted
        finite = [s for s in sums if not isinstance(s, str)]
        assert sums[0] == sums[1] if len(finite) < 2 else finite[0] == pytest.approx(finite[1], rel=1e-6, abs=1e30)


def test_tags_of_directories_have_their_name_before_them(run):
    put(run, NAME, points(1, tag="loss") + points(2, tag="only/here"))
    put(run, ".guild/" + NAME, points(3, tag="loss"))
    put(run, ".guild/sub/" + NAME, points(4))
    put(run, "logs/train/" + NAME, points(5))
    put(run, b"logs/\xff/" + EVENTS, points(6))
    assert last(run) == {
        "loss": 3.0,
        "only/here": 2.0,
        ".guild/sub#loss": 4.0,
        "logs/train#loss": 5.0,
        "logs/\ufffd#loss": 6.0,
    }
    assert canonical(look(run)[0])
    assert look(run, look(run)[1]) == look(run)


def test_numbers_that_are_not_finite(run):
    put(
        run, NAME, points(math.nan, 2, 1, math.nan) + points(math.inf, -math.inf, tag="inf") + points(math.nan, tag="n")
    )
    found = look(run)[0]
    assert {name: found["loss"][name] for name in ("first", "last", "min", "min_step", "max", "max_step", "avg")} == {
        "first": "nan",
        "last": "nan",
        "min": 1.0,
        "min_step": 2,
        "max": 2.0,
        "max_step": 1,
        "avg": "nan",
    }
    assert (found["inf"]["min"], found["inf"]["max"], found["inf"]["avg"]) == ("-inf", "inf", "nan")
    assert (found["n"]["min"], found["n"]["max"], found["n"]["count"]) == ("nan", "nan", 1)
    assert Summary.from_json(Summary(scalars=found).to_json()).scalars == found


@pytest.mark.parametrize("kind", ["link", "link in the way", "pipe", "directory", "absent", "above", "marker"])
def test_only_regular_files_of_the_run_are_read(run, fd, kind):
    put(run, "real/" + NAME, points(1))
    put(run.parent, NAME, points(2))
    path = EVENTS
    if kind == "link":
        (run / NAME).symlink_to("real/" + NAME)
    elif kind == "link in the way":
        (run / "way").symlink_to("real")
        path = b"way/" + EVENTS
    elif kind == "pipe":
        os.mkfifo(run / NAME)
    elif kind == "directory":
        (run / NAME).mkdir()
    elif kind == "above":
        path = b"../" + EVENTS
    elif kind == "marker":
        put(run, ".guild/sync/" + NAME, points(3))
        path = b".guild/sync/" + EVENTS
    found, state = summarise(fd, [(path, 1 << 40), (b"real/" + EVENTS, 1 << 40)], None)
    assert found == {"real#loss": expected([(0, 1.0)])}
    assert list(json.loads(state)["files"]) == ["real/" + NAME]


def test_a_file_that_cannot_be_read_is_read_the_next_time(run, monkeypatch):
    put(run, NAME, points(1))
    good = look(run)
    with monkeypatch.context() as patch:

        def broken(*args):
            raise OSError(5, "Input/output error")

        patch.setattr(scalars, "read_records", broken)
        found, state = look(run, good[1])
    assert found == {}
    assert look(run, state) == good


def test_tags_are_bounded(run, monkeypatch):
    monkeypatch.setattr(scalars, "MAX_TAGS", 10)
    put(run, NAME + ".1", event_bytes(*(scalar_event(f"a{n}", n, n) for n in range(15))))
    put(run, NAME + ".2", event_bytes(*(scalar_event(f"b{n}", n, n) for n in range(5)), scalar_event("a3", 7, 99)))
    found, state = look(run)
    assert list(found) == [f"a{n}" for n in range(10)]
    assert found["a3"]["last"] == 7.0
    assert look(run, state) == (found, state)


def test_the_state_is_bounded(run, monkeypatch):
    """Whichever file grows when: one that is replaced makes room again."""
    monkeypatch.setattr(scalars, "MAX_STATE", 20_000)
    state = None
    for name in ("c", "b", "a", "b", "a", "c"):
        tag = os.urandom(3).hex()
        (run / f"{name}.tfevents").unlink(missing_ok=True)
        put(run, f"{name}.tfevents", event_bytes(*(scalar_event(f"{tag}\0{n}", n, n) for n in range(200))))
        found, state = look(run, state)
        assert 40 < len(found) < 200
        assert len(state) < 25_000
    for n in range(200):
        put(run, f"empty{n}.tfevents", b"")
    assert len(look(run)[1]) < 25_000


def test_bytes_that_are_no_text_make_tags_that_are(run):
    put(
        run,
        NAME,
        event_bytes(*(scalar_event(tag, 1, n) for n, tag in enumerate([b"\xff", b"\xed\xa0\x80", b"\0"] * 2))),
    )
    found, state = look(run)
    assert found.keys() == {"\ufffd", "\ufffd" * 3, "\0"}
    assert canonical(found)
    assert look(run, state) == (found, state)


STRANGE = [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"version":1}', b'{"version":2,"files":{}}']


@pytest.mark.parametrize("state", STRANGE, ids=range(len(STRANGE)))
def test_a_state_that_cannot_be_understood_begins_anew(run, state):
    put(run, NAME, points(1, 2))
    assert look(run, state) == look(run)


ROW = [1, 1.0, 0, 1.0, 0, 1.0, 0, 1.0, 0, 1.0]


def changed(index: int, value: object) -> list[object]:
    return [*ROW[:index], value, *ROW[index + 1 :]]


@pytest.mark.parametrize(
    "tags",
    [
        *(
            [],
            None,
            "text",
            {"x": None},
            {"x": []},
            {"x": ROW[1:]},
            {"x": [*ROW, 1]},
            {"\ud800": ROW},
            {"x": "1234567890"},
        ),
        *({"x": changed(0, value)} for value in (0, -1, True, 1.0, "1", None)),
        *({"x": changed(1, value)} for value in (1, None, "one", [])),
        *({"x": changed(2, value)} for value in (1.0, "0", None)),
    ],
)
def test_a_state_that_says_something_strange_begins_anew(run, tags):
    put(run, NAME, points(1, 2))
    state = json.loads(look(run)[1])
    state["files"][NAME][3] = tags
    assert look(run, json.dumps(state).encode()) == look(run)


@pytest.mark.parametrize(("index", "value"), [(0, "1"), (1, -1), (1, 1.0), (1, 1 << 80), (2, None), (2, "\ud800")])
def test_a_state_that_names_no_place_begins_anew(run, index, value):
    put(run, NAME, points(1, 2))
    state = json.loads(look(run)[1])
    state["files"][NAME][index] = value
    assert look(run, json.dumps(state).encode()) == look(run)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(JSON | st.fixed_dictionaries({"version": st.just(1), "files": st.dictionaries(st.just(NAME), JSON)}))
def test_hostile_states_do_no_harm(tmp_path_factory, state):
    run = tmp_path_factory.mktemp("run")
    put(run, NAME, points(1, 2))
    assert look(run, json.dumps(state).encode()) == look(run)


@given(st.data())
def test_spoilt_files_and_states_do_no_harm(tmp_path_factory, data):
    run = tmp_path_factory.mktemp("run")

    def spoilt(whole: bytes) -> bytes:
        at = data.draw(st.integers(0, len(whole)))
        return whole[:at] + data.draw(st.binary(max_size=4)) + whole[at + data.draw(st.integers(0, 4)) :]

    put(run, NAME, points(1, 2))
    state = spoilt(look(run)[1])
    put(run, NAME, spoilt(points(1, 2, tag="x") + points(3)))
    found, state = look(run, state)
    assert canonical(found)
    again, state = look(run, state)
    assert again.keys() == found.keys()


def test_a_person_need_not_name_a_directory():
    found = {"loss": {}, "train#loss": {}, "b#acc": {}, "a#acc": {}, "a#x#y": {}}
    names = ["loss", "train#loss", "acc", "b#acc", "y", "x#y", "los", "", "#acc"]
    assert [find_scalar(found, name) for name in names] == [
        *("loss", "train#loss", "a#acc", "b#acc", "a#x#y", "a#x#y", None, None, None)
    ]


@pytest.mark.soak
def test_a_hundred_megabytes_in_many_looks(run, fd):
    """Two million events of both shapes: what many looks say is what one says."""
    values = [(n % 997) / 8 for n in range(100_000)]
    block = b"".join(record(scalar_event(f"t{n % 50}", v, n, n % 2 == 0)) for n, v in enumerate(values))
    state, size = None, 0
    with open(run / NAME, "ab") as file:
        for _ in range(20):
            file.write(block)
            file.flush()
            size += len(block)
            found, state = summarise(fd, [(EVENTS, size - 5)], state)
    found, state = summarise(fd, [(EVENTS, size)], state)
    assert (found, state) == summarise(fd, [(EVENTS, size)], None)
    assert found["t7"]["count"] == 20 * 2000
    assert found["t7"]["avg"] == sum(values[7::50]) / 2000
