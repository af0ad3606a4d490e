"""CRIU image files: bytes to messages and back. Knows no paths, only the name for its errors.

An image is a class magic (inventory has none), a type magic, then entries: a little-endian u32 size
and that many bytes of protobuf. Spec: checkpoint-restore/criu lib/pycriu/images/images.py,
criu/image.c and criu/include/magic.h@2cf8f13 (4.2).

Not decoded: images that carry raw data between or instead of entries (pages, pipe and socket data,
SysV segments, archives of tmpfs), and the content that follows a ghost file's entry. The old format
without class magics is refused too.

The OCI wrapper imports this module on every restore: nothing slow may be imported here.
"""

from __future__ import annotations

import struct
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from grit_runtime.errors import ImageError
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_IMAGE_BYTES = 64 << 20  # the longest, files.img, takes about 100 bytes for an open file
MAX_ENTRIES = 1 << 20  # the kernel's default for open files of one process (fs.nr_open)

_PE_PARENT, _PE_PRESENT = 1, 4  # criu/include/image.h

_COMMON_MAGIC = 0x54564319
_SERVICE_MAGIC = 0x55105940
_U32 = struct.Struct("<I")

M = TypeVar("M", bound=Message)


class Kind(NamedTuple):
    """What distinguishes one sort of image; *magics* open the file."""

    magics: bytes
    message: type[Message]


class Pages(NamedTuple):
    """A number of pages of a task's memory, from the address *start* on."""

    start: int
    number: int


class Image(NamedTuple):
    """One image file; payloads stay as they were read, so that what is untouched is kept exact."""

    name: str
    head: bytes
    payloads: tuple[bytes, ...]


def _common(type_magic: int, message: type[Message]) -> Kind:
    return Kind(_U32.pack(_COMMON_MAGIC) + _U32.pack(type_magic), message)


KINDS = {
    "apparmor": _common(0x59423047, criu.apparmor_entry),
    "cgroup": _common(0x59383330, criu.cgroup_entry),
    "core": _common(0x55053847, criu.core_entry),
    "fdinfo": _common(0x56213732, criu.fdinfo_entry),
    "files": _common(0x56303138, criu.file_entry),
    "ghost-file": _common(0x52583605, criu.ghost_file_entry),
    "fs": _common(0x51403912, criu.fs_entry),
    "ids": _common(0x54432030, criu.task_kobj_ids_entry),
    "inventory": Kind(_U32.pack(0x58313116), criu.inventory_entry),
    "ipcns-var": _common(0x53115007, criu.ipc_var_entry),
    "mm": _common(0x57492820, criu.mm_entry),
    "mountpoints": _common(0x55563928, criu.mnt_entry),
    "netns": _common(0x55933752, criu.netns_entry),
    "pidns": _common(0x61157326, criu.pidns_entry),
    "pagemap": _common(0x56084025, criu.pagemap_entry),
    "pagemap-shmem": _common(0x56084025, criu.pagemap_entry),
    "pstree": _common(0x50273030, criu.pstree_entry),
    "remap-fpath": _common(0x59133954, criu.remap_file_path_entry),
    "seccomp": _common(0x64413049, criu.seccomp_entry),
    "stats": Kind(_U32.pack(_SERVICE_MAGIC) + _U32.pack(0x57093306), criu.stats_entry),
    "tcp-stream": _common(0x51465506, criu.tcp_stream_entry),
    "userns": _common(0x55474906, criu.userns_entry),
    "utsns": _common(0x54473203, criu.utsns_entry),
}


def kind_of(name: str) -> Kind:
    """Kind of the image called *name*: ``pstree.img``, ``mountpoints-12.img``, ``stats-dump``."""
    stem = name.removesuffix(".img")
    kind = KINDS.get(stem) or KINDS.get(stem.rpartition("-")[0])
    if kind is None:
        raise ImageError(f"image {name}: expected one of the kinds {', '.join(KINDS)}")
    return kind


def parse(data: bytes, *, name: str) -> Image:
    """The image *data*; its file's *name* determines its kind."""
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"image {name}: {len(data)} bytes, expected at most {MAX_IMAGE_BYTES}")
    head = _head(data, name)
    return Image(name, head, _split(data, start=len(head), name=name))


def parse_beginning(data: bytes, *, name: str) -> Image:
    """Only the first entry of an image; *data* must contain at least that."""
    head = _head(data, name)
    body = len(head) + 4
    end = body + _U32.unpack_from(data, len(head))[0] if len(data) >= body else body
    return Image(name, head, _split(data[:end], start=len(head), name=name))


def serialize(image: Image) -> bytes:
    """The file's bytes as they were parsed, except for replaced entries."""
    parts = [image.head]
    for payload in image.payloads:
        parts += (_U32.pack(len(payload)), payload)
    return b"".join(parts)


def entries(image: Image, message: type[M]) -> list[M]:
    """All entries of *image*, decoded."""
    return [_decode(image, index, message) for index in range(len(image.payloads))]


def entry(image: Image, message: type[M]) -> M:
    """The entry of an image that has exactly one: inventory, core, seccomp, utsns, mm, cgroup..."""
    if len(image.payloads) != 1:
        raise ImageError(f"image {image.name}: {len(image.payloads)} entries, expected one")
    return _decode(image, 0, message)


