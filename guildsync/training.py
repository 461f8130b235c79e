"""From what a person wants to run to a run that waits to be started, and the order that starts it."""

from __future__ import annotations

import os
import shlex
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from guildsync.attributes import encode_metadata, encode_values
from guildsync.compute.local import user_name
from guildsync.compute.source import Source, find_source
from guildsync.errors import NotFound, Usage
from guildsync.hosts import Surroundings
from guildsync.model.ports import Order, Replica
from guildsync.model.run import Metadata, Record, RunId
from guildsync.model.script import Flag, Script, Target, analyse, command, recorded, with_usual
from guildsync.remotes import new_run

RUNNER = "guildsync-runner"
"""Stands in a run's `cmd` for the runner, which lies elsewhere on every machine."""
_RUNNER_AT = 2


@dataclass(frozen=True)
class Wish:
    """What is to be run in a copy of `directory`: a script or module with flags, or (`target` None) the program that
    `args` name. `env` are further variables; `secrets` are variables too, and written down nowhere."""

    directory: str
    target: Target | None
    flags: tuple[Flag, ...] = ()
    args: tuple[str, ...] = ()
    metadata: Metadata = field(default_factory=Metadata)
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Prepared:
    """A run that is nowhere yet: `staged` holds it, `order` starts it once it lies where it is to run."""

    run: RunId
    order: Order
    attributes: Mapping[str, bytes]
    opref: bytes
    source: Source

    @contextmanager
    def staged(self) -> Iterator[Replica]:
        with new_run(self.run, self.attributes, self.opref, self.source) as replica:
            yield replica


def prepare(wish: Wish, there: Surroundings, without: Sequence[bytes] = (), usual: Sequence[Flag] = ()) -> Prepared:
    """Reads the script, and looks for the source; `without` are directories in it that never go along. `usual` flags
    are given where the script shows that it has them, and nothing else is wished. Raises Usage, NotFound."""
    source = find_source(wish.directory, without=without)
    run = RunId(uuid.uuid4().hex)
    flags: Mapping[str, object] = {}
    if wish.target is None:
        if not wish.args:
            raise Usage("there is nothing to run", "say a script, `-m MODULE`, or `-- COMMAND…`")
        argv, name = wish.args, os.path.basename(wish.args[0])
    else:
        script = _script(wish, source)
        given = with_usual(script, wish.flags, usual)
        argv = command(script, wish.target, given, wish.args, there.python, RUNNER)
        flags, name = recorded(script, given), wish.target.name
    now = time.time_ns() // 1000
    values = {
        "id": run,
        "initialized": now,
        "flags": dict(flags),
        "user_flags": {flag.name: flag.value for flag in wish.flags} or None,
        "cmd": list(argv),
        "run_params": {},
        "user": user_name(),
        "env": {**there.env, **wish.env},
        "vcs_commit": f"git:{source.commit}{'*' if source.dirty else ''}" if source.commit else None,
    }
    said = {name: data for name, data in encode_metadata(wish.metadata).items() if data is not None}
    place = os.path.join(os.fsdecode(source.root), name)
    words = " ".join(map(shlex.quote, (f"script:{place}", (source.commit or "none")[:8], "", name)))
    opref = words.encode("utf-8", "backslashreplace")  # Guild AI lists nothing at all where one is no UTF-8
    return Prepared(run, order(argv, there, wish), {**encode_values(values), **said}, opref, source)


def order(argv: Sequence[str], there: Surroundings, wish: Wish) -> Order:
    """What executes `argv`, with the variables of `wish`."""
    words, runner_at = list(argv), None
    if len(words) > _RUNNER_AT and words[_RUNNER_AT] == RUNNER:
        runner_at = _RUNNER_AT
        del words[_RUNNER_AT]
    env = {**there.env, **wish.env}
    return Order(tuple(words), env, dict(wish.secrets), there.init, there.activate, runner_at)


def order_of(record: Record, there: Surroundings, wish: Wish, again: bool = False) -> Order:
    """What executes a run that is there; `again`: also where it was started before."""
    if not record.summary.command:
        raise Usage(f"run {record.run[:8]} does not say what is to be executed", "start it as it was staged")
    found = order(record.summary.command, there, wish)
    return replace(found, after=record.summary.started or 0) if again else found


def _script(wish: Wish, source: Source) -> Script:
    assert wish.target is not None
    name = wish.target.name
    if wish.target.is_module:
        stem = name.replace(".", "/")
        candidates = [f"{stem}.py", f"{stem}/__main__.py", f"{stem}/__init__.py"]
        found = next((each for each in candidates if os.fsencode(each) in source.paths), None)
        if found is None:
            return Script("arguments")  # it is installed there: only it knows what it takes
        name = found
    path = os.path.normpath(name)
    if os.fsencode(path) not in source.paths:
        if os.path.exists(os.path.join(os.fsdecode(source.root), path)):
            raise Usage(f"{name} does not go along: it is ignored, or lies elsewhere", "see .guildsyncignore and git")
        raise NotFound(f"there is no {name} in {os.fsdecode(source.root)}", "-C DIR says where the project is")
    with open(os.path.join(source.root, os.fsencode(path)), "rb") as file:
        return analyse(file.read(), name)
