"""The check of seccomp filters: those of real dumps, and each way to have a weaker one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grit_runtime.errors import PrivilegeError
from grit_runtime.model import seccomp
from grit_runtime.model.dump import DumpedThread
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

GOLDEN = Path(__file__).parent.parent / "goldens" / "criu-4.2" / "root"
ALLOW_ALL = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)
DENY_ALL = struct.pack("<HBBI", 6, 0, 0, 0x50001)


def golden(name: str, message: type[Message]) -> Any:
    image = criu_image.parse((GOLDEN / name).read_bytes(), name=name)
    return criu_image.entry(image, message)


def profile() -> dict[str, Any]:
    """containerd's default."""
    loaded: dict[str, Any] = json.loads((GOLDEN / "config.json").read_text())["linux"]["seccomp"]
    return loaded


class Dump:
    """The golden's first process with a worker, and that whose thread has a filter of its own."""

    def __init__(self) -> None:
        core = {n: golden(f"core-{n}.img", criu.core_entry) for n in (1, 7, 11, 12)}
        self.leader, self.worker, self.dropped, self.narrowed = core.values()
        self.image: criu.seccomp_entry | None = golden("seccomp.img", criu.seccomp_entry)

    @property
    def filters(self) -> Any:
        assert self.image is not None
        return self.image.seccomp_filters

    def threads(self) -> list[DumpedThread]:
        return [
            DumpedThread("leader", self.leader, self.leader),
            DumpedThread("worker", self.worker, self.leader),
            DumpedThread("dropped", self.dropped, self.dropped),
            DumpedThread("narrowed", self.narrowed, self.dropped),
        ]

    def check(self, live: dict[str, Any]) -> None:
        seccomp.check(self.threads(), self.image, live)

    def refusal(self, live: dict[str, Any]) -> str:
        with pytest.raises(PrivilegeError) as caught:
            self.check(live)
        return str(caught.value)


def filter_of(dump: Dump, program: bytes, **fields: int) -> int:
    """Add a filter to the image; its number."""
    dump.filters.add(filter=program, **fields)
    return len(dump.filters) - 1


def test_a_real_dump_is_as_strict_as_the_profile_it_was_made_under() -> None:
    Dump().check(profile())


@pytest.mark.parametrize(
    "live",
    [
        {"defaultAction": "SCMP_ACT_ALLOW"},
        {
            "defaultAction": "SCMP_ACT_LOG",
            "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}],
        },
    ],
)
def test_a_pod_that_denies_nothing_takes_threads_without_filters(
    live: dict[str, Any],
) -> None:
    dump = Dump()
    dump.leader.thread_core.ClearField("seccomp_mode")
    dump.image = None
    dump.check(live)


def leader_without_filter(dump: Dump) -> None:
    dump.leader.thread_core.ClearField("seccomp_mode")


def strict_mode(dump: Dump) -> None:
    dump.leader.thread_core.seccomp_mode = 1


def strange_mode(dump: Dump) -> None:
    dump.leader.thread_core.seccomp_mode = 7


def filter_not_spread(dump: Dump) -> None:
    dump.filters[0].flags = 0


def thread_of_a_leader_with_its_own(dump: Dump) -> None:
    dump.narrowed.thread_core.ClearField("seccomp_mode")


def recorded_for_the_process(dump: Dump) -> None:
    dump.leader.tc.old_seccomp_mode = 0


def filter_recorded_for_the_process(dump: Dump) -> None:
    dump.leader.tc.old_seccomp_filter = 0


def number_out_of_range(dump: Dump) -> None:
    dump.leader.thread_core.seccomp_filter = 5


def no_image(dump: Dump) -> None:
    dump.image = None


def filter_on_itself(dump: Dump) -> None:
    dump.filters[4].prev = 4


def filter_on_a_later_one(dump: Dump) -> None:
    dump.filters[3].prev = 4


def damaged_filter(dump: Dump) -> None:
    dump.filters[0].filter += b"\0"


