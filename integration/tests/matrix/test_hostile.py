"""Checkpoints that somebody forged: refused with the reason, nothing outside the container touched.

Each field on its own is raised in tests/model; here are the ways in, with real programs.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from grit_runtime.proto import cri_pb2
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Image
from integration.node import images, rootfs
from integration.pods import checkpoints, kubelet
from integration.pods.pod_spec import ContainerSpec, PodSpec, Security
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

    from integration.node.node import Node
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

FORGED = "forged"
WORKLOAD = "echo ready; while true; do sleep 1; done"
CONFINED = Security(
    user=1000,
    group=1000,
    no_new_privs=True,
    drop_capabilities=("ALL",),
    seccomp=cri_pb2.SecurityProfile.RuntimeDefault,
)


def confined_pod(name: str, *, namespace: str = "default", **annotations: str) -> PodSpec:
    container = ContainerSpec(
        name="main", image=images.BUSYBOX, command=("/bin/sh", "-c", WORKLOAD), security=CONFINED
    )
    asked = tuple((f"grit.dev/{k.replace('_', '-')}", v) for k, v in annotations.items())
    return PodSpec(name=name, namespace=namespace, containers=(container,), annotations=asked)


@pytest.fixture(scope="module")
def sound(nodes: Nodes) -> Path:
    """A checkpoint of a confined pod, as it was taken; on node A."""
    with kubelet.running(nodes.a, confined_pod("source")) as source:
        source.wait_for_log("main", "ready\n")
        checkpoints.take(source, "sound")
    return checkpoints.directory(nodes.a, "sound")


@contextmanager
def forged(nodes: Nodes, sound: Path) -> Iterator[Path]:
    """A copy on node B to be changed, for the pod of `refusal`."""
    path = checkpoints.directory(nodes.b, FORGED)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copytree(sound, path)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def refusal(nodes: Nodes, path: Path) -> str:
    """Why the copy is refused once its manifest fits it again."""
    checkpoints.seal_anew(path)
    return cases.refusal(nodes, confined_pod("target", restore_name=FORGED))


def of_core(change: Callable[[criu.core_entry], object]) -> Callable[[Path], None]:
    return lambda path: checkpoints.forge(path / "main/checkpoint", "core-1.img", change)  # type: ignore[arg-type]


def set_cap_amb(core: criu.core_entry) -> None:
    core.thread_core.creds.cap_amb[0] |= 1 << 21


def set_groups(core: criu.core_entry) -> None:
    core.thread_core.creds.groups.append(0)


def run_in_real_time(core: criu.core_entry) -> None:
    """Under SCHED_RESET_ON_FORK, which CRIU keeps in the same number."""
    core.thread_core.sched_policy, core.thread_core.sched_prio = 0x40000000 | 1, 1


def mount_the_disk(path: Path) -> None:
    """In the place of the pod's tmpfs in /dev, the node's disk."""
    image_path = next((path / "main/checkpoint").glob("mountpoints-*.img"))
    image = criu_image.parse(image_path.read_bytes(), name=image_path.name)
    for index, entry in enumerate(criu_image.entries(image, criu.mnt_entry)):
        if entry.mountpoint == b"/dev":
            entry.fstype, entry.source, entry.fsname = 0, b"/dev/vda", b"ext4"
            image = criu_image.with_entry(image, index, entry)
    image_path.write_bytes(criu_image.serialize(image))


def add_ghost_of_the_disk(path: Path) -> None:
    ghost = criu.ghost_file_entry(uid=1000, gid=1000, mode=0o060666, rdev=0xFE00)
    add_image(path, "ghost-file-1.img", ghost)


def add_image(path: Path, name: str, entry: Message) -> None:
    image = Image(name, criu_image.kind_of(name).magics, (entry.SerializeToString(),))
    (path / "main/checkpoint" / name).write_bytes(criu_image.serialize(image))


def name_criu_socket(path: Path) -> None:
    names = ["", "", "", "pipe:[1]"]
    (path / "main/checkpoint/descriptors.json").write_text(json.dumps(names))


def open_a_file_above(path: Path) -> None:
    checkpoints.forge(
        path / "main/checkpoint",
        "files.img",
        lambda entry: setattr(entry.reg, "name", b"../../../../etc/shadow"),  # type: ignore[attr-defined]
    )


def open_a_file_through_crius_own(path: Path) -> None:
    def change(entry: Message) -> None:
        assert isinstance(entry, criu.file_entry)
        entry.reg.name = b"/dev/fd/1020/etc/shadow"

    checkpoints.forge(path / "main/checkpoint", "files.img", change)


def join_the_nodes_cgroup(path: Path) -> None:
    def change(entry: Message) -> None:
        assert isinstance(entry, criu.cgroup_entry)
        entry.sets[0].ctls[0].path = b"/"

    checkpoints.forge(path / "main/checkpoint", "cgroup.img", change)


@pytest.mark.case("a dump forged to hold more than the pod grants", cases.REFUSED)
@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        pytest.param(of_core(set_cap_amb), "cap_amb CAP_SYS_ADMIN", id="ambient"),
        pytest.param(of_core(set_groups), "groups [0]", id="groups"),
        pytest.param(of_core(run_in_real_time), "sched_policy SCHED_FIFO", id="real time"),
        pytest.param(mount_the_disk, "file system type 0 of the checkpoint's own", id="disk"),
        pytest.param(add_ghost_of_the_disk, "device node ghost-file-1.img: b 254:0", id="ghost"),
        pytest.param(name_criu_socket, "descriptors.json: expected a list of at most 3", id="fds"),
        pytest.param(open_a_file_above, "expected no '..' in it", id="upwards"),
        pytest.param(open_a_file_through_crius_own, "leads through the link /dev/fd", id="link"),
        pytest.param(join_the_nodes_cgroup, "expected one in the container's", id="cgroup"),
    ],
)
def test_a_dump_with_more_than_the_pod_grants_is_refused(
    nodes: Nodes, sound: Path, forge: Callable[[Path], None], reason: str
) -> None:
    with forged(nodes, sound) as path:
        forge(path)
        assert reason in refusal(nodes, path)


def layer(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.devmajor = kind, link, 254
    return info


@pytest.mark.case("a rw layer forged to reach out of the container", cases.REFUSED)
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([layer("/etc/escaped")], "expected a path beneath the root"),
        ([layer("../../escaped")], "expected a path beneath the root"),
        ([layer("out", tarfile.SYMTYPE, "/run"), layer("out/escaped")], "'out' is a symbolic link"),
        ([layer("shadow", tarfile.LNKTYPE, "../../etc/shadow")], "beneath the root"),
        ([layer("disk", tarfile.BLKTYPE)], "is device b 254:0, which the pod's spec does not list"),
    ],
    ids=["absolute", "upwards", "through a link", "hard link", "device"],
)
def test_a_layer_that_reaches_out_is_refused(
    nodes: Nodes, sound: Path, members: list[tarfile.TarInfo], reason: str
) -> None:
    with forged(nodes, sound) as path:
        with tarfile.open(path / "main/rootfs-diff.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for member in members:
                tar.addfile(member, io.BytesIO())
        assert reason in refusal(nodes, path)
    for place in ("/etc/escaped", "/run/escaped", "/escaped"):
        assert not nodes.b.path(Path(place)).exists()


@pytest.mark.case("a spec.dump that asks for more: the pod's own spec counts", cases.RESTORED)
def test_the_spec_is_always_the_live_pods(nodes: Nodes, run_pod: RunPod, sound: Path) -> None:
    with forged(nodes, sound) as path:
        spec_path = path / "main/spec.dump"
        spec = json.loads(spec_path.read_text())
        spec["process"]["user"] = {"uid": 0, "gid": 0}
        spec["process"]["oomScoreAdj"] = -999
        spec["linux"]["namespaces"] = []
        spec_path.write_text(json.dumps(spec))
        forge = of_core(lambda core: setattr(core.tc, "oom_score_adj", -999))
        forge(path)
        checkpoints.seal_anew(path)
        target = run_pod(nodes.b, confined_pod("target", restore_name=FORGED))
        look = ["/bin/sh", "-c", "grep Uid /proc/1/status; cat /proc/1/oom_score_adj"]
        seen = target.exec_sync("main", look).stdout
    assert seen == b"Uid:\t1000\t1000\t1000\t1000\n1000\n"


@pytest.mark.case("a checkpoint of another namespace", cases.REFUSED)
def test_a_pod_reaches_its_own_namespace_alone(nodes: Nodes, sound: Path) -> None:
    with forged(nodes, sound) as path:
        for asked, reason in (
            ({"restore_name": FORGED}, "/mnt/grit-agent/other/forged does not exist"),
            ({"restore_name": f"../default/{FORGED}"}, "checkpoint name '../default/forged'"),
            ({"checkpoint": f"/mnt/grit-agent/default/{FORGED}"}, "is not beneath"),
            ({"checkpoint": f"/mnt/grit-agent/other/../default/{FORGED}"}, "is not beneath"),
        ):
            spec = confined_pod("target", namespace="other", **asked)
            assert reason in cases.refusal(nodes, spec)
        link = path.parent.with_name("other")
        link.symlink_to("default")
        try:
            spec = confined_pod("target", namespace="other", restore_name=FORGED)
            assert "'other' is a symbolic link" in cases.refusal(nodes, spec)
        finally:
            link.unlink()


@contextmanager
def configured(node: Node, **settings: str) -> Iterator[None]:
    """The node's configuration file with *settings*, which name keys; gone afterwards."""
    target = node.root / rootfs.site_packages(node.edition)
    rootfs.install(rootfs.part("signing"), target, python=node.edition.python)
    path = node.path(Path("/etc/grit/config.toml"))
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in settings.items()))
    try:
        yield
    finally:
        path.unlink()


