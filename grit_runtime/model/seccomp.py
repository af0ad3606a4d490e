"""Checking that a dump's seccomp filters are at least as strict as the live pod's. Pure.

CRIU gives a thread the filter that its core image numbers, and those below it. When all threads of
a process have the same, the dump keeps only the leader's, marked to be spread to the others.

"As strict" is decided for what the live profile denies whatever the arguments, on each architecture
whose system calls the machine takes. Calls that it allows for some arguments are not compared.

Spec: checkpoint-restore/criu criu/seccomp.c seccomp_prepare_threads and try_use_tsync, criu/
cr-restore.c check_core@2cf8f13; opencontainers/runtime-spec config-linux.md, Seccomp@v1.2.0.
"""

from __future__ import annotations

from typing import Any

from grit_runtime.errors import SeccompError
from grit_runtime.model.seccomp_filter import permitted
from grit_runtime.model.syscall_numbers import ARCHITECTURES, NUMBERS
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from grit_runtime.model.dump import DumpedThread
    from grit_runtime.proto import criu_pb2 as criu

MAX_PROGRAMS = 64  # different ones in a container

_MODE_FILTER = 2
_TSYNC = 1
_PERMISSIVE = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY"})
# Each is one number for many calls, which libseccomp allows if it allows any of them.
_MULTIPLEXED = frozenset({"ipc", "socketcall"})
_SHOWN = 6
_REMEDY = "restore into a pod with the seccompProfile of the checkpointed one"


class Abi(NamedTuple):
    """System calls of one architecture, or of a variant marked by a bit in the number."""

    name: str
    profile_name: str
    audit_arch: int
    mark: int


# By core_entry's mtype; a machine's own architecture is first, and in every profile.
_ABIS = {
    1: (
        Abi("x86_64", "SCMP_ARCH_X86_64", 0xC000003E, 0),
        Abi("x32", "SCMP_ARCH_X32", 0xC000003E, 0x40000000),
        Abi("x86", "SCMP_ARCH_X86", 0x40000003, 0),
    ),
    3: (
        Abi("aarch64", "SCMP_ARCH_AARCH64", 0xC00000B7, 0),
        Abi("arm", "SCMP_ARCH_ARM", 0x40000028, 0),
    ),
}


class Demand(NamedTuple):
    """The system calls of one ABI that no filter chain may let through; names by number."""

    abi: Abi
    denied: dict[int, str]


def check(
    threads: Sequence[DumpedThread],
    image: criu.seccomp_entry | None,
    profile: dict[str, Any],
) -> None:
    """PrivilegeError at the first thread that the live pod's *profile* would confine more."""
    if _PERMISSIVE.issuperset(_actions(profile)):
        return
    filters = image.seccomp_filters if image else ()
    passed: dict[bytes, frozenset[str]] = {}
    for thread in threads:
        programs = {filters[index].filter for index in chain(thread, filters)}
        if not programs:
            mode = thread.core.thread_core.seccomp_mode
            raise SeccompError(
                f"{thread.where}: seccomp_mode {mode}; the pod allows 2 (filter) only; {_REMEDY}"
            )
        for program in programs - passed.keys():
            if len(passed) == MAX_PROGRAMS:
                raise SeccompError(f"seccomp.img: expected at most {MAX_PROGRAMS} filters")
            passed[program] = _passed(program, demands(profile, thread.leader.mtype))
        # The kernel runs all filters of a chain, and the strictest answer counts.
        weak = sorted(frozenset.intersection(*(passed[program] for program in programs)))
        if weak:
            raise SeccompError(
                f"{thread.where}: its seccomp filters let through {len(weak)} system calls that "
                f"the pod denies, {', '.join(weak[:_SHOWN])}...; {_REMEDY}"
            )


def demands(profile: dict[str, Any], machine: int) -> list[Demand]:
    """The calls that *profile* denies whatever the arguments, for each ABI of the *machine*."""
    if machine not in _ABIS:
        raise SeccompError(f"core images: machine {machine}, expected x86-64 or arm64")
    rules = profile.get("syscalls") or ()
    allowed = {n for rule in rules if rule["action"] in _PERMISSIVE for n in rule["names"]}
    denied = set(NUMBERS)
    if profile["defaultAction"] in _PERMISSIVE:
        hard = [r for r in rules if r["action"] not in _PERMISSIVE and not r.get("args")]
        denied = {name for rule in hard for name in rule["names"]}
    own, *others = _ABIS[machine]
    listed = set(profile.get("architectures") or ())
    return [_demand(own, denied, allowed)] + [
        _demand(abi, denied, allowed)
        if abi.profile_name in listed
        else _demand(abi, set(NUMBERS), set())
        for abi in others
    ]


def _demand(abi: Abi, denied: set[str], allowed: set[str]) -> Demand:
    numbers = {n: row[ARCHITECTURES.index(abi.name)] for n, row in NUMBERS.items()}
    spared = {numbers.get(name) for name in allowed | _MULTIPLEXED}
    return Demand(
        abi,
        {
            number | abi.mark: name
            for name, number in numbers.items()
            if number is not None and number not in spared and name in denied
        },
    )


def _passed(program: bytes, wanted: Iterable[Demand]) -> frozenset[str]:
    """Names of the denied system calls that one filter may let through."""
    return frozenset(
        f"{demand.abi.name} {demand.denied[number]}"
        for demand in wanted
        for number in permitted(program, arch=demand.abi.audit_arch, numbers=demand.denied)
    )


def _actions(profile: dict[str, Any]) -> list[str]:
    rules = profile.get("syscalls") or ()
    return [profile["defaultAction"], *(rule["action"] for rule in rules)]


def chain(thread: DumpedThread, filters: Sequence[criu.seccomp_filter]) -> list[int]:
    """Numbers of the filters that the thread will have, if any."""
    core, leader = thread.core.thread_core, thread.leader.thread_core
    tc = thread.leader.tc
    if tc.HasField("old_seccomp_mode") or tc.HasField("old_seccomp_filter"):
        # CRIU lets these replace what the leader's thread_core says.
        raise SeccompError(
            f"{thread.where}: seccomp recorded for the process, as by CRIU before 3.10; "
            "take the checkpoint again"
        )
    if core.seccomp_mode == _MODE_FILTER:
        return _linked(thread.where, core.seccomp_filter, filters)
    if core.seccomp_mode == 0 and leader.seccomp_mode == _MODE_FILTER:
        linked = _linked(thread.where, leader.seccomp_filter, filters)
        if all(filters[index].flags & _TSYNC for index in linked):
            return linked
    return []


def _linked(where: str, head: int, filters: Sequence[criu.seccomp_filter]) -> list[int]:
    """*head* and the filters below it, each of which has a lower number."""
    chain: list[int] = []
    index, limit = head, len(filters)
    while index < limit:
        chain.append(index)
        if not filters[index].HasField("prev"):
            return chain
        index, limit = filters[index].prev, index
    raise SeccompError(
        f"{where}: seccomp_filter {index}, expected a number below {limit}; seccomp.img is damaged"
    )
