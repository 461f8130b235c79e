"""The tools that mirror continuously: what each needs written down, and commands that go on until they are stopped."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from scripts.benchmarks.sites import ALIAS
from scripts.benchmarks.tools import Guildsync, Place
from tests.kit.events import event_bytes, scalar_event
from tests.kit.servers import free_ports
from tests.kit.trees import noise, run_ids, write_run

FOLDER, SSH, S3 = "folder", "ssh", "s3"


def keys_of(kind: str, place: Place) -> Mapping[str, str]:
    """What guildsync's configuration says of the far end."""
    return {
        FOLDER: {"type": "local", "path": place.far},
        SSH: {"type": "ssh", "host": ALIAS, "guild-home": place.far},
        S3: {"type": "s3", "bucket": place.far, "root": "store", "endpoint-url": place.endpoint},
    }[kind]


@dataclass(frozen=True)
class Mirror:
    """One program. `place` is where it works, `kind` what is at the far end; `start` writes what it needs and answers
    the commands that are to run side by side, in `place.home`."""

    program: str

    name: ClassVar[str] = ""
    kinds: ClassVar[Sequence[str]] = (FOLDER, SSH)
    needs: ClassVar[Sequence[str]] = ()
    back: ClassVar[bool] = False
    """What is written at the far end comes here."""

    def environment(self, place: Place) -> Mapping[str, str]:
        return place.environment()

    def start(self, place: Place, kind: str) -> list[Sequence[str]]:
        raise NotImplementedError

    def publish(self, home: Path, place: Place, kind: str) -> Sequence[Sequence[str]]:  # noqa: ARG002
        """Commands that bring what was written in `home` to where it is mirrored from; none where that is there."""
        return ()


class Watch(Mirror):
    """This project, as it lies here."""

    name = "guildsync push --watch"
    kinds = (FOLDER, SSH, S3)
    _verb = "push"

    def environment(self, place: Place) -> Mapping[str, str]:
        return Guildsync(self.program).environment(place)

    def start(self, place: Place, kind: str) -> list[Sequence[str]]:
        return list(self._tool(place, kind).watch(place, self._verb))

    def _tool(self, place: Place, kind: str) -> Guildsync:
        tool = Guildsync(self.program)
        tool.write(place, keys_of(kind, place))
        return tool


class WatchBack(Watch):
    """The other way: a run that is written there; or that somebody pushes, where that is a bucket."""

    name = "guildsync pull --watch"
    back = True
    _verb = "pull"

    def publish(self, home: Path, place: Place, kind: str) -> Sequence[Sequence[str]]:
        return list(self._tool(place, kind).push(replace(place, home=home))) if kind == S3 else ()


class Lsyncd(Mirror):
    """rsync, started by inotify, without delay; over the live connection."""

    name = "lsyncd+rsync, no delay"
    needs = ("lsyncd", "rsync")
    _delay = 0

    def start(self, place: Place, kind: str) -> list[Sequence[str]]:
        far = place.far if kind == FOLDER else f"{ALIAS}:{place.far}"
        shell = "" if kind == FOLDER else f', rsh = "ssh -F {place.endpoint}"'
        config = place.state / "lsyncd.lua"
        config.write_text(
            "settings { nodaemon = true }\n"
            f'sync {{ default.rsync, source = "{place.home}/runs", target = "{far}/runs", delay = {self._delay}, '
            f"delete = false, rsync = {{ archive = true{shell} }} }}\n"
        )
        return [(self.program, "-nodaemon", str(config))]


class LsyncdDelayed(Lsyncd):
    """Changes of a second are sent together."""

    name = "lsyncd+rsync, 1 s delay"
    _delay = 1


