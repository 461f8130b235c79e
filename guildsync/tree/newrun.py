"""A run that was never anywhere: its directory as Guild AI lays it out, waiting to be started."""

from __future__ import annotations

import os
from typing import Callable, Mapping

from guildsync.model.run import RunId, checked_run_id
from guildsync.tree.home import Home


def write_run(
    home: Home, run: RunId, attributes: Mapping[str, bytes], opref: bytes, fill: Callable[[bytes], None]
) -> None:
    """`fill` puts the run's own files into its directory; `opref`, which makes it a run for Guild, comes last."""
    home.prepare()
    path = os.path.join(home.runs, os.fsencode(checked_run_id(run)))
    os.mkdir(path, 0o777)
    fill(path)
    guild = os.path.join(path, b".guild")
    os.makedirs(os.path.join(guild, b"attrs"))
    files = {os.path.join(b"attrs", os.fsencode(name)): data for name, data in attributes.items()}
    for name, data in {**files, b"STAGED": b"", b"opref": opref}.items():
        with open(os.path.join(guild, name), "xb") as file:
            file.write(data)
