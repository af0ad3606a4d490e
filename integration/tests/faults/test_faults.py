"""What goes wrong ends with one clear reason, and nothing left running, mounted or half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from grit_runtime.host import records
from grit_runtime.proto import cri_pb2
from integration.node import images
from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet, workload
from integration.pods.pod_spec import ContainerSpec, PodSpec, Security

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.pods.pod_host import Host
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")


@pytest.fixture
def counter(nodes: Nodes, run_pod: RunPod) -> Pod:
    """A counter that runs on node A."""
    pod = run_pod(nodes.a, workload.counter_pod("source"))
    workload.wait_for_count(pod, 5)
    return pod


@pytest.fixture
def carried(nodes: Nodes, counter: Pod) -> Iterator[Path]:
    """A sound checkpoint of the counter, carried to node B under the name "carried"."""
    checkpoints.take(counter, "carried", "--replace")
    path = checkpoints.carry(nodes.a, nodes.b, "carried")
    yield path
    shutil.rmtree(path)


def refused(node: Node, spec: PodSpec) -> str:
    """Why node refuses to start the pod's first container; nothing of the attempt may be left."""
    with kubelet.sandbox(node, spec) as pod:
        name = spec.containers[0].name
        pod.create(name)
        with pytest.raises(CriError) as caught:
            pod.start(name)
        assert checkpoints.left_by_restores(pod) == []
        assert pod.status(name).state == cri_pb2.CONTAINER_EXITED
    reason = str(caught.value)
    assert "\n" not in reason
    return reason


def restoring(**own: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"grit.dev/{key.replace('_', '-')}", value) for key, value in own.items())


def target_pod(**annotations: str) -> PodSpec:
    return workload.counter_pod("target", annotations=restoring(**annotations))


# What is wrong with the checkpoint


def test_a_checkpoint_that_is_not_there_is_named(nodes: Nodes) -> None:
    reason = refused(nodes.b, target_pod(restore_name="nowhere"))
    assert "checkpoint /mnt/grit-agent/default/nowhere does not exist on this node" in reason


def test_a_checkpoint_without_a_manifest_is_incomplete(nodes: Nodes, carried: Path) -> None:
    (carried / "manifest.json").unlink()
    reason = refused(nodes.b, target_pod(restore_name="carried"))
    assert "carried is incomplete: it has no manifest.json" in reason


def flip_a_bit(path: Path, place: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 4
    path.write_bytes(data)


def cut_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("counter/checkpoint/pages-1.img", flip_a_bit, "pages-1.img is damaged: digest sha256:"),
        ("counter/rootfs-diff.tar", flip_a_bit, "rootfs-diff.tar is damaged"),
        ("counter/checkpoint/core-1.img", cut_the_end, "core-1.img has"),
        ("counter/checkpoint/mm-1.img", Path.unlink, "mm-1.img is missing"),
        ("counter/checkpoint/new.img", Path.touch, "new.img is not in the manifest"),
    ],
)
def test_a_damaged_file_is_named(
    nodes: Nodes, carried: Path, file: str, damage: Callable[[Path], object], reason: str
) -> None:
    damage(carried / file)
    assert reason in refused(nodes.b, target_pod(restore_name="carried"))


def test_a_truncated_image_is_named_even_if_the_manifest_was_made_to_fit(
    nodes: Nodes, carried: Path
) -> None:
    cut_the_end(carried / "counter/checkpoint/core-1.img")
    checkpoints.seal_anew(carried)
    reason = refused(nodes.b, target_pod(restore_name="carried"))
    assert "image core-1.img: entry 0 ends at" in reason


def test_truncated_memory_is_named_even_if_the_manifest_was_made_to_fit(
    nodes: Nodes, carried: Path
) -> None:
    cut_the_end(carried / "counter/checkpoint/pages-1.img")
    checkpoints.seal_anew(carried)
    reason = refused(nodes.b, target_pod(restore_name="carried"))
    assert re.search(r"image pages-1.img: \d+ bytes, expected \d+; it is truncated", reason)


