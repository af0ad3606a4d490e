"""Memory that processes share, and the limit of the container that has them."""

from __future__ import annotations

import pytest

from integration.pods import checkpoints
from integration.pods.pod_spec import Resources
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.pods.pod_spec import PodSpec
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

# 60 MiB that four children have in common with their parent, but for 5 MiB that each writes.
FORKED = """
shared = mmap.mmap(-1, 60 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared.write(os.urandom(60 << 20))
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        shared[number << 20:(number + 5) << 20] = os.urandom(5 << 20)
        open(f"/forked-{number}", "w").close()
        time.sleep(10000)
    children.append(child)
while not all(os.path.exists(f"/forked-{number}") for number in range(4)):
    time.sleep(0.05)

def used_mib():
    rolled = [open(f"/proc/{pid}/smaps_rollup").read() for pid in [1, *children]]
    return sum(int(text.split("Pss:")[1].split()[0]) for text in rolled) >> 10

before = used_mib()
wait()
after = used_mib()
tell(True, after < before + 10)
"""


def forked(name: str, limit_mib: int) -> PodSpec:
    return single.pod(name, FORKED, resources=Resources(memory_bytes=limit_mib << 20))


@pytest.mark.case("forked processes that share most of their memory, under a limit", cases.RESTORED)
def test_memory_that_processes_share_is_counted_once(nodes: Nodes, run_pod: RunPod) -> None:
    assert "RESULT SAME" in single.moved(nodes, run_pod, forked("forked", 160))


@pytest.mark.case("a limit that is below what is shared and what is not", cases.REFUSED)
def test_a_limit_below_all_that_is_used_is_refused(nodes: Nodes, run_pod: RunPod) -> None:
    source = single.started(nodes, run_pod, forked("lower", 160))
    checkpoints.take(source, "lower")
    checkpoints.carry(nodes.a, nodes.b, "lower")
    spec = single.again(forked("lower", 70), (("grit.dev/restore-name", "lower"),))
    assert "but the container's memory limit is 73400320" in cases.refusal(nodes, spec)


RESERVED = """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
place = libc.mmap(None, 200 << 30, 0, 0x4022, -1, 0)
start = f"{place:x}"
check(lambda: [line.split()[:2] for line in open("/proc/self/maps") if line.startswith(start)])
"""

GUARDED = """
memory = mmap.mmap(-1, 8 << 12)
memory.write(b"x" * (8 << 12))
place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
guarded = libc.madvise(place + (4 << 12), 1 << 12, 102)

def touched(page):
    child = os.fork()
    if child == 0:
        ctypes.string_at(place + (page << 12), 1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

check(lambda: (guarded, touched(3), touched(4), touched(5)))
"""


@pytest.mark.case("a reservation of 200 GB (PROT_NONE)", cases.RESTORED)
def test_addresses_that_are_reserved_stay_so(nodes: Nodes, run_pod: RunPod) -> None:
    assert "RESULT SAME" in single.moved(nodes, run_pod, single.pod("reserved", RESERVED))


@pytest.mark.case("guard pages (MADV_GUARD_INSTALL)", cases.RESTORED)
def test_guard_pages_guard_again(nodes: Nodes, run_pod: RunPod) -> None:
    said = single.moved(nodes, run_pod, single.pod("guarded", GUARDED))
    assert "RESULT SAME" in said, said


SEALED = """
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
memory = mmap.mmap(-1, 8 << 12, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + (2 << 12)
memory[2 << 12] = 7
assert libc.syscall(462, ctypes.c_void_p(start), 2 << 12, 0) == 0
child = os.fork()

def probe():
    return memory[2 << 12], [
        (libc.mprotect(start + offset, 1 << 12, mmap.PROT_READ), ctypes.get_errno())
        for offset in (0, 1 << 12)
    ]

if child:
    check(probe)
time.sleep(10000)
"""


@pytest.mark.case("sealed memory (mseal)", cases.RESTORED)
def test_what_was_sealed_cannot_be_changed(nodes: Nodes, run_pod: RunPod) -> None:
    assert "RESULT SAME" in single.moved(nodes, run_pod, single.pod("sealed", SEALED))
