"""The objects of a store: found through the indices of packs, fetched by few ranged reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Executor, Future

from guildsync.errors import Damaged
from guildsync.model.manifest import Digest
from guildsync.model.ports import Cache
from guildsync.store.checkpoint import decode_table, table_path
from guildsync.store.fs import Absent, Files
from guildsync.store.journal import PackFact
from guildsync.store.pack import Row, SealedPack, Span, coalesce, index_range, pack_path, read_index, unpack

CACHED = "index"
FEW = 8
"""So many indices are read from their packs without a look at index objects."""

Index = dict[Digest, Row]
Found = tuple[str, Row]
"""The name of a pack and a row of its index."""
Answer = tuple[Found, bytes | Damaged | Absent]


class Objects:
    """Where objects lie. Indices are immutable, so each is fetched once; all that is read is verified."""

    def __init__(self, files: Files, cache: Cache, pool: Executor, jobs: int) -> None:
        """`jobs`: reads of packs at a time, on the threads of `pool`."""
        self._files, self._cache, self._pool, self._jobs = files, cache, pool, jobs
        self._indices: dict[str, Index] = {}
        self._earlier: set[str] | None = None
        self._tables: set[str] = set()
        self._tabled: dict[Digest, bytes] = {}

    def load(self, facts: Iterable[PackFact], tables: Collection[Digest] = ()) -> dict[str, Damaged | Absent]:
        """Fetch the indices of packs that are not known yet; those that cannot be had come back with the reason. Many
        come out of the index objects `tables`; one of these that cannot be had is no loss."""
        unknown = [fact for fact in facts if fact.name not in self._indices]
        wanted = []
        for fact, index in zip(unknown, self._pool.map(self._cached, unknown), strict=True):
            if index is not None:
                self._indices[fact.name] = index
            else:
                wanted.append(fact)
        if len(wanted) > max(FEW, len(tables)):
            self._fetch_tables(tables)
        failed: dict[str, Damaged | Absent] = {}
        for fact, result in zip(wanted, self._pool.map(self._index, wanted), strict=True):
            if isinstance(result, dict):
                self._indices[fact.name] = result
            else:
                failed[fact.name] = result
        return failed

    def load_cached(self, facts: Iterable[PackFact]) -> None:
        """Load the indices that are cached, without a request."""
        for fact in facts:
            index = self._indices.get(fact.name) or self._cached(fact)
            if index is not None:
                self._indices[fact.name] = index

    def is_there(self, fact: PackFact) -> bool:
        """Does the pack lie in the store, with its index? One request."""
        try:
            read_index(fact, self._files.read(pack_path(fact.name), *index_range(fact)))
        except (Damaged, Absent):
            return False
        return True

    def find(
        self, digests: Iterable[Digest], packs: Iterable[str], tried: Collection[tuple[str, Digest]] = ()
    ) -> dict[Digest, Found]:
        """Each object in the first of these packs that has it, as far as their indices are loaded; `tried` are
        (pack, object) where it was looked for in vain."""
        left = set(digests)
        found: dict[Digest, Found] = {}
        for name in packs:
            index = self.index(name)
            here = {digest for digest in left & index.keys() if (name, digest) not in tried}
            found.update((digest, (name, index[digest])) for digest in here)
            left -= here
            if not left:
                break
        return found

    def index(self, pack: str) -> Index:
        """The loaded index of a pack; empty where it is not loaded."""
        return self._indices.get(pack, {})

    def forget(self, dropped: Collection[Digest]) -> None:
        """Of packs that were dropped nothing is known any more, nor kept, also not by those who came before."""
        if self._earlier is None:
            self._earlier = set(self._cache.names(CACHED))
        for name in [name for name in {*self._earlier, *self._indices} if name in dropped]:
            self._indices.pop(name, None)
            self._earlier.discard(name)
            self._cache.drop(CACHED, name)

    def read(self, found: Iterable[Found]) -> Iterator[Answer]:
        """Each of the objects, verified, or why it cannot be had; a few requests are always under way."""
        by_pack: dict[str, list[Row]] = {}
        for name, row in found:
            by_pack.setdefault(name, []).append(row)
        under_way: deque[Future[list[Answer]]] = deque()
        for name, rows in by_pack.items():
            for span in coalesce(rows):
                under_way.append(self._pool.submit(self._unpacked, name, span))
                if len(under_way) > self._jobs + 1:
                    yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()

    def _unpacked(self, name: str, span: Span) -> list[Answer]:
        try:
            view = memoryview(self._files.read(pack_path(name), span.start, span.stop))
        except Absent as exc:
            return [((name, row), exc) for row in span.rows]
        answers: list[Answer] = []
        for row in span.rows:
            start = row.offset - span.start
            try:
                answers.append(((name, row), unpack(row, view[start : start + row.stored])))
            except Damaged as exc:
                answers.append(((name, row), exc))
        return answers

    def _cached(self, fact: PackFact) -> Index | None:
        cached = self._cache.load(CACHED, fact.name)
        try:
            return None if cached is None else read_index(fact, cached)
        except Damaged:
            return None  # the cache is only a cache

    def _fetch_tables(self, names: Iterable[Digest]) -> None:
        new = [name for name in names if name not in self._tables]
        self._tables.update(new)
        for found in self._pool.map(self._table, new):
            self._tabled.update(found)

    def _table(self, name: Digest) -> dict[Digest, bytes]:
        try:
            return decode_table(name, self._files.get(table_path(name)))
        except (Damaged, Absent):
            return {}  # what the packs say themselves is what counts

    def _index(self, fact: PackFact) -> Index | Damaged | Absent:
        data = self._tabled.pop(fact.name, b"")
        try:
            try:
                index = read_index(fact, data)
            except Damaged:
                data = self._files.read(pack_path(fact.name), *index_range(fact))
                index = read_index(fact, data)
        except (Damaged, Absent) as exc:
            return exc
        self._cache.keep(CACHED, fact.name, data)
        return index

    def keep(self, sealed: SealedPack) -> None:
        """Remember the index of a pack of our own."""
        self._indices[sealed.fact.name] = {row.digest: row for row in sealed.index}
        start, stop = index_range(sealed.fact)
        self._cache.keep(CACHED, sealed.fact.name, sealed.data[start:stop])