# What is wrong with the pod


@pytest.mark.usefixtures("carried")
def test_a_mount_that_the_new_pod_lacks_is_named(nodes: Nodes) -> None:
    counter = workload.counter_pod("target").containers[0]
    bare = ContainerSpec(name=counter.name, image=counter.image, command=counter.command)
    spec = PodSpec(name="target", containers=(bare,), annotations=restoring(restore_name="carried"))
    assert "/scratch" in refused(nodes.b, spec)


@pytest.mark.parametrize(
    "directory",
    [
        "/etc",
        "/mnt/grit-agent/other/carried",
        "/mnt/grit-agent/default/../other/carried",
        "/mnt/grit-agent/default",
    ],
)
def test_a_directory_of_others_is_refused(nodes: Nodes, directory: str) -> None:
    reason = refused(nodes.b, target_pod(checkpoint=directory))
    assert "annotation grit.dev/checkpoint" in reason
    assert "beneath /mnt/grit-agent/default/" in reason


def test_a_directory_reached_through_a_link_is_refused(nodes: Nodes, carried: Path) -> None:
    link = carried.with_name("link")
    link.symlink_to("carried")
    try:
        reason = refused(nodes.b, target_pod(checkpoint="/mnt/grit-agent/default/link"))
    finally:
        link.unlink()
    assert "'link' is a symbolic link, expected a directory" in reason


def test_an_unknown_key_is_named(nodes: Nodes) -> None:
    reason = refused(nodes.b, target_pod(restore_name="carried", restore_nmae="x"))
    assert "annotation grit.dev/restore-nmae is unknown" in reason


# What a forged dump asks for


def grant(field: str, value: int) -> Callable[[Message], object]:
    """A change of a core image that sets a number or a set's first word."""

    def change(core: Message) -> None:
        creds = core.thread_core.creds  # type: ignore[attr-defined]
        if field.startswith("cap_"):
            getattr(creds, field)[0] |= value
        else:
            setattr(creds, field, value)

    return change


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("cap_eff", 1 << 21, "cap_eff CAP_SYS_ADMIN"),
        ("cap_prm", 1 << 21, "cap_prm CAP_SYS_ADMIN"),
        ("cap_bnd", 1 << 16, "cap_bnd CAP_SYS_MODULE"),
        ("no_new_privs", 0, "no_new_privs 0"),
        ("uid", 0, "uid 0"),
        ("fsgid", 0, "fsgid 0"),
    ],
)
def test_a_task_with_more_than_the_pod_grants_is_refused(
    nodes: Nodes, run_pod: RunPod, field: str, value: int, reason: str
) -> None:
    spec = confined_pod("confined")
    source = run_pod(nodes.a, spec)
    source.wait_for_log("confined", "ready\n")
    checkpoints.take(source, "confined", "--replace")
    path = checkpoints.carry(nodes.a, nodes.b, "confined")
    checkpoints.forge(path / "confined/checkpoint", "core-1.img", grant(field, value))
    checkpoints.seal_anew(path)
    try:
        told = refused(nodes.b, confined_pod("target", restore_name="confined"))
    finally:
        shutil.rmtree(path)
    assert "task 1 (" in told
    assert reason in told


def test_a_task_without_the_pods_seccomp_filter_is_refused(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, confined_pod("confined"))
    source.wait_for_log("confined", "ready\n")
    checkpoints.take(source, "unfiltered", "--replace")
    path = checkpoints.carry(nodes.a, nodes.b, "unfiltered")

    def unfilter(core: Message) -> None:
        core.thread_core.seccomp_mode = 0  # type: ignore[attr-defined]
        core.thread_core.ClearField("seccomp_filter")  # type: ignore[attr-defined]

    checkpoints.forge(path / "confined/checkpoint", "core-1.img", unfilter)
    checkpoints.seal_anew(path)
    try:
        told = refused(nodes.b, confined_pod("target", restore_name="unfiltered"))
    finally:
        shutil.rmtree(path)
    assert "task 1 (" in told
    assert "seccomp" in told


