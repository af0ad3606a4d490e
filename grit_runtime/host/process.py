"""Children that cannot outlive us, and finding what a dead one left running.

Every program that grit runs carries a token in its environment. A child of a child (CRIU under
runc) inherits it, so that after a crash the survivors are found by it, whoever their parent is.
"""

import os
import select
import signal
import stat
import sys
import time
from contextlib import suppress
from typing import NamedTuple

from grit_runtime.errors import CommandError, FailedPreconditionError
from grit_runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

OPERATION = "GRIT_OPERATION"

_PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_OUTPUT_LIMIT_BYTES = 1 << 20
_PF_EXITING = 4  # include/linux/sched.h, among the flags of proc_pid_stat(5)


class UsedFile(NamedTuple):
    """A file by its name inside, and whether the process may write to it as it has it."""

    path: str
    is_written: bool


def new_token() -> str:
    """A value that nothing else carries."""
    return os.urandom(8).hex()


class Child(NamedTuple):
    """A program that runs while we do something else, and dies when this process does."""

    argv: list[str]
    pid: int
    out_fd: int
    err_fd: int


def run(argv: list[str], *, token: str, env: dict[str, str] | None = None) -> bytes:
    """Run *argv* to its end and return what it printed, as `output` does."""
    return output(start(argv, token=token, env=env))


def start(argv: list[str], *, token: str, env: dict[str, str] | None = None) -> Child:
    """Start *argv*, with nothing to read; the caller asks for its `output` once."""
    out_fd, write_fd = os.pipe()
    err_fd = os.memfd_create("stderr")
    pid = spawn(argv, token=token, env=env, stdin=os.devnull, stdout=write_fd, stderr=err_fd)
    os.close(write_fd)
    return Child(argv, pid, out_fd, err_fd)


def output(child: Child) -> bytes:
    """What the child printed. Blocks until it has ended.

    CommandError carries the last line that it wrote to standard error.
    """
    with open(child.out_fd, "rb") as out, open(child.err_fd, "rb"):
        try:
            printed = out.read(_OUTPUT_LIMIT_BYTES)
            status = wait(child.pid)
        except BaseException:
            kill(child.pid)
            raise
        if status != 0:
            reason = _last_line(child.err_fd)
            raise CommandError(f"{child.argv[0]} {_verb(child.argv)}: {reason}")
    return printed


def spawn(
    argv: list[str],
    *,
    token: str,
    env: dict[str, str] | None = None,
    stdin: str | int = 0,
    stdout: int = 1,
    stderr: int = 2,
) -> int:
    """Start *argv* and return its pid; the caller owns it and the descriptors it gave.

    The child gets SIGKILL when the calling thread ends, also by SIGKILL.
    """
    environment = {**os.environ, OPERATION: token, **(env or {})}
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        linux.die_with_parent(parent)
        if isinstance(stdin, str):
            stdin = os.open(stdin, os.O_RDONLY)
        for target, source in enumerate((stdin, stdout, stderr)):
            os.dup2(source, target)
        # Python ignores these two, and exec keeps what is ignored.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execvpe(argv[0], argv, environment)  # noqa: S606  no shell is the point
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def python(module: str, argument: object) -> list[str]:
    """The command line of a process that calls ``main(argument)`` of a module of ours."""
    code = f"import sys; sys.path.append({_PACKAGE_DIR!r}); "
    return [sys.executable, "-ISE", "-c", f"{code}from {module} import main; main({argument!r})"]


def detached(work: "Callable[[], object]", *, kept_fd: int) -> None:
    """Do *work* in a child that outlives us, in a session of its own.

    Of our descriptors it has *kept_fd* alone: the others are locks and the caller's streams.
    """
    pid = os.fork()
    if pid == 0:
        try:
            if os.fork() == 0:
                os.setsid()
                os.chdir("/")
                null = os.open(os.devnull, os.O_RDWR)
                for stream in range(3):
                    os.dup2(null, stream)
                os.closerange(3, kept_fd)
                os.closerange(kept_fd + 1, os.sysconf("SC_OPEN_MAX"))
                work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def run_attached(argv: list[str], *, token: str) -> int:
    """Run *argv* to its end with our own standard streams; its exit status, as of `wait`."""
    pid = spawn(argv, token=token)
    try:
        return wait(pid)
    except BaseException:
        kill(pid)
        raise


