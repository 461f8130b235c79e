"""The first code that runs on a host: finds the modules that travel, or unpacks them, and starts the agent.

It comes over stdin as text and is executed before anything of guildsync is there: standard library alone, and nothing
that an older Python could not say that it is too old.
"""

import errno
import json
import os
import shutil
import stat
import struct
import sys
import time
import uuid
import zlib
from typing import Any

MARK = b"\0guildsync-agent\0"
"""Comes before the first frame: whatever start-up files of a shell print stands before it."""
NEEDED = (3, 8)
UNUSED = 30 * 86400
"""Seconds until modules that nobody uses are removed."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAX_BUNDLE = 16 << 20


class Refusal(Exception):
    """Why the agent cannot be started: the name of an error, what happened, what to do."""


def load() -> None:
    """Reads what is wanted (u32 length, JSON; then the packed modules, where they come along), and runs the agent."""
    try:
        if sys.version_info < NEEDED:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            hint = "set the remote's `python` to a newer one, or use `layout: store`, which needs none"
            raise Refusal("NotFound", f"Python there is {version}; 3.8 or newer is needed", hint)
        wanted = json.loads(_read(struct.unpack(">I", _read(4))[0]))
        place = modules(wanted, _read(min(int(wanted["bundle"]), _MAX_BUNDLE)))
    except Refusal as exc:
        _say({"error": exc.args[0], "message": exc.args[1], "hint": exc.args[2]})
        return
    except OSError as exc:
        where = os.fsdecode(exc.filename or "the home there")
        message = f"cannot use {where}: {exc.strerror}"
        if exc.errno in _FULL:
            _say({"error": "NoRoom", "message": message, "hint": "make room there"})
        else:
            _say({"error": "Refused", "message": message, "hint": None})
        return
    if place is None:
        _say({"error": "GuildsyncError", "message": "the modules are not there", "hint": None, "need": True})
        return
    sys.path.insert(0, place)
    from guildsync.agent.server import main

    os.write(1, MARK)
    main(wanted)


def modules(wanted: dict[str, Any], packed: bytes) -> Any:
    """The directory of the modules that `wanted` names by digest; None where they are not there and do not come."""
    umask = os.umask(0o077)
    try:
        state = os.path.join(os.path.abspath(os.path.expanduser(wanted["home"])), ".guildsync")
        top = os.path.join(state, "agent")
        for path in (os.path.dirname(state), state, top):
            _own_directory(path, path != os.path.dirname(state))
        place = os.path.join(top, _name(wanted["digest"]))
        if not os.path.isdir(place):
            if not packed:
                return None
            _unpack(packed, top, place)
        _own_directory(place, True)
        _remove_unused(top)
        os.utime(place)
        return place
    finally:
        os.umask(umask)


def _own_directory(path: str, private: bool) -> None:
    """Made where it is not there; where somebody else could change what lies in it, it is not used."""
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        pass
    info = os.lstat(path) if private else os.stat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise Refusal("Refused", f"{path} is not a directory of yours", "use a home of your own: set `guild-home`")
    if private and info.st_mode & 0o077:
        os.chmod(path, 0o700)


def _name(digest: str) -> str:
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise Refusal("Usage", "the modules have no proper digest", None)
    return digest


def _unpack(packed: bytes, top: str, place: str) -> None:
    """Under another name first: whoever finds `place` finds all of it."""
    made = os.path.join(top, "new." + uuid.uuid4().hex)
    os.mkdir(made, 0o700)
    try:
        for name, text in json.loads(zlib.decompress(packed)).items():
            path = os.path.join(made, *name.split("/"))
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        os.rename(made, place)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        if not os.path.isdir(place):  # else another was quicker
            raise


def _remove_unused(top: str) -> None:
    for name in os.listdir(top):
        path = os.path.join(top, name)
        try:
            if os.lstat(path).st_mtime < time.time() - UNUSED:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # another was quicker


def _read(size: int) -> bytes:
    """Exactly so many bytes of stdin, unbuffered: what follows is the agent's."""
    data = b""
    while len(data) < size:
        block = os.read(0, size - len(data))
        if not block:
            raise Refusal("Unreachable", "the connection ended before the agent was there", None)
        data += block
    return data


def _say(header: dict[str, Any]) -> None:
    """The agent's first frame, an error."""
    data = json.dumps(header).encode()
    os.write(1, MARK + struct.pack(">II", len(data), 0) + data)
