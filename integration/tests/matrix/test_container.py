"""What a container's spec can ask for: users, terminals, filters, what it may write to."""

from __future__ import annotations

from pathlib import Path

import pytest

from grit_runtime.proto import cri_pb2
from integration.node import images
from integration.pods import kubelet
from integration.pods.pod_spec import ContainerSpec, PodSpec, Resources, Security
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

COUNT = "i=0; while :; do i=$((i + 1)); echo count $i; sleep 0.1; done"
ECHO = "while read line; do echo got $line; done"
RUNTIME_DEFAULT = cri_pb2.SecurityProfile.RuntimeDefault


def shell(
    name: str,
    script: str = COUNT,
    *,
    security: Security | None = None,
    resources: Resources | None = None,
    stdin: bool = False,
    tty: bool = False,
) -> ContainerSpec:
    """A container of busybox that runs *script*."""
    return ContainerSpec(
        name=name,
        image=images.BUSYBOX,
        command=("/bin/sh", "-c", script),
        security=security or Security(),
        resources=resources or Resources(),
        stdin=stdin,
        tty=tty,
    )


ALL = (
    shell("tty", tty=True, stdin=True, script=f"tty; {COUNT}"),
    shell("stdin", f"echo count 3; {ECHO}", stdin=True),
    shell("user", security=Security(user=1000, group=1001, groups=(2000, 3000))),
    shell("readonly", security=Security(readonly_rootfs=True)),
    shell("seccomp", security=Security(seccomp=RUNTIME_DEFAULT)),
    shell("all", COUNT, security=Security(user=1000, readonly_rootfs=True), tty=True, stdin=True),
    shell("limited", resources=Resources(memory_bytes=64 << 20, cpu_quota_us=50_000)),
)


def spec(name: str, *annotations: tuple[str, str]) -> PodSpec:
    return PodSpec(name=name, containers=ALL, annotations=annotations)


@pytest.fixture(scope="module")
def moved(nodes: Nodes, fresh_nodes: None) -> Iterator[Pod]:  # noqa: ARG001 -- emptied before
    """A pod of all the containers, checkpointed at one instant and restored on node B."""
    with kubelet.running(nodes.a, spec("all-a")) as source:
        for container in ALL:
            source.wait_for_log(container.name, "count 3")
        cases.move(nodes, source, "all")
    with kubelet.running(nodes.b, spec("all-b", ("grit.dev/restore-name", "all"))) as target:
        yield target


def goes_on(pod: Pod, name: str) -> str:
    """What the container wrote, once it has counted on; each number must be there once."""
    log = pod.wait_for_log(name, "count 40\n").replace("\r", "")
    counted = [int(line.split()[1]) for line in log.split("\n") if line.startswith("count ")]
    assert counted == list(range(1, len(counted) + 1))
    return log


def inside(pod: Pod, name: str, script: str) -> str:
    return pod.exec_sync(name, ["/bin/sh", "-c", script]).stdout.decode()


@pytest.mark.case("tty: true", cases.RESTORED)
def test_a_terminal_is_a_terminal_again(moved: Pod) -> None:
    log = moved.wait_for_log("tty", "count 40").replace("\r", "")
    assert "/dev/pts/0\n" in log
    assert (
        inside(moved, "tty", "readlink /proc/1/fd/0; readlink /proc/1/fd/1") == "/dev/pts/0\n" * 2
    )


@pytest.mark.case("stdin: true", cases.RESTORED)
def test_standard_input_is_open_again(moved: Pod) -> None:
    container_id = moved.container_ids["stdin"]
    fifos = moved.node.path(Path("/run/containerd")).rglob(f"{container_id}-stdin")
    (fifo,) = [path.relative_to(moved.node.path(Path("/"))) for path in fifos]
    moved.node.run(["sh", "-c", f"echo hello >/{fifo}"])
    moved.wait_for_log("stdin", "got hello\n")


