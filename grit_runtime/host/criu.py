"""CRIU: its configuration file, its log, its version. runc runs it; grit configures it.

Source: criu/config.c (parse_statement), criu/log.c at v4.2.
"""

from __future__ import annotations

import os

from grit_runtime.errors import CommandError, InvalidArgumentError
from grit_runtime.host import process, programs
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.process import Child

_LOG_TAIL_BYTES = 256 << 10

# CRIU begins by probing the kernel, and logs missing features as errors. It then raises its own
# limit of open files, which may fail too (criu/kerndat.c, criu/util.c rlimit_unlimit_nofile).
_PROBES_END = "rlimit: "
_GIVEN_UP = "Restoring FAILED"  # criu/cr-restore.c restore_root_task@2cf8f13
# CRIU's helper logs this at the end of every restore.
_NOISE = "cgroupd: recv req error"


class Version(NamedTuple):
    major: int
    minor: int
    patch: int


def prefer(configured: str) -> None:
    """Put the *configured* criu first on PATH, where grit and runc look; "" is the first found.

    CRIU finds iptables and ip on PATH too. NotFoundError if there is no criu.
    """
    directory, name = os.path.split(programs.find("criu", configured))
    if name != "criu":
        raise InvalidArgumentError(
            f"criu at {configured}: runc runs what is named criu, give it that name"
        )
    os.environ["PATH"] = ":".join(([directory] if configured else []) + programs.directories())


def start_version(token: str) -> Child:
    """Start the criu on PATH, which takes a moment; `read_version` reads its answer."""
    return process.start(["criu", "--version"], token=token)


def read_version(asked: Child) -> Version:
    """The version that the started criu prints; CommandError if it prints none."""
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

    The first error is the cause, later ones are consequences. A restore that misses an image logs
    only a warning ("No pagemap-1.img image"), so without an error the last warning is taken.
    """
    lines = _after_probes(log_path)
    if errors := telling_lines(log_path):
        return errors[0]
    warnings = [line for line in lines if "Warn " in line or ".img image" in line]
    return _message(warnings[-1]) if warnings else None


def telling_lines(log_path: str) -> list[str]:
    """All errors of a CRIU log as `decisive_line` gives the first: causes, then consequences."""
    lines = _after_probes(log_path)
    return [_message(line) for line in lines if "Error (" in line and _NOISE not in line]


def _after_probes(log_path: str) -> list[str]:
    lines = _last_lines(log_path)
    return lines[next((at + 1 for at, line in enumerate(lines) if _PROBES_END in line), 0) :]


def has_given_up(log_path: str) -> bool:
    """Whether a restore failed by itself and killed its tasks, which its last line says."""
    return any(_GIVEN_UP in line for line in _last_lines(log_path))


def _last_lines(log_path: str) -> list[str]:
    """The end of a log; none if there is none."""
    try:
        with open(log_path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _message(line: str) -> str:
    """``(00.02) 1: Error (criu/mount.c:25): mnt: No`` as ``criu/mount.c:25: mnt: No``."""
    for kind in ("Error (", "Warn  (", "Warn ("):
        if kind in line:
            return line.split(kind, 1)[1].replace("):", ":", 1).strip()
    return line.strip()