class Unison(Mirror):
    """Looks every second."""

    name = "unison -repeat 1"
    needs = ("unison",)

    def environment(self, place: Place) -> Mapping[str, str]:
        return {**place.environment(), "UNISON": str(place.state / "unison")}

    def start(self, place: Place, kind: str) -> list[Sequence[str]]:
        far = place.far if kind == FOLDER else f"ssh://{ALIAS}/{place.far}"
        words = ("-batch", "-auto", "-repeat", "1", "-path", "runs")
        shell = () if kind == FOLDER else ("-sshargs", f"-F {shlex.quote(place.endpoint)}")
        return [(self.program, str(place.home), far, *words, *shell)]


class Syncthing(Mirror):
    """Two on loopback, that know each other and nobody else, with the shortest delay of their watchers: a second."""

    name = "syncthing"
    kinds = (FOLDER,)
    needs = ("syncthing",)

    def start(self, place: Place, kind: str) -> list[Sequence[str]]:  # noqa: ARG002 (one kind)
        tops = {place.state / "near": place.home / "runs", place.state / "far": Path(place.far) / "runs"}
        ports = free_ports(2 * len(tops))
        ids = [_identity(self.program, state, place.environment()) for state in tops]
        devices = "".join(
            f'<device id="{id_}" name="{id_[:7]}"><address>tcp://127.0.0.1:{port}</address></device>'
            for id_, port in zip(ids, ports, strict=False)
        )
        for (state, top), port, gui in zip(tops.items(), ports, ports[2:], strict=False):
            top.mkdir(exist_ok=True)
            (top / ".stfolder").mkdir(exist_ok=True)
            (state / "config.xml").write_text(_SYNCTHING.format(top=top, devices=devices, port=port, gui=gui, a=ids))
        return [(self.program, "serve", f"--home={state}", "--no-browser", "--no-restart") for state in tops]


_SYNCTHING = """<configuration version="35">
<folder id="runs" path="{top}" type="sendreceive" rescanIntervalS="60" fsWatcherEnabled="true" fsWatcherDelayS="1">
<device id="{a[0]}"/><device id="{a[1]}"/></folder>
{devices}
<gui enabled="false"><address>127.0.0.1:{gui}</address></gui>
<options><listenAddress>tcp://127.0.0.1:{port}</listenAddress><globalAnnounceEnabled>false</globalAnnounceEnabled>
<localAnnounceEnabled>false</localAnnounceEnabled><relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled>
<startBrowser>false</startBrowser><urAccepted>-1</urAccepted><reconnectionIntervalS>1</reconnectionIntervalS>
<autoUpgradeIntervalH>0</autoUpgradeIntervalH><crashReportingEnabled>false</crashReportingEnabled></options>
</configuration>
"""


def _identity(program: str, state: Path, environment: Mapping[str, str]) -> str:
    """The id of a new device."""
    argv = [program, "generate", f"--home={state}", "--no-default-folder", "--skip-port-probing"]
    subprocess.run(argv, env=dict(environment), capture_output=True, check=True, timeout=60)
    found = re.search(r'<device id="([A-Z0-9-]{63})"', (state / "config.xml").read_text())
    if found is None:
        raise RuntimeError("syncthing made no identity")
    return found[1]


MIRRORS: Mapping[str, type[Mirror]] = {
    kind.name: kind for kind in (Watch, WatchBack, Lsyncd, LsyncdDelayed, Unison, Syncthing)
}


def live_run(home: Path) -> Path:
    """A run that runs as long as this process does, beside twenty that have ended; answers its event file."""
    *ended, live = run_ids(21)
    for number, run in enumerate(ended):
        write_run(home, run, {f"src/{each}.py": noise(number, 2000) for each in range(20)})
    top = write_run(home, live, {"train.py": b"print()\n"}, exit_status=None, stopped=None)
    events = top / ".guild" / "events.out.tfevents.1700000000.host"
    events.write_bytes(event_bytes(scalar_event("loss", 1.0, 0)))
    (top / ".guild" / "LOCK").write_text(str(os.getpid()))
    shutil.rmtree(home / "trash", ignore_errors=True)
    return events