def pages(image: Image) -> tuple[int, int]:
    """The number of a pagemap's pages image, and how many pages that must hold."""
    if not image.payloads:
        raise ImageError(f"image {image.name}: no entries, expected a head")
    head = _decode(image, 0, criu.pagemap_head)
    return head.pages_id, sum(one.number for one in present_pages(image))


def pagemap(name: str, pages_id: int, present: Sequence[Pages]) -> Image:
    """A pagemap image for the pages in ``pages-PAGES_ID.img``, in this order."""
    head = criu.pagemap_head(pages_id=pages_id).SerializeToString()
    return Image(name, kind_of(name).magics, (head, *(_entry(one, _PE_PRESENT) for one in present)))


def present_pages(image: Image) -> list[Pages]:
    """The pages that a pagemap image has itself, in the order of its pages image."""
    return [_pages(entry) for entry in _pagemap_entries(image) if _is_present(entry)]


def parent_pages(image: Image) -> list[Pages]:
    """The pages of a pagemap image that are in the parent images."""
    return [_pages(entry) for entry in _pagemap_entries(image) if _is_in_parent(entry)]


def with_parent_pages(image: Image, added: Iterable[Pages]) -> Image:
    """A pagemap image with *added* pages, new to it, that are in the parent images."""
    kept = zip(
        (_pages(entry) for entry in _pagemap_entries(image)), image.payloads[1:], strict=True
    )
    new = ((one, _entry(one, _PE_PARENT)) for one in added)
    ordered = sorted((*kept, *new))
    return image._replace(payloads=(image.payloads[0], *(payload for _, payload in ordered)))


def without_parent_pages(image: Image) -> Image:
    """A pagemap image with only its own pages: a restore leaves the others empty."""
    kept = zip(_pagemap_entries(image), image.payloads[1:], strict=True)
    own = (payload for entry, payload in kept if not _is_in_parent(entry))
    return image._replace(payloads=(image.payloads[0], *own))


def with_entry(image: Image, index: int, message: Message) -> Image:
    """*image* with another entry at *index*; fields we do not know travel inside *message*."""
    payloads = list(image.payloads)
    payloads[index] = message.SerializeToString()
    return image._replace(payloads=tuple(payloads))


def text(value: bytes) -> str:
    """A path or a name out of an image, as os.fsdecode would give it.

    CRIU reads these as C strings and would stop at a NUL, so that it and we saw different names.
    """
    if b"\0" in value:
        raise ImageError(f"image text {value[:80]!r} holds a NUL byte; expected none in a name")
    return value.decode("utf-8", "surrogateescape")


def _pagemap_entries(image: Image) -> list[criu.pagemap_entry]:
    return [_decode(image, index, criu.pagemap_entry) for index in range(1, len(image.payloads))]


def _is_present(entry: criu.pagemap_entry) -> bool:
    return bool(entry.flags & _PE_PRESENT) if entry.HasField("flags") else not entry.in_parent


def _is_in_parent(entry: criu.pagemap_entry) -> bool:
    return bool(entry.flags & _PE_PARENT) if entry.HasField("flags") else entry.in_parent


def _pages(entry: criu.pagemap_entry) -> Pages:
    return Pages(entry.vaddr, entry.nr_pages or entry.compat_nr_pages)


def _entry(pages: Pages, flags: int) -> bytes:
    """A pagemap entry. It has both counts: CRIU 4.2 reads one, older versions only the other."""
    return criu.pagemap_entry(
        vaddr=pages.start, compat_nr_pages=pages.number, nr_pages=pages.number, flags=flags
    ).SerializeToString()


def _head(data: bytes, name: str) -> bytes:
    head = kind_of(name).magics
    if not data.startswith(head):
        found = data[: len(head)].hex() or "nothing"
        raise ImageError(
            f"image {name}: starts with {found}, expected {head.hex()}; "
            "it is damaged, of another kind, or made by a CRIU older than 2.0"
        )
    return head


def _split(data: bytes, *, start: int, name: str) -> tuple[bytes, ...]:
    """The payloads of the entries that begin at *start*."""
    payloads: list[bytes] = []
    total = len(data)
    while start < total:
        number = len(payloads)
        if number == MAX_ENTRIES:
            raise ImageError(f"image {name}: expected at most {MAX_ENTRIES} entries")
        body = start + 4
        end = body + _U32.unpack_from(data, start)[0] if body <= total else body
        if end > total:
            raise ImageError(
                f"image {name}: entry {number} ends at {end} of {total} bytes; "
                "the file is truncated or not a CRIU image"
            )
        payloads.append(data[body:end])
        start = end
    return tuple(payloads)


def _decode(image: Image, index: int, message: type[M]) -> M:
    # python-protobuf leaves required fields to the caller; CRIU's decoder refuses their absence.
    kind = message.DESCRIPTOR.name
    try:
        decoded = message.FromString(image.payloads[index])
    except DecodeError:
        raise ImageError(
            f"image {image.name}: entry {index} is not a {kind}; the file is damaged"
        ) from None
    if not decoded.IsInitialized():
        raise ImageError(
            f"image {image.name}: entry {index} is a {kind} without its required fields"
        )
    return decoded
