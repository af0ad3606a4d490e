"""Checkpoints read from another node's agent, over real TLS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime.agent import connection, identity, peers
from grit_runtime.agent.peers import Address
from grit_runtime.errors import (
    AlreadyExistsError,
    ConfigurationError,
    DamagedError,
    DeadlineExceededError,
    GritError,
    InvalidArgumentError,
    NewerFormatError,
    NotFoundError,
    PeerError,
    ProtocolError,
    TamperedError,
    UnavailableError,
)
from grit_runtime.proto import peer_pb2
from grit_runtime.store.catalog import Entry
from grit_runtime.store.pull import bring
from grit_runtime.wire import peer as wire
from tests.agent import nodes
from tests.store import made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.agent.connection import Connection
    from grit_runtime.agent.identity import Identity
    from grit_runtime.store.pull import Pulled


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the CA is, and the directories of the nodes."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def identities(certificates: Path) -> tuple[Identity, Identity]:
    """Those of node-a, which serves, and node-b."""
    return nodes.certified(certificates, "node-a"), nodes.certified(certificates, "node-b")


@pytest.fixture
def peer(tmp_path: Path, identities: tuple[Identity, Identity]) -> Iterator[Address]:
    (tmp_path / "a").mkdir()
    with nodes.serving(tmp_path / "a", identities[0], "node-a") as address:
        yield address


@pytest.fixture
def own(identities: tuple[Identity, Identity]) -> Identity:
    return identities[1]


def pulled(peer: Address, own: Identity, root: Path, name: str = "one") -> Pulled:
    entry, _ = peers.find(peer, own, made.ROOT, name)
    with peers.PeerSource(peer, own, entry) as source:
        return bring(source, entry, str(root), made.ignore)


def request_of(root: Path, name: str = "one") -> peer_pb2.Checkpoint:
    import hashlib

    manifest = (root / made.ROOT / name / "manifest.json").read_bytes()
    return peer_pb2.Checkpoint(
        namespace=made.ROOT, name=name, sha256=hashlib.sha256(manifest).hexdigest()
    )


@given(
    sizes=st.lists(
        st.one_of(
            st.integers(0, 3 * 4096),
            st.sampled_from([4 * made.MIB, 16 * made.MIB, 16 * made.MIB + 1, 20 * made.MIB]),
        ),
        min_size=1,
        max_size=4,
    ),
    is_zeros=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_what_is_pulled_is_what_the_peer_has(
    tmp_path_factory: pytest.TempPathFactory,
    identities: tuple[Identity, Identity],
    sizes: list[int],
    *,
    is_zeros: bool,
) -> None:
    tmp_path = tmp_path_factory.mktemp("moved")
    files: dict[str, bytes | list[tuple[int, bytes]]] = {
        f"main/checkpoint/{'parent/' if at % 2 else ''}pages-{at}.img": (
            bytes(size) if is_zeros else made.noise(size, at)
        )
        for at, size in enumerate(sizes)
    }
    path = made.checkpoint(tmp_path / "a", "one", files)
    with nodes.serving(tmp_path / "a", identities[0], "node-a") as peer:
        done = pulled(peer, identities[1], tmp_path / "b")
    assert made.content(tmp_path / "b" / made.ROOT / "one") == made.content(path)
    assert done.received_bytes == (0 if is_zeros else sum(sizes))


def test_a_peer_lists_what_is_sealed_alone(peer: Address, own: Identity, tmp_path: Path) -> None:
    made.checkpoint(tmp_path / "a", "one", {"main/pages": b"pages"})
    made.checkpoint(tmp_path / "a", ".two", {"main/pages": b"being made"})
    (tmp_path / "a" / made.ROOT / "three").mkdir()
    (listed,) = peers.listing(peer, own)
    assert listed.checkpoint == request_of(tmp_path / "a")
    assert listed.size_bytes == 5
    with pytest.raises(NotFoundError, match="peer node-a has no checkpoint default/two"):
        peers.find(peer, own, made.ROOT, "two")


def test_a_sparse_file_comes_back_sparse(peer: Address, own: Identity, tmp_path: Path) -> None:
    pieces = [(5 * made.MIB, b"a"), (40 * made.MIB - 1, b"b")]
    made.checkpoint(
        tmp_path / "a", "one", {"main/sparse": pieces}, size_bytes={"main/sparse": 1 << 30}
    )
    assert pulled(peer, own, tmp_path / "b").received_bytes == 8 * made.MIB
    back = tmp_path / "b" / made.ROOT / "one/main/sparse"
    assert (back.stat().st_size, back.stat().st_blocks * 512 < 20 * made.MIB) == (1 << 30, True)


def test_a_chunk_is_compressed_for_who_asks_for_it(
    peer: Address, own: Identity, tmp_path: Path
) -> None:
    made.checkpoint(tmp_path / "a", "one", {"main/text": made.text(5 * made.MIB)})
    chunk = peer_pb2.Chunk(
        checkpoint=request_of(tmp_path / "a"), path="main/text", number=0, may_compress=True
    )
    with connection.dialled(*peer, own) as one:
        reply = one.ask(peer_pb2.Request(chunk=chunk), wire.MAX_BODY_BYTES)
        assert reply.piece.coding == peer_pb2.ZSTD
        assert reply.body_bytes < made.MIB


def test_a_certificate_of_another_ca_is_refused_by_both_ends(
    peer: Address, tmp_path: Path, certificates: Path
) -> None:
    stranger = nodes.certified(tmp_path, "node-b", ca="other")
    with pytest.raises(PeerError, match="peer node-a: its certificate is not to be trusted"):
        peers.listing(peer, stranger)
    # It trusts the server now, and only that can refuse it.
    with Path(stranger.directory, "ca.pem").open("ab") as file:
        file.write((certificates / "ca/ca.pem").read_bytes())
    with pytest.raises((PeerError, UnavailableError), match="peer node-a"):
        peers.listing(peer, stranger)


def test_a_node_of_another_name_is_refused(peer: Address, own: Identity) -> None:
    with pytest.raises(PeerError, match=r"Hostname mismatch.*node-c"):
        peers.listing(peer._replace(node="node-c"), own)


def test_a_node_may_be_named_by_its_address(tmp_path: Path) -> None:
    theirs, ours = nodes.certified(tmp_path, "127.0.0.1"), nodes.certified(tmp_path, "10.0.0.5")
    named: list[str] = []

    def name(one: Connection) -> None:
        named.append(one.peer)
        one.receive_request()

    with nodes.serving(tmp_path, theirs, "127.0.0.1") as peer:
        assert peers.listing(peer, ours) == []
        with pytest.raises(PeerError, match=r"IP address mismatch.*127\.0\.0\.2"):
            peers.listing(peer._replace(node="127.0.0.2"), ours)
    with nodes.answering(theirs, "127.0.0.1", name) as peer, pytest.raises(UnavailableError):
        peers.listing(peer, ours)
    assert named == ["10.0.0.5"]


def test_an_expired_certificate_is_refused_until_it_is_replaced(
    tmp_path: Path, own: Identity, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_NODE_DAYS", 0)
    identity.make(str(tmp_path / "old"), "node-a", str(certificates / "ca"))
    expired = identity.Identity(str(tmp_path / "old"))
    refused = pytest.raises(PeerError, match="certificate has expired")
    with nodes.serving(tmp_path, expired, "node-a") as peer:
        with refused:
            peers.listing(peer, own)
        monkeypatch.undo()
        identity.make(str(tmp_path / "new"), "node-a", str(certificates / "ca"))
        for path in (tmp_path / "new").iterdir():
            path.replace(tmp_path / "old" / path.name)
        assert peers.listing(peer, own) == []


def test_the_ca_is_replaced_one_node_after_the_other(tmp_path: Path) -> None:
    own = {node: nodes.certified(tmp_path, node) for node in ("node-a", "node-b")}
    new = {node: nodes.certified(tmp_path, node, ca="new") for node in own}
    both = (tmp_path / "ca/ca.pem").read_bytes() + (tmp_path / "new/ca.pem").read_bytes()
    with nodes.serving(tmp_path, own["node-a"], "node-a") as peer:
        for one in own.values():
            Path(one.directory, "ca.pem").write_bytes(both)
            assert peers.listing(peer, own["node-b"]) == []
        for node, one in own.items():
            for name in ("node.pem", "node.key"):
                Path(new[node].directory, name).replace(Path(one.directory, name))
            assert peers.listing(peer, own["node-b"]) == []


def test_a_peer_of_another_version_is_refused_by_both_ends(
    peer: Address, identities: tuple[Identity, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    def newer(one: Connection) -> None:
        one.receive_request()
        one.send(peer_pb2.Reply(welcome=peer_pb2.Welcome(version=2)))

    own = identities[1]
    refused = pytest.raises(ProtocolError, match="peer node-a chose version 2")
    with nodes.answering(identities[0], "node-a", newer) as other, refused:
        peers.listing(other, own)
    with pytest.raises(NewerFormatError, match=r"it speaks versions 7, 8 .* upgrade the older"):
        wire.common_version([8, 7])
    monkeypatch.setattr(wire, "VERSIONS", ())
    with pytest.raises(NewerFormatError, match="peer node-a: it speaks versions none"):
        peers.listing(peer, own)


def lying(
    manifest: bytes, body: bytes, size_bytes: int | None = None
) -> Callable[[Connection], None]:
    """What answers each request for the manifest rightly, and each for a chunk with *body*."""

    def answer(one: Connection) -> None:
        one.receive_request()
        one.send(peer_pb2.Reply(welcome=peer_pb2.Welcome(version=1)))
        while request := one.receive_request():
            if request.HasField("manifest"):
                signature = peer_pb2.Signature()
                reply = peer_pb2.Reply(signature=signature, body_bytes=len(manifest))
                one.send(reply, manifest)
            else:
                size = len(body) if size_bytes is None else size_bytes
                one.send(peer_pb2.Reply(piece=peer_pb2.Piece(), body_bytes=size), body)

    return answer


@pytest.mark.parametrize(
    ("body", "size_bytes", "error", "text"),
    [
        (made.noise(4 * made.MIB), None, DamagedError, "peer node-a: main/pages is damaged"),
        (b"short", None, DamagedError, "has 5 bytes, expected 4194304"),
        (b"", 5 << 20, ProtocolError, "a body of 5242880 bytes, expected at most 4194304"),
    ],
    ids=["other", "short", "too long"],
)
def test_what_is_not_the_checkpoint_is_not_taken(
    tmp_path: Path,
    identities: tuple[Identity, Identity],
    body: bytes,
    size_bytes: int | None,
    error: type[GritError],
    text: str,
) -> None:
    data = made.noise(20 * made.MIB, seed=7)
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": data})
    answer = lying((path / "manifest.json").read_bytes(), body, size_bytes)
    entry = Entry(made.ROOT, "one", request_of(tmp_path / "a").sha256, 0.0)
    refused = pytest.raises(error, match=text)
    with (
        nodes.answering(identities[0], "node-a", answer) as peer,
        refused,
        peers.PeerSource(peer, identities[1], entry) as source,
    ):
        bring(source, entry, str(tmp_path / "b"), made.ignore)
    assert not (tmp_path / "b" / made.ROOT / "one").exists()


def test_another_manifest_is_not_taken(identities: tuple[Identity, Identity]) -> None:
    refused = pytest.raises(TamperedError, match="its manifest is not the one with sha256:00")
    with nodes.answering(identities[0], "node-a", lying(b"{}", b"")) as peer, refused:
        peers.PeerSource(peer, identities[1], Entry(made.ROOT, "one", "0" * 64, 0.0))


def test_a_peer_that_sends_nothing_is_given_up(identities: tuple[Identity, Identity]) -> None:
    given_up = Event()

    def silent(_: Connection) -> None:
        given_up.wait(20)

    refused = pytest.raises(DeadlineExceededError, match=r"node-a has neither .* for 0\.2 s")
    with nodes.answering(identities[0], "node-a", silent) as peer:
        with refused, connection.dialled(*peer, identities[1], idle_s=0.2):
            pass
        given_up.set()


def test_nobody_at_the_port_is_said_so(own: Identity) -> None:
    with pytest.raises(UnavailableError, match="is grit agent running there"):
        peers.listing(Address("node-a", nodes.HOST, 1), own)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"name": "../one"}, "checkpoint name"),
        ({"name": ".."}, "checkpoint name"),
        ({"name": "n" * 300}, "checkpoint name"),
        ({"namespace": "/etc"}, "checkpoint name"),
        ({"sha256": "0" * 64}, "is another one"),
    ],
    ids=str,
)
def test_no_request_leads_out_of_the_checkpoints(
    peer: Address, own: Identity, tmp_path: Path, wanted: dict[str, str], text: str
) -> None:
    made.checkpoint(tmp_path / "a", "one", {"main/pages": b"pages"})
    checkpoint = request_of(tmp_path / "a")
    for name, value in wanted.items():
        setattr(checkpoint, name, value)
    manifest = peer_pb2.Manifest(checkpoint=checkpoint)
    with connection.dialled(*peer, own) as one, pytest.raises(GritError, match=text):
        one.ask(peer_pb2.Request(manifest=manifest), wire.MAX_MANIFEST_BYTES)


@pytest.mark.parametrize(
    ("path", "number"), [("../two/main/pages", 0), ("main/pages", 1), ("manifest.json", 0), ("", 0)]
)
def test_no_file_is_served_but_those_of_the_manifest(
    peer: Address, own: Identity, tmp_path: Path, path: str, number: int
) -> None:
    for name in ("one", "two"):
        made.checkpoint(tmp_path / "a", name, {"main/pages": b"pages"})
    chunk = peer_pb2.Chunk(checkpoint=request_of(tmp_path / "a"), path=path, number=number)
    with connection.dialled(*peer, own) as one:
        with pytest.raises(InvalidArgumentError, match="the manifest has no such chunk"):
            one.ask(peer_pb2.Request(chunk=chunk))
        assert one.ask(peer_pb2.Request(list=peer_pb2.List())).listing.checkpoints


def test_a_link_in_place_of_a_file_is_not_followed(
    peer: Address, own: Identity, tmp_path: Path
) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": b"pages"})
    (tmp_path / "secret").write_bytes(b"other")
    (path / "main/pages").unlink()
    (path / "main/pages").symlink_to(tmp_path / "secret")
    chunk = peer_pb2.Chunk(checkpoint=request_of(tmp_path / "a"), path="main/pages")
    with connection.dialled(*peer, own) as one, pytest.raises(GritError, match="a symbolic link"):
        one.ask(peer_pb2.Request(chunk=chunk), wire.MAX_BODY_BYTES)


def test_two_pulls_at_once_bring_it_once(peer: Address, own: Identity, tmp_path: Path) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(40 * made.MIB)})
    done: list[Pulled] = []
    threads = [
        Thread(target=lambda: done.append(pulled(peer, own, tmp_path / "b"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.was_here for one in done) == [False, True]
    assert made.content(tmp_path / "b" / made.ROOT / "one") == made.content(path)


PULL = """
import os, signal, sys
from grit_runtime.agent import peers
from grit_runtime.agent.identity import Identity
from grit_runtime.agent.peers import Address
from grit_runtime.store.pull import bring

