"""Checkpoints as other programs make them: CRIU's own command line, containerd's CRI, podman."""

from __future__ import annotations

import io
import json
import tarfile

from grit_runtime.proto import cri_pb2
from integration.pods import checkpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from integration.node.node import Node
    from integration.pods.kubelet import Pod

# What `grit checkpoint` and runc do not do: mounts are found by CRIU, which marks them, and the
# network has a name of the caller's choice.
DUMP = """
set -e
id=$1 directory=$2
shift 2
state=$(runc --root /run/containerd/runc/k8s.io state "$id")
pid=$(echo "$state" | sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p')
mkdir -p -m 700 "$directory/checkpoint"
criu dump --tree "$pid" --images-dir "$directory/checkpoint" --log-file ../dump.log -v4 \\
    --external 'mnt[]:sm' --ext-mount-map auto --enable-external-masters \\
    --manage-cgroups --file-locks "$@"
ctr --namespace k8s.io snapshots diff "$id" >"$directory/rootfs-diff.tar"
"""
EXTERNAL_NETWORK = '--external "net[$(stat -L -c %i /proc/$pid/ns/net)]:podNet"'


def dump_by_criu(pod: Pod, name: str, *options: str, leaves_network: bool = True) -> Path:
    """Dump the pod's first container into a directory in upstream GRIT's layout."""
    container = pod.spec.containers[0].name
    directory = checkpoints.ROOT / pod.spec.namespace / name
    script = DUMP.replace('"$@"', f'{EXTERNAL_NETWORK if leaves_network else ""} "$@"')
    arguments = [pod.container_ids[container], str(directory / container), *options]
    pod.node.run(["sh", "-c", script, "dump", *arguments])
    return pod.node.path(directory)


def checkpoint_by_cri(pod: Pod, path: Path) -> None:
    """Have containerd export the pod's first container as an archive at *path* on the node."""
    container = pod.spec.containers[0].name
    request = cri_pb2.CheckpointContainerRequest(
        container_id=pod.container_ids[container], location=str(path), timeout=60
    )
    pod.node.cri.call("CheckpointContainer", request, cri_pb2.CheckpointContainerResponse)


def pack_as_podman(container_dir: Path, archive: Path, *, deleted: Sequence[str]) -> None:
    """Pack a dump in the layout of `podman container checkpoint --export`, made by hand.

    That has no pod in its spec.dump, and a list of deleted files in place of whiteouts.
    """
    spec = {"ociVersion": "1.2.0", "annotations": {"io.container.manager": "libpod"}}
    config = {"id": "0" * 64, "name": "hopeful_lamport", "rootfsImageName": "localhost/python:1"}
    metadata = {"spec.dump": spec, "config.dump": config, "deleted.files": list(deleted)}
    with tarfile.open(archive, "w:gz") as tar:
        for name, value in metadata.items():
            _add(tar, name, json.dumps(value).encode())
        tar.add(container_dir / "checkpoint", "checkpoint")
        _add(tar, "rootfs-diff.tar", _without_whiteouts(container_dir / "rootfs-diff.tar"))


def pack(archive: Path, files: dict[str, bytes]) -> None:
    """Write a tar of *files*, whatever they are called."""
    with tarfile.open(archive, "w") as tar:
        for name, data in files.items():
            _add(tar, name, data)


def has_cri_checkpoints(node: Node) -> bool:
    """Whether the node's containerd can export a container (2.0 and later)."""
    return node.edition.containerd != "1.7"


def _without_whiteouts(layer: Path) -> bytes:
    kept = io.BytesIO()
    with tarfile.open(layer) as source, tarfile.open(fileobj=kept, mode="w") as target:
        for member in source:
            if "/.wh." not in f"/{member.name}":
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
    return kept.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
