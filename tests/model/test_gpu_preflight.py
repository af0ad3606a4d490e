from typing import Any

import pytest

from grit_runtime.model.gpu_preflight import (
    SAFE_NCCL,
    ContainerFacts,
    ProcessFacts,
    driver_mounts,
    refusals,
)

GIB = 1 << 30


def process(pid: int = 7, **facts: Any) -> ProcessFacts:
    plain = ProcessFacts(
        pid=pid,
        container="train",
        environ={},
        maps_nccl=False,
        devices=1,
        tracer_pid=0,
        talks_to_mps=False,
    )
    return plain._replace(**facts)


def container(**facts: Any) -> ContainerFacts:
    plain = ContainerFacts(
        name="train",
        assumes_nccl_safe=False,
        foreign_mounts=(),
        mig_cards=(),
        needed_bytes=10 * GIB,
        limit_left_bytes=None,
    )
    return plain._replace(**facts)


def test_a_pytorch_process_on_one_gpu_is_never_refused_for_its_nccl() -> None:
    assert refusals([container()], [process(maps_nccl=True)], host_left_bytes=64 * GIB) == []


@pytest.mark.parametrize(
    ("processes", "is_refused"),
    [
        ([process(1, maps_nccl=True), process(2, maps_nccl=True)], True),
        ([process(1, maps_nccl=True, devices=2)], True),
        ([process(n, maps_nccl=True, environ=SAFE_NCCL) for n in (1, 2)], False),
        ([process(n, maps_nccl=True, environ={"NCCL_P2P_DISABLE": "1"}) for n in (1, 2)], True),
        ([process(1), process(2)], False),
    ],
    ids=["two ranks", "two cards", "safe", "half safe", "no NCCL"],
)
def test_nccl_without_the_safe_pair_is_refused(
    processes: list[ProcessFacts], *, is_refused: bool
) -> None:
    reasons = refusals([container()], processes, host_left_bytes=64 * GIB)
    assert bool(reasons) == is_refused
    assert all("grit.dev/nccl: checkpointable" in reason for reason in reasons)


def test_the_pods_owner_can_take_the_nccl_risk() -> None:
    facts = [process(n, maps_nccl=True) for n in (1, 2)]
    owned = container(assumes_nccl_safe=True)
    assert refusals([owned], facts, host_left_bytes=64 * GIB) == []


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"mig_cards": ("GPU-1",)}, "GPU GPU-1 is in MIG mode"),
        ({"foreign_mounts": ("/usr/lib/libcuda.so.1",)}, 'set mode = "cdi"'),
        ({"limit_left_bytes": 5 * GIB}, "its limit leaves 5.0 GiB; raise resources.limits.memory"),
        ({"needed_bytes": 65 * GIB}, "does not fit into the host's free memory"),
    ],
)
def test_a_container_that_could_not_come_back_is_refused(
    facts: dict[str, Any], reason: str
) -> None:
    [told] = refusals([container(**facts)], [process()], host_left_bytes=64 * GIB)
    assert reason in told


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"tracer_pid": 99}, "traced by process 99; detach the debugger"),
        ({"talks_to_mps": True}, "uses MPS"),
    ],
)
def test_a_process_that_could_not_come_back_is_refused(facts: dict[str, Any], reason: str) -> None:
    [told] = refusals([container()], [process(**facts)], host_left_bytes=64 * GIB)
    assert "process 7 in container train" in told
    assert reason in told


def test_driver_files_that_no_config_orders_are_found() -> None:
    mounts = ["/etc/hosts", "/usr/lib/libcuda.so.580", "/usr/bin/nvidia-smi", "/dev/nvidia0"]
    assert driver_mounts(mounts, ["/usr/bin/nvidia-smi"]) == (
        "/usr/lib/libcuda.so.580",
        "/dev/nvidia0",
    )
