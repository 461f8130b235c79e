"""Executes a script or module as `__main__`, with values of its globals replaced; a file of its own, for Python 3.7."""

from __future__ import annotations

import sys

_ALONE = bool(getattr(sys.flags, "safe_path", False) or sys.flags.isolated)
"""Python adds no directory to the path by itself."""
if __name__ == "__main__" and not _ALONE:
    del sys.path[0]  # where this file lies: nothing there may be taken for a module of Python's

import ast
import builtins
import importlib.machinery
import importlib.util
import json
import os
import types
from typing import Any, Dict, List, Set, Tuple

_USAGE = "usage: runner.py --flags JSON (SCRIPT | -m MODULE) [ARG ...]"
_AGAIN = "GUILDSYNC_RUNNER"
"""The variable that tells processes which multiprocessing starts what is executed here."""
_SIMPLE = (bool, int, float, str, type(None))


class Trouble(Exception):
    """What is said instead of a traceback."""


class Program:
    """The text of what is to be executed, and what Python says of it in its globals. `spec` is None for a script."""

    def __init__(self, source: Any, path: str, spec: Any, loader: Any) -> None:
        self.source, self.path, self.spec, self.loader = source, path, spec, loader

    def code(self, flags: Dict[str, Any]) -> types.CodeType:
        """With `flags` in the place of the literals that are first assigned to these globals."""
        tree = ast.parse(self.source, self.path)
        missing = set(flags)
        tree.body = [each for node in tree.body for each in _replaced(node, flags, missing)]
        if missing:
            raise Trouble("%s assigns no plain value to %s" % (self.path, ", ".join(sorted(missing))))
        code = compile(tree, self.path, "exec", dont_inherit=True)
        assert isinstance(code, types.CodeType)
        return code

    def describe(self, names: Dict[str, Any]) -> None:
        spec = self.spec
        names.update(
            __builtins__=builtins,
            __cached__=None if spec is None else spec.cached,
            __file__=self.path,
            __loader__=self.loader,
            __package__=None if spec is None else spec.parent,
            __spec__=spec,
        )


def _script(name: str) -> Program:
    path = os.path.abspath(name)
    try:
        with open(name, "rb") as file:
            return Program(file.read(), path, None, importlib.machinery.SourceFileLoader("__main__", path))
    except OSError as exc:
        raise Trouble("can't open file %r: %s" % (name, exc.strerror)) from None


def _module(name: str) -> Program:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(name + ".__main__")
    except (ModuleNotFoundError, ValueError) as exc:
        raise Trouble("can't find module %r: %s" % (name, exc)) from None
    if spec is None:
        raise Trouble("can't find module %r, or what to execute of it" % name)
    loader: Any = spec.loader
    source = loader.get_source(spec.name) if hasattr(loader, "get_source") else None
    if source is None or spec.origin is None:
        raise Trouble("module %r has no source" % name)
    return Program(source, spec.origin, spec, loader)


def _replaced(node: ast.stmt, flags: Dict[str, Any], missing: Set[str]) -> List[ast.stmt]:
    """The statements that stand for `node`, on its line. `model.script` must find the same globals."""
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    else:
        return [node]
    names = [target.id for target in targets if isinstance(target, ast.Name) and target.id in missing]
    if not names or not _is_literal(node.value):
        return [node]
    missing.difference_update(names)
    if len(targets) == 1:
        node.value = _written(flags[names[0]], node.value)
        return [node]
    statements: List[ast.stmt] = []
    for target in targets:
        named = isinstance(target, ast.Name) and target.id in names
        value: Any = _written(flags[target.id], node.value) if named else node.value  # type: ignore[attr-defined]
        statements.append(ast.copy_location(ast.Assign(targets=[target], value=value), node))
    return statements


def _is_literal(node: Any) -> bool:
    try:
        return _is_value(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False


def _is_value(value: Any) -> bool:
    return all(_is_value(each) for each in value) if isinstance(value, list) else isinstance(value, _SIMPLE)


def _written(value: Any, place: Any) -> ast.expr:
    if isinstance(value, list):
        return ast.copy_location(ast.List(elts=[_written(each, place) for each in value], ctx=ast.Load()), place)
    return ast.copy_location(ast.Constant(value=value), place)


def _tell_processes(words: List[str]) -> None:
    """Processes that multiprocessing starts anew execute this file, so that they see the same values."""
    from multiprocessing import spawn

    original = spawn.get_preparation_data

    def prepared(*args: Any, **kwargs: Any) -> Dict[str, Any]:
        data = original(*args, **kwargs)
        if data.pop("init_main_from_name", None) or data.get("init_main_from_path"):
            data["init_main_from_path"] = os.path.abspath(__file__)
        return data

    spawn.get_preparation_data = prepared
    os.environ[_AGAIN] = json.dumps(words)


def _program(words: List[str]) -> Tuple[Dict[str, Any], Program, List[str]]:
    """The flags, the program, and its sys.argv."""
    flags = json.loads(words[1])
    if words[2] != "-m":
        return flags, _script(words[2]), words[2:]
    program = _module(words[3])
    return flags, program, [program.path, *words[4:]]


def main(words: List[str]) -> None:
    """Ends as Python itself would end the program."""
    try:
        if len(words) < 3 or words[0] != "--flags" or words[2:] == ["-m"]:
            raise Trouble(_USAGE)
        if not _ALONE:
            is_module = words[2] == "-m"
            sys.path.insert(0, os.getcwd() if is_module else os.path.dirname(os.path.realpath(words[2])))
        flags, program, sys.argv = _program(words)
        code = program.code(flags)
    except Trouble as exc:
        sys.stderr.write("runner: %s\n" % exc)
        sys.exit(2)
    except SyntaxError as exc:
        sys.excepthook(type(exc), exc.with_traceback(None), None)
        sys.exit(1)
    _tell_processes(words if program.spec else [*words[:2], program.path, *words[3:]])
    module = types.ModuleType("__main__")
    program.describe(module.__dict__)
    sys.modules["__main__"] = module
    try:
        exec(code, module.__dict__)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:  # noqa: BLE001 -- whatever the program lets through
        trace = exc.__traceback__ and exc.__traceback__.tb_next  # without this file
        sys.excepthook(type(exc), exc.with_traceback(trace), trace)
        sys.exit(1)


def _again(names: Dict[str, Any]) -> None:
    """In a process that multiprocessing started: the program's globals, as they were made by `main`."""
    flags, program, argv = _program(json.loads(os.environ[_AGAIN]))
    sys.argv[0] = argv[0]
    program.describe(names)
    exec(program.code(flags), names)


if __name__ == "__main__":
    main(sys.argv[1:])
elif __name__ == "__mp_main__":
    _again(globals())