done = 0

def told(_done_bytes, moved_bytes):
    global done
    done += moved_bytes
    if done >= 24 << 20:
        os.write(1, b"far enough\\n")  # in one piece: there are several threads
        signal.pause()

directory, host, port, root = sys.argv[1:]
peer, own = Address("node-a", host, int(port)), Identity(directory)
entry, _ = peers.find(peer, own, "default", "one")
with peers.PeerSource(peer, own, entry) as source:
    bring(source, entry, root, told)
"""


def killed_pull(peer: Address, own: Identity, root: Path) -> None:
    argv = [sys.executable, "-c", PULL, own.directory, peer.host, str(peer.port), str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        told = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert told == "far enough\n"


def test_a_pull_that_is_killed_goes_on_where_it_was(
    peer: Address, own: Identity, tmp_path: Path
) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(64 * made.MIB)})
    killed_pull(peer, own, tmp_path / "b")
    rest = pulled(peer, own, tmp_path / "b")
    assert 0 < rest.received_bytes <= 40 * made.MIB
    assert made.content(tmp_path / "b" / made.ROOT / "one") == made.content(path)


def test_what_a_killed_pull_has_left_damaged_is_fetched_again(
    peer: Address, own: Identity, tmp_path: Path
) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(64 * made.MIB)})
    killed_pull(peer, own, tmp_path / "b")
    (left,) = (tmp_path / "b" / made.ROOT).glob(".one.*/main/pages")
    with left.open("r+b") as file:
        file.seek(os.lseek(file.fileno(), 0, os.SEEK_DATA))
        file.write(b"damage")
    assert pulled(peer, own, tmp_path / "b").received_bytes == 64 * made.MIB
    assert made.content(tmp_path / "b" / made.ROOT / "one") == made.content(path)


def test_nothing_of_an_identity_is_overwritten(tmp_path: Path) -> None:
    nodes.certified(tmp_path, "node-a")
    with pytest.raises(AlreadyExistsError, match=r"node\.pem exists"):
        nodes.certified(tmp_path, "node-a")
    ca = (tmp_path / "ca/ca.pem").read_bytes()
    own = nodes.certified(tmp_path, "node-b")
    assert (tmp_path / "ca/ca.pem").read_bytes() == ca
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "node-b-ca").iterdir()}
    assert files == {"ca.pem": 0o600, "node.pem": 0o600, "node.key": 0o600}
    os.unlink(f"{own.directory}/node.key")
    with pytest.raises(ConfigurationError, match=r"has no node\.key; grit agent init"):
        identity.Identity(own.directory)


@pytest.mark.parametrize("name", ["", "Node", "a/b", "..", "a..b", "n" * 300, "-a", "a_b", "*"])
def test_a_node_has_a_name_that_dns_allows(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="node name"):
        identity.make(str(tmp_path / "x"), name)
    with pytest.raises(InvalidArgumentError):
        peers.address(f"peer://{name}")


@pytest.mark.parametrize("url", ["peer://a:0", "peer://a:65536", "peer://a:", "http://a", "peer:a"])
def test_an_address_that_means_nothing_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected peer://NODE"):
        peers.address(url)
    assert peers.address("peer://node-a.example:1") == Address(
        "node-a.example", "node-a.example", 1
    )
