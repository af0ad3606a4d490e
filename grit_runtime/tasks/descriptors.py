"""Facts about a running process's descriptors that decide whether CRIU can dump them.

Spec: proc_pid_fd(5), proc_pid_fdinfo(5); linux fs/proc/fd.c.
"""

from __future__ import annotations

import os
import select
import stat
from contextlib import suppress

from grit_runtime.host import linux, procfs
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.host.procfs import open_links
from grit_runtime.model.process_preflight import Descriptor
from grit_runtime.tasks import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Set

_HARMLESS_MAJORS = frozenset({1, 4, 5, *range(136, 144)})
# Kernel-internal mounts: files open there have a path that is on no mount.
_SQLITE = b"SQLite format 3\0"
_MEMORY = ("/memfd:", "/secretmem", "/anon_hugepage", "/dmabuf:", "/SYSV", "/dev/zero")


def described(pid: int, links: Mapping[int, str], mounts: Set[int]) -> list[Descriptor]:
    """The descriptors of a process; *links* is its `open_links`. Those closed since are left out.

    *mounts* are the mounts of its container, by their numbers in mountinfo.
    """
    descriptors = []
    for fd, link in links.items():
        if link.startswith("anon_inode:"):
            descriptors.append(Descriptor(link))
        elif link.startswith("socket:"):
            descriptors.append(Descriptor(link, protocol=sockets.protocol(pid, fd)))
        elif link.startswith(("/", "pipe:")):
            with suppress(FileNotFoundError, ProcessLookupError):
                descriptors.append(_file(pid, fd, link, mounts))
    return descriptors


def mounts(pid: int) -> set[int]:
    """The numbers of the mounts that a process sees."""
    return {int(line.split(" ", 1)[0]) for line in procfs.text(pid, "mountinfo").splitlines()}


def has_device(pid: int) -> bool:
    """Whether a process has a device open that may use its memory by itself.

    That is any but /dev/null and its like, and terminals. Source: linux
    Documentation/admin-guide/devices.txt.
    """
    for fd in open_links(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            status = os.stat(f"/proc/{pid}/fd/{fd}")
            if stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) not in _HARMLESS_MAJORS:
                return True
    return False


def hang_up_after_restore(pids: Set[int]) -> dict[int, str]:
    """The processes that read a fifo which had no writer yet, and its name.

    After a restore they see a hangup, because CRIU opens the fifo for writing and closes it.
    Source: linux fs/pipe.c fifo_open, pipe_poll; checkpoint-restore/criu issue 3108.
    """
    readers: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
    written = set()
    for pid in sorted(pids):
        for fd, link in open_links(pid).items():
            if not link.startswith("/"):
                continue
            with suppress(FileNotFoundError, ProcessLookupError):
                status = os.stat(f"/proc/{pid}/fd/{fd}")
                if stat.S_ISFIFO(status.st_mode):
                    file = (status.st_dev, status.st_ino)
                    if os.lstat(f"/proc/{pid}/fd/{fd}").st_mode & stat.S_IWUSR:
                        written.add(file)
                    else:
                        readers.setdefault(file, []).append((pid, fd, link))
    return {
        pid: link
        for file, some in readers.items()
        if file not in written
        for pid, fd, link in some
        if not _hung_up(pid, fd)
    }


def open_databases(pids: Set[int], init_pid: int) -> dict[int, str]:
    """The processes that have an SQLite database of the container's root open, and its name.

    SQLite compares the inode to see whether the name still leads to the file that it opened
    (os_unix.c fileHasMoved), and a restore creates the rw layer's files anew.
    """
    device = os.stat(f"/proc/{init_pid}/root").st_dev
    databases = {}
    for pid in sorted(pids):
        for fd, link in open_links(pid).items():
            if link.startswith("/"):
                with suppress(FileNotFoundError, ProcessLookupError):
                    if _is_database(f"/proc/{pid}/fd/{fd}", device):
                        databases[pid] = link
    return databases


def semaphores(pids: Set[int]) -> list[int]:
    """The processes that have an eventfd with EFD_SEMAPHORE, if the kernel shows that."""
    return [
        pid
        for pid in sorted(pids)
        if any(
            link == "anon_inode:[eventfd]"
            and "eventfd-semaphore: 1" in procfs.text(pid, f"fdinfo/{fd}")
            for fd, link in open_links(pid).items()
        )
    ]


def _is_database(path: str, device: int) -> bool:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_dev != device:
        return False
    # What the descriptor leads to can be another file by now, and one that opening waits for.
    with closing_fd(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return is_regular and os.pread(fd, len(_SQLITE), 0) == _SQLITE


def _file(pid: int, fd: int, link: str, mounts: Set[int]) -> Descriptor:
    fields = dict(
        line.partition(":\t")[::2] for line in procfs.text(pid, f"fdinfo/{fd}").splitlines()
    )
    if "flags" not in fields:
        raise FileNotFoundError(f"descriptor {fd} of process {pid} was closed")
    flags = int(fields["flags"], 8)
    is_path = bool(flags & os.O_PATH)
    place = f"/proc/{pid}/fd/{fd}"
    is_pipe = link.startswith("pipe:")
    is_strange = not is_pipe and int(fields.get("mnt_id", "0")) not in mounts
    mode = os.stat(place).st_mode if is_path or is_strange else 0
    return Descriptor(
        link,
        is_packet_pipe=is_pipe and bool(flags & os.O_DIRECT),
        is_read=not is_path and flags & os.O_ACCMODE != os.O_WRONLY,
        is_path_alone=is_path and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)),
        is_elsewhere=is_strange
        and (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        and not link.startswith(_MEMORY),
    )


def _hung_up(pid: int, fd: int) -> bool:
    try:
        copy_fd = linux.copy_descriptor(pid, fd)
    except (FileNotFoundError, ProcessLookupError):
        return True  # it is gone
    with closing_fd(copy_fd):
        poll = select.poll()
        poll.register(copy_fd, select.POLLIN)
        return any(events & select.POLLHUP for _, events in poll.poll(0))
