"""The tools that are measured over SSH: the same commands that somebody types who has a host in ~/.ssh/config."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from scripts.benchmarks.sites import ALIAS
from scripts.benchmarks.tools import Guildsync, Place, Steps, Tool


def _ssh(place: Place) -> str:
    """OpenSSH finds its configuration by the password database, not by HOME: it has to be named."""
    return f"ssh -F {shlex.quote(place.endpoint)}"


def _far(place: Place, *names: str) -> str:
    return f"{ALIAS}:{'/'.join((place.far, *names))}"


def _shell(line: str, *values: str) -> Steps:
    """One line for the shell, in which $1 and so on are `values`."""
    return (("/bin/sh", "-c", line, "sh", *values),)


class SshGuildsync(Guildsync):
    """This project, as it lies here; what runs there is the far host's python3."""

    plain = True

    def configure(self, place: Place, origin: Place | None = None) -> None:  # noqa: ARG002
        self.write(place, {"type": "ssh", "host": ALIAS, "guild-home": place.far})


class Rsync(Tool):
    """`-a` and no more: nothing is deleted there, as guildsync deletes nothing without --delete; not compressed, for
    loopback is no slow link; files it finds there are told by size and time, and sent as differences."""

    name = "rsync"
    plain = True
    options: tuple[str, ...] = ("-a",)

    def push(self, place: Place) -> Steps:
        return ((self.program, *self.options, "-e", _ssh(place), "runs", _far(place)),)

    def pull(self, place: Place) -> Steps:
        return ((self.program, *self.options, "-e", _ssh(place), _far(place, "runs"), "."),)


class DurableRsync(Rsync):
    """What it wrote is on the disk before it ends, as with guildsync."""

    name = "rsync+fsync"
    needs = ("rsync",)
    option = "--fsync"
    options = ("-a", "--fsync")


class TarZstd(Tool):
    """One stream of everything, compressed by zstd -1."""

    name = "tar+zstd"
    needs = ("tar", "zstd")
    whole = True
    plain = True

    def push(self, place: Place) -> Steps:
        there = f"cd {shlex.quote(place.far)} && zstd -dqc | tar -xf -"
        return _shell(f'"$1" -cf - runs | zstd -1qc | {_ssh(place)} "$2" "$3"', self.program, ALIAS, there)

    def pull(self, place: Place) -> Steps:
        there = f"cd {shlex.quote(place.far)} && tar -cf - runs | zstd -1qc"
        return _shell(f'{_ssh(place)} "$2" "$3" | zstd -dqc | "$1" -xf -', self.program, ALIAS, there)


class Scp(Tool):
    """With the files' times."""

    name = "scp"
    version = ()
    whole = True
    plain = True

    def push(self, place: Place) -> Steps:
        return ((self.program, "-rpq", "-F", place.endpoint, "runs", _far(place)),)

    def pull(self, place: Place) -> Steps:
        return ((self.program, "-rpq", "-F", place.endpoint, _far(place, "runs"), "."),)


class SftpRestic(Tool):
    """Over SFTP, which it starts by the command it is given."""

    name = "restic"
    version = ("version",)

    def environment(self, place: Place) -> dict[str, str]:
        mine = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(place.state / "cache")}
        return {**place.environment(), **mine, "RESTIC_REPOSITORY": f"sftp:{_far(place, 'restic')}"}

    def create(self, place: Place) -> Steps:
        return (self._do(place, "init", "--repository-version", "2"),)

    def push(self, place: Place) -> Steps:
        return (self._do(place, "backup", "runs"),)

    def pull(self, place: Place) -> Steps:
        return (self._do(place, "restore", "latest", "--target", str(place.home)),)

    def _do(self, place: Place, *words: str) -> tuple[str, ...]:
        return (self.program, "--quiet", "-o", f"sftp.command={_ssh(place)} {ALIAS} -s sftp", *words)


