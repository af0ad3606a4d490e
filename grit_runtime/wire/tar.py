"""Tar headers: bytes to members and back. Knows no files, and nothing of layers.

Written as POSIX pax (IEEE 1003.1-2017, pax, "pax Interchange Format"), with extended attributes as
SCHILY.xattr.NAME records. Read: ustar, pax, and GNU's long names and base-256 numbers. Sparse and
multi-volume formats are refused: read as plain files they would become other files.

This is not tarfile, which reads a pax header of any size into memory, takes damage in the middle
for the end, and loads shutil.
"""

from __future__ import annotations

import operator
import struct
import zlib
from functools import lru_cache

from grit_runtime.errors import LayerError
from grit_runtime.startup.named import NamedTuple

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
SOCKET = "s"  # tar has none: a fifo, with a record that only we read

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)

MAX_NAME_BYTES = 4095  # PATH_MAX without its NUL
MAX_EXTENSION_BYTES = 1 << 20  # the kernel's limit for all attributes of a file is 64 KiB each
MAX_ID = (1 << 32) - 2  # chown takes -1 for "leave it"
MAX_SIZE_BYTES = (1 << 63) - 1
MAX_SECONDS = 1 << 62

DEVICES = frozenset({CHAR_DEVICE, BLOCK_DEVICE})

_KINDS = frozenset({FILE, HARD_LINK, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO, SOCKET})
_LINKS = frozenset({HARD_LINK, SYMLINK})
_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK = "x", "g", "L", "K"
_EXTENSIONS = frozenset({_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK})
_MAX_EXTENSIONS = 8  # headers before one member
_XATTR = b"SCHILY.xattr."
_TYPE, _SOCKET = b"GRIT.type", b"socket"

_NUMBERS = ("uid", "gid", "size", "mtime", "devmajor", "devminor")
_LIMITS = (MAX_ID, MAX_ID, MAX_SIZE_BYTES, MAX_SECONDS, (1 << 12) - 1, (1 << 20) - 1)
_LIMITS_WITHOUT_DATA = (*_LIMITS[:2], 0, *_LIMITS[3:])

# name; mode, uid and gid; size, mtime, checksum, type, link, magic and version; user and group
# names; device, prefix
_HEADER = struct.Struct("100s24s12s12s8sc100s8s64s16s155s12x")
_KIND_AT, _PAX_BYTE = 156, ord(_PAX)
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
    body = b"".join(_records(member))
    if not body:
        return _header(member)
    return _pax_header(len(body)) + body + bytes(padding(len(body))) + _header(member)


def read_member(read: Callable[[int], bytes]) -> Member | None:
    """The next member, or None at the end of the archive; *read* returns exactly as asked.

    The caller reads the member's data. ImageError for a malformed member.
    """
    fields: dict[bytes, bytes] = {}
    for _ in range(_MAX_EXTENSIONS):
        block = read(BLOCK_BYTES)
        if not any(block):
            if fields or any(read(BLOCK_BYTES)):
                raise LayerError("tar: a lone block of zeros, expected a header or two of them")
            return None
        parse = _parse_alike if block[_KIND_AT] == _PAX_BYTE else _parse_header
        member = parse(block)
        if member.kind not in _EXTENSIONS:
            return _checked(_extended(member, fields))
        fields |= _read_extension(member, read)
    raise LayerError(f"tar: more than {_MAX_EXTENSIONS} extended headers for one member")


def shown(name: bytes) -> str:
    """*name* for a message: quoted, on one line, of bounded length."""
    text = repr(name)[1:]
    return text if len(text) <= 200 else text[:200] + "..."


@lru_cache(maxsize=64)
def _pax_header(size_bytes: int) -> bytes:
    return _header(Member(b"PaxHeaders/pax", _PAX, 0o644, 0, 0, 0, {}, size_bytes=size_bytes))


