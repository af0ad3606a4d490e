"""Another node's agent as a source of checkpoints, named by peer://NODE[:PORT]."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack, contextmanager
from itertools import groupby
from threading import Lock

from grit_runtime.agent import connection, helpers, identity
from grit_runtime.agent.identity import Identity
from grit_runtime.errors import (
    DamagedError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolError,
    TamperedError,
)
from grit_runtime.proto import peer_pb2
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import compression as zstd
from grit_runtime.store.catalog import Entry
from grit_runtime.store.receiving import Received
from grit_runtime.store.stored_source import rank
from grit_runtime.wire import peer as wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Self

    from grit_runtime.agent.connection import Connection
    from grit_runtime.config import Config
    from grit_runtime.model.manifest import File
    from grit_runtime.store.receiving import Apart, Into, Wanted

SCHEME = "peer://"
DEFAULT_PORT = 9465

# zstd's first level takes about 1.5 ms for a MiB on one core: only a slower link gains by it.
_SLOW_BYTES_PER_S = 200 << 20
_MEASURE_BYTES = 32 << 20
_RUN_CHUNKS = 8


class Address(NamedTuple):
    node: str
    host: str  # where it is looked for; its certificate is of the node all the same
    port: int

    @property
    def url(self) -> str:
        return f"{SCHEME}{self.node}:{self.port}"


def is_peer(url: str) -> bool:
    return url.startswith(SCHEME)


def address(url: str) -> Address:
    """What peer://NODE[:PORT] means; InvalidArgumentError for anything else."""
    node, colon, port = url.removeprefix(SCHEME).partition(":")
    if not is_peer(url) or (colon and not (port.isdecimal() and 0 < int(port) < 1 << 16)):
        raise InvalidArgumentError(f"peer {url[:200]!r}: expected peer://NODE or peer://NODE:PORT")
    return Address(identity.node_name(node), node, int(port) if colon else DEFAULT_PORT)


def own(config: Config) -> Identity:
    """This node's identity, from the directory that the configuration names."""
    return Identity(config.agent_dir)


def listing(peer: Address, own: Identity) -> list[peer_pb2.Listed]:
    """The checkpoints of the peer, by their names."""
    with _dialled(peer, own) as one:
        return list(one.ask(peer_pb2.Request(list=peer_pb2.List())).listing.checkpoints)


def find(
    peer: Address, own: Identity, namespace: str, name: str, sha256: str = ""
) -> tuple[Entry, int]:
    """The peer's checkpoint of that name, and the size of its files in bytes.

    NotFoundError if it has none, or not the one that *sha256* names.
    """
    for listed in listing(peer, own):
        one = listed.checkpoint
        if (one.namespace, one.name) == (namespace, name) and sha256 in {"", one.sha256}:
            return Entry(namespace, name, one.sha256, 0.0), listed.size_bytes
    meant = f" with manifest sha256:{sha256}" if sha256 else ""
    raise NotFoundError(
        f"peer {peer.node} has no checkpoint {namespace}/{name}{meant}; grit ls {peer.url} shows "
        "what it has"
    )


@contextmanager
def fetched(
    peer: Address, own: Identity, entry: Entry, port: int
) -> Iterator[Iterator[peer_pb2.Progress]]:
    """Have the peer pull a checkpoint from this node, whose agent is at *port*: how far it is.

    The last one is_done. The errors of the pull are raised here.
    """
    with _dialled(peer, own) as one:

        def progress() -> Iterator[peer_pb2.Progress]:
            fetch = peer_pb2.Fetch(checkpoint=_named(entry), port=port)
            one.send(peer_pb2.Request(fetch=fetch))
            while not (told := one.receive_reply().progress).is_done:
                yield told
            yield told

        yield progress()


