"""The decoders of what comes from outside, each as one function of any bytes."""

from __future__ import annotations

import gzip
import io
from functools import partial
from pathlib import Path
from typing import TypeVar

from grit_runtime.errors import GritError
from grit_runtime.model import arrival, checkpointctl, fit_to_runc, manifest, seccomp_filter
from grit_runtime.proto import ttrpc_pb2
from grit_runtime.wire import criu_image, layer, peer, tar, tmpfs_image, ttrpc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SEEDS = Path(__file__).with_name("seeds")


def criu_images(data: bytes) -> None:
    """The first byte chooses the kind."""
    kinds = sorted(criu_image.KINDS)
    name = f"{kinds[data[0] % len(kinds)]}-1.img" if data else "pstree.img"
    kind = criu_image.kind_of(name)
    for content in (data[1:], kind.magics + data[1:]):
        for parse in (criu_image.parse, criu_image.parse_beginning):
            image = _or_none(partial(parse, content, name=name))
            if image is not None:
                criu_image.entries(image, kind.message)
                assert criu_image.serialize(image) == content[: len(criu_image.serialize(image))]


def pagemaps(data: bytes) -> None:
    """What follows the magics."""
    magics = criu_image.kind_of("pagemap-1.img").magics
    image = criu_image.parse(magics + data, name="pagemap-1.img")
    _, number = criu_image.pages(image)
    assert number == sum(pages.number for pages in criu_image.present_pages(image))
    own = criu_image.without_parent_pages(image)
    assert criu_image.parent_pages(own) == []
    assert len(own.payloads) + len(criu_image.parent_pages(image)) == len(image.payloads)


def tmpfs_archives(data: bytes) -> None:
    """As it is, and as what gzip packed."""
    for content in (data, gzip.compress(data, 1)):
        read = io.BytesIO(content).read
        _or_none(partial(_special_files, read))


def layers(data: bytes) -> None:
    source = io.BytesIO(data)
    while member := tar.read_member(lambda size: _exactly(source, size)):
        layer.parse_name(member.name)
        assert tar.encode(member)
        source.seek(min(member.size_bytes + tar.padding(member.size_bytes), len(data)), io.SEEK_CUR)


def manifests(data: bytes) -> None:
    found = manifest.parse(data)
    assert manifest.parse(manifest.dump(found)) == found


def announcements(data: bytes) -> None:
    found = arrival.parse(data)
    assert arrival.parse(arrival.dump(found)) == found
    arrival.progress(found)


def metadata(data: bytes) -> None:
    for decoder in (
        checkpointctl.container_name,
        checkpointctl.deleted_files,
        fit_to_runc.check_descriptors,
    ):
        _or_none(partial(decoder, data))


def seccomp_filters(data: bytes) -> None:
    seccomp_filter.permitted(data, arch=0xC000003E, numbers=range(0, 450, 7))


def peer_messages(data: bytes) -> None:
    """As a request and as a reply, and the size before it."""
    request = _or_none(partial(peer.parse_request, data))
    if request:
        assert peer.parse_request(peer.framed(request)[peer.HEAD_BYTES :]) == request
    reply = _or_none(partial(peer.parse_reply, data, peer.MAX_BODY_BYTES))
    if reply:
        assert reply.body_bytes <= peer.MAX_BODY_BYTES
        assert reply.failure.text.isprintable()
    if len(data) >= peer.HEAD_BYTES:
        _or_none(partial(peer.message_bytes, data[: peer.HEAD_BYTES], peer.MAX_REQUEST_BYTES))


def ttrpc_frames(data: bytes) -> None:
    """Sent to either end, in pieces whose size the first byte chooses and in one."""
    size_bytes = data[0] + 1 if data else 1
    pieces = [data[i : i + size_bytes] for i in range(1, len(data), size_bytes)]
    ends = [_ttrpc_ends(), _ttrpc_ends()]
    events = [[event for piece in pieces for event in end.feed(piece)] for end in ends[0]]
    assert events == [end.feed(data[1:]) for end in ends[1]]
    for end in (*ends[0], *ends[1]):
        _or_none(end.end)


def _ttrpc_ends() -> tuple[ttrpc.Server, ttrpc.Client]:
    """A server, and a client that waits for the end of a unary call and of a stream."""
    client = ttrpc.Client()
    for flags in (0, ttrpc.REMOTE_OPEN):
        client.call(ttrpc_pb2.Request(), flags=flags)
    return ttrpc.Server(), client


DECODERS: dict[str, Callable[[bytes], object]] = {
    function.__name__: function
    for function in (
        criu_images,
        pagemaps,
        tmpfs_archives,
        layers,
        manifests,
        announcements,
        metadata,
        seccomp_filters,
        peer_messages,
        ttrpc_frames,
    )
}


def decode(name: str, data: bytes) -> None:
    """Decode *data* or have it refused in one line; anything else is a bug."""
    _or_none(partial(DECODERS[name], data))


def _special_files(read: Callable[[int], bytes]) -> tmpfs_image.SpecialFiles:
    return tmpfs_image.special_files(read, name="tmpfs-dev-1.tar.gz.img")


def _or_none(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except GritError as error:
        assert "\n" not in str(error), repr(error)
        return None


def _exactly(source: io.BytesIO, size_bytes: int) -> bytes:
    data = source.read(size_bytes)
    if len(data) < size_bytes:
        raise GritError("ends")
    return data
