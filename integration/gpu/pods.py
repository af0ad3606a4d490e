"""Pods whose container runs this machine's own PyTorch, from read-only mounts of its trees."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from integration.gpu import driver
from integration.node import images, rootfs
from integration.pods.pod_spec import (
    ContainerSpec,
    EmptyDir,
    HostPath,
    PodSpec,
    Security,
    VolumeMount,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from integration.gpu.machine import Machine

CONTAINER = "main"
CHECKOUT = "/grit"
WORKLOADS = "integration.gpu.workloads"
MERGED = ("lib", "lib64")  # of /usr, which the image does not have at the top as well
FILES = ("/etc/alternatives", "/etc/ld.so.cache")

ASK_PYTHON = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix]))"
USE_CARD = "import torch; torch.ones(1, device='cuda')"
CONTROL_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")

# NVLink multicast can take the cards of a shared machine out of service.
NO_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with this
    "HOME": "/root",
    "PATH": "/usr/bin:/bin",
    "PYTHONPATH": CHECKOUT,
    "PYTHONDONTWRITEBYTECODE": "1",
    **NO_MULTICAST,
}


class Machinery(NamedTuple):
    """What of the machine a container gets: an interpreter, mounts, and the way to compute."""

    python: str
    trees: tuple[HostPath, ...]
    mounts: tuple[VolumeMount, ...]
    environment: dict[str, str]

    @property
    def on_gpu(self) -> bool:
        """Whether workloads compute on a card, not on its stand-in."""
        return "GRIT_DEVICE" not in self.environment


def machinery(machine: Machine, *, on_gpu: bool) -> Machinery:
    """Make views of the machine's trees for containers to mount."""
    python = os.environ["GRIT_TORCH_PYTHON"]
    asked = subprocess.run([python, "-c", ASK_PYTHON], stdout=subprocess.PIPE, check=True)
    prefixes = [Path(path) for path in json.loads(asked.stdout)]
    library_dir = driver.library_dir() if on_gpu else None
    if on_gpu and not all(Path(node).exists() for node in CONTROL_NODES[:2]):
        subprocess.run([python, "-c", USE_CARD], check=True)  # its library makes the nodes
    wanted = [Path("/usr"), *prefixes, *([library_dir] if library_dir else [])]
    trees = _with_mounts_below(wanted)
    places = {str(path): path for path in trees}
    places |= {f"/{name}": Path("/usr", name) for name in MERGED if Path("/usr", name).exists()}
    views = {place: machine.view(path) for place, path in places.items()}
    views |= {path: Path(path) for path in FILES if Path(path).exists()}
    views[f"{CHECKOUT}/integration"] = rootfs.REPO / "integration"
    environment = dict(ENVIRONMENT)
    if library_dir:
        environment["LD_LIBRARY_PATH"] = str(library_dir)
    if not on_gpu:
        environment["GRIT_DEVICE"] = "cpu"
    names = {place: place.strip("/").replace("/", "-").replace(".", "-") for place in views}
    return Machinery(
        python,
        tuple(HostPath(names[place], str(view)) for place, view in views.items()),
        tuple(VolumeMount(names[place], place, readonly=True) for place in views),
        environment,
    )


def cards() -> list[str]:
    """The device nodes of all cards."""
    return sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))


def shell_pod(name: str, script: str, *, annotations: tuple[tuple[str, str], ...] = ()) -> PodSpec:
    """A pod that runs a script, with nothing of the machine in it."""
    container = ContainerSpec(
        name=CONTAINER, image=images.BUSYBOX, command=("/bin/sh", "-c", script)
    )
    return PodSpec(name=name, containers=(container,), annotations=annotations, host_network=True)


def python_pod(
    name: str,
    arguments: Sequence[str],
    machinery: Machinery,
    *,
    devices: Sequence[str],
    env: tuple[tuple[str, str], ...] = (),
    annotations: tuple[tuple[str, str], ...] = (),
    mknod: bool = False,
) -> PodSpec:
    """A pod that runs the machine's Python on the cards *devices*.

    Without CAP_MKNOD unless asked: the driver's library makes the nodes of all other cards if it
    can.
    """
    nodes = [*devices, *(path for path in CONTROL_NODES if Path(path).exists())]
    container = ContainerSpec(
        name=CONTAINER,
        image=images.BUSYBOX,
        command=(machinery.python, *arguments),
        env=tuple({**machinery.environment, **dict(env)}.items()),
        mounts=machinery.mounts,
        devices=tuple(nodes) if machinery.on_gpu else (),
        security=Security(drop_capabilities=() if mknod else ("MKNOD",)),
    )
    return PodSpec(
        name=name,
        containers=(container,),
        annotations=annotations,
        volumes=machinery.trees,
        host_network=True,
    )


def with_large_shm(spec: PodSpec) -> PodSpec:
    """A memory volume of any size where the sandbox's 64 MiB would be."""
    (container,) = spec.containers
    mounts = (*container.mounts, VolumeMount("shm", "/dev/shm"))
    return dataclasses.replace(
        spec,
        volumes=(*spec.volumes, EmptyDir("shm", in_memory=True)),
        containers=(dataclasses.replace(container, mounts=mounts),),
    )


def _with_mounts_below(paths: Sequence[Path]) -> list[Path]:
    """The topmost of *paths*, and every other filesystem that is mounted below one of them.

    Apart, because a container's mount with another below it that is not in its spec cannot be
    dumped.
    """
    mounted = [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
    topmost = {
        path
        for path in paths
        if not any(path != other and path.is_relative_to(other) for other in paths)
    }
    below = {
        path for path in mounted if any(path != top and path.is_relative_to(top) for top in topmost)
    }
    return sorted(topmost | below)
