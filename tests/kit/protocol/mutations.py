"""Rules that are switched off, one at a time, and what a search must find then."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from guildsync.model.manifest import Digest
from guildsync.store import checkpoint, gc
from guildsync.store.journal import Claim, Commit, Mark
from guildsync.store.mirrored import outdated
from guildsync.store.reading import Reading
from guildsync.store.view import View
from tests.kit.protocol.scopes import G1, G2, MIRROR, SCOPES, W1, H, R, U, X, apart, living, mirrored, people, purged
from tests.kit.protocol.world import Rules, Scope, merged


def _visible(view: View, version: str) -> bool:
    return version in view.living


def _any_condemned(view: View, _: Collection[str]) -> frozenset[Digest]:
    return view.facts.condemned - view.facts.dropped


def _none_repeated(_: View, __: Collection[Digest]) -> frozenset[Claim]:
    return frozenset()


class _AllSettled(View):
    def settled(self, version: str) -> bool:
        return version in self.living


def _below_any_head(view: View, stored: Mapping[str, float], now: float, keep: float) -> frozenset[str]:
    return gc.prunable(_AllSettled(view.facts), stored, now, keep)


def _forgets_purged(reading: Reading, commit: str, tables: Iterable[Digest]) -> Commit:
    whole = checkpoint.summary(reading, commit, tables)
    gone = whole.facts.purged
    versions = frozenset(version for version in whole.facts.versions if version.id not in gone)
    claims = frozenset(claim for claim in whole.facts.claims if claim.version not in gone)
    return replace(whole, facts=replace(whole.facts, versions=versions, claims=claims, purged=frozenset()))


def _forgets_dropped(reading: Reading, commit: str, tables: Iterable[Digest]) -> Commit:
    whole = checkpoint.summary(reading, commit, tables)
    gone = whole.facts.dropped
    adds = frozenset(fact for fact in whole.facts.adds if fact.name not in gone)
    left = replace(whole.facts, adds=adds, condemned=whole.facts.condemned - gone, dropped=frozenset())
    return replace(whole, facts=left)


def _keeps_values(reading: Reading, commit: str, tables: Iterable[Digest]) -> Commit:
    whole = checkpoint.summary(reading, commit, tables)
    last = sorted(whole.facts.marks, key=lambda mark: (mark.sequence, mark.commit))[-1:]
    marks = frozenset(Mark(mark.run, mark.value, whole.sequence, commit) for mark in last)
    return replace(whole, facts=replace(whole.facts, marks=marks))


def _with_whole_runs(commits: Sequence[Commit]) -> View:
    facts = merged(commits).facts
    runs = {version.partition("/")[2] for version in facts.purged}
    return View(replace(facts, purged=frozenset(v.id for v in facts.versions if v.run in runs) | facts.purged))


def _above_the_last_checkpoint(commits: Sequence[Commit]) -> View:
    last = max((commit for commit in commits if commit.sums), key=lambda commit: commit.sequence, default=None)
    if last is None:
        return merged(commits)
    return merged([each for each in commits if each.sequence > last.sequence or each.name in (last.name, *last.sums)])


@dataclass(frozen=True)
class Mutation:
    """`why`: how the sentence begins that says what is wrong."""

    scope: Scope
    rules: Rules
    why: str


def _head_as_well(view: View, run: str) -> frozenset[str]:
    return frozenset(version.id for version in view.versions(run) if version.id in view.living)


def _but_for_the_newest(view: View, *_: object) -> frozenset[str]:
    return outdated(_AllSettled(view.facts), "R0", 1)


_PAIR = purged(W1, G1)
_MERGED, _MIRRORED = apart(W1, G1), mirrored(MIRROR, G1, late=True)
_SUMMED = purged(W1, G1, X, late=True, copies=True)
_CONFUSED = "I2: R does not see"

MUTATIONS = {
    "W1: what is to be seen is up to date": Mutation(purged(W1, G1, U, late=True), Rules(up_to_date=_visible), "I2"),
    "W4: nothing is read after the commit": Mutation(_PAIR, Rules(proves=False), "I2"),
    "G2: nothing is condemned before": Mutation(_PAIR, Rules(condemns=False), "I2"),
    "G2: nothing is read after condemning": Mutation(_PAIR, Rules(reads_again=False), "I2"),
    "G2: what the last LIST shows first is dropped": Mutation(SCOPES["P5"], Rules(droppable=_any_condemned), "I2"),
    "G4: nobody says what is dropped": Mutation(_PAIR, Rules(drops="never"), "I1"),
    "G4: it is said after the DELETE": Mutation(_PAIR, Rules(drops="after"), "I1"),
    "G4: claims are not repeated": Mutation(
        living(G1, G2, R, paged=True, any_pack=True), Rules(repeated=_none_repeated), _CONFUSED
    ),
    "G4: they are not, and come before the drop": Mutation(
        living(G1, R, paged=True, any_pack=True), Rules(repeated=_none_repeated, rescues_apart=True), _CONFUSED
    ),
    "H1: what is below any head is pruned": Mutation(SCOPES["C1"], Rules(prunable=_below_any_head), "I2"),
    "H1: a mirror gives up its last version, too": Mutation(_MIRRORED, Rules(outdated=_head_as_well), "I2"),
    "H1: what a mirror keeps is below any head": Mutation(
        mirrored(MIRROR, G1, H, versions=1, late=True), Rules(prunable=_but_for_the_newest), "I2"
    ),
    "merge, W4: nothing is read after the commit": Mutation(_MERGED, Rules(proves=False), "I2"),
    "merge, G2: nothing is condemned before": Mutation(_MERGED, Rules(condemns=False), "I2"),
    "merge, G2: nothing is read after condemning": Mutation(_MERGED, Rules(reads_again=False), "I2"),
    "merge, G2: what the last LIST shows first is dropped": Mutation(
        apart(W1, G1, G2, paged=True), Rules(droppable=_any_condemned), "I2"
    ),
    "merge, G3: nothing is copied": Mutation(_MERGED, Rules(rescues=False), "I2"),
    "merge, G4: nobody says what is dropped": Mutation(_MERGED, Rules(drops="never"), "I1"),
    "merge, G4: it is said after the DELETE": Mutation(_MERGED, Rules(drops="after"), "I1"),
    "merge, G4: they are not, and come before the drop": Mutation(
        apart(G1, R, paged=True), Rules(repeated=_none_repeated, rescues_apart=True), _CONFUSED
    ),
    "K1: what was purged is forgotten": Mutation(_SUMMED, Rules(summary=_forgets_purged), "I6"),
    "K1: what was dropped is forgotten": Mutation(_SUMMED, Rules(summary=_forgets_dropped), "I1"),
    "K1: marks get the checkpoint's stamp": Mutation(
        people("delete", "restore", "delete", "x"), Rules(summary=_keeps_values), "I4"
    ),
    "K2: entries are deleted before": Mutation(living(W1, X, late=True), Rules(deletes_first=True), "I2"),
    "K2: a late entry of a low sequence is not joined": Mutation(
        living(W1, X, late=True), Rules(merge=_above_the_last_checkpoint), "I2"
    ),
    "E1: a push reveals": Mutation(people("delete", "push"), Rules(reveals=True), "I4"),
    "U1: a purge names the run": Mutation(people("push", "purge"), Rules(merge=_with_whole_runs), "I2"),
}
