"""What is to be run in a run directory, as it crosses the pipe to a supervisor."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple

from guildsync.errors import Usage

SHELLS = ("bash", "sh")

_PREPARED = """\
guildsync_step=init
trap 'guildsync_code=$?
[ "$guildsync_code" -ne 0 ] || guildsync_code=1
echo "guildsync: $guildsync_step failed (exit status $guildsync_code), so nothing was started" >&2
exit "$guildsync_code"' EXIT
{before}
set -e
{eval} "$1"
set +e
guildsync_step=activate
{again}
{eval} "$2" || exit "$?"
trap - EXIT
{again}
shift 2
exec "$@"
"""
_KEPT: Dict[str, Dict[str, str]] = {
    "bash": {"before": 'guildsync_words=("$@")', "eval": "eval", "again": 'set -- "${guildsync_words[@]}"'},
    "sh": {"before": 'guildsync_eval() { eval "$1"; }', "eval": "guildsync_eval", "again": ":"},
}
"""Lines of a person's own are arguments of it: whatever they quote, leave open, or `set`, what follows them holds. A
function has arguments of its own, but in bash `declare` would be its own, too."""


@dataclass(frozen=True)
class Spec:
    """One training process. Words are text as the file system has it: undecodable bytes are lone surrogates.

    `env` and `secrets` are set in the environment of the process, which else is the launcher's; what `secrets` hold is
    nowhere else. With `init` (shell lines, the first that fails is the last) or `activate` (one shell command) a
    `shell` runs them first and then becomes the program. `umask`: the process's; None for the launcher's.
    `after`: see `model.ports.Order`.
    """

    run: str
    argv: Tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    init: Optional[str] = None
    activate: Optional[str] = None
    shell: str = "bash"
    umask: Optional[int] = None
    after: Optional[int] = None

    def words(self) -> Tuple[str, ...]:
        """What is executed. No word is quoted: none is read by a shell."""
        if not self.init and not self.activate:
            return self.argv
        script = _PREPARED
        for name, line in _KEPT[self.shell].items():
            script = script.replace("{%s}" % name, line)
        return (self.shell, "-c", script, "guildsync", self.init or "", self.activate or "", *self.argv)

    def environment(self, inherited: Mapping[bytes, bytes]) -> Dict[bytes, bytes]:
        """All of the process's. Python is told not to hold output back."""
        found = {b"PYTHONUNBUFFERED": b"1", **inherited, b"PWD": encoded(self.run)}
        found.update((encoded(name), encoded(value)) for name, value in [*self.env.items(), *self.secrets.items()])
        return found

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Spec:
        """Raises Usage; no message says what any value is."""
        try:
            return _checked(json.loads(data))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass  # what it is about may be a secret
        raise Usage("what is to be run is malformed")


def _checked(value: Any) -> Spec:
    mask = value["umask"]
    spec = Spec(
        _text(value["run"]),
        tuple(_text(word) for word in value["argv"]),
        {_name(name): _text(text) for name, text in value["env"].items()},
        {_name(name): _text(text) for name, text in value["secrets"].items()},
        None if value["init"] is None else _text(value["init"]),
        None if value["activate"] is None else _text(value["activate"]),
        value["shell"],
        mask,
        value["after"],
    )
    if spec.after is not None and type(spec.after) is not int:
        raise ValueError
    if not spec.argv or not spec.argv[0] or not spec.run.startswith("/") or spec.shell not in SHELLS:
        raise ValueError
    if mask is not None and (type(mask) is not int or not 0 <= mask <= 0o777):
        raise ValueError
    return spec


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    encoded(value)
    return value


def _name(value: Any) -> str:
    """Of a variable."""
    if not value or "=" in _text(value):
        raise ValueError
    return str(value)


def encoded(text: str) -> bytes:
    """As it reaches the system, whatever the locale there. Raises ValueError for what no system can have."""
    return text.encode("utf-8", "surrogateescape")
