"""GPU memory goes with its pod, and comes back to where it was when something goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from grit_runtime.model import manifest as manifests
from integration.fakes import fake_gpu
from integration.fakes.fake_gpu import CARDS_DIR, CONTEXT_BYTES
from integration.pods import checkpoints, kubelet, workload
from integration.tests.faults.test_faults import refused
from integration.tests.gpu import cuda_workload
from integration.tests.gpu.cuda_workload import CONTAINER, SIZE_BYTES
from integration.tests.gpu.test_fake_gpu import ByHand, read_until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.fakes.fake_gpu import Card
    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.pods.pod_spec import PodSpec
    from integration.tests.conftest import Nodes, RunPod

HELD_BYTES = SIZE_BYTES + CONTEXT_BYTES

pytestmark = pytest.mark.usefixtures("fresh_nodes")


class Cards(NamedTuple):
    """A node and the cards it has."""

    node: Node
    cards: tuple[Card, ...]

    @property
    def directory(self) -> Path:
        """What the libraries take for the cards."""
        return self.node.path(CARDS_DIR)

    def used_bytes(self) -> list[int]:
        return [fake_gpu.used_bytes(self.directory, card) for card in self.cards]


class Gpus(NamedTuple):
    """Two nodes with two cards each, no UUID or minor twice."""

    a: Cards
    b: Cards


@pytest.fixture(scope="module")
def gpus(nodes: Nodes) -> Iterator[Gpus]:
    a = Cards(nodes.a, (fake_gpu.new_card(3), fake_gpu.new_card(5, mig=False)))
    b = Cards(nodes.b, (fake_gpu.new_card(8), fake_gpu.new_card(9, mig=False)))
    with fake_gpu.installed(*a), fake_gpu.installed(*b):
        yield Gpus(a, b)


@pytest.fixture(scope="module")
def source(gpus: Gpus) -> Iterator[Pod]:
    """Three processes on the first card of node A, all counting; each test leaves them so."""
    spec = cuda_workload.pod("source", gpus.a.cards[:1], processes=3)
    with kubelet.running(gpus.a.node, spec) as pod:
        cuda_workload.wait_for_counts(pod, 3, processes=3)
        yield pod


@pytest.fixture(scope="module")
def carried(gpus: Gpus, source: Pod, fresh_nodes: None) -> Path:  # noqa: ARG001 -- comes after it
    """A sound checkpoint of the source, on node B."""
    checkpoints.take(source, "carried")
    return checkpoints.carry(gpus.a.node, gpus.b.node, "carried")


def restoring(name: str, **own: str) -> tuple[tuple[str, str], ...]:
    asked = {"restore-name": name} | {key.replace("_", "-"): value for key, value in own.items()}
    return tuple((f"grit.dev/{key}", value) for key, value in asked.items())


def states(pod: Pod) -> list[str]:
    """What the driver says of each CUDA process of the pod."""
    target = f"{pod.spec.namespace}/{pod.spec.name}"
    lines = pod.node.run(["grit", "gpu", "state", target]).stdout.splitlines()
    return [line.split()[1] for line in lines]


def pids(pod: Pod) -> list[int]:
    """The CUDA processes of the pod, as its node numbers them."""
    target = f"{pod.spec.namespace}/{pod.spec.name}"
    lines = pod.node.run(["grit", "gpu", "state", target]).stdout.splitlines()
    return [int(line.split()[0]) for line in lines]


def grit_gpu(node: Node, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return node.run(["grit", "gpu", *arguments], check=check)


def assert_undisturbed(pod: Pod, *, processes: int = 3) -> None:
    """All of the pod's processes run, with their memory, and nothing of a checkpoint is left."""
    assert states(pod) == ["running"] * processes
    cuda_workload.assert_goes_on(pod, processes=processes)
    assert checkpoints.left_by_checkpoints(pod.node) == []


# Where it goes well


