"""What runs on a node that grit is installed on or taken from: containerd, pods, operations."""

from __future__ import annotations

import time
from functools import partial

from grit_runtime.errors import (
    CommandError,
    FailedPreconditionError,
    HeldError,
    NotFoundError,
    PodStateError,
)
from grit_runtime.host import journal, process, procfs
from grit_runtime.host.containerd import Containerd
from grit_runtime.installation import containerd, services, wanted
from grit_runtime.model import handlers
from grit_runtime.pod import held_pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from grit_runtime.installation.containerd import Daemon
    from grit_runtime.model.handlers import Table

_ANSWERS_WITHIN_S = 60
_OWN_SHIM, _STOCK_SHIM = "grit-shim", "containerd-shim"  # in /proc/PID/comm


def has(daemon: Daemon, table: Table | None) -> bool:
    """Whether the containerd that runs has the handler as in *table*; None: has none of it."""
    live = _ask(daemon, Containerd.handlers).get(handlers.NAME)
    if table is None or live is None:
        return live is table
    return handlers.is_live(table, live)


def restarted(daemon: Daemon) -> Daemon:
    """Restart containerd and wait for it; its containers run on."""
    if not daemon.unit:
        raise FailedPreconditionError(
            f"containerd (process {daemon.pid}) is no unit of systemd; {how_to_restart(daemon)}, "
            "then run this again"
        )
    services.restart([daemon.unit])
    end = time.monotonic() + _ANSWERS_WITHIN_S
    while True:
        try:
            found = containerd.find()
            _ask(found, Containerd.handlers)
        except (CommandError, NotFoundError):
            if time.monotonic() > end:
                raise
        else:
            return found
        time.sleep(0.1)


def how_to_restart(daemon: Daemon) -> str:
    if daemon.unit:
        return f"systemctl restart {daemon.unit}"
    return "restart it as it was started"


def pods(daemon: Daemon) -> dict[str, str]:
    """Those with grit's handler, by their sandboxes."""
    return dict(_ask(daemon, partial(Containerd.pods_of, handler=handlers.NAME)))


def stop(daemon: Daemon, sandbox_id: str) -> None:
    """End a pod's containers."""
    _ask(daemon, partial(Containerd.stop, sandbox_id=sandbox_id))


def refuse_pods(daemon: Daemon | None) -> None:
    """PodStateError if a pod has grit's handler; without a containerd its shims tell."""
    if daemon is None:
        pids = ", ".join(map(str, _shims()))
        if pids:
            raise PodStateError(
                f"containerd does not answer, and pods run with the handler {handlers.NAME}, whose "
                f"shims need it to be stopped (processes {pids}): start containerd, or delete the "
                "pods and end these processes"
            )
    elif names := sorted(pods(daemon).values()):
        raise PodStateError(
            f"pods run with the handler {handlers.NAME}, which they need to be stopped: "
            f"{', '.join(names)}; delete them, or say --drain"
        )


def refuse_under_way(then: str) -> None:
    """HeldError if this node's grit holds a pod, of any handler, or checkpoints one."""
    held_pods.drop_gone()
    under_way = [*journal.checkpoints(), *(hold.name for hold in held_pods.every())]
    if under_way:
        raise HeldError(
            f"{', '.join(under_way)}: under way or held by the version that runs; wait for it, or "
            f"resume it, then {then}"
        )


def _shims() -> list[int]:
    """The processes of shims whose pods have grit's launcher.

    Source: containerd v2.1.9 and v1.7.24, runc/container.go: it keeps the runtime's name in the
    bundle, which is the shim's directory.
    """
    return [
        pid
        for pid, name in procfs.names().items()
        if (
            name == _OWN_SHIM
            or (name == _STOCK_SHIM and procfs.text(pid, "cwd/runtime") == wanted.RUNTIME)
        )
        and procfs.is_like_us(pid)  # a pod may have one of that name
    ]


def _ask(daemon: Daemon, call: Callable[[Containerd], object]) -> Any:
    """What *call* returns, in a child: gRPC can hang in a process that has forked since it used it.

    CommandError if containerd does not answer.
    """

    def ask() -> object:
        with Containerd(daemon.address) as cri:
            return call(cri)

    with process.beside(ask) as hear:
        return hear()
