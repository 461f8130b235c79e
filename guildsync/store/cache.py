"""No cache: what a fresh client has."""

from __future__ import annotations


class NoCache:
    """Keeps nothing (see `model.ports.Cache`)."""

    def load(self, kind: str, name: str) -> bytes | None:  # noqa: ARG002 - the Protocol's names
        return None

    def keep(self, kind: str, name: str, data: bytes) -> None:
        pass

    def names(self, kind: str) -> list[str]:  # noqa: ARG002
        return []

    def drop(self, kind: str, name: str) -> None:
        pass
