"""The main job, shown: a pod counts on node A and goes on, mid-count, on node B."""

from __future__ import annotations

import sys
import time

from grit_runtime.proto import agent_pb2
from integration.node import rootfs
from integration.node.network import Network
from integration.node.node import Node
from integration.pods import agents, checkpoints, kubelet, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from integration.pods.kubelet import Pod

NAME = "demo"


def main() -> None:
    edition = rootfs.EDITIONS["forky"]
    step("two nodes, each with containerd, runc and CRIU of its own")
    with (
        Network() as network,
        Node(edition, name="node-a", network=network) as a,
        Node(edition, name="node-b", network=network) as b,
    ):
        for node in (a, b):
            versions = node.run(["sh", "-c", "containerd --version; runc --version | head -n1"])
            say(f"{node.name}: {'; '.join(versions.stdout.splitlines())}")
        step("an agent on each node; they trust each other by certificates of one CA")
        with agents.running((a, b)):
            migrate(a, b)


def migrate(a: Node, b: Node) -> None:
    step("a pod on node A counts in memory, in an open file and in its rw layer")
    with kubelet.running(a, workload.counter_pod("counter", ballast_mib=64)) as source:
        workload.wait_for_count(source, 40)
        show_counts(source)
        step("node A's agent takes a checkpoint, holds the pod, and has node B's agent bring it")
        request = agent_pb2.CheckpointRequest(
            target="default/counter", name=NAME, after="frozen", push="peer://node-b"
        )
        begun = time.monotonic()
        job = agents.asked(a, "Checkpoint", request)
        assert job.state == "done", job.text
        moved_s = time.monotonic() - begun
        say(b.run(["grit", "inspect", f"/mnt/grit-agent/default/{NAME}"]).stdout)
        path = checkpoints.directory(b, NAME)
        carried = len((path / "counter/container.log").read_text().splitlines())
        say(f"the last count in the checkpoint is {carried}")
        step("a new pod on node B, with the annotation grit.dev/restore-name")
        annotations = (("grit.dev/restore-name", NAME),)
        begun = time.monotonic()
        with kubelet.running(b, workload.counter_pod("counter", annotations=annotations)) as target:
            started_s = time.monotonic() - begun
            say(f"uid {source.spec.uid} -> {target.spec.uid}")
            workload.assert_goes_on_from(target, carried, node=b)
            show_downtime(a, (source, target), carried, (moved_s, started_s))
            show_counts(target)
            show_log(target, carried)
            show_exec(target)
            show_timeline(b, target)
            step("the restored pod stops as any pod does")
            target.stop(grace_period_s=1)
            say(f"exit code {target.status('counter').exit_code}")
    step(f"the count went on from {carried} without a gap or a repetition")


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def say(text: str) -> None:
    print("   " + text.strip().replace("\n", "\n   "), flush=True)


def show_counts(pod: Pod) -> None:
    seen = workload.counts(pod)
    say(f"logged {seen.logged[-1]}, in the open file {seen.held}, in the rw layer {seen.rw_layer}")


def show_downtime(
    a: Node, pods: tuple[Pod, Pod], carried: int, seconds: tuple[float, float]
) -> None:
    """From the last count on node A to the first on node B, by the times in their logs."""
    (source, target), (moved_s, started_s) = pods, seconds
    last, first = source.log_times("counter")[-1], target.log_times("counter")[carried]
    sealed = checkpoints.read(checkpoints.directory(a, NAME))
    taken_s = sum(phase.seconds for phase in sealed.timeline)
    say(f"downtime {(first - last).total_seconds():.2f} s, from the last count there to the first")
    say(f"  {taken_s:.2f} s the checkpoint, as its manifest has it")
    say(f"  {moved_s - taken_s:.2f} s the transfer, with what the agents say to each other")
    say(f"  {started_s:.2f} s the new pod, sandbox and network included")


def show_log(pod: Pod, carried: int) -> None:
    lines = pod.logs("counter").split()
    before, after = lines[carried - 3 : carried], lines[carried : carried + 3]
    say(f"its log, as kubectl logs shows it: {' '.join(lines[:3])} ...")
    say(f"... {' '.join(before)} | {' '.join(after)} ...")


def show_exec(pod: Pod) -> None:
    answer = pod.exec_sync("counter", ["/bin/sh", "-c", "hostname"])
    say(f"exec works: it runs on the host {answer.stdout.decode().strip()}")


def show_timeline(node: Node, pod: Pod) -> None:
    (record,) = [r for r in checkpoints.records(node) if r["pod_uid"] == pod.spec.uid]
    timeline: Any = record["timeline"]
    step("timeline of the restore")
    for phase in timeline:
        size = f"{phase['size_bytes'] / (1 << 20):8.1f} MiB" if "size_bytes" in phase else ""
        say(f"{phase['phase']:<12}{phase['seconds']:8.3f} s {size}")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        sys.exit(f"the demonstration failed: {error}")
