"""kubelet itself, on a throwaway node."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

from integration.node import volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.control_plane import ControlPlane
    from integration.node.node import Node

_PROGRAMS = Path("/opt/kubernetes")
_DIRECTORY = Path("/etc/kubernetes")
_LABEL = "grit.dev/runtime=true"

# What kubelet wants of the kernel (Kubernetes 1.20, pkg/util/sysctl). These are the whole
# machine's, so it finds them in files that lie over them, and may not set them.
_SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
_COVER = """
mkdir /run/sysctl
while read -r name value; do
    file=/run/sysctl/$(basename "$name")
    echo "$value" >"$file"
    mount --bind "$file" "/proc/sys/$name"
done
"""

_CONFIGURATION = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": str(_DIRECTORY / "ca.crt")},
    },
    "authorization": {"mode": "Webhook"},
    "cgroupDriver": "cgroupfs",
    "clusterDNS": ["10.96.0.10"],
    "clusterDomain": "cluster.local",
    "failSwapOn": False,
    "makeIPTablesUtilChains": False,
    "protectKernelDefaults": True,
    # Lower takes CAP_SYS_RESOURCE, more takes a limit of open files that a machine may not have.
    "oomScoreAdj": 0,
    "maxOpenFiles": 20_000,
    # Without a pod CIDR of its own a node is told ready only at this pace.
    "nodeStatusUpdateFrequency": "1s",
    # No image can be pulled again, and the disk is this machine's.
    "imageGCHighThresholdPercent": 100,
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
}


@contextmanager
def running(node: Node, plane: ControlPlane) -> Iterator[None]:
    """While the block runs, *node* is a node of the cluster of *plane*, by its name."""
    _prepare(node, plane)
    argv = [
        *("env", "AWS_EC2_METADATA_DISABLED=true"),  # which it would wait for
        str(_PROGRAMS / "kubelet"),
        f"--config={_DIRECTORY}/kubelet.yaml",
        f"--kubeconfig={_DIRECTORY}/kubeconfig",
        "--container-runtime=remote",
        "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
        f"--node-ip={node.connection.address}",
        f"--node-labels={_LABEL}",
    ]
    with (
        node.path(Path("/var/log/kubelet.log")).open("w") as log,
        node.popen(argv, stdout=log, stderr=log) as process,
    ):
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _prepare(node: Node, plane: ControlPlane) -> None:
    volume.mount(plane.programs, node, _PROGRAMS)
    directory = node.path(_DIRECTORY)
    directory.mkdir()
    (directory / "kubelet.yaml").write_text(json.dumps(_CONFIGURATION))
    (directory / "ca.crt").write_text(plane.authority.certificate)
    kubeconfig = plane.kubeconfig_text(f"system:node:{node.name}", ("system:nodes",))
    (directory / "kubeconfig").write_text(kubeconfig)
    node.path(Path("/etc/resolv.conf")).write_text("")
    node.path(Path("/dev/kmsg")).symlink_to("null")  # kubelet does not start without one
    settings = "".join(f"{name} {value}\n" for name, value in _SYSCTLS.items())
    node.run(["sh", "-euc", _COVER], input=settings)
