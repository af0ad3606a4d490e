"""One container whose Python program says what it has, before and after it was moved."""

from __future__ import annotations

from integration.node import images
from integration.pods.pod_spec import ContainerSpec, PodSpec, Resources, Security
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.pods.kubelet import Pod
    from integration.pods.pod_spec import EmptyDir, HostPath, VolumeMount
    from integration.tests.conftest import Nodes, RunPod

CONTAINER = "main"

# What the programs begin with: check() calls probe before and after the move, and compares.
PRELUDE = """
import ctypes, errno, fcntl, mmap, os, select, signal, socket, struct, subprocess, sys, threading
import time

libc = ctypes.CDLL(None, use_errno=True)

def wait():
    print("ready", flush=True)
    while not os.path.exists("/dev/shm/go"):
        time.sleep(0.05)

def end():
    print("end", flush=True)
    time.sleep(10000)

def tell(before, after):
    print("RESULT", "SAME" if before == after else f"DIFF before {before} after {after}")
    end()

def check(probe):
    before = probe()
    wait()
    try:
        after = probe()
    except BaseException as error:
        after = repr(error)
    tell(before, after)
"""

GO_ON = ("/bin/sh", "-c", "echo >/dev/shm/go")

Annotations = tuple[tuple[str, str], ...]


def command(code: str) -> tuple[str, ...]:
    """The command line of the program that runs *code* after the prelude."""
    return ("/usr/bin/python3", "-W", "ignore", "-c", PRELUDE + code)


def pod(
    name: str,
    code: str,
    annotations: Annotations = (),
    *,
    security: Security | None = None,
    resources: Resources | None = None,
    volumes: tuple[EmptyDir | HostPath, ...] = (),
    mounts: tuple[VolumeMount, ...] = (),
) -> PodSpec:
    """A pod of the one container, which runs *code* after the prelude."""
    container = ContainerSpec(
        name=CONTAINER,
        image=images.PYTHON,
        command=command(code),
        security=security or Security(),
        resources=resources or Resources(),
        mounts=mounts,
    )
    return PodSpec(name=name, containers=(container,), annotations=annotations, volumes=volumes)


def started(nodes: Nodes, run_pod: RunPod, spec: PodSpec) -> Pod:
    """The pod on node A, once its program waits to be moved."""
    source = run_pod(nodes.a, spec)
    source.wait_for_log(CONTAINER, "ready\n")
    return source


def go_on(target: Pod) -> str:
    """Let the program compare what it has now; all that it said."""
    target.exec_sync(CONTAINER, list(GO_ON))
    return target.wait_for_log(CONTAINER, "end\n")


def moved(nodes: Nodes, run_pod: RunPod, spec: PodSpec) -> str:
    """Move the pod from node A to node B; all that its program said in the end."""
    source = started(nodes, run_pod, spec)
    cases.move(nodes, source, spec.name)
    asking = (*spec.annotations, ("grit.dev/restore-name", spec.name))
    return go_on(run_pod(nodes.b, again(spec, asking)))


def again(spec: PodSpec, annotations: Annotations) -> PodSpec:
    """The pod as its controller would make it anew, with *annotations*."""
    return PodSpec(
        name=f"{spec.name}-b",
        containers=spec.containers,
        volumes=spec.volumes,
        annotations=annotations,
    )
