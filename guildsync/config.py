"""YAML -> the frozen dataclasses of the schema, layer by layer, every error with file:line and a hint."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from guildsync.errors import NotFound, Usage, without_secrets
from guildsync.schema import (
    ALIASES,
    TYPES,
    Choices,
    Ec2Remote,
    FsspecRemote,
    HostRemote,
    LocalRemote,
    RemoteConfig,
    S3Remote,
    SshRemote,
    duration,
    is_url,
    nearest,
    parse_port,
    parse_url,
    parse_word,
)
from guildsync.schema import KEYS as _KEYS

if TYPE_CHECKING:
    import yaml

__all__ = [
    "LOCAL",
    "TYPES",
    "Choices",
    "Config",
    "Ec2Remote",
    "FsspecRemote",
    "HostRemote",
    "LocalRemote",
    "RemoteConfig",
    "S3Remote",
    "SshRemote",
    "duration",
    "find_home",
    "inline",
    "load",
]

MAX_FILE = 1 << 20
_TOO_DEEP = "nested too deeply or too many aliases"
MAX_DEPTH = 50
MAX_ALIASES = 100
MAX_NODES = 20_000

LOCAL = "local"
RESERVED = (LOCAL, "all", ".", "..")
"""Names that mean something on the command line, or to a file system, and no configured remote may have."""
FILE_NAME = "guildsync.yml"
HOME_VARIABLES = ("GUILDSYNC_HOME", "GUILD_HOME")
CONFIG_VARIABLE = "GUILDSYNC_CONFIG"

_REMOTE_NAME = re.compile(r"[^\s:/\x00-\x1f\x7f-][^\s:/\x00-\x1f\x7f]*")
_SUBSTITUTED = re.compile(r"\$(\$\{)|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\})?")
_SSH = re.compile(r"(?:([^@]*)@)?(\[[^\[\]]*\]|[^:@]*)(?::(.*))?", re.S)


GUILD, USER, PROJECT = "guild", "user", "project"


class Value(NamedTuple):
    """A plain value and where it stands. A `lenient` one with an unknown key is a warning."""

    value: Any
    source: str
    lenient: bool = False


@dataclass(frozen=True)
class Config:
    """All layers merged. `sources` says of every key that was given where: (remote or "", key) -> file:line."""

    home: str
    remotes: Mapping[str, RemoteConfig]
    choices: Choices = field(default_factory=Choices)
    sources: Mapping[tuple[str, str], str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def remote(self, name: str) -> RemoteConfig:
        """The remote of that name, `local`, or the one that `name` describes inline; raises NotFound for all others."""
        if name == LOCAL:
            return LocalRemote(name=LOCAL, path=self.home)
        found = self.remotes.get(name) or inline(name)
        if found is None:
            names = ", ".join(self.remotes) or "none yet"
            near = nearest(name, [*self.remotes, LOCAL])
            raise NotFound(f"there is no remote {name!r}{near}", f"configured remotes: {names}")
        return found

    def masked(self) -> Iterator[tuple[str, str, Any, str]]:
        """(remote or "", key, value, file:line) of all that was given, for people: without what may be secret."""
        for (name, key), source in self.sources.items():
            value = getattr(self.remotes[name] if name else self.choices, key.replace("-", "_"))
            if isinstance(value, Mapping) and name:
                value = dict.fromkeys(value, "***")
            yield name, key, without_secrets(value) if isinstance(value, str) else value, source


def find_home(option: str | None, environ: Mapping[str, str]) -> str:
    """The local Guild home: the option, else GUILDSYNC_HOME, else GUILD_HOME, else ~/.guild; absolute."""
    named = option or next((environ[name] for name in HOME_VARIABLES if environ.get(name)), "~/.guild")
    return os.path.abspath(os.path.expanduser(named))


def inline(spec: str) -> RemoteConfig | None:
    """The remote of `ssh:[user@]host[:port]`, `s3:bucket[/root]` or a URL; None where `spec` is none of them.

    Raises Usage for one that is malformed, or that a program could take for an option.
    """
    try:
        if spec.startswith("s3:"):
            bucket, _, root = spec[3:].removeprefix("//").partition("/")
            return S3Remote(name=spec, bucket=parse_word(bucket), root=_inline_root(root))
        if is_url(spec):
            return FsspecRemote(name=spec, url=parse_url(spec))
        if spec.startswith("ssh:"):
            match = _SSH.fullmatch(spec[4:])
            if not match:
                raise ValueError("must be ssh:[user@]host[:port]")
            user, host, port = match.groups()
            return SshRemote(
                name=spec,
                user=None if user is None else parse_word(user),
                host=parse_word(host.strip("[]")),
                port=None if port is None else parse_port(port),
            )
    except ValueError as exc:
        raise Usage(f"the remote {spec!r} cannot be understood: a part of it {exc}") from exc
    return None


def _inline_root(root: str) -> str:
    return parse_word(root).strip("/") if root else ""


def load(home: str, explicit: str | None, cwd: str, environ: Mapping[str, str]) -> Config:
    """The configuration of all layers, later ones winning key by key; a remote that changes its type starts anew.

    Guild's own file, then the user's (`explicit`, else GUILDSYNC_CONFIG, else the XDG place), then the project's,
    then variables. Raises Usage for the first thing that is wrong, but in Guild's own file, where it is a warning.
    """
    layers = _Layers(environ)
    layers.add(os.path.expanduser("~/.guild/config.yml"), GUILD)
    named = explicit or environ.get(CONFIG_VARIABLE)
    xdg = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    user = os.path.expanduser(named or os.path.join(xdg, "guildsync", "config.yml"))
    if os.path.isfile(user):
        layers.add(user, USER)
    elif named:
        raise Usage(f"there is no configuration file {user}", f"mend --config or {CONFIG_VARIABLE}")
    project = _project_file(cwd)
    if project and project not in map(os.path.abspath, layers.files):
        layers.add(project, PROJECT)
    for name in ("include", "exclude"):
        variable = f"GUILDSYNC_{name.upper()}"
        if environ.get(variable):
            layers.choices[name] = Value(environ[variable].split(os.pathsep), variable)
    remotes = {name: remote for name in layers.remotes if (remote := layers.remote(name))}
    choices = Choices(**layers.fields(Choices, layers.choices, "", ""))
    sources = {key: source for key, source in layers.sources.items() if not key[0] or key[0] in remotes}
    return Config(home, remotes, choices, sources, tuple(layers.files), tuple(layers.warnings))


def _project_file(cwd: str) -> str | None:
    directory = os.path.abspath(cwd)
    while not os.path.isfile(os.path.join(directory, FILE_NAME)):
        if directory == os.path.dirname(directory):
            return None
        directory = os.path.dirname(directory)
    return os.path.join(directory, FILE_NAME)


class _Layers:
    """What the files say, merged, and what becomes of it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._heads: dict[str, Value] = {}
        self.remotes: dict[str, dict[str, Value]] = {}
        self.choices: dict[str, Value] = {}
        self.sources: dict[tuple[str, str], str] = {}
        self.files: list[str] = []
        self.warnings: list[str] = []

    def add(self, path: str, layer: str) -> None:
        """Guild's own file may be missing or malformed; the others may not."""
        if layer == GUILD and not os.path.isfile(path):
            return
        self.files.append(path)
        file = _File(path, None if layer == GUILD else self._environ)
        try:
            top = file.read()
            if layer != PROJECT:
                self._add_remotes(top.pop("remotes", None), file, layer == GUILD)
        except Usage as exc:
            self._forgive(exc, layer == GUILD)
            return
        for key, value in top.items():
            if layer == GUILD:
                continue  # its other sections are Guild's affair
            if key in _KEYS[Choices]:
                self.choices[key] = Value(value, file.where(key))
            elif layer == PROJECT:
                what = f"{file.where(key)}: a project may only choose {_list(_KEYS[Choices])}, not set {key!r}"
                raise Usage(what, "put it into your own configuration: `guildsync config path` says where that is")
            else:
                _unknown(file.where(key), key, "", ["remotes", *_KEYS[Choices]])

    def _add_remotes(self, remotes: Any, file: _File, lenient: bool) -> None:
        if not isinstance(remotes or {}, dict):
            raise Usage(f"{file.where('remotes')}: `remotes` must be a mapping", "say `remotes: {NAME: {type: …}}`")
        for name, given in (remotes or {}).items():
            head = Value(name, file.where("remotes", name), lenient)
            if not isinstance(given or {}, dict):
                self._forgive(Usage(f"{head.source}: remote {name!r} must be a mapping", "say `type: …`"), lenient)
                continue
            if name in RESERVED or not _REMOTE_NAME.fullmatch(name):
                what = f"{head.source}: a remote cannot have the name {name!r}"
                hint = f"no {_list(RESERVED)}, no ':', '/' or white space, no '-' at the beginning"
                self._forgive(Usage(what, hint), lenient)
                continue
            new: dict[str, Value] = {}
            for key, value in (given or {}).items():
                plain = key.replace("_", "-")
                plain, where = ALIASES.get(plain, plain), file.where("remotes", name, key)
                if plain in new:
                    self._forgive(Usage(f"{where}: `{plain}` stands twice", "remove one of them"), lenient)
                new[plain] = Value(value, where, lenient)
            old = self.remotes.get(name, {})
            same_type = "type" not in new or "type" not in old or new["type"].value == old["type"].value
            self.remotes[name] = {**old, **new} if same_type else new
            self._heads[name] = head

    def remote(self, name: str) -> RemoteConfig | None:
        """The remote, or None with a warning where what only Guild's own file says of it is of no use."""
        try:
            return self._remote(name)
        except Usage as exc:
            self._forgive(exc, self._heads[name].lenient)
            return None

    def _forgive(self, error: Usage, lenient: bool) -> None:
        if not lenient:
            raise error
        self.warnings.append(error.message)

    def _remote(self, name: str) -> RemoteConfig:
        values = self._extended(name, [])
        kind = values.pop("type", Value(None, self._heads[name].source))
        what = f"{kind.source}: remote {name!r} has"
        if kind.value is None:
            raise Usage(f"{what} no type", _valid(TYPES))
        if str(kind.value) not in TYPES:
            raise Usage(f"{what} an unknown type {kind.value!r}{nearest(str(kind.value), TYPES)}", _valid(TYPES))
        cls = TYPES[kind.value]
        found = self.fields(cls, values, name, f" of {kind.value} remote {name!r}")
        for key, known in _KEYS[cls].items():
            if known.name not in found and known.default is known.default_factory is dataclasses.MISSING:
                raise Usage(f"{what} no `{key}`", f"type {kind.value} needs it: say `{key}: …`")
        return cls(name=name, **found)

    def _extended(self, name: str, path: Sequence[str]) -> dict[str, Value]:
        values = dict(self.remotes[name])
        base = values.pop("extends", None)
        if base is None:
            return values
        if base.value in [*path, name]:
            raise Usage(f"{base.source}: remote {name!r} extends itself", " -> ".join([*path, name, base.value]))
        if str(base.value) not in self.remotes:
            near = nearest(str(base.value), self.remotes)
            raise Usage(f"{base.source}: there is no remote {base.value!r} to extend{near}", _valid(self.remotes))
        return {**self._extended(base.value, [*path, name]), **values}

    def fields(self, cls: type, values: Mapping[str, Value], owner: str, what: str) -> dict[str, Any]:
        """The arguments of `cls`; a key without a value has its default."""
        found: dict[str, Any] = {}
        for key, (value, source, lenient) in values.items():
            known = _KEYS[cls].get(key)
            if known is None:
                try:
                    _unknown(source, key, what, _KEYS[cls])
                except Usage as exc:
                    self._forgive(exc, lenient)
            elif value is not None:
                try:
                    found[known.name] = known.metadata["parse"](value)
                except ValueError as exc:
                    raise Usage(f"{source}: `{key}`{what} {exc}", f"it is {value!r}"[:200]) from exc
                self.sources[owner, key] = source
        return found


