"""What the tests move: a process that counts, and what its count says afterwards."""

from __future__ import annotations

from typing import NamedTuple

from integration.node import images
from integration.pods.pod_spec import ContainerSpec, EmptyDir, PodSpec, VolumeMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.node import Node
    from integration.pods.kubelet import Pod

# Counts in memory, in a file that stays open, and in files of the rw layer, all in step.
COUNTER = """
import os, sys, time
ballast = os.urandom(int(sys.argv[1]) << 20)
os.makedirs("/var/tmp", exist_ok=True)
held = open("/var/tmp/held", "w+")
count = 0
while True:
    count += 1
    held.seek(0)
    held.write(str(count))
    held.flush()
    with open("/root-count.new", "w") as file:
        file.write(str(count))
    os.replace("/root-count.new", "/root-count")  # whoever reads it finds a number
    print(count, flush=True)
    time.sleep(0.05)
"""

# Counts too, as a script of shell_pod().
SHELL_COUNTER = "i=0; while :; do i=$((i + 1)); echo count $i; sleep 0.1; done"

# Has a child with more fifos than CRIU can keep, which it finds out when it dumps the child.
UNDUMPABLE = """
import os, signal, time
if os.fork() == 0:
    for number in range(1100):
        os.mkfifo(f"/tmp/fifo-{number}")
        os.open(f"/tmp/fifo-{number}", os.O_RDWR)
    open("/tmp/fifos", "w")
    signal.pause()
while not os.path.exists("/tmp/fifos"):
    time.sleep(0.01)
print("ready", flush=True)
while True:
    time.sleep(0.1)
    print("alive", flush=True)
"""


class Counts(NamedTuple):
    """How far the counter is, in each place where it counts."""

    logged: list[int]
    held: int
    rw_layer: int


def counter_pod(
    name: str,
    *,
    annotations: tuple[tuple[str, str], ...] = (),
    ballast_mib: int = 1,
    runtime_handler: str = "",
) -> PodSpec:
    """A pod of one container that counts; each call makes another pod (uid, volume names)."""
    container = ContainerSpec(
        name="counter",
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", COUNTER, str(ballast_mib)),
        mounts=(VolumeMount("scratch", "/scratch"),),
    )
    return PodSpec(
        name=name,
        containers=(container,),
        annotations=annotations,
        volumes=(EmptyDir("scratch"),),
        runtime_handler=runtime_handler,
    )


def shell_pod(name: str, script: str, *, handler: str = "") -> PodSpec:
    """A pod whose one container, "main", runs *script* and ends at once when told to."""
    command = ("sh", "-c", f"trap exit TERM; {script}")
    main = ContainerSpec(name="main", image=images.BUSYBOX, command=command)
    return PodSpec(name=name, containers=(main,), runtime_handler=handler)


def counts(pod: Pod) -> Counts:
    """The counts of a running counter; the files are read by an exec, as a person would."""
    files = pod.exec_sync("counter", ["/bin/sh", "-c", "cat /var/tmp/held; echo; cat /root-count"])
    held, rw_layer = files.stdout.split()
    return Counts([int(line) for line in pod.logs("counter").split()], int(held), int(rw_layer))


def wait_for_count(pod: Pod, count: int) -> None:
    """Wait until the counter has logged *count*."""
    pod.wait_for_log("counter", f"\n{count}\n")


def assert_goes_on_from(pod: Pod, count: int, *, node: Node) -> None:
    """The counter's log has every number once, before and after *count*, and it still counts."""
    wait_for_count(pod, count + 20)
    seen = counts(pod)
    assert seen.logged == list(range(1, len(seen.logged) + 1)), node.collect_logs()
    assert seen.held > count
    assert seen.rw_layer > count
