"""The stand-ins for the driver's libraries do what the real ones were seen to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.host import process, procfs
from grit_runtime.nvidia import libcuda, nvml, suspension, threads
from grit_runtime.nvidia.gpu_driver import Driver
from grit_runtime.nvidia.libcuda import Answer, Call
from grit_runtime.tasks import ptrace, ptrace_agent
from integration.fakes import fake_gpu
from integration.node import images, rootfs
from integration.tests.gpu import cuda_workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator, Sequence

    from integration.fakes.fake_gpu import Card
    from integration.node.node import Node
    from integration.tests.conftest import Nodes

OK = Answer(0)
INVALID_VALUE = Answer(1)
OUT_OF_MEMORY = Answer(2)
NOT_INITIALIZED = Answer(3)
OPERATING_SYSTEM = Answer(304)
ILLEGAL_STATE = Answer(401)
NOT_READY = Answer(600)
NOT_SUPPORTED = Answer(801)

NOBODY = 1 << 22  # the first pid that no machine can have
BLOCKED_S = 0.5
SIZE_BYTES = 1 << 20


LOCK = """
import sys
from grit_runtime.nvidia import libcuda as cuda
cuda.perform(cuda.load(sys.argv[1]), cuda.Call("lock", int(sys.argv[2])))
"""

# The same for any call, on a node; prints what was answered.
CALL = """
import sys
from grit_runtime.nvidia import libcuda as cuda
print(*cuda.perform(cuda.load(sys.argv[1]), cuda.Call(sys.argv[2], int(sys.argv[3]), 500)))
"""

# Put in front of the counter's loop.
FORK = """
import os
if os.fork():
    time.sleep(1000)
"""


class Machine(NamedTuple):
    """Cards and libraries in a directory, for processes that are told of it by environment."""

    directory: Path
    cards: list[Card]
    library: ctypes.CDLL

    @property
    def cards_dir(self) -> Path:
        return self.directory / "cards"

    def environment(self) -> dict[str, str]:
        return {
            "FAKE_GPU_CARDS": str(self.cards_dir),
            "FAKE_GPU_DEV": str(self.directory / "dev"),
            "LD_LIBRARY_PATH": str(self.directory),
        }

    def call(self, verb: str, pid: int, **options: object) -> Answer:
        return libcuda.perform(self.library, Call(verb, pid)._replace(**options))  # type: ignore[arg-type]

    def calls(self, pid: int, *verbs: str) -> None:
        """Make calls that all succeed."""
        for verb in verbs:
            assert self.call(verb, pid) == OK

    def lock_argv(self, pid: int) -> list[str]:
        """A process that locks another, for a lock that ends together with its caller."""
        return [sys.executable, "-c", LOCK, str(self.directory / fake_gpu.LIBCUDA.name), str(pid)]

    def state(self, pid: int) -> int:
        answer = self.call("state", pid)
        assert answer.code == 0
        return answer.value

    def used_bytes(self) -> list[int]:
        return [fake_gpu.used_bytes(self.cards_dir, card) for card in self.cards]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc; integration/test brings it")
    directory = tmp_path_factory.mktemp("libraries")
    fake_gpu.build(directory)
    return directory


@pytest.fixture
def machine(libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Two cards, of which a process sees the first unless it is given other nodes."""
    cards = [fake_gpu.new_card(3), fake_gpu.new_card(5, mig=False)]
    for library in fake_gpu.LIBRARIES:
        (tmp_path / library).symlink_to(libraries / library)
    (tmp_path / "cards").mkdir()
    fake_gpu.lay_out(tmp_path / "cards", cards)
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "nvidia3"):
        (tmp_path / "dev" / name).symlink_to("/dev/null")
    made = Machine(tmp_path, cards, libcuda.load(str(tmp_path / fake_gpu.LIBCUDA.name)))
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def counter(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    """A process with memory on the first card that has counted to three."""
    with counting(machine) as process:
        yield process


@contextmanager
def counting(machine: Machine, **environment: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, *cuda_workload.command(size_bytes=SIZE_BYTES)[1:]]
    environment |= machine.environment()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            read_until(process, 3)
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], count: int) -> int:
    """Read what the process prints until it has counted so far, with its bytes as they were; how
    far it is then."""
    assert process.stdout is not None
    for line in process.stdout:
        (reading,) = cuda_workload.readings(line)
        assert reading.digest == cuda_workload.expected_digest(0, SIZE_BYTES)
        if reading.counted >= count:
            return reading.counted
    raise AssertionError("the counter has ended")