class _File:
    """A YAML file as plain values, and the line of each by the keys that lead to it."""

    def __init__(self, path: str, environ: Mapping[str, str] | None) -> None:
        """`environ` None: `${…}` is text."""
        self._path = path
        self._environ = environ
        self._lines: dict[tuple[str, ...], int] = {}
        self._left = MAX_NODES

    def where(self, *keys: str) -> str:
        return f"{self._path}:{self._lines.get(keys, 1)}"

    def read(self) -> dict[str, Any]:
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            with open(self._path, "rb") as file:
                data = file.read(MAX_FILE + 1)
            if len(data) > MAX_FILE:
                raise Usage(f"{self._path}: larger than {MAX_FILE} bytes", "is it a configuration file?")
            self._check(yaml.parse(data, loader))
            node = yaml.compose(data, loader)
        except OSError as exc:
            raise Usage(f"{self._path}: cannot be read: {exc.strerror}", "check its permissions") from exc
        except yaml.MarkedYAMLError as exc:
            line = exc.problem_mark.line + 1 if exc.problem_mark else 1
            if "nesting depth" in (exc.problem or ""):  # newer PyYAMLs look for themselves
                raise Usage(f"{self._path}:{line}: {_TOO_DEEP}", "write it out") from exc
            raise Usage(
                f"{self._path}:{line}: not YAML: {exc.problem}", "look at that line and the one before"
            ) from exc
        except yaml.YAMLError as exc:
            raise Usage(f"{self._path}: not YAML: {str(exc).splitlines()[0]}", "is it UTF-8 text?") from exc
        top = {} if node is None else self._plain(node, ())
        if not isinstance(top or {}, dict):
            raise Usage(f"{self._path}:1: must be a mapping", "say `remotes:` …")
        return top or {}

    def _check(self, events: Iterable[yaml.Event]) -> None:
        """Deep nesting would end the process, aliases fill memory."""
        import yaml

        depth = aliases = 0
        for event in events:
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            if depth > MAX_DEPTH or aliases > MAX_ALIASES:
                self._fail(event, _TOO_DEEP, "write it out")

    def _fail(self, at: Any, what: str, hint: str) -> NoReturn:
        """`at` is a node or an event of PyYAML."""
        raise Usage(f"{self._path}:{at.start_mark.line + 1}: {what}", hint)

    def _plain(self, node: yaml.Node, keys: tuple[str, ...]) -> Any:
        import yaml

        self._left -= 1
        if self._left < 0 or len(keys) > MAX_DEPTH:
            self._fail(node, "too many values", "use fewer aliases")
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for name, value in node.value:
                key = name.value
                if not isinstance(key, str):
                    self._fail(name, "a key must be text", "put it in quotes")
                if key in found:
                    self._fail(name, f"the key {key!r} stands twice", "remove one of them")
                place = (*keys, key)
                self._lines[place] = name.start_mark.line + 1
                found[key] = self._plain(value, place)
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*keys, "")) for item in node.value]
        try:
            value = yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError):
            self._fail(node, f"a value that is not {node.tag.rpartition(':')[2]}", "put it in quotes")
        return self._substituted(value, node) if isinstance(value, str) else value

    def _substituted(self, text: str, node: yaml.Node) -> str:
        """`${VAR}`, `${VAR:-default}` (also for an empty VAR), and `$${` for a literal `${`."""
        environ = self._environ
        if environ is None:
            return text

        def value(match: re.Match[str]) -> str:
            literal, name, default = match.groups()
            if literal:
                return str(literal)
            if not name:
                self._fail(node, "a ${ that is neither ${VAR} nor ${VAR:-default}", "write $${ for the characters ${")
            if default is not None:
                return environ.get(name) or str(default[2:])
            if name not in environ:
                self._fail(node, f"the variable {name} is not set", f"set it, or say ${{{name}:-default}}")
            return environ[name]

        return _SUBSTITUTED.sub(value, text)


def _unknown(source: str, key: str, what: str, valid: Iterable[str]) -> NoReturn:
    raise Usage(f"{source}: unknown key {key!r}{what}{nearest(key, valid)}", _valid(valid))


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


def _valid(words: Iterable[str]) -> str:
    return f"valid: {', '.join(words)}"
