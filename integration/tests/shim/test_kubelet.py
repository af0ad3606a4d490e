"""Pods under containerd-shim-grit-v1, as kubelet treats them."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from grit_runtime.proto import cri_pb2, task_pb2
from integration.node import images
from integration.node.cri import CriError
from integration.node.node import SHIM_HANDLER
from integration.pods import kubelet
from integration.pods.pod_spec import ContainerSpec, PodSpec, Resources
from integration.pods.workload import shell_pod
from integration.tests.migrate.test_node import MEMORY_LIMIT
from integration.tests.shim import shim_client, task_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod
    from integration.tests.shim.shim_client import ShimClient

pytestmark = pytest.mark.usefixtures("fresh_nodes", "shim_handler")

TIMEOUT_S = 30
POLL_S = 0.02
IDLE = "sleep 1000 & wait"
MIB = 1 << 20
KILLED = 128 + signal.SIGKILL


def limited_pod(name: str, script: str, memory_bytes: int) -> PodSpec:
    main = ContainerSpec(
        name="main",
        image=images.BUSYBOX,
        command=("sh", "-c", script),
        resources=Resources(memory_bytes=memory_bytes),
    )
    return PodSpec(name=name, containers=(main,))


def end(pod: Pod) -> None:
    pod.stop(grace_period_s=1)
    pod.remove()


def wait_until_gone(node: Node, pid: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while node.path(Path(f"/proc/{pid}")).exists():
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(POLL_S)


def processes_of(pod: Pod) -> list[int]:
    """The pids in the cgroup of the pod's container, as the node numbers them."""

    async def pids(client: ShimClient) -> task_pb2.PidsResponse:
        return await client.ask("Pids", task_pb2.PidsResponse)

    answer = shim_client.talk(pod.node, pod.container_ids["main"], pids)
    return [process.pid for process in answer.processes]


# What containerd is told


def test_a_life_with_execs_is_told_in_order(nodes: Nodes) -> None:
    with (
        task_events.watching(nodes.a) as events,
        kubelet.running(nodes.a, shell_pod("told", IDLE)) as pod,
        ThreadPoolExecutor() as threads,
    ):
        container_id, pid = pod.container_ids["main"], pod.pid("main")
        assert pod.exec_sync("main", ["sh", "-c", "exit 3"]).exit_code == 3
        cut_short = threads.submit(pod.exec_sync, "main", ["sleep", "1000"])
        events.of(container_id, "exec-started", times=2)
        end(pod)
        assert cut_short.result(TIMEOUT_S).exit_code == KILLED
        seen = events.of(container_id, "delete")
    first, second = [event.exec_id for event in seen if event.what == "exec-added"]
    life = ("exec-added", "exec-started", "exit")
    assert [(event.what, event.exec_id) for event in seen] == [
        *(("create", ""), ("start", "")),
        *((what, first) for what in life),
        *((what, second) for what in life),
        *(("exit", ""), ("delete", "")),
    ]
    told = {(event.what, event.exec_id): event.message for event in seen}
    assert {told[what, ""].pid for what in ("create", "start", "exit", "delete")} == {pid}
    assert told["exit", first].exit_status == 3
    assert told["exit", second].exit_status == KILLED
    assert told["exit", second].pid == told["exec-started", second].pid
    assert told["delete", ""].exited_at == told["exit", ""].exited_at


def test_what_ends_at_once_has_started_before(nodes: Nodes) -> None:
    with task_events.watching(nodes.a) as events:
        spec = shell_pod("brief", "exit 5")
        with kubelet.running(nodes.a, spec) as pod:
            for _ in range(10):
                container_id = pod.container_ids["main"]
                told = events.of(container_id, "exit")
                assert [event.what for event in told] == ["create", "start", "exit"]
                assert told[-1].message.exit_status == 5
                pod.restart("main")
        with kubelet.running(nodes.a, shell_pod("brief-execs", IDLE)) as pod:
            for _ in range(10):
                assert pod.exec_sync("main", ["true"]).exit_code == 0
            told = events.of(pod.container_ids["main"], "exit", times=10)
            execs = [event.what for event in told if event.exec_id]
            assert execs == ["exec-added", "exec-started", "exit"] * 10


def test_a_container_that_runs_out_of_memory_says_so_before_it_ends(nodes: Nodes) -> None:
    with (
        task_events.watching(nodes.a) as events,
        kubelet.running(nodes.a, limited_pod("hungry", "exec tail /dev/zero", 16 * MIB)) as pod,
    ):
        status = pod.wait_exited("main")
        assert (status.reason, status.exit_code) == ("OOMKilled", KILLED)
        told = [event.what for event in events.of(pod.container_ids["main"], "exit")]
        assert told[:2] == ["create", "start"]
        assert set(told[2:-1]) == {"oom"}


