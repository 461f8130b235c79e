"""Objects on their way into a Tree become the files they belong to, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from pathlib import Path

import pytest

from guildsync.errors import DAMAGED, Damaged
from guildsync.model.manifest import digest_of
from guildsync.model.ports import Piece, Want
from guildsync.model.run import RunId
from guildsync.tree.home import Home
from guildsync.tree.staged import StagedFiles, _InOrder, name_of
from tests.kit.replicas import Content, File, Literal
from tests.kit.trees import MIB, noise, run_ids

RUN, OTHER = map(RunId, run_ids(2))


@pytest.fixture
def runs() -> dict[Want, bytes]:
    """What `read_run` finds in runs of the home."""
    return {}


@pytest.fixture
def files(tmp_path: Path, runs):
    found = StagedFiles(Home(str(tmp_path)).staging(), runs.get)
    yield found
    found.close()


def stage(files: StagedFiles, literal: Literal, run: RunId = RUN) -> Content:
    content = Content(literal)
    files.add(content.pieces(content.wants(run)))
    return content


def built(files: StagedFiles, content: Content, path: bytes = b"f", elsewhere=None, run: RunId = RUN) -> bytes:
    """The staged file, which must be what its entry says."""
    entry = content.manifest.by_path[path]
    assert files.build(run, entry, elsewhere or {}) is None
    files.finish(run, entry)
    fd = os.open(name_of(run, path), os.O_RDONLY, dir_fd=files.fd)
    try:
        info = os.fstat(fd)
        data = os.pread(fd, info.st_size + 1, 0)
    finally:
        os.close(fd)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size, entry.digest)
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (entry.mode, entry.mtime_ns)
    return data


SIZES = [0, 1, MIB, MIB + 1, 7 * MIB // 2]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_its_parts(files, size):
    content = stage(files, {b"f": File(noise(1, size), 0o640)})
    assert built(files, content) == noise(1, size)


def test_parts_come_in_any_order_and_more_than_once(files):
    content = Content({b"f": noise(1, 7 * MIB // 2)})
    pieces = content.pieces(content.wants(RUN))
    files.add([pieces[3], pieces[1], pieces[0], pieces[1], pieces[2]])
    assert built(files, content) == noise(1, 7 * MIB // 2)


def test_nobody_else_can_read_what_is_staged(files, tmp_path):
    stage(files, {b"f": b"x"})
    for path in tmp_path.joinpath(".guildsync").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("first", SIZES)
@pytest.mark.parametrize("second", SIZES)
@pytest.mark.parametrize("was_built", [False, True])
def test_other_content_at_the_same_path_leaves_nothing_of_the_first(files, first, second, was_built):
    one = stage(files, {b"f": noise(1, first)})
    if was_built:
        built(files, one)
    assert built(files, stage(files, {b"f": noise(2, second)})) == noise(2, second)
    assert built(files, stage(files, {b"f": noise(1, first)})) == noise(1, first)


def test_a_file_of_which_only_a_late_part_was_staged_before(files):
    big, small = Content({b"f": noise(1, 3 * MIB)}), Content({b"f": b"small"})
    files.add(big.pieces(big.wants(RUN)[2:]))
    files.add(small.pieces(small.wants(RUN)))
    assert built(files, small) == b"small"


def test_what_was_cut_off_is_missing_again(files):
    big, small = Content({b"f": noise(1, 2 * MIB)}), Content({b"f": b"small"})
    files.add(big.pieces(big.wants(RUN)[1:]))
    late = big.wants(RUN)[1].digest
    assert late in files
    files.add(small.pieces(small.wants(RUN)))
    built(files, small)
    assert late not in files


def test_the_same_object_in_several_files_is_staged_once(files):
    content = Content({b"f": noise(1, MIB + 5), b"g": noise(1, MIB + 5), b"h": noise(1, MIB)})
    first = {want.digest: want for want in content.wants(RUN)}
    files.add(content.pieces(first.values()))
    for path in (b"f", b"g", b"h"):
        built(files, content, path)


def test_objects_are_copied_from_runs_and_hashed_on_the_way(files, runs):
    content = Content({b"f": noise(1, MIB + 5)})
    here = {want.digest: want._replace(run=OTHER, path=b"there") for want in content.wants(RUN)}
    runs.update((want, content.objects[digest]) for digest, want in here.items())
    assert built(files, content, elsewhere=here) == noise(1, MIB + 5)
    other = Content({b"g": noise(2, 100)})
    (want,) = other.wants(RUN)
    runs[want] = b"not these bytes"
    assert files.build(RUN, other.manifest.by_path[b"g"], {want.digest: want}) is not None


def test_what_is_not_at_hand_is_a_problem_of_its_path(files):
    content = Content({b"f": b"x"})
    problem = files.build(RUN, content.manifest.by_path[b"f"], {})
    assert (problem.run, problem.path) == (RUN, b"f")


def test_what_was_renamed_away_is_no_longer_staged_but_known(files, runs):
    content = stage(files, {b"f": b"x", b"g": b"x"})
    built(files, content)
    os.unlink(name_of(RUN, b"f"), dir_fd=files.fd)
    files.forget(RUN, b"f")
    (place,) = {want for want in content.wants(RUN) if want.path == b"f"}
    assert place.digest not in files
    runs[place] = b"x"
    assert built(files, content, b"g") == b"x"


def test_a_file_may_be_staged_again_after_it_was_renamed_away(files):
    content = stage(files, {b"f": noise(1, MIB + 1)})
    built(files, content)
    os.unlink(name_of(RUN, b"f"), dir_fd=files.fd)
    files.forget(RUN, b"f")
    assert built(files, stage(files, {b"f": noise(1, MIB + 1)})) == noise(1, MIB + 1)


def test_bytes_of_another_size_are_refused(files):
    want = Want(digest_of(b"x"), 1, RUN, b"f", 0)
    for piece in (Piece(want, b""), Piece(want, b"xx"), Piece(want._replace(size=2), b"x")):
        with pytest.raises(Damaged):
            files.add([piece])
    assert want.digest not in files


def test_parts_that_do_not_add_up_are_damage(files):
    content = stage(files, {b"f": noise(1, MIB + 1)})
    lie = Content({b"f": noise(2, MIB + 1)}).manifest.by_path[b"f"]
    entry = content.manifest.by_path[b"f"]
    problem = files.build(RUN, type(entry)(*[getattr(entry if n != "digest" else lie, n) for n in FIELDS]), {})
    assert (problem.path, problem.reason) == (b"f", DAMAGED)


FIELDS = ("path", "kind", "mode", "size", "digest", "target", "mtime_ns", "parts")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (0, 1, 0, 2), (1, 0, 1, 2), (0, 1, 2, 1)])
def test_the_digest_is_that_of_the_bytes_whatever_order_they_were_written_in(files, tmp_path, order):
    parts = [noise(n, MIB) for n in range(3)]
    with open(tmp_path / "f", "w+b") as file:
        known = _InOrder()
        for part in order:
            for data in (noise(9, MIB), parts[part]):
                os.pwrite(file.fileno(), data, part * MIB)
                known.wrote(part * MIB, data)
        for size in (3 * MIB, 2 * MIB + 5, 0):
            assert known.digest(file.fileno(), size) == digest_of(b"".join(parts)[:size])


def test_few_descriptors_are_open(files):
    before = len(os.listdir("/proc/self/fd"))
    literal = {b"f%d" % n: b"%d" % n for n in range(200)}
    content = stage(files, literal)
    assert len(os.listdir("/proc/self/fd")) <= before + 16
    for path, data in literal.items():
        assert built(files, content, path) == data
    assert len(os.listdir("/proc/self/fd")) <= before + 16


def test_paths_of_any_length_have_a_name(files):
    path = b"/".join([b"x" * 255] * 10)
    content = stage(files, {path: b"deep"})
    assert built(files, content, path) == b"deep"


def left(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / ".guildsync" / "staging")


def test_closing_removes_what_nobody_can_go_on_with(tmp_path):
    StagedFiles(Home(str(tmp_path)).staging(), lambda want: None).close()
    assert left(tmp_path) == []
    files = StagedFiles(Home(str(tmp_path)).staging(), lambda want: None)
    content = stage(files, {b"f": b"x", b"empty": b""})
    for path in (b"f", b"empty"):
        built(files, content, path)
        os.unlink(name_of(RUN, path), dir_fd=files.fd)
        files.forget(RUN, path)
    files.close()
    assert left(tmp_path) == []


@pytest.mark.parametrize("keep", [True, False])
def test_closing_leaves_what_is_in_no_run_unless_it_is_not_to_be_kept(tmp_path, keep):
    files = StagedFiles(Home(str(tmp_path)).staging(), lambda want: None)
    stage(files, {b"f": b"x"})
    files.close(keep)
    files.close(keep)
    assert len(left(tmp_path)) == (2 if keep else 0)


def test_another_version_that_lies_beside_a_file_goes_with_it(tmp_path):
    files = StagedFiles(Home(str(tmp_path)).staging(), lambda want: None)
    stage(files, {b"f": noise(1, 2 * MIB)})
    content = stage(files, {b"f": noise(2, 2 * MIB)})
    built(files, content)
    assert any(b"-" in os.fsencode(name) for name in os.listdir(files.fd))
    os.unlink(name_of(RUN, b"f"), dir_fd=files.fd)
    files.forget(RUN, b"f")
    files.close()
    assert left(tmp_path) == []


def test_what_another_version_was_written_over_is_wanted_again(files):
    """Parts of two versions need not have the same borders."""
    one = Content({b"f": noise(1, 3 * MIB)})
    (_, second, _) = one.wants(RUN)
    files.add(one.pieces([second]))
    other = noise(2, MIB)
    files.add([Piece(Want(digest_of(other), MIB, RUN, b"f", MIB // 2), other)])
    assert second.digest in files
    problem = files.build(OTHER, one.manifest.by_path[b"f"], {})
    assert problem is not None
    assert files.build(OTHER, Content({b"f": one.objects[second.digest]}).manifest.by_path[b"f"], {}) is not None
    assert second.digest not in files


def test_what_does_not_add_up_is_wanted_again(files):
    content = stage(files, {b"f": noise(1, MIB + 1)})
    lie = Content({b"f": noise(2, MIB + 1)}).manifest.by_path[b"f"]
    assert files.build(RUN, dataclasses.replace(content.manifest.by_path[b"f"], digest=lie.digest), {}) is not None
    assert not any(want.digest in files for want in content.wants(RUN))
    assert built(files, stage(files, {b"f": noise(1, MIB + 1)})) == noise(1, MIB + 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user to be refused like one")
def test_a_file_nobody_may_write_can_be_built_twice(tmp_path):
    """As in the second round of a sync; root would never notice."""
    tmp_path.chmod(0o777)
    for top in tmp_path.parents[:3]:
        top.chmod(top.stat().st_mode | 0o011)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setegid(65534)
            os.seteuid(65534)
            files = StagedFiles(Home(str(tmp_path / "home")).staging(), lambda want: None)
            one = stage(files, {b"f": File(b"first", 0o444)})
            built(files, one)
            built(files, one)
            files._opened.close(name_of(RUN, b"f"))
            assert built(files, stage(files, {b"f": File(b"second", 0o444)})) == b"second"
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