def test_an_unforged_dump_of_a_confined_pod_is_restored(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, confined_pod("confined"))
    source.wait_for_log("confined", "ready\n")
    checkpoints.take(source, "sound", "--replace")
    checkpoints.carry(nodes.a, nodes.b, "sound")
    target = run_pod(nodes.b, confined_pod("target", restore_name="sound"))
    status = target.exec_sync(
        "confined", ["/bin/sh", "-c", "grep -E 'Uid|NoNew|Seccomp:' /proc/1/status"]
    )
    assert b"1000\t1000\t1000\t1000" in status.stdout
    assert b"NoNewPrivs:\t1" in status.stdout
    assert b"Seccomp:\t2" in status.stdout


def confined_pod(name: str, **annotations: str) -> PodSpec:
    container = ContainerSpec(
        name="confined",
        image=images.BUSYBOX,
        command=("/bin/sh", "-c", "echo ready; while true; do sleep 1; done"),
        security=Security(
            user=1000,
            group=1000,
            no_new_privs=True,
            drop_capabilities=("ALL",),
            seccomp=cri_pb2.SecurityProfile.RuntimeDefault,
        ),
    )
    return PodSpec(name=name, containers=(container,), annotations=restoring(**annotations))


# What fails half way

# The head of the note that has a program's build ID: lengths of name and value, type, name.
BUILD_ID_NOTE = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"


@pytest.mark.usefixtures("carried")
def test_criu_failing_half_way_is_told_in_its_own_words(nodes: Nodes) -> None:
    program = nodes.b.program_of_image()
    place = program.read_bytes().index(BUILD_ID_NOTE) + len(BUILD_ID_NOTE)
    flip_a_bit(program, place)
    try:
        reason = refused(nodes.b, target_pod(restore_name="carried"))
    finally:
        flip_a_bit(program, place)
    assert f"File usr/bin/{program.name} has bad build-ID" in reason
    assert "see /var/log/grit/default/target/counter/restore.log" in reason


@contextmanager
def small_disk(node: Node, size_mib: int) -> Iterator[None]:
    """Checkpoints go to a filesystem of this size."""
    options = f"size={size_mib}m,mode=0700"
    node.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "/mnt/grit-agent"])
    try:
        yield
        assert checkpoints.left_by_checkpoints(node) == []
    finally:
        node.run(["umount", "/mnt/grit-agent"])


# Deleted and open: nobody sees its size before CRIU does.
HOLD_DELETED_FILE = """
{
    exec 3>/tmp/held
    rm /tmp/held
    head -c 20000000 /dev/urandom >&3
    touch /tmp/ready
    exec sleep 99
} >/dev/null 2>&1 &
echo $! >/tmp/pid
until [ -e /tmp/ready ]; do sleep 0.05; done
"""


def test_a_full_disk_leaves_the_source_running(nodes: Nodes, counter: Pod) -> None:
    counter.exec_sync("counter", ["/bin/sh", "-c", HOLD_DELETED_FILE])
    try:
        with small_disk(nodes.a, 16):
            failed = checkpoints.take(counter, "full", check=False)
    finally:
        counter.exec_sync("counter", ["/bin/sh", "-c", "kill $(cat /tmp/pid)"])
    assert failed.returncode == 1
    reason = failed.stderr.splitlines()[-1]
    assert reason.startswith("grit: container counter: dump failed: ")
    assert "no space left on the filesystem of /mnt/grit-agent" in reason
    assert_counts_on(counter)