@pytest.mark.parametrize("processes", [1, 3])
def test_memory_goes_on_in_a_new_pod_on_the_card_of_another_node(
    gpus: Gpus, run_pod: RunPod, processes: int
) -> None:
    name = f"moved-{processes}"
    pod = run_pod(gpus.a.node, cuda_workload.pod(name, gpus.a.cards[:1], processes=processes))
    cuda_workload.wait_for_counts(pod, 5, processes=processes)
    checkpoints.take(pod, name)
    cuda_workload.assert_goes_on(pod, processes=processes)
    (container,) = checkpoints.read(checkpoints.carry(*nodes_of(gpus), name)).containers
    assert [process.size_bytes for process in container.cuda] == [HELD_BYTES] * processes
    assert [gpu.uuid for gpu in container.gpus] == [gpus.a.cards[0].uuid]

    spec = cuda_workload.pod(
        f"{name}-b", gpus.b.cards[1:], processes=processes, annotations=restoring(name)
    )
    target = run_pod(gpus.b.node, spec)
    cuda_workload.assert_goes_on(target, processes=processes)
    assert states(target) == ["running"] * processes
    assert gpus.b.used_bytes() == [0, HELD_BYTES * processes]
    listed = target.exec_sync(CONTAINER, ["/bin/sh", "-c", "cd /dev; ls -d nvidia*"])
    assert listed.stdout.decode().split() == ["nvidia-uvm", "nvidia9", "nvidiactl"]


def nodes_of(gpus: Gpus) -> tuple[Node, Node]:
    return gpus.a.node, gpus.b.node


def test_a_restored_pod_can_go_back_to_its_first_card(gpus: Gpus, run_pod: RunPod) -> None:
    first = run_pod(gpus.a.node, cuda_workload.pod("there", gpus.a.cards[1:]))
    cuda_workload.wait_for_counts(first, 3)
    checkpoints.take(first, "there", "--after", "frozen")
    checkpoints.carry(*nodes_of(gpus), "there")
    spec = cuda_workload.pod("and", gpus.b.cards[:1], annotations=restoring("there"))
    second = run_pod(gpus.b.node, spec)
    first.stop(grace_period_s=0)
    first.remove()
    cuda_workload.assert_goes_on(second)
    checkpoints.take(second, "back")
    checkpoints.carry(gpus.b.node, gpus.a.node, "back")
    spec = cuda_workload.pod("back", gpus.a.cards[1:], annotations=restoring("back"))
    third = run_pod(gpus.a.node, spec)
    cuda_workload.assert_goes_on(third)


def test_memory_of_a_checkpoint_of_another_program_comes_back_on_its_card(
    gpus: Gpus, run_pod: RunPod
) -> None:
    card = gpus.a.cards[1:]
    pod = run_pod(gpus.a.node, cuda_workload.pod("foreign", card))
    cuda_workload.wait_for_counts(pod, 3)
    checkpoints.take(pod, "foreign", "--after", "frozen")
    directory = checkpoints.directory(gpus.a.node, "foreign")
    for kept_by_us_alone in (directory / "manifest.json", *directory.glob("*/config.dump")):
        kept_by_us_alone.unlink()
    pod.stop(grace_period_s=0)
    pod.remove()
    spec = cuda_workload.pod("foreign-b", card, annotations=restoring("foreign"))
    target = run_pod(gpus.a.node, spec)
    cuda_workload.assert_goes_on(target)
    assert states(target) == ["running"]


def target_pod(cards: tuple[Card, ...] | list[Card], **annotations: str) -> PodSpec:
    return cuda_workload.pod(
        "target", cards, processes=3, annotations=restoring("carried", **annotations)
    )


def test_the_annotation_says_which_card_takes_the_place_of_which(
    gpus: Gpus, run_pod: RunPod
) -> None:
    pod = run_pod(gpus.a.node, cuda_workload.pod("crossed", gpus.a.cards, processes=3))
    cuda_workload.wait_for_counts(pod, 3, processes=3)
    assert gpus.a.used_bytes() == [HELD_BYTES * 2, HELD_BYTES]
    checkpoints.take(pod, "crossed")
    checkpoints.carry(*nodes_of(gpus), "crossed")
    crossed = zip(gpus.a.cards, reversed(gpus.b.cards), strict=True)
    wanted = ",".join(f"{old.uuid}={new.uuid}" for old, new in crossed)
    spec = cuda_workload.pod(
        "crossed-b",
        gpus.b.cards,
        processes=3,
        annotations=restoring("crossed", device_map=wanted),
    )
    target = run_pod(gpus.b.node, spec)
    cuda_workload.assert_goes_on(target, processes=3)
    assert gpus.b.used_bytes() == [HELD_BYTES, HELD_BYTES * 2]