def open_nodes(process: subprocess.Popen[str]) -> list[str]:
    fds = Path(f"/proc/{process.pid}/fd")
    return [link for link in map(os.readlink, fds.iterdir()) if "nvidia" in link or "null" in link]


def in_thread(call: Callable[[], Answer]) -> tuple[threading.Thread, list[Answer]]:
    """A call that may block, and where its answer will be."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    return thread, answers


def test_memory_survives_the_two_stages(machine: Machine, counter: subprocess.Popen[str]) -> None:
    machine.calls(counter.pid, "lock", "checkpoint", "restore", "unlock")
    read_until(counter, 10)


def test_a_checkpointed_process_holds_nothing_of_the_card(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    held = SIZE_BYTES + fake_gpu.CONTEXT_BYTES
    assert machine.used_bytes() == [held, 0]
    before = len(open_nodes(counter))
    machine.calls(counter.pid, "lock", "checkpoint")
    assert machine.used_bytes() == [0, 0]
    assert len(open_nodes(counter)) == before - 3
    assert str(machine.cards_dir) not in Path(f"/proc/{counter.pid}/maps").read_text()
    staged = f"Size:               {held >> 10} kB"
    assert staged in Path(f"/proc/{counter.pid}/smaps").read_text()
    machine.calls(counter.pid, "restore")
    assert machine.used_bytes() == [held, 0]


@pytest.mark.parametrize(
    ("before", "state", "illegal"),
    [
        ([], libcuda.RUNNING, ["checkpoint", "restore", "unlock"]),
        (["lock"], libcuda.LOCKED, ["lock", "restore"]),
        (["lock", "checkpoint"], libcuda.CHECKPOINTED, ["lock", "checkpoint", "unlock"]),
        (["lock", "checkpoint", "restore"], libcuda.LOCKED, ["lock", "restore"]),
        (["lock", "unlock"], libcuda.RUNNING, ["checkpoint", "restore", "unlock"]),
    ],
)
def test_each_state_refuses_the_calls_of_others(
    machine: Machine,
    counter: subprocess.Popen[str],
    before: list[str],
    state: int,
    illegal: list[str],
) -> None:
    machine.calls(counter.pid, *before)
    for verb in illegal:
        assert machine.call(verb, counter.pid) == ILLEGAL_STATE
        assert machine.state(counter.pid) == state


def test_a_thread_inside_a_call_goes_on_after_the_lock_and_dies_of_the_checkpoint(
    machine: Machine,
) -> None:
    with counting(machine, WAITS="1") as counter:
        machine.calls(counter.pid, "lock")
        # It may die before it is answered.
        assert machine.call("checkpoint", counter.pid) in (OK, OPERATING_SYSTEM)
        assert counter.wait() == -signal.SIGSEGV


def test_a_process_lives_if_its_threads_stand_but_the_drivers(machine: Machine) -> None:
    with counting(machine, WAITS="1") as counter:
        machine.calls(counter.pid, "lock")
        thread = machine.call("restore-tid", counter.pid).value
        with closing(ptrace_agent.keep([counter.pid], [thread])):
            counter.send_signal(signal.SIGCHLD)  # which is the driver's thread's to take, if any's
            machine.calls(counter.pid, "checkpoint", "restore", "unlock")
        ptrace_agent.let_go([counter.pid])
        read_until(counter, 10)


def test_the_restore_of_a_process_that_a_signal_has_stopped_needs_its_thread_alone(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    thread = machine.call("restore-tid", counter.pid).value
    machine.calls(counter.pid, "lock", "checkpoint")
    counter.send_signal(signal.SIGSTOP)
    while not procfs.is_stopped(counter.pid):
        assert counter.poll() is None
    with ptrace_agent.held_in_stop([counter.pid]) as holder:
        holder.run_alone([thread])
        assert machine.state(counter.pid) == libcuda.CHECKPOINTED
        machine.calls(counter.pid, "restore", "unlock")
        holder.stop()
    assert procfs.is_stopped(counter.pid)
    counter.send_signal(signal.SIGCONT)
    read_until(counter, 10)


def test_a_fault_in_the_drivers_thread_kills_the_process(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    with fake_gpu.faults(machine.cards_dir, "lock crash"):
        assert machine.call("lock", counter.pid) == OPERATING_SYSTEM
    assert counter.wait() == -signal.SIGSEGV


@contextmanager
def opened(machine: Machine) -> Iterator[Driver]:
    """The driver as grit opens it."""
    libcuda_path, nvml_path = (str(machine.directory / name) for name in fake_gpu.LIBRARIES)
    with closing(Driver(libcuda_path, nvml_path, process.new_token())) as driver:
        yield driver


def test_of_a_process_that_nobody_has_waited_for_no_thread_is_the_drivers(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    counter.kill()
    while not procfs.is_zombie(counter.pid):
        time.sleep(0.01)
    with opened(machine) as driver, threads.kept(driver, [counter.pid]):
        assert threads.of_driver(driver, [counter.pid]) == []


def test_a_process_that_cannot_be_held_is_brought_back_all_the_same(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    machine.calls(counter.pid, "lock", "checkpoint")
    ptrace.request(ptrace.SEIZE, counter.pid)  # as a debugger does
    with opened(machine) as driver:
        suspension.bring_back_running(driver, [counter.pid])
    read_until(counter, 10)


@pytest.mark.parametrize("verb", libcuda.SYMBOLS)
def test_a_process_without_cuda_is_told_from_none(machine: Machine, verb: str) -> None:
    assert machine.call(verb, os.getpid()).code == NOT_INITIALIZED.code  # has the library
    assert machine.call(verb, os.getppid()).code == NOT_INITIALIZED.code
    for pid in (NOBODY, 0, -1):
        assert machine.call(verb, pid).code == OPERATING_SYSTEM.code


def test_a_child_forked_by_a_cuda_process_is_none(machine: Machine) -> None:
    program = cuda_workload.PROGRAM.replace("while True:", f"{FORK}while True:")
    argv = [sys.executable, "-W", "ignore", "-c", program, str(SIZE_BYTES), "0", "0"]
    with subprocess.Popen(argv, env=machine.environment(), stdout=subprocess.DEVNULL) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        while not (child := children.read_text()):
            assert parent.poll() is None
        assert machine.call("state", int(child)) == NOT_INITIALIZED
        assert machine.state(parent.pid) == libcuda.RUNNING
        parent.kill()


def test_the_restore_thread_is_one_of_the_process(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    answer = machine.call("restore-tid", counter.pid)
    assert (Path(f"/proc/{counter.pid}/task") / str(answer.value)).exists()


def test_a_map_that_is_not_one_to_one_is_refused_and_nothing_is_lost(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    first, second = (card.uuid for card in machine.cards)
    unknown = fake_gpu.new_card(3).uuid
    machine.calls(counter.pid, "lock", "checkpoint")
    for pairs in (
        [(first, unknown)],
        [(unknown, first)],
        [(first, first), (first, first)],
        [(first, first), (second, first)],
    ):
        assert machine.call("restore", counter.pid, pairs=tuple(pairs)) == INVALID_VALUE
        assert machine.state(counter.pid) == libcuda.CHECKPOINTED
    assert machine.call("restore", counter.pid, pairs=((first, first),)) == OK
    machine.calls(counter.pid, "unlock")
    read_until(counter, 6)


def test_memory_goes_to_the_card_that_the_map_names(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    first, second = (card.uuid for card in machine.cards)
    machine.calls(counter.pid, "lock", "checkpoint")
    assert machine.call("restore", counter.pid, pairs=((first, second),)).code == 100
    (machine.directory / "dev/nvidia5").symlink_to("/dev/null")
    assert machine.call("restore", counter.pid, pairs=((first, second),)) == OK
    assert machine.used_bytes() == [0, SIZE_BYTES + fake_gpu.CONTEXT_BYTES]
    machine.calls(counter.pid, "unlock", "lock", "checkpoint", "restore", "unlock")
    assert machine.used_bytes()[0] == 0
    read_until(counter, 10)


def test_a_restore_that_runs_out_of_memory_cannot_be_tried_again(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    machine.calls(counter.pid, "lock", "checkpoint")
    with fake_gpu.changed(machine.cards_dir, machine.cards[0], total_bytes=SIZE_BYTES):
        assert machine.call("restore", counter.pid) == OUT_OF_MEMORY
    assert machine.used_bytes() == [0, 0]
    assert machine.state(counter.pid) == libcuda.CHECKPOINTED
    assert machine.call("unlock", counter.pid) == ILLEGAL_STATE
    assert machine.call("restore", counter.pid) == OPERATING_SYSTEM


def test_a_stopped_process_answers_when_it_goes_on(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    counter.send_signal(signal.SIGSTOP)
    locking, locked = in_thread(lambda: machine.call("lock", counter.pid, timeout_ms=10))
    locking.join(BLOCKED_S)
    asking, state = in_thread(lambda: machine.call("state", counter.pid))
    asking.join(BLOCKED_S)
    assert (locked, state) == ([], [])
    counter.send_signal(signal.SIGCONT)
    locking.join()
    asking.join()
    assert locked == [OK]
    assert state == [Answer(0, libcuda.LOCKED)]


def test_the_restore_thread_of_a_stopped_process_is_known(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    thread = machine.call("restore-tid", counter.pid)
    counter.send_signal(signal.SIGSTOP)
    assert machine.call("restore-tid", counter.pid) == thread


def test_a_call_goes_with_its_caller(machine: Machine, counter: subprocess.Popen[str]) -> None:
    counter.send_signal(signal.SIGSTOP)
    with subprocess.Popen(machine.lock_argv(counter.pid)) as caller:
        turn = machine.cards_dir / "callers" / str(counter.pid)
        while not (turn.exists() and str(turn.stat().st_ino) in Path("/proc/locks").read_text()):
            assert caller.poll() is None
        caller.kill()
    counter.send_signal(signal.SIGCONT)
    read_until(counter, 6)
    assert machine.state(counter.pid) == libcuda.RUNNING


def test_memory_of_a_process_that_is_killed_is_free(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    counter.kill()
    counter.wait()
    assert machine.used_bytes() == [0, 0]
    facts = nvml.facts(nvml.load(str(machine.directory / fake_gpu.LIBNVIDIA_ML.name)))
    assert [card["free_bytes"] for card in facts["cards"]] == [64 << 20, 64 << 20]
    assert list(machine.cards_dir.glob("*/memory/*")) == []


def test_nvml_tells_of_cards_and_of_who_uses_them(
    machine: Machine, counter: subprocess.Popen[str]
) -> None:
    facts = nvml.facts(nvml.load(str(machine.directory / fake_gpu.LIBNVIDIA_ML.name)))
    held = SIZE_BYTES + fake_gpu.CONTEXT_BYTES
    assert facts["driver"] == "580.159.03"
    first, second = facts["cards"]
    assert first == {
        "uuid": machine.cards[0].uuid,
        "model": "NVIDIA H100 80GB HBM3",
        "minor": 3,
        "total_bytes": 64 << 20,
        "free_bytes": (64 << 20) - held,
        "mig": False,
        "persistent": True,
        "processes": [[counter.pid, held]],
    }
    assert (second["minor"], second["processes"]) == (5, [])


def test_scripted_faults_count_down(machine: Machine, counter: subprocess.Popen[str]) -> None:
    lines = ("lock 600 skip 1 times 2", "checkpoint 801 times 1", "state failed times 1")
    with fake_gpu.faults(machine.cards_dir, *lines):
        machine.calls(counter.pid, "lock", "unlock")
        begin = time.monotonic()
        assert machine.call("lock", counter.pid, timeout_ms=100) == NOT_READY
        assert time.monotonic() - begin >= 0.1
        assert machine.call("lock", counter.pid, timeout_ms=1) == NOT_READY
        assert machine.call("state", counter.pid) == Answer(0, libcuda.FAILED)
        assert machine.state(counter.pid) == libcuda.RUNNING
        machine.calls(counter.pid, "lock")
        assert machine.call("checkpoint", counter.pid) == NOT_SUPPORTED
        assert machine.state(counter.pid) == libcuda.LOCKED
        machine.calls(counter.pid, "checkpoint")


@pytest.mark.parametrize(
    ("fault", "state"), [("lock die", libcuda.RUNNING), ("lock die afterwards", libcuda.LOCKED)]
)
def test_a_caller_that_dies_leaves_its_call_undone_or_done(
    machine: Machine, counter: subprocess.Popen[str], fault: str, state: int
) -> None:
    with fake_gpu.faults(machine.cards_dir, fault):
        died = subprocess.run(machine.lock_argv(counter.pid), check=False)
    assert died.returncode == -signal.SIGKILL
    assert machine.state(counter.pid) == state


def test_a_call_that_blocks_never_answers(machine: Machine, counter: subprocess.Popen[str]) -> None:
    with (
        fake_gpu.faults(machine.cards_dir, "lock block afterwards"),
        subprocess.Popen(machine.lock_argv(counter.pid)) as caller,
    ):
        while machine.state(counter.pid) != libcuda.LOCKED:
            assert caller.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            caller.wait(BLOCKED_S)
        caller.kill()
    machine.calls(counter.pid, "unlock")


def test_a_driver_that_is_too_old_lacks_the_symbols(tmp_path: Path, libraries: Path) -> None:
    assert libraries.exists()
    fake_gpu.build(tmp_path, definitions=["WITHOUT_CHECKPOINT"])
    with pytest.raises(FailedPreconditionError, match="lacks cuCheckpointProcessGetState"):
        libcuda.load(str(tmp_path / fake_gpu.LIBCUDA.name))


class ByHand:
    """The counter in a container that nobody but runc knows, on a node with two cards."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._bundle = "/run/by-hand"

    def prepare(self, devices: Sequence[str]) -> None:
        """A bundle with the root filesystem of the image that pods run."""
        rootfs_dir = f"{self._bundle}/rootfs"
        self.node.path(Path(rootfs_dir)).mkdir(parents=True)
        self.node.run(["ctr", "-n", "k8s.io", "images", "mount", "--rw", images.PYTHON, rootfs_dir])
        self.node.run(["runc", "spec", "--bundle", self._bundle])
        config = self.node.path(Path(self._bundle)) / "config.json"
        config.write_text(json.dumps(self._spec(json.loads(config.read_text()), devices)))

    def _spec(self, spec: dict[str, Any], devices: Sequence[str]) -> dict[str, Any]:
        argv = cuda_workload.command(size_bytes=SIZE_BYTES)
        spec["process"] |= {"terminal": False, "args": list(argv)}
        del spec["process"]["rlimits"]
        spec["root"]["readonly"] = False
        for volume in fake_gpu.VOLUMES:
            bind = {"type": "bind", "options": ["rbind"]}
            spec["mounts"].append({"destination": volume.path, "source": volume.path, **bind})
        spec["linux"]["devices"] = [
            {
                "path": path,
                "type": "c",
                "major": fake_gpu.MAJOR,
                "minor": os.minor(self.node.path(Path(path)).stat().st_rdev),
                "fileMode": 0o666,
            }
            for path in devices
        ]
        return spec

    def remove(self) -> None:
        self.node.run(["runc", "delete", "--force", "counter"], check=False)
        self.node.run(["ctr", "-n", "k8s.io", "images", "unmount", f"{self._bundle}/rootfs"])
        shutil.rmtree(self.node.path(Path(self._bundle)))

    @contextmanager
    def run(
        self, verb: str, *options: str, runtime: str = "runc"
    ) -> Iterator[subprocess.Popen[str]]:
        """Run or restore the container; its standard output is the counter's."""
        argv = [runtime, verb, "--bundle", self._bundle, *options, "counter"]
        with self.node.popen(argv, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                self.node.run(["runc", "resume", "counter"], check=False)
                self.node.run(["runc", "delete", "--force", "counter"])

    @property
    def pid(self) -> int:
        """The counter, as the node numbers it."""
        return int(json.loads(self.node.run(["runc", "state", "counter"]).stdout)["pid"])

    def call_argv(self, verb: str, pid: int) -> list[str]:
        """One call of the driver, answer printed, for a worker that can be killed."""
        return [f"/{rootfs.VENV}/bin/python", "-c", CALL, str(fake_gpu.LIBCUDA), verb, str(pid)]

    def call(self, verb: str) -> Answer:
        code, value = self.node.run(self.call_argv(verb, self.pid)).stdout.split()
        return Answer(int(code), int(value))


@pytest.fixture
def by_hand(nodes: Nodes) -> Iterator[ByHand]:
    cards = [fake_gpu.new_card(3), fake_gpu.new_card(5)]
    with fake_gpu.installed(nodes.a, cards):
        made = ByHand(nodes.a)
        made.prepare(fake_gpu.device_paths(cards))
        yield made
        made.remove()


def test_memory_survives_a_dump_and_a_restore_by_runc_in_between(by_hand: ByHand) -> None:
    stages = ("--image-path", "/run/by-hand/images")
    with by_hand.run("run") as process:
        count = read_until(process, 3)
        assert by_hand.call("lock") == OK
        assert by_hand.call("checkpoint") == OK
        by_hand.node.run(["runc", "checkpoint", *stages, "counter"])
    with by_hand.run("restore", *stages) as process:
        while by_hand.node.run(["runc", "state", "counter"], check=False).returncode != 0:
            assert process.poll() is None
        assert by_hand.call("state") == Answer(0, libcuda.CHECKPOINTED)
        assert by_hand.call("restore") == OK
        assert by_hand.call("unlock") == OK
        assert read_until(process, 0) > count
        read_until(process, count + 10)


def test_a_frozen_container_cannot_be_locked(by_hand: ByHand) -> None:
    with by_hand.run("run") as process:
        read_until(process, 3)
        by_hand.node.run(["runc", "pause", "counter"])
        with pytest.raises(subprocess.TimeoutExpired):
            by_hand.node.run(by_hand.call_argv("lock", by_hand.pid), timeout_s=2)
        by_hand.node.run(["runc", "resume", "counter"])
        read_until(process, 10)
        assert by_hand.call("state") == Answer(0, libcuda.RUNNING)
        assert by_hand.call("lock") == OK
