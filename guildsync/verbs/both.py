"""One run as both sides of a sync have it, and what that says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from guildsync.errors import CONFLICT, MISSING, UNREADABLE, Problem
from guildsync.model.manifest import DIRECTORY, FILE, NOTHING, Digest, Entry, Manifest
from guildsync.model.plan import Change, Clash, Plan
from guildsync.model.ports import Base, Scan, Update
from guildsync.model.run import INCOMPLETE, NO_METADATA, Record, RunId, Scalars, Summary
from guildsync.verbs.deliver import Delivery


@dataclass(frozen=True)
class Intent:
    """What is to happen to one run, and the base both sides share once it has."""

    update: Update
    plan: Plan
    have: Manifest
    base: Base
    problems: tuple[Problem, ...]
    delivery: Delivery

    @property
    def only_grows(self) -> bool:
        """Do files that are there get more bytes, and is that all? Whether they begin as they did is not asked."""
        same_words = self.update.metadata == self.update.metadata_was
        return same_words and bool(self.plan.changes) and all(map(_grows, self.plan.changes))


@dataclass(frozen=True)
class Both:
    """One run as both sides list and scan it. `there` and `have` are None where the target does not have it."""

    record: Record
    want: Scan
    there: Record | None
    have: Scan | None
    base: Base | None
    told: Base | None

    @property
    def wanted(self) -> Manifest | None:
        """The source's manifest, also where it was left out because a base has it; None where it cannot be had."""
        return manifest_of(self.want, self.told, self.base)

    @property
    def untouched(self) -> bool:
        """Is everything on both sides as the base says? Then nothing needs to be decoded to know so."""
        base, have, there = self.base, self.have, self.there
        if base is None or have is None or there is None:
            return False
        same_files = self.want.content == have.content == base.content and have.settled
        same_words = self.record.metadata == there.metadata == base.metadata
        same_status = self.record.summary.status == there.summary.status == base.status
        plain = not (self.want.rivals or have.rivals or self.want.aim or self.want.problems)
        return same_files and same_words and same_status and plain


def _grows(change: Change) -> bool:
    have, want = change.have, change.want
    return have is not None and want is not None and have.kind == want.kind == FILE and have.size < want.size


def manifest_of(scan: Scan, *bases: Base | None) -> Manifest | None:
    """The manifest of a scan, also where it was left out because a base has it; None where it cannot be had."""
    if scan.manifest is not None:
        return scan.manifest
    return next((base.manifest for base in bases if base is not None and base.content == scan.content), None)


def same_as(scan: Scan, other: Manifest | None) -> Manifest | None:
    return other if other is not None and other.content == scan.content else None


def trusted(base: Base | None, *records: Record) -> Base | None:
    """No base where a side's history knows nothing of it: it went back in time, and what it lacks was not removed."""
    histories = [record.history for record in records if record.history is not None]
    return base if base is not None and all(history & base.seen for history in histories) else None


def as_far_as_read(record: Record, base: Base | None) -> Record:
    """What is there of the metadata and could not be read is as the base has it: nobody took it away."""
    shared = base.metadata if base is not None else NO_METADATA
    unread = {name: getattr(shared, name) for name in record.unread}
    return replace(record, metadata=replace(record.metadata, **unread)) if unread else record


def unread(record: Record) -> list[Problem]:
    detail = "it is no list that YAML can read: what the target has of it stays"
    return [Problem(record.run, f".guild/attrs/{name}".encode(), UNREADABLE, detail) for name in sorted(record.unread)]


def arrived(both: Both, manifest: Manifest) -> Base:
    """The base that a commit which never ended left behind."""
    base = both.base or Base.of(NOTHING, NO_METADATA, "")
    return Base.of(manifest, base.metadata, base.status, {*base.seen, both.want.content})


def status_news(both: Both) -> bool:
    """Does the source know of a status that the target does not? Where it has not changed here since the last sync,
    it is the target that knows better."""
    if both.there is None or both.record.summary.status == both.there.summary.status:
        return False
    return both.base is None or both.base.status != both.record.summary.status


def summary_of(both: Both, plan: Plan, result: Manifest) -> Summary:
    """The source's, unless the target keeps attributes of its own; sizes are those of what the run becomes."""
    kept = any(path.startswith(b".guild/attrs/") for path in plan.left)
    there = both.there.summary if both.there is not None else None
    summary = there if kept and there is not None else both.record.summary
    if summary is both.record.summary:
        summary = replace(summary, scalars=_scalars(both))
    status = both.record.summary.status
    if there is not None and there.status != INCOMPLETE and not status_news(both):
        status = there.status
    return replace(summary, status=status, size=result.size, files=result.files)


def _scalars(both: Both) -> Scalars:
    """Those that the source's files hold; a scan of what was known does not say them, but then the target does."""
    if both.want.scalars is not None:
        return both.want.scalars
    same = both.there is not None and both.have is not None and both.have.content == both.want.content
    return both.there.summary.scalars if both.there is not None and same else both.record.summary.scalars


def went_away(run: RunId) -> Problem:
    return Problem(run, None, MISSING, "it went away while it was being read")


def rivalry(run: RunId, rivals: Sequence[Digest]) -> list[Problem]:
    if not rivals:
        return []
    detail = f"{len(rivals) + 1} versions of it were stored by writers that did not see each other: sync with --resolve"
    return [Problem(run, None, CONFLICT, detail)]


def conflict(run: RunId, clash: Clash) -> Problem:
    both = f"at the source {_version(clash.want)}, at the target {_version(clash.have)}"
    return Problem(run, clash.path, CONFLICT, f"{both}: both changed since the last sync")


def _version(entry: Entry | None) -> str:
    if entry is None:
        return "removed"
    if entry.kind == FILE:
        return f"{entry.size} bytes {(entry.digest or '')[:12]} mode {entry.mode:o}"
    return f"a directory of mode {entry.mode:o}" if entry.kind == DIRECTORY else "a link"


def field_name(name: str) -> str:
    return name.partition(":")[0]