def test_a_rw_layer_that_the_disk_cannot_take_is_refused_before_the_freeze(
    nodes: Nodes, counter: Pod
) -> None:
    counter.exec_sync("counter", ["/bin/sh", "-c", "head -c 20000000 /dev/zero >/tmp/large"])
    with small_disk(nodes.a, 16):
        failed = checkpoints.take(counter, "full", check=False)
    assert_refused_for_room(failed, 16)
    assert_counts_on(counter)


def test_memory_that_the_disk_cannot_take_is_refused_before_the_freeze(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("large", ballast_mib=20))
    workload.wait_for_count(pod, 3)
    with small_disk(nodes.a, 16):
        failed = checkpoints.take(pod, "full", check=False)
    assert_refused_for_room(failed, 16)
    workload.assert_goes_on_from(pod, 3, node=nodes.a)


def assert_refused_for_room(failed: subprocess.CompletedProcess[str], free_mib: int) -> None:
    words = f"bytes to write and {free_mib << 20} free on the filesystem of /mnt/grit-agent/"
    assert words in failed.stderr
    assert "msg=freeze" not in failed.stderr


def test_a_dump_that_criu_refuses_leaves_the_source_running(nodes: Nodes, run_pod: RunPod) -> None:
    container = ContainerSpec(
        name="talker", image=images.PYTHON, command=("/usr/bin/python3", "-c", workload.UNDUMPABLE)
    )
    pod = run_pod(nodes.a, PodSpec(name="talker", containers=(container,)))
    pod.wait_for_log("talker", "ready\n")
    failed = checkpoints.take(pod, "talker", check=False)
    assert failed.returncode == 1
    assert "container talker: dump failed: criu/pipes.c:" in failed.stderr
    assert "see /var/log/grit/default/talker/talker/dump.log" in failed.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    lines = len(pod.logs("talker").splitlines())
    pod.wait_for_log("talker", "alive\n" * (lines + 3))


# Who is killed

CRIU_HELD = """\
#!/bin/sh
[ "$1" = swrk ] && read line </run/hold-criu
exec {criu} "$@"
"""


@contextmanager
def criu_held(node: Host) -> Iterator[Callable[[], None]]:
    """While this lasts, runc's criu waits for the call of what is yielded before it does anything.

    The criu that was first on PATH comes back afterwards.
    """
    first = node.path(Path("/usr/local/sbin/criu"))
    kept = first.with_name("criu.kept")
    first.rename(kept)
    first.write_text(CRIU_HELD.format(criu="/usr/local/sbin/criu.kept"))
    first.chmod(0o755)
    node.run(["mkfifo", "/run/hold-criu"])

    def release() -> None:
        node.run(["sh", "-c", "echo go >/run/hold-criu"])

    try:
        yield release
    finally:
        kept.rename(first)
        node.path(Path("/run/hold-criu")).unlink()


def wait_for_held_criu(node: Host) -> int:
    """The pid, on the node, of the criu that is held."""
    wait = "until pgrep -f '^/bin/sh /usr/local/sbin/criu swrk'; do sleep 0.02; done"
    return int(node.run(["sh", "-c", wait]).stdout.split()[0])


@pytest.mark.usefixtures("carried")
def test_a_wrapper_killed_in_create_is_swept_by_the_next_create(nodes: Nodes) -> None:
    with kubelet.sandbox(nodes.b, target_pod(restore_name="carried")) as pod:
        kill_the_wrapper_in_create(pod)
        pod.restart("counter")
        workload.assert_goes_on_from(pod, 5, node=nodes.b)
        attempts = nodes.b.path(Path("/run/grit/pods") / pod.sandbox_id).glob("*")
        assert [path.name for path in attempts] == [pod.container_ids["counter"]]


@pytest.mark.usefixtures("carried")
def test_a_wrapper_killed_in_create_is_swept_by_the_sandboxs_delete(nodes: Nodes) -> None:
    with kubelet.sandbox(nodes.b, target_pod(restore_name="carried")) as pod:
        kill_the_wrapper_in_create(pod)
        pod.stop(grace_period_s=1)
        assert checkpoints.left_by_restores(pod) == []
        pod.remove()


