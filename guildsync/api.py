"""The verbs as a Python library; `import guildsync` shows this."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

from guildsync import config as configuration
from guildsync.config import LOCAL, Config
from guildsync.errors import GuildsyncError, NotFound
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
        """Deliver runs of the home to a remote. What could not be delivered is in the outcome's problems. `rehash`:
        read all files, whatever the stat cache says of them."""
        there = self.remote(remote)
        with self._here(there, rehash) as source, self._opened(there, rehash) as target:
            _require(source, self.home.text)
            return self._sync(source, target, replace(options, origin=LOCAL), progress)

    def pull(
        self, remote: str, options: Options = Options(), progress: Progress | None = None, *, rehash: bool = False
    ) -> Outcome:
        """Deliver runs of a remote to the home. What could not be delivered is in the outcome's problems. `rehash`:
        read all files, whatever the stat cache says of them."""
        there = self.remote(remote)
        with self._opened(there, rehash) as source, self._here(there, rehash) as target:
            _require(source, there.where)
            return self._sync(source, target, replace(options, origin=there.name), progress)

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

    def check(self, remote: str) -> Iterator[Step]:
        """Is it usable? Step by step, ending after the first that failed."""
        there = self.remote(remote)
        if there.name != LOCAL:
            yield from there.check(self.home, self.warn, self.jobs)
            return
        with self._opened(there) as replica:
            yield from replica.check()

    def _sync(self, source: Replica, target: Replica, options: Options, progress: Progress | None) -> Outcome:
        return Sync(source, target, bases(self.home, source, target), options, progress).run()

    def _opened(self, remote: Remote, rehash: bool = False) -> AbstractContextManager[Replica]:
        if remote.name == LOCAL:
            return opened_home(self.home, rehash=rehash)
        return remote.opened(self.home, self.warn, rehash=rehash, jobs=self.jobs)

    def _here(self, other: Remote, rehash: bool) -> AbstractContextManager[Replica]:
        return opened_home(self.home, other.config.keep_env, rehash)


def _require(replica: Replica, where: str) -> None:
    """What was never made says nothing about what was deleted."""
    if not replica.is_there:
        raise NotFound(f"there is nothing at {where} yet", "check the name; what is first delivered there makes it")
