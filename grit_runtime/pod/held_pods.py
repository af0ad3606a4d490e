"""The pods of this node that are held by a checkpoint, or wait to be restored from it.

Each has a file named by its uid; the launcher looks in config.json for these uids at every
`create`. Like the pod, the file outlives the sandbox and a reboot.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager, suppress

from grit_runtime import paths
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model.hold import Hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DIR = f"{paths.STATE_DIR}/held"

# kubelet keeps a directory <uid> here for as long as the pod exists, unless it is configured
# otherwise.
_POD_VOLUMES_DIR = "/var/lib/kubelet/pods"


def keep(hold: Hold) -> None:
    """Write the hold to its file; it is on the medium when this returns."""
    with _locked() as dir_fd:
        _keep(hold, dir_fd)


def of(pod_uid: str) -> Hold | None:
    """The pod's hold, if there is one."""
    try:
        with open(f"{DIR}/{pod_uid}", "rb") as file:
            fields = json.load(file)
    except FileNotFoundError:
        return None
    lists = {name: tuple(fields[name]) for name in ("ran_on", "awaited")}
    return Hold(**fields | lists)


def every() -> list[Hold]:
    with suppress(FileNotFoundError):
        holds = [of(name) for name in sorted(os.listdir(DIR)) if not name.startswith(".")]
        return [hold for hold in holds if hold]
    return []


def restored(pod_uid: str, container: str) -> None:
    """Record that *container* is restored; after the last awaited container the hold is over."""
    if of(pod_uid) is None:  # nearly always
        return
    with _locked() as dir_fd:
        hold = of(pod_uid)
        if hold is not None:
            left = tuple(name for name in hold.awaited if name != container)
            _keep(hold._replace(awaited=left), dir_fd)


def drop(pod_uid: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(f"{DIR}/{pod_uid}")


def drop_gone() -> None:
    """Forget the pods that have been deleted: sandbox, logs and volumes are gone."""
    for hold in every():
        traces = (
            _sandbox(hold),
            f"{paths.POD_LOGS_DIR}/{hold.namespace}_{hold.pod}_{hold.pod_uid}",
            f"{_POD_VOLUMES_DIR}/{hold.pod_uid}",
        )
        if not any(map(os.path.exists, traces)):
            drop(hold.pod_uid)


def is_deleted(hold: Hold, pod_uid: str) -> bool:
    """Whether the pod that is held, which somebody has deleted if it has *pod_uid*, is gone but
    for logs and volumes, which kubelet may keep for another minute."""
    return hold.pod_uid == pod_uid and not os.path.exists(_sandbox(hold))


def _sandbox(hold: Hold) -> str:
    """What runc keeps of it for as long as it is there."""
    return f"{hold.runc_root}/{hold.sandbox_id}"


@contextmanager
def _locked() -> Iterator[int]:
    os.makedirs(DIR, mode=0o700, exist_ok=True)
    with closing_fd(os.open(DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as dir_fd:
        fcntl.flock(dir_fd, fcntl.LOCK_EX)
        yield dir_fd


def _keep(hold: Hold, dir_fd: int) -> None:
    if hold.is_over:
        drop(hold.pod_uid)
    else:
        path = f"{DIR}/.{hold.pod_uid}"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(hold._asdict(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path, f"{DIR}/{hold.pod_uid}")
    os.fsync(dir_fd)