def another_machine(dump: Dump) -> None:
    dump.leader.mtype = 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (leader_without_filter, "leader: seccomp_mode 0; the pod allows 2 (filter) only; restore"),
        (strict_mode, "leader: seccomp_mode 1;"),
        (strange_mode, "leader: seccomp_mode 7;"),
        (filter_not_spread, "worker: seccomp_mode 0;"),
        (thread_of_a_leader_with_its_own, "narrowed: seccomp_mode 0;"),
        (recorded_for_the_process, "leader: seccomp recorded for the process"),
        (filter_recorded_for_the_process, "leader: seccomp recorded for the process"),
        (number_out_of_range, "leader: seccomp_filter 5, expected a number below 5"),
        (no_image, "leader: seccomp_filter 0, expected a number below 0"),
        (filter_on_itself, "narrowed: seccomp_filter 4, expected a number below 4"),
        (filter_on_a_later_one, "narrowed: seccomp_filter 4, expected a number below 3"),
        (damaged_filter, "seccomp filter: 10409 bytes"),
        (another_machine, "core images: machine 5, expected x86-64 or arm64"),
    ],
)
def test_a_thread_without_the_pods_confinement_is_refused(
    change: Callable[[Dump], None], reason: str
) -> None:
    dump = Dump()
    change(dump)
    assert dump.refusal(profile()).startswith(reason)


@pytest.mark.parametrize("name", ["ptrace", "setuid", "arch_prctl"])
def test_a_call_that_the_new_pod_denies_and_the_old_did_not_is_refused_by_name(name: str) -> None:
    live = profile()
    for rule in live["syscalls"]:
        rule["names"] = [other for other in rule["names"] if other != name]
    message = Dump().refusal(live)
    assert message.startswith("leader: its seccomp filters let through ")
    assert f"x86_64 {name}" in message


def test_a_call_that_the_new_pod_denies_expressly_is_refused_by_name() -> None:
    live = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["mount", "unshare"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    }
    message = Dump().refusal(live)
    assert "let through 3 system calls that the pod denies" in message
    assert "x32 ptrace, x86 ptrace, x86_64 ptrace" in message


def test_a_call_denied_for_some_arguments_only_is_not_compared() -> None:
    live = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1}]},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO"},
        ],
    }
    Dump().check(live)


def test_an_architecture_that_the_new_pod_does_not_list_may_make_no_calls() -> None:
    live = profile()
    live["architectures"].remove("SCMP_ARCH_X86")
    message = Dump().refusal(live)
    assert "x86 _llseek" in message
    assert "x86_64" not in message


def test_a_filter_that_lets_all_through_is_refused() -> None:
    dump = Dump()
    dump.leader.thread_core.seccomp_filter = filter_of(dump, ALLOW_ALL, flags=1)
    assert dump.refusal(profile()).startswith("leader: its seccomp filters let through 237 system")


def test_a_filter_that_lets_all_through_weakens_none_below_it() -> None:
    dump = Dump()
    dump.leader.thread_core.seccomp_filter = filter_of(dump, ALLOW_ALL, prev=0, flags=1)
    dump.check(profile())


def test_a_filter_stricter_than_the_profile_is_no_finding() -> None:
    dump = Dump()
    dump.leader.thread_core.seccomp_filter = filter_of(dump, DENY_ALL, flags=1)
    dump.check(profile())


def test_more_filters_than_any_container_has_are_refused() -> None:
    dump = Dump()
    head = 0
    for number in range(seccomp.MAX_PROGRAMS + 1):
        program = struct.pack("<HBBI", 6, 0, 0, 0x50000 | number)
        head = filter_of(dump, program, prev=head, flags=1)
    dump.leader.thread_core.seccomp_filter = head
    assert dump.refusal(profile()) == "seccomp.img: expected at most 64 filters"


def test_on_arm64_its_own_calls_and_those_of_32_bits_are_compared() -> None:
    demands = seccomp.demands({**profile(), "architectures": ["SCMP_ARCH_ARM"]}, 3)
    names = {demand.abi.name: set(demand.denied.values()) for demand in demands}
    assert "mount" in names["aarch64"] & names["arm"]
    assert "read" not in names["aarch64"] | names["arm"]
    assert "umount2" in names["aarch64"]


def test_only_what_is_denied_whatever_the_arguments_is_demanded() -> None:
    live = profile()
    (own, x32, _) = seccomp.demands(live, 1)
    assert 435 in own.denied  # clone3 answers ENOSYS
    assert 56 not in own.denied  # clone is allowed for some flags
    assert x32.denied[165 | 0x40000000] == "mount"
