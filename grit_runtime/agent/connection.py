"""A TLS connection between two agents, with deadlines, and what can become of it as errors."""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager

from grit_runtime.agent import identity
from grit_runtime.errors import (
    DeadlineExceededError,
    GritError,
    PeerError,
    ProtocolError,
    UnavailableError,
    of_reason,
)
from grit_runtime.proto import peer_pb2
from grit_runtime.wire import peer as wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.agent.identity import Identity

IDLE_S = 60.0  # a peer that sends nothing, or takes nothing, for so long is given up
_CONNECT_S = 10.0


class Connection:
    """Requests, and their replies in the same order; closed by whoever made it.

    Every method blocks, for IDLE_S without a byte at most. DeadlineExceededError after that;
    UnavailableError if the connection is lost, ProtocolError for what means nothing.
    """

    def __init__(self, sock: ssl.SSLSocket, peer: str, idle_s: float) -> None:
        self.peer = peer  # the node's name, as its certificate says
        self._sock = sock
        self._idle_s = idle_s
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(idle_s)

    def send(
        self, message: peer_pb2.Request | peer_pb2.Reply, body: bytes | memoryview = b""
    ) -> None:
        with self._told():
            self._sock.sendall(wire.framed(message))
            if body:
                self._sock.sendall(body)

    def receive_request(self) -> peer_pb2.Request | None:
        """The next request; None once the other side has closed the connection between two."""
        with self._told():
            first = self._sock.recv(1)
            if not first:
                return None
            return wire.parse_request(self._message(first, wire.MAX_REQUEST_BYTES))

    def ask(self, request: peer_pb2.Request, max_body_bytes: int = 0) -> peer_pb2.Reply:
        """The reply to a request, or the error that it is; its body is to be read then."""
        self.send(request)
        return self.receive_reply(max_body_bytes)

    def receive_reply(self, max_body_bytes: int = 0) -> peer_pb2.Reply:
        """The next reply to what was asked."""
        with self._told():
            data = self._message(self._exactly(1), wire.MAX_REPLY_BYTES)
            reply = wire.parse_reply(data, max_body_bytes)
        if reply.HasField("failure"):
            raise of_reason(reply.failure.reason)(f"peer {self.peer}: {reply.failure.text}")
        return reply

    def read_into(self, view: memoryview) -> None:
        """Fill *view* with the next bytes of a body."""
        with self._told():
            done = 0
            while done < len(view):
                count = self._sock.recv_into(view[done:])
                if not count:
                    raise EOFError
                done += count

    def close(self) -> None:
        self._sock.close()

    def _message(self, first: bytes, limit_bytes: int) -> bytes:
        head = first + self._exactly(wire.HEAD_BYTES - len(first))
        return self._exactly(wire.message_bytes(head, limit_bytes))

    def _exactly(self, size_bytes: int) -> bytes:
        data = bytearray(size_bytes)
        with memoryview(data) as view:
            self.read_into(view)
        return bytes(data)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            text = str(error).removeprefix(f"peer {self.peer} ")
            raise ProtocolError(f"peer {self.peer}: {text}; is its grit of this version?") from None
        except TimeoutError:
            raise DeadlineExceededError(
                f"peer {self.peer} has neither sent nor taken anything for {self._idle_s:g} s; "
                "look at its agent and at the network, and try again"
            ) from None
        except ssl.SSLError as error:
            raise refused(self.peer, error) from None
        except (EOFError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else "it ended in the middle"
            raise UnavailableError(
                f"peer {self.peer} is lost: {why}; look at its agent, and try again"
            ) from None


def refused(peer: str, error: ssl.SSLError) -> GritError:
    """Why TLS has come to nothing."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return PeerError(
            f"peer {peer}: its certificate is not to be trusted: "
            f"{error.verify_message.strip('.')}; grit agent init makes one with the CA of this node"
        )
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return UnavailableError(f"peer {peer} has closed the connection; look at its agent's log")
    return PeerError(
        f"peer {peer} and this node do not agree on TLS: {error.reason or error}; both need "
        "certificates of the same CA that are valid now"
    )


@contextmanager
def taken(sock: socket.socket, own: Identity, idle_s: float = IDLE_S) -> Iterator[Connection]:
    """A connection that somebody has made to this node, once he has shown who he is."""
    with sock:
        sock.settimeout(_CONNECT_S)
        try:
            secured = own.serving().wrap_socket(sock, server_side=True)
        except ssl.SSLError as error:
            raise refused("unknown", error) from None
        with secured:
            yield Connection(secured, identity.name_in(secured.getpeercert()), idle_s)


@contextmanager
def dialled(
    node: str, host: str, port: int, own: Identity, idle_s: float = IDLE_S
) -> Iterator[Connection]:
    """A connection to the agent of *node*, which a version is agreed on with.

    PeerError if who answers there is another node, or of another CA; UnavailableError if nobody
    does.
    """
    try:
        sock = socket.create_connection((host, port), timeout=_CONNECT_S)
    except OSError as error:
        raise UnavailableError(
            f"peer {node}: no answer at {host} port {port}: {error.strerror or error}; is grit "
            "agent running there?"
        ) from None
    with sock:
        try:
            secured = own.calling().wrap_socket(sock, server_hostname=node)
        except ssl.SSLError as error:
            raise refused(node, error) from None
        except OSError as error:
            raise UnavailableError(f"peer {node} does not answer: {error}; look at it") from None
        with secured:
            connection = Connection(secured, node, idle_s)
            _greet(connection)
            yield connection


def _greet(connection: Connection) -> None:
    hello = peer_pb2.Hello(versions=wire.VERSIONS)
    reply = connection.ask(peer_pb2.Request(hello=hello))
    if reply.welcome.version not in wire.VERSIONS:
        raise ProtocolError(
            f"peer {connection.peer} chose version {reply.welcome.version}, expected one of "
            f"{wire.VERSIONS}; upgrade the older grit"
        )
