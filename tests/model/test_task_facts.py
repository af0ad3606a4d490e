"""Facts of a manifest are held against what there can be, and what the pod may have."""

from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.errors import ImageError, PrivilegeError
from grit_runtime.model import privilege, task_facts
from grit_runtime.model.task_facts import (
    Membership,
    Owner,
    ProcessFacts,
    SocketFacts,
    SocketOption,
    usual,
    usual_thread,
)

THREAD = usual_thread(1)


def spec(*capabilities: str) -> dict[str, Any]:
    """A config.json whose process is root with *capabilities*."""
    sets = {name: list(capabilities) for name in ("bounding", "permitted", "effective")}
    return {"process": {"user": {"uid": 0, "gid": 0}, "capabilities": sets}}


def with_socket(*, option: SocketOption | None = None, group: str = "") -> ProcessFacts:
    options = (option,) if option else ()
    groups = (Membership(group, "eth0", 0, ()),) if group else ()
    return usual(1)._replace(sockets=(SocketFacts(3, options, groups, ()),))


def with_thread(**fields: Any) -> ProcessFacts:
    return usual(1)._replace(threads=(THREAD._replace(**fields),))


@pytest.mark.parametrize(
    "facts",
    [
        usual(1),
        with_thread(cpus=(0, 63), io_priority=(2 << 13) | 7, personality=0x40000),
        with_thread(memory_policy="bind=static:0-1,3"),
        with_thread(memory_policy="prefer (many):0"),
        usual(1)._replace(owners=(Owner(3, 1000, 1000, 0o600),)),
        with_socket(option=SocketOption(1, 12, "06000000")),
        with_socket(option=SocketOption(6, 13, b"reno".hex())),
        with_socket(group="239.1.2.3"),
    ],
)
def test_what_any_process_could_give_itself_it_may_have(facts: ProcessFacts) -> None:
    privilege.check_facts((facts,), spec())


@pytest.mark.parametrize(
    ("facts", "needed"),
    [
        (with_thread(io_priority=1 << 13), "CAP_SYS_NICE"),
        (with_socket(option=SocketOption(1, 12, "07000000")), "CAP_NET_ADMIN"),
        (with_socket(option=SocketOption(1, 36, "01000000")), "CAP_NET_ADMIN"),
        (with_socket(option=SocketOption(0, 19, "01000000")), "CAP_NET_ADMIN"),
    ],
)
def test_what_takes_a_capability_takes_it_here_too(facts: ProcessFacts, needed: str) -> None:
    with pytest.raises(PrivilegeError, match=needed):
        privilege.check_facts((facts,), spec())
    privilege.check_facts((facts,), spec(needed))


@pytest.mark.parametrize(
    "facts",
    [
        with_thread(cpus=(1 << 40,)),
        with_thread(io_priority=1 << 20),
        with_thread(personality=1 << 40),
        with_thread(memory_policy="bind:0-99999999999"),
        with_thread(memory_policy="bind:" + "1," * 40),
        usual(1)._replace(core_dump_filter=1 << 40),
        usual(1)._replace(owners=(Owner(3, 1 << 40, 0, 0o600),)),
        usual(1)._replace(owners=(Owner(3, 0, 0, 0o170000),)),
        with_socket(option=SocketOption(1, 26, "00")),
        with_socket(option=SocketOption(1, 12, "no number")),
        with_socket(group="nowhere"),
        usual(1)._replace(sockets=(SocketFacts(3, (), (), (1,)),)),
    ],
)
def test_what_no_kernel_could_have_told_is_refused(facts: ProcessFacts) -> None:
    with pytest.raises(ImageError):
        privilege.check_facts((facts,), spec("CAP_NET_ADMIN"))


def test_a_thread_that_is_not_as_it_was_is_told_by_what_differs() -> None:
    now = THREAD._replace(cpus=(0,), timer_slack_ns=1)
    assert task_facts.differences(THREAD, now) == [
        "cpus is (0,), was ()",
        "timer_slack_ns is 1, was 50000",
    ]