def test_children_forked_by_a_cuda_process_go_with_it_though_they_hold_its_devices(
    gpus: Gpus, run_pod: RunPod
) -> None:
    forks = (("FORKS", "1"),)
    first = run_pod(gpus.a.node, cuda_workload.pod("forks", gpus.a.cards[1:], env=forks))
    cuda_workload.wait_for_counts(first, 3)
    checkpoints.take(first, "forks")
    cuda_workload.assert_goes_on(first)
    checkpoints.take(first, "forks-again", "--after", "frozen")
    checkpoints.carry(*nodes_of(gpus), "forks-again")
    spec = cuda_workload.pod(
        "forks-b", gpus.b.cards[:1], env=forks, annotations=restoring("forks-again")
    )
    second = run_pod(gpus.b.node, spec)
    cuda_workload.assert_goes_on(second)
    checkpoints.take(second, "forks-back")
    cuda_workload.assert_goes_on(second)


def test_a_pod_that_grit_gpu_has_suspended_is_dumped_so_and_goes_on_later(
    gpus: Gpus, run_pod: RunPod
) -> None:
    node = gpus.a.node
    pod = run_pod(node, cuda_workload.pod("asleep", gpus.a.cards[1:]))
    cuda_workload.wait_for_counts(pod, 3)
    grit_gpu(node, "checkpoint", "default/asleep")
    checkpoints.take(pod, "asleep")
    assert states(pod) == ["checkpointed"]
    grit_gpu(node, "restore", "default/asleep")
    assert_undisturbed(pod, processes=1)
    checkpoints.carry(*nodes_of(gpus), "asleep")
    spec = cuda_workload.pod("asleep-b", gpus.b.cards[:1], annotations=restoring("asleep"))
    cuda_workload.assert_goes_on(run_pod(gpus.b.node, spec))


def test_a_frozen_source_leaves_the_card_until_it_is_resumed(gpus: Gpus, source: Pod) -> None:
    checkpoints.take(source, "frozen", "--after", "frozen", "--replace")
    assert gpus.a.used_bytes() == [0, 0]
    gpus.a.node.run(["grit", "resume", "default/source"])
    assert_undisturbed(source)
    assert gpus.a.used_bytes() == [HELD_BYTES * 3, 0]


def test_a_frozen_source_can_be_deleted(gpus: Gpus, run_pod: RunPod) -> None:
    pod = run_pod(gpus.a.node, cuda_workload.pod("doomed-gpu", gpus.a.cards[1:]))
    cuda_workload.wait_for_counts(pod, 3)
    checkpoints.take(pod, "doomed-gpu", "--after", "frozen")
    pod.stop(grace_period_s=0)
    pod.remove()
    assert checkpoints.left_by_checkpoints(gpus.a.node) == []
    assert gpus.a.used_bytes()[1] == 0


def test_a_pod_that_is_paused_stays_paused(gpus: Gpus, source: Pod) -> None:
    runc = ["runc", "--root", "/run/containerd/runc/k8s.io"]
    container_id = source.container_ids[CONTAINER]
    gpus.a.node.run([*runc, "pause", container_id])
    try:
        checkpoints.take(source, "paused")
        state = json.loads(gpus.a.node.run([*runc, "state", container_id]).stdout)
    finally:
        gpus.a.node.run([*runc, "resume", container_id])
    assert state["status"] == "paused"
    assert_undisturbed(source)


def test_the_gpu_stage_alone_swaps_memory_out_and_in(gpus: Gpus, source: Pod) -> None:
    node = gpus.a.node
    freed = node.run(["grit", "checkpoint", "default/source", "--stage", "gpu"]).stdout
    assert f"{HELD_BYTES * 3} bytes of GPU memory freed" in freed
    assert gpus.a.used_bytes() == [0, 0]
    assert states(source) == ["checkpointed"] * 3
    grit_gpu(node, "restore", "default/source")
    assert_undisturbed(source)


def test_a_process_that_comes_to_the_gpu_late_is_dumped_too(gpus: Gpus, run_pod: RunPod) -> None:
    pod = run_pod(gpus.a.node, cuda_workload.pod("late", gpus.a.cards[1:]))
    cuda_workload.wait_for_counts(pod, 3)
    take_while_another_comes(gpus.a, pod, "late")
    (container,) = checkpoints.read(checkpoints.directory(gpus.a.node, "late")).containers
    assert len(container.cuda) == 2
    assert_undisturbed(pod, processes=2)


