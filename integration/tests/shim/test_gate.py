"""A pod that is created before its checkpoint has arrived, under both shims."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from grit_runtime.errors import NotFoundError
from grit_runtime.host import linux
from grit_runtime.proto import task_pb2, task_types_pb2
from integration.node.cri import CriError
from integration.node.node import HANDLER, SHIM_HANDLER
from integration.pods import arrivals, checkpoints, kubelet, workload
from integration.tests.matrix import cases
from integration.tests.shim import shim_client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes
    from integration.tests.shim.shim_client import ShimClient

pytestmark = pytest.mark.usefixtures("fresh_nodes", "shim_handler")

TIMEOUT_S = 60
SHORT_S = 2
ELSE = "0" * 64


@pytest.fixture(scope="module")
def checkpoint(nodes: Nodes, fresh_nodes: None) -> Path:  # noqa: ARG001 -- emptied before
    """The directory on node B of a checkpoint of a counter, taken at 20 or later."""
    with kubelet.running(nodes.a, workload.counter_pod("source")) as source:
        workload.wait_for_count(source, 20)
        checkpoints.take(source, "counted")
    return checkpoints.carry(nodes.a, nodes.b, "counted")


@pytest.fixture
def short_wait(nodes: Nodes) -> Iterator[None]:
    config = nodes.b.path(Path("/etc/grit/config.toml"))
    config.parent.mkdir(exist_ok=True)
    before = config.read_text() if config.exists() else ""
    config.write_text(f"{before}\nrestore_wait_s = {SHORT_S}\n")
    yield
    config.write_text(before)


@contextmanager
def created(
    node: Node, name: str, *, handler: str = "", annotations: tuple[tuple[str, str], ...] = ()
) -> Iterator[Pod]:
    """A pod that asks for checkpoint *name*, with its container created."""
    asked = (("grit.dev/restore-name", name), ("grit.dev/clone", "true"), *annotations)
    spec = workload.counter_pod(name, annotations=asked, runtime_handler=handler)
    with kubelet.sandbox(node, spec) as pod:
        pod.create("counter")
        yield pod


@contextmanager
def waiting(pod: Pod) -> Iterator[Future[None]]:
    """The start of the pod's container, which waits at the gate when the block begins."""
    log = pod.node.path(cases.LOG_DIR / "default" / pod.spec.name / "counter/grit.log")
    before = log.read_text().count("waiting until") if log.exists() else 0
    with ThreadPoolExecutor() as threads:
        start = threads.submit(pod.start, "counter", timeout_s=TIMEOUT_S)
        while not log.exists() or log.read_text().count("waiting until") == before:
            assert not start.done(), start.result()
            time.sleep(kubelet.POLL_S)
        yield start


def refusal(start: Future[None]) -> str:
    with pytest.raises(CriError) as caught:
        start.result(TIMEOUT_S)
    return caught.value.details


def assert_restored(pod: Pod) -> None:
    workload.wait_for_count(pod, 60)
    logged = [int(line) for line in pod.logs("counter").split()]
    assert logged == list(range(1, len(logged) + 1))
    assert checkpoints.outcomes(pod)[-1]["outcome"] == "restored"


@pytest.mark.parametrize("handler", [HANDLER, SHIM_HANDLER])
def test_a_pod_starts_restored_as_soon_as_its_checkpoint_has_its_name(
    nodes: Nodes, checkpoint: Path, handler: str
) -> None:
    name = f"arrives-{handler}"
    staged = arrivals.staged(checkpoint, name)
    with (
        arrivals.announced(nodes.b, name, arrivals.sha256(checkpoint)),
        created(nodes.b, name, handler=handler) as pod,
        waiting(pod) as start,
    ):
        arrivals.publish(staged, name)
        start.result(TIMEOUT_S)
        assert_restored(pod)


def test_a_stale_checkpoint_is_not_started_while_another_is_announced(
    nodes: Nodes, checkpoint: Path
) -> None:
    name = "stale"
    staged = arrivals.staged(checkpoint, name)
    stale = arrivals.staged(checkpoint, "older").rename(staged.with_name(name))
    checkpoints.seal_anew(stale)
    manifest = stale / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with (
        arrivals.announced(nodes.b, name, arrivals.sha256(checkpoint)),
        created(nodes.b, name) as pod,
        waiting(pod) as start,
    ):
        linux.exchange(str(staged), str(stale))
        start.result(TIMEOUT_S)
        assert_restored(pod)
        (restored,) = checkpoints.outcomes(pod)
        assert restored["manifest_sha256"] == arrivals.sha256(checkpoint)


