"""Does the machine have what the cases need? Facts, and the shortest way through every part."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

from integration.gpu import cases, driver, logs, migration, pods
from integration.gpu.bundle import PREFIX
from integration.gpu.cases import Job, Room
from integration.node.cri import CriError
from integration.pods import kubelet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from integration.gpu.machine import Machine
    from integration.pods.kubelet import Pod
    from integration.pods.pod_spec import PodSpec

FAILURES = (
    AssertionError,
    CriError,
    LookupError,
    OSError,
    RuntimeError,
    subprocess.SubprocessError,
    ValueError,
)
LINE_LIMIT = 600
LONG_S = 90
SHORT_S = 5

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"
LOOK = (
    "ls -l /dev | grep nvidia; grep ModifyDeviceFiles /proc/driver/nvidia/params; "
    "df -h /dev/shm | tail -n1"
)
CDI_SPEC = Path("/etc/cdi/nvidia-of-the-smoke-test.json")
PID_MAX = "/proc/sys/kernel/pid_max"
DRIVER_STATE = Path("/proc/driver/nvidia")
DRIVER_VARIABLE = re.compile("NVIDIA|CUDA|NCCL|LD_LIBRARY")
MOUNTS_OF_INTEREST = re.compile(r" (/|/tmp|/opt|/usr\S*|/run|/dev\S*|/mnt\S*|/sys/fs/cgroup\S*) ")


class Smoke:
    """The checks on one machine, each with its outcome."""

    def __init__(self, machine: Machine, chosen: list[str], *, on_gpu: bool) -> None:
        """Those of *chosen* names are made, or all."""
        self.machine = machine
        self.on_gpu = on_gpu
        self._chosen = chosen
        self.outcomes: list[dict[str, object]] = []

    def run(self) -> None:
        """Make all checks, whatever comes of each."""
        self._check("machine", self._facts)
        self._check("programs", self._programs)
        if self.on_gpu:
            self._check("driver files", self._driver_files)
            self._check("driver answers", self._driver_answers)
            self._check("doctor", self._doctor)
        self._check("a shell pod migrates", self._shell_pod)
        self._check("mounts for PyTorch", self._mounts)
        if self.on_gpu:
            self._check("a container sees the card", lambda: self._container_sees(mknod=False))
            self._check("with CAP_MKNOD", lambda: self._container_sees(mknod=True))
            self._check("driver calls by hand", self._by_hand)
        self._check("a pod with tensors migrates", self._tensors_migrate)

    def _check(self, name: str, check: Callable[[], Iterable[str]]) -> None:
        if self._chosen and name not in self._chosen:
            return
        begin = time.monotonic()
        lines: list[str] = []
        failure = None
        try:
            lines.extend(check())
        except FAILURES as error:
            failure = f"{type(error).__name__}: {error}"
        seconds = round(time.monotonic() - begin, 2)
        outcome: dict[str, object] = {
            "name": name,
            "failure": failure,
            "seconds": seconds,
            "lines": lines,
        }
        self.outcomes.append(outcome)
        print(f"{'FAILED' if failure else 'ok'}: {name} ({seconds} s)")
        for line in [*lines, *([failure] if failure else [])]:
            print(f"    {line[:LINE_LIMIT]}", flush=True)

    def _facts(self) -> Iterator[str]:
        memory = [" ".join(line.split()) for line in _lines("/proc/meminfo")]
        yield f"{platform.release()}, {os.cpu_count()} cores, {memory[0]}, {memory[2]}"
        yield f"{_lines('/etc/os-release')[0]}, {_grep('CapEff', '/proc/self/status')}"
        python = Path(os.environ["GRIT_TORCH_PYTHON"])
        yield f"python {python} -> {python.resolve()}, checkout {Path.cwd()}"
        yield f"huge pages {_text('/sys/kernel/mm/transparent_hugepage/enabled')}"
        yield f"cgroup {_text('/proc/self/cgroup')}; {_text('/sys/fs/cgroup/cgroup.controllers')}"
        yield f"lsm {_text('/sys/kernel/security/lsm')}; pid_max {_text(PID_MAX)}"
        yield " ".join(f"{k}={v}" for k, v in os.environ.items() if DRIVER_VARIABLE.match(k))
        mounts = _lines("/proc/self/mounts")
        yield from (line for line in mounts if MOUNTS_OF_INTEREST.search(line))
        yield from _output("df", "-h", str(PREFIX), "/tmp").splitlines()[1:]

    def _programs(self) -> Iterator[str]:
        for program in ("criu", "runc", "containerd"):
            yield self.machine.run([program, "--version"]).stdout.replace("\n", "; ")
        check = self.machine.run(["criu", "check"], check=False)
        yield from (check.stdout + check.stderr).splitlines()
        assert check.returncode == 0, "criu check failed"

    def _driver_files(self) -> Iterator[str]:
        directory = driver.library_dir()
        assert directory is not None, f"no libcuda.so.1 in {driver.LIBRARY_DIRS}"
        library = directory / "libcuda.so.1"
        yield f"{library} -> {library.resolve()}; missing calls: {driver.missing_symbols(library)}"
        yield _text("/proc/driver/nvidia/version").partition("\n")[0]
        yield from _output("sh", "-c", "ls -l /dev/nvidia* /dev/nvidia-caps/*").splitlines()
        for information in sorted(DRIVER_STATE.glob("gpus/*/information")):
            yield f"{information}: {_text(str(information))}"
        files = [str(path.relative_to(DRIVER_STATE)) for path in DRIVER_STATE.rglob("*")]
        yield f"{DRIVER_STATE}: {' '.join(sorted(files))}"
        yield _grep("ModifyDeviceFiles", "/proc/driver/nvidia/params")
        yield from _smi("--query-gpu=name,uuid,driver_version,persistence_mode,memory.used")

    def _doctor(self) -> Iterator[str]:
        """What it says of the driver and the cards, and of specs that name files or miss them."""
        library = f"{driver.library_dir()}/libcuda.so.1"
        expected = {None: "broken", library: "ok", f"{library}.gone": "broken"}
        for path, verdict in expected.items():
            CDI_SPEC.parent.mkdir(exist_ok=True)
            mounts = [{"hostPath": path, "containerPath": path}]
            spec = {"kind": "nvidia.com/gpu", "containerEdits": {"mounts": mounts}}
            if path:
                CDI_SPEC.write_text(json.dumps(spec))
            begin = time.monotonic()
            found = json.loads(self.machine.run(["grit", "doctor", "--json"], check=False).stdout)
            seconds = time.monotonic() - begin
            CDI_SPEC.unlink(missing_ok=True)
            said = {one["name"]: one for one in found}
            for name in ("nvidia driver", "cards", "cdi"):
                yield f"{name}: {said[name]['verdict']}, {said[name]['evidence']}"
            yield f"{len(found)} findings in {seconds:.2f} s"
            assert said["nvidia driver"]["verdict"] == "ok"
            assert said["cards"]["verdict"] in {"ok", "warning"}
            assert said["cdi"]["verdict"] == verdict

    def _driver_answers(self) -> Iterator[str]:
        """What the driver says of processes that have nothing to do with it."""
        bystander = self.machine.popen(["sleep", "60"])
        gone = int(_text(PID_MAX)) - 1
        asked = {"without CUDA": bystander.pid, "gone": gone, "first": 1, "0": 0, "-1": -1}
        try:
            for name, pid in asked.items():
                for verb in driver.QUERIES:
                    yield f"{verb} of pid {name}: {_ask(verb, pid, timeout_s=SHORT_S)}"
            for verb in ("lock", "checkpoint", "restore", "unlock"):
                answer = _ask(verb, bystander.pid, timeout_s=SHORT_S)
                yield f"{verb} of pid without CUDA: {answer}"
        finally:
            bystander.kill()
            bystander.wait()

    def _shell_pod(self) -> Iterator[str]:
        with kubelet.running(self.machine, pods.shell_pod("shell", COUNT)) as source:
            source.wait_for_log(pods.CONTAINER, "\n10\n")
            yield f"checkpoint {_phases(migration.take(source, 'shell'))}"
        again = pods.shell_pod("shell", COUNT, annotations=migration.asking_for("shell"))
        with kubelet.running(self.machine, again) as target:
            yield f"restore {_phases(migration.restored(target))}"
            last = len(target.logs(pods.CONTAINER).split())
            log = target.wait_for_log(pods.CONTAINER, f"\n{last + 10}\n")
            counted = [int(word) for word in log.split()]
            assert counted == list(range(1, len(counted) + 1)), f"counted {counted}"

    def _mounts(self) -> Iterator[str]:
        self.machinery = pods.machinery(self.machine, on_gpu=self.on_gpu)
        for mount, tree in zip(self.machinery.mounts, self.machinery.trees, strict=True):
            yield f"{mount.path} <- {tree.path}"

    def _container_sees(self, *, mknod: bool) -> Iterator[str]:
        devices = pods.cards()[:1]
        arguments = ("-m", f"{pods.WORKLOADS}.sees")
        spec = pods.python_pod("sees", arguments, self.machinery, devices=devices, mknod=mknod)
        with self._running(spec) as pod:
            begin = time.monotonic()
            log = pod.wait_for_log(pods.CONTAINER, "seen", timeout_s=LONG_S)
            yield from log.splitlines()
            yield f"after {time.monotonic() - begin:.1f} s"
            inside = pod.exec_sync(pods.CONTAINER, ["/bin/sh", "-c", LOOK])
            yield from inside.stdout.decode().splitlines()

    def _by_hand(self) -> Iterator[str]:
        """What of the driver a process holds, before and after it is suspended."""
        job = Job("hand", ("tensors", "1", "1"))
        with self._running(Room(self.machine, self.machinery).spec(job, (0,))) as pod:
            cases.wait_for_steps(pod, 3)
            pid = pod.pid(pods.CONTAINER)
            yield f"running: {_held(pid)}"
            yield f"thread {_ask('thread', pid)}, state {_ask('state', pid)}"
            for verb in ("checkpoint", "lock", "lock", "checkpoint"):
                yield f"{verb} {_ask(verb, pid)}, state {_ask('state', pid)}"
            yield f"suspended: {_held(pid)}"
            yield from _smi("--query-gpu=memory.used")
            for verb in ("restore", "unlock"):
                yield f"{verb} {_ask(verb, pid)}, state {_ask('state', pid)}"
            assert len(cases.sums(logs.wait_for_more(pod, 4))) == 1, (
                "the sum of the tensors changed"
            )
            yield f"running again: {_held(pid)}"

    def _tensors_migrate(self) -> Iterator[str]:
        room = Room(self.machine, self.machinery)
        outcome = cases.tensors(1 if self.on_gpu else 0.1)(room)
        yield _phases(outcome.seconds)
        assert outcome.digests_equal, "the tensors are not what they were"

    def _running(self, spec: PodSpec) -> AbstractContextManager[Pod]:
        return kubelet.running(self.machine, spec)


def _ask(verb: str, pid: int, *, timeout_s: float = 30) -> str:
    """The driver's answer on *pid*, or that there was none."""
    try:
        (answer,) = driver.call(verb, [pid], timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout_s} s"
    value = f" -> {answer.value}" if verb in driver.QUERIES else ""
    return f"{answer.code}{value} in {answer.seconds:.6f} s"


