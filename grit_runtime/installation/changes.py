"""What an installation changes on a node's disk, recorded so that every byte can be put back.

The journal lives as long as the installation does. A change is recorded before it is made, so the
next call finds what a killed one had begun, and finishes it or takes it back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from contextlib import contextmanager, suppress
from pathlib import Path

from grit_runtime import log, paths
from grit_runtime.errors import FailedPreconditionError
from grit_runtime.host import journal
from grit_runtime.model import installation_steps as steps
from grit_runtime.model.installation_steps import STEPS, InstallationStep
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import BinaryIO

    from grit_runtime.host.journal import Journal

DIR = f"{paths.STATE_DIR}/installation"
JOURNAL = f"{DIR}/journal"
_ORIGINALS = f"{DIR}/originals"

_BEGIN = "# begin: written by grit install, taken away by grit uninstall\n"
_END = "# end of what grit install has written\n"
_NEW = ".grit-new"  # what is being written

CONTAINERD, SYSTEMD = "containerd", "systemd"


class File(NamedTuple):
    """A file that is grit's alone."""

    content: bytes
    mode: int = 0o644
    read_by: str = ""


class Link(NamedTuple):
    """A symbolic link."""

    target: str
    read_by: str = ""


class Block(NamedTuple):
    """Lines at the end of a file that others write too; *stub* begins it if it is not there."""

    text: str
    stub: str = ""
    read_by: str = ""


Change = File | Link | Block
Made = steps.Directory | steps.File | steps.Block


def hold() -> Journal[InstallationStep]:
    """The journal of this node's installation, locked. Blocks while another call has it."""
    os.makedirs(DIR, mode=0o700, exist_ok=True)
    return journal.hold(JOURNAL, STEPS)


@contextmanager
def opened() -> Iterator[Journal[InstallationStep]]:
    """The same, for one call; it ends with the call if nothing is recorded in it."""
    held = hold()
    try:
        yield held
    finally:
        if os.path.exists(held.path):
            if held.steps():
                held.close()
            else:
                end(held)


def recorded() -> list[InstallationStep]:
    """The steps of this node's installation; none if there is none."""
    with suppress(FileNotFoundError):
        return journal.read(JOURNAL, STEPS)
    return []


def choice(done: Sequence[InstallationStep]) -> steps.Choice | None:
    """What was last asked for."""
    return next((step for step in reversed(done) if isinstance(step, steps.Choice)), None)


def is_leaving(done: Sequence[InstallationStep]) -> bool:
    """Whether it was last asked for that all be taken back."""
    asked = [step for step in done if isinstance(step, steps.Choice | steps.Leaving)]
    return bool(asked) and isinstance(asked[-1], steps.Leaving)


def standing(done: Sequence[InstallationStep]) -> dict[str, Made]:
    """What is, or may be, changed, by paths in the order in which it was."""
    found: dict[str, Made] = {}
    for step in done:
        if isinstance(step, steps.TakenBack):
            found.pop(step.path, None)
        elif not isinstance(step, steps.Choice | steps.Leaving):
            found.setdefault(step.path, step)
    return found


def before(step: Made) -> bytes | None:
    """What *step* leaves of its file when it is taken back; None for no file."""
    if isinstance(step, steps.Block):
        if not os.path.exists(step.path):
            return None
        text = without_block(step.path)
        return None if step.stub is not None and text == step.stub.encode() else text
    original = step.original if isinstance(step, steps.File) else ""
    return Path(original).read_bytes() if original and os.path.exists(original) else None


def without_block(path: str) -> bytes:
    """The file without grit's lines, and the line end before them; empty if there is none.

    FailedPreconditionError if somebody has taken one of their marks away.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return b""
    mark = _BEGIN.encode()
    if data.startswith(mark):  # somebody has removed what was before, or the line end alone
        data = b"\n" + data
    head, begin, rest = data.partition(b"\n" + mark)
    _, end, tail = rest.partition(_END.encode())
    if not begin and _END.encode() not in data:
        return data
    if not end:
        raise FailedPreconditionError(
            f"{path} has only one of the lines {_BEGIN.strip()!r} and {_END.strip()!r}; remove "
            "what grit has written there, and that line"
        )
    # The line end before the mark may be the only one that is left, and what follows another's.
    is_joined = head and tail and not head.endswith(b"\n")
    return head + b"\n" * bool(is_joined) + tail


def content(path: str, change: Change) -> bytes:
    """What a file is with *change*, whatever an earlier one has made of it."""
    if isinstance(change, Link):
        return change.target.encode()
    if isinstance(change, File):
        return change.content
    text = without_block(path) if os.path.exists(path) else change.stub.encode()
    return text + f"\n{_BEGIN}{change.text}{_END}".encode()


def is_made(path: str, change: Change) -> bool:
    """Whether *path* is as *change* makes it."""
    if isinstance(change, Link):
        return os.path.islink(path) and os.readlink(path) == change.target
    if os.path.islink(path) or not os.path.exists(path):
        return False
    is_same = Path(path).read_bytes() == content(path, change)
    return is_same and (isinstance(change, Block) or _mode(path) == change.mode)


def make(changes: Mapping[str, Change], held: Journal[InstallationStep]) -> list[str]:
    """Have all of *changes* and nothing else of grit's; who has to read anew what has changed."""
    done = standing(held.steps())
    readers = set()
    for path, step in reversed(done.items()):
        if path not in changes and not isinstance(step, steps.Directory):
            readers.add(take_back(step, held))
    for path, change in changes.items():
        if path in done and is_made(path, change):
            continue
        if path not in done:
            make_directory(os.path.dirname(path), held)
            held.record(_step(path, change))
            _flush(held.path)
        _write(path, change)
        readers.add(change.read_by)
    return sorted(readers - {""})


