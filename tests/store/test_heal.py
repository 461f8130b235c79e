"""Damage that verify or pull found is remembered, and healed by the next push of a home that has the bytes (P5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guildsync.errors import DAMAGED, MISSING
from tests.kit.model import Person, reasons
from tests.kit.trees import MIB, assert_same, noise, run_ids, write_run

RUNS = run_ids(3)


@pytest.fixture
def author(tmp_path: Path) -> Person:
    person = Person(tmp_path / "home", f"file://{tmp_path}/store")
    for n, run in enumerate(RUNS):
        write_run(person.home, run, {"ckpt": noise(n, MIB), "log": b"%d" % n})
        assert person.push().exit_code == 0
    return person


def packs(person: Person) -> list[Path]:
    return sorted(Path(person.remote.removeprefix("file://")).glob("packs/*/*"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path, _: int) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def remove(path: Path, _: int) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [flip, cut, remove])
@pytest.mark.parametrize("quick", [False, True])
def test_what_verify_found_is_healed_by_the_next_push(
    author: Person, tmp_path: Path, harm: Callable[[Path, int], None], quick: bool
) -> None:
    if quick and harm is flip:
        pytest.skip("a quick verification reads no bytes")
    harmed = packs(author)[:2]
    for path in harmed:
        harm(path, 1000)
    before = {path: path.read_bytes() for path in harmed if path.exists()}
    assert author.context().verify(author.remote, quick=quick).exit_code == 8
    healed = author.push()
    assert (healed.exit_code, healed.problems) == (0, [])
    assert healed.bytes_sent > 0
    assert author.verify().exit_code == 0
    assert author.push().bytes_sent == 0
    assert {path: path.read_bytes() for path in before} == before  # repair removes nothing
    other = Person(tmp_path / "other", author.remote)
    assert other.pull().exit_code == 0
    for run in RUNS:
        assert_same(author.run(run), other.run(run))


def test_what_a_pull_found_is_healed_by_a_push_of_whoever_has_it(author: Person, tmp_path: Path) -> None:
    other = Person(tmp_path / "other", author.remote)
    flip(packs(author)[0], 1000)
    pulled = other.pull()
    assert pulled.exit_code == 8
    assert reasons(pulled) <= {DAMAGED, MISSING}
    assert author.verify().exit_code == 8
    assert author.push().exit_code == 0
    assert other.pull().exit_code == 0
    for run in RUNS:
        assert_same(author.run(run), other.run(run))


def test_who_has_nothing_to_heal_with_harms_nobody(author: Person, tmp_path: Path) -> None:
    other = Person(tmp_path / "other", author.remote)
    assert other.pull().exit_code == 0
    flip(packs(author)[0], 1000)
    stranger = Person(tmp_path / "stranger", author.remote)
    assert stranger.verify().exit_code == 8
    write_run(stranger.home, "f" * 32, {"own": b"bytes"})
    assert stranger.push().exit_code == 0
    assert author.verify().exit_code == 8
    assert other.push().exit_code == 0  # it learns from the journal what the stranger found
    assert author.verify().exit_code == 0


def test_damage_that_was_healed_can_be_collected(author: Person) -> None:
    flip(packs(author)[0], 1000)
    assert author.verify().exit_code == 8
    assert author.push().exit_code == 0
    assert author.context().collect(author.remote, grace=0).files > 0
    assert author.verify().exit_code == 0