@pytest.mark.usefixtures("short_wait")
def test_when_the_wait_is_over_kubelet_asks_again(nodes: Nodes, checkpoint: Path) -> None:
    name = "late"
    staged = arrivals.staged(checkpoint, name)
    with (
        arrivals.announced(nodes.b, name, arrivals.sha256(checkpoint)),
        created(nodes.b, name) as pod,
    ):
        with waiting(pod) as start:
            told = refusal(start)
            assert "default/late has not arrived on this node: 12.0 of 40.0 GiB after 2 s" in told
            assert "from peer node-a; kubelet asks again (NotArrived)" in told
        assert checkpoints.left_by_restores(pod) == []
        pod.create("counter")
        with waiting(pod) as start:
            arrivals.publish(staged, name)
            start.result(TIMEOUT_S)
        assert_restored(pod)


@pytest.mark.usefixtures("short_wait")
def test_a_transfer_that_has_died_is_named(nodes: Nodes) -> None:
    with (
        arrivals.announced(nodes.b, "dead", ELSE) as writer,
        created(nodes.b, "dead") as pod,
        waiting(pod) as start,
    ):
        os.kill(nodes.b.command_pid(writer), signal.SIGKILL)
        told = refusal(start)
        assert "its transfer has died; start it again or wait until grit agent takes it" in told
        assert "(ArrivalFailed)" in told
        assert checkpoints.left_by_restores(pod) == []


@pytest.mark.usefixtures("short_wait")
def test_what_is_on_its_way_is_not_started_cold_and_what_is_lost_is(nodes: Nodes) -> None:
    cold = (("grit.dev/on-failure", "cold-start"),)
    with (
        arrivals.announced(nodes.b, "either", ELSE) as writer,
        created(nodes.b, "either", annotations=cold) as pod,
    ):
        with waiting(pod) as start:
            assert "(NotArrived)" in refusal(start)
        pod.create("counter")
        with waiting(pod) as start:
            arrivals.fail(writer, "piece 7 is damaged")
            start.result(TIMEOUT_S)
        pod.wait_for_log("counter", "1\n2\n")
        assert [one["outcome"] for one in checkpoints.outcomes(pod)] == ["failed", "cold"]


def test_a_transfer_that_fails_fails_the_start_at_once(nodes: Nodes) -> None:
    with (
        arrivals.announced(nodes.b, "failed", ELSE) as writer,
        created(nodes.b, "failed") as pod,
        waiting(pod) as start,
    ):
        arrivals.fail(writer, "piece 7 is damaged")
        told = refusal(start)
        assert "its transfer from peer node-a has failed: piece 7 is damaged; start it" in told
        assert checkpoints.left_by_restores(pod) == []


def test_a_create_that_is_killed_while_it_waits_leaves_nothing(
    nodes: Nodes, checkpoint: Path
) -> None:
    name = "killed"
    staged = arrivals.staged(checkpoint, name)
    with (
        arrivals.announced(nodes.b, name, arrivals.sha256(checkpoint)),
        created(nodes.b, name) as pod,
    ):
        with waiting(pod) as start:
            nodes.b.run(["pkill", "-KILL", "-f", f"create .*{pod.container_ids['counter']}$"])
            refusal(start)
        nodes.b.run(["grit", "recover"])
        assert checkpoints.left_by_restores(pod) == []
        pod.create("counter")
        with waiting(pod) as start:
            arrivals.publish(staged, name)
            start.result(TIMEOUT_S)
        assert_restored(pod)


def test_a_pod_that_is_deleted_ends_the_wait(nodes: Nodes) -> None:
    with (
        arrivals.announced(nodes.b, "deleted", ELSE),
        created(nodes.b, "deleted") as pod,
        waiting(pod) as start,
    ):
        pod.stop(grace_period_s=0)
        told = refusal(start)
        assert "the pod has ended while it waited for checkpoint" in told
        pod.remove()
        assert checkpoints.left_by_restores(pod) == []


@pytest.mark.usefixtures("short_wait")
def test_the_shim_answers_about_a_container_that_waits(nodes: Nodes) -> None:
    """State and kill at once; delete as soon as the wait is over, when there is nothing left."""

    async def ask(client: ShimClient) -> None:
        state = await client.ask("State", task_pb2.StateResponse)
        assert (state.status, state.pid) == (task_types_pb2.CREATED, 0)
        with pytest.raises(NotFoundError):
            await client.tell("Kill", signal=int(signal.SIGKILL))
        assert not start.done()
        with pytest.raises(NotFoundError):
            await client.tell("Delete")

    with (
        arrivals.announced(nodes.b, "asked", ELSE),
        created(nodes.b, "asked") as pod,
        waiting(pod) as start,
    ):
        shim_client.talk(nodes.b, pod.container_ids["counter"], ask)
        assert "(NotArrived)" in refusal(start)