def test_events_wait_for_a_containerd_that_cannot_be_reached(nodes: Nodes, run_pod: RunPod) -> None:
    socket = nodes.a.path(Path("/run/containerd/containerd.sock.ttrpc"))
    with task_events.watching(nodes.a) as events:
        away = socket.rename(socket.with_name("away"))
        try:
            pod = run_pod(nodes.a, shell_pod("unheard", "exit 4"))
        finally:
            away.rename(socket)
        told = events.of(pod.container_ids["main"], "exit")
    assert [event.what for event in told] == ["create", "start", "exit"]


# Streams


def test_all_that_a_container_writes_before_it_ends_is_in_its_log(
    nodes: Nodes, run_pod: RunPod
) -> None:
    script = "seq 100000; echo error >&2; echo last"
    pod = run_pod(nodes.a, shell_pod("talker", script))
    pod.wait_exited("main")
    lines = pod.wait_for_log("main", "last\n").splitlines()
    assert [line for line in lines if line.isdigit()] == [str(n) for n in range(1, 100_001)]
    assert {line for line in lines if not line.isdigit()} == {"error", "last"}


def test_an_exec_that_takes_too_long_is_killed_and_the_next_one_runs(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, shell_pod("probed", IDLE))
    with pytest.raises(CriError) as caught:
        pod.exec_sync("main", ["sleep", "1000"], timeout_s=1)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(processes_of(pod)) == 2  # the container's own
    assert pod.exec_sync("main", ["sh", "-c", "echo alive"]).stdout == b"alive\n"


# Ends


def test_a_container_ends_by_the_signal_that_it_handles(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, shell_pod("polite", "trap 'exit 5' TERM; echo ready; sleep 1000 & wait"))
    pod.wait_for_log("main", "ready\n")
    pod.stop_container("main")
    assert pod.wait_exited("main").exit_code == 5


def test_a_container_that_ignores_signals_is_killed(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, shell_pod("stubborn", "trap '' TERM; echo ready; sleep 1000"))
    pod.wait_for_log("main", "ready\n")
    pod.stop_container("main", grace_period_s=1)
    assert pod.wait_exited("main").exit_code == KILLED


def test_all_of_a_container_ends_with_its_first_process(nodes: Nodes, run_pod: RunPod) -> None:
    """Without a process namespace of its own, the kernel does not see to that."""
    main = ContainerSpec(name="main", image=images.BUSYBOX, command=("sh", "-c", IDLE))
    spec = PodSpec(name="shared", containers=(main,), share_process_namespace=True)
    with ThreadPoolExecutor() as threads, task_events.watching(nodes.a) as events:
        pod = run_pod(nodes.a, spec)
        container_id = pod.container_ids["main"]
        cut_short = threads.submit(pod.exec_sync, "main", ["sleep", "1000"])
        events.of(container_id, "exec-started")
        pids = processes_of(pod)
        assert len(pids) == 3
        nodes.a.run(["kill", "-KILL", str(pod.pid("main"))])
        assert cut_short.result(TIMEOUT_S).exit_code == KILLED
        assert pod.wait_exited("main").exit_code == KILLED
        for pid in pids:
            wait_until_gone(nodes.a, pid)
        told = events.of(container_id, "exit", times=2)
    assert [bool(event.exec_id) for event in told if event.what == "exit"] == [True, False]


# Users


def test_a_pod_with_users_of_its_own_lives_and_stays(nodes: Nodes, run_pod: RunPod) -> None:
    spec = shell_pod("users", f"touch /made; echo up; {IDLE}")
    pod = run_pod(nodes.a, replace(spec, host_users=False))
    pod.wait_for_log("main", "up\n")
    script = "id -u; stat -c %u /bin /made; cat /proc/1/uid_map"
    said = pod.exec_sync("main", ["sh", "-c", script]).stdout.split()
    assert said == [b"0", b"0", b"0", b"0", b"%d" % kubelet.USERS.host_id, b"65536"]
    done = nodes.a.run(["grit", "checkpoint", "default/users", "--name", "users"], check=False)
    assert done.returncode != 0
    assert "container main: its pod has a user namespace (hostUsers: false)" in done.stderr
    assert "msg=freeze" not in done.stderr
    end(pod)
    assert shim_client.left_by_shims(nodes.a) == []


def test_kubelet_is_told_what_the_handler_can(nodes: Nodes) -> None:
    """As it is told of the stock shim's: without user namespaces it would give a pod none."""
    request, response = cri_pb2.StatusRequest(), cri_pb2.StatusResponse
    told = nodes.a.cri.call("Status", request, response).runtime_handlers
    if nodes.a.edition.containerd == "1.7":
        assert not told  # which asks of none
        return
    features = {handler.name: handler.features for handler in told}
    assert features[SHIM_HANDLER].user_namespaces
    assert features[SHIM_HANDLER] == features["runc"]


# Limits and figures


def cgroup_number(pod: Pod, *names: str) -> int:
    """What the first of these files says that is in the cgroup of the pod's container."""
    argv = ["sh", "-c", f"cat {' '.join(f'/sys/fs/cgroup/{name}' for name in names)} 2>/dev/null"]
    return int(pod.exec_sync("main", argv).stdout.split()[0])


