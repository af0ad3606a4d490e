"""containerd-shim-grit-v1: what containerd runs to start, delete and describe a shim.

`start` is waited for by everybody who starts a pod. Where the zygote answers, this process imports
next to nothing and only carries the request there and the answer back.
Spec: containerd v2.1.9 core/runtime/v2/README.md, pkg/shim/shim.go.
"""

import _socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

ZYGOTE_SOCKET = "/run/grit/zygote.sock"
REPLY_LIMIT_BYTES = 1 << 16
FAILED = b"-"  # begins an answer that is a reason

# Go's flag package takes one dash or two, and the value after "=" or as the next word.
_WITH_VALUE = ("namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket")
_FLAGS = ("debug", "info", "v", "version")


def main(argv: "Sequence[str]") -> "NoReturn":
    """Run one action; *argv* is as containerd gives it, after the launcher's own name.

    containerd reads standard error with the answer, so that a success leaves it empty.
    """
    try:
        flags, action = parse(argv[1:])
        if action == "start":
            message = request(argv[1:])
            if answer := _ask_zygote(message):
                _end(answer)
            from grit_runtime.shim import start  # noqa: PLC0415  the fast path ends above

            start.launch_zygote(argv[0])
            _end(start.here(message))
        if action == "zygote":
            from grit_runtime.shim import zygote  # noqa: PLC0415

            zygote.run()
        from grit_runtime.shim import actions  # noqa: PLC0415  the same

        _end(actions.run(flags, action))
    except Exception as error:  # noqa: BLE001  containerd shows its user whatever is said here
        sys.stderr.write(f"containerd-shim-grit-v1: {error}\n")
        sys.stderr.flush()
        os._exit(1)


def parse(words: "Sequence[str]") -> tuple[dict[str, str], str]:
    """The flags, by name, and the action. ValueError for what is unknown."""
    flags = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        if name in _WITH_VALUE:
            if not equals and not rest:
                raise ValueError(f"flag -{name} needs a value")
            flags[name] = value if equals else rest.pop(0)
        elif name in _FLAGS:
            flags[name] = value
        else:
            raise ValueError(f"flag -{name} is unknown")
    return flags, rest[0] if rest else ""


def identity() -> str:
    """Which code this is: a zygote of another package or interpreter must not serve it."""
    status = os.stat(__file__)
    return f"{sys.version} {__file__} {status.st_ino} {status.st_mtime_ns}"


def request(words: "Sequence[str]") -> bytes:
    """What `start` was given, as one message; `start.Request.parse` reads it."""
    options = b""
    while more := os.read(0, 1 << 16):
        options += more
    fields = [identity(), os.getcwd(), options.hex(), str(len(words)), *words]
    fields += [f"{name}={value}" for name, value in os.environ.items()]
    return "\0".join(fields).encode(errors="surrogateescape")


def _ask_zygote(message: bytes) -> bytes:
    """The zygote's answer to `start`; b"" if there is none, or it cannot serve us."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        connection.connect(ZYGOTE_SOCKET)
        connection.send(message)
        answer = connection.recv(REPLY_LIMIT_BYTES)
    except OSError:
        return b""
    if answer.startswith(FAILED):
        raise RuntimeError(answer.removeprefix(FAILED).decode())
    return answer


def _end(answer: bytes) -> "NoReturn":
    """Answer and exit without taking the interpreter down piece by piece."""
    os.write(1, answer)
    os._exit(0)