def take_while_another_comes(
    cards: Cards, pod: Pod, name: str, *, size_bytes: int = SIZE_BYTES
) -> None:
    """Checkpoint *pod*, and have a second process begin with the GPU while the first leaves it."""
    with (
        fake_gpu.faults(cards.directory, "checkpoint wait times 1") as lift,
        checkpoints.taking(pod, name) as taken,
    ):
        wait_for_fault(cards)
        *program, _, _ = cuda_workload.command(size_bytes=size_bytes)
        start = 'exec "$@" 1 0 >/proc/1/fd/1 2>/proc/1/fd/2 &'
        pod.exec_sync(CONTAINER, ["/bin/sh", "-c", start, "sh", *program])
        pod.wait_for_log(CONTAINER, "\n1 3 ")
        lift()
        assert taken.wait(60) == 0


def wait_for_fault(cards: Cards) -> None:
    """Wait until the one fault that is scripted has struck."""
    while "times 0" not in (cards.directory / "faults").read_text():
        cards.node.assert_alive()
        time.sleep(kubelet.POLL_S)


# Where a checkpoint fails


def test_a_lock_that_times_out_is_tried_again(gpus: Gpus, source: Pod) -> None:
    pid = pids(source)[1]
    with fake_gpu.faults(gpus.a.directory, "lock 600 skip 1 times 1"):
        checkpoints.take(source, "retried", "--replace")
    assert_undisturbed(source)
    assert pid in pids(source)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("lock 999 skip 2", "CUDA lock: CUDA_ERROR_UNKNOWN (999)"),
        ("lock die skip 1 times 1", "CUDA lock: the calling process died"),
        ("lock die skip 1 times 1 afterwards", "CUDA lock: the calling process died"),
        ("lock block times 1", "CUDA lock: no answer within its deadline"),
        ("lock block times 1 afterwards", "CUDA lock: no answer within its deadline"),
        ("checkpoint 801 skip 1 times 1", "use cudaMalloc"),
        ("checkpoint die skip 1 times 1", "CUDA checkpoint: the calling process died"),
        ("checkpoint die times 3 afterwards", "CUDA checkpoint: the calling process died"),
        ("state die times 1", "the process that asked the GPU driver died"),
        ("nvml 999 times 1", "nvmlInit_v2: Unknown Error (999)"),
    ],
)
def test_a_checkpoint_that_fails_leaves_all_processes_running(
    gpus: Gpus, source: Pod, fault: str, reason: str
) -> None:
    with fake_gpu.faults(gpus.a.directory, fault):
        failed = checkpoints.take(source, "failed", check=False)
    assert failed.returncode == 1
    assert reason in failed.stderr
    assert not checkpoints.directory(gpus.a.node, "failed").exists()
    assert_undisturbed(source)


def test_an_undo_waits_for_a_driver_that_is_slow_to_answer(gpus: Gpus, source: Pod) -> None:
    slow_after_the_survey = "state block skip 3 times 1"
    with fake_gpu.faults(gpus.a.directory, "checkpoint 801 times 1", slow_after_the_survey):
        failed = checkpoints.take(source, "slow", check=False)
    assert "use cudaMalloc" in failed.stderr
    assert_undisturbed(source)


def test_a_dump_that_fails_gives_the_memory_back(gpus: Gpus, run_pod: RunPod) -> None:
    pod = run_pod(gpus.a.node, cuda_workload.pod("undumpable", gpus.a.cards[1:]))
    cuda_workload.wait_for_counts(pod, 3)
    start = f"python3 -c '{workload.UNDUMPABLE}' >/tmp/said 2>&1 &"
    ready = "until grep -q ready /tmp/said; do sleep 0.05; done"
    pod.exec_sync(CONTAINER, ["/bin/sh", "-c", f"{start} {ready}"])
    failed = checkpoints.take(pod, "undumpable", check=False)
    assert "container cuda: dump failed: " in failed.stderr
    assert gpus.a.used_bytes()[1] == HELD_BYTES
    assert_undisturbed(pod, processes=1)


