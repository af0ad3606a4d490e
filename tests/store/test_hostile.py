"""What a store gives that was never pushed there: damage, forgery, other versions, other clocks."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime.cli import listing
from grit_runtime.config import Config
from grit_runtime.errors import (
    DamagedError,
    NewerFormatError,
    NotFoundError,
    StoreBusyError,
    TamperedError,
)
from grit_runtime.model import stored
from grit_runtime.proto import store_pb2
from grit_runtime.store import backend, catalog, collect, locks, packs, records
from grit_runtime.store import compression as zstd
from grit_runtime.store.catalog import Entry
from grit_runtime.store.directory import Directory
from grit_runtime.store.listed import Stored
from grit_runtime.store.pull import bring
from grit_runtime.store.pull import stored as source_of
from grit_runtime.store.push import push
from grit_runtime.store.records import Unlocked
from grit_runtime.wire import pack as wire
from tests.store import made

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from grit_runtime.store.backend import Backend

EXPECTED = (DamagedError, TamperedError, NewerFormatError)
MUTATIONS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert", "zero"]), st.binary()),
    min_size=1,
    max_size=4,
)


_INDEX = stored.dump_index(
    stored.Index(
        b"{}",
        b"",
        (stored.Pack("packs/a/b", stored.Key("id", b"wrapped")),),
        (stored.StoredFile("main/pages", (stored.Chunk(0, 0, 10, bytes(32)), stored.ZEROS)),),
    )
)


def mutated(data: bytes, mutations: list[tuple[float, str, bytes]]) -> bytes:
    changed = bytearray(data)
    for where, how, new in mutations:
        at = int(where * len(changed))
        if how == "cut":
            del changed[at:]
        elif how == "insert":
            changed[at:at] = new
        elif how == "zero":
            changed[at : at + 8] = bytes(len(changed[at : at + 8]))
        elif at < len(changed):
            changed[at] ^= 1 + len(new) % 255
    return bytes(changed)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """A store with one checkpoint."""
    root = tmp_path_factory.mktemp("hostile")
    store = backend.open_store(str(root / "store"), make=True)
    path = made.checkpoint(root / "a", "one", {"main/pages": made.text(6 * made.MIB)})
    push(str(path), store, None, made.ignore)
    return store


@given(mutations=MUTATIONS, sealing=st.sampled_from(["kept", "forged"]))
@settings(max_examples=300, deadline=None)
def test_an_index_of_any_bytes_is_read_or_refused(
    store: Backend, mutations: list[tuple[float, str, bytes]], sealing: str
) -> None:
    (entry,) = catalog.entries(store, "default", "one")
    data = mutated(store.read(entry.object_name), mutations)
    if sealing == "forged":  # by somebody who knows the format
        data = data[:-32] + blake3(data[:-32]).digest()
    other = Entry("default", "mutated", entry.sha256, 0.0)
    backend.put(store, other.object_name, data)
    for read in (lambda: catalog.read(store, other, Unlocked(None)), header_of(store, other)):
        with suppress(*EXPECTED):
            read()
    store.remove(other.object_name)


def header_of(store: Backend, entry: Entry) -> Callable[[], object]:
    return lambda: catalog.read_header(store, entry)


@given(mutations=MUTATIONS)
@settings(max_examples=300, deadline=None)
def test_a_pack_of_any_bytes_is_read_or_refused(
    store: Backend, mutations: list[tuple[float, str, bytes]]
) -> None:
    (real,) = store.listed("packs/")
    data = mutated(store.read(real.name), mutations)
    name = "packs/mutated/one"
    backend.put(store, name, data)
    with suppress(*EXPECTED):
        packs.read_contents(store, Stored(name, len(data), 0.0), None)
    with suppress(*EXPECTED):
        records.decode(data, None, max_bytes=stored.CHUNK_BYTES, key=None, bound_to=b"")
    store.remove(name)


@given(
    data=st.binary() | st.builds(lambda m: mutated(_INDEX, m), MUTATIONS),
    decode=st.sampled_from([stored.parse_index, stored.parse_contents, stored.parse_header]),
)
@settings(max_examples=500, deadline=None)
def test_messages_of_any_bytes_are_read_or_refused(
    data: bytes, decode: Callable[[bytes], object]
) -> None:
    with suppress(*EXPECTED):
        decode(data)


@given(data=st.binary(max_size=100_000), max_bytes=st.integers(0, 200_000))
def test_a_sparse_chunk_of_any_bytes_is_read_or_refused(data: bytes, max_bytes: int) -> None:
    with suppress(DamagedError):
        size_bytes, runs, blocks = wire.parse_sparse_map(memoryview(data), max_bytes)
        assert size_bytes <= max_bytes
        assert all(start < end <= size_bytes for start, end in runs)
        assert sum(end - start for start, end in runs) == len(blocks)


# In a process of its own, whose memory is limited.
BOMB = """
import resource, sys
from grit_runtime.errors import DamagedError
from grit_runtime.store import records
data = open(sys.argv[1], "rb").read()
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    records.decode(data, None, max_bytes=4 << 20, key=None, bound_to=b"")
except DamagedError as error:
    print(error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used, sep="; ")
