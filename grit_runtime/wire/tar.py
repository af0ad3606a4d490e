"""Tar headers: bytes to members and back. Knows no files, and nothing of layers.

Written as POSIX pax (IEEE 1003.1-2017, pax, "pax Interchange Format"), with extended attributes as
SCHILY.xattr.NAME records. Read: ustar, pax, and GNU's long names and base-256 numbers. Sparse and
multi-volume formats are refused: read as plain files they would become other files.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from grit_runtime.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FILE = "0"
HARD_LINK = "1"
SYMLINK = "2"
CHAR_DEVICE = "3"
BLOCK_DEVICE = "4"
DIRECTORY = "5"
FIFO = "6"

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)

MAX_NAME_BYTES = 4095  # PATH_MAX without its NUL
MAX_EXTENSION_BYTES = 1 << 20  # the kernel's limit for all attributes of a file is 64 KiB each
MAX_ID = (1 << 32) - 2  # chown takes -1 for "leave it"
MAX_SIZE_BYTES = (1 << 63) - 1
MAX_SECONDS = 1 << 62

_KINDS = frozenset({FILE, HARD_LINK, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO})
_LINKS = frozenset({HARD_LINK, SYMLINK})
_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK = "x", "g", "L", "K"
_EXTENSIONS = frozenset({_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK})
_MAX_EXTENSIONS = 8  # headers before one member
_XATTR = b"SCHILY.xattr."

# name, mode, uid, gid, size, mtime, checksum, type, link, magic and version, user and group names,
# device, prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_POSIX_MAGIC = b"ustar\x0000"
_GNU_MAGIC = b"ustar  \x00"


class Member(NamedTuple):
    """A file of the archive. A regular file's *size_bytes* of data follow, padded to a block."""

    name: bytes
    kind: str
    mode: int  # permission, setuid, setgid and sticky bits
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[bytes, bytes]
    size_bytes: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)


def padding(size_bytes: int) -> int:
    """Bytes between data of *size_bytes* and the next block."""
    return -size_bytes % BLOCK_BYTES


def encode(member: Member) -> bytes:
    """The header blocks of *member*; pax records only for what the ustar header can't hold."""
    records = _records(member)
    if not records:
        return _header(member)
    body = b"".join(_record(key, value) for key, value in records.items())
    pax = Member(b"PaxHeaders/pax", _PAX, 0o644, 0, 0, 0, {}, size_bytes=len(body))
    return _header(pax) + body + bytes(padding(len(body))) + _header(member)


def read_member(read: Callable[[int], bytes]) -> Member | None:
    """The next member, or None at the end of the archive; *read* returns exactly as asked.

    Leaves the member's data to the caller. ImageError for anything that is no well-formed member.
    """
    fields: dict[bytes, bytes] = {}
    for _ in range(_MAX_EXTENSIONS):
        block = read(BLOCK_BYTES)
        if not any(block):
            if fields or any(read(BLOCK_BYTES)):
                raise ImageError("tar: a lone block of zeros, expected a header or two of them")
            return None
        member = _parse_header(block)
        if member.kind not in _EXTENSIONS:
            return _checked(_extended(member, fields))
        fields |= _read_extension(member, read)
    raise ImageError(f"tar: more than {_MAX_EXTENSIONS} extended headers for one member")


def shown(name: bytes) -> str:
    """*name* for a message: quoted, on one line, of bounded length."""
    text = repr(name)[1:]
    return text if len(text) <= 200 else text[:200] + "..."


def _header(member: Member) -> bytes:
    major, minor = member.device
    header = _HEADER.pack(
        member.name,
        _octal(member.mode, 8),
        _octal(member.uid, 8),
        _octal(member.gid, 8),
        _octal(member.size_bytes, 12),
        _octal(member.mtime_ns // 10**9, 12),
        b" " * 8,
        member.kind.encode(),
        member.link,
        _POSIX_MAGIC,
        b"",
        b"",
        _octal(major, 8),
        _octal(minor, 8),
        b"",
    )
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _octal(value: int, width: int) -> bytes:
    """*value* in a field of *width* bytes, zero when it does not fit: a pax record has it then."""
    return b"%0*o" % (width - 1, value if _fits(value, width) else 0)


def _fits(value: int, width: int) -> bool:
    return 0 <= value < 1 << 3 * (width - 1)


def _records(member: Member) -> dict[bytes, bytes]:
    records = {}
    if len(member.name) > 100 or not member.name.isascii():
        records[b"path"] = member.name
    if len(member.link) > 100 or not member.link.isascii():
        records[b"linkpath"] = member.link
    for key, value in ((b"uid", member.uid), (b"gid", member.gid)):
        if not _fits(value, 8):
            records[key] = b"%d" % value
    if not _fits(member.size_bytes, 12):
        records[b"size"] = b"%d" % member.size_bytes
    seconds, fraction = divmod(member.mtime_ns, 10**9)
    if fraction or not _fits(seconds, 12):
        records[b"mtime"] = _decimal(member.mtime_ns)
    return records | {_XATTR + name: value for name, value in sorted(member.xattrs.items())}


def _decimal(time_ns: int) -> bytes:
    seconds, fraction = divmod(abs(time_ns), 10**9)
    return b"%s%d.%09d" % (b"-" if time_ns < 0 else b"", seconds, fraction)


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE\\n``, where LENGTH counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _parse_header(block: bytes) -> Member:
    (name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, major, minor, prefix) = (
        _HEADER.unpack(block)
    )
    if magic not in {_POSIX_MAGIC, _GNU_MAGIC}:
        raise ImageError("tar: no ustar or GNU tar header where one is expected")
    if _number(checksum, "checksum") != sum(block) - sum(checksum) + 8 * ord(" "):
        raise ImageError("tar: a header has a wrong checksum")
    path = _text(name)
    if magic == _POSIX_MAGIC and prefix[0]:
        path = _text(prefix) + b"/" + path
    return Member(
        path,
        FILE if kind in b"\x007" else kind.decode("latin-1"),
        _number(mode, "mode") & 0o7777,
        _number(uid, "uid"),
        _number(gid, "gid"),
        _number(mtime, "mtime") * 10**9,
        {},
        size_bytes=_number(size, "size"),
        link=_text(link),
        device=(_number(major, "devmajor"), _number(minor, "devminor")),
    )


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes, name: str) -> int:
    if field[0] & 0x80:  # GNU's base 256: the top bit marks it, the next is the sign
        sign = 0x80 if field[0] & 0x40 else 0
        return int.from_bytes(bytes([field[0] & 0x7F | sign]) + field[1:], "big", signed=True)
    digits = _text(field).strip(b" ")
    if digits.strip(b"01234567"):
        raise ImageError(f"tar: {name} is {digits!r}, expected an octal number")
    return int(digits or b"0", 8)