@pytest.mark.parametrize("verb", ["lock", "checkpoint"])
def test_a_killed_grit_is_undone_by_its_supervisor(gpus: Gpus, source: Pod, verb: str) -> None:
    node = gpus.a.node
    with (
        fake_gpu.faults(gpus.a.directory, f"{verb} block times 1 afterwards"),
        checkpoints.taking(source, "killed") as taken,
    ):
        wait_for_fault(gpus.a)
        os.kill(node.command_pid(taken), signal.SIGKILL)
    node.run(["grit", "recover", "--wait", checkpoints.journal(source)], check=False)
    assert_undisturbed(source)


def test_a_source_that_the_driver_cannot_bring_back_is_called_lost(
    gpus: Gpus, run_pod: RunPod
) -> None:
    pod = run_pod(gpus.a.node, cuda_workload.pod("lost", gpus.a.cards[1:]))
    cuda_workload.wait_for_counts(pod, 3)
    with fake_gpu.faults(gpus.a.directory, "restore 304"):
        failed = checkpoints.take(pod, "lost", check=False)
    assert failed.returncode == 1
    assert "source lost: " in failed.stderr
    assert "CUDA_ERROR_OPERATING_SYSTEM (304)" in failed.stderr
    pod.stop(grace_period_s=0)
    pod.remove()
    end = time.monotonic() + 30
    while checkpoints.left_by_checkpoints(gpus.a.node):  # whoever is at it takes its files away
        assert time.monotonic() < end, checkpoints.left_by_checkpoints(gpus.a.node)
        time.sleep(kubelet.POLL_S)


@pytest.mark.parametrize("verb", ["lock", "checkpoint"])
def test_a_source_that_the_driver_kills_is_called_lost(
    gpus: Gpus, run_pod: RunPod, verb: str
) -> None:
    pod = run_pod(gpus.a.node, cuda_workload.pod(f"killed-by-{verb}", gpus.a.cards[1:]))
    cuda_workload.wait_for_counts(pod, 3)
    with fake_gpu.faults(gpus.a.directory, f"{verb} crash"):
        failed = checkpoints.take(pod, "killed", check=False)
    assert failed.returncode == 1
    told = failed.stderr.splitlines()[-1]
    assert re.search(
        rf"source lost: process \d+ (was killed by SIGSEGV|has ended) in the GPU driver's {verb}; "
        "no checkpoint of it was sealed",
        told,
    )
    assert checkpoints.outcomes(pod)[-1]["outcome"] == "lost"
    assert not checkpoints.directory(gpus.a.node, "killed").exists()
    assert checkpoints.left_by_checkpoints(gpus.a.node) == []


def test_a_checkpoint_is_sealed_though_its_source_is_lost_when_it_is_to_go_on(
    gpus: Gpus, run_pod: RunPod
) -> None:
    pod = run_pod(gpus.a.node, cuda_workload.pod("last", gpus.a.cards[1:]))
    cuda_workload.wait_for_counts(pod, 3)
    with fake_gpu.faults(gpus.a.directory, "restore 304"):
        failed = checkpoints.take(pod, "last", check=False)
    assert failed.returncode == 1
    assert "source lost: " in failed.stderr
    assert "its checkpoint /mnt/grit-agent/default/last is sealed" in failed.stderr
    pod.stop(grace_period_s=0)
    pod.remove()
    checkpoints.carry(*nodes_of(gpus), "last")
    spec = cuda_workload.pod("last-b", gpus.b.cards[:1], annotations=restoring("last"))
    cuda_workload.assert_goes_on(run_pod(gpus.b.node, spec))


def test_a_driver_that_is_known_to_kill_is_not_asked(gpus: Gpus, source: Pod) -> None:
    path = gpus.a.directory / "driver"
    kept = path.read_text()
    path.write_text("610.57.04 13000")
    try:
        failed = checkpoints.take(source, "deadly", check=False)
    finally:
        path.write_text(kept)
    assert "NVIDIA driver 610.57.04 is not asked for a checkpoint" in failed.stderr
    assert_undisturbed(source)


# Where a restore fails


