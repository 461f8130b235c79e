"""Which paths of a run a sync is about: patterns, and what always goes along. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import FrozenSet, Iterable, List, NoReturn, Set, Tuple

from guildsync.errors import Usage
from guildsync.model.manifest import DIRECTORY, Entry

_EXAMPLES = "patterns are such as '*.pt', 'checkpoints/', '/logs/**'; a \\ takes away a character's special meaning"
_NEGATIONS = (b"!", b"^")
_IN_NO_NAME = frozenset(b"/\0")


def _is_of_every_run(path: bytes) -> bool:
    """Without these a run would not be listed, or not say what it is."""
    return path == b".guild/opref" or path.startswith(b".guild/attrs/")


@dataclass(frozen=True)
class Paths:
    """The paths that an include matches, or all where there are no includes, without those that an exclude matches.

    Patterns are relative to the run's directory and match bytes, case and all. `*` and `?` stay within a name, `**`
    crosses `/`, `[a-z]` and `[!a-z]` are classes, `\\` makes the next character an ordinary one. A pattern without a
    `/` before its end matches names at any depth, others count from the top of the run. One that ends in `/` matches
    directories alone. What matches a directory takes everything below it. `.guild/opref` and what is below
    `.guild/attrs/` are always in. Raises Usage for a pattern that can match nothing.
    """

    includes: Tuple[bytes, ...] = ()
    excludes: Tuple[bytes, ...] = ()
    _included: _Matcher = field(init=False, repr=False, compare=False)
    _excluded: _Matcher = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_included", _Matcher(self.includes))
        object.__setattr__(self, "_excluded", _Matcher(self.excludes))

    @property
    def leave_out(self) -> bool:
        """Can there be a path that is not chosen?"""
        return bool(self.includes or self.excludes)

    def __contains__(self, entry: Entry) -> bool:
        return not self.leave_out or self.chosen(entry.path, entry.kind == DIRECTORY)

    def chosen(self, path: bytes, is_directory: bool = False) -> bool:
        if _is_of_every_run(path):
            return True
        if self.includes and not self._included.matches(path, is_directory):
            return False
        return not self._excluded.matches(path, is_directory)


class _Matcher:
    """Whether any of some patterns matches a path."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        """Raises Usage."""
        bodies = [_translated(pattern) for pattern in patterns]
        directory = [body + rb"(?:/.*)?" for body, _ in bodies]
        other = [body + (rb"/.*" if only_directories else rb"(?:/.*)?") for body, only_directories in bodies]
        self._directory = re.compile(b"|".join(directory), re.DOTALL)
        self._other = re.compile(b"|".join(other), re.DOTALL)

    def matches(self, path: bytes, is_directory: bool) -> bool:
        return (self._directory if is_directory else self._other).fullmatch(path) is not None


def _translated(pattern: bytes) -> Tuple[bytes, bool]:
    """A regular expression for what a pattern matches, without what is below that, and whether it is about directories
    alone."""
    names = pattern.split(b"/")
    only_directories = len(names) > 1 and not names[-1]
    if only_directories:
        names.pop()
    out = b"" if len(names) > 1 else b"(?:.*/)?"
    if len(names) > 1 and not names[0]:
        names.pop(0)
    if not all(names):
        _malformed(pattern, "is empty, or a name in it is")
    if b"." in names or b".." in names:
        _malformed(
            pattern, "has a name `.` or `..`, which no path of a run has", "patterns begin at the run's directory"
        )
    for position, name in enumerate(names, 1):
        last = position == len(names)
        if len(name) > 1 and not name.strip(b"*"):
            out += b".+" if last else b"(?:.*/)?"
        else:
            out += _translated_name(name, pattern) + (b"" if last else b"/")
    return out, only_directories


def _translated_name(name: bytes, pattern: bytes) -> bytes:
    out: List[bytes] = []
    position = 0
    while position < len(name):
        char = name[position : position + 1]
        position += 1
        if char == b"*":
            rest = name[position:].lstrip(b"*")
            out.append(b"[^/]*" if len(rest) == len(name) - position else b".*")
            position = len(name) - len(rest)
        elif char == b"?":
            out.append(b"[^/]")
        elif char == b"[":
            chars, position = _class(name, position, pattern)
            out.append(b"[" + b"".join(b"\\x%02x" % code for code in sorted(chars)) + b"]")
        else:
            code, position = _literal(name, position - 1, pattern)
            out.append(re.escape(bytes([code])))
    return b"".join(out)


def _class(name: bytes, position: int, pattern: bytes) -> Tuple[FrozenSet[int], int]:
    """The bytes of a class whose `[` is just before `position`, and where it ends."""
    negated = name[position : position + 1] in _NEGATIONS
    position += negated
    first = position
    chars: Set[int] = set()
    while position == first or name[position : position + 1] != b"]":
        if name[position : position + 2] == b"[:":
            _malformed(pattern, "has a class by name such as [:digit:]", "say a range such as [0-9]")
        low, position = _literal(name, position, pattern)
        high = low
        if name[position : position + 1] == b"-" and name[position + 1 : position + 2] not in (b"", b"]"):
            high, position = _literal(name, position + 1, pattern)
        if high < low:
            _malformed(pattern, "has a range that runs backwards")
        chars.update(range(low, high + 1))
    found = (frozenset(range(256)) - chars if negated else frozenset(chars)) - _IN_NO_NAME
    if not found:
        _malformed(pattern, "has a class that nothing is in")
    return found, position + 1


def _literal(name: bytes, position: int, pattern: bytes) -> Tuple[int, int]:
    """The character at `position`, or the one behind it where that is a `\\`, and where the next one is."""
    if name[position : position + 1] == b"\\":
        position += 1
        if position == len(name):
            _malformed(pattern, "has a name that ends in a \\", "say \\\\ for the character \\")
    if position >= len(name):
        _malformed(pattern, "has a [ without its ]", "say \\[ for the character [")
    if not name[position]:
        _malformed(pattern, "holds a NUL")
    return name[position], position + 1


def _malformed(pattern: bytes, why: str, hint: str = _EXAMPLES) -> NoReturn:
    raise Usage(f"the pattern '{pattern.decode('utf-8', 'backslashreplace')}' {why}", hint)


EVERYTHING = Paths()
