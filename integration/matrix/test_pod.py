"""Whole pods: several containers at one instant, init containers, sidecars, what they share."""

from __future__ import annotations

import pytest

from integration import checkpoints, images, kubelet, workload
from integration.matrix import cases
from integration.pod_spec import ContainerSpec, EmptyDir, PodSpec, VolumeMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.conftest import Nodes, RunPod
    from integration.kubelet import Pod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

COUNTER = ContainerSpec(
    name="counter",
    image=images.PYTHON,
    command=("/usr/bin/python3", "-c", workload.COUNTER, "1"),
)


def shell(name: str, script: str, **fields: object) -> ContainerSpec:
    """A container of busybox that runs *script*."""
    command = ("/bin/sh", "-c", script)
    return ContainerSpec(name=name, image=images.BUSYBOX, command=command, **fields)  # type: ignore[arg-type]


def restoring(name: str, **own: str) -> tuple[tuple[str, str], ...]:
    more = ((f"grit.dev/{key.replace('_', '-')}", value) for key, value in own.items())
    return (("grit.dev/restore-name", name), *more)


def run_init(pod: Pod, name: str) -> None:
    """Run an init container to its end, as kubelet does before the others."""
    pod.create(name)
    pod.start(name)
    assert pod.wait_exited(name).exit_code == 0


INIT = shell("init", "echo ran; echo ran >/ran")


def init_pod(name: str, annotations: tuple[tuple[str, str], ...] = ()) -> PodSpec:
    return PodSpec(name=name, containers=(INIT, COUNTER), annotations=annotations)


@pytest.fixture(scope="module")
def checkpoint(nodes: Nodes, fresh_nodes: None) -> None:  # noqa: ARG001 -- emptied before
    """On node B: a checkpoint of a pod with an init container that had exited 0."""
    with kubelet.sandbox(nodes.a, init_pod("init-a")) as source:
        run_init(source, "init")
        source.create("counter")
        source.start("counter")
        workload.wait_for_count(source, 5)
        checkpoints.take(source, "init")
    checkpoints.carry(nodes.a, nodes.b, "init")


@pytest.mark.case("an init container that had exited", cases.RESTORED)
@pytest.mark.usefixtures("checkpoint")
@pytest.mark.parametrize(("asked", "wrote"), [({}, "ran\n"), ({"completed": "skip"}, "")])
def test_an_init_container_runs_again_unless_it_is_to_be_skipped(
    nodes: Nodes, asked: dict[str, str], wrote: str
) -> None:
    with kubelet.sandbox(nodes.b, init_pod("init-b", restoring("init", **asked))) as pod:
        run_init(pod, "init")
        assert pod.logs("init") == wrote
        pod.create("counter")
        pod.start("counter")
        workload.assert_goes_on_from(pod, 5, node=nodes.b)
        became = [(one["container"], one["outcome"]) for one in checkpoints.outcomes(pod)]
        assert became == [("init", "skipped" if asked else "cold"), ("counter", "restored")]


@pytest.mark.case("completed: skip, with a volume that was not captured", cases.REFUSED)
def test_what_an_init_container_wrote_must_be_there_to_skip_it(
    nodes: Nodes, run_pod: RunPod
) -> None:
    init = shell("init", "echo ran >/work/ran", mounts=(VolumeMount("work", "/work"),))
    main = shell("main", "while true; do sleep 1; done", mounts=(VolumeMount("work", "/work"),))

    def spec(name: str, *annotations: tuple[str, str]) -> PodSpec:
        return PodSpec(
            name=name,
            containers=(init, main),
            volumes=(EmptyDir("work"),),
            annotations=annotations,
        )

    source = run_pod(nodes.a, spec("prepared"))
    source.wait_exited("init")
    cases.move(nodes, source, "prepared")
    reason = cases.refusal(nodes, spec("unprepared", *restoring("prepared", completed="skip")))
    assert "does not hold its writable volume /work" in reason


@pytest.mark.case("a container listed as running without its images", cases.REFUSED)
def test_a_running_container_without_images_is_an_error(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("bare"))
    workload.wait_for_count(source, 3)
    cases.move(nodes, source, "bare")
    path = checkpoints.directory(nodes.b, "bare")
    (path / "counter").rename(path / "other")
    checkpoints.seal_anew(path)
    reason = cases.refusal(nodes, workload.counter_pod("bare-b", annotations=restoring("bare")))
    assert "lists container counter as running but holds no images of it" in reason


CONNECTED = """
import socket, time
a = socket.create_server(('127.0.0.1', 0))
b = socket.create_connection(a.getsockname())
c = a.accept()
print('ready', flush=True)
while True: time.sleep(0.1); print('alive', flush=True)
"""


@pytest.mark.case("several containers, one that CRIU cannot dump", cases.REFUSED)
def test_one_container_that_fails_to_dump_leaves_nothing(nodes: Nodes, run_pod: RunPod) -> None:
    talker = ContainerSpec(
        name="talker", image=images.PYTHON, command=("/usr/bin/python3", "-c", CONNECTED)
    )
    pod = run_pod(nodes.a, PodSpec(name="half", containers=(COUNTER, talker)))
    workload.wait_for_count(pod, 3)
    pod.wait_for_log("talker", "ready\n")
    failed = checkpoints.take(pod, "half", check=False)
    assert "container talker: dump failed" in failed.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    assert not checkpoints.directory(nodes.a, "half").exists()
    count = len(pod.logs("counter").split())
    workload.wait_for_count(pod, count + 5)
    lines = len(pod.logs("talker").splitlines())
    pod.wait_for_log("talker", "alive\n" * (lines + 3))
