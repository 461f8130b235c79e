"""The objects of a store: found through the indices of packs, fetched by few ranged reads, put in packs."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Executor, Future

from guildsync.errors import Damaged
from guildsync.model.manifest import Digest
from guildsync.model.ports import Cache
from guildsync.store.fs import Absent, Files
from guildsync.store.journal import PackFact
from guildsync.store.pack import Packer, Row, SealedPack, coalesce, index_range, pack_path, read_index, unpack
from guildsync.store.view import View

CACHED = "index"
IN_FLIGHT = 4

Index = dict[Digest, Row]
Found = tuple[str, Row]
"""The name of a pack and a row of its index."""


class Objects:
    """Where objects lie. Indices are immutable, so each is fetched once; all that is read is verified."""

    def __init__(self, files: Files, cache: Cache, pool: Executor) -> None:
        self._files, self._cache, self._pool = files, cache, pool
        self._indices: dict[str, Index] = {}

    def load(self, facts: Iterable[PackFact]) -> dict[str, Damaged | Absent]:
        """Fetch the indices of packs that are not known yet; those that cannot be had come back with the reason."""
        wanted = [fact for fact in facts if fact.name not in self._indices]
        failed: dict[str, Damaged | Absent] = {}
        for fact, result in zip(wanted, self._pool.map(self._index, wanted), strict=True):
            if isinstance(result, dict):
                self._indices[fact.name] = result
            else:
                failed[fact.name] = result
        return failed

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

    def read(self, found: Iterable[Found]) -> Iterator[tuple[Found, bytes | Damaged | Absent]]:
        """Each of the objects, verified, or why it cannot be had; a few requests are always under way."""
        by_pack: dict[str, list[Row]] = {}
        for name, row in found:
            by_pack.setdefault(name, []).append(row)
        spans = ((name, span.start, span.stop, span.rows) for name in by_pack for span in coalesce(by_pack[name]))
        for (name, start, _, rows), future in self._ahead(spans):
            try:
                data = future.result()
            except Absent as exc:
                yield from (((name, row), exc) for row in rows)
                continue
            view = memoryview(data)
            for row in rows:
                try:
                    yield (name, row), unpack(row, view[row.offset - start : row.offset - start + row.stored])
                except Damaged as exc:
                    yield (name, row), exc

    def _ahead(
        self, spans: Iterator[tuple[str, int, int, tuple[Row, ...]]]
    ) -> Iterator[tuple[tuple[str, int, int, tuple[Row, ...]], Future[bytes]]]:
        under_way: deque[tuple[tuple[str, int, int, tuple[Row, ...]], Future[bytes]]] = deque()
        for span in spans:
            under_way.append((span, self._pool.submit(self._files.read, pack_path(span[0]), span[1], span[2])))
            if len(under_way) > IN_FLIGHT:
                yield under_way.popleft()
        yield from under_way

    def _index(self, fact: PackFact) -> Index | Damaged | Absent:
        try:
            cached = self._cache.load(CACHED, fact.name)
            if cached is not None:
                try:
                    return read_index(fact, cached)
                except Damaged:
                    pass  # the cache is only a cache
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


class Stage:
    """Objects on their way into new packs. A few uploads are under way; none is relied on before it is confirmed."""

    def __init__(self, files: Files, objects: Objects, pool: Executor) -> None:
        self._files, self._objects, self._pool = files, objects, pool
        self._packer = Packer()
        self._uploads: deque[Future[PackFact]] = deque()
        self._digests: set[Digest] = set()
        self._confirmed: dict[str, PackFact] = {}
        self._own: set[str] = set()

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._digests

    def add(self, digest: Digest, data: bytes) -> None:
        """Keep an object whose digest the caller has verified."""
        if digest in self._digests:
            return
        self._digests.add(digest)
        self._packer.add(digest, data)
        if self._packer.full:
            self._send()

    def flush(self) -> dict[str, PackFact]:
        """Send what is left and wait until all packs are confirmed; answers every pack since `forget`."""
        if self._packer.objects:
            self._send()
        self._wait(0)
        return dict(self._confirmed)

    def forget(self, lost: View) -> None:
        """The packs are in the journal. What lies in one that is condemned must be staged anew if it is wanted."""
        bad = lost.facts.condemned | lost.facts.dropped
        for name in bad & self._own:
            self._digests -= self._objects.index(name).keys()
        self._confirmed.clear()

    def _send(self) -> None:
        sealed = self._packer.seal()
        self._packer = Packer()
        self._uploads.append(self._pool.submit(self._put, sealed))
        self._wait(IN_FLIGHT - 1)

    def _put(self, sealed: SealedPack) -> PackFact:
        self._files.put(pack_path(sealed.fact.name), sealed.data)
        self._objects.keep(sealed)
        return sealed.fact

    def _wait(self, most: int) -> None:
        while len(self._uploads) > most:
            fact = self._uploads.popleft().result()
            self._confirmed[fact.name] = fact
            self._own.add(fact.name)
