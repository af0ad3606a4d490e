"""Whether every thread of a dump is under seccomp filters where the live pod's would be. Pure.

CRIU gives a thread the filter that its core image numbers, and those below it. When all threads of
a process have the same, the dump keeps only the leader's, marked to be spread to the others.

Spec: checkpoint-restore/criu criu/seccomp.c seccomp_prepare_threads and try_use_tsync, criu/
cr-restore.c check_core@2cf8f13.
"""

from __future__ import annotations

from typing import Any

from grit_runtime.errors import PrivilegeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from grit_runtime.model.privilege import Thread
    from grit_runtime.proto import criu_pb2 as criu

_MODE_FILTER = 2
_TSYNC = 1
_ALLOWING = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})
_REMEDY = "restore into a pod with the seccompProfile of the checkpointed one"


def check(
    threads: Iterable[Thread],
    image: criu.seccomp_entry | None,
    profile: dict[str, Any] | None,
) -> None:
    """PrivilegeError at the first thread that the live pod's *profile* would confine more."""
    if not _restricts(profile):
        return
    filters = image.seccomp_filters if image else ()
    for thread in threads:
        _chain(thread, filters)


def _restricts(profile: dict[str, Any] | None) -> bool:
    if profile is None:
        return False
    rules = profile.get("syscalls") or ()
    actions = [profile["defaultAction"], *(rule["action"] for rule in rules)]
    return not _ALLOWING.issuperset(actions)


def _chain(thread: Thread, filters: Sequence[criu.seccomp_filter]) -> list[int]:
    """Numbers of the filters that the thread will be under."""
    core, leader = thread.core.thread_core, thread.leader.thread_core
    tc = thread.leader.tc
    if tc.HasField("old_seccomp_mode") or tc.HasField("old_seccomp_filter"):
        # CRIU lets these replace what the leader's thread_core says.
        raise PrivilegeError(
            f"{thread.where}: seccomp recorded for the process, as by CRIU before 3.10; "
            "take the checkpoint again"
        )
    if core.seccomp_mode == _MODE_FILTER:
        return _linked(thread.where, core.seccomp_filter, filters)
    if core.seccomp_mode == 0 and leader.seccomp_mode == _MODE_FILTER:
        chain = _linked(thread.where, leader.seccomp_filter, filters)
        if all(filters[index].flags & _TSYNC for index in chain):
            return chain
    raise PrivilegeError(
        f"{thread.where}: seccomp_mode {core.seccomp_mode}; the pod allows 2 (filter) only; "
        f"{_REMEDY}"
    )


def _linked(where: str, head: int, filters: Sequence[criu.seccomp_filter]) -> list[int]:
    """*head* and the filters below it, each of which has a lower number."""
    chain: list[int] = []
    index, limit = head, len(filters)
    while index < limit:
        chain.append(index)
        if not filters[index].HasField("prev"):
            return chain
        index, limit = filters[index].prev, index
    raise PrivilegeError(
        f"{where}: seccomp_filter {index}, expected a number below {limit}; seccomp.img is damaged"
    )
