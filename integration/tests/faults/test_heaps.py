"""Large heaps that grit moves beside CRIU, and gives back when something fails."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from integration.node import images, rootfs
from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet, workload
from integration.pods.pod_spec import ContainerSpec, PodSpec
from integration.stores import rclone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from subprocess import Popen

    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

HEAP_BYTES = 640 << 20
BLOCK_BYTES = 32 << 20
SHARED_BYTES = 96 << 20
TO_END = ("--after", "stopped", "--pod-is-going")

# Counts in its heap, and tells the digest of the rest of it, and of what a child has in common.
PROGRAM = f"""
import hashlib, mmap, os, time
own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
shared = mmap.mmap(-1, {SHARED_BYTES}, flags=own)
shared.madvise(mmap.MADV_NOHUGEPAGE)  # or the kernel may merge it with the heap
shared.write(os.urandom({SHARED_BYTES}))
if os.fork() == 0:
    time.sleep(100000)
heap = mmap.mmap(-1, {HEAP_BYTES}, flags=own)
block = os.urandom({BLOCK_BYTES})
for at in range(0, {HEAP_BYTES}, len(block)):
    heap.write(block)
    heap[at : at + 8] = at.to_bytes(8, "little")
heap[8:16] = bytes(8)
while True:
    count = int.from_bytes(heap[8:16], "little") + 1
    heap[8:16] = count.to_bytes(8, "little")
    digest = hashlib.sha256(memoryview(heap)[16:])
    digest.update(shared)
    print(count, digest.hexdigest(), flush=True)
"""


def spec(name: str, *annotations: tuple[str, str]) -> PodSpec:
    command = ("/usr/bin/python3", "-c", PROGRAM)
    container = ContainerSpec(name="main", image=images.PYTHON, command=command)
    return PodSpec(name=name, containers=(container,), annotations=annotations)


def assert_goes_on(pod: Pod) -> None:
    """It counts on, with the memory that it had."""
    steps = len(pod.logs("main").splitlines())
    pod.wait_for_log("main", f"\n{steps + 2} ")
    said = [line.split() for line in pod.logs("main").splitlines()]
    assert [int(count) for count, _ in said] == list(range(1, len(said) + 1))
    assert len({digest for _, digest in said}) == 1


def assert_undisturbed(pod: Pod) -> None:
    assert_goes_on(pod)
    assert checkpoints.left_by_checkpoints(pod.node) == []


@pytest.fixture(scope="module")
def source(nodes: Nodes) -> Iterator[Pod]:
    """A pod on node A; each test leaves it running."""
    with kubelet.running(nodes.a, spec("heap")) as pod:
        pod.wait_for_log("main", "\n2 ")
        yield pod


def moved_mib(path: Path) -> list[int]:
    """How much grit has moved, of the process and of its child; the kernel may merge mappings."""
    (container,) = checkpoints.read(path).containers
    pids = sorted({one.pid for one in container.memory})
    return [
        sum(one.moved_bytes for one in container.memory if one.pid == pid) >> 20 for pid in pids
    ]


def move_on(source: Node, target: Node, run_pod: RunPod, name: str, pod: Pod) -> Pod:
    checkpoints.take(pod, name, *TO_END)
    path = checkpoints.carry(source, target, name)
    assert moved_mib(path) == [(HEAP_BYTES + BLOCK_BYTES) >> 20, 0]
    moved = run_pod(target, spec(name, ("grit.dev/restore-name", name)))
    assert_goes_on(moved)
    (restored,) = checkpoints.outcomes(moved)
    assert "'memory'" in str(restored["timeline"])
    shutil.rmtree(path)
    shutil.rmtree(checkpoints.directory(source, name))
    return moved


def test_a_heap_is_moved_twice_and_what_a_child_shares_is_left_to_criu(
    nodes: Nodes, run_pod: RunPod
) -> None:
    first = run_pod(nodes.a, spec("first"))
    first.wait_for_log("main", "\n2 ")
    second = move_on(nodes.a, nodes.b, run_pod, "second", first)
    move_on(nodes.b, nodes.a, run_pod, "third", second)


def test_a_heap_is_sent_to_a_store_while_the_rest_is_dumped(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, spec("sent"))
    pod.wait_for_log("main", "\n2 ")
    taken = checkpoints.take(pod, "sent", *TO_END, "--push", "/mnt/heaps")
    assert 'msg="early push"' in taken.stderr
    shutil.rmtree(checkpoints.directory(nodes.a, "sent"))
    nodes.a.run(["grit", "pull", "default/sent", "/mnt/heaps"])
    said = taken.stderr.splitlines()[-1]
    sent_bytes = int(said.partition(" bytes sent")[0].split()[-1])
    assert sent_bytes < HEAP_BYTES // 2  # the heap was there; what is shared is dumped twice
    moved = run_pod(nodes.a, spec("pulled", ("grit.dev/restore-name", "sent")))
    assert_goes_on(moved)
    nodes.a.run(["rm", "-r", "/mnt/heaps"])


def test_a_heap_is_sent_to_a_bucket_while_the_rest_is_dumped(
    nodes: Nodes, run_pod: RunPod, tmp_path: Path
) -> None:
    pod = run_pod(nodes.a, spec("bucket"))
    pod.wait_for_log("main", "\n2 ")
    enter = ("nsenter", "--net", f"--target={nodes.a.pid}", "--")
    with rclone.serving(tmp_path / "s3", enter=enter) as server:
        environment = [f"{name}={value}" for name, value in server.environment.items()]
        words = ["grit", "checkpoint", "default/bucket", *TO_END, "--push", f"s3://{rclone.BUCKET}"]
        taken = nodes.a.run(["env", *environment, *words])
    assert 'msg="early push"' in taken.stderr
    assert "memory is sent when" not in taken.stderr
    sent_bytes = int(taken.stderr.splitlines()[-1].partition(" bytes sent")[0].split()[-1])
    assert sent_bytes < HEAP_BYTES // 2


# Brings a checkpoint as an agent does, but waits for a line before it brings memory.
BRING = f"""
import sys
from grit_runtime.files import arrivals
from grit_runtime.store import backend, catalog, pull
root = "{checkpoints.ROOT}"
store = backend.open_store("/mnt/early")
entry = catalog.find(store, "default", "early")
class Told:
    def __init__(self, arrival):
        self.arrival = arrival
    def is_ready(self, directory):
        self.arrival.is_ready(directory)
        print("ready", flush=True)
        if sys.stdin.readline() != "go on\\n":
            raise OSError(5, "the link is down")
    def is_whole(self):
        self.arrival.is_whole()
