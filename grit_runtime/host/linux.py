"""System calls that os lacks on Python 3.11. Each raises OSError with the call's name and path."""

import ctypes
import errno
import fcntl
import os
import signal
import sys
import termios

from grit_runtime.host.descriptor import closing_fd

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_SYNC_FILE_RANGE_WRITE = 2
# NFS, SMB 1 to 3, Ceph, 9p, Lustre, FUSE. Source: linux include/uapi/linux/magic.h.
_SHARED_FILESYSTEMS = (
    *(0x6969, 0x517B, 0xFF534D42, 0xFE534D42),
    *(0x00C36400, 0x01021997, 0x0BD00BD0, 0x65735546),
)
_STATFS_BYTES = 256  # more than any architecture's
_SYS_PIDFD_GETFD = 438
_SYS_KEYCTL = 250 if os.uname().machine == "x86_64" else 219
_SYS_KCMP = 312 if os.uname().machine == "x86_64" else 272

_KEYCTL_JOIN_SESSION_KEYRING, _KEYCTL_SETPERM = 1, 5
_KEYRING_PERMISSIONS = 0x3F1B0000  # what the kernel gives, and search for the user

# What kcmp(2) compares.
KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS = range(4)

# Flags of mount(2) and umount2(2).
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT = 1 << 5
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """In a child: get SIGKILL when the parent's thread that forked it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent died before prctl
        os._exit(1)


def adopt_orphans(*, wanted: bool) -> None:
    """Make orphans below this process its children, or again those of an ancestor."""
    call("prctl", "PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def set_name(name: str) -> None:
    """Set the name of this process in /proc/PID/comm; at most 15 bytes."""
    call("prctl", "PR_SET_NAME", _PR_SET_NAME, name.encode(), 0, 0, 0)


def setns(path: str) -> None:
    """Move this thread into the namespace at *path*."""
    with closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        call("setns", path, fd, 0)


def sync_filesystem(directory: str) -> None:
    """Write the filesystem of *directory* to its medium. Blocks for as long as that takes."""
    with closing_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        call("syncfs", directory, fd)


def start_writing(fd: int, offset: int, size_bytes: int) -> None:
    """Start writing a part of a file to its medium, without waiting for the end.

    Blocks while the medium's queue is full: there it is no faster than the medium.
    """
    arguments = (fd, ctypes.c_int64(offset), ctypes.c_int64(size_bytes), _SYNC_FILE_RANGE_WRITE)
    call("sync_file_range", f"fd {fd}", *arguments)


def exchange(one: str, other: str) -> None:
    """Swap two paths of one filesystem in one step."""
    _rename(one, other, _RENAME_EXCHANGE)


def rename_new(source: str, target: str) -> None:
    """Give the directory *source* the name *target*; FileExistsError if that is taken.

    A filesystem may refuse to be told so (NFS, 9p). The kernel has looked at the name then, and
    rename(2) itself replaces no directory that has anything in it.
    """
    try:
        _rename(source, target, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.rename(source, target)


def _rename(source: str, target: str, flags: int) -> None:
    paths = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target))
    call("renameat2", target, *paths, flags)


def is_shared(path: str) -> bool:
    """Whether others than this kernel may change the filesystem that *path* is on.

    Spec: statfs(2), whose structure begins with the filesystem's type.
    """
    status = ctypes.create_string_buffer(_STATFS_BYTES)
    call("statfs", path, os.fsencode(path), status)
    return int.from_bytes(status.raw[:4], sys.byteorder) in _SHARED_FILESYSTEMS


def copy_descriptor(pid: int, fd: int) -> int:
    """Duplicate the descriptor *fd* of process *pid*, which does not notice.

    FileNotFoundError if *fd* is closed, ProcessLookupError if *pid* has ended. Spec:
    pidfd_getfd(2).
    """
    path = f"/proc/{pid}/fd/{fd}"
    with closing_fd(os.pidfd_open(pid)) as pidfd:
        try:
            return result("syscall", path, _SYS_PIDFD_GETFD, pidfd, fd, 0)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise FileNotFoundError(errno.ENOENT, "it was closed", path) from None
            raise


def join_new_keyring(container_id: str) -> None:
    """Give this thread, and what it starts, a session keyring as runc gives a container.

    A restore would leave the tasks with the caller's, and so with the keys of the node's root. The
    name is not runc's own: who joins what it is in already is answered 0 (linux
    security/keys/process_keys.c), which a runc that is to start the container after all fails of.
    Source: runc libcontainer/keys/keyctl.go, standard_init_linux.go. Spec: keyctl(2).
    """
    name = f"_ses.{container_id}.restored"
    arguments = (ctypes.c_long(_SYS_KEYCTL), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING))
    try:
        serial = result("syscall", name, *arguments, name.encode())
    except OSError as error:
        if error.errno == errno.ENOSYS:  # the kernel has no keys
            return
        raise
    permissions = (ctypes.c_long(serial), ctypes.c_long(_KEYRING_PERMISSIONS))
    result("syscall", name, arguments[0], ctypes.c_long(_KEYCTL_SETPERM), *permissions)


def differ(tid: int, other: int, kind: int, ids: tuple[int, int] = (0, 0)) -> bool:
    """Whether two threads differ in what *kind* names: for KCMP_FILE, the files of descriptors.

    Spec: kcmp(2).
    """
    arguments = map(ctypes.c_long, (_SYS_KCMP, tid, other, kind, *ids))
    return result("syscall", f"thread {other}", *arguments) != 0


def unread_bytes(pid: int, fd: int) -> int:
    """How much a process can read from a descriptor now; errors as of `copy_descriptor`.

    Spec: ioctl(2) FIONREAD; linux fs/notify/inotify/inotify_user.c inotify_ioctl,
    fs/notify/fanotify/fanotify_user.c fanotify_ioctl, net/ipv4/tcp.c tcp_ioctl.
    """
    with closing_fd(copy_descriptor(pid, fd)) as copy_fd:
        return int.from_bytes(fcntl.ioctl(copy_fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def call(name: str, path: str, *arguments: object) -> None:
    """Call libc's *name*, which returns 0; OSError with that name, about *path*, if it fails."""
    result(name, path, *arguments)


def result(name: str, path: str, *arguments: object) -> int:
    """Call libc's *name*; what it returned, or OSError with that name, about *path*, for -1."""
    returned: int = getattr(_libc, name)(*arguments)
    if returned == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", path)
    return returned
