"""Patterns of paths: a table of what they mean, and a slow reading of them that they must agree with."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guildsync.errors import Usage
from guildsync.model.manifest import digest_of, directory_entry, file_entry
from guildsync.model.paths import EVERYTHING, Paths
from tests.kit import strategies as some

OF_EVERY_RUN = (b".guild/opref", b".guild/attrs/flags", b".guild/attrs/a/b")


def matches(pattern: bytes, path: bytes) -> bool:
    """A path that ends in `/` is a directory."""
    return Paths((pattern,)).chosen(path.rstrip(b"/"), path.endswith(b"/"))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (b"*.pt", [b"best.pt", b"a/b/best.pt", b".pt", b"x.pt/inside", b"new\nline.pt"], [b"best.ptx", b"best.PT"]),
        (b"best.pt", [b"best.pt", b"a/best.pt"], [b"xbest.pt", b"best.pt.tmp", b"bestxpt"]),
        (b"/best.pt", [b"best.pt", b"best.pt/x"], [b"a/best.pt"]),
        (b"a/b", [b"a/b", b"a/b/c/d"], [b"x/a/b", b"a/bc", b"a"]),
        (b"/a/*", [b"a/b", b"a/b/c", b"a/b/"], [b"a", b"a/", b"b/a/c"]),
        (b"a/*/c", [b"a/b/c", b"a/b/c/d"], [b"a/c", b"a/b/b/c"]),
        (b"a?c", [b"abc", b"x/a\xffc"], [b"a/c", b"ac", b"a\xc3\xa9c"]),
        (b"logs/", [b"logs/", b"logs/x", b"a/logs/x/y"], [b"logs", b"a/logs", b"logsx/y"]),
        (b"/logs/", [b"logs/", b"logs/x"], [b"logs", b"a/logs/", b"a/logs/x"]),
        (b"a/logs/", [b"a/logs/x"], [b"a/logs", b"b/a/logs/x"]),
        (b"**", [b"a", b"a/b", b"a/"], []),
        (b"**/", [b"a/", b"a/b"], [b"a"]),
        (b"a/**", [b"a/b", b"a/b/c", b"a/b/"], [b"a", b"a/", b"b/a/c"]),
        (b"**/a", [b"a", b"b/a", b"b/c/a"], [b"ba"]),
        (b"a/**/b", [b"a/b", b"a/x/b", b"a/x/y/b/z"], [b"ab", b"x/a/b"]),
        (b"a/x**y", [b"a/xy", b"a/x/y", b"a/x1/2/3y"], [b"a/b/xy"]),
        (b"a***", [b"a", b"a/b", b"ab/c"], [b"ba"]),
        (b"[a-c]x", [b"ax", b"cx"], [b"dx", b"x", b"-x"]),
        (b"[!a-c]x", [b"dx", b"\xffx", b"y/dx"], [b"ax", b"x"]),
        (b"[^a]", [b"b", b"\n"], [b"a"]),
        (b"a/b[!x]c", [b"a/bbc"], [b"a/b/c"]),
        (b"a[+-9]b", [b"a+b", b"a9b"], [b"a/b"]),
        (b"[]-]", [b"]", b"-"], [b"a"]),
        (b"[!]a]", [b"b"], [b"]", b"a"]),
        (b"[a-]", [b"a", b"-"], [b"b"]),
        (b"[\\]a]", [b"]", b"a"], [b"\\"]),
        (b"[[]*]", [b"[x]"], [b"x"]),
        (b"\\*", [b"*"], [b"a"]),
        (b"\\[a]", [b"[a]"], [b"a"]),
        (b"a\\\\b", [b"a\\b"], [b"ab"]),
        (b"!a", [b"!a"], [b"a", b"b"]),
        (b"(a|b)+.^$", [b"(a|b)+.^$"], [b"a"]),
        (b"{a,b}", [b"{a,b}"], [b"a"]),
        (b" ", [b" "], [b"a"]),
        (b"\xff*", [b"\xff", b"\xff\xfe"], [b"\xfe"]),
    ],
)
def test_what_patterns_mean(pattern: bytes, yes: list[bytes], no: list[bytes]) -> None:
    assert [path for path in yes if not matches(pattern, path)] == []
    assert [path for path in no if matches(pattern, path)] == []


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (b"", "is empty"),
        (b"/", "is empty"),
        (b"//", "is empty"),
        (b"a//b", "a name in it is"),
        (b"./a", "`.` or `..`"),
        (b"a/../b", "`.` or `..`"),
        (b"[", "[ without its ]"),
        (b"a[b", "[ without its ]"),
        (b"[]", "[ without its ]"),
        (b"[!]", "[ without its ]"),
        (b"[a-", "[ without its ]"),
        (b"[a/b]", "[ without its ]"),
        (b"[z-a]", "runs backwards"),
        (b"[[:digit:]]", "class by name"),
        (b"[\x01-\xff]\\", "ends in a \\"),
        (b"a\\", "ends in a \\"),
        (b"[a\\", "ends in a \\"),
        (b"a\0b", "NUL"),
        (b"[\0]", "NUL"),
        (b"[!\x01-\xff]", "nothing is in"),
    ],
)
def test_patterns_that_match_nothing_are_refused(pattern: bytes, why: str) -> None:
    for paths in (((pattern,), ()), ((), (b"*.pt", pattern))):
        with pytest.raises(Usage, match=re.escape(why)) as caught:
            Paths(*paths)
        assert caught.value.hint
        assert caught.value.exit_code == 2


def test_includes_and_excludes() -> None:
    paths = Paths((b"*.pt", b"logs/"), (b"tmp*", b"/logs/old/"))
    for path in (b"a.pt", b"logs/x", b"logs/a/old/x"):
        assert paths.chosen(path)
    for path in (b"a", b"tmp.pt", b"tmpdir/a.pt", b"logs/old/x", b"logs"):
        assert not paths.chosen(path)
    assert paths.chosen(b"logs", is_directory=True)
    assert Paths((), (b"*",)).chosen(b".guild/opref")
    assert paths.leave_out
    assert not EVERYTHING.leave_out


@given(some.paths(), st.booleans())
def test_everything_is_everything_and_what_a_run_needs_is_always_in(path: bytes, is_directory: bool) -> None:
    assert EVERYTHING.chosen(path, is_directory)
    assert Paths((b"**",)).chosen(path, is_directory)
    assert Paths((), (b"**",)).chosen(path) == (path in OF_EVERY_RUN or path.startswith(b".guild/attrs/"))
    for needed in OF_EVERY_RUN:
        assert Paths((path.replace(b"\\", b"\\\\").replace(b"[", b"\\["),), (b"**",)).chosen(needed)


def test_entries_are_in_by_path_and_kind() -> None:
    only = Paths((b"logs/",))
    assert directory_entry(b"logs", 0o755, 0) in only
    assert file_entry(b"logs", 0o644, 1, digest_of(b"1"), 0) not in only
    assert Paths((b"a",)) == Paths((b"a",))
    assert len({Paths((b"a",)), Paths((b"a",)), EVERYTHING}) == 2


# A slow reading: tokens, tried one by one, on the whole path and on each directory above it.


def naive(pattern: bytes, path: bytes, is_directory: bool) -> bool:
    only_directories, anchored = pattern.endswith(b"/"), b"/" in pattern[:-1]
    names = pattern.strip(b"/").split(b"/")
    if not anchored:
        names.insert(0, b"**")
    tokens: list[bytes | frozenset[int]] = []
    for n, name in enumerate(names):
        tokens += [b"tree"] if name.strip(b"*") == b"" and len(name) > 1 else naive_name(name)
        tokens += [b"/"] if n < len(names) - 1 else []
    parts = path.split(b"/")
    for depth in range(1, len(parts) + 1):
        whole = depth == len(parts)
        if (is_directory or not whole or not only_directories) and fits(tokens, b"/".join(parts[:depth])):
            return True
    return False


def naive_name(name: bytes) -> list[bytes | frozenset[int]]:
    out: list[bytes | frozenset[int]] = []
    while name:
        if match := re.match(rb"\*+", name):
            out.append(b"**" if len(match[0]) > 1 else b"*")
        elif match := re.match(rb"\?", name):
            out.append(frozenset(range(256)) - {0x2F})
        elif match := re.match(rb"\[(!?)(.)(?:-(.))?\]", name, re.DOTALL):
            low, high = match[2][0], (match[3] or match[2])[0]
            chars = frozenset(range(low, high + 1))
            out.append((frozenset(range(256)) - chars if match[1] else chars) - {0x2F})
        elif match := re.match(rb"\\?(.)", name, re.DOTALL):
            out.append(frozenset(match[1]))
        assert match is not None
        name = name[match.end() :]
    return out


def fits(tokens: list[bytes | frozenset[int]], path: bytes) -> bool:
    if not tokens:
        return not path
    first, rest = tokens[0], tokens[1:]
    if isinstance(first, frozenset):
        return bool(path) and path[0] in first and fits(rest, path[1:])
    if first == b"/":
        return path.startswith(b"/") and fits(rest, path[1:])
    if first == b"tree" and rest:  # whole names, none or more, each with its slash
        ends = [0, *(n + 1 for n, char in enumerate(path) if char == 0x2F)]
        return any(fits(rest[1:], path[end:]) for end in ends)
    if first == b"tree":
        return bool(path)
    stop = len(path) if first == b"**" else (path + b"/").index(b"/")
    return any(fits(rest, path[end:]) for end in range(stop + 1))


def pattern_names() -> st.SearchStrategy[bytes]:
    pieces = [b"a", b"b", b"A", b".x", b"\xff", b"\n", b"*", b"*", b"?", b"**", b"[a-c]", b"[!a]", b"[+-9]", b"[!*]"]
    pieces += [b"\\*", b"\\[", b"\\\\", b"]", b"-", b"!", b"^", b"(", b"|", b"$"]
    return st.lists(st.sampled_from(pieces), min_size=1, max_size=4).map(b"".join)


def patterns() -> st.SearchStrategy[bytes]:
    names = st.lists(pattern_names() | st.just(b"**"), min_size=1, max_size=3).map(b"/".join)
    return st.builds(lambda a, b, c: a + b + c, st.sampled_from([b"", b"", b"/"]), names, st.sampled_from([b"", b"/"]))


def plain_paths() -> st.SearchStrategy[bytes]:
    names = st.lists(st.sampled_from([b"a", b"b", b"c", b"*", b"[", b"\\", b"\xff", b"\n", b".x", b"-"]), min_size=1)
    return st.lists(names.map(lambda chars: b"".join(chars[:4])), min_size=1, max_size=4).map(b"/".join)


@given(patterns(), plain_paths() | some.paths(), st.booleans())
@example(b"**/", b"a", False)
@example(b"a**b", b"a/b", False)
@example(b"/**/a", b"a", True)
def test_patterns_mean_what_a_slow_reading_of_them_says(pattern: bytes, path: bytes, is_directory: bool) -> None:
    needed = path in OF_EVERY_RUN or path.startswith(b".guild/attrs/")
    expected = needed or naive(pattern, path, is_directory)
    assert Paths((pattern,)).chosen(path, is_directory) == expected
    assert Paths((), (pattern,)).chosen(path, is_directory) == (needed or not expected)


@given(plain_paths(), plain_paths())
def test_what_matches_a_directory_takes_all_below(path: bytes, below: bytes) -> None:
    escaped = re.sub(rb"([*?\[\\])", rb"\\\1", path)
    for pattern in (escaped, b"/" + escaped, escaped + b"/"):
        assert matches(pattern, path + b"/" + below)


@given(st.binary(max_size=12))
def test_any_bytes_are_a_pattern_or_refused(pattern: bytes) -> None:
    try:
        Paths((pattern,)).chosen(b"a/b")
    except Usage:
        pass
