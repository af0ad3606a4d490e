"""A throwaway Kubernetes node: Debian's containerd, runc and CRIU in namespaces of their own."""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Self

from grit_runtime.installation import wanted
from grit_runtime.model import handlers
from integration.node import cache, images, rootfs, supervisor
from integration.node.cri import Cri

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from integration.node.network import Connection, Network
    from integration.node.rootfs import Edition

CHECKPOINT_ROOT = Path("/mnt/grit-agent")
RUNC = "/usr/sbin/runc"
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
START_TIMEOUT_S = 60
READY = {"RuntimeReady", "NetworkReady"}
STOP_TIMEOUT_S = 60
LOG_TAIL_BYTES = 24_576

CRIU_PRELOAD_SOURCE = Path(__file__).with_name("criu-preload.c")
CRIU_PRELOAD = "/usr/local/lib/criu-preload.so"
CRIU_LAUNCHER = f"""\
#!/bin/sh
LD_PRELOAD={CRIU_PRELOAD} exec /usr/sbin/criu "$@"
"""

HANDLER = "grit"  # with containerd's stock shim
SHIM_HANDLER = "grit-shim"  # with grit's own

RUNTIME_CONFIG = rootfs.REPO / "runtime-config"
CLI_LAUNCHER = """\
#!{python} -I
import sys

from grit_runtime.cli.main import main

sys.exit(main())
"""


class LostNodeError(Exception):
    """The node itself ended, or never came to be: nothing is known about what was tested on it."""


class Node:
    """One node, from entering its context to leaving it; nothing of it stays behind."""

    def __init__(self, edition: Edition, *, name: str, network: Network) -> None:
        self.edition = edition
        self.name = name
        self.network = network
        self.runtime_handler = HANDLER
        self.handlers = {HANDLER: "", SHIM_HANDLER: wanted.SHIM}
        self.id = f"{supervisor.NAME_PREFIX}{name}-{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            lower = stack.enter_context(rootfs.use(self.edition))
            self.pid = self._start_supervisor(lower)
            stack.callback(self._stop_supervisor)
            self.root = Path(f"/proc/{self.pid}/root")
            self.connection = self.network.connect(self.pid)
            self._configure()
            self._install_criu_preload()
            self._install_project()
            self.start_containerd()
            stack.callback(self._kill_containerd)
            self.cri = Cri(self.root / "run/containerd/containerd.sock")
            stack.callback(lambda: self.cri.close())  # noqa: PLW0108  a restart makes another
            if not self.cri.becomes_ready(self._containerd, READY, START_TIMEOUT_S):
                raise LostNodeError(f"containerd is not ready:\n{self.collect_logs()}")
            for image in stack.enter_context(images.use(self.edition, lower)):
                self._import_image(image)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002 -- as in subprocess.run
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* on the node to its end, output captured apart."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(
            argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                stdout, stderr = process.communicate(input, timeout=timeout_s)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        self.assert_alive()
        done = subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {' '.join(argv)} ended {done.returncode}: {stdout}{stderr}"
            )
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start *argv* on the node, in a process group of its own; its pid is that of the nsenter
        which waits for it."""
        self.assert_alive()
        return subprocess.Popen(
            [*self.enter_argv(), *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=ENVIRONMENT,
            start_new_session=True,
            text=True,
        )

    def enter_argv(self) -> list[str]:
        """What runs the command after it on the node."""
        enter = ["nsenter", "--all", f"--target={self.pid}", "--"]
        return supervisor.join_argv(self.id, enter, below="system")

    def path(self, path: Path) -> Path:
        """Where this machine finds what is *path* on the node."""
        return self.root / path.relative_to("/")

    def program_of_image(self) -> Path:
        """Where this machine finds the interpreter of the python image, below all its pods."""
        snapshots = self.path(Path("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"))
        (path,) = snapshots.glob(f"snapshots/*/fs/usr/bin/python{self.edition.python}")
        return path

    @property
    def alive(self) -> bool:
        """Whether the node's first process still has its namespaces, which it gives up first."""
        return (self.root.parent / "ns/mnt").exists()

    def assert_alive(self) -> None:
        """Raise LostNodeError if the node has ended."""
        if not self.alive:
            raise LostNodeError(f"node {self.name} ended by itself")

    def kill_supervisor(self) -> None:
        """Kill the process that would clean up after this node, and the node with it."""
        self._supervisor.kill()

    def start_containerd(self) -> None:
        """Start containerd; its log is appended to /var/log/containerd.log."""
        with (self.root / "var/log/containerd.log").open("a") as log:
            self._containerd = self.popen(["containerd"], stdout=log, stderr=log)

    def stop_containerd(self) -> None:
        """Stop containerd alone, as an upgrade does: the shims and their containers go on."""
        # What waits for it on this machine may end before it.
        with open(os.pidfd_open(self.command_pid(self._containerd)), "rb") as ended:
            os.killpg(self._containerd.pid, signal.SIGTERM)
            assert select.select([ended], [], [], STOP_TIMEOUT_S)[0], "containerd does not stop"
        self._containerd.wait(STOP_TIMEOUT_S)

    def command_pid(self, process: subprocess.Popen[str]) -> int:
        """The pid, on this machine, of the command that popen() started as *process*."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1, f"{process.args!r} has not started or has ended"
        return int(children[0])

    def collect_logs(self) -> str:
        """All that may tell why a test failed, with a headline for each part."""
        if not self.alive:
            return f"==== node {self.name} has ended ===="
        parts = [f"==== node {self.name} ({self.edition.suite}) ===="]
        parts += logs(self.root)
        for command in (
            "ps axfo pid,stat,wchan:20,cgroup:60,args",
            "ip addr",
            "cat /proc/1/mounts",
        ):
            parts += [f"---- {command}", self.run(command.split(), check=False).stdout]
        return "\n".join(parts)

    def _start_supervisor(self, lower: Path) -> int:
        """The pid of the node's first process, which its supervisor has started."""
        node_dir = cache.CACHE / "nodes" / self.id
        self._supervisor = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "integration.node.supervisor",
                str(node_dir),
                str(lower),
                self.name,
            ],
            cwd=rootfs.REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the supervisor outlives an interrupt at the terminal
            text=True,
        )
        assert self._supervisor.stdout is not None
        pid = self._supervisor.stdout.readline()
        if not pid:
            _, stderr = self._supervisor.communicate()
            raise LostNodeError(f"node {self.name} did not start: {stderr}")
        return int(pid)

    def _kill_containerd(self) -> None:
        if self._containerd.poll() is None:
            os.killpg(self._containerd.pid, signal.SIGKILL)
        self._containerd.wait()

    def _stop_supervisor(self) -> None:
        _, stderr = self._supervisor.communicate(timeout=STOP_TIMEOUT_S)
        if self._supervisor.returncode != 0:
            raise LostNodeError(f"node {self.name} left something behind: {stderr}")

    def _configure(self) -> None:
        config_dir = self.root / "etc/containerd"
        config = Path(__file__).with_name(f"containerd-{self.edition.containerd}.toml").read_text()
        for name, shim in self.handlers.items():
            config += handler_tables(self.edition.containerd, name, shim=shim)
        (config_dir / "config.toml").write_text(config)
        cni_dir = self.root / "etc/cni/net.d"
        cni_dir.mkdir(parents=True, exist_ok=True)
        (cni_dir / "10-pods.conflist").write_text(json.dumps(_pod_network(self.connection)))

    def _install_criu_preload(self) -> None:
        """Put a criu first on PATH that gets along with a confined machine."""
        library = self.path(Path(CRIU_PRELOAD))
        options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *options, "-o", library, CRIU_PRELOAD_SOURCE], check=True)
        write_script(self.root / "usr/local/sbin/criu", CRIU_LAUNCHER)

    def _install_project(self) -> None:
        site_packages = Path("/") / rootfs.site_packages(self.edition)
        python = f"/usr/bin/python{self.edition.python}"
        install(self.root, python=python, site_packages=site_packages, runc=RUNC)
        self.run([python, "-m", "compileall", "-q", f"{site_packages}/grit_runtime"])

    def _import_image(self, image: Path) -> None:
        shutil.copy(image, self.root / "run")
        self.run(["ctr", "-n", "k8s.io", "images", "import", f"/run/{image.name}"])
        (self.root / "run" / image.name).unlink()