class Borg(Tool):
    """Not encrypted, compressed by zstd -1; a borg serves at the far end."""

    name = "borg"

    def environment(self, place: Place) -> dict[str, str]:
        mine = {
            "BORG_REPO": f"ssh://{ALIAS}{place.far}/borg",
            "BORG_RSH": _ssh(place),
            "BORG_BASE_DIR": str(place.state),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        return {**place.environment(), **mine}

    def configure(self, place: Place, origin: Place | None = None) -> None:
        if origin is not None:
            shutil.copy(origin.state / "archive", place.state)

    def create(self, place: Place) -> Steps:  # noqa: ARG002
        return ((self.program, "init", "--encryption", "none"),)

    def push(self, place: Place) -> Steps:
        """Notes the archive's name, lest pulling ask for it."""
        line = 'name=$(date +%s.%N) && "$1" create --compression zstd,1 "::$name" runs && echo "$name" > "$2"'
        return _shell(line, self.program, str(place.state / "archive"))

    def pull(self, place: Place) -> Steps:
        return _shell('"$1" extract "::$(cat "$2")"', self.program, str(place.state / "archive"))


class SftpRclone(Tool):
    """SFTP over ssh itself. No server takes more than ten sessions on a connection unless told so, and rclone wants one
    more than it transfers. Without the sums of what was sent, which it would start a process for with every file."""

    name = "rclone"
    version = ("version",)
    plain = True
    _OPTIONS = ("--transfers=8", "--checkers=8", "--check-first")

    def environment(self, place: Place) -> dict[str, str]:
        remote = {
            "TYPE": "sftp",
            "SSH": f"{_ssh(place)} {ALIAS}",
            "SHELL_TYPE": "unix",
            "DISABLE_HASHCHECK": "true",
            "CONNECTIONS": "9",
        }
        mine = {f"RCLONE_CONFIG_BENCH_{key}": value for key, value in remote.items()}
        return {**place.environment(), **mine, "RCLONE_CONFIG": os.devnull}

    def push(self, place: Place) -> Steps:
        return ((self.program, "copy", "runs", _far(place, "runs"), *self._OPTIONS),)

    def pull(self, place: Place) -> Steps:
        return ((self.program, "copy", _far(place, "runs"), "runs", *self._OPTIONS),)


class GuildAi(Tool):
    """Guild AI's own remote: one rsync a run, and a guild there that lists them. It cannot be told which configuration
    ssh has; a program of that name, found first, says it."""

    name = "guildai"
    needs = ("ssh", "rsync")
    plain = True

    def environment(self, place: Place) -> dict[str, str]:
        variables = place.environment()
        mine = {"GUILD_HOME": str(place.home), "GUILD_CONFIG": str(place.state / "guild.yml"), "NO_WARN_RUNDIR": "1"}
        return {**variables, **mine, "PATH": f"{place.state / 'bin'}{os.pathsep}{variables['PATH']}"}

    def configure(self, place: Place, origin: Place | None = None) -> None:  # noqa: ARG002
        keys = {"type": "ssh", "host": ALIAS, "guild-home": place.far, "venv-path": Path(self.program).parents[1]}
        lines = ("remotes:", "  bench:", *(f"    {key}: {value}" for key, value in keys.items()))
        (place.state / "guild.yml").write_text("\n".join(lines) + "\n")
        program = place.state / "bin" / "ssh"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {shlex.quote(place.endpoint)} "$@"\n')
        program.chmod(0o755)

    def push(self, place: Place) -> Steps:  # noqa: ARG002
        return ((self.program, "push", "--yes", "bench"),)

    def pull(self, place: Place) -> Steps:  # noqa: ARG002
        return ((self.program, "pull", "--yes", "bench"),)


class OneChannel(Tool):
    """The bytes of all files through a single channel of OpenSSH, from a file into a file."""

    name = "one channel"
    needs = ("ssh",)
    version = ("-V",)
    bound = True

    def push(self, place: Place) -> Steps:
        line = 'find runs -type f -exec cat {} + | "$1" -F "$2" "$3" "$4"'
        return _shell(line, self.program, place.endpoint, ALIAS, f"cat > {shlex.quote(place.far + '/bytes')}")

    def pull(self, place: Place) -> Steps:
        line = '"$1" -F "$2" "$3" "$4" > bytes'
        return _shell(line, self.program, place.endpoint, ALIAS, f"cat {shlex.quote(place.far + '/bytes')}")


_KINDS: tuple[type[Tool], ...] = (
    SshGuildsync, Rsync, DurableRsync, TarZstd, Scp, SftpRestic, Borg, SftpRclone, GuildAi,
)  # fmt: skip
SSH_PEERS = {kind.name: kind for kind in _KINDS}