def kill_the_wrapper_in_create(pod: Pod) -> None:
    pod.create("counter")
    with criu_held(pod.node):
        start = start_without_waiting(pod)
        wait_for_held_criu(pod.node)
        wrapper = f"grit-runtime.* create .*{pod.container_ids['counter']}"
        pod.node.run(["pkill", "-KILL", "-f", wrapper])
        with pytest.raises(grpc.RpcError):
            start.result()


def start_without_waiting(pod: Pod) -> grpc.Future[cri_pb2.StartContainerResponse]:
    """StartContainer under way."""
    channel = grpc.insecure_channel(f"unix://{pod.node.root}/run/containerd/containerd.sock")
    call = channel.unary_unary(
        "/runtime.v1.RuntimeService/StartContainer",
        request_serializer=cri_pb2.StartContainerRequest.SerializeToString,
        response_deserializer=cri_pb2.StartContainerResponse.FromString,
    )
    request = cri_pb2.StartContainerRequest(container_id=pod.container_ids["counter"])
    return call.future(request, timeout=30)


@pytest.mark.usefixtures("carried")
def test_a_start_whose_deadline_expires_is_swept_by_the_next_create(nodes: Nodes) -> None:
    with kubelet.sandbox(nodes.b, target_pod(restore_name="carried")) as pod:
        pod.create("counter")
        with criu_held(nodes.b), pytest.raises(CriError) as caught:
            pod.start("counter", timeout_s=2)
        assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        pod.wait_exited("counter")
        pod.restart("counter")
        workload.assert_goes_on_from(pod, 5, node=nodes.b)
        (record,) = [r for r in checkpoints.records(nodes.b) if r["pod_uid"] == pod.spec.uid]
        assert record["container_id"] == pod.container_ids["counter"]


@pytest.mark.usefixtures("carried")
def test_records_that_cannot_be_read_end_a_restore_which_leaves_nothing(nodes: Nodes) -> None:
    asked = target_pod(restore_name="carried", on_failure="cold-start")
    with kubelet.sandbox(nodes.b, asked) as pod:
        record = nodes.b.path(Path(records.DIR)) / f"{pod.spec.uid}.json"
        record.parent.mkdir(exist_ok=True)
        record.write_text('[{"time": ')
        with pytest.raises(CriError, match=r"records/.*\.json: not JSON.*remove the file"):
            pod.run_containers()
        assert checkpoints.left_by_restores(pod) == []
        record.unlink()
        pod.restart("counter")
        workload.assert_goes_on_from(pod, 5, node=nodes.b)


@pytest.mark.parametrize("step", ["freeze", "dump", "rw layer", "thaw", "paused", "digest"])
def test_a_checkpoint_killed_after_a_step_leaves_the_source_running(
    nodes: Nodes, counter: Pod, step: str
) -> None:
    with engine(counter, "killed") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if f"msg={step} " in line or f'msg="{step}"' in line:
                break
        else:
            pytest.fail(f"the engine ended without the step {step}")
        kill(nodes.a, process)
    wait_until_undone(nodes.a, counter)
    assert_counts_on(counter)


def test_a_checkpoint_killed_in_the_middle_of_a_dump_leaves_the_source_running(
    nodes: Nodes, counter: Pod
) -> None:
    with criu_held(nodes.a) as release, engine(counter, "killed") as process:
        wait_for_held_criu(nodes.a)
        kill(nodes.a, process)
        process.wait()
        release()
        wait_until_undone(nodes.a, counter)
    assert_counts_on(counter)


def test_a_checkpoint_that_is_asked_to_stop_undoes_itself(nodes: Nodes, counter: Pod) -> None:
    with criu_held(nodes.a) as release, engine(counter, "stopped") as process:
        wait_for_held_criu(nodes.a)
        kill(nodes.a, process, signal.SIGTERM)
        release()
        assert process.wait() == 128 + signal.SIGTERM
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    assert_counts_on(counter)