@pytest.mark.usefixtures("carried")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("restore 2 skip 1 times 1", "CUDA restore: CUDA_ERROR_OUT_OF_MEMORY (2)"),
        ("restore 801", "CUDA restore: CUDA_ERROR_NOT_SUPPORTED (801)"),
        ("restore die skip 1 times 1", "CUDA restore: the calling process died"),
        ("restore die skip 1 times 1 afterwards", "CUDA restore: the calling process died"),
        ("unlock 999 skip 2", "CUDA unlock: CUDA_ERROR_UNKNOWN (999)"),
        ("unlock die times 1 afterwards", "CUDA unlock: the calling process died"),
        ("state failed times 3", "is failed after its CUDA restore"),
        ("count 999 skip 1 times 1", "nvmlDeviceGetCount_v2: Unknown Error (999)"),
    ],
)
def test_a_restore_that_fails_leaves_nothing(gpus: Gpus, fault: str, reason: str) -> None:
    with fake_gpu.faults(gpus.b.directory, fault):
        assert reason in refused(gpus.b.node, target_pod(gpus.b.cards[:1]))
    assert gpus.b.used_bytes() == [0, 0]


@pytest.mark.usefixtures("carried")
def test_a_restore_that_failed_can_be_tried_again(gpus: Gpus, run_pod: RunPod) -> None:
    with fake_gpu.faults(gpus.b.directory, "restore 2 times 1"):
        refused(gpus.b.node, target_pod(gpus.b.cards[:1]))
    target = run_pod(gpus.b.node, target_pod(gpus.b.cards[:1]))
    cuda_workload.assert_goes_on(target, processes=3)


@pytest.mark.usefixtures("carried")
def test_a_card_without_enough_free_memory_is_refused(gpus: Gpus, run_pod: RunPod) -> None:
    size_bytes = gpus.b.cards[0].total_bytes - HELD_BYTES * 2
    other = cuda_workload.pod("other", gpus.b.cards[:1], size_bytes=size_bytes)
    run_pod(gpus.b.node, other).wait_for_log(CONTAINER, "0 1 ")
    reason = refused(gpus.b.node, target_pod(gpus.b.cards[:1]))
    assert re.search(r"GPU GPU-\S+ has 7 MiB free, the checkpoint needs 12 MiB on it", reason)


@pytest.mark.usefixtures("carried")
def test_a_pod_without_its_gpu_is_refused(gpus: Gpus) -> None:
    reason = refused(gpus.b.node, target_pod([]))
    assert "has no place in the new pod, which was given no GPU" in reason


@pytest.mark.usefixtures("carried")
def test_a_device_map_is_held_against_the_gpus_of_both_pods(gpus: Gpus) -> None:
    old, (new, other) = gpus.a.cards[0].uuid, (card.uuid for card in gpus.b.cards)
    for wanted, reason in (
        (f"{old}={other}", f"{other} is not among the GPUs this pod was given"),
        (f"{new}={new}", f"{new} is not a GPU of the checkpoint"),
        (f"{old}={new},{old}={new}", "two GPUs are mapped to one, or one to two"),
        (old, "expected OLD=NEW,... or auto"),
    ):
        spec = target_pod(gpus.b.cards[:1], device_map=wanted)
        assert reason in refused(gpus.b.node, spec)


@pytest.mark.usefixtures("carried")
@pytest.mark.parametrize("change", [{"total_bytes": 48 << 20}, {"name": "NVIDIA H200"}])
def test_a_smaller_or_other_card_is_refused(gpus: Gpus, change: dict[str, object]) -> None:
    with fake_gpu.changed(gpus.b.directory, gpus.b.cards[0], **change):
        reason = refused(gpus.b.node, target_pod(gpus.b.cards[:1]))
    assert "has no place in the new pod" in reason


def test_a_manifest_whose_cuda_processes_do_not_come_back_is_refused(
    gpus: Gpus, carried: Path
) -> None:
    path = shutil.copytree(carried, carried.with_name("forged"))
    manifest = checkpoints.read(path)
    (container,) = manifest.containers
    ghost = container.cuda[0]._replace(pid=999)
    forged = manifest._replace(containers=(container._replace(cuda=(ghost,)),))
    (path / manifests.FILE_NAME).write_bytes(manifests.dump(forged))
    spec = cuda_workload.pod("target", gpus.b.cards[:1], annotations=restoring("forged"))
    reason = refused(gpus.b.node, spec)
    assert "CUDA process 999 of the manifest did not come back" in reason
    assert gpus.b.used_bytes() == [0, 0]


@pytest.mark.usefixtures("carried")
def test_a_node_without_a_driver_is_refused(gpus: Gpus) -> None:
    node = gpus.b.node
    library = node.path(fake_gpu.LIBNVIDIA_ML)
    kept = library.rename(library.with_name("kept"))
    try:
        reason = refused(node, target_pod(gpus.b.cards[:1]))
    finally:
        kept.rename(library)
    assert "has GPU memory, and this node has no NVIDIA driver" in reason


