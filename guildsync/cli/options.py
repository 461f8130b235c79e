"""Options that many commands share: they may stand before or after the command."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Optional

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import guildsync
from guildsync.cli import completion
from guildsync.cli.terminal import Terminal
from guildsync.errors import Declined, NotFound, Usage
from guildsync.model.run import COMPLETED, ERROR, PENDING, RUNNING, STAGED, TERMINATED, is_run_id
from guildsync.version import VERSION

if TYPE_CHECKING:
    from guildsync.api import Choice, Context, Filters

LOCAL, ALL = "local", "all"
STDIN = "-"
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Runs = Annotated[
    Optional[list[str]],  # noqa: UP045 -- typer
    typer.Argument(
        metavar="[RUN]...",
        show_default=False,
        help="Which: 1, 2:5, :3, an id, @latest:3, @running, -",
        autocompletion=completion.runs,
    ),
]
_COLORS = ("auto", "always", "never")
_JOBS = range(1, 65)


@dataclass
class Settings:
    """What the shared options of one command line say."""

    remotes: list[str] = field(default_factory=list)
    home: str | None = None
    directory: str | None = None
    config: str | None = None
    yes: bool = False
    quiet: bool = False
    verbose: int = 0
    json: bool = False
    jobs: str | None = None
    color: str = "auto"
    operations: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    unlabeled: bool = False
    tags: list[str] = field(default_factory=list)
    marked: bool = False
    statuses: list[str] = field(default_factory=list)
    expressions: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    @property
    def terminal(self) -> Terminal:
        return Terminal(self.quiet, self.color)

    @property
    def filters(self) -> Filters:
        """Raises Usage for an expression or a time range that cannot be read."""
        now = datetime.now()
        filters: Filters = guildsync.Filters(
            tuple(self.operations),
            tuple(self.labels),
            self.unlabeled,
            tuple(self.tags),
            self.marked,
            tuple(self.statuses),
            tuple(guildsync.parse_expression(text, now) for text in self.expressions),
            tuple(guildsync.parse_range(text, now) for text in self.started),
        )
        return filters

    @property
    def is_filtered(self) -> bool:
        chosen = (self.operations, self.labels, self.unlabeled, self.tags, self.marked, self.statuses)
        return any((*chosen, self.expressions, self.started))

    def context(self) -> Context:
        """The home and the configuration that the options name; raises Usage."""
        if self.color not in _COLORS:
            raise Usage(f"--color cannot be {self.color!r}", f"say one of {', '.join(_COLORS)}")
        if self.directory is not None:
            try:
                os.chdir(self.directory)
            except OSError as exc:
                raise Usage(f"-C {self.directory}: {exc.strerror}", "name a directory that is there") from exc
        terminal = self.terminal
        context: Context = guildsync.open_context(self.home, self.config, warn=terminal.warning, jobs=self._jobs())
        if self.verbose:
            terminal.note(f"home: {context.home.text}")
            terminal.note(f"configuration: {', '.join(context.config.files) or 'none'}")
        return context

    def _jobs(self) -> int | None:
        if self.jobs is None:
            return None
        if not self.jobs.isdecimal() or int(self.jobs) not in _JOBS:
            raise Usage(f"-j/--jobs cannot be {self.jobs!r}", f"say a number from {_JOBS.start} to {_JOBS.stop - 1}")
        return int(self.jobs)

    def one_remote(self) -> str:
        """The remote that is named, or the local home; raises Usage for several."""
        if len(set(self.remotes)) > 1 or ALL in self.remotes:
            raise Usage("this command works on one remote at a time", "say -r once; only `runs` takes several")
        return self.remotes[0] if self.remotes else LOCAL

    def no_remote(self, command: str, instead: str) -> None:
        if self.remotes:
            raise Usage(f"`{command}` takes no -r/--remote", instead)

    def agreed(self, question: str) -> None:
        """Ask, unless the answer was given beforehand; raises Declined, and Usage where nobody can be asked."""
        if not self.yes and not self.terminal.ask(question):
            raise Declined("nothing was done")

    def choice(self, selectors: Sequence[str] | None) -> Choice:
        """The runs that selectors and filters choose."""
        chosen: Choice = guildsync.Choice(expanded(selectors or ()), self.filters)
        return chosen


def expanded(selectors: Sequence[str]) -> list[str]:
    """Selectors with `-` replaced by the ids on stdin; raises NotFound where there are none, lest nothing named mean
    all."""
    words: list[str] = []
    for selector in selectors:
        words += _ids() if selector == STDIN else [selector]
    return words


def _ids() -> list[str]:
    words = sys.stdin.read().split() if sys.stdin is not None else []
    if not words:
        raise NotFound("there are no ids on standard input", "nothing was done")
    for word in words:
        if not is_run_id(word.lower()):
            raise Usage(f"{word[:80]!r} on standard input is no run id", "give whole ids, 32 hex digits each")
    return [word.lower() for word in words]


class _Shared(NamedTuple):
    """`metavar` None: a flag, that sets its field, adds `value` to it, or counts."""

    field: str
    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    value: str | None = None

    def option(self) -> TyperOption:
        flag = self.metavar is None
        return completion.Option(
            offers=completion.OFFERS.get(self.field),
            kind=completion.KINDS.get(self.field),
            param_decls=[f"shared_{self.field}_{self.value or ''}", *self.names],
            help=self.help,
            metavar=self.metavar,
            type=int if self.field == "verbose" else None if flag else str,
            is_flag=flag and self.field != "verbose",
            count=self.field == "verbose",
            multiple=self._is_list and not flag,
            default=False if flag and self.field != "verbose" else None,
            callback=self._store,
            expose_value=False,
        )

    @property
    def _is_list(self) -> bool:
        return isinstance(getattr(Settings(), self.field), list)

    def _store(self, context: typer.Context, _: Any, value: Any) -> None:
        if not value:
            return
        settings: Settings = context.find_root().obj
        if self._is_list:
            getattr(settings, self.field).extend(value if self.value is None else [self.value])
        elif self.field == "verbose":
            settings.verbose += value
        else:
            setattr(settings, self.field, value)


GLOBALS = (
    _Shared("remotes", ("-r", "--remote"), "Where: a configured remote, `local`, or one inline.", "NAME"),
    _Shared("home", ("-H", "--home"), "The local Guild home.", "PATH"),
    _Shared("directory", ("-C",), "Be in this directory.", "DIR"),
    _Shared("config", ("--config",), "Your configuration file.", "FILE"),
    _Shared("yes", ("-y", "--yes"), "Yes to what would be asked."),
    _Shared("quiet", ("-q", "--quiet"), "Say nothing when all is well."),
    _Shared("verbose", ("-v", "--verbose"), "Say more; twice: also where an error arose."),
    _Shared("json", ("--json",), "Print one JSON document."),
    _Shared("jobs", ("-j", "--jobs"), "Packs on their way at a time (4).", "N"),
    _Shared("color", ("--color",), "Colours of messages.", "auto|always|never"),
)
FILTERS = (
    _Shared("expressions", ("-F", "--filter"), "Runs of which it is true: 'loss < 0.2 and lr = 0.1'.", "EXPR"),
    _Shared("operations", ("-Fo", "--operation"), "Runs of this operation (a part of it will do).", "TEXT"),
    _Shared("labels", ("-Fl", "--label"), "Runs with this label (a part of it will do; `-`: without one).", "TEXT"),
    _Shared("unlabeled", ("-Fu", "--unlabeled"), "Runs without a label."),
    _Shared("tags", ("-Ft", "--tag"), "Runs with this tag.", "TAG"),
    _Shared("marked", ("-Fm", "--marked"), "Marked runs."),
    _Shared("started", ("-Fs", "--started"), "Runs started then: 'last 2 days', 'after 9:30', 2026-11-25.", "RANGE"),
    _Shared("statuses", ("-Sr", "--running"), "Running runs.", value=RUNNING),
    _Shared("statuses", ("-Sc", "--completed"), "Completed runs.", value=COMPLETED),
    _Shared("statuses", ("-Se", "--error"), "Runs that failed.", value=ERROR),
    _Shared("statuses", ("-St", "--terminated"), "Runs that were stopped.", value=TERMINATED),
    _Shared("statuses", ("-Sp", "--pending"), "Runs that wait.", value=PENDING),
    _Shared("statuses", ("-Ss", "--staged"), "Runs that are staged.", value=STAGED),
)


def _version(context: typer.Context, _: Any, value: Any) -> None:
    if value and not context.resilient_parsing:
        Terminal().data(f"guildsync {VERSION}")
        context.exit()


def _version_option() -> TyperOption:
    return TyperOption(
        param_decls=["shared_version", "--version"],
        help="Print the version.",
        is_flag=True,
        default=False,
        is_eager=True,
        expose_value=False,
        callback=_version,
    )


class Command(TyperCommand):
    """A command with the global options."""

    sections: Sequence[tuple[str, Sequence[_Shared]]] = (("Everywhere", GLOBALS),)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own = list(self.params)
        self._shared = [(title, [each.option() for each in shared]) for title, shared in self.sections]
        self._shared[-1][1].append(_version_option())
        self.params += [option for _, options in self._shared for option in options]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows = [row for each in self._own if (row := each.get_help_record(ctx))]
        _write_rows("Command", rows, formatter)
        for title, options in self._shared:
            _write_rows(title, [row for option in options if (row := option.get_help_record(ctx))], formatter)


class RunsCommand(Command):
    """A command that takes runs: with filters too."""

    sections = (("Which runs", FILTERS), ("Everywhere", GLOBALS))


class Group(TyperGroup):
    """Commands, with the global options before them. `default` is the command that stands for none."""

    default: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [*(each.option() for each in GLOBALS), _version_option()]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        completing = ctx.resilient_parsing and not args
        if self.default is not None and not completing and not self._names_command(args):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found: list[Any] = super().shell_complete(ctx, incomplete)
        if self.default is not None:
            found += completion.of_default(self.commands[self.default], ctx, incomplete)
        return found

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            near = nearest(name, self.commands)
            raise Usage(f"there is no command {name!r}{near}", f"commands: {', '.join(self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def _names_command(self, args: Sequence[str]) -> bool:
        """Is the first word, behind global options alone, the name of a command?"""
        words = iter(args)
        for word in words:
            shared = next((each for each in GLOBALS if word in each.names), None)
            if shared is None:
                return word in self.commands
            if shared.metavar is not None:
                next(words, None)
        return False


class RunsGroup(Group):
    """`runs`, which lists where no other command of it is named."""

    default = "list"


def nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _write_rows(title: str, rows: list[tuple[str, str]], formatter: Any) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)
