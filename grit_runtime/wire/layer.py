"""What a tar member means in an image layer: file or whiteout, and within which bounds. Pure.

Spec: opencontainers/image-spec layer.md@v1.1.0, "Representing Changes".
"""

from __future__ import annotations

import operator
from functools import lru_cache

from grit_runtime.errors import LayerError
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.wire.tar import Member

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"

_NO_COMPONENTS = frozenset({b"", b".", b".."})
MAX_COMPONENT_BYTES = 255  # NAME_MAX
MAX_XATTR_NAME_BYTES = 255  # XATTR_NAME_MAX
MAX_XATTR_BYTES = 1 << 16  # XATTR_SIZE_MAX

OVERLAY_XATTR = b"trusted.overlay."
_CARRIED_XATTRS = frozenset(
    {b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"}
)

Parts = tuple[bytes, ...]


class Present(NamedTuple):
    """The member itself; no parts is the root directory."""

    parts: Parts


class Whiteout(NamedTuple):
    """*name* in *directory* of the layers below is deleted."""

    directory: Parts
    name: bytes


class Opaque(NamedTuple):
    """Everything in *directory* of the layers below is deleted."""

    directory: Parts


Place = Present | Whiteout | Opaque


class Limits(NamedTuple):
    """What one layer may hold; *metadata_bytes* bounds names, links and extended attributes."""

    members: int = 1_000_000
    data_bytes: int = 1 << 38
    metadata_bytes: int = 1 << 28


DEFAULT_LIMITS = Limits()


class Tally:
    """Sums over a layer's members, kept within the limits."""

    __slots__ = ("_limits", "data_bytes", "members", "metadata_bytes")

    def __init__(
        self, limits: Limits, members: int = 0, data_bytes: int = 0, metadata_bytes: int = 0
    ) -> None:
        self._limits = limits
        self.members = members
        self.data_bytes = data_bytes
        self.metadata_bytes = metadata_bytes

    def add(self, member: Member) -> None:
        """ImageError for the member that goes over a limit."""
        self.members += 1
        self.data_bytes += member.size_bytes
        self.metadata_bytes += len(member.name) + len(member.link)
        if member.xattrs:
            self.metadata_bytes += sum(len(k) + len(v) for k, v in member.xattrs.items())
        sums = (self.members, self.data_bytes, self.metadata_bytes)
        if any(map(operator.gt, sums, self._limits)):
            over = zip(Limits._fields, self._limits, sums, strict=True)
            field, limit, _ = next(one for one in over if one[2] > one[1])
            raise LayerError(
                f"layer: over {limit} {field} at {tar.shown(member.name)}: "
                "keep that much on a volume"
            )


def parse_name(name: bytes) -> Place:
    """What *name* means in a layer. ImageError for a name that could lead out, or is reserved.

    ``./a`` and ``a/`` are ``a``, as tar writes them. No whiteout has another below it, and no
    file's name begins with the prefix.
    """
    parts = parse_path(name)
    if not parts or not parts[-1].startswith(WHITEOUT):
        return Present(parts)
    *parents, last = parts
    if last == OPAQUE:
        return Opaque(tuple(parents))
    hidden = last.removeprefix(WHITEOUT)
    if hidden in {b"", b".", b".."} or is_reserved(hidden):
        raise LayerError(f"layer: {tar.shown(name)} is a whiteout of no file name")
    return Whiteout(tuple(parents), hidden)


def parse_path(name: bytes) -> Parts:
    """Components of *name* from the layer's root; ImageError where parse_name has one.

    Says nothing of the last component, so that a link's target can be told from a whiteout.
    """
    path = name.removesuffix(b"/").removeprefix(b"./")
    if path in {b"", b"."} and name.startswith(b"."):
        return ()
    directory, slash, last = path.rpartition(b"/")
    if not _is_component(last):
        raise LayerError(f"layer: name {tar.shown(name)}, expected a path beneath the root")
    return (*_parse_directory(directory), last) if slash else (last,)


@lru_cache(maxsize=8)  # one name after the other lies in the same
def _parse_directory(path: bytes) -> Parts:
    parts = tuple(path.split(b"/"))
    if not all(map(_is_component, parts)):
        raise LayerError(f"layer: name {tar.shown(path)}, expected a path beneath the root")
    if any(map(is_reserved, parts)):
        raise LayerError(f"layer: {tar.shown(path)}, a whiteout, has a file beneath it")
    return parts


def _is_component(part: bytes) -> bool:
    return part not in _NO_COMPONENTS and len(part) <= MAX_COMPONENT_BYTES


def is_carried(xattr: bytes) -> bool:
    """Whether an extended attribute belongs to the container.

    The rest of security.* (labels, measurements) belongs to the node, and trusted.overlay.* says
    how the node's overlay stores a change.
    """
    if xattr.startswith(b"trusted."):
        return not xattr.startswith(OVERLAY_XATTR)
    return xattr.startswith(b"user.") or xattr in _CARRIED_XATTRS


def check_xattr(xattr: bytes, value: bytes) -> None:
    """ImageError for an attribute that is never saved, or that the kernel would not take."""
    if not is_carried(xattr) and not xattr.startswith(b"security."):
        raise LayerError(f"layer: attribute {tar.shown(xattr)} is none that a container can have")
    if len(xattr) > MAX_XATTR_NAME_BYTES or b"\0" in xattr or len(value) > MAX_XATTR_BYTES:
        raise LayerError(f"layer: attribute {tar.shown(xattr)} is larger than the kernel allows")


def is_reserved(part: bytes) -> bool:
    """Whether no file of a layer can be called *part*."""
    return part.startswith(WHITEOUT)