# What is refused before anything is done


def test_a_card_in_mig_mode_is_refused(gpus: Gpus, source: Pod) -> None:
    with fake_gpu.changed(gpus.a.directory, gpus.a.cards[0], mig=True):
        failed = checkpoints.take(source, "mig", check=False)
    assert "is in MIG mode, which the driver cannot checkpoint; use whole GPUs" in failed.stderr
    assert_undisturbed(source)


@pytest.mark.parametrize(
    ("processes", "annotation", "refused"),
    [
        (1, None, False),
        (2, None, True),
        (2, "assume-safe", False),
        (2, "checkpointable", False),
    ],
)
def test_nccl_between_processes_must_be_of_the_kind_that_comes_back(
    gpus: Gpus, run_pod: RunPod, processes: int, annotation: str | None, *, refused: bool
) -> None:
    spec = cuda_workload.pod(
        "nccl",
        gpus.a.cards[1:],
        processes=processes,
        env=(("MAPPED", "/libnccl.so.2"),),
        annotations=(("grit.dev/nccl", annotation),) if annotation else (),
    )
    pod = run_pod(gpus.a.node, spec)
    cuda_workload.wait_for_counts(pod, 3, processes=processes)
    taken = checkpoints.take(pod, "nccl", "--replace", check=False)
    assert (taken.returncode == 1) is refused, taken.stderr
    assert ("uses NCCL without NCCL_P2P_DISABLE=1 NCCL_CUMEM_ENABLE=0" in taken.stderr) is refused
    assert_undisturbed(pod, processes=processes)


TRACE = """
import ctypes, sys, time
PTRACE_SEIZE = 0x4206
assert ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None) == 0
print("traced", flush=True)
time.sleep(1000)
"""


def test_a_process_with_a_debugger_is_refused(gpus: Gpus, source: Pod) -> None:
    argv = ["python3", "-c", TRACE, str(pids(source)[1])]
    with gpus.a.node.popen(argv, stdout=subprocess.PIPE) as debugger:
        assert debugger.stdout is not None
        assert debugger.stdout.readline() == "traced\n"
        failed = checkpoints.take(source, "traced", check=False)
        os.killpg(debugger.pid, signal.SIGKILL)
    assert "; detach the debugger" in failed.stderr
    assert_undisturbed(source)


# By hand, as runc is used


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_checkpoint_at_runc_level_carries_gpu_memory(gpus: Gpus, *, paused: bool) -> None:
    container = ByHand(gpus.a.node)
    container.prepare(fake_gpu.device_paths(gpus.a.cards[1:]))
    images = ("--image-path", "/run/by-hand/images", "--work-path", "/run/by-hand/work")
    try:
        with container.run("run") as process:
            count = read_until(process, 3)
            if paused:
                gpus.a.node.run(["runc", "pause", "counter"])
            gpus.a.node.run(["grit-runtime", "checkpoint", *images, "counter"])
            assert gpus.a.used_bytes()[1] == 0
        with container.run("restore", "--detach", *images, runtime="grit-runtime") as process:
            assert read_until(process, 0) > count
            read_until(process, count + 10)
            assert gpus.a.used_bytes()[1] > 0
    finally:
        container.remove()


def test_a_checkpoint_at_runc_level_that_is_killed_is_undone(gpus: Gpus) -> None:
    node = gpus.a.node
    container = ByHand(node)
    container.prepare(fake_gpu.device_paths(gpus.a.cards[1:]))
    path = node.path(Path("/run/grit/pods/counter/checkpoint.journal"))
    argv = ["grit-runtime", "checkpoint", "--image-path", "/run/by-hand/images", "counter"]
    try:
        with container.run("run") as process:
            count = read_until(process, 3)
            with fake_gpu.paced(gpus.a.directory, 20), node.popen(argv) as taken:
                while not path.exists() or '"gpu"' not in path.read_text():
                    assert taken.poll() is None
                    time.sleep(kubelet.POLL_S / 10)
                os.kill(node.command_pid(taken), signal.SIGKILL)
            read_until(process, count + 10)
            node.run(["sh", "-c", "until ! [ -e /run/grit/pods/counter ]; do sleep 0.02; done"])
            assert gpus.a.used_bytes()[1] > 0
    finally:
        container.remove()


