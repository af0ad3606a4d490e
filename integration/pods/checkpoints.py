"""Checkpoints as the tests handle them: taken, carried to another node, damaged, sealed anew."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

from grit_runtime.files import checkpoint_dir
from grit_runtime.host import procfs
from grit_runtime.model import manifest as manifests
from grit_runtime.wire import criu_image
from integration.pods import kubelet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from subprocess import CompletedProcess, Popen

    from google.protobuf.message import Message

    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.pods.pod_host import Host

ROOT = Path("/mnt/grit-agent")


def take(pod: Pod, name: str, *options: str, check: bool = True) -> CompletedProcess[str]:
    """`grit checkpoint` of *pod*, on its node."""
    target = f"{pod.spec.namespace}/{pod.spec.name}"
    return pod.node.run(["grit", "checkpoint", target, "--name", name, *options], check=check)


@contextmanager
def taking(pod: Pod, name: str, *options: str) -> Iterator[Popen[str]]:
    """`grit checkpoint` of *pod* under way."""
    argv = ["grit", "checkpoint", f"{pod.spec.namespace}/{pod.spec.name}", "--name", name]
    with pod.node.popen([*argv, *options]) as taken:
        yield taken


def started(taken: Popen[str]) -> int:
    """The pid of the command, once there is one."""
    while not (children := procfs.children(taken.pid)):
        assert taken.poll() is None
        time.sleep(kubelet.POLL_S / 10)
    return children[0]


def wait_until_memory_is_taken(pod: Pod, taken: Popen[str]) -> None:
    """Wait until grit has saved memory of processes, and is about to empty it."""
    path = pod.node.path(Path(journal(pod)))
    while not path.exists() or '"memory"' not in path.read_text():
        assert taken.poll() is None
        time.sleep(kubelet.POLL_S / 10)


def journal(pod: Pod) -> str:
    """The path of the journal of a checkpoint of *pod*, on its node."""
    return f"/run/grit/pods/{pod.sandbox_id}/checkpoint.journal"


def directory(node: Node, name: str, *, namespace: str = "default") -> Path:
    """The checkpoint's directory on *node*, as this machine finds it."""
    return node.path(ROOT / namespace / name)


def carry(source: Node, target: Node, name: str, *, namespace: str = "default") -> Path:
    """Copy a checkpoint to another node, as an agent would; its directory there."""
    there = directory(target, name, namespace=namespace)
    there.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copytree(directory(source, name, namespace=namespace), there)
    return there


def read(path: Path) -> manifests.Manifest:
    """The manifest of the checkpoint in *path*."""
    return manifests.parse((path / manifests.FILE_NAME).read_bytes())


def seal_anew(path: Path) -> None:
    """Make the manifest fit the files again, as somebody who forges a checkpoint would."""
    files = checkpoint_dir.contents(str(path))
    files = tuple(file for file in files if file.path != manifests.FILE_NAME)
    manifest = read(path)._replace(files=files)
    (path / manifests.FILE_NAME).write_bytes(manifests.dump(manifest))


def forge(images_dir: Path, name: str, change: Callable[[Message], object]) -> None:
    """Let *change* edit the first entry of an image."""
    path = images_dir / name
    image = criu_image.parse(path.read_bytes(), name=name)
    entry = criu_image.entries(image, criu_image.kind_of(name).message)[0]
    change(entry)
    path.write_bytes(criu_image.serialize(criu_image.with_entry(image, 0, entry)))


def records(node: Node) -> list[dict[str, object]]:
    """What the node remembers of the restores that succeeded on it."""
    shown = json.loads(node.run(["grit", "status", "--json"]).stdout)
    return [record for record in shown if record["outcome"] == "restored"]


def outcomes(pod: Pod) -> list[dict[str, object]]:
    """What the node remembers of *pod*, oldest first."""
    argv = ["grit", "status", "--json", pod.spec.uid]
    shown: list[dict[str, object]] = json.loads(pod.node.run(argv).stdout)
    return shown


def left_by_checkpoints(node: Host) -> list[str]:
    """Journals, staging directories and dump directories that should not be there."""
    staging = node.path(ROOT).glob("*/.*")
    pods = node.path(Path("/run/grit/pods"))
    return [
        str(path) for path in (*staging, *pods.glob("*/checkpoint.journal"), *pods.glob("*/dump"))
    ]


def left_by_restores(pod: Pod) -> list[str]:
    """Whatever an attempt to restore a container of *pod* has left on its node."""
    node = pod.node
    attempts = node.path(Path("/run/grit/pods") / pod.sandbox_id).glob("*")
    mounts = node.run(["cat", "/proc/self/mounts"]).stdout.splitlines()
    criu = node.run(["pgrep", "-a", "criu"], check=False).stdout.splitlines()
    cgroups = node.path(Path("/sys/fs/cgroup/freezer/kubepods")).rglob("cgroup.procs")
    container_ids = set(pod.container_ids.values())
    living = [
        str(path)
        for path in cgroups
        if path.parent.name in container_ids and path.read_text().strip()
    ]
    return [
        *map(str, attempts),
        *(line for line in mounts if "/run/grit" in line),
        *criu,
        *living,
    ]