def _read_extension(header: Member, read: Callable[[int], bytes]) -> dict[bytes, bytes]:
    if not 0 <= header.size_bytes <= MAX_EXTENSION_BYTES:
        raise ImageError(
            f"tar: an extended header of {header.size_bytes} bytes, "
            f"expected at most {MAX_EXTENSION_BYTES}"
        )
    body = read(header.size_bytes + padding(header.size_bytes))[: header.size_bytes]
    if header.kind == _GNU_LONG_NAME:
        return {b"path": _text(body)}
    if header.kind == _GNU_LONG_LINK:
        return {b"linkpath": _text(body)}
    records = _parse_records(body)
    if header.kind == _PAX_GLOBAL and records.keys() - {b"comment"}:
        raise ImageError("tar: a global extended header, expected each member to have its own")
    return records


def _parse_records(body: bytes) -> dict[bytes, bytes]:
    records = {}
    offset = 0
    while offset < len(body):
        digits = body[offset : offset + 20].partition(b" ")[0]
        end = offset + int(digits) if digits.isdigit() else 0
        record = body[offset + len(digits) + 1 : end - 1]
        key, equals, value = record.partition(b"=")
        if not (equals and key) or body[end - 1 : end] != b"\n":
            raise ImageError(f"tar: bad record at byte {offset} of an extended header")
        records[key] = value
        offset = end
    return records


def _extended(member: Member, fields: dict[bytes, bytes]) -> Member:
    for key in fields:
        if key.startswith(b"GNU.sparse."):
            raise ImageError(
                f"tar: {shown(member.name)} is stored sparse, expected all of its data"
            )
    return member._replace(
        name=fields.get(b"path") or member.name,
        link=fields.get(b"linkpath") or member.link,
        uid=_decimal_or(fields.get(b"uid"), member.uid),
        gid=_decimal_or(fields.get(b"gid"), member.gid),
        size_bytes=_decimal_or(fields.get(b"size"), member.size_bytes),
        mtime_ns=_parse_time(fields[b"mtime"]) if fields.get(b"mtime") else member.mtime_ns,
        xattrs={k[len(_XATTR) :]: v for k, v in fields.items() if k.startswith(_XATTR)},
    )


def _decimal_or(text: bytes | None, default: int) -> int:
    """A pax number; an empty value means the header's own, as for all records."""
    if not text:
        return default
    if not text.isdigit() or len(text) > 20:
        raise ImageError(f"tar: {text[:40]!r} in an extended header, expected a number")
    return int(text)


def _parse_time(text: bytes) -> int:
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if not (whole + fraction).isdigit() or len(text) > 40:
        raise ImageError(f"tar: mtime {text[:40]!r} in an extended header, expected seconds")
    time_ns = int(whole or b"0") * 10**9 + int(fraction[:9].ljust(9, b"0"))
    return -time_ns if text.startswith(b"-") else time_ns


def _checked(member: Member) -> Member:
    """*member* when each field is in its range: base 256 and pax records can hold any number."""
    if member.kind not in _KINDS:
        raise ImageError(f"tar: {shown(member.name)} has type {member.kind!r}, expected 0 to 7")
    for name in (member.name, member.link):
        if len(name) > MAX_NAME_BYTES or b"\0" in name:
            raise ImageError(f"tar: {shown(name)} is no path, it is too long or has a NUL")
    size_limit = MAX_SIZE_BYTES if member.kind == FILE else 0
    for field, value, limit in (
        ("uid", member.uid, MAX_ID),
        ("gid", member.gid, MAX_ID),
        ("size", member.size_bytes, size_limit),
        ("mtime", abs(member.mtime_ns) // 10**9, MAX_SECONDS),
        ("devmajor", member.device[0], (1 << 12) - 1),
        ("devminor", member.device[1], (1 << 20) - 1),
    ):
        if not 0 <= value <= limit:
            raise ImageError(
                f"tar: {shown(member.name)}: {field} is {value}, expected 0 to {limit}"
            )
    if member.kind in _LINKS and not member.link:
        raise ImageError(f"tar: link {shown(member.name)} leads nowhere")
    if member.kind == FILE and member.name.endswith(b"/"):
        raise ImageError(f"tar: {shown(member.name)} is a file with the name of a directory")
    return member
