"""CRIU: its configuration file, its log, its version. runc runs it; we only steer and read.

Source: criu/config.c (parse_statement), criu/log.c at v4.2.
"""

import os
from typing import NamedTuple

from grit_runtime.errors import CommandError, InvalidArgumentError
from grit_runtime.host import process
from grit_runtime.host.process import Child

_LOG_TAIL_BYTES = 256 << 10

# CRIU begins by probing the kernel, and logs as errors what it finds missing. Raising its own limit
# of open files, which may fail too, ends that (criu/kerndat.c, criu/util.c rlimit_unlimit_nofile).
_PROBES_END = "rlimit: "
# What its helper says whenever the restore itself has ended.
_NOISE = "cgroupd: recv req error"


class Version(NamedTuple):
    major: int
    minor: int
    patch: int


def ask_version(token: str) -> Child:
    """Start the criu on PATH, which takes a moment; `version` hears its answer."""
    return process.start(["criu", "--version"], token=token)


def version(asked: Child) -> Version:
    """The version of the criu that was asked; CommandError if there is none."""
    text = process.output(asked).decode()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "Version":
            return parse_version(value.strip())
    raise CommandError(f"criu --version: expected a line 'Version: X.Y', got {text[:80]!r}")


def parse_version(text: str) -> Version:
    """``4.2.1`` or ``4.2`` as three numbers; ValueError otherwise."""
    numbers = [int(part) for part in text.split(".")[:3]]
    return Version(*numbers, *[0] * (3 - len(numbers)))


def write_config(path: str, lines: list[str]) -> None:
    """Write a private CRIU configuration file: one option a line, no dashes."""
    for line in lines:
        if "\n" in line or "#" in line:
            raise InvalidArgumentError(
                f"{line!r} cannot stand in a CRIU configuration file: it holds a newline or a '#'"
            )
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in lines)


def decisive_line(log_path: str) -> str | None:
    """The line of a CRIU log that says why it failed, without stamp and prefix; None if none does.

    The first error is the cause, those after it are consequences. A restore that misses an image
    logs a warning alone ("No pagemap-1.img image"), so the last warning is taken without an error.
    """
    try:
        with open(log_path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    begin = next((at + 1 for at, line in enumerate(lines) if _PROBES_END in line), 0)
    lines = lines[begin:]
    errors = [line for line in lines if "Error (" in line and _NOISE not in line]
    if errors:
        return _message(errors[0])
    warnings = [line for line in lines if "Warn " in line or ".img image" in line]
    return _message(warnings[-1]) if warnings else None


def _message(line: str) -> str:
    """``(00.02) 1: Error (criu/mount.c:25): mnt: No`` as ``criu/mount.c:25: mnt: No``."""
    for kind in ("Error (", "Warn  (", "Warn ("):
        if kind in line:
            return line.split(kind, 1)[1].replace("):", ":", 1).strip()
    return line.strip()