def make_keys(nodes: Nodes) -> None:
    """A private key on node A, its public half on both."""
    private, public = (nodes.a.path(Path(f"/etc/{name}.pem")) for name in ("signer", "trusted"))
    openssl = ("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(private))
    subprocess.run(openssl, check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    shutil.copy(public, nodes.b.path(Path("/etc/trusted.pem")))


@pytest.mark.case("an unsigned or wrongly signed checkpoint, trusted_keys set", cases.REFUSED)
def test_only_what_a_trusted_key_signed_is_restored(
    nodes: Nodes, run_pod: RunPod, sound: Path
) -> None:
    make_keys(nodes)
    with configured(nodes.a, signing_key="/etc/signer.pem", trusted_keys="/etc/trusted.pem"):
        source = run_pod(nodes.a, confined_pod("signer"))
        source.wait_for_log("main", "ready\n")
        checkpoints.take(source, "signed")
        nodes.a.run(["grit", "verify", "/mnt/grit-agent/default/signed"])
        told = nodes.a.run(["grit", "verify", "/mnt/grit-agent/default/sound"], check=False)
        assert told.returncode == 1
        assert "sound is not signed" in told.stderr
    signed = checkpoints.carry(nodes.a, nodes.b, "signed")
    with configured(nodes.b, trusted_keys="/etc/trusted.pem"):
        run_pod(nodes.b, confined_pod("target", restore_name="signed"))
        with forged(nodes, sound) as path:
            assert "is not signed" in refusal(nodes, path)
        with forged(nodes, signed) as path:
            (path / "main/container.log").write_text("forged")
            assert "its signature is by none of the 1 keys" in refusal(nodes, path)


LISTEN = """
import socket, time
listening = socket.create_server(("192.0.2.1", 8080))
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.case("a host-network pod's socket on an address that the node lacks", cases.REFUSED)
def test_the_nodes_own_network_gets_no_address_of_a_dump(nodes: Nodes, run_pod: RunPod) -> None:
    container = ContainerSpec(
        name="main", image=images.PYTHON, command=("/usr/bin/python3", "-c", LISTEN)
    )
    nodes.a.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"])
    try:
        source = run_pod(
            nodes.a, PodSpec(name="source", containers=(container,), host_network=True)
        )
        source.wait_for_log("main", "ready\n")
        checkpoints.take(source, "bound")
    finally:
        nodes.a.run(["ip", "address", "del", "192.0.2.1/32", "dev", "lo"])
    checkpoints.carry(nodes.a, nodes.b, "bound")
    annotations = (("grit.dev/restore-name", "bound"),)
    spec = PodSpec(
        name="target", containers=(container,), host_network=True, annotations=annotations
    )
    assert "bound to 192.0.2.1, which this node has not" in cases.refusal(nodes, spec)
    assert "192.0.2.1" not in nodes.b.run(["ip", "address", "show", "dev", "lo"]).stdout
