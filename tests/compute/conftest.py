"""A run directory whose processes end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.trained import Trained
from tests.kit.trees import run_ids


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[Callable[[], Trained]]:
    made: list[Trained] = []
    ids = iter(run_ids(200))

    def make() -> Trained:
        made.append(Trained(tmp_path / "runs" / next(ids)))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture
def run(new_run: Callable[[], Trained]) -> Trained:
    return new_run()
