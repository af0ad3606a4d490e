"""Staged device memory that is carried beside CRIU's dump, and given back when something fails."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.host import procfs
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Pages
from integration.fakes import fake_gpu
from integration.fakes.fake_gpu import CONTEXT_BYTES
from integration.pods import checkpoints, kubelet, workload
from integration.tests.faults.test_faults import assert_refused_for_room, refused, small_disk
from integration.tests.gpu import cuda_workload
from integration.tests.gpu.cuda_workload import CONTAINER
from integration.tests.gpu.test_gpu import (
    Cards,
    Gpus,
    pids,
    restoring,
    states,
    take_while_another_comes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import Popen

    from grit_runtime.wire.criu_image import Image
    from integration.pods.kubelet import Pod
    from integration.pods.pod_spec import PodSpec
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

PROCESSES = 2
SAMPLES = 20
SIZE_BYTES = 41 << 20  # two files; with what a context takes, no whole number of pieces
HELD_BYTES = SIZE_BYTES + CONTEXT_BYTES
FIRST_BYTES = 32 << 20  # in the first of the files
CARD_BYTES = 256 << 20
IMAGES = Path(CONTAINER, "checkpoint")
PARENT = IMAGES / "parent"


@pytest.fixture(scope="module")
def gpus(nodes: Nodes) -> Iterator[Gpus]:
    a, b = (
        Cards(node, (fake_gpu.new_card(minor, total_bytes=CARD_BYTES),))
        for node, minor in ((nodes.a, 3), (nodes.b, 8))
    )
    with fake_gpu.installed(*a), fake_gpu.installed(*b):
        yield Gpus(a, b)


@pytest.fixture(scope="module")
def source(gpus: Gpus) -> Iterator[Pod]:
    """Two processes that count on node A; each test leaves them so."""
    with kubelet.running(gpus.a.node, counting("large", gpus.a)) as pod:
        cuda_workload.wait_for_counts(pod, 3, processes=PROCESSES)
        yield pod


@pytest.fixture(scope="module")
def carried(gpus: Gpus, source: Pod, fresh_nodes: None) -> Path:  # noqa: ARG001 -- comes after it
    """A sound checkpoint of the source, on node B."""
    checkpoints.take(source, "large")
    return checkpoints.carry(gpus.a.node, gpus.b.node, "large")


def counting(name: str, cards: Cards, annotations: tuple[tuple[str, str], ...] = ()) -> PodSpec:
    return cuda_workload.pod(
        name, cards.cards, processes=PROCESSES, size_bytes=SIZE_BYTES, annotations=annotations
    )


def assert_goes_on(pod: Pod) -> None:
    assert states(pod) == ["running"] * PROCESSES
    cuda_workload.assert_goes_on(pod, processes=PROCESSES, size_bytes=SIZE_BYTES)


def assert_undisturbed(pod: Pod) -> None:
    assert_goes_on(pod)
    assert checkpoints.left_by_checkpoints(pod.node) == []


def sizes(directory: Path, pattern: str) -> list[int]:
    return [path.stat().st_size for path in sorted(directory.glob(pattern))]


def test_staged_memory_lies_beside_the_dump_and_comes_back(
    gpus: Gpus, source: Pod, carried: Path, run_pod: RunPod
) -> None:
    assert_undisturbed(source)
    first, second = FIRST_BYTES, HELD_BYTES - FIRST_BYTES
    assert sizes(carried / PARENT, "pages-*.img") == [first] * PROCESSES
    assert sizes(carried / PARENT, "parent/pages-*.img") == [second] * PROCESSES
    for path in (carried / PARENT).glob("pagemap-*.img"):
        pages = criu_image.parent_pages(load(carried / IMAGES / path.name))
        assert [number * mmap.PAGESIZE for _, number in pages] == [first, second]
    target = run_pod(gpus.b.node, counting("target", gpus.b, restoring("large")))
    assert_goes_on(target)
    (restored,) = checkpoints.outcomes(target)
    assert "'memory'" in str(restored["timeline"])


def test_criu_alone_can_restore_it_too(gpus: Gpus, carried: Path, run_pod: RunPod) -> None:
    path = shutil.copytree(carried, carried.with_name("by-criu"))
    leave_to_criu(path)
    target = run_pod(gpus.b.node, counting("by-criu", gpus.b, restoring("by-criu")))
    assert_goes_on(target)
    (restored,) = checkpoints.outcomes(target)
    assert "'gpu memory'" not in str(restored["timeline"])


@pytest.mark.usefixtures("carried")
def test_a_restored_pod_is_checkpointed_and_restored_again(gpus: Gpus, run_pod: RunPod) -> None:
    first = run_pod(gpus.b.node, counting("first", gpus.b, restoring("large")))
    assert_goes_on(first)
    checkpoints.take(first, "again", "--after", "stopped", "--pod-is-going")
    first.stop(grace_period_s=0)
    first.remove()
    second = run_pod(gpus.b.node, counting("second", gpus.b, restoring("again")))
    assert_goes_on(second)


def test_a_task_that_was_stopped_stays_stopped(gpus: Gpus, run_pod: RunPod) -> None:
    pod = run_pod(gpus.a.node, counting("stops", gpus.a))
    cuda_workload.wait_for_counts(pod, 3, processes=PROCESSES)
    start = "sh -c 'echo $$ >/tmp/pid; while :; do sleep 0.1; done' >/dev/null 2>&1 & "
    ready = "until [ -s /tmp/pid ]; do sleep 0.05; done"
    pod.exec_sync(CONTAINER, ["/bin/sh", "-c", start + ready])
    checkpoints.take(pod, "stops")
    number = pod.exec_sync(CONTAINER, ["cat", "/tmp/pid"]).stdout.decode().strip()
    path = checkpoints.carry(gpus.a.node, gpus.b.node, "stops")
    # The kernel's v1 freezer lets nobody dump a task that is stopped.
    checkpoints.forge(path / IMAGES, f"core-{number}.img", stop)
    checkpoints.seal_anew(path)
    target = run_pod(gpus.b.node, counting("stops-b", gpus.b, restoring("stops")))
    assert_goes_on(target)
    status = target.exec_sync(CONTAINER, ["cat", f"/proc/{number}/stat"]).stdout.decode()
    assert status.split()[2] == "T"


def stop(core: Any) -> None:
    core.tc.task_state = 3  # compel/include/uapi/task-state.h, COMPEL_TASK_STOPPED


def test_a_frozen_source_needs_nothing_of_its_checkpoint(gpus: Gpus, source: Pod) -> None:
    checkpoints.take(source, "gone", "--after", "frozen")
    assert gpus.a.used_bytes() == [0]
    shutil.rmtree(checkpoints.directory(gpus.a.node, "gone"))
    gpus.a.node.run(["grit", "resume", "default/large"])
    assert_undisturbed(source)


@contextmanager
def being_sent(gpus: Gpus, source: Pod, name: str) -> Iterator[Popen[str]]:
    """A checkpoint for which *source* is held, whose memory is on its way until the block ends."""
    node = gpus.a.node
    with checkpoints.taking(source, name, "--after", "frozen", "--push", "/mnt/sent") as taken:
        engine = checkpoints.started(taken)
        while not (found := [pid for pid in procfs.children(engine) if is_sending(pid)]):
            assert taken.poll() is None
            time.sleep(kubelet.POLL_S / 10)
        os.kill(found[0], signal.SIGSTOP)
        path = node.path(Path(checkpoints.journal(source)))
        while '"frozen"' not in path.read_text():
            assert taken.poll() is None
            time.sleep(kubelet.POLL_S / 10)
        try:
            yield taken
        finally:
            with suppress(ProcessLookupError):
                os.kill(found[0], signal.SIGCONT)
    shutil.rmtree(checkpoints.directory(node, name))
    node.run(["rm", "-r", "/mnt/sent"])


def is_sending(pid: int) -> bool:
    return "early_push" in procfs.text(pid, "cmdline")


def test_a_held_pod_can_be_resumed_while_its_memory_is_sent(gpus: Gpus, source: Pod) -> None:
    with being_sent(gpus, source, "sent") as taken:
        gpus.a.node.run(["grit", "resume", "default/large"])
    assert taken.returncode == 0
    assert_undisturbed(source)


def test_an_interruption_while_memory_is_sent_leaves_the_pod_held(gpus: Gpus, source: Pod) -> None:
    with being_sent(gpus, source, "interrupted") as taken:
        os.kill(gpus.a.node.command_pid(taken), signal.SIGINT)
        taken.wait()
    assert [one["outcome"] for one in checkpoints.outcomes(source)[-2:]] == ["sealed", "held"]
    gpus.a.node.run(["grit", "resume", "default/large"])
    assert_undisturbed(source)


def test_a_dump_that_fails_gives_staged_memory_back(gpus: Gpus, source: Pod) -> None:
    start = f"python3 -c '{workload.UNDUMPABLE}' >/tmp/said 2>&1 & echo $! >/tmp/pid; "
    ready = "until grep -q ready /tmp/said; do sleep 0.05; done"
    source.exec_sync(CONTAINER, ["/bin/sh", "-c", start + ready])
    try:
        failed = checkpoints.take(source, "undumpable", "--after", "frozen", check=False)
    finally:
        source.exec_sync(CONTAINER, ["/bin/sh", "-c", "kill $(cat /tmp/pid)"])
    assert "container cuda: dump failed: " in failed.stderr
    assert gpus.a.used_bytes() == [HELD_BYTES * PROCESSES]
    assert_undisturbed(source)


def test_device_memory_that_the_disk_cannot_take_is_refused_before_it_is_staged(
    gpus: Gpus, source: Pod
) -> None:
    # For one of the two; what they digest their memory with comes and goes.
    least_bytes = min(anonymous_bytes(source) for _ in range(SAMPLES))
    free_mib = (least_bytes + HELD_BYTES) >> 20
    with small_disk(gpus.a.node, free_mib):
        failed = checkpoints.take(source, "full", check=False)
    assert_refused_for_room(failed, free_mib)
    assert "gpu checkpoint" not in failed.stderr
    assert_undisturbed(source)


def anonymous_bytes(pod: Pod) -> int:
    paths = [f"/proc/{pid}/status" for pid in pids(pod)]
    found = pod.node.run(["grep", "-h", "RssAnon", *paths]).stdout
    return sum(int(line.split()[1]) << 10 for line in found.splitlines())


def test_a_killed_grit_has_staged_memory_given_back_by_its_supervisor(
    gpus: Gpus, source: Pod
) -> None:
    with checkpoints.taking(source, "killed") as taken:
        checkpoints.wait_until_memory_is_taken(source, taken)
        os.kill(gpus.a.node.command_pid(taken), signal.SIGKILL)
    gpus.a.node.run(["grit", "recover", "--wait", checkpoints.journal(source)], check=False)
    assert not checkpoints.directory(gpus.a.node, "killed").exists()
    assert_undisturbed(source)


def test_a_source_stands_until_it_is_recovered_if_its_supervisor_is_killed_too(
    gpus: Gpus, source: Pod
) -> None:
    node = gpus.a.node
    statuses = [f"/proc/{pid}/status" for pid in pids(source)]
    with checkpoints.taking(source, "both") as taken:
        checkpoints.wait_until_memory_is_taken(source, taken)
        node.run(["pkill", "-KILL", "-f", f"recover --wait {checkpoints.journal(source)}"])
        os.kill(node.command_pid(taken), signal.SIGKILL)
    said = node.run(["grep", "-h", "State:", *statuses]).stdout.splitlines()
    assert len(said) == PROCESSES
    assert {line.split()[1] for line in said} <= {"t", "D"}, said  # held, or frozen by then
    assert "undone: " in node.run(["grit", "recover"]).stdout
    assert_undisturbed(source)


def test_what_the_driver_writes_late_is_not_missed(gpus: Gpus, run_pod: RunPod) -> None:
    size_bytes = 100 << 20  # enough to be copied while it is staged
    spec = cuda_workload.pod("paced", gpus.a.cards, size_bytes=size_bytes)
    pod = run_pod(gpus.a.node, spec)
    cuda_workload.wait_for_counts(pod, 2)
    with fake_gpu.paced(gpus.a.directory, 20):
        checkpoints.take(pod, "paced")
    checkpoints.carry(gpus.a.node, gpus.b.node, "paced")
    restoring_spec = cuda_workload.pod(
        "paced-b", gpus.b.cards, size_bytes=size_bytes, annotations=restoring("paced")
    )
    target = run_pod(gpus.b.node, restoring_spec)
    for one in (pod, target):
        cuda_workload.assert_goes_on(one, size_bytes=size_bytes)


@pytest.mark.parametrize("number", range(50 if "GRIT_LONG" in os.environ else 4))
def test_a_checkpoint_that_is_killed_at_any_moment_leaves_its_source_as_it_was(
    gpus: Gpus, source: Pod, number: int
) -> None:
    node = gpus.a.node
    moment_s = random.Random(number).uniform(0, 1.8)  # noqa: S311  the same each time
    with fake_gpu.paced(gpus.a.directory, 20), checkpoints.taking(source, "moment") as taken:
        engine = checkpoints.started(taken)
        try:
            taken.wait(moment_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(engine, signal.SIGKILL)
    node.run(["grit", "recover", "--wait", checkpoints.journal(source)], check=False)
    shutil.rmtree(checkpoints.directory(node, "moment"), ignore_errors=True)
    assert_undisturbed(source)


def test_a_source_whose_memory_cannot_be_read_back_is_called_lost(
    gpus: Gpus, run_pod: RunPod
) -> None:
    node = gpus.a.node
    pod = run_pod(node, counting("lost", gpus.a))
    cuda_workload.wait_for_counts(pod, 3, processes=PROCESSES)
    with checkpoints.taking(pod, "lost") as taken:
        checkpoints.wait_until_memory_is_taken(pod, taken)
        engine = node.command_pid(taken)
        os.kill(engine, signal.SIGSTOP)
        for path in node.path(checkpoints.ROOT).glob("default/.lost.*.memory/*"):
            os.truncate(path, 0)
        os.kill(engine, signal.SIGKILL)
        taken.send_signal(signal.SIGCONT)  # nsenter, which stops with its child
    node.run(["grit", "recover", "--wait", checkpoints.journal(pod)], check=False)
    told = checkpoints.outcomes(pod)[-1]
    assert told["outcome"] == "lost"
    assert "its file was cut; delete the pod" in str(told["reason"])
    assert states(pod) == ["checkpointed"] * PROCESSES  # not with other memory than they had
    assert checkpoints.left_by_checkpoints(node) == []


def test_memory_is_staged_anew_when_a_process_comes_to_the_gpu_late(
    gpus: Gpus, run_pod: RunPod
) -> None:
    spec = cuda_workload.pod("late", gpus.a.cards, size_bytes=SIZE_BYTES)
    pod = run_pod(gpus.a.node, spec)
    cuda_workload.wait_for_counts(pod, 3)
    take_while_another_comes(gpus.a, pod, "late", size_bytes=SIZE_BYTES)
    path = checkpoints.directory(gpus.a.node, "late")
    assert sum(sizes(path / PARENT, "**/pages-*.img")) == HELD_BYTES * 2
    assert_undisturbed(pod)


def test_memory_that_is_damaged_or_missing_is_refused(gpus: Gpus, carried: Path) -> None:
    for name, damage, reason in (
        ("flipped", flip_a_byte, "pages-1.img is damaged"),
        ("flipped-for-criu", leave_to_criu_and_flip_a_byte, "pages-1.img is damaged"),
        ("cut", cut_and_seal, f"image pages-1.img: {FIRST_BYTES - 4096} bytes, expected"),
        ("lost", lose_and_seal, "image pages-1.img is missing"),
        ("elsewhere", move_and_seal, "restore of container"),
    ):
        path = shutil.copytree(carried, carried.with_name(name))
        damage(path)
        reason_given = refused(gpus.b.node, counting(name, gpus.b, restoring(name)))
        assert reason in reason_given
        assert gpus.b.used_bytes() == [0]


def leave_to_criu(path: Path) -> None:
    """Say the same of the memory in other words than grit does, which is CRIU's right."""
    image_path = min((path / PARENT).glob("pagemap-*.img"))
    whole = load(image_path)
    ((start, number),) = criu_image.present_pages(whole)
    halves = [Pages(start, 1), Pages(start + mmap.PAGESIZE, number - 1)]
    split = criu_image.pagemap(whole.name, criu_image.pages(whole)[0], halves)
    save(image_path, criu_image.with_parent_pages(split, criu_image.parent_pages(whole)))
    checkpoints.seal_anew(path)