def make_directory(path: str, held: Journal[InstallationStep], *, mode: int = 0o755) -> None:
    """Have a directory, and those that it is in."""
    if os.path.isdir(path):
        return
    make_directory(os.path.dirname(path), held)
    held.record(steps.Directory(path))
    os.mkdir(path, mode)


def take_back(step: Made, held: Journal[InstallationStep]) -> str:
    """Have a path as it was before; who has to read it anew. Harmless if it is so already."""
    _remove(step.path + _NEW)
    if isinstance(step, steps.Directory):
        with suppress(OSError):  # it holds what others have put there, or has gone
            os.rmdir(step.path)
    elif isinstance(step, steps.Block):
        _take_block(step)
    elif not step.original:
        _remove(step.path)
    elif os.path.lexists(step.original) and not _is_as(step.original, step.path):
        _replace(step.original, step.path)
    held.record(steps.TakenBack(step.path))
    if isinstance(step, steps.Directory):
        return ""
    if step.original:  # only now: a killed call's next one may install, and needs it then
        _remove(step.original)
    return step.read_by


def take_all_back(held: Journal[InstallationStep]) -> None:
    """Have all as it was before, and forget the installation; what cannot be so stays recorded.

    For an installation that has failed, whose error says more than those that are met here.
    """
    is_whole = True
    for step in reversed(standing(held.steps()).values()):
        try:
            take_back(step, held)
        except OSError as error:
            log.warning("not taken back", path=step.path, reason=error)
            is_whole = False
    if is_whole:
        end(held)


def end(held: Journal[InstallationStep]) -> None:
    """Forget the installation, of which nothing stands any more."""
    shutil.rmtree(_ORIGINALS, ignore_errors=True)
    held.end()
    for directory in (DIR, paths.STATE_DIR):
        with suppress(OSError):  # the second holds what outlives an installation
            os.rmdir(directory)


def _step(path: str, change: Change) -> Made:
    original = _keep_original(path) if os.path.lexists(path) else ""
    if isinstance(change, Block):
        stub = None if original else change.stub
        return steps.Block(path, original, change.read_by, stub)
    return steps.File(path, original, change.read_by)


def _keep_original(path: str) -> str:
    os.makedirs(_ORIGINALS, mode=0o700, exist_ok=True)
    kept = f"{_ORIGINALS}/{hashlib.sha256(path.encode()).hexdigest()[:16]}-{os.path.basename(path)}"
    Path(kept).unlink(missing_ok=True)
    _replace(path, kept)
    return kept


def _take_block(step: steps.Block) -> None:
    text = before(step)
    if text is None:
        _remove(step.path)
        return
    is_original = os.path.exists(step.original) and Path(step.original).read_bytes() == text
    if is_original and not _is_as(step.original, step.path):
        _replace(step.original, step.path)  # its times too
    if os.path.exists(step.path) and Path(step.path).read_bytes() != text:
        _write_whole(step.path, text, _mode(step.path))


def _write(path: str, change: Change) -> None:
    if isinstance(change, Link):
        new = path + _NEW
        _remove(new)
        os.symlink(change.target, new)
        os.rename(new, path)
        return
    mode = 0o644
    if isinstance(change, File):
        mode = change.mode
    elif os.path.exists(path):
        mode = _mode(path)
    _write_whole(path, content(path, change), mode)


def _write_whole(path: str, text: bytes, mode: int) -> None:
    """Replace a file in one step; its owner stays who it was."""
    new = path + _NEW
    _remove(new)
    try:
        with _begun(new) as file:
            if os.path.exists(path):
                was = os.stat(path)
                os.fchown(file.fileno(), was.st_uid, was.st_gid)
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise
    _flush(os.path.dirname(path))


def _replace(source: str, path: str) -> None:
    """Put a copy of *source*, a file or a link, at *path* in one step, with all that it has."""
    new = path + _NEW
    _remove(new)
    was = os.lstat(source)
    try:
        if stat.S_ISLNK(was.st_mode):
            os.symlink(os.readlink(source), new)
        else:
            with open(source, "rb") as old, _begun(new) as file:
                shutil.copyfileobj(old, file)
        os.chown(new, was.st_uid, was.st_gid, follow_symlinks=False)
        shutil.copystat(source, new, follow_symlinks=False)
        if not os.path.islink(new):
            _flush(new)
        os.rename(new, path)
    except BaseException:
        _remove(new)
        raise


def _begun(path: str) -> BinaryIO:
    """A new file, which nobody else can read before it has its own mode: it may hold secrets."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb")


def _is_as(original: str, path: str) -> bool:
    """Whether the file has never been changed: it may be where nothing can be replaced."""
    if not os.path.lexists(path):
        return False
    kept, now = os.lstat(original), os.lstat(path)
    return (kept.st_mtime_ns, kept.st_size, kept.st_mode) == (
        *(now.st_mtime_ns, now.st_size, now.st_mode),
    )


def _remove(path: str) -> None:
    """Remove a file or a link, if there is one: on a read-only disk it is an error to try."""
    if os.path.lexists(path):
        os.unlink(path)


def _mode(path: str) -> int:
    return os.stat(path).st_mode & 0o7777


def _flush(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