def _phases(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())


def _held(pid: int) -> str:
    """Descriptors and mappings of the driver in *pid*, each with how often, and its memory."""
    fds = [name for fd in Path(f"/proc/{pid}/fd").iterdir() if (name := _target(fd))]
    maps = [line.split(maxsplit=5)[-1] for line in _lines(f"/proc/{pid}/maps")]
    driven = [name for name in fds if "nvidia" in name]
    mapped = [name for name in maps if name.startswith(("/dev/nvidia", "anon_inode:", "/memfd:"))]
    others = [name for name in fds if name not in driven]
    return (
        f"fds {dict(Counter(driven))} of others {dict(Counter(others))}, maps "
        f"{dict(Counter(mapped))}, {_grep('VmRSS', f'/proc/{pid}/status')}, "
        f"{_grep('Threads', f'/proc/{pid}/status')}"
    )


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:  # closed meanwhile
        return ""


def _smi(query: str) -> list[str]:
    for directory in (Path("/usr/local/nvidia/bin"), Path("/usr/bin")):
        if (directory / "nvidia-smi").exists():
            program = str(directory / "nvidia-smi")
            return _output(program, query, "--format=csv,noheader").splitlines()
    return ["no nvidia-smi"]


def _output(*argv: str) -> str:
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        return str(error)


def _lines(path: str) -> list[str]:
    return _text(path).splitlines()


def _grep(word: str, path: str) -> str:
    return next((" ".join(line.split()) for line in _lines(path) if word in line), f"no {word}")
