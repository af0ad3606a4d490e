"""A CUDA program for pods, in Python through ctypes: it counts in device memory.

Each process fills its memory on a card from a seed. Twenty times a second it reads all of it back,
counts one up in its first bytes, and prints "PROCESS COUNT DIGEST", the digest being that of the
rest. A count that goes on and a digest that stays say that the very bytes came back. In between it
waits in a call of the driver's, as a program does for its kernels. A child that it forks, if it is
asked to, counts along.
"""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

from integration.fakes import fake_gpu
from integration.node import images
from integration.pods.pod_spec import ContainerSpec, PodSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from integration.fakes.fake_gpu import Card
    from integration.pods.kubelet import Pod

CONTAINER = "cuda"
COUNT_BYTES = 8
SIZE_BYTES = 3 << 20

# Arguments: bytes, the number of this process, how many more to start. A library that $MAPPED names
# is mapped, whatever it is. $WAITS are in the driver, $FORKS has a child count along.
PROGRAM = """
import ctypes, hashlib, mmap, os, random, subprocess, sys, time, warnings
if "MAPPED" in os.environ:
    with open(os.environ["MAPPED"], "ab+") as library:
        library.truncate(mmap.PAGESIZE)
        mapped = mmap.mmap(library.fileno(), 0)
size, number, more = map(int, sys.argv[1:])
if more:
    more_argv = [str(size), str(number + 1), str(more - 1)]
    child = subprocess.Popen([*sys.orig_argv[:-3], *more_argv])
cuda, differs = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL(None).memcmp
def digest_of(data):
    return hashlib.sha256(memoryview(data)[8:]).hexdigest()
def call(name, *arguments):
    code = cuda[name](*arguments)
    if code:
        sys.exit(f"{number} {name}: {code}")
devices, context = ctypes.c_int(), ctypes.c_void_p()
memory, buffer = ctypes.c_uint64(), ctypes.create_string_buffer(size)
call("cuInit", 0)
call("cuDeviceGetCount", ctypes.byref(devices))
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number % devices.value)
call("cuCtxSetCurrent", context)
call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(size))
if "FORKS" in os.environ:
    warnings.simplefilter("ignore")  # a fork of many threads is what is meant
    read_fd, to_child = os.pipe()
    from_child, write_fd = os.pipe()
    if os.fork() == 0:
        os.close(to_child)
        told = 0
        for line in open(read_fd):
            told += 1
            assert int(line) == told, (line, told)
            os.write(write_fd, f"{told}\\n".encode())
        os._exit(0)
    heard = open(from_child)
content = bytes(8) + random.Random(number).randbytes(size - 8)
own, own_digest = ctypes.create_string_buffer(content, size), digest_of(content)
call("cuMemcpyHtoD_v2", memory, content, ctypes.c_size_t(size))
del content
while True:
    call("cuMemcpyDtoH_v2", buffer, memory, ctypes.c_size_t(size))
    count = int.from_bytes(buffer[:8], "little") + 1
    call("cuMemcpyHtoD_v2", memory, count.to_bytes(8, "little"), ctypes.c_size_t(8))
    at_8 = ctypes.byref(buffer, 8), ctypes.byref(own, 8), ctypes.c_size_t(size - 8)
    digest = digest_of(buffer) if differs(*at_8) else own_digest
    sys.stdout.write(f"{number} {count} {digest}\\n")
    sys.stdout.flush()
    if "FORKS" in os.environ:
        os.write(to_child, f"{count}\\n".encode())
        assert int(heard.readline()) == count
    if "WAITS" in os.environ:
        call("cuCtxSynchronize")
    else:
        time.sleep(0.05)
"""


class Reading(NamedTuple):
    """One line that a process has printed."""

    process: int
    counted: int
    digest: str


def command(*, processes: int = 1, size_bytes: int = SIZE_BYTES) -> tuple[str, ...]:
    """How the program is run."""
    return ("/usr/bin/python3", "-c", PROGRAM, str(size_bytes), "0", str(processes - 1))


def pod(
    name: str,
    cards: Sequence[Card],
    *,
    processes: int = 1,
    size_bytes: int = SIZE_BYTES,
    env: tuple[tuple[str, str], ...] = (),
    annotations: tuple[tuple[str, str], ...] = (),
) -> PodSpec:
    """A pod of one container that has *cards* and counts on them."""
    container = ContainerSpec(
        name=CONTAINER,
        image=images.PYTHON,
        command=command(processes=processes, size_bytes=size_bytes),
        env=(*env, ("WAITS", "1")),
        mounts=fake_gpu.MOUNTS,
        devices=fake_gpu.device_paths(cards),
    )
    return PodSpec(
        name=name,
        containers=(container,),
        annotations=annotations,
        volumes=fake_gpu.VOLUMES,
    )


def readings(log: str) -> list[Reading]:
    """What all processes have printed, in order."""
    fields = [line.split() for line in log.splitlines()]
    return [Reading(int(process), int(count), digest) for process, count, digest in fields]


def counts(pod: Pod, *, processes: int) -> list[int]:
    """How far each process has counted; 0 is not at all."""
    seen = readings(pod.logs(CONTAINER))
    return [
        max((one.counted for one in seen if one.process == number), default=0)
        for number in range(processes)
    ]


def wait_for_counts(pod: Pod, count: int, *, processes: int = 1) -> None:
    """Wait until each process has counted to *count*."""
    for number in range(processes):
        pod.wait_for_log(CONTAINER, f"\n{number} {count} ")


def assert_goes_on(pod: Pod, *, processes: int = 1, size_bytes: int = SIZE_BYTES) -> None:
    """Each process still counts, has left no number out, and has had its own bytes all along."""
    so_far = counts(pod, processes=processes)
    for number, count in enumerate(so_far):
        pod.wait_for_log(CONTAINER, f"\n{number} {count + 5} ")
    seen = readings(pod.logs(CONTAINER))
    for number in range(processes):
        own = [one for one in seen if one.process == number]
        assert [one.counted for one in own] == list(range(1, len(own) + 1))
        assert {one.digest for one in own} == {expected_digest(number, size_bytes)}


def expected_digest(process: int, size_bytes: int = SIZE_BYTES) -> str:
    """The digest that a process prints as long as its memory is what it was."""
    content = random.Random(process).randbytes(size_bytes - COUNT_BYTES)  # noqa: S311 -- a pattern
    return hashlib.sha256(content).hexdigest()
