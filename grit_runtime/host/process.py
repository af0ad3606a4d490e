"""Children that cannot outlive this process, and finding processes that a dead one left running.

Every program that grit runs carries a token in its environment. A child of a child (CRIU under
runc) inherits it, so that after a crash the survivors are found by it, whoever their parent is.
Those that must outlive us are started apart: they undo what we did, or let go of what we held.

Not by subprocess: to load it takes 6 ms, which a restore is waited for, and its children outlive us
unless a function of ours runs between its fork and its exec.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import contextmanager, suppress

from grit_runtime.errors import (
    CommandError,
    DeadlineExceededError,
    FailedPreconditionError,
    one_line,
)
from grit_runtime.host import linux, procfs
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

OPERATION = "GRIT_OPERATION"

_PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_OUTPUT_LIMIT_BYTES = 1 << 20


def new_token() -> str:
    """A new value, which no other process carries."""
    return os.urandom(8).hex()


class Child(NamedTuple):
    """A program that runs in the background, and dies when this process does."""

    argv: list[str]
    pid: int
    out_fd: int
    err_fd: int


def run(argv: list[str], *, token: str, env: dict[str, str] | None = None) -> bytes:
    """Run *argv* to its end and return what it printed, as `output` does."""
    return output(start(argv, token=token, env=env))


def start(argv: list[str], *, token: str, env: dict[str, str] | None = None) -> Child:
    """Start *argv* with empty standard input; the caller calls `output` once."""
    out_fd, write_fd = os.pipe()
    err_fd = os.memfd_create("stderr")
    pid = spawn(argv, token=token, env=env, stdin=os.devnull, stdout=write_fd, stderr=err_fd)
    os.close(write_fd)
    return Child(argv, pid, out_fd, err_fd)


def output(child: Child) -> bytes:
    """The standard output of the child. Blocks until it has ended.

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
    """Start *argv* and return its pid; the caller waits for it, and keeps the descriptors.

    The child gets SIGKILL when the calling thread ends, even by SIGKILL.
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
        # Python ignores these two signals, and exec keeps ignored signals ignored.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execvpe(argv[0], argv, environment)  # noqa: S606  no shell is the point
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def spawn_apart(argv: list[str], environment: Mapping[str, str], *streams: int) -> int:
    """Start *argv*, a path first, in a session of its own, and return its pid; it outlives us.

    Its standard streams are *streams* as far as they go, then /dev/null.
    """
    nulls = range(len(streams), 3)
    return os.posix_spawn(
        argv[0],
        argv,
        environment,
        file_actions=[
            *((os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(streams)),
            *((os.POSIX_SPAWN_OPEN, target, os.devnull, os.O_RDWR, 0) for target in nulls),
        ],
        setsid=True,
    )


def grit(*words: str) -> list[str]:
    """The command line of `grit` with these words, for whichever of grit's programs this one is."""
    code = f"import sys; sys.path.append({_PACKAGE_DIR!r}); "
    return [
        sys.executable,
        "-P",
        "-c",
        f"{code}from grit_runtime.cli.main import main; main()",
        *words,
    ]


def python(module: str, argument: object) -> list[str]:
    """The command line of a process that calls ``main(argument)`` of a module of grit's."""
    code = f"import sys; sys.path.append({_PACKAGE_DIR!r}); "
    return [sys.executable, "-ISE", "-c", f"{code}from {module} import main; main({argument!r})"]


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[Callable[[], Any]]:
    """Do *work* in a fork of this process while the block runs.

    The block gets a function that waits for the result of *work*, passed as JSON, and raises
    CommandError with the reason if it failed. The child ends with the block.
    """
    pid, read_fd = _forked(work)
    try:
        with open(read_fd, "rb") as file:
            yield lambda: _heard(file.read(), pid)
    finally:
        kill(pid)


def answered(work: Callable[[], object], *, timeout_s: float) -> Any:
    """The result of *work*, passed as JSON, which is done in a fork of this process.

    CommandError with the reason if it failed; DeadlineExceededError if it takes longer. It is not
    waited for then: what hangs in the kernel does not end.
    """
    pid, read_fd = _forked(work)
    end, said, has_ended = time.monotonic() + timeout_s, b"", False
    with closing_fd(read_fd):
        while select.select([read_fd], [], [], max(0.0, end - time.monotonic()))[0]:
            more = os.read(read_fd, 1 << 16)
            said += more
            if not more:
                has_ended = True
                break
    if not has_ended:
        os.kill(pid, signal.SIGKILL)
        raise DeadlineExceededError(f"process {pid}, a child of ours, took over {timeout_s:g} s")
    wait(pid)
    return _heard(said, pid)


def detached(work: Callable[[], object], *, kept_fd: int) -> None:
    """Do *work* in a child that outlives this process, in a session of its own.

    It keeps only the descriptor *kept_fd*: the others are locks and the caller's streams.
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


def run_attached(argv: list[str], *, token: str, env: dict[str, str] | None = None) -> int:
    """Run *argv* to its end with this process's standard streams; its exit status as of `wait`."""
    pid = spawn(argv, token=token, env=env)
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


def carrying(token: str, criu_dir: str = "") -> list[int]:
    """Pids of all other live processes that carry *token* in their environment.

    A CRIU at work has none: it writes its title over that (cr-service.c, setproctitle(3bsd)). It is
    found by its log, which it has open in its work directory *criu_dir* before.
    """
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    variable = f"{OPERATION}={token}"
    return [
        pid
        for pid in pids
        if pid != os.getpid()
        and (
            variable in procfs.text(pid, "environ").split("\0")
            or (criu_dir and _is_criu_in(criu_dir, pid))
        )
    ]


def _is_criu_in(directory: str, pid: int) -> bool:
    return procfs.text(pid, "comm").startswith("criu") and any(
        link.startswith(f"{directory}/") for link in procfs.open_links(pid).values()
    )


def wait_gone(token: str, *, deadline_s: float, criu_dir: str = "") -> None:
    """Wait until there is nothing that `carrying` finds; what is left at the deadline is killed."""
    end = time.monotonic() + deadline_s
    while pids := carrying(token, criu_dir):
        for pid in pids:
            if not wait_exit(pid, timeout_s=max(0.0, end - time.monotonic())):
                kill_and_wait(pid)


def kill_and_wait(pid: int, *, timeout_s: float = 10.0) -> None:
    """SIGKILL a process, which need not be a child, and wait until it has ended.

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


def _forked(work: Callable[[], object]) -> tuple[int, int]:
    """A fork of this process that does *work*, and where its result can be read."""
    read_fd, write_fd = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            linux.die_with_parent(parent)
            with open(write_fd, "wb") as told:
                told.write(json.dumps(_answer(work)).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    return pid, read_fd


def _heard(said: bytes, pid: int) -> object:
    if not said:
        raise CommandError(f"process {pid}, a child of ours, was killed; see the kernel's log")
    answer = json.loads(said)
    if "error" in answer:
        raise CommandError(answer["error"])
    return answer["answer"]


def _answer(work: Callable[[], object]) -> dict[str, object]:
    try:
        return {"answer": work()}
    except Exception as error:  # noqa: BLE001  the parent raises it
        return {"error": one_line(error)}


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
