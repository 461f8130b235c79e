"""The verbs as a Python library; `import guildsync` shows this."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from guildsync import config as configuration
from guildsync.config import LOCAL, Config
from guildsync.errors import GuildsyncError, NotFound, Unreachable, Usage
from guildsync.model.machine import Instance, Say
from guildsync.model.paths import Paths
from guildsync.model.plan import Policy
from guildsync.model.ports import Collected, Moment, Order, Replica, Step
from guildsync.model.run import Metadata, Record, RunId
from guildsync.model.select import Choice, Filters, newest_first
from guildsync.pairs import GROWTH, STORE, alike, lasting, mirroring, same_place
from guildsync.remotes import Home, Listed, Remote, bases, hinted, open_remote, opened_home
from guildsync.verbs import lifecycle, machine
from guildsync.verbs.difference import Difference, FlagChange, PathChange, Scope, difference
from guildsync.verbs.files import Files, look
from guildsync.verbs.lifecycle import Acted, Request, Verified
from guildsync.verbs.machine import Agree, Stakes
from guildsync.verbs.mirror import Mirror, Mirrored, Sides, Silent, Teller, Terms
from guildsync.verbs.outcome import Outcome, Progress, crossing
from guildsync.verbs.survey import Found, Place, Question, Survey, nothing_at, survey
from guildsync.verbs.sync import DELIVERED, NoBases, Options, Removals, Sync
from guildsync.verbs.training import Followed, Line, stop, tail

if TYPE_CHECKING:
    from guildsync.training import Prepared, Wish

__all__ = [
    "LOCAL",
    "Acted",
    "Choice",
    "Collected",
    "Context",
    "Difference",
    "Files",
    "Filters",
    "FlagChange",
    "Found",
    "Instance",
    "Mirrored",
    "Moment",
    "Options",
    "Outcome",
    "PathChange",
    "Paths",
    "Policy",
    "Progress",
    "Record",
    "Remote",
    "Removals",
    "Request",
    "Scope",
    "Stakes",
    "Survey",
    "Teller",
    "Terms",
    "Verified",
    "open_context",
]

Warn = Callable[[str], None]
STAGINGS = 3
"""Connections over which a run is delivered, where they break off."""
REACHABLE = "reachable"
"""The step of every check that says what is there."""


def _silent(_: str) -> None:
    pass


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
        return open_remote(self.config.remote(name), self.home)

    def remotes(self) -> dict[str, Remote | GuildsyncError]:
        """Every configured remote by name; one that this version cannot open as the reason."""
        found: dict[str, Remote | GuildsyncError] = {}
        for name in sorted(self.config.remotes):
            try:
                found[name] = open_remote(self.config.remotes[name], self.home)
            except GuildsyncError as exc:
                found[name] = exc
        return found

    def paths(self, includes: Sequence[str] = (), excludes: Sequence[str] = ()) -> Paths:
        """Which paths of runs are synced: by the configured patterns where none are said."""
        choices = self.config.choices
        return Paths(
            tuple(map(os.fsencode, includes or choices.include)), tuple(map(os.fsencode, excludes or choices.exclude))
        )

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
            raise same_place(source, target)
        one, other = alike(self.remote(source), self.remote(target))
        with self._pair(one, other, rehash) as (want, have):
            options = replace(options, origin=one.name)
            outcome = Sync(want, have, bases(self.home, want, have), options, progress).run()
            crossed = crossing(want, have)
            outcome.requests = None if crossed is None else crossed.requests
            return outcome

    def mirror(
        self,
        ends: tuple[str, str],
        options: Options = Options(),
        terms: Terms = Terms(),
        teller: Teller = Silent(),
        stop: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> Mirrored:
        """Deliver runs of the first of two remotes to the second, one of which is the home, as `copy` does, and go on
        doing so until `stop` says so or `terms` are over. What there was for a moment only is left out."""
        if ends[0] == ends[1]:
            raise same_place(*ends)
        one, other = alike(*map(self.remote, ends))
        policy = replace(options.policy, paths=lasting(options.policy.paths))
        options = replace(options, origin=one.name, policy=policy)
        if other.layout == STORE:
            terms = replace(terms, every=other.config.poll, growth=GROWTH)
        with mirroring(self.home, one, other):
            opened = partial(self._sides, replace(one, patient=True), other)
            return Mirror(opened, options, terms, teller, stop=stop, progress=progress).run()

    @contextmanager
    def _sides(self, one: Remote, other: Remote) -> Iterator[Sides]:
        with self._pair(one, other) as (want, have), hinted(one, self.home, want) as hints:
            yield Sides(want, have, bases(self.home, want, have), hints)

    @contextmanager
    def _pair(self, one: Remote, other: Remote, rehash: bool = False) -> Iterator[tuple[Replica, Replica]]:
        with self._opened(one, rehash) as want, self._opened(other, rehash) as have:
            _require(want, one.where)
            if want.aliases & have.aliases:
                raise same_place(one.name, other.name)
            yield want, have

    def runs(
        self, remote: str = LOCAL, choice: Choice = Choice(), *, deleted: bool = False, sizes: bool = False
    ) -> list[Record]:
        """The chosen runs of a remote or of the home, newest first. `sizes`: with their sizes, files and scalars, which
        are also there where the filters look at them."""
        with self._there(remote) as replica:
            return choice(list(replica.runs(deleted, sizes or choice.needs_details)))

    def survey(
        self,
        remotes: Sequence[str],
        choice: Choice = Choice(),
        *,
        deleted: bool = False,
        sizes: bool = False,
        limit: int | None = None,
        compare: bool = True,
    ) -> Survey:
        """The chosen runs of several places, the newest first, at most `limit`. All places are asked at the same time;
        one that cannot be asked is a trouble of its own. `compare`: tell how each run compares with the one of that id
        in this home. Selectors are understood place by place. What there is of remotes is noted for `known`. Where
        several could ask for passphrases, none does."""
        question = Question(
            choice.filters, choice.selectors, deleted, sizes or choice.needs_details, limit, compare=compare
        )
        quietly = sum(self._may_ask(name) for name in remotes) > 1
        places = [self._place(name, quietly) for name in remotes]
        return survey(places, self._home_place, partial(bases, self.home), question)

    def known(self, remote: str = LOCAL) -> list[tuple[RunId, str]]:
        """The runs of a remote when they were last listed here, the newest first, each with its label; those of the
        home as they are now. Nothing but the home is asked."""
        if remote == LOCAL:
            return _labelled(self.runs())
        return Listed(self.home, self.remote(remote)).load()

    def info(
        self, remote: str = LOCAL, choice: Choice = Choice(("@latest",)), *, deleted: bool = False
    ) -> tuple[Record, Sequence[Moment]]:
        """One run, with sizes, and what was done to it: nothing where no history is kept. Raises NotFound, Usage where
        several are chosen."""
        with self._there(remote) as replica:
            found = choice(list(replica.runs(deleted, sizes=True)))
            if len(found) != 1:
                raise Usage(f"{len(found)} runs are named", "name one") if found else NotFound("there are no runs")
            return found[0], replica.history(found[0].run)

    def diff(self, remote: str, one: Choice, other: Choice, scope: Scope = Scope()) -> Difference:
        """What differs from one run to another of the same place. Raises NotFound, Usage where several are chosen."""
        with self._there(remote) as replica:
            return difference(replica, one, other, scope, one.needs_details or other.needs_details)

    @contextmanager
    def look(self, remote: str = LOCAL, choice: Choice = Choice(("@latest",))) -> Iterator[Files]:
        """The files of one run where it lies; they can be read until the end of the `with`. Raises NotFound, Usage
        where several are chosen, Damaged."""
        with self._there(remote) as replica:
            yield look(replica, choice, choice.needs_details)

    def verify(self, remote: str, choice: Choice = Choice(), *, quick: bool = False) -> Verified:
        """Do all bytes match their digests, as a client without any cache finds them?"""
        there = self.remote(remote)
        with there.opened(self.home, self.warn, fresh=True, jobs=self.jobs) as replica:
            _require(replica, there.where)
            return lifecycle.verify(replica, choice, quick, choice.needs_details)

    def edit(self, remote: str, request: Request, change: Callable[[Metadata], Metadata]) -> Acted:
        """Make the metadata of runs what `change` says, where they lie."""
        with self._there(remote) as replica:
            return lifecycle.edit(replica, request, change)

    def delete(self, remote: str, request: Request, *, permanent: bool = False) -> Acted:
        """Move runs to the trash of where they lie; `permanent`: and give them up for good."""
        with self._there(remote) as replica:
            return lifecycle.delete(replica, request, permanent)

    def restore(self, remote: str, request: Request) -> Acted:
        """Move runs back from the trash."""
        with self._there(remote) as replica:
            return lifecycle.restore(replica, request)

    def purge(self, remote: str, request: Request) -> Acted:
        """Give up runs of the trash for good."""
        with self._there(remote) as replica:
            return lifecycle.purge(replica, request)

    def collect(
        self,
        remote: str,
        grace: float | None = None,
        agree: Callable[[Collected], None] | None = None,
        *,
        dry_run: bool = False,
    ) -> Collected:
        """Free what nothing there refers to any more and is older than `grace` seconds (None: what is usual there)."""
        with self._there(remote) as replica:
            return lifecycle.collect(replica, grace, agree, dry_run)

    def prepare(self, remote: str, wish: Wish) -> Prepared:
        """A run of what is wished for, as it is to run there, with the configured flags; nothing is sent yet. Raises
        Usage where nothing can be started."""
        from guildsync import training  # what reads scripts and git is of no use to any other verb
        from guildsync.model.script import usual_flag

        there = self.remote(remote)
        there.require_executor()
        usual = [usual_flag(name, value) for name, value in self.config.choices.flags.items()]
        return training.prepare(wish, there.surroundings, [self.home.path], usual)

    def stage(self, remote: str, prepared: Prepared) -> None:
        """Deliver a prepared run: it waits there to be started. Where the connection breaks off, over another one."""
        there = self.remote(remote)
        with prepared.staged() as new:
            for left in reversed(range(STAGINGS)):
                was_there = False
                try:
                    with self._opened(there) as target:
                        was_there = True
                        outcome = Sync(new, target, NoBases(), Options()).run()
                    break
                except Unreachable as exc:
                    if not left or not was_there:
                        raise
                    self.warn(f"{exc.message}; trying again")
        for problem in outcome.problems:
            if problem.reason not in DELIVERED:
                raise GuildsyncError(f"the run could not be delivered: {problem.detail}", "try again")

    def start(self, remote: str, run: RunId, order: Order) -> bool:
        """Start a run that waits there; False where it was started before."""
        return self._line(remote).start(run, order)

    def order(self, remote: str, choice: Choice, wish: Wish, *, again: bool = False) -> tuple[RunId, Order]:
        """What starts the one chosen run, which was staged there; `again`: or has ended."""
        self.remote(remote).require_executor()
        found = self.runs(remote, choice)
        if len(found) != 1:
            raise Usage(f"{len(found)} runs are named", "name one")
        from guildsync import training

        return found[0].run, training.order_of(found[0], self.remote(remote).surroundings, wish, again)

    def follow(self, remote: str, run: RunId, take: Callable[[bytes], None], offset: int = 0) -> Followed:
        """Hand over what a run prints, from `offset` on, until it has ended."""
        return self._line(remote).follow(run, take, offset)

    def tail(self, remote: str, run: RunId, lines: int) -> int:
        """Where the last `lines` lines begin of what a run has printed so far."""
        with self.remote(remote).executing(self.home) as executor:
            return tail(executor, run, lines)

    def stop(self, remote: str, request: Request, patience: float) -> Acted:
        """End runs where they run: TERM, and after `patience` seconds KILL, to what is proven to be theirs."""
        self.remote(remote).require_executor()
        with self._there(remote) as replica:
            records = request.choose(list(replica.runs(sizes=request.details)))
        with self.remote(remote).executing(self.home) as executor:
            return stop(executor, records, request, patience)

    def _line(self, remote: str) -> Line:
        there = self.remote(remote)
        return Line(partial(there.executing, self.home), self.warn)

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
        there = self.remote(remote)
        steps = self.check(remote) if there.name == LOCAL else there.available(self.home, self.warn, self.jobs)
        with closing(steps):
            for step in steps:
                if not step.ok or step.name == REACHABLE:
                    break
        return step

    def machine(self, remote: str) -> Instance | None:
        """The machine of a remote as its provider lists it; None: there is none now. Raises Usage where there never is
        one."""
        return self.remote(remote).require_machine()[0].state()

    def machines(self, remotes: Sequence[str], say: Say = _silent) -> list[Instance]:
        """Every machine of ours in the accounts of these remotes, by its tags: also those that no remote knows. What
        cannot be asked is said."""
        return machine.everything({name: self.remote(name).require_machine()[0] for name in remotes}, say)

    def start_machine(self, remote: str, agree: Agree | None = None, say: Say = _silent) -> Instance:
        """Have the machine of a remote run, ready to be used: the one that there is, else a new one."""
        one, reach = self.remote(remote).require_machine()
        self.home.prepare()
        return machine.start(one, reach, agree, say)

    def stop_machine(
        self, remote: str, agree: Agree | None = None, say: Say = _silent, *, terminate: bool = False
    ) -> Instance | None:
        """Stop the machine of a remote, its data kept; `terminate`: destroy it with its data. Answers what its provider
        says of it then; None: there was none."""
        return machine.stop(self.remote(remote).require_machine()[0], terminate, agree, say)

    def stakes(self, remote: str, *, terminate: bool = False) -> Stakes:
        """Which runs of a remote would be ended with its machine; `terminate`: and which would be lost."""
        places = (remote, LOCAL) if terminate else (remote,)
        return machine.stakes(lambda: self.survey(places), self.remote(remote).name, terminate)

    @contextmanager
    def _there(self, remote: str) -> Iterator[Replica]:
        """What is there already: nothing is made."""
        there = self.remote(remote)
        with self._opened(there) as replica:
            _require(replica, there.where)
            yield replica

    def _may_ask(self, name: str) -> bool:
        try:
            return self.remote(name).may_ask
        except GuildsyncError:
            return False

    def _place(self, name: str, quietly: bool) -> Place:
        """What cannot even be opened says so when it is asked."""
        try:
            there = self.remote(name)
        except GuildsyncError as exc:
            return Place(name, name, partial(_refused, exc))
        if there.name == LOCAL:
            return self._home_place(False)
        listed = Listed(self.home, there)
        return Place(
            there.name,
            there.where,
            partial(there.opened, self.home, self.warn, jobs=self.jobs, quietly=quietly),
            lambda records: listed.note(_labelled(records)),
            there.config.keep_env,
        )

    def _home_place(self, keeps_env: bool) -> Place:
        return Place(LOCAL, self.home.text, partial(opened_home, self.home, keeps_env), keeps_env=keeps_env)

    def _opened(self, remote: Remote, rehash: bool = False) -> AbstractContextManager[Replica]:
        if remote.name == LOCAL:
            return opened_home(self.home, remote.config.keep_env, rehash, remote.patient)
        return remote.opened(self.home, self.warn, rehash=rehash, jobs=self.jobs)


def _require(replica: Replica, where: str) -> None:
    if not replica.is_there:
        raise nothing_at(where)


def _refused(exc: GuildsyncError) -> AbstractContextManager[Replica]:
    raise exc


def _labelled(records: Sequence[Record]) -> list[tuple[RunId, str]]:
    return [(record.run, record.metadata.label or "") for record in newest_first(records)]
