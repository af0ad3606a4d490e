"""This machine as a host of pods: containerd and the rest from the bundle.

Everything is mounted in a mount namespace of our own, which `run` makes, and all state lies below
one directory, so that little is left when the namespace goes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Self

from integration.gpu.bundle import PREFIX
from integration.node import cgroup, node, rootfs
from integration.node.cri import Cri
from integration.pods import checkpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

STATE = PREFIX / "state"
# What would lie on the machine's own disk or in its memory, were this not for once only.
STATE_DIRS = (
    "etc/grit",
    "etc/containerd",
    "mnt/grit-agent",
    "var/lib/containerd",
    "var/lib/grit",
    "var/lib/kubelet",
    "var/log",
)
RUN_DIRS = ("run/containerd", "run/grit")
SANDBOX_FILES = ("etc/hosts", "etc/resolv.conf")  # containerd copies them for each sandbox
CGROUP_ROOT = Path("/sys/fs/cgroup")
PODS_CGROUP = "kubepods"

RUNC = str(PREFIX / "bin/runc")
START_TIMEOUT_S = 30


class Machine:
    """The machine, from entering its context to leaving it."""

    name = "machine"
    runtime_handler = "grit"
    root = Path("/")

    def __init__(
        self,
        *,
        library_dirs: Sequence[Path] = (),
        state: Path = STATE,
        is_first: bool = True,
        has_disk: bool = True,
    ) -> None:
        """The one that *is_first* ends what others have left; each has a *state* of its own.

        Without a disk its checkpoints lie in memory.
        """
        self._state = state
        self._has_disk = has_disk
        self._is_first = is_first
        self._environment = {
            **node.ENVIRONMENT,
            "PATH": f"{PREFIX}/bin:{node.ENVIRONMENT['PATH']}",
            "LD_LIBRARY_PATH": ":".join(map(str, library_dirs)),
        }

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._is_first:
                _sweep()
                stack.callback(_sweep)
            _mount_cgroups()
            _mount_state(self._state)
            if not self._has_disk:
                # As large as it has to be, by default half of the memory.
                _mount("tmpfs", checkpoints.ROOT, "--types", "tmpfs", "--options", "mode=0700")
            if self._is_first:
                _install_project()
            _configure_containerd()
            with self.path(Path("/var/log/containerd.log")).open("a") as log:
                self._containerd = self.popen(["containerd"], stdout=log, stderr=log)
            stack.callback(self._kill_containerd)
            self.cri = Cri(Path("/run/containerd/containerd.sock"))
            stack.callback(self.cri.close)
            # Pods are on the host network, so that network readiness is never asked for.
            if not self.cri.becomes_ready(self._containerd, {"RuntimeReady"}, START_TIMEOUT_S):
                raise AssertionError(f"containerd is not ready:\n{self.collect_logs()}")
            for image in sorted((PREFIX / "images").iterdir()):
                self.run(["ctr", "-n", "k8s.io", "images", "import", str(image)])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def path(self, path: Path) -> Path:
        """*path* itself."""
        return path

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* to its end, output captured apart."""
        with self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout_s)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        done = subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)} ended {done.returncode}: {stdout}{stderr}")
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start *argv* in a process group of its own."""
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=self._environment,
            start_new_session=True,
            text=True,
        )

    def view(self, path: Path) -> Path:
        """*path* mounted once more, for containers, without what is mounted below it."""
        target = self._state / "views" / str(path).strip("/").replace("/", "-")
        if not target.exists():
            if not path.is_dir():
                target.parent.mkdir(exist_ok=True)
                target.touch()
            _mount(path, target, "--bind")
        return target

    def collect_logs(self) -> str:
        """The ends of all logs that may tell why something failed, each with a headline."""
        return "\n".join(node.logs(self.root))

    def end_pods(self) -> None:
        """Kill all that lives in pods, if a case has left any."""
        _kill_pods()

    def _kill_containerd(self) -> None:
        self._containerd.kill()
        self._containerd.wait()


def _sweep() -> None:
    """End what this run, or one that was killed, has left: pods, and programs of the bundle."""
    _kill_pods()
    for exe in Path("/proc").glob("[0-9]*/exe"):
        with suppress(OSError):
            if exe.readlink().is_relative_to(PREFIX):
                _kill(int(exe.parent.name))
    cgroup.remove(PODS_CGROUP)


def _kill_pods() -> None:
    cgroup.thaw(PODS_CGROUP)
    for hierarchy in cgroup.hierarchies():
        for procs in (hierarchy.path / PODS_CGROUP).rglob("cgroup.procs"):
            for pid in procs.read_text().split():
                _kill(int(pid))


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _mount_cgroups() -> None:
    if not cgroup.hierarchies():
        _mount("cgroup2", CGROUP_ROOT, "--types", "cgroup2")


def _mount_state(state: Path) -> None:
    if state.exists():
        shutil.rmtree(state)
    for name in STATE_DIRS:
        (state / name).mkdir(parents=True, mode=0o700)
        _mount(state / name, Path("/", name), "--bind")
    for name in RUN_DIRS:
        _mount("tmpfs", Path("/", name), "--types", "tmpfs", "--options", "mode=0711")
    for name in SANDBOX_FILES:
        Path("/", name).touch()
    filesystem = _output("stat", "--file-system", "--format=%T", str(state))
    if filesystem.strip() == "overlayfs":  # an overlay's upper directory cannot lie on another
        _mount("tmpfs", Path("/var/lib/containerd"), "--types", "tmpfs")
    _output("mount", "--make-rshared", "/")


def _mount(source: Path | str, target: Path, *options: str) -> None:
    if not target.exists():
        target.mkdir(parents=True)
    _output("mount", *options, str(source), str(target))


def _install_project() -> None:
    """Put this checkout where an installer would, with its launchers."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = Path("/") / rootfs.VENV / f"lib/python{version}/site-packages"
    python = f"/{rootfs.VENV}/bin/python"
    node.install(Path("/"), python=python, site_packages=site_packages, runc=RUNC)
    _output(sys.executable, "-m", "compileall", "-q", str(site_packages / "grit_runtime"))


def _configure_containerd() -> None:
    config_dir = Path("/etc/containerd")
    config = (rootfs.REPO / "integration/node/containerd-2.x.toml").read_text()
    config += node.handler_tables("2.x", node.HANDLER, shim="")
    (config_dir / "config.toml").write_text(config)


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
