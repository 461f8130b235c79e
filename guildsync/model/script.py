"""What a script takes, from its text alone, and how flags are given to it."""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guildsync.errors import Usage

Value = bool | int | float | str | list[Any] | None
"""Of a flag: a list holds values."""

ARGUMENTS, GLOBALS = "arguments", "globals"
"""Where a script expects flags: on its command line, or in its module's globals."""

ONE, SEVERAL, SWITCH, TRUTH = "one", "several", "switch", "truth"
"""What follows the name of an option: a value, some values, nothing, or a value of which any but '' is true."""

_PARSERS = frozenset(
    {
        *("argparse", "optparse", "getopt", "click", "typer", "fire", "absl", "docopt", "tyro", "plac", "cyclopts"),
        *("simple_parsing", "jsonargparse", "configargparse", "tap", "HfArgumentParser", "LightningCLI"),
    }
)
_SWITCHES = {"store_true", "store_false", "store_const", "count"}
_LARGEST = 10**300
_DEEPEST = 20
_NAME = re.compile(r"[^\W\d][\w.:-]*")
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_NO_DIGITS = re.compile(r"[-+]?\.?(?:inf|Inf|INF)|\.?(?:nan|NaN|NAN)")
_WORDS: Mapping[str, Value] = {
    **{form: True for word in ("yes", "true", "on") for form in (word, word.title(), word.upper())},
    **{form: False for word in ("no", "false", "off") for form in (word, word.title(), word.upper())},
    **dict.fromkeys(("null", "Null", "NULL", "~")),
}
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_ITEM = re.compile(rf"\s*({_QUOTED.pattern}|[^,\[\]{{}}'\"\s][^,\[\]{{}}]*)\s*(?:,|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Argument:
    """An option that a script defines, by all its long names; `takes` is ONE, SEVERAL, SWITCH or TRUTH, `no` the option
    that says the opposite of a switch."""

    names: tuple[str, ...]
    default: Value = None
    takes: str = ONE
    no: str | None = None


@dataclass(frozen=True)
class Script:
    """`globals` are the public names that a module assigns a literal to, and the first one; `arguments` the options
    that were recognised; `parsers` what is imported to parse a command line."""

    kind: str
    globals: Mapping[str, Value] = field(default_factory=dict)
    arguments: tuple[Argument, ...] = ()
    parsers: frozenset[str] = frozenset()

    def argument(self, name: str) -> Argument | None:
        return next((each for each in self.arguments if name in each.names), None)

    def known_as(self, name: str) -> str | None:
        """The first name of a flag that the script is seen to have."""
        argument = self.argument(name)
        return argument.names[0] if argument else name if name in self.globals and self.kind == GLOBALS else None


@dataclass(frozen=True)
class Flag:
    """NAME=TEXT as a person said it, and what Guild takes the text for. `text` is without quotes."""

    name: str
    text: str
    value: Value
    quoted: bool = False


@dataclass(frozen=True)
class Target:
    """What Python is to execute: the path of a script, or a module."""

    name: str
    is_module: bool = False


def analyse(text: str | bytes, name: str = "the script") -> Script:
    """Nothing of it is executed. Bytes are decoded as Python does. Raises Usage, and only that, for what is no Python:
    the message names the line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
            nodes = list(ast.walk(tree))
    except SyntaxError as exc:
        raise _no_python(f"{name}, line {exc.lineno or 0}: {exc.msg}") from exc
    except (ValueError, RecursionError, MemoryError, OverflowError, LookupError) as exc:
        raise _no_python(f"{name} cannot be parsed: {exc or 'it is too deep'}") from exc
    parsers = frozenset(each for node in nodes for each in _imported(node)) & _PARSERS
    takes_arguments = bool(parsers) or _reads_argv(nodes)
    found = [argument for node in nodes if isinstance(node, ast.Call) for argument in _defined(node)]
    return Script(
        ARGUMENTS if takes_arguments else GLOBALS, _globals(tree), tuple(found) if takes_arguments else (), parsers
    )


def _no_python(message: str) -> Usage:
    hint = "if another Python than this one understands it, say `run -- python SCRIPT`"
    return Usage(message.replace("\n", " ")[:500], hint)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        yield (node.module or "").partition(".")[0]
        yield from (alias.name for alias in node.names)


def _reads_argv(nodes: Sequence[ast.AST]) -> bool:
    """All but `sys.argv[0]`, which is the script's own name."""
    own = {
        id(node.value)
        for node in nodes
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value == 0
    }
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr == "argv" and id(node) not in own:
            if isinstance(node.value, ast.Name) and node.value.id == "sys":
                return True
        elif isinstance(node, ast.ImportFrom) and node.module == "sys" and "argv" in {a.name for a in node.names}:
            return True
    return False


def _globals(tree: ast.Module) -> dict[str, Value]:
    """`compute.runner` must find the same ones."""
    found: dict[str, Value] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        else:
            continue
        value = _literal(node.value)
        if value is not None:
            for target in targets:
                if isinstance(target, ast.Name) and not target.id.startswith("_"):
                    found.setdefault(target.id, value[0])
    return found


def _literal(node: ast.AST | None) -> tuple[Value] | None:
    """The value of a literal that can be a flag's, in a tuple since it can be None."""
    if node is None:
        return None
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return (value,) if _is_value(value) else None


def _is_value(value: object, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < _DEEPEST and all(_is_value(each, depth + 1) for each in value)
    if type(value) is int:
        return -_LARGEST <= value <= _LARGEST
    return value is None or isinstance(value, (bool, float, str))


def _defined(call: ast.Call) -> Iterator[Argument]:
    """The option that `….add_argument("--name", …)` or `@….option("--name", …)` defines."""
    function = getattr(call.func, "attr", getattr(call.func, "id", None))
    if function not in ("add_argument", "option"):
        return
    words = [word[0] for word in map(_literal, call.args) if word is not None and isinstance(word[0], str)]
    long = [word[2:] for word in words if word.startswith("--") and len(word) > 2]
    keywords = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    plain = {name: value[0] for name, value in ((n, _literal(node)) for n, node in keywords.items()) if value}
    names = tuple(word.partition("/")[0].strip() for word in long)
    if not names:
        return
    default, action, no = plain.get("default"), plain.get("action"), None
    pair = next((word.partition("/")[2].strip() for word in long if "/" in word), "")
    if _called(keywords.get("action")) == "BooleanOptionalAction":
        no = f"--no-{names[0]}"
    elif pair.startswith("--"):
        no = pair
    takes = ONE
    if no or action in _SWITCHES or plain.get("is_flag") is True:
        takes = SWITCH
        default = action == "store_false" if default is None and action in ("store_true", "store_false") else default
    elif plain.get("nargs") in ("+", "*") or (type(plain.get("nargs")) is int and plain["nargs"] != 1):
        takes = SEVERAL
    elif function == "add_argument" and _called(keywords.get("type")) == "bool":
        takes = TRUTH
    yield Argument(names, default, takes, no)


def _called(node: ast.AST | None) -> str | None:
    """The last name of a reference."""
    found = getattr(node, "attr", getattr(node, "id", None))
    return found if isinstance(found, str) else None


def parse_flag(word: str) -> Flag:
    """NAME=TEXT. Raises Usage for anything else."""
    name, sign, text = word.partition("=")
    if not sign:
        raise Usage(f"{word[:80]!r} is no flag", "say NAME=VALUE; arguments of the script itself stand after `--`")
    if not _NAME.fullmatch(name):
        raise Usage(f"{name[:80]!r} cannot be the name of a flag", "say NAME=VALUE, without dashes before it")
    if "\0" in text:
        raise Usage(f"the value of {name} holds a NUL")
    if _QUOTED.fullmatch(text):
        text = _unquoted(text)
        return Flag(name, text, text, quoted=True)
    return Flag(name, text, scalar(text))


def format_flag(name: str, value: Value) -> str:
    """What `parse_flag` takes for this value."""
    if isinstance(value, list):
        return f"{name}=[{', '.join(_word(each) for each in value)}]"
    return f"{name}={_word(value)}"


def _word(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "null"
    text = str(value)
    if isinstance(value, str) and (
        scalar(text) != text or text != text.strip() or not text or set(text) & set("'\",[]{}")
    ):
        return "'" + text.replace("'", "''") + "'"
    return text


def scalar(text: str) -> Value:
    """What Guild takes an unquoted text for: a number, yes or no, null, else the text; `1_000` and `1:30` are text."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if text[-1:] in ("f", "F", "n", "N") and _NO_DIGITS.fullmatch(text):
        return float(text.replace(".", ""))
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return _WORDS.get(text, text)


def _unquoted(text: str) -> str:
    if text[0] == "'":
        return text[1:-1].replace("''", "'")
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]


def usual_flag(name: str, value: Any) -> Flag:
    """What a person would have said. Raises Usage for a value that no flag can have."""
    if not _is_value(value):
        raise Usage(f"the flag {name!r} cannot be {str(value)[:80]!r}", "say a number, a text, yes or no, or a list")
    return parse_flag(format_flag(name, value))


def with_usual(script: Script, flags: Sequence[Flag], usual: Sequence[Flag]) -> tuple[Flag, ...]:
    """`flags`, and those of `usual` that the script is seen to have and that are not among them."""
    given = {script.known_as(flag.name) for flag in flags} | {None}
    return (*flags, *(flag for flag in usual if script.known_as(flag.name) not in given))


def fitted(script: Script, flags: Sequence[Flag]) -> dict[str, Value]:
    """The values that are recorded of flags, and that globals get: what the script itself assigns says their type.
    Raises Usage for a name that the script does not have as a global, or a value that does not fit."""
    values: dict[str, Value] = {}
    for flag in flags:
        if flag.name in values:
            raise Usage(f"{flag.name} is given twice", "say each flag once")
        if script.kind == ARGUMENTS:
            values[flag.name] = flag.value
        elif flag.name in script.globals:
            values[flag.name] = _fit(flag, script.globals[flag.name])
        else:
            near = difflib.get_close_matches(flag.name, list(script.globals), 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(sorted(script.globals)[:20])
            hint = f"it assigns {known}" if known else "it assigns no global a plain value"
            raise Usage(
                f"the script has no global {flag.name!r}{meant}",
                f"{hint}; arguments for what parses the command line stand after `--`",
            )
    return values


def recorded(script: Script, flags: Sequence[Flag]) -> dict[str, Value]:
    """The flags of the run: the script's own values, and in their place what was given."""
    given = fitted(script, flags)
    if script.kind == GLOBALS:
        return {**script.globals, **given}
    defaults = {each.names[0]: each.default for each in script.arguments if each.default is not None}
    for name in given:
        argument = script.argument(name)
        if argument is not None:
            defaults.pop(argument.names[0], None)
    return {**defaults, **given}


def _fit(flag: Flag, default: Value) -> Value:
    value = flag.value
    if isinstance(default, str):
        return value if value is None else flag.text
    if isinstance(default, list):
        return _list(flag)
    if flag.quoted or value is None or default is None:
        return value
    if isinstance(default, bool):
        if isinstance(value, (bool, int, float)):
            return bool(value)
        raise Usage(f"{flag.name} is {default} in the script: {flag.text[:80]!r} does not fit", "say yes or no")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = f"say a number, or {flag.name}=\"'TEXT'\" for a text"
        raise Usage(f"{flag.name} is {default} in the script: {flag.text[:80]!r} does not fit", hint)
    return float(value) if isinstance(default, float) else value


def _list(flag: Flag) -> Value:
    """`[1, 2]` or words: `1 2`."""
    if flag.quoted or flag.value is None:
        return flag.value
    text = flag.text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [scalar(word) for word in _split(flag)]
    inner, position, items = text[1:-1].strip(), 0, list[Value]()
    while position < len(inner):
        found = _ITEM.match(inner, position)
        if found is None:
            raise Usage(f"the list {flag.text[:80]!r} of {flag.name} is malformed", "say [VALUE, VALUE]")
        word = found[1].strip()
        items.append(_unquoted(word) if _QUOTED.fullmatch(word) else scalar(word))
        position = found.end()
    return items


def _split(flag: Flag) -> list[str]:
    try:
        return shlex.split(flag.text)
    except ValueError as exc:
        raise Usage(f"the values {flag.text[:80]!r} of {flag.name} cannot be told apart: {exc}") from exc


def command(
    script: Script, target: Target, flags: Sequence[Flag], args: Sequence[str], python: str, runner: str
) -> tuple[str, ...]:
    """What is to be executed in the run's directory. `args` go to the script as they are; `runner` is the path of
    `compute/runner.py` there, which only globals need. Raises Usage as `fitted` does."""
    values = fitted(script, flags)
    if target.is_module:
        if not all(part.isidentifier() for part in target.name.split(".")):
            raise Usage(f"{target.name[:80]!r} cannot be the name of a module", "say it as in `import`: package.module")
        what: tuple[str, ...] = ("-m", target.name)
    else:
        what = (f"./{target.name}" if target.name.startswith("-") else target.name,)
    if script.kind == GLOBALS:
        given = (runner, "--flags", json.dumps(values, sort_keys=True)) if values else ()
        return (python, "-u", *given, *what, *args)
    options = [word for flag in flags for word in _options(script, flag)]
    return (python, "-u", *what, *options, *args) if "--" in args else (python, "-u", *what, *args, *options)


def _options(script: Script, flag: Flag) -> Sequence[str]:
    """A flag on a command line: as it was typed, but null, which is no option, and truths, of which each parser has its
    own idea."""
    argument, option = script.argument(flag.name), f"--{flag.name}"
    value = flag.value
    if value is None:
        return ()
    if argument is not None and argument.takes == SWITCH and isinstance(value, (bool, int)):
        return (option,) if value else (argument.no,) if argument.no else ()
    if argument is not None and argument.takes == SEVERAL:
        return (option, *_split(flag))
    if argument is not None and argument.takes == TRUTH and isinstance(value, (bool, int, float)):
        return (option, "1" if value else "")
    if isinstance(value, bool) and argument is None:
        if script.parsers & {"fire", "absl"}:
            return (f"{option}={value}",)
        if script.parsers & {"click", "typer"}:
            return (option if value else f"--no-{flag.name}",)
        if "docopt" in script.parsers:
            return (option,) if value else ()
    return (f"{option}={flag.text}",) if flag.text.startswith("-") else (option, flag.text)