def test_the_figures_of_a_container_are_its_cgroups(nodes: Nodes, run_pod: RunPod) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; echo ready; sleep 1000 & wait"
    pod = run_pod(nodes.a, limited_pod("measured", script, 64 * MIB))
    pod.wait_for_log("main", "ready\n")
    request = cri_pb2.ContainerStatsRequest(container_id=pod.container_ids["main"])
    stats = nodes.a.cri.call("ContainerStats", request, cri_pb2.ContainerStatsResponse).stats
    used_ns = cgroup_number(pod, "cpuacct/cpuacct.usage", "cpu.stat")
    assert 0 < stats.cpu.usage_core_nano_seconds.value <= used_ns
    usage_bytes = cgroup_number(pod, "memory/memory.usage_in_bytes", "memory.current")
    assert 0 < stats.memory.working_set_bytes.value <= stats.memory.usage_bytes.value
    assert abs(stats.memory.usage_bytes.value - usage_bytes) < 4 * MIB


def test_limits_change_while_a_container_runs(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, limited_pod("grown", IDLE, 64 * MIB))
    request = cri_pb2.UpdateContainerResourcesRequest(
        container_id=pod.container_ids["main"],
        linux=cri_pb2.LinuxContainerResources(memory_limit_in_bytes=96 * MIB),
    )
    nodes.a.cri.call("UpdateContainerResources", request, cri_pb2.UpdateContainerResourcesResponse)
    limit = pod.exec_sync("main", ["sh", "-c", f"cat {MEMORY_LIMIT} 2>/dev/null"]).stdout
    assert int(limit) == 96 * MIB


# Many


def test_fifty_pods_at_once(nodes: Nodes) -> None:
    def live(number: int) -> int:
        with kubelet.running(nodes.a, shell_pod(f"many-{number}", f"echo up; {IDLE}")) as pod:
            pod.wait_for_log("main", "up\n")
            return pod.exec_sync("main", ["sh", "-c", f"exit {number}"]).exit_code

    with ThreadPoolExecutor(10) as threads:
        assert list(threads.map(live, range(50))) == list(range(50))
    assert shim_client.left_by_shims(nodes.a) == []


class Held(NamedTuple):
    """What a process has."""

    files: int
    threads: int
    private_kib: int


def held_by(node: Node, pid: int) -> Held:
    process_dir = node.path(Path(f"/proc/{pid}"))
    rollup = (process_dir / "smaps_rollup").read_text()
    private = [line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty")]
    files, threads = (len(list((process_dir / name).iterdir())) for name in ("fd", "task"))
    return Held(files, threads, int(private[0]))


def held_in_the_end(node: Node, pid: int, files: int) -> Held:
    """What a shim has once it has no more than *files* open: it notices later that we hung up."""
    deadline = time.monotonic() + 5
    while (held := held_by(node, pid)).files > files:
        assert time.monotonic() < deadline, held
        time.sleep(0.01)
    return held


def test_many_execs_leave_nothing_in_the_shim(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, shell_pod("busy", IDLE))
    container_id = pod.container_ids["main"]
    shim_pid = shim_client.shim_pid(nodes.a, container_id)
    fifos = [shim_client.TASKS_DIR / container_id / name for name in ("in", "out")]
    for path in fifos:
        os.mkfifo(nodes.a.path(path))

    async def execute(client: ShimClient) -> None:
        stdin, stdout = map(str, fifos)
        for number in range(50):
            name = f"exec-{number}"
            assert await client.run_exec(name, "true") == 0
            status = await client.run_exec(name, "true", terminal=True, stdin=stdin, stdout=stdout)
            assert status == 0

    shim_client.talk(nodes.a, container_id, execute)
    before = held_by(nodes.a, shim_pid)
    for _ in range(20 if "GRIT_LONG" in os.environ else 1):
        shim_client.talk(nodes.a, container_id, execute)
    after = held_in_the_end(nodes.a, shim_pid, before.files)
    assert after.threads == 1
    assert after.private_kib - before.private_kib < 512
    bundle_dir = nodes.a.path(shim_client.TASKS_DIR / container_id)
    assert not [path for path in bundle_dir.iterdir() if "exec-" in path.name]


def test_containers_that_come_and_go_leave_nothing_in_the_shim(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, shell_pod("transient", "echo gone"))
    shim_pid = shim_client.shim_pid(nodes.a, pod.sandbox_id)  # the container may have ended

    def replace() -> int:
        pod.wait_exited("main")
        request = cri_pb2.RemoveContainerRequest(container_id=pod.container_ids["main"])
        nodes.a.cri.call("RemoveContainer", request, cri_pb2.RemoveContainerResponse)
        files = held_by(nodes.a, shim_pid).files
        pod.restart("main")
        return files

    files = replace()
    assert {replace() for _ in range(10)} == {files}
