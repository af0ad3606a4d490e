"""The zygote: a process that has imported all that a shim needs, and becomes one by fork.

So a pod's shim starts in a few milliseconds, and shares its memory with the others. The launcher
passes calls on to it: it writes its pid into a fifo, and is ended by a signal once the answer is in
its standard output. Without a zygote, or with one of other packages, main.py does everything.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
from contextlib import suppress

from grit_runtime import log, paths
from grit_runtime.errors import GritError
from grit_runtime.host import linux, process
from grit_runtime.shim import actions, packing, request, start, warm_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# The launcher knows these names, and the signals: the first says that its request is being done,
# the others end it.
FIFO = f"{paths.RUN_DIR}/zygote"
NAME = "grit-zygote"
TAKEN = signal.SIGURG
ANSWERED = signal.SIGUSR1
FAILED = signal.SIGUSR2
REFUSED = signal.SIGHUP

LOCK = f"{FIFO}.lock"
LISTEN_FDS_START = 3  # sd_listen_fds(3)


def launch(launcher: str) -> None:
    """Start a zygote for the next `start`: systemd's, if it has the fifo open, or another one."""
    try:
        fd = os.open(FIFO, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # there is none, or nobody reads from it
        process.detached(lambda: os.execv(launcher, [launcher, "zygote"]), kept_fd=2)  # noqa: S606
    else:
        os.write(fd, b"\n")
        os.close(fd)


def run() -> NoReturn:
    """Serve until the package is upgraded, then end, so that the new package's zygote can start."""
    packages = sys.path[0]
    born = _version()
    lock_fd = _lock()
    fifo_fd = _fifo()
    try:
        warm_up.run()
    except (GritError, OSError) as error:
        log.warning("rehearsal failed, shims will take more memory", reason=error)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the exit status of a shim is not needed
    linux.set_name(NAME)
    with open(f"{FIFO}.pid.new", "w", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {packages}\n")
    os.replace(f"{FIFO}.pid.new", f"{FIFO}.pid")
    gc.collect()
    packing.fill_holes()
    gc.freeze()  # otherwise a collection in a child would copy every page that it visits
    while True:
        for word in filter(bytes.isdigit, os.read(fifo_fd, 4096).split()):
            if _version() != born:
                os.kill(int(word), REFUSED)
                sys.exit(0)
            if os.fork() == 0:
                os.close(fifo_fd)
                os.close(lock_fd)
                _answer(int(word))


def _answer(pid: int) -> NoReturn:
    """Answer the launcher *pid*'s request; become the shim if one is to be started."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    caller_fd = os.pidfd_open(pid)
    if os.stat(f"/proc/{pid}").st_uid != os.getuid() or not _shares_mounts(pid):
        _tell(caller_fd, REFUSED)
        os._exit(1)
    out_fd = os.open(f"/proc/{pid}/fd/{request.LAUNCHER_STDOUT}", os.O_WRONLY)
    _tell(caller_fd, TAKEN)
    listener = None
    try:
        call = request.of_launcher(pid)
        if call.action == "start":
            address, listener = start.find(call)
            answer = address.encode()
            if listener is not None:
                start.adopt_caller_context(call)
        else:
            answer = actions.answer(call)
        os.write(out_fd, answer)
    except BaseException as error:  # noqa: BLE001  containerd shows its user whatever is said here
        with suppress(OSError):  # or it is no longer there to read it
            os.write(out_fd, f"containerd-shim-grit-v1: {error}\n".encode())
        _tell(caller_fd, FAILED)
        os._exit(1)
    _tell(caller_fd, ANSWERED)
    os.close(out_fd)
    os.close(caller_fd)
    if listener is not None:
        start.serve(call, listener)
    os._exit(0)


def _tell(pidfd: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # containerd has stopped waiting for it
        signal.pidfd_send_signal(pidfd, number)


def _shares_mounts(pid: int) -> bool:
    """Whether *pid* sees the mounts that this process makes."""
    ours, theirs = (os.readlink(f"/proc/{who}/ns/mnt") for who in ("self", pid))
    return ours == theirs


def _version() -> tuple[int, int]:
    """What an upgrade of the package changes."""
    status = os.stat(__file__)
    return status.st_ino, status.st_mtime_ns


def _lock() -> int:
    """Take the lock of the only zygote; the process ends if another has it."""
    os.makedirs(os.path.dirname(LOCK), mode=0o700, exist_ok=True)
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(0)
    return fd


def _fifo() -> int:
    """The fifo: passed by systemd, or made here."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return LISTEN_FDS_START
    with suppress(FileExistsError):
        os.mkfifo(FIFO, 0o600)
    return os.open(FIFO, os.O_RDWR | os.O_CLOEXEC)