with arrivals.announced(root, "default", "early", entry.sha256, 1 << 30, "a store") as arrival:
    with pull.stored(store, entry, None) as source:
        pull.bring(source, entry, root, lambda done, moved: None, announced=Told(arrival))
"""


@pytest.fixture
def arriving(nodes: Nodes, run_pod: RunPod) -> Iterator[Popen[str]]:
    """A transfer of checkpoint "early" to node A, which has all but its memory."""
    pod = run_pod(nodes.a, spec("early"))
    pod.wait_for_log("main", "\n2 ")
    checkpoints.take(pod, "early", *TO_END, "--push", "/mnt/early")
    shutil.rmtree(checkpoints.directory(nodes.a, "early"))
    argv = [f"/{rootfs.VENV}/bin/python", "-c", BRING]
    pipe = subprocess.PIPE
    with nodes.a.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe) as bringing:
        assert bringing.stdout is not None
        assert bringing.stdout.readline() == "ready\n"
        yield bringing
        bringing.communicate()
    nodes.a.run(
        [
            "sh",
            "-c",
            "rm -rf /mnt/early /mnt/grit-agent/default/early /mnt/grit-agent/default/.early*",
        ]
    )


def wait_until_restored_but_for_memory(node: Node) -> None:
    """Wait until tasks that CRIU has restored stand, and wait for their memory."""
    while not standing(node):
        time.sleep(kubelet.POLL_S)


def standing(node: Node) -> list[str]:
    """The states of processes that are stopped, or held by a tracer."""
    states = node.run(["ps", "--no-headers", "-eo", "stat"]).stdout.split()
    return [state for state in states if state[0] in "Tt"]


def test_a_restore_begins_before_memory_has_arrived(nodes: Nodes, arriving: Popen[str]) -> None:
    annotated = spec("begun", ("grit.dev/restore-name", "early"))
    with kubelet.sandbox(nodes.a, annotated) as pod, ThreadPoolExecutor(1) as pool:
        starting = pool.submit(pod.run_containers)
        wait_until_restored_but_for_memory(nodes.a)
        assert not checkpoints.directory(nodes.a, "early").exists()
        assert arriving.stdin is not None
        arriving.stdin.write("go on\n")
        arriving.stdin.flush()
        starting.result()
        assert_goes_on(pod)
        (restored,) = checkpoints.outcomes(pod)
        assert "'arrival of memory'" in str(restored["timeline"])


def test_a_restore_whose_memory_does_not_arrive_fails_and_leaves_nothing(
    nodes: Nodes, arriving: Popen[str]
) -> None:
    annotated = spec("cut", ("grit.dev/restore-name", "early"))
    with kubelet.sandbox(nodes.a, annotated) as pod, ThreadPoolExecutor(1) as pool:
        starting = pool.submit(pod.run_containers)
        wait_until_restored_but_for_memory(nodes.a)
        assert arriving.stdin is not None
        arriving.stdin.write("cut\n")
        arriving.stdin.flush()
        with pytest.raises(
            CriError, match=r"its transfer from a store has failed: .*the link is d"
        ):
            starting.result()
        assert standing(nodes.a) == []
        assert not checkpoints.directory(nodes.a, "early").exists()


def test_a_source_that_goes_on_keeps_its_heap(nodes: Nodes, source: Pod) -> None:
    checkpoints.take(source, "running")
    assert moved_mib(checkpoints.directory(nodes.a, "running")) == [0, 0]
    assert_undisturbed(source)


def test_a_dump_that_fails_gives_a_heap_back(source: Pod) -> None:
    start = f"python3 -c '{workload.UNDUMPABLE}' >/tmp/said 2>&1 & echo $! >/tmp/pid; "
    ready = "until grep -q ready /tmp/said; do sleep 0.05; done"
    source.exec_sync("main", ["/bin/sh", "-c", start + ready])
    try:
        failed = checkpoints.take(source, "undumpable", *TO_END, check=False)
    finally:
        source.exec_sync("main", ["/bin/sh", "-c", "kill $(cat /tmp/pid)"])
    assert "container main: dump failed: " in failed.stderr
    assert_undisturbed(source)


@pytest.mark.parametrize("number", range(50 if "GRIT_LONG" in os.environ else 2))
def test_an_engine_that_is_killed_with_its_supervisor_leaves_nothing_undone(
    nodes: Nodes, source: Pod, number: int
) -> None:
    moment_s = random.Random(number).uniform(0.3, 2.0)  # noqa: S311  the same each time
    with checkpoints.taking(source, "killed", *TO_END) as taken:
        engine = checkpoints.started(taken)
        with suppress(subprocess.TimeoutExpired):
            taken.wait(moment_s)
        nodes.a.run(["pkill", "-KILL", "-f", "recover --wait"], check=False)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(engine, signal.SIGKILL)
    nodes.a.run(["grit", "recover"])
    assert_undisturbed(source)


def test_an_undo_that_is_killed_is_finished_by_the_next(nodes: Nodes, source: Pod) -> None:
    path = nodes.a.path(Path(checkpoints.journal(source)))
    kept = path.with_name("kept")
    with checkpoints.taking(source, "undone", *TO_END) as taken:
        checkpoints.wait_until_memory_is_taken(source, taken)
        kept.hardlink_to(path)
        os.kill(nodes.a.command_pid(taken), signal.SIGKILL)
    nodes.a.run(["grit", "recover", "--wait", checkpoints.journal(source)], check=False)
    assert_goes_on(source)
    kept.rename(path)  # as if the undo had been killed just before it removed its journal
    nodes.a.run(["grit", "recover"])
    assert_undisturbed(source)


def cut(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        (byte,) = file.read(1)
        file.seek(4096)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(("damage", "reason"), [(cut, "was cut"), (flip_a_bit, "is damaged")])
def test_a_source_whose_heap_cannot_be_given_back_is_ended(
    nodes: Nodes, run_pod: RunPod, damage: Callable[[Path], None], reason: str
) -> None:
    pod = run_pod(nodes.a, spec("lost"))
    pod.wait_for_log("main", "\n2 ")
    with checkpoints.taking(pod, "lost", *TO_END) as taken:
        checkpoints.wait_until_memory_is_taken(pod, taken)
        engine = nodes.a.command_pid(taken)
        os.kill(engine, signal.SIGSTOP)
        for path in nodes.a.path(checkpoints.ROOT).glob("default/.lost.*.memory/*"):
            damage(path)
        os.kill(engine, signal.SIGKILL)
        taken.send_signal(signal.SIGCONT)  # nsenter, which stops with its child
    nodes.a.run(["grit", "recover", "--wait", checkpoints.journal(pod)], check=False)
    told = checkpoints.outcomes(pod)[-1]
    assert told["outcome"] == "lost"
    assert f"{reason}; delete the pod" in str(told["reason"])
    pod.wait_exited("main")
    assert checkpoints.left_by_checkpoints(nodes.a) == []
