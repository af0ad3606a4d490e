"""containerd-shim-grit-v1 where things go wrong: it or containerd dies, requests make no sense."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from grit_runtime.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    GritError,
    InvalidArgumentError,
    NotFoundError,
)
from grit_runtime.proto import cri_pb2, runc_options_pb2, task_pb2, task_types_pb2
from grit_runtime.proto.containerd_types_pb2 import Mount
from grit_runtime.wire.well_known import pack
from integration.node.cri import CriError
from integration.pods import kubelet
from integration.pods.workload import SHELL_COUNTER, shell_pod
from integration.tests.shim import shim_client, task_events
from integration.tests.shim.shim_client import TASKS_DIR
from integration.tests.shim.test_kubelet import IDLE, KILLED, processes_of, wait_until_gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes
    from integration.tests.shim.shim_client import ShimClient

pytestmark = pytest.mark.usefixtures("fresh_nodes", "shim_handler")

LOAD = "load"
ROOTFS = Mount(type="tmpfs", source="tmpfs", options=["ro"])


# containerd goes, and comes back


def test_a_containerd_that_comes_back_finds_all_that_went_on(nodes: Nodes) -> None:
    node = nodes.a
    with (
        kubelet.running(node, shell_pod("kept", SHELL_COUNTER)) as kept,
        kubelet.running(node, shell_pod("ended", IDLE)) as ended,
    ):
        pid, ended_pid = kept.pid("main"), ended.pid("main")
        with under_load(node, kept):
            node.stop_containerd()
            node.run(["kill", "-KILL", str(ended_pid)])
            wait_until_gone(node, ended_pid)
            node.start_containerd()
            assert ended.wait_exited("main").exit_code == KILLED
        assert kept.pid("main") == pid
        assert kept.exec_sync("main", ["sh", "-c", "exit 9"]).exit_code == 9
        count = kept.logs("main").count("count")
        kept.wait_for_log("main", f"count {count + 5}\n")
    sweep(node)
    assert shim_client.left_by_shims(node) == []


@contextmanager
def under_load(node: Node, pod: Pod) -> Iterator[None]:
    """While the block runs, execs in *pod* and new pods go on as far as containerd lets them."""
    done = threading.Event()
    with ThreadPoolExecutor() as threads:
        loads = [threads.submit(run_execs, pod, done), threads.submit(run_pods, node, done)]
        try:
            yield
        finally:
            done.set()
    for load in loads:
        load.result()


def run_execs(pod: Pod, done: threading.Event) -> None:
    while not done.is_set():
        with suppress(CriError):
            pod.exec_sync("main", ["true"])


def run_pods(node: Node, done: threading.Event) -> None:
    """Run pods until containerd goes in the midst of one, and one more when it is back."""
    with suppress(CriError):
        while not done.is_set():
            with kubelet.running(node, shell_pod(LOAD, IDLE)):
                pass


def sweep(node: Node) -> None:
    """Remove the pods of which run_pods was not told, as kubelet does."""
    listed = node.cri.call(
        "ListPodSandbox", cri_pb2.ListPodSandboxRequest(), cri_pb2.ListPodSandboxResponse
    )
    for sandbox in listed.items:
        if sandbox.metadata.name == LOAD:
            stop = cri_pb2.StopPodSandboxRequest(pod_sandbox_id=sandbox.id)
            node.cri.call("StopPodSandbox", stop, cri_pb2.StopPodSandboxResponse)
            remove = cri_pb2.RemovePodSandboxRequest(pod_sandbox_id=sandbox.id)
            node.cri.call("RemovePodSandbox", remove, cri_pb2.RemovePodSandboxResponse)


# A shim dies


def test_a_killed_shim_leaves_nothing(nodes: Nodes) -> None:
    node = nodes.a
    with (
        task_events.watching(node) as events,
        kubelet.running(node, shell_pod("orphaned", IDLE)) as pod,
    ):
        container_id = pod.container_ids["main"]
        pids = [*processes_of(pod), pod.pid("main")]
        node.run(["kill", "-KILL", str(shim_client.shim_pid(node, container_id))])
        pod.wait_exited("main")  # with whatever status containerd makes of a call that was cut off
        told = events.of(container_id, "delete")
        assert [event.what for event in told] == ["create", "start", "exit", "delete"]
        assert told[-1].message.exit_status == KILLED
        for pid in pids:
            wait_until_gone(node, pid)
    assert shim_client.left_by_shims(node) == []


# Requests that come too late, too early, or make no sense


@pytest.fixture(scope="module")
def asked(nodes: Nodes, shim_handler: None) -> Iterator[Pod]:  # noqa: ARG001 -- comes after it
    with kubelet.running(nodes.a, shell_pod("asked", IDLE)) as pod:
        yield pod


def refuses(pod: Pod, kind: type[GritError], reason: str, method: str, **fields: object) -> None:
    """The pod's shim answers with this error, and goes on."""

    async def work(client: ShimClient) -> None:
        with pytest.raises(kind, match=reason):
            await client.tell(method, **fields)
        await client.tell("State", id=pod.container_ids["main"])

    shim_client.talk(pod.node, pod.container_ids["main"], work)