# grit gpu


def test_gpu_commands_take_a_pod_through_all_states(gpus: Gpus, source: Pod) -> None:
    node = gpus.a.node
    for verb, state in (
        ("lock", "locked"),
        ("unlock", "running"),
        ("checkpoint", "checkpointed"),
        ("restore", "running"),
        ("toggle", "checkpointed"),
        ("toggle", "running"),
    ):
        grit_gpu(node, verb, "default/source")
        assert states(source) == [state] * 3
    assert_undisturbed(source)


def test_the_flags_of_cuda_checkpoint_work_on_a_pid(gpus: Gpus, source: Pod) -> None:
    node, pid = gpus.a.node, str(pids(source)[0])
    first, second = (card.uuid for card in gpus.a.cards)
    assert grit_gpu(node, "--get-state", "--pid", pid).stdout == "running\n"
    tid = grit_gpu(node, "--get-restore-tid", "--pid", pid).stdout.strip()
    assert node.path(Path(f"/proc/{pid}/task/{tid}")).exists()
    for action in ("lock", "checkpoint"):
        grit_gpu(node, "--action", action, "--timeout", "500", "--pid", pid)
    for wanted in (f"{first}={second}", f"{second}={first}", f"{first}={first},{second}={second}"):
        failed = grit_gpu(
            node, "--action", "restore", "--device-map", wanted, "--pid", pid, check=False
        )
        assert failed.returncode == 1
        assert len(failed.stderr.splitlines()) == 1
        assert grit_gpu(node, "--get-state", "--pid", pid).stdout == "checkpointed\n"
    grit_gpu(node, "--toggle", "--device-map", f"{first}={first}", "--pid", pid)
    assert_undisturbed(source)


def test_gpu_list_shows_cards_and_who_is_on_them(gpus: Gpus, source: Pod) -> None:
    listed = grit_gpu(gpus.a.node, "list").stdout
    assert f"{gpus.a.cards[0].uuid} NVIDIA H100 80GB HBM3 minor 3: 52 of 64 MiB free" in listed
    assert all(f"\n  {pid}: 4 MiB\n" in listed for pid in pids(source))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["state", "4194304"], "process 4194304: CUDA_ERROR_OPERATING_SYSTEM (304)"),
        (["lock", "1"], "process 1: CUDA_ERROR_NOT_INITIALIZED (3)"),
        (["unlock", "default/source"], "is running, unlock expects locked"),
        (["restore", "default/source"], "is running, restore expects checkpointed"),
        (["state", "default/nobody"], "default/nobody"),
        (["--pid", "1"], "expected one of --get-state"),
        (["--toggle"], "expected a command or --pid"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    gpus: Gpus, source: Pod, arguments: list[str], reason: str
) -> None:
    failed = grit_gpu(gpus.a.node, *arguments, check=False)
    assert failed.returncode != 0
    assert reason in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert_undisturbed(source)


def test_a_call_that_blocks_ends_at_its_deadline(gpus: Gpus, source: Pod) -> None:
    with fake_gpu.faults(gpus.a.directory, "lock block skip 1 times 1 afterwards"):
        failed = grit_gpu(
            gpus.a.node, "checkpoint", "default/source", "--timeout", "100", check=False
        )
    assert "CUDA lock: no answer within its deadline" in failed.stderr
    assert_undisturbed(source)


def test_a_driver_that_is_too_old_is_named(gpus: Gpus, source: Pod) -> None:
    node, pid = gpus.a.node, str(pids(source)[0])
    with old_driver(node):
        failed = grit_gpu(node, "state", pid, check=False)
    assert failed.returncode == 1
    assert "lacks cuCheckpointProcessGetState: expected an NVIDIA driver of 570 or newer" in (
        failed.stderr
    )


@contextmanager
def old_driver(node: Node) -> Iterator[None]:
    """Libraries of a driver without checkpoints; the running processes keep theirs."""
    with ExitStack() as stack:
        for library in fake_gpu.LIBRARIES:
            path = node.path(fake_gpu.LIBRARY_DIR / library)
            stack.callback(path.with_name(f"{library}.kept").rename, path)
            path.rename(path.with_name(f"{library}.kept"))
        fake_gpu.build(node.path(fake_gpu.LIBRARY_DIR), definitions=["WITHOUT_CHECKPOINT"])
        yield