def wait(pid: int) -> int:
    """Exit status of the child: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid: int) -> None:
    """End a child that has not been waited for, and reap it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def carrying(token: str) -> list[int]:
    """Pids of all live processes, ours excepted, that carry *token* in their environment."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    wanted = f"{OPERATION}={token}"
    return [
        pid
        for pid in pids
        if pid != os.getpid() and wanted in proc_text(pid, "environ").split("\0")
    ]


def wait_gone(token: str, *, deadline_s: float) -> None:
    """Wait until no process carries *token*; what is left at the deadline is killed."""
    end = time.monotonic() + deadline_s
    while pids := carrying(token):
        for pid in pids:
            if not wait_exit(pid, timeout_s=max(0.0, end - time.monotonic())):
                kill_and_wait(pid)


def kill_and_wait(pid: int, *, timeout_s: float = 10.0) -> None:
    """SIGKILL a process that need not be our child, and wait until it has ended.

    FailedPreconditionError if it does not end: it hangs in the kernel, or its cgroup is frozen.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if not wait_exit(pid, timeout_s=timeout_s):
        raise FailedPreconditionError(
            f"process {pid} did not end {timeout_s:.0f} s after SIGKILL; "
            f"look at /proc/{pid}/stack and whether its cgroup is frozen"
        )


def wait_exit(pid: int, *, timeout_s: float) -> bool:
    """Wait until the process *pid* has ended; False when *timeout_s* has passed."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with open(fd, "rb"):
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))


def is_ending(pid: int) -> bool:
    """Whether a process has begun to end, or has gone. It does so before its descriptors close."""
    fields = _stat(pid)
    return not fields or bool(int(fields[6]) & _PF_EXITING)


def started_ticks(pid: int) -> int | None:
    """When a process was started; with its pid this is no other's. None when it has gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process (SIGSTOP, SIGTSTP), and none has continued it."""
    return _stat(pid)[:1] == ["T"]


def proc_text(pid: int, name: str) -> str:
    """A file of /proc/PID; empty when the process has gone, or is not ours to look at."""
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return ""


def open_links(pid: int) -> dict[int, str]:
    """What the descriptors of a process lead to; empty when it has gone."""
    links = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                links[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return links


def tracer(pid: int) -> int:
    """The process that traces this one; 0 without."""
    return _status_number(pid, "TracerPid")


def anonymous_bytes(pid: int) -> int:
    """The memory of a process that is in no file, in RAM or swapped out; 0 when it has gone."""
    return (_status_number(pid, "RssAnon") + _status_number(pid, "VmSwap")) << 10


def _status_number(pid: int, field: str) -> int:
    for line in proc_text(pid, "status").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def files(pid: int) -> list[UsedFile]:
    """What a process has open or mapped, or works in, that still has its name; none if it has gone.

    Spec: proc_pid_fd(5), proc_pid_maps(5), proc_pid_cwd(5).
    """
    used = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                link = f"/proc/{pid}/fd/{name}"
                is_written = bool(os.lstat(link).st_mode & stat.S_IWUSR)  # it is the descriptor's
                used.append(UsedFile(os.readlink(link), is_written))
        used.append(UsedFile(os.readlink(f"/proc/{pid}/cwd"), is_written=False))
    for line in proc_text(pid, "maps").splitlines():
        _, flags, _, _, _, *path = line.split(None, 5)  # anonymous memory has none
        is_written = flags.startswith("rw") and flags.endswith("s")
        used += [UsedFile(name.replace(r"\012", "\n"), is_written) for name in path]
    return [
        file for file in used if file.path.startswith("/") and not file.path.endswith(" (deleted)")
    ]


def _stat(pid: int) -> list[str]:
    """proc_pid_stat(5) from its third field on; empty when the process has gone."""
    return proc_text(pid, "stat").rpartition(")")[2].split()


def _verb(argv: list[str]) -> str:
    """The command word of a runc-like command line, for messages."""
    words = iter(argv[1:])
    for word in words:
        if word in ("--root", "--log", "--log-format"):
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


def _last_line(fd: int) -> str:
    size = os.fstat(fd).st_size
    tail = os.pread(fd, 4096, max(0, size - 4096)).decode(errors="replace").strip()
    return tail.rsplit("\n", 1)[-1] or "failed and said nothing"
