"""What this node's checkpoints are read by other nodes through: a thread for each connection."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack, suppress
from threading import Lock, Thread

from grit_runtime import log
from grit_runtime.agent import connection
from grit_runtime.errors import (
    GritError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
    UnimplementedError,
    one_line,
    reason,
)
from grit_runtime.files import checkpoint_dir, chunks, confine, found
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import manifest as manifests
from grit_runtime.model import stored
from grit_runtime.model.annotations import checkpoint_name
from grit_runtime.proto import peer_pb2
from grit_runtime.store import compression as zstd
from grit_runtime.wire import peer as wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from grit_runtime.agent.connection import Connection
    from grit_runtime.agent.identity import Identity

    Fetch = Callable[[peer_pb2.Fetch, str, str], Iterable[peer_pb2.Progress]]

_MAX_CONNECTIONS = 64


def listening_at(port: int, host: str = "") -> socket.socket:
    """A socket that peers connect to, by IPv4 and IPv6 where there are both."""
    is_dual = not host and socket.has_dualstack_ipv6()
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6 if is_dual else socket.AF_INET,
        dualstack_ipv6=is_dual,
    )


class Server:
    """Serves the sealed checkpoints below a root for as long as its block lasts.

    *fetch* does what a peer asks for with a Fetch: it gets the message, the peer's name and its
    host.
    """

    def __init__(self, root: str, own: Identity, listening: socket.socket, *, fetch: Fetch) -> None:
        self._root = root
        self._own = own
        self._fetch = fetch
        self._lock = Lock()
        self._open: set[socket.socket] = set()
        self._is_closing = False
        self.sent_bytes = 0
        self._listening = listening
        self.port: int = listening.getsockname()[1]
        self._thread = Thread(target=self._accept, name="peers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_closing = True
            for sock in self._open:
                with suppress(OSError):  # the other side may have gone
                    sock.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):  # another process that accepts from it may have done so
            self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listening.accept()
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return  # it was shut down, maybe by another process that accepts from it
                raise
            # Of its own: TLS takes over the socket's descriptor and closes it.
            watched = sock.dup()
            with self._lock:
                is_refused = self._is_closing or len(self._open) >= _MAX_CONNECTIONS
                if not is_refused:
                    self._open.add(watched)
            if is_refused:
                log.warning("a peer's connection is one too many", limit=_MAX_CONNECTIONS)
                sock.close()
                watched.close()
                continue
            host = address[0].removeprefix("::ffff:")
            Thread(target=self._serve, args=(sock, watched, host), name="peer", daemon=True).start()

    def _serve(self, sock: socket.socket, watched: socket.socket, host: str) -> None:
        try:
            with connection.taken(sock, self._own) as peer, ExitStack() as stack:
                self._answer(peer, host, _Reader(self._root, stack))
        except (GritError, OSError) as error:
            log.warning("a peer's connection has ended", host=host, reason=one_line(error))
        finally:
            with self._lock:
                self._open.discard(watched)
            watched.close()

    def _answer(self, peer: Connection, host: str, reader: _Reader) -> None:
        hello = peer.receive_request()
        if hello is None:
            return
        try:
            version = wire.common_version(hello.hello.versions)
        except GritError as error:
            _fail(peer, error)
            return
        peer.send(peer_pb2.Reply(welcome=peer_pb2.Welcome(version=version)))
        while request := peer.receive_request():
            try:
                self._answer_one(peer, host, reader, request)
            except (UnavailableError, ProtocolError):
                raise
            except (GritError, OSError) as error:
                _fail(peer, error)

    def _answer_one(
        self, peer: Connection, host: str, reader: _Reader, request: peer_pb2.Request
    ) -> None:
        match request.WhichOneof("kind"):
            case "list":
                peer.send(peer_pb2.Reply(listing=_listing(self._root)))
            case "manifest":
                served = reader.opened(request.manifest.checkpoint)
                signature = peer_pb2.Signature(signature=served.signature)
                body = served.manifest
                peer.send(peer_pb2.Reply(signature=signature, body_bytes=len(body)), body)
            case "chunk":
                piece, data = reader.chunk(request.chunk)
                peer.send(peer_pb2.Reply(piece=piece, body_bytes=len(data)), data)
                with self._lock:
                    self.sent_bytes += len(data)
            case "fetch":
                log.info("a peer asks for a fetch", peer=peer.peer)
                for progress in self._fetch(request.fetch, peer.peer, host):
                    peer.send(peer_pb2.Reply(progress=progress))
            case other:
                raise UnimplementedError(f"request {other} means nothing here; upgrade grit")


class _Served:
    """A checkpoint that a connection reads; what it has is what its manifest said at first."""

    def __init__(self, root: str, wanted: peer_pb2.Checkpoint, stack: ExitStack) -> None:
        names = checkpoint_name(wanted.namespace), checkpoint_name(wanted.name)
        path = "/".join((root, *names))
        self.dir_fd = stack.enter_context(closing_fd(checkpoint_dir.open_named(root, names)))
        sealed = checkpoint_dir.read_manifest(self.dir_fd, path)
        if sealed.sha256 != wanted.sha256:
            raise NotFoundError(
                f"checkpoint {path} is another one: its manifest is sha256:{sealed.sha256}, "
                f"expected {wanted.sha256[:80]}; grit ls shows what is there"
            )
        self.manifest = checkpoint_dir.read_optional(self.dir_fd, manifests.FILE_NAME) or b""
        signature = checkpoint_dir.read_optional(self.dir_fd, manifests.SIGNATURE_NAME, 4096)
        self.signature = signature or b""
        self.sizes = {file.path: file.size_bytes for file in sealed.manifest.files}


class _Reader:
    """What one connection has open: a checkpoint and a file of it at a time, until *stack* ends."""

    def __init__(self, root: str, stack: ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._buffer = bytearray(stored.CHUNK_BYTES)
        self._wanted = peer_pb2.Checkpoint()
        self._served: _Served | None = None
        self._path = ""
        self._fd = -1

    def opened(self, wanted: peer_pb2.Checkpoint) -> _Served:
        if self._served is None or wanted != self._wanted:
            self._stack.close()
            self._served, self._path = None, ""
            self._served = _Served(self._root, wanted, self._stack)
            self._wanted.CopyFrom(wanted)
        return self._served

    def chunk(self, wanted: peer_pb2.Chunk) -> tuple[peer_pb2.Piece, bytes | memoryview]:
        """A chunk of a file, valid until the next call."""
        served = self.opened(wanted.checkpoint)
        sizes = stored.chunk_sizes(served.sizes.get(wanted.path, 0))
        if wanted.number >= len(sizes):
            raise InvalidArgumentError(
                f"chunk {wanted.number} of {wanted.path[:200]!r}: the manifest has no such chunk"
            )
        fd = self._file(served, wanted.path)
        offset, size_bytes = wanted.number * stored.CHUNK_BYTES, sizes[wanted.number]
        data = memoryview(self._buffer)[:size_bytes]
        if not chunks.read(fd, wanted.path, offset, data):
            return peer_pb2.Piece(coding=peer_pb2.ZEROS), b""
        if wanted.may_compress:
            packed = zstd.compress(data, level=1)
            if len(packed) < size_bytes:
                return peer_pb2.Piece(coding=peer_pb2.ZSTD), packed
        return peer_pb2.Piece(coding=peer_pb2.PLAIN), data

    def _file(self, served: _Served, path: str) -> int:
        if path != self._path:
            fd = confine.open_regular(served.dir_fd, path)
            if self._path:
                os.dup2(fd, self._fd)
                os.close(fd)
            else:
                self._fd = self._stack.enter_context(closing_fd(fd))
            self._path = path
        return self._fd


def _listing(root: str) -> peer_pb2.Listing:
    listing = peer_pb2.Listing()
    for one in found.beneath(root):
        if one.state != found.SEALED:
            continue
        namespace, _, name = one.checkpoint.partition("/")
        listing.checkpoints.add(
            checkpoint=peer_pb2.Checkpoint(namespace=namespace, name=name, sha256=one.sha256),
            created=one.created,
            pod=one.pod,
            containers=one.containers,
            size_bytes=one.size_bytes,
            gpu_bytes=one.gpu_bytes,
        )
    return listing


def _fail(peer: Connection, error: GritError | OSError) -> None:
    failure = peer_pb2.Failure(reason=reason(error), text=one_line(error))
    peer.send(peer_pb2.Reply(failure=failure))