class PeerSource:
    """A checkpoint of a peer, as a source; a connection for each thread that reads.

    TamperedError if its manifest is not the one that was asked for.
    """

    remedy = "bring the checkpoint from elsewhere, or take it again"

    def __init__(self, peer: Address, own: Identity, entry: Entry) -> None:
        self.name = f"peer {peer.node}"
        self._peer = peer
        self._own = own
        self._entry = entry
        self._checkpoint = _named(entry)
        self._lock = Lock()
        self._idle: list[tuple[Connection, bytearray]] = []
        self._stack = ExitStack()
        self._link = _Link()
        request = peer_pb2.Request(manifest=peer_pb2.Manifest(checkpoint=self._checkpoint))
        with _dialled(peer, own) as one:
            reply = one.ask(request, wire.MAX_MANIFEST_BYTES)
            manifest = bytearray(reply.body_bytes)
            one.read_into(memoryview(manifest))
        self.manifest = bytes(manifest)
        self.signature = reply.signature.signature
        if hashlib.sha256(self.manifest).hexdigest() != entry.sha256:
            raise TamperedError(
                f"{self.name}: checkpoint {entry.namespace}/{entry.name}: its manifest is not the "
                f"one with sha256:{entry.sha256}; {self.remedy}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def digests(self, _file: File) -> list[bytes]:
        return []

    def runs(self, wanted: list[Wanted]) -> Iterator[list[Wanted]]:
        """A few chunks of a file at a time, small files and images first.

        From one file to the next, since the kernel lets one thread at a time write to a file.
        """

        def place(one: Wanted) -> tuple[int, int, str]:
            return rank(one.file), one.number // _RUN_CHUNKS, one.file.path

        ordered = sorted(wanted, key=lambda one: (place(one), one.number))
        return (list(run) for _, run in groupby(ordered, key=place))

    def receive(self, run: Sequence[Wanted]) -> Iterator[Received]:
        """Each is asked for before the one before it is read: the peer never waits for our disk."""
        with self._connected() as (connected, buffer):
            connected.send(self._asked(run[0]))
            for number, wanted in enumerate(run, 1):
                for following in run[number : number + 1]:
                    connected.send(self._asked(following))
                with self._link.measured() as measured:
                    reply, view = self._chunk(connected, buffer, wanted)
                    measured.append(len(view))
                yield Received(wanted, self._decoded(reply.piece, view, wanted), len(view))

    @contextmanager
    def apart(self, into: Into, size_bytes: int) -> Iterator[Apart | None]:
        if not helpers.are_worth_having(size_bytes):
            yield None
            return
        source = {
            "peer": self._peer._asdict(),
            "identity": self._own.directory,
            "entry": self._entry._asdict(),
        }
        with helpers.receiver(source, into) as bring:
            yield bring

    def _asked(self, wanted: Wanted) -> peer_pb2.Request:
        chunk = peer_pb2.Chunk(
            checkpoint=self._checkpoint,
            path=wanted.file.path,
            number=wanted.number,
            may_compress=self._link.is_slow,
        )
        return peer_pb2.Request(chunk=chunk)

    def _chunk(
        self, connected: Connection, buffer: bytearray, wanted: Wanted
    ) -> tuple[peer_pb2.Reply, memoryview]:
        reply = connected.receive_reply(wanted.size_bytes)
        if not reply.HasField("piece"):
            raise ProtocolError(f"{self.name} has answered something else than a chunk")
        view = memoryview(buffer)[: reply.body_bytes]
        connected.read_into(view)
        return reply, view

    def _decoded(
        self, piece: peer_pb2.Piece, view: memoryview, wanted: Wanted
    ) -> bytes | memoryview | None:
        data: bytes | memoryview = view
        if piece.coding == peer_pb2.ZEROS:
            return None
        if piece.coding == peer_pb2.ZSTD:
            try:
                data = zstd.ZstdDecompressor().decompress(view, wanted.size_bytes + 1)
            except zstd.ZstdError as error:
                raise self._damaged(wanted, f"cannot be decompressed: {error}") from None
        if len(data) != wanted.size_bytes:
            raise self._damaged(wanted, f"has {len(data)} bytes, expected {wanted.size_bytes}")
        return data

    def _damaged(self, wanted: Wanted, what: str) -> DamagedError:
        where = f"{self.name}: {wanted.file.path} at byte {wanted.offset}"
        return DamagedError(f"{where}: the chunk {what}; {self.remedy}")

    @contextmanager
    def _connected(self) -> Iterator[tuple[Connection, bytearray]]:
        """A connection that no other thread uses meanwhile, and a buffer for a chunk."""
        with self._lock:
            one = self._idle.pop() if self._idle else None
        if one is None:
            dialled = _dialled(self._peer, self._own)
            with self._lock:
                one = self._stack.enter_context(dialled), bytearray(wire.MAX_BODY_BYTES)
        yield one
        with self._lock:
            self._idle.append(one)


class _Link:
    """How fast chunks come: several at a time count once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running = 0
        self._since_s = 0.0
        self._busy_s = 0.0
        self._moved_bytes = 0

    @property
    def is_slow(self) -> bool:
        """Whether compressing would be faster; not before enough has come to say so."""
        with self._lock:
            if self._moved_bytes < _MEASURE_BYTES or not self._busy_s:
                return False
            return self._moved_bytes / self._busy_s < _SLOW_BYTES_PER_S

    @contextmanager
    def measured(self) -> Iterator[list[int]]:
        """The block appends how many bytes it has received."""
        with self._lock:
            if not self._running:
                self._since_s = time.monotonic()
            self._running += 1
        moved: list[int] = []
        try:
            yield moved
        finally:
            with self._lock:
                now_s = time.monotonic()
                self._busy_s += now_s - self._since_s
                self._since_s = now_s
                self._running -= 1
                self._moved_bytes += sum(moved)


def _named(entry: Entry) -> peer_pb2.Checkpoint:
    return peer_pb2.Checkpoint(namespace=entry.namespace, name=entry.name, sha256=entry.sha256)


def _dialled(peer: Address, own: Identity) -> AbstractContextManager[Connection]:
    return connection.dialled(peer.node, peer.host, peer.port, own)