"""


def test_a_record_that_would_be_a_gibibyte_takes_what_a_chunk_may(tmp_path: Path) -> None:
    bomb = zstd.compress(bytes(1 << 30), level=1)
    checksum = blake3(bomb).digest()[: wire.CHECKSUM_BYTES]
    head = wire.header(
        wire.Record(
            wire.ZSTD,
            is_encrypted=False,
            size_bytes=len(bomb),
            checksum=checksum,
            nonce=bytes(wire.NONCE_BYTES),
        )
    )
    (tmp_path / "bomb").write_bytes(head + bomb)
    done = subprocess.run(
        [sys.executable, "-c", BOMB, tmp_path / "bomb"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    said, used_kib = done.stdout.split("; ")
    assert said == f"a record holds more than {4 << 20} bytes"
    assert int(used_kib) < 32 << 10


def pull(store: Backend, entry: Entry, root: Path) -> None:
    with source_of(store, entry, None) as source:
        bring(source, entry, str(root), made.ignore)


def test_a_pack_that_is_shorter_than_its_index_says_is_damage(tmp_path: Path) -> None:
    store = backend.open_store(str(tmp_path / "store"), make=True)
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(20 * made.MIB)})
    push(str(path), store, None, made.ignore)
    entry = catalog.find(store, made.ROOT, "one")
    pack = tmp_path / "store" / store.listed("packs/")[0].name
    for size_bytes in (10 * made.MIB, 0):
        pack.write_bytes(pack.read_bytes()[:size_bytes])
        with pytest.raises(DamagedError, match=r"packs/.* at byte \d+, for main/pages"):
            pull(store, entry, tmp_path / "b")
    pack.unlink()
    with pytest.raises(DamagedError, match="push the checkpoint again"):
        pull(store, entry, tmp_path / "b")
    assert not (tmp_path / "b" / made.ROOT / "one").exists()


def test_a_later_version_is_not_guessed_at(tmp_path: Path) -> None:
    store = backend.open_store(str(tmp_path / "store"), make=True)
    header = store_pb2.Header(version=stored.VERSION + 1)
    entry = Entry("default", "one", "0" * 64, 0.0)
    catalog.write(store, entry, header, stored.Index(b"", b"", (), ()), None)
    for read in (lambda: catalog.read(store, entry, Unlocked(None)), header_of(store, entry)):
        with pytest.raises(NewerFormatError, match="upgrade grit here"):
            read()
    (row,) = listing.of(str(tmp_path / "store"), Config())
    assert row.state == "NewerFormat"
    backend.put(store, backend.FORMAT_NAME, json.dumps({"grit-store": 2}).encode())
    with pytest.raises(NewerFormatError, match="version is 2, this grit knows 1; upgrade grit"):
        backend.open_store(str(tmp_path / "store"))


def test_what_the_first_version_has_pushed_is_pulled(tmp_path: Path) -> None:
    store = backend.open_store(str(tmp_path / "store"), make=True)
    path = made.checkpoint(
        tmp_path / "a",
        "one",
        {"main/pages": made.noise(6 * made.MIB, 1), "main/text": made.text(made.MIB)},
    )
    entry = push(str(path), store, None, made.ignore).entry
    header = catalog.read_header(store, entry)
    header.version = 1
    index = catalog.read(store, entry, Unlocked(None))
    store.remove(entry.object_name)
    catalog.write(store, entry, header, index, None)
    pull(store, entry, tmp_path / "b")
    assert made.content(tmp_path / "b" / made.ROOT / "one") == made.content(path)


class AnHourAhead(Directory):
    """A store whose clock is not this node's."""

    def listed(self, prefix: str) -> list[Stored]:
        return [one._replace(written_s=one.written_s + 3600) for one in super().listed(prefix)]


def test_the_clock_of_this_node_does_not_matter(tmp_path: Path) -> None:
    store = AnHourAhead(str(tmp_path), make=True)
    busy = pytest.raises(StoreBusyError, match="in use: pull on node")
    with locks.shared(store, "pull"), busy, locks.alone(store, "collection"):
        pass
    with locks.alone(store, "collection"):
        pass


class Counting(Directory):
    """A store that knows what was read of it."""

    def __init__(self, path: str) -> None:
        super().__init__(path, make=False)
        self.reads: list[str] = []

    def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        self.reads.append(name)
        return super().read(name, offset, size_bytes)


def test_no_index_of_many_is_read_twice(tmp_path: Path) -> None:
    store = backend.open_store(str(tmp_path / "store"), make=True)
    for number in range(200):
        data = b"%d" % number
        path = made.checkpoint(tmp_path / "a", f"c{number}", {"main/pages": data})
        push(str(path), store, None, made.ignore)
    assert len(listing.of(str(tmp_path / "store"), Config())) == 200
    counting = Counting(str(tmp_path / "store"))
    gone = collect.collect(counting, Unlocked(None), collect.Kept())
    assert gone.packs == ()
    indexes = [name for name in counting.reads if name.startswith("checkpoints/")]
    assert len(indexes) == len(set(indexes)) == 200
    assert len(collect.collect(counting, Unlocked(None), collect.Kept(newest=1)).entries) == 199


def test_what_was_written_by_nobody_is_no_checkpoint(store: Backend) -> None:
    entry = Entry("default", "none", "0" * 64, 0.0)
    backend.put(store, entry.object_name, b"")
    with pytest.raises(DamagedError, match="it is cut"):
        catalog.read_header(store, entry)
    with pytest.raises(DamagedError):
        catalog.read(store, entry, Unlocked(None))
    store.remove(entry.object_name)
    with pytest.raises(NotFoundError):
        catalog.read(store, entry, Unlocked(None))
