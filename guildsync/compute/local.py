"""Processes on the machine where this runs, and what it is: its Python, its GPUs, whether it ends what people start."""

from __future__ import annotations

import configparser
import glob
import os
import platform
import subprocess
from typing import Iterator, List, Tuple

from guildsync.model.ports import Step

_LOGIND = ("/etc/systemd/logind.conf", "/etc/systemd/logind.conf.d/*.conf", "/usr/lib/systemd/logind.conf.d/*.conf")
_LINGER = "/var/lib/systemd/linger"
_DEADLINE = 10.0


def steps() -> Iterator[Step]:
    """What training there has to know: none of it fails a check."""
    yield Step("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    found = gpus()
    yield Step("gpus", True, ", ".join(found) or "none that nvidia-smi shows")
    yield _logout()


def gpus() -> List[str]:
    """As nvidia-smi names them; none where there is none, or it does not answer."""
    argv = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        ran = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_DEADLINE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in ran.stdout.decode(errors="replace").splitlines() if line.strip()][:64]


def _logout() -> Step:
    kills, file = _kills_at_logout()
    if not kills:
        return Step("log-out", True, "processes go on after it")
    user = str(os.environ.get("USER") or os.environ.get("LOGNAME") or os.geteuid())
    if os.path.exists(os.path.join(_LINGER, user)):
        return Step("log-out", True, "processes go on after it (lingering is on)")
    hint = f"have `loginctl enable-linger {user}` run there, else training ends with the connection"
    return Step("log-out", True, f"processes are killed at log-out ({file})", hint)


def _kills_at_logout() -> Tuple[bool, str]:
    """Does logind end what a user leaves behind, and which file says so? The last that says anything counts."""
    said, where = False, ""
    for pattern in _LOGIND:
        for path in sorted(glob.glob(pattern)):
            parser = configparser.RawConfigParser(strict=False)
            try:
                parser.read(path, encoding="utf-8")
                if parser.has_option("Login", "KillUserProcesses"):
                    said, where = parser.getboolean("Login", "KillUserProcesses"), path
            except (OSError, ValueError, configparser.Error):
                continue
    return said, where