@pytest.mark.parametrize("method", ["State", "Start", "Delete", "Kill", "Wait", "Pids", "Stats",
    "Pause", "Resume", "Checkpoint", "Exec", "ResizePty", "CloseIO", "Update"])  # fmt: skip
def test_a_container_that_is_not_there_is_not_found(asked: Pod, method: str) -> None:
    fields = {"stdin": True} if method == "CloseIO" else {}
    refuses(asked, NotFoundError, "container nobody: not found", method, id="nobody", **fields)


def test_what_cannot_be_meant_is_refused(asked: Pod) -> None:
    spec = shim_client.process_spec("true")
    invalid = InvalidArgumentError
    refuses(asked, invalid, "signal 1000", "Kill", signal=1000)
    refuses(asked, invalid, "cannot be the name of a file", "Exec", exec_id="../x", spec=spec)
    for value in (b"{", b"[]"):
        refuses(asked, invalid, "its spec", "Exec", exec_id="x", spec=Any(value=value))
    options = pack(task_pb2.StateRequest())
    refuses(asked, invalid, "expected containerd.runc", "Checkpoint", path="/x", options=options)
    refuses(asked, NotFoundError, "no exec process x", "Start", exec_id="x")


def test_processes_are_dealt_with_in_the_order_of_a_life(asked: Pod) -> None:
    container_id = asked.container_ids["main"]

    async def live(client: ShimClient) -> None:
        async def refused(kind: type[GritError], method: str, **fields: object) -> None:
            with pytest.raises(kind):
                await client.tell(method, exec_id="life", **fields)

        spec = shim_client.process_spec("sleep", "1000")
        await client.tell("Exec", exec_id="life", spec=spec)
        await refused(AlreadyExistsError, "Exec", spec=spec)
        await refused(FailedPreconditionError, "Kill", signal=9)
        await client.tell("Start", exec_id="life")
        await refused(FailedPreconditionError, "Start")
        await refused(FailedPreconditionError, "Delete")
        waiting = asyncio.create_task(client.ask("Wait", task_pb2.WaitResponse, exec_id="life"))
        await client.tell("Kill", exec_id="life", signal=9)
        assert (await waiting).exit_status == KILLED
        await refused(NotFoundError, "Kill", signal=9)
        again = await client.ask("Wait", task_pb2.WaitResponse, exec_id="life")
        assert again == await waiting
        deletes = [client.ask("Delete", task_pb2.DeleteResponse, exec_id="life") for _ in range(3)]
        answers = await asyncio.gather(*deletes, return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == [
            *("DeleteResponse", "NotFoundError", "NotFoundError")
        ]
        await refused(NotFoundError, "State")

    shim_client.talk(asked.node, container_id, live)


def test_an_exec_that_cannot_start_can_be_waited_for_and_deleted(asked: Pod) -> None:
    async def live(client: ShimClient) -> None:
        spec = shim_client.process_spec("/no/such/program")
        await client.tell("Exec", exec_id="missing", spec=spec)
        with pytest.raises(GritError, match=r"OCI runtime exec failed: .*no such file"):
            await client.tell("Start", exec_id="missing")
        ended = await client.ask("Wait", task_pb2.WaitResponse, exec_id="missing")
        assert ended.exit_status == 255
        state = await client.ask("State", task_pb2.StateResponse, exec_id="missing")
        assert state.status == task_types_pb2.CREATED
        with pytest.raises(FailedPreconditionError, match="could not be started before"):
            await client.tell("Start", exec_id="missing")
        with pytest.raises(FailedPreconditionError, match="has not been started"):
            await client.tell("Kill", exec_id="missing", signal=signal.SIGKILL)
        await client.tell("Delete", exec_id="missing")

    shim_client.talk(asked.node, asked.container_ids["main"], live)


def test_an_exec_whose_terminal_cannot_be_shown_leaves_no_process(nodes: Nodes, asked: Pod) -> None:
    async def live(client: ShimClient) -> None:
        spec = shim_client.process_spec("sleep", "1000")
        unseen = {"terminal": True, "stdout": "/no/such/fifo"}
        await client.tell("Exec", exec_id="unseen", spec=spec, **unseen)
        with pytest.raises(GritError, match="/no/such/fifo"):
            await client.tell("Start", exec_id="unseen")
        await client.tell("Delete", exec_id="unseen")

    pids = processes_of(asked)
    shim_client.talk(asked.node, asked.container_ids["main"], live)
    for pid in set(processes_of(asked)) - set(pids):
        wait_until_gone(nodes.a, pid)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_the_request_says_whether_a_process_has_a_terminal(asked: Pod, *, terminal: bool) -> None:
    """Its spec need not: containerd v2.1.9 cmd/containerd-shim-runc-v2/process/init.go exec()."""

    async def live(client: ShimClient) -> int:
        return await client.run_exec("asks", "sh", "-c", "test -t 0", terminal=terminal)

    status = shim_client.talk(asked.node, asked.container_ids["main"], live)
    assert status == (0 if terminal else 1)


def test_both_versions_of_the_service_are_one(asked: Pod) -> None:
    async def work(client: ShimClient) -> None:
        spec = shim_client.process_spec("sleep", "1000")
        v2, v3 = shim_client.SERVICES
        await client.ask("Exec", Empty, service=v3, exec_id="either", spec=spec)
        began = await client.ask("Start", task_pb2.StartResponse, service=v2, exec_id="either")
        seen = await client.ask("State", task_pb2.StateResponse, service=v3, exec_id="either")
        assert seen.pid == began.pid
        await client.ask("Kill", Empty, service=v2, exec_id="either", signal=signal.SIGKILL)
        ended = await client.ask("Wait", task_pb2.WaitResponse, service=v3, exec_id="either")
        assert ended.exit_status == KILLED
        await client.ask("Delete", Empty, service=v3, exec_id="either")

    shim_client.talk(asked.node, asked.container_ids["main"], work)


def test_many_execs_at_once_are_all_answered(asked: Pod) -> None:
    async def live(client: ShimClient) -> list[int]:
        runs = (client.run_exec(f"many-{n}", "sh", "-c", f"exit {n}") for n in range(40))
        return await asyncio.gather(*runs)

    assert shim_client.talk(asked.node, asked.container_ids["main"], live) == list(range(40))


def test_execs_and_pauses_at_once_end_all_the_same(asked: Pod) -> None:
    async def live(client: ShimClient) -> None:
        async def execute(number: int) -> None:
            with suppress(FailedPreconditionError):  # it is paused just now
                assert await client.run_exec(f"paused-{number}", "true") == 0

        execs = [asyncio.create_task(execute(number)) for number in range(30)]
        for _ in range(5):
            await client.tell("Pause")
            await client.tell("Resume")
        await asyncio.gather(*execs)

    shim_client.talk(asked.node, asked.container_ids["main"], live)
    assert asked.exec_sync("main", ["true"]).exit_code == 0


@pytest.mark.parametrize(
    "data",
    [os.urandom(4096), bytes(4096), b"GET / HTTP/1.1\r\n\r\n"],
    ids=["noise", "zeros", "http"],  # each process of the tests has other noise
)
def test_garbage_on_the_socket_disturbs_nobody(asked: Pod, data: bytes) -> None:
    path = shim_client.socket_of(asked.node, asked.container_ids["main"])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(data)
    assert asked.exec_sync("main", ["true"]).exit_code == 0


def test_a_frame_that_is_too_long_is_refused_alone(asked: Pod) -> None:
    path = shim_client.socket_of(asked.node, asked.container_ids["main"])
    size_bytes = (4 << 20) + 1
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(struct.pack(">IIBB", size_bytes, 1, 1, 0) + bytes(size_bytes))
        assert client.recv(10)[8:9] == b"\x02"
    assert asked.exec_sync("main", ["true"]).exit_code == 0


# Containers that cannot be made


def test_a_second_create_of_one_id_leaves_the_first_alone(asked: Pod) -> None:
    container_id = asked.container_ids["main"]
    bundle = str(TASKS_DIR / container_id)
    refuses(asked, AlreadyExistsError, "exists already", "Create", bundle=bundle)
    assert asked.exec_sync("main", ["true"]).exit_code == 0


@pytest.fixture
def bundle(asked: Pod) -> Iterator[Path]:
    """A bundle on a small disk of its own, as the node sees it, with the pod's config.json."""
    node = asked.node
    node.run(["sh", "-c", "mkdir -p /run/small && mount -t tmpfs -o size=64k tmpfs /run/small"])
    path = Path("/run/small")
    source = node.path(TASKS_DIR / asked.container_ids["main"]) / "config.json"
    shutil.copy(source, node.path(path))
    yield path
    node.run(["umount", "/run/small"])


def assert_not_made(pod: Pod, reason: str, **fields: object) -> None:
    refuses(pod, GritError, reason, "Create", id="unmade", bundle="/run/small", **fields)
    refuses(pod, NotFoundError, "unmade: not found", "State", id="unmade")
    mounts = pod.node.run(["cat", "/proc/mounts"]).stdout
    assert "/run/small/rootfs" not in mounts


def test_a_bundle_without_config_is_named(asked: Pod, bundle: Path) -> None:
    asked.node.path(bundle / "config.json").unlink()
    assert_not_made(asked, "/run/small/config.json: No such file or directory")


def test_a_config_that_is_none_is_named(asked: Pod, bundle: Path) -> None:
    asked.node.path(bundle / "config.json").write_text("{")
    assert_not_made(asked, "/run/small/config.json: not JSON: Expecting")


def test_a_full_disk_is_named(asked: Pod, bundle: Path) -> None:
    full = asked.node.path(bundle / "full")
    with suppress(OSError), full.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert_not_made(asked, "No space left on device")


@pytest.mark.usefixtures("bundle")
def test_a_runtime_that_is_not_there_is_named(asked: Pod) -> None:
    options = pack(runc_options_pb2.Options(binary_name="/no/such/runc"))
    assert_not_made(asked, "/no/such/runc", options=options, rootfs=[ROOTFS])


@pytest.mark.usefixtures("bundle")
def test_a_rootfs_that_cannot_be_mounted_is_named(asked: Pod) -> None:
    missing = Mount(type="ext4", source="/no/such/disk")
    assert_not_made(asked, "/run/small/rootfs: ", rootfs=[ROOTFS, missing])
