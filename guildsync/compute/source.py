"""What of a project's source goes with a run, and how it is copied into one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from guildsync.compute.git import work_tree
from guildsync.errors import Damaged, GuildsyncError, NotFound, Usage
from guildsync.model.manifest import check_path, parent

IGNORE_FILE = b".guildsyncignore"
_HINT = "name what is not to go along in .guildsyncignore, as in .gitignore"
DEFAULTS = (
    *("__pycache__/", "*.py[co]", ".ipynb_checkpoints/", ".tox/", ".nox/", ".eggs/", "*.egg-info/", "build/", "dist/"),
    *(".mypy_cache/", ".pytest_cache/", ".ruff_cache/", ".hypothesis/", ".dvc/cache/", "node_modules/", ".DS_Store"),
    *(".hg/", ".svn/", ".bzr/", "CVS/", ".env", ".netrc", ".ssh/", ".aws/", ".gnupg/"),
)
"""What stays where git does not say; `.guildsyncignore` can take it back in by `!pattern`."""
_VENV = "pyvenv.cfg"
_GIT, _GUILD = b".git", b".guild"
_SHOWN = 5
_GIVE_UP = 10
"""Times the limit of files: a walk that found so many has seen enough."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 1 << 20
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""A name that is not there, or leads through what is no directory."""


@dataclass(frozen=True)
class Limits:
    """What is too much to be source. `size`: bytes in total."""

    size: int = 100_000_000
    files: int = 10_000


LIMITS = Limits()


@dataclass(frozen=True)
class Source:
    """What goes with a run: regular files and links, by sorted paths relative to `root`. `commit` and `dirty` are what
    git says of it; `size` is bytes."""

    root: bytes
    paths: tuple[bytes, ...]
    commit: str | None
    dirty: bool
    size: int


def find_source(directory: str | bytes, limits: Limits = LIMITS, without: Collection[bytes] = ()) -> Source:
    """What of a project's directory goes with a run.

    In a git work tree: what is tracked, or untracked and not ignored, with submodules and nested repositories; else all
    but DEFAULTS and virtual environments. In both cases without what `.guildsyncignore` in the directory names, in the
    syntax of .gitignore; never `.git`, nor a `.guild` at the top, nor the directories `without` (absolute paths).
    Links are kept as links; sockets, pipes, devices and empty directories stay. Raises NotFound, Usage (too much, or a
    malformed `.guildsyncignore`), GuildsyncError where git or the system does not let it be read.
    """
    root = os.path.realpath(os.fsencode(directory))
    if not os.path.isdir(root):
        raise NotFound(f"there is no directory {_text(root)}")
    git = work_tree(root)
    rules = _Rules(root, () if git else DEFAULTS, without)
    with _Directories(root) as directories:
        listed = _of_git(directories, git.files, rules) if git else _walk(directories.at(b""), b"", rules)
        found: list[tuple[int, bytes]] = []
        for path, info in listed:
            _check_name(path)
            found.append((info.st_size if stat.S_ISREG(info.st_mode) else 0, path))
            if len(found) > _GIVE_UP * limits.files:
                break
    _guard(found, limits)
    paths = tuple(sorted(path for _, path in found))
    size = sum(size for size, _ in found)
    return Source(root, paths, git.commit if git else None, git.dirty if git else False, size)


def copy_source(source: Source, into: bytes) -> None:
    """Put the source into a directory that is there and has none of it: permissions (no setuid; directories can always
    be written by their owner) and times as they are. A crash leaves a part of it. Raises NotFound for a file that went
    away meanwhile, GuildsyncError for what cannot be read or written."""
    above: dict[bytes, os.stat_result] = {}
    with _Directories(source.root) as there, _Directories(into) as here:
        for path in source.paths:
            directory, name = parent(path), os.path.basename(path)
            try:
                read = there.at(directory)
                above.setdefault(directory, os.fstat(read))
                _copy(name, read, here.at(directory, make=True))
            except OSError as exc:
                if exc.errno in _GONE:
                    raise NotFound(f"{_text(path)} went away while it was copied", "try again") from exc
                raise GuildsyncError(f"{_text(path)} cannot be copied: {exc.strerror or exc}") from exc
        for directory in {path for each in list(above) for path in _up(each)} - set(above):
            above[directory] = os.fstat(there.at(directory))
        for directory in sorted(above.keys() - {b""}, reverse=True):
            info, fd = above[directory], here.at(directory)
            os.fchmod(fd, stat.S_IMODE(info.st_mode) & 0o777 | 0o700)
            os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))


def _up(directory: bytes) -> Iterator[bytes]:
    while directory:
        yield directory
        directory = parent(directory)


def _copy(name: bytes, read: int, write: int) -> None:
    info = os.stat(name, dir_fd=read, follow_symlinks=False)
    times = (info.st_atime_ns, info.st_mtime_ns)
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=read), name, dir_fd=write)
        os.utime(name, ns=times, dir_fd=write, follow_symlinks=False)
        return
    source = os.open(name, _READ, dir_fd=read)
    try:
        info = os.fstat(source)
        if not stat.S_ISREG(info.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a file any more")
        target = os.open(name, _WRITE, 0o600, dir_fd=write)
        try:
            _copy_bytes(source, target, info.st_size)
            os.fchmod(target, stat.S_IMODE(info.st_mode) & 0o777)
            os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_bytes(source: int, target: int, size: int) -> None:
    """No more than `size`: a file that grows is no trouble."""
    while size and (block := os.read(source, min(_BLOCK, size))):
        size -= len(block)
        view = memoryview(block)
        while view:
            view = view[os.write(target, view) :]


class _Directories:
    """The directories below a root, by descriptor, one at a time, following no link."""

    def __init__(self, root: bytes) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._path, self._fd = b"", os.dup(self._root)

    def __enter__(self) -> _Directories:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        os.close(self._root)

    def at(self, path: bytes, make: bool = False) -> int:
        """A descriptor that is valid until the next call. With `make`, what is not there is made, for us alone."""
        if path == self._path:
            return self._fd
        fd = os.dup(self._root)
        try:
            for name in path.split(b"/") if path else ():
                if make:
                    try:
                        os.mkdir(name, 0o700, dir_fd=fd)
                    except FileExistsError:
                        pass
                below = os.open(name, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._path, self._fd = path, fd
        return fd


class _Rules:
    """What stays, whatever else is said of it."""

    def __init__(self, root: bytes, defaults: Sequence[str], without: Collection[bytes]) -> None:
        """Raises Usage."""
        beside = [os.path.relpath(os.path.realpath(path), root) for path in without]
        self._without = tuple(path for path in beside if path.split(b"/")[0] not in (b"..", b"."))
        lines = [*defaults, *_lines(root)]
        self._spec = None
        if lines:
            from pathspec import GitIgnoreSpec

            try:
                self._spec = GitIgnoreSpec.from_lines(lines)
            except ValueError as exc:
                raise Usage(f"{_text(IGNORE_FILE)}: {exc}", "it has the syntax of .gitignore") from exc
        self._taken_back = any(pattern.include is False for pattern in (self._spec.patterns if self._spec else ()))

    def leave_out(self, path: bytes) -> bool:
        return self._is_never(path) or self._is_ignored(path)

    def leave_out_all(self, directory: bytes) -> bool:
        """Nothing below it can go along."""
        return self._is_never(directory) or (not self._taken_back and self._is_ignored(directory + b"/"))

    def _is_never(self, path: bytes) -> bool:
        names = path.split(b"/")
        return (
            names[0] == _GUILD
            or _GIT in names
            or any(path == each or path.startswith(each + b"/") for each in self._without)
        )

    def _is_ignored(self, path: bytes) -> bool:
        return self._spec is not None and self._spec.match_file(path.decode("utf-8", "surrogateescape"))


def _lines(root: bytes) -> list[str]:
    try:
        with open(os.path.join(root, IGNORE_FILE), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise Usage(f"{_text(IGNORE_FILE)} cannot be read: {exc.strerror}") from exc
    return [line.rstrip("\r") for line in data.decode("utf-8-sig", "surrogateescape").split("\n")]


_Found = tuple[bytes, os.stat_result]


def _of_git(directories: _Directories, names: Iterable[bytes], rules: _Rules) -> Iterator[_Found]:
    for path in sorted(names):
        if rules.leave_out(path):
            continue
        _check_name(path)
        try:
            fd = directories.at(parent(path))
            info = os.stat(os.path.basename(path), dir_fd=fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in _GONE:
                continue  # tracked, and deleted from the work tree
            raise _unreadable(path, exc) from exc
        if _is_kept(info):
            yield path, info


def _walk(fd: int, prefix: bytes, rules: _Rules) -> Iterator[_Found]:
    try:
        with os.scandir(fd) as listed:
            names = sorted(os.fsencode(entry.name) for entry in listed)
    except OSError as exc:
        raise _unreadable(prefix.rstrip(b"/"), exc) from exc
    if os.fsencode(_VENV) in names and prefix:
        return
    for name in names:
        path = prefix + name
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISDIR(info.st_mode):
                if _is_kept(info) and not rules.leave_out(path):
                    yield path, info
                continue
            if rules.leave_out_all(path):
                continue
            below = os.open(name, _DIRECTORY, dir_fd=fd)
        except OSError as exc:
            if exc.errno in _GONE:
                continue  # since its directory was read
            raise _unreadable(path, exc) from exc
        try:
            yield from _walk(below, path + b"/", rules)
        finally:
            os.close(below)


def _is_kept(info: os.stat_result) -> bool:
    return stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)


def _check_name(path: bytes) -> None:
    try:
        check_path(path)
    except Damaged as exc:
        raise Usage(f"{_text(path[:200])} cannot go with a run: its name is too long or unsafe", _HINT) from exc


def _unreadable(path: bytes, exc: OSError) -> GuildsyncError:
    return GuildsyncError(f"{_text(path) or '.'} cannot be read: {exc.strerror or exc}", _HINT)


def _guard(found: Sequence[tuple[int, bytes]], limits: Limits) -> None:
    size = sum(size for size, _ in found)
    if len(found) > limits.files:
        counts: dict[bytes, int] = {}
        for _, path in found:
            counts[parent(path)] = counts.get(parent(path), 0) + 1
        most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
        named = ", ".join(f"{_text(directory) or '.'}/ ({count})" for directory, count in most)
        more = "more than " if len(found) > _GIVE_UP * limits.files else ""
        raise Usage(
            f"{more}{len(found)} files would go with the run, {limits.files} may; most are in {named}; "
            f"the biggest are {_biggest(found)}",
            _HINT,
        )
    if size > limits.size:
        raise Usage(
            f"{_size(size)} would go with the run, {_size(limits.size)} may; the biggest are {_biggest(found)}", _HINT
        )


def _biggest(found: Sequence[tuple[int, bytes]]) -> str:
    biggest = sorted(found, key=lambda item: (-item[0], item[1]))[:_SHOWN]
    return ", ".join(f"{_text(path)} ({_size(size)})" for size, path in biggest)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