@pytest.mark.case("runAsUser, runAsGroup, supplementalGroups", cases.RESTORED)
def test_a_user_and_its_groups_are_the_same(moved: Pod) -> None:
    goes_on(moved, "user")
    status = inside(moved, "user", "cat /proc/1/status")
    assert "Uid:\t1000\t1000\t1000\t1000\n" in status
    assert "Gid:\t1001\t1001\t1001\t1001\n" in status
    assert "Groups:\t1001 2000 3000" in status


@pytest.mark.case("readOnlyRootFilesystem", cases.RESTORED)
def test_a_read_only_root_is_read_only_again(moved: Pod) -> None:
    goes_on(moved, "readonly")
    root = f"/proc/{moved.pid('readonly')}/root"
    assert moved.node.run(["touch", f"{root}/x"], check=False).returncode != 0
    assert "Read-only file system" in inside(moved, "readonly", "touch /x 2>&1")


@pytest.mark.case("seccompProfile: RuntimeDefault", cases.RESTORED)
def test_a_filter_is_in_place_again(moved: Pod) -> None:
    goes_on(moved, "seccomp")
    assert "Seccomp:\t2\n" in inside(moved, "seccomp", "cat /proc/1/status")


@pytest.mark.case("runAsUser, readOnlyRootFilesystem, tty and stdin at once", cases.RESTORED)
def test_all_of_these_come_back_together(moved: Pod) -> None:
    goes_on(moved, "all")
    script = "readlink /proc/1/fd/0; id -u; touch /tmp/x 2>&1"
    said = inside(moved, "all", script)
    assert said.startswith("/dev/pts/0\n1000\n")
    assert "Read-only file system" in said


@pytest.mark.case("resource limits", cases.RESTORED)
def test_limits_are_the_new_pods(moved: Pod) -> None:
    goes_on(moved, "limited")
    container_id = moved.container_ids["limited"]
    memory = moved.node.path(Path("/sys/fs/cgroup/memory/kubepods"))
    (group,) = (path for path in memory.rglob(container_id) if path.is_dir())
    assert int((group / "memory.limit_in_bytes").read_text()) == 64 << 20
    assert (
        str(moved.pid("limited"))
        in moved.node.run(
            ["sh", "-c", f"cat /sys/fs/cgroup/memory/kubepods/*/*/{container_id}/cgroup.procs"]
        ).stdout.split()
    )
    shown = ["cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
    assert int(moved.exec_sync("limited", shown).stdout) == 64 << 20


@pytest.mark.case("a privileged pod", cases.RESTORED)
def test_a_privileged_container_is_restored(nodes: Nodes, run_pod: RunPod) -> None:
    def privileged(name: str, *annotations: tuple[str, str]) -> PodSpec:
        container = shell("main", security=Security(privileged=True))
        return PodSpec(name=name, containers=(container,), annotations=annotations)

    source = run_pod(nodes.a, privileged("root-a"))
    source.wait_for_log("main", "count 3\n")
    cases.move(nodes, source, "root")
    target = run_pod(nodes.b, privileged("root-b", ("grit.dev/restore-name", "root")))
    goes_on(target, "main")


@pytest.mark.case("hostNetwork: true", cases.RESTORED)
def test_a_pod_on_the_nodes_network_keeps_the_nodes_name(nodes: Nodes, run_pod: RunPod) -> None:
    def on_host(name: str, *annotations: tuple[str, str]) -> PodSpec:
        return PodSpec(
            name=name, containers=(shell("main"),), annotations=annotations, host_network=True
        )

    source = run_pod(nodes.a, on_host("net-a"))
    source.wait_for_log("main", "count 3\n")
    cases.move(nodes, source, "net")
    target = run_pod(nodes.b, on_host("net-b", ("grit.dev/restore-name", "net")))
    goes_on(target, "main")
    assert inside(target, "main", "hostname") == "node-b\n"
    assert nodes.b.run(["hostname"]).stdout == "node-b\n"


@pytest.mark.case("the systemd cgroup driver", cases.RESTORED)
@pytest.mark.usefixtures("edition")
def test_a_container_is_restored_by_the_systemd_driver() -> None:
    pytest.skip("the nodes run no systemd, which makes the cgroups for that driver")
