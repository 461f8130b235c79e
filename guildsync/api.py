"""The verbs as a Python library; `import guildsync` shows this."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace

from guildsync import config as configuration
from guildsync.config import LOCAL, Config
from guildsync.errors import GuildsyncError, NotFound, Usage
from guildsync.model.paths import Paths
from guildsync.model.plan import Policy
from guildsync.model.ports import Replica, Step
from guildsync.model.run import Record
from guildsync.model.select import Filters, newest_first, select
from guildsync.remotes import Home, Remote, bases, open_remote, opened_home
from guildsync.verbs import lifecycle
from guildsync.verbs.lifecycle import Files, Verified
from guildsync.verbs.outcome import Outcome, Progress
from guildsync.verbs.sync import Options, Sync

__all__ = [
    "LOCAL",
    "Choice",
    "Context",
    "Files",
    "Filters",
    "Options",
    "Outcome",
    "Paths",
    "Policy",
    "Progress",
    "Record",
    "Remote",
    "Verified",
    "open_context",
]

Warn = Callable[[str], None]
STORE = "store"
REACHABLE = "reachable"
"""The step of every check that says what is there."""


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Choice:
    """Which runs: selectors as on the command line, and filters. Nothing named means all."""

    selectors: Sequence[str] = ()
    filters: Filters = field(default_factory=Filters)

    def __call__(self, records: Sequence[Record]) -> list[Record]:
        """The chosen ones, newest first; raises NotFound where something that was named matches nothing."""
        listed = [record for record in newest_first(records) if self.filters.matches(record)]
        return select(listed, self.selectors) if self.selectors else listed


def open_context(
    home: str | None = None,
    config_file: str | None = None,
    *,
    cwd: str | None = None,
    environ: Mapping[str, str] | None = None,
    warn: Warn = _silent,
    jobs: int | None = None,
) -> Context:
    """The home and the configuration that options, files and environment say (see docs/remotes.md); raises Usage."""
    environ = os.environ if environ is None else environ
    path = configuration.find_home(home, environ)
    config = configuration.load(path, config_file, cwd or os.getcwd(), environ)
    for warning in config.warnings:
        warn(warning)
    return Context(Home(path), config, warn, jobs)


@dataclass(frozen=True)
class Context:
    """A local home and a configuration: where every verb starts. `warn` is told what a person should know; `jobs`:
    so many packs are on their way at a time."""

    home: Home
    config: Config
    warn: Warn = _silent
    jobs: int | None = None

    def remote(self, name: str) -> Remote:
        """A configured remote, `local`, or one described inline; raises NotFound."""
        return open_remote(self.config.remote(name))

    def remotes(self) -> dict[str, Remote | GuildsyncError]:
        """Every configured remote by name; one that this version cannot open as the reason."""
        found: dict[str, Remote | GuildsyncError] = {}
        for name in sorted(self.config.remotes):
            try:
                found[name] = open_remote(self.config.remotes[name])
            except GuildsyncError as exc:
                found[name] = exc
        return found

    def push(
        self, remote: str, options: Options = Options(), progress: Progress | None = None, *, rehash: bool = False
    ) -> Outcome:
        """Deliver runs of the home to a remote: see `copy`."""
        return self.copy(LOCAL, remote, options, progress, rehash=rehash)

    def pull(
        self, remote: str, options: Options = Options(), progress: Progress | None = None, *, rehash: bool = False
    ) -> Outcome:
        """Deliver runs of a remote to the home: see `copy`."""
        return self.copy(remote, LOCAL, options, progress, rehash=rehash)

    def copy(
        self,
        source: str,
        target: str,
        options: Options = Options(),
        progress: Progress | None = None,
        *,
        rehash: bool = False,
    ) -> Outcome:
        """Deliver runs of one remote to another. What could not be delivered is in the outcome's problems. `rehash`:
        read all files, whatever the stat cache says of them. Raises Usage where both are the same place."""
        if source == target:
            raise _same_place(source, target)
        one, other = _alike(self.remote(source), self.remote(target))
        with self._opened(one, rehash) as want, self._opened(other, rehash) as have:
            _require(want, one.where)
            if want.aliases & have.aliases:
                raise _same_place(source, target)
            options = replace(options, origin=one.name)
            return Sync(want, have, bases(self.home, want, have), options, progress).run()

    def runs(
        self, remote: str = LOCAL, choice: Choice = Choice(), *, deleted: bool = False, sizes: bool = False
    ) -> list[Record]:
        """The chosen runs of a remote or of the home, newest first."""
        there = self.remote(remote)
        with self._opened(there) as replica:
            _require(replica, there.where)
            return choice(list(replica.runs(deleted, sizes)))

    @contextmanager
    def look(self, remote: str = LOCAL, choice: Choice = Choice(("@latest",))) -> Iterator[Files]:
        """The files of one run where it lies; they can be read until the end of the `with`. Raises NotFound, Usage
        where several are chosen, Damaged."""
        there = self.remote(remote)
        with self._opened(there) as replica:
            _require(replica, there.where)
            yield lifecycle.look(replica, choice)

    def verify(self, remote: str, choice: Choice = Choice(), *, quick: bool = False) -> Verified:
        """Do all bytes match their digests, as a client without any cache finds them?"""
        there = self.remote(remote)
        with there.opened(self.home, self.warn, fresh=True, jobs=self.jobs) as replica:
            _require(replica, there.where)
            return lifecycle.verify(replica, choice, quick)

    def check(self, remote: str) -> Generator[Step, None, None]:
        """Is it usable? Step by step, ending after the first that failed."""
        there = self.remote(remote)
        if there.name != LOCAL:
            yield from there.check(self.home, self.warn, self.jobs)
            return
        with self._opened(there) as replica:
            yield from replica.check()

    def status(self, remote: str) -> Step:
        """Is it available? The first step of its check that failed, else the one that says what is there; what comes
        behind it is not tried. Raises what naming or opening it raises."""
        with closing(self.check(remote)) as steps:
            for step in steps:
                if not step.ok or step.name == REACHABLE:
                    break
        return step

    def _opened(self, remote: Remote, rehash: bool = False) -> AbstractContextManager[Replica]:
        if remote.name == LOCAL:
            return opened_home(self.home, remote.config.keep_env, rehash)
        return remote.opened(self.home, self.warn, rehash=rehash, jobs=self.jobs)


def _alike(source: Remote, target: Remote) -> tuple[Remote, Remote]:
    """Both sides with the same view of captured environments: they travel as they are where every remote says so, and
    the home says nothing. Raises Usage where they would have to be redacted on their way out of a store."""
    kept = {side.name: side.config.keep_env for side in (source, target) if side.name != LOCAL}
    keep = all(kept.values())
    if source.layout == STORE and source.config.keep_env and not keep:
        raise Usage(
            f"{source.name} keeps captured environments as they are, and {target.name} does not",
            f"say `keep-env: true` at {target.name}, or pull the runs and push them: that leaves the secrets here",
        )
    one, other = (replace(side, config=replace(side.config, keep_env=keep)) for side in (source, target))
    return one, other


def _same_place(source: str, target: str) -> Usage:
    if source == target:
        return Usage(f"{source} cannot be both source and target", "name two places")
    return Usage(
        f"{source} and {target} are the same place, by the id that lies there",
        "a home that was copied by hand keeps the id: remove .guildsync/identity in one of the two",
    )


def _require(replica: Replica, where: str) -> None:
    """What was never made says nothing about what was deleted."""
    if not replica.is_there:
        raise NotFound(f"there is nothing at {where} yet", "check the name; what is first delivered there makes it")
