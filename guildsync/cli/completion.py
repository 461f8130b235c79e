"""Shell completion: a script for each shell, and what may stand next on a command line, from local data alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperOption

import guildsync
from guildsync.cli.terminal import Terminal
from guildsync.cli.words import shown
from guildsync.errors import Usage

if TYPE_CHECKING:
    from guildsync.api import Context, Record
    from guildsync.cli.options import Settings

VARIABLE = "_GUILDSYNC_COMPLETE"
"""Set to `<shell>_complete` it makes the program say what may stand next, as the scripts ask it to."""
_LOCAL, _ALL = "local", "all"
_TRASH = ("restore", "purge")
_SAFE = re.compile(r"(?!-)[\w./=+,:@%-]+")
"""What a shell takes for one plain word. Nothing else that others wrote is offered: bash puts it on the command line as
it is, and whoever then presses Enter would execute it."""

_machinery = import_module(typer.BadParameter.__module__.rpartition(".")[0] + ".shell_completion")
"""Of the parser that typer uses: click, or its own copy of it."""

Item = Any
Offered = list[tuple[str, str]]
"""Values, each with a word about it."""
Offers = Callable[[typer.Context, str], Offered]

_BASH = """\
_guildsync_completion() {
    local IFS=$'\\n' line
    COMPREPLY=()
    while read -r line; do
        case $line in
            plain,*) COMPREPLY+=("${line#plain,}") ;;
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
        esac
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        _GUILDSYNC_COMPLETE=bash_complete "${1/#\\~/$HOME}" 2>/dev/null)
}
complete -o nosort -F _guildsync_completion guildsync 2>/dev/null || complete -F _guildsync_completion guildsync"""

_ZSH = """\
#compdef guildsync
_guildsync_completion() {
    local -a plain described response
    local type key descr
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
        _GUILDSYNC_COMPLETE=zsh_complete ${~words[1]} 2>/dev/null)}")
    for type key descr in ${response}; do
        if [[ "$type" == "dir" ]]; then
            _path_files -/
        elif [[ "$type" == "file" ]]; then
            _path_files -f
        elif [[ "$descr" == "_" ]]; then
            plain+=("$key")
        elif [[ "$type" == "plain" ]]; then
            described+=("$key":"$descr")
        fi
    done
    if (( $#described )); then
        _describe -V unsorted described -U
    fi
    if (( $#plain )); then
        compadd -U -V unsorted -a plain
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _guildsync_completion "$@"
else
    compdef _guildsync_completion guildsync
fi"""

_FISH = """\
function _guildsync_completion
    set -l response (env _GUILDSYNC_COMPLETE=fish_complete COMP_WORDS=(commandline -cp | string collect) \\
        COMP_CWORD=(commandline -t | string collect) guildsync 2>/dev/null)
    for line in $response
        set -l item (string split -m 1 "," -- $line)
        switch $item[1]
            case dir
                __fish_complete_directories (commandline -t)
            case file
                __fish_complete_path (commandline -t)
            case plain
                echo $item[2]
        end
    end
end
complete --no-files --command guildsync --arguments "(_guildsync_completion)\""""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(
    ctx: typer.Context,
    shell: Annotated[
        str,
        typer.Argument(
            metavar="|".join(SCRIPTS), show_default=False, help="Your shell.", autocompletion=lambda: [*SCRIPTS]
        ),
    ],
) -> int:
    """Print a script that makes a shell complete commands, options, remotes and runs.

    For bash, `eval "$(guildsync completion bash)"` in ~/.bashrc; for zsh the like in ~/.zshrc, behind compinit; for
    fish `guildsync completion fish | source` in config.fish.
    """
    settings: Settings = ctx.obj
    settings.no_remote("completion", "it is the same for all remotes")
    if shell not in SCRIPTS:
        raise Usage(f"there is no completion for {shell!r}", f"say one of {', '.join(SCRIPTS)}")
    if settings.json:
        settings.terminal.document({"shell": shell, "script": SCRIPTS[shell]})
    else:
        settings.terminal.data(SCRIPTS[shell])
    return 0


# -- what the scripts ask


class _Resolver(_machinery.ShellComplete):  # type: ignore[misc, name-defined]
    """Finds what is being typed; which words there are, and how they are printed, is not its matter."""

    def source_vars(self) -> Any:
        raise NotImplementedError

    get_completion_args = format_completion = source_vars


def complete(program: Any, settings: Settings, instruction: str, environ: Mapping[str, str] = os.environ) -> int:
    """Print what may stand next, in the form that the script of that shell reads. Where that cannot be told, nothing is
    printed: whoever types is not to be told about errors."""
    shell, _, what = instruction.partition("_")
    if shell not in SCRIPTS or what != "complete":
        return 1
    try:
        words, incomplete = _words(shell, environ)
        items = _Resolver(program, {"obj": settings}, "guildsync", VARIABLE).get_completions(words, incomplete)
        option = incomplete[: incomplete.find("=") + 1] if incomplete.startswith("-") else ""  # of the same word
        written = _LINES[shell]
        lines = list(dict.fromkeys(written(each.type, option + each.value, shown(each.help or "")) for each in items))
    except Exception:  # noqa: BLE001 -- a configuration that is being edited, a home that is not there, anything
        return 1
    if lines:
        Terminal().data("\n".join(lines))
    return 0


def _words(shell: str, environ: Mapping[str, str]) -> tuple[list[str], str]:
    """The words before the one that is being typed, and that."""
    words: list[str] = _machinery.split_arg_string(environ["COMP_WORDS"])
    if shell == "fish":
        typed = (_machinery.split_arg_string(environ["COMP_CWORD"]) or [""])[0]
        before = words[1:-1] if typed and words[-1:] == [typed] else words[1:]
    else:
        at = int(environ["COMP_CWORD"])
        before, typed = words[1:at], words[at] if at < len(words) else ""
    # bash takes `--option=value` for three words
    return [word for n, word in enumerate(before) if word != "=" or not before[n - 1].startswith("-")], typed


def _for_zsh(kind: str, value: str, about: str) -> str:
    described = value.replace(":", r"\:") if about else value
    return f"{kind}\n{described}\n{about or '_'}"


_LINES: Mapping[str, Callable[[str, str, str], str]] = {
    "bash": lambda kind, value, _: f"{kind},{value}",
    "zsh": _for_zsh,
    "fish": lambda kind, value, about: f"{kind},{value}" + (f"\t{about}" if about else ""),
}
"""What each script reads of one item."""


# -- what may stand where


class Option(TyperOption):
    """An option that knows what its value may be: what `offers` says, or a path of the `kind` dir or file."""

    def __init__(self, *, offers: Offers | None = None, kind: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._offers, self._kind = offers, kind

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Item]:
        if self._kind is not None:
            return [_machinery.CompletionItem(incomplete, type=self._kind)]
        return _items(self._offers(ctx, incomplete), incomplete) if self._offers else []


def of_default(command: Any, ctx: Any, incomplete: str) -> list[Item]:
    """What may stand behind the name of a group whose default is `command`."""
    with command.make_context(command.name, [], parent=ctx, resilient_parsing=True) as inner:
        if incomplete.startswith("-"):
            return list(command.shell_complete(inner, incomplete))
        arguments = (param for param in command.params if param.param_type_name == "argument")
        return [item for param in arguments for item in param.shell_complete(inner, incomplete)]


def remotes(ctx: typer.Context, incomplete: str) -> Offered:
    """The configured remotes, and this home."""
    configured = [(name, remote.type) for name, remote in _context(ctx).config.remotes.items()]
    return _plain([*configured, (_LOCAL, "this home")], incomplete)


def remotes_or_all(ctx: typer.Context, incomplete: str) -> Offered:
    return [*remotes(ctx, incomplete), (_ALL, "all of them")]


def runs(ctx: typer.Context, incomplete: str) -> Offered:
    """The runs of the place that the command is about, as far as this home knows them."""
    given = ctx.params.get("runs") or ()
    found = ((run, label) for run, label in _known(ctx) if run not in given)
    return _plain(found, incomplete)


def labels(ctx: typer.Context, incomplete: str) -> Offered:
    return _plain([(label, "") for _, label in _known(ctx) if label], incomplete)


def tags(ctx: typer.Context, incomplete: str) -> Offered:
    return _plain([(tag, "") for record in _here(ctx) for tag in sorted(record.metadata.tags)], incomplete)


def operations(ctx: typer.Context, incomplete: str) -> Offered:
    return _plain([(record.summary.operation, "") for record in _here(ctx)], incomplete)


def one_of(values: Iterable[str]) -> Callable[[], list[str]]:
    return lambda: [*values]


OFFERS: Mapping[str, Offers] = {
    "remotes": remotes_or_all,
    "labels": labels,
    "tags": tags,
    "operations": operations,
    "color": lambda _ctx, _incomplete: [(word, "") for word in ("auto", "always", "never")],
}
"""By the field of the shared options."""
KINDS = {"home": "dir", "directory": "dir", "config": "file"}


def _items(offered: Offered, incomplete: str) -> list[Item]:
    return [_machinery.CompletionItem(v, help=about or None) for v, about in offered if v.startswith(incomplete)]


def _plain(offered: Iterable[tuple[str, str]], incomplete: str) -> Offered:
    """Each value once, those that a shell takes for one word."""
    fitting = {value: about for value, about in offered if value.startswith(incomplete) and _SAFE.fullmatch(value)}
    return list(fitting.items())


def _context(ctx: typer.Context) -> Context:
    settings: Settings = ctx.find_root().obj
    context: Context = guildsync.open_context(settings.home, settings.config, cwd=settings.directory)
    return context


def _known(ctx: typer.Context) -> Offered:
    """Runs and their labels: of the remotes that the command names, what was last listed here."""
    context, settings = _context(ctx), ctx.find_root().obj
    if ctx.info_name in _TRASH:
        return [(r.run, r.metadata.label or "") for r in context.runs(deleted=True)] if not settings.remotes else []
    sources = {"push": _LOCAL, "pull": ctx.params.get("remote"), "copy": ctx.params.get("source")}
    source = sources.get(str(ctx.info_name))
    names = [source] if source else settings.remotes or [_LOCAL]
    if _ALL in names:
        names = [_LOCAL, *context.config.remotes]
    return [(run, label) for name in names for run, label in context.known(name)]


def _here(ctx: typer.Context) -> list[Record]:
    return _context(ctx).runs()