def leave_to_criu_and_flip_a_byte(path: Path) -> None:
    leave_to_criu(path)
    flip_a_byte(path)


def flip_a_byte(path: Path) -> None:
    with (path / PARENT / "pages-1.img").open("r+b") as file:
        file.seek(FIRST_BYTES // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def cut_and_seal(path: Path) -> None:
    os.truncate(path / PARENT / "pages-1.img", FIRST_BYTES - 4096)
    checkpoints.seal_anew(path)


def lose_and_seal(path: Path) -> None:
    (path / PARENT / "pages-1.img").unlink()
    checkpoints.seal_anew(path)


def move_and_seal(path: Path) -> None:
    """A forged map of memory, to addresses at which the processes have none."""
    for image_path in (path / PARENT).glob("pagemap-*.img"):
        there, own = load(image_path), load(path / IMAGES / image_path.name)
        moved = [Pages(mmap.PAGESIZE, number) for _, number in criu_image.present_pages(there)]
        deeper = criu_image.parent_pages(there)
        forged = criu_image.pagemap(there.name, criu_image.pages(there)[0], moved)
        save(image_path, criu_image.with_parent_pages(forged, deeper))
        own = criu_image.with_parent_pages(criu_image.without_parent_pages(own), [*moved, *deeper])
        save(path / IMAGES / image_path.name, own)
    checkpoints.seal_anew(path)


def load(path: Path) -> Image:
    return criu_image.parse(path.read_bytes(), name=path.name)


def save(path: Path, image: Image) -> None:
    path.write_bytes(criu_image.serialize(image))
