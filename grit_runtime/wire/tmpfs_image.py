"""The special files in tmpfs-dev-N.tar.gz.img, CRIU's archive of a tmpfs. Knows no paths of ours.

CRIU packs with `tar --create --gzip --sparse` in GNU's own format and unpacks as root with `tar
--extract`, so anything but plain GNU headers is refused, as GNU tar could read it differently.
Spec: GNU tar src/tar.h struct posix_header, oldgnu_header, sparse_header@1.35;
checkpoint-restore/criu criu/filesystems.c tmpfs_dump and tmpfs_restore@2cf8f13.
"""

from __future__ import annotations

import struct
import zlib

from grit_runtime.errors import ImageError
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_BYTES = 16 << 30  # unpacked
MAX_MEMBERS = 1 << 20

_BLOCK_BYTES = 512
_READ_BYTES = 64 << 10
_NAME_BYTES, _MAX_NAME_BYTES = 100, 4096
# name, size, checksum, type, magic and version, device, whether sparse blocks follow
_HEADER = struct.Struct("100s24x12s12x8sB100x8s64x8s8s137xB29x")
_CHECKSUM = slice(148, 156)
_MORE_SPARSE = 504  # in a sparse block: whether another follows
_GNU_MAGIC = b"ustar  \0"
_DATA = frozenset(b"0\x007S")
_NO_DATA = frozenset(b"123456")
_LONG_NAME, _LONG_LINK, _SPARSE = b"LKS"
_SYMBOLIC_LINK = ord("2")
_DEVICES = {ord("3"): "c", ord("4"): "b"}
_GZIP = 16 + zlib.MAX_WBITS


class Node(NamedTuple):
    """A device node; *type* is "c" or "b" as in the OCI runtime spec."""

    name: str
    type: str
    major: int
    minor: int


class SpecialFiles(NamedTuple):
    """Device nodes, and the paths of symbolic links from the root of the tmpfs."""

    nodes: tuple[Node, ...]
    links: frozenset[bytes]


class _Header(NamedTuple):
    node: Node
    kind: int
    size_bytes: int
    is_extended: bool


def special_files(read: Callable[[int], bytes], *, name: str) -> SpecialFiles:
    """What is in the image *name*, whose bytes *read* gives as a file does; ImageError."""
    nodes, links = [], []
    for header, path in _members(read, name):
        if header.kind in _DEVICES:
            nodes.append(header.node._replace(name=_shown(path)))
        elif header.kind == _SYMBOLIC_LINK:
            links.append(path.removeprefix(b"./"))
    return SpecialFiles(tuple(nodes), frozenset(links))


def _members(read: Callable[[int], bytes], name: str) -> Iterator[tuple[_Header, bytes]]:
    """Every member with its whole name."""
    archive = _Archive(read, name)
    long_name = b""
    for _ in range(MAX_MEMBERS):
        block = archive.take(_BLOCK_BYTES)
        if not any(block):
            return
        header = archive.header(block)
        while header.is_extended:
            header = header._replace(is_extended=archive.take(_BLOCK_BYTES)[_MORE_SPARSE] != 0)
        path = (long_name or block[:_NAME_BYTES]).partition(b"\0")[0]
        if path.startswith(b"/") or b".." in path.split(b"/"):
            # GNU tar would not follow these out of the tmpfs either; CRIU never packs them.
            raise archive.error(f"a member {_shown(path)}")
        if header.kind not in {_LONG_NAME, _LONG_LINK}:
            yield header, path
        padded_bytes = header.size_bytes + -header.size_bytes % _BLOCK_BYTES
        if header.kind == _LONG_NAME:
            long_name = archive.take(padded_bytes)
            continue
        archive.skip(padded_bytes)
        if header.kind != _LONG_LINK:
            long_name = b""
    raise archive.error(f"more than {MAX_MEMBERS} members")


class _Archive:
    """The unpacked bytes, as many as asked for or an ImageError."""

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        self._read = read
        self._name = name
        self._gzip = zlib.decompressobj(_GZIP)
        self._packed = b""
        self._buffer = memoryview(b"")
        self._left_bytes = MAX_BYTES

    def error(self, what: str) -> ImageError:
        return ImageError(
            f"image {self._name}: {what}; expected a tmpfs as CRIU packs it with GNU tar"
        )

    def take(self, size_bytes: int) -> bytes:
        parts = []
        while size_bytes:
            part = self._some(size_bytes)
            size_bytes -= len(part)
            parts.append(part)
        return b"".join(parts)

    def skip(self, size_bytes: int) -> None:
        while size_bytes:
            size_bytes -= len(self._some(size_bytes))

    def header(self, block: bytes) -> _Header:
        name, size, checksum, kind, magic, major, minor, extended = _HEADER.unpack(block)
        expected = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
        if magic != _GNU_MAGIC or self._number(checksum) != expected:
            raise self.error("a header that is none of GNU tar's")
        size_bytes = self._number(size)
        is_long = kind in {_LONG_NAME, _LONG_LINK} and 0 < size_bytes <= _MAX_NAME_BYTES
        if not (kind in _DATA or is_long or (kind in _NO_DATA and size_bytes == 0)):
            raise self.error(f"a member of type {chr(kind)!r} with {size_bytes} bytes")
        device = (self._number(major), self._number(minor)) if kind in _DEVICES else (0, 0)
        node = Node(_shown(name), _DEVICES.get(kind, ""), *device)
        return _Header(node, kind, size_bytes, kind == _SPARSE and extended != 0)

    def _some(self, size_bytes: int) -> memoryview:
        """Between 1 and *size_bytes* bytes."""
        if not self._buffer:
            self._buffer = memoryview(self._unpack())
        part, self._buffer = self._buffer[:size_bytes], self._buffer[size_bytes:]
        return part

    def _unpack(self) -> bytes:
        data = b""
        while not data:
            if self._gzip.eof:  # as gzip does, go on with what another run of it appended
                self._packed = self._gzip.unused_data or self._packed
                self._gzip = zlib.decompressobj(_GZIP)
            self._packed = self._packed or self._read(_READ_BYTES)
            if not self._packed:
                raise self.error("ends in the middle")
            try:
                data = self._gzip.decompress(self._packed, _READ_BYTES)
            except zlib.error as error:
                raise self.error(f"not gzip ({error})") from None
            self._packed = self._gzip.unconsumed_tail
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise self.error(f"more than {MAX_BYTES} bytes unpacked")
        return data

    def _number(self, field: bytes) -> int:
        """Octal, or GNU's base 256 behind a set top bit."""
        if field[0] & 0x80:
            return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        digits = field.rstrip(b" \0").lstrip(b" ")
        if digits.strip(b"01234567"):
            raise self.error(f"the number {field!r}")
        return int(digits or b"0", 8)


def _shown(name: bytes) -> str:
    text = name.rstrip(b"\0").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)
