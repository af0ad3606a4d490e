"""What a tar member means in an image layer: file or whiteout, and within which bounds. Pure.

Spec: opencontainers/image-spec layer.md@v1.1.0, "Representing Changes".
"""

from __future__ import annotations

from typing import NamedTuple

from grit_runtime.errors import ImageError
from grit_runtime.wire import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.wire.tar import Member

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"

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
    """What the layers below have as *name* in *directory* is gone."""

    directory: Parts
    name: bytes


class Opaque(NamedTuple):
    """All that the layers below have in *directory* is gone."""

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

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.members = self.data_bytes = self.metadata_bytes = 0

    def add(self, member: Member) -> None:
        """ImageError for the member that goes over a limit."""
        self.members += 1
        self.data_bytes += member.size_bytes
        self.metadata_bytes += len(member.name) + len(member.link)
        self.metadata_bytes += sum(len(k) + len(v) for k, v in member.xattrs.items())
        for field in Limits._fields:
            limit = getattr(self._limits, field)
            if getattr(self, field) > limit:
                raise ImageError(
                    f"layer: over {limit} {field} at {tar.shown(member.name)}: "
                    "keep that much on a volume"
                )


def parse_name(name: bytes) -> Place:
    """What *name* stands for. ImageError for a name that could lead out, or is reserved.

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
        raise ImageError(f"layer: {tar.shown(name)} is a whiteout of no file name")
    return Whiteout(tuple(parents), hidden)


def parse_path(name: bytes) -> Parts:
    """Components of *name* from the layer's root; ImageError where parse_name has one.

    Says nothing of the last component, so that a link's target can be told from a whiteout.
    """
    path = name.removesuffix(b"/").removeprefix(b"./")
    if path in {b"", b"."} and name.startswith(b"."):
        return ()
    parts = tuple(path.split(b"/"))
    for part in parts:
        if part in {b"", b".", b".."} or len(part) > MAX_COMPONENT_BYTES:
            raise ImageError(f"layer: name {tar.shown(name)}, expected a path beneath the root")
    if any(is_reserved(part) for part in parts[:-1]):
        raise ImageError(f"layer: name {tar.shown(name)} lies beneath a whiteout")
    return parts


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
        raise ImageError(f"layer: attribute {tar.shown(xattr)} is none that a container can have")
    if len(xattr) > MAX_XATTR_NAME_BYTES or b"\0" in xattr or len(value) > MAX_XATTR_BYTES:
        raise ImageError(f"layer: attribute {tar.shown(xattr)} is larger than the kernel allows")


def is_reserved(part: bytes) -> bool:
    """Whether no file of a layer can be called *part*."""
    return part.startswith(WHITEOUT)