def _header(member: Member) -> bytes:
    header = _HEADER.pack(
        member.name,
        _octals(member.mode, member.uid, member.gid),
        _octal(member.size_bytes, 12),
        _octal(member.mtime_ns // 10**9, 12),
        b" " * 8,
        (FIFO if member.kind == SOCKET else member.kind).encode(),
        member.link,
        _POSIX_MAGIC,
        b"",
        _octals(*member.device),
        b"",
    )
    return header[:148] + b"%06o\0 " % _sum(header) + header[156:]


@lru_cache(maxsize=1024)
def _octals(*values: int) -> bytes:
    """Fields of 8 bytes."""
    return b"".join([_octal(value, 8) for value in values])


@lru_cache(maxsize=1024)
def _octal(value: int, width: int) -> bytes:
    """*value* in a field of *width* bytes; zero if it does not fit and so is in a pax record."""
    return b"%0*o\0" % (width - 1, value if _fits(value, width) else 0)


def _fits(value: int, width: int) -> bool:
    return 0 <= value < 1 << 3 * (width - 1)


def _records(member: Member) -> list[bytes]:
    records = []
    if len(member.name) > 100 or not member.name.isascii():
        records.append(_record(b"path", member.name))
    if len(member.link) > 100 or not member.link.isascii():
        records.append(_record(b"linkpath", member.link))
    records += _owner_records(member.uid, member.gid)
    if not _fits(member.size_bytes, 12):
        records.append(_record(b"size", b"%d" % member.size_bytes))
    seconds, fraction = divmod(member.mtime_ns, 10**9)
    if fraction or not _fits(seconds, 12):
        records.append(_record(b"mtime", _decimal(member.mtime_ns)))
    if member.kind == SOCKET:
        records.append(_record(_TYPE, _SOCKET))
    if member.xattrs:
        records += [_record(_XATTR + name, value) for name, value in sorted(member.xattrs.items())]
    return records


@lru_cache(maxsize=64)
def _owner_records(uid: int, gid: int) -> tuple[bytes, ...]:
    ids = ((b"uid", uid), (b"gid", gid))
    return tuple(_record(key, b"%d" % value) for key, value in ids if not _fits(value, 8))


def _decimal(time_ns: int) -> bytes:
    seconds, fraction = divmod(abs(time_ns), 10**9)
    return b"%s%d.%09d" % (b"-" if time_ns < 0 else b"", seconds, fraction)


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE\\n``, where LENGTH counts its own digits."""
    return b"%d %s=%s\n" % (_record_bytes(len(key) + len(value) + 3), key, value)


@lru_cache(maxsize=64)
def _record_bytes(rest: int) -> int:
    length = rest + len(str(rest))
    return rest + len(str(length))


def _sum(block: bytes) -> int:
    """The sum of the bytes of a header."""
    # Adler-32's lower half is the sum modulo 65521, which a block of ASCII does not reach.
    return zlib.adler32(block, 0) & 0xFFFF if block.isascii() else sum(block)


def _parse_header(block: bytes) -> Member:
    name, owner, size, mtime, checksum, kind, link, magic, _, device, prefix = _HEADER.unpack(block)
    if magic not in {_POSIX_MAGIC, _GNU_MAGIC}:
        raise LayerError("tar: no ustar or GNU tar header where one is expected")
    # Its own field counts as blanks.
    if _number(checksum, "checksum") != _sum(block) - sum(checksum) + 8 * ord(" "):
        raise LayerError("tar: a header has a wrong checksum")
    path = _text(name)
    if magic == _POSIX_MAGIC and prefix[0]:
        path = _text(prefix) + b"/" + path
    mode, uid, gid = _numbers(owner, ("mode", "uid", "gid"))
    major, minor = _numbers(device, ("devmajor", "devminor"))
    return Member(
        path,
        FILE if kind in b"\x007" else kind.decode("latin-1"),
        mode & 0o7777,
        uid,
        gid,
        _number(mtime, "mtime") * 10**9,
        {},
        _number(size, "size"),
        _text(link),
        (major, minor),
    )


# The headers of extended headers are much the same.
_parse_alike = lru_cache(maxsize=64)(_parse_header)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


@lru_cache(maxsize=1024)
def _numbers(fields: bytes, names: tuple[str, ...]) -> tuple[int, ...]:
    """Fields of 8 bytes."""
    return tuple(_number(fields[8 * at : 8 * at + 8], name) for at, name in enumerate(names))


@lru_cache(maxsize=1024)
def _number(field: bytes, name: str) -> int:
    if field[0] & 0x80:  # GNU's base 256: the top bit marks it, the next is the sign
        sign = 0x80 if field[0] & 0x40 else 0
        return int.from_bytes(bytes([field[0] & 0x7F | sign]) + field[1:], "big", signed=True)
    digits = _text(field).strip(b" ")
    if digits.strip(b"01234567"):
        raise LayerError(f"tar: {name} is {digits!r}, expected an octal number")
    return int(digits or b"0", 8)


def _read_extension(header: Member, read: Callable[[int], bytes]) -> dict[bytes, bytes]:
    if not 0 <= header.size_bytes <= MAX_EXTENSION_BYTES:
        raise LayerError(
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
        raise LayerError("tar: a global extended header, expected each member to have its own")
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
            raise LayerError(f"tar: bad record at byte {offset} of an extended header")
        records[key] = value
        offset = end
    return records


def _extended(member: Member, fields: dict[bytes, bytes]) -> Member:
    """*member* with what the records before it say."""
    if not fields:
        return member
    xattrs = {}
    for key, value in fields.items():
        if key.startswith(_XATTR):
            xattrs[key[len(_XATTR) :]] = value
        elif key.startswith(b"GNU.sparse."):
            raise LayerError(
                f"tar: {shown(member.name)} is stored sparse, expected all of its data"
            )
    get = fields.get  # an empty value means the header's own
    uid, gid, size, mtime = get(b"uid"), get(b"gid"), get(b"size"), get(b"mtime")
    is_socket = member.kind == FIFO and get(_TYPE) == _SOCKET
    return Member(
        get(b"path") or member.name,
        SOCKET if is_socket else member.kind,
        member.mode,
        _parse_decimal(uid) if uid else member.uid,
        _parse_decimal(gid) if gid else member.gid,
        _parse_time(mtime) if mtime else member.mtime_ns,
        xattrs,
        _parse_decimal(size) if size else member.size_bytes,
        get(b"linkpath") or member.link,
        member.device,
    )


def _parse_decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise LayerError(f"tar: {text[:40]!r} in an extended header, expected a number")
    return int(text)


def _parse_time(text: bytes) -> int:
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if not (whole + fraction).isdigit() or len(text) > 40:
        raise LayerError(f"tar: mtime {text[:40]!r} in an extended header, expected seconds")
    time_ns = int(whole or b"0") * 10**9 + int(fraction[:9].ljust(9, b"0"))
    return -time_ns if text.startswith(b"-") else time_ns


def _checked(member: Member) -> Member:
    """*member* when each field is in its range: base 256 and pax records can hold any number."""
    name, kind, _, uid, gid, mtime_ns, _, size_bytes, link, device = member
    if kind not in _KINDS:
        raise LayerError(f"tar: {shown(name)} has type {kind!r}, expected 0 to 7")
    for text in (name, link):
        if len(text) > MAX_NAME_BYTES or b"\0" in text:
            raise LayerError(f"tar: {shown(text)} is no path, it is too long or has a NUL")
    numbers = (uid, gid, size_bytes, abs(mtime_ns) // 10**9, *device)
    limits = _LIMITS if kind == FILE else _LIMITS_WITHOUT_DATA
    if min(numbers) < 0 or not all(map(operator.le, numbers, limits)):
        wrong = (
            one for one in zip(_NUMBERS, numbers, limits, strict=True) if not 0 <= one[1] <= one[2]
        )
        field, number, limit = next(wrong)
        raise LayerError(f"tar: {shown(name)}: {field} is {number}, expected 0 to {limit}")
    if kind in _LINKS and not link:
        raise LayerError(f"tar: link {shown(name)} leads nowhere")
    if kind == FILE and name.endswith(b"/"):
        raise LayerError(f"tar: {shown(name)} is a file with the name of a directory")
    return member