def test_when_the_supervisor_dies_too_the_next_command_recovers(nodes: Nodes, counter: Pod) -> None:
    with criu_held(nodes.a) as release, engine(counter, "killed") as process:
        wait_for_held_criu(nodes.a)
        nodes.a.run(["pkill", "-KILL", "-f", "recover --wait"])
        kill(nodes.a, process)
        process.wait()
        release()
    recovered = nodes.a.run(["grit", "recover"])
    assert counter.sandbox_id in recovered.stdout
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    assert_counts_on(counter)


def criu_at_work(node: Node) -> int:
    """The pid here of a CRIU that dumps on the node, once it has written its title."""
    while True:
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                title = (path / "cmdline").read_bytes()
                if title.startswith(b"criu: dump") and node.id in (path / "cgroup").read_text():
                    return int(path.name)


def test_an_undo_waits_until_criu_lets_go(nodes: Nodes, run_pod: RunPod) -> None:
    """CRIU would freeze the pod again, as it found it, after the undo had thawed it."""
    pod = run_pod(nodes.a, workload.counter_pod("let-go", ballast_mib=400))
    workload.wait_for_count(pod, 5)
    with engine(pod, "let-go") as process:
        criu = criu_at_work(nodes.a)
        os.kill(criu, signal.SIGSTOP)
        kill(nodes.a, process)
        process.wait()
    with nodes.a.popen(["grit", "recover", "--wait", checkpoints.journal(pod)]) as undoing:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                undoing.wait(3)
        finally:
            os.kill(criu, signal.SIGCONT)
    wait_until_undone(nodes.a, pod)
    assert_counts_on(pod)


@contextmanager
def engine(pod: Pod, name: str) -> Iterator[subprocess.Popen[str]]:
    """`grit checkpoint` of *pod*, under way."""
    argv = ["grit", "checkpoint", f"default/{pod.spec.name}", "--name", name, "--replace"]
    process = pod.node.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        yield process


def kill(node: Node, process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Signal the engine itself, which is the child of the process that entered the node."""
    os.kill(node.command_pid(process), number)


def wait_until_undone(node: Node, pod: Pod) -> None:
    node.run(["sh", "-c", f"while [ -e {checkpoints.journal(pod)} ]; do sleep 0.02; done"])
    assert checkpoints.left_by_checkpoints(node) == []


def assert_counts_on(pod: Pod) -> None:
    count = len(pod.logs("counter").split())
    workload.wait_for_count(pod, count + 5)
    assert (
        json.loads(
            pod.node.run(
                [
                    "runc",
                    "--root",
                    "/run/containerd/runc/k8s.io",
                    "state",
                    pod.container_ids["counter"],
                ]
            ).stdout
        )["status"]
        == "running"
    )


def test_what_became_of_a_checkpoint_is_remembered(nodes: Nodes, counter: Pod) -> None:
    checkpoints.take(counter, "kept", "--replace")
    assert "exists; choose another name" in checkpoints.take(counter, "kept", check=False).stderr
    with engine(counter, "killed") as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "msg=freeze" in line)
        kill(nodes.a, process)
    wait_until_undone(nodes.a, counter)
    nodes.a.run(["sh", "-c", f"until grit status {counter.spec.uid} | grep killed; do :; done"])
    shown = nodes.a.run(["grit", "status", counter.spec.uid]).stdout.splitlines()
    assert [line.partition(" ")[2].split(": ", 1)[0] for line in shown] == [
        "default/source checkpoint sealed",
        "default/source checkpoint failed",
        "default/source checkpoint failed",
    ]
    assert "/mnt/grit-agent/default/kept exists" in shown[1]
    assert shown[2].endswith("the engine was killed (Interrupted)")
