"""Packs: many records in one object, with what is in them at its end."""

from __future__ import annotations

from contextlib import ExitStack

from blake3 import blake3

from grit_runtime.errors import DamagedError
from grit_runtime.host import process
from grit_runtime.model import stored
from grit_runtime.model.stored import Chunk
from grit_runtime.store import records
from grit_runtime.wire import pack as wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from grit_runtime.store.backend import Backend
    from grit_runtime.store.keys import DataKey
    from grit_runtime.store.levels import Levels
    from grit_runtime.store.listed import Stored

_CONTENTS_LIMIT_BYTES = 16 << 20


class OpenPack:
    """A pack that one thread writes; in the store when the block ends, unless it raises.

    Nothing is written if nothing is added.
    """

    def __init__(self, store: Backend, prefix: str, key: DataKey | None, levels: Levels) -> None:
        self.name = prefix + process.new_token()
        self.size_bytes = 0
        self._store = store
        self._key = key
        self._levels = levels
        self._chunks: list[Chunk] = []
        self._taken_bytes = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._chunks:
            self._write_contents()
        with self._levels.writing():
            self._stack.__exit__(kind, error, trace)
        self._levels.taken(self.size_bytes - self._taken_bytes)

    def add(self, data: memoryview, digest: bytes, pack: int) -> Chunk:
        """Write a chunk, in the *pack* of that number in the index."""
        if not self._chunks:
            self._file = self._stack.enter_context(self._store.writing(self.name))
        packed = records.packed(data, self._levels.best())
        self._levels.packed(packed.level, len(data), packed.size_bytes, packed.seconds)
        parts = records.encode(packed, digest, key=self._key, bound_to=digest)
        chunk = Chunk(pack, self.size_bytes, sum(map(len, parts)), digest)
        with self._levels.writing():
            taken_bytes = sum(map(self._file.write, parts))
        self._levels.taken(taken_bytes)
        self._taken_bytes += taken_bytes
        self._chunks.append(chunk)
        self.size_bytes += chunk.record_bytes
        return chunk

    def _write_contents(self) -> None:
        contents = stored.dump_contents(self._chunks)
        packed = records.packed(contents, level=1)
        digest = blake3(contents).digest()
        for part in records.encode(packed, digest, key=self._key, bound_to=wire.CONTENTS):
            self._file.write(part)
        self._file.write(wire.trailer(self.size_bytes))


def read_contents(store: Backend, pack: Stored, key: DataKey | None) -> list[Chunk]:
    """What is in a pack; DamagedError if it does not end as one."""
    end = pack.size_bytes - wire.TRAILER_BYTES
    start = wire.parse_trailer(store.read(pack.name, max(end, 0)), pack.size_bytes)
    if end - start > _CONTENTS_LIMIT_BYTES:
        raise DamagedError(f"{pack.name}: its contents have {end - start} bytes")
    record = store.read(pack.name, start, end - start)
    data = records.decode(
        record, None, max_bytes=_CONTENTS_LIMIT_BYTES, key=key, bound_to=wire.CONTENTS
    )
    return stored.parse_contents(bytes(data))