def install(root: Path, *, python: str, site_packages: Path, runc: str) -> None:
    """Put this checkout, not compiled, and its launchers where an installer would at *root*."""
    package = root / site_packages.relative_to("/") / "grit_runtime"
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(rootfs.REPO / "grit_runtime", package, ignore=ignored)
    write_launchers(root, python=python, site_packages=site_packages, runc=runc)


def write_launchers(root: Path, *, python: str, site_packages: Path, runc: str) -> None:
    """Write the three launchers for the node at *root*, whose other paths are its own."""
    paths = {"python": python, "packages": str(site_packages)}
    launchers = {
        "grit-runtime": launcher("grit-runtime", **paths, runc=runc),
        "containerd-shim-grit-v1": launcher("containerd-shim-grit-v1", **paths),
        "grit": CLI_LAUNCHER.format(python=f"/{rootfs.VENV}/bin/python"),
    }
    for name, text in launchers.items():
        write_script(root / "usr/local/bin" / name, text)


def launcher(name: str, **paths: str) -> str:
    """A launcher as an installation writes it for a node with these paths."""
    return wanted.launcher(name, **paths).content.decode()


def handler_tables(containerd: str, name: str, *, shim: str) -> str:
    """A handler as an installation adds it to the configuration of that containerd."""
    base = handlers.Base("runc", {"runtime_type": handlers.RUNTIME_TYPE})
    table = handlers.table(base, runtime=wanted.RUNTIME, shim=shim)
    return handlers.text(2 if containerd == "1.7" else 3, {name: table})


def write_script(path: Path, text: str) -> None:
    """Write a program at *path*."""
    path.write_text(text)
    path.chmod(0o755)


def _pod_network(connection: Connection) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": connection.pod_subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, {"type": "loopback"}]}


def _files(directory: Path) -> list[Path]:
    """What is below it, in order; pods may be going meanwhile, which os.walk bears."""
    return sorted(Path(place, name) for place, _, names in os.walk(directory) for name in names)


def logs(root: Path) -> list[str]:
    """The ends of all logs of the node at *root* that may tell why something failed."""
    found = sorted((root / "var/log").glob("*.log"))
    for below in ("var/log/grit", "var/log/pods"):
        found += _files(root / below)
    for below in ("mnt/grit-agent", "run/containerd", "run/grit", "var/lib/grit"):
        found += [path for path in _files(root / below) if path.suffix == ".log"]
    parts = []
    for path in found:
        with suppress(OSError), path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
            parts += [f"---- {path.relative_to(root)}", text]
    return parts
