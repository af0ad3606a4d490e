"""How a shim comes to be: by the zygote, or without one."""

from __future__ import annotations

import base64
import os
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from grit_runtime.model.runtime_options import RuntimeOptions
from grit_runtime.proto import runc_options_pb2
from grit_runtime.shim import bundle
from grit_runtime.wire.well_known import pack
from integration.node import rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.node import Node
    from integration.tests.conftest import Nodes

SHIM = "/usr/local/bin/containerd-shim-grit-v1"
ADDRESS = "/run/containerd/containerd.sock"
BUNDLES = Path("/run/bundles")
SOCKETS_DIR = "/run/containerd/s"
TIMEOUT_S = 30
POLL_S = 0.02

# What containerd does: a directory, an environment, and nothing on standard input.
START = f"""
cd "$1" && shift
echo "$1" | base64 -d >/run/options && shift
export TTRPC_ADDRESS={ADDRESS}.ttrpc
exec {SHIM} -namespace test -address {ADDRESS} -id "$@" </run/options
"""


class Shims(NamedTuple):
    """Starts shims on a node, for bundles that are empty but for what a shim looks at."""

    node: Node

    def call(
        self, name: str, *words: str, config: str | None = "{}", options: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """Call the shim's program for the bundle *name*, with *options* to read."""
        bundle_dir = self.node.path(BUNDLES / name)
        bundle_dir.mkdir(parents=True, exist_ok=True)
        if not (bundle_dir / "log").exists():
            os.mkfifo(bundle_dir / "log")
        if config is not None:
            (bundle_dir / "config.json").write_text(config)
        encoded = base64.b64encode(options).decode()
        argv = ["sh", "-c", START, "sh", str(BUNDLES / name), encoded, name, *words]
        return self.node.run(argv, check=False)

    def start(self, name: str, *, config: str = "{}", options: bytes = b"") -> str:
        done = self.call(name, "start", config=config, options=options)
        assert done.returncode == 0, done
        assert done.stderr == ""
        assert done.stdout.startswith("unix:///run/containerd/s/")
        return done.stdout

    def pids(self, name: str) -> list[int]:
        """The shims of a bundle: those that have it for a directory."""
        found = [pid for pid in self.processes() if self.link(pid, "cwd") == str(BUNDLES / name)]
        return [pid for pid in found if self.text(pid, "comm") == "grit-shim\n"]

    def processes(self) -> list[int]:
        names = self.node.run(["ls", "/proc"]).stdout.split()
        return [int(name) for name in names if name.isdigit()]

    def link(self, pid: int, name: str) -> str:
        return self.node.run(["readlink", f"/proc/{pid}/{name}"], check=False).stdout.strip()

    def text(self, pid: int, name: str) -> str:
        return self.node.run(["cat", f"/proc/{pid}/{name}"], check=False).stdout

    def containerd(self) -> int:
        """The pid of the containerd that runs, and not of one that has ended."""
        return int(self.node.run(["pgrep", "-x", "-r", "D,R,S", "containerd"]).stdout)

    def zygote(self) -> int:
        """The zygote's pid, once one serves."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            said = self.node.run(["cat", "/run/grit/zygote.pid"], check=False).stdout.split()
            if said and self.text(int(said[0]), "comm") == "grit-zygote\n":
                return int(said[0])
            assert time.monotonic() < deadline, "no zygote"
            time.sleep(POLL_S)

    def end_all(self) -> None:
        for pid in self.processes():
            if self.link(pid, "cwd").startswith(str(BUNDLES)):
                self.node.run(["kill", "-KILL", str(pid)], check=False)
        self.node.run(["sh", "-c", f"rm -rf {BUNDLES} /run/containerd/s/*"])


@pytest.fixture
def shims(nodes: Nodes) -> Iterator[Shims]:
    shims = Shims(nodes.a)
    try:
        yield shims
    finally:
        shims.end_all()


@pytest.fixture
def zygote(shims: Shims) -> int:
    """A zygote that serves, left by the first start if there was none."""
    shims.start("first")
    return shims.zygote()


def test_the_zygote_becomes_the_shim(shims: Shims, zygote: int) -> None:
    shims.start("one")
    (pid,) = shims.pids("one")
    assert f"PPid:\t{zygote}\n" in shims.text(pid, "status")


def test_a_shim_is_where_a_child_of_its_caller_would_be(shims: Shims, zygote: int) -> None:
    del zygote
    shims.start("one")
    (pid,) = shims.pids("one")
    containerd = shims.containerd()
    assert shims.text(pid, "cgroup") == shims.text(containerd, "cgroup")
    score = int(shims.text(containerd, "oom_score_adj"))
    assert int(shims.text(pid, "oom_score_adj")) == score + 1
    assert [shims.link(pid, f"fd/{number}") for number in range(3)] == [
        "/dev/null",
        "/dev/null",
        str(BUNDLES / "one/log"),
    ]


def test_a_shim_says_in_containerds_log_which_pod_it_is_of(shims: Shims, zygote: int) -> None:
    del zygote
    shims.start("one")
    said = shims.node.run(["head", "-n1", str(BUNDLES / "one/log")]).stdout
    assert 'level=info msg="shim started" namespace=test id=one ' in said


@pytest.mark.parametrize("alone", [False, True], ids=["zygote", "alone"])
def test_a_shim_is_in_the_cgroup_that_its_options_name(
    shims: Shims, zygote: int, *, alone: bool
) -> None:
    if alone:
        shims.node.run(["kill", "-KILL", str(zygote)])
    containerd = shims.containerd()
    there = shims.text(containerd, "cgroup")
    shims.node.run(["mkdir", "/sys/fs/cgroup/pids/shims"])
    try:
        options = pack(runc_options_pb2.Options(shim_cgroup="/shims"))
        shims.start("one", options=options.SerializeToString())
        (pid,) = shims.pids("one")
        assert shims.text(pid, "cgroup") == there.replace("pids:/system", "pids:/shims")
    finally:
        shims.end_all()
        # A killed process leaves its cgroup a moment after it has ended.
        until = "until rmdir /sys/fs/cgroup/pids/shims; do sleep 0.02; done"
        shims.node.run(["timeout", "30", "sh", "-c", until])


def test_the_containers_of_a_pod_share_a_shim(shims: Shims, zygote: int) -> None:
    del zygote
    config = '{"annotations": {"io.kubernetes.cri.sandbox-id": "one"}}'
    assert shims.start("one", config=config) == shims.start("two", config=config)
    assert len(shims.pids("one")) == 1
    assert shims.pids("two") == []
    assert (shims.node.path(BUNDLES) / "two/address").read_text() == shims.start("one")


def test_a_dead_zygote_costs_nothing_but_speed(shims: Shims, zygote: int) -> None:
    shims.start("one")
    shims.node.run(["kill", "-KILL", str(zygote)])
    shims.start("two")
    assert len(shims.pids("one")) == len(shims.pids("two")) == 1
    assert shims.zygote() != zygote  # the next one, for the next start


def test_a_zygote_that_does_not_answer_is_not_waited_for_long(shims: Shims, zygote: int) -> None:
    shims.node.run(["kill", "-STOP", str(zygote)])
    try:
        shims.start("one")
        assert len(shims.pids("one")) == 1
    finally:
        shims.node.run(["kill", "-KILL", str(zygote)])


def test_an_upgrade_replaces_the_zygote_and_leaves_shims_alone(shims: Shims, zygote: int) -> None:
    shims.start("one")
    (pid,) = shims.pids("one")
    code = f"/{rootfs.site_packages(shims.node.edition)}/grit_runtime/shim/zygote.py"
    shims.node.run(["touch", code])
    shims.start("two")
    assert shims.zygote() != zygote
    assert shims.pids("one") == [pid]


def test_noise_in_the_fifo_is_not_heard(shims: Shims, zygote: int) -> None:
    shims.node.run(["sh", "-c", "echo noise 999999999 -1 0 >/run/grit/zygote"])
    shims.start("one")
    assert shims.zygote() == zygote


def test_the_fifo_is_for_root_alone(shims: Shims, zygote: int) -> None:
    del zygote
    directory = shims.node.path(Path("/run/grit")).stat()
    fifo = shims.node.path(Path("/run/grit/zygote")).stat()
    assert (directory.st_uid, directory.st_mode & 0o022) == (0, 0)
    assert (fifo.st_uid, stat.S_IMODE(fifo.st_mode)) == (0, 0o600)


def test_a_zygote_takes_the_fifo_that_systemd_holds(shims: Shims, zygote: int) -> None:
    shims.node.run(["kill", "-KILL", str(zygote)])
    script = f"exec 3<>/run/grit/zygote; LISTEN_PID=$$ LISTEN_FDS=1 exec {SHIM} zygote"
    held = shims.node.popen(["sh", "-c", script])
    try:
        assert shims.zygote() != zygote
        shims.start("one")
        (pid,) = shims.pids("one")
        assert f"PPid:\t{shims.zygote()}\n" in shims.text(pid, "status")
    finally:
        os.killpg(held.pid, signal.SIGKILL)
        held.wait()


@pytest.mark.parametrize("alone", [False, True], ids=["zygote", "alone"])
def test_a_start_that_cannot_be_is_told_in_one_line(
    shims: Shims, zygote: int, *, alone: bool
) -> None:
    if alone:
        shims.node.run(["kill", "-KILL", str(zygote)])
    done = shims.call("one", "start", config=None)
    assert done.returncode == 1
    said = done.stdout + done.stderr  # containerd reads both
    assert said.count("\n") == 1
    assert f"'{BUNDLES}/one/config.json'" in said
    assert shims.pids("one") == []


def test_the_version_is_told_without_reading_anything(shims: Shims) -> None:
    asked = shims.node.popen([SHIM, "-v"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert asked.stdout is not None
    try:
        assert asked.stdout.readline() == "containerd-shim-grit-v1:\n"
        assert asked.wait(TIMEOUT_S) == 0
    finally:
        asked.communicate()


def test_the_description_has_runcs_features(shims: Shims) -> None:
    done = shims.node.run(["sh", "-c", f"{SHIM} -info </dev/null | tr -cd '[:print:]'"])
    assert "io.containerd.grit.v1" in done.stdout
    assert "ociVersionMin" in done.stdout


def test_delete_of_what_has_left_nothing_says_that_it_was_killed(shims: Shims, zygote: int) -> None:
    del zygote
    shims.start("gone")
    assert_deleted_as_killed(shims, "gone")


def test_a_delete_that_takes_long_is_done_once(shims: Shims, zygote: int) -> None:
    del zygote
    shims.start("slow")
    (pid,) = shims.pids("slow")
    shims.node.run(["kill", "-KILL", str(pid)])
    program = shims.node.path(BUNDLES) / "runtime"
    program.write_text(f"#!/bin/sh\necho called >>{BUNDLES}/calls\nsleep 7\n")
    program.chmod(0o755)
    options = RuntimeOptions(binary_name=f"{BUNDLES}/runtime")
    bundle.write_options(str(shims.node.path(BUNDLES / "slow")), options)
    assert_deleted_as_killed(shims, "slow")
    assert (shims.node.path(BUNDLES) / "calls").read_text() == "called\n"


def assert_deleted_as_killed(shims: Shims, name: str) -> None:
    script = f"cd {BUNDLES}/{name} && {SHIM} -namespace test -id {name} -bundle . delete"
    done = shims.node.run(["sh", "-c", f"{script} | od -An -tx1"])
    assert done.stdout.split()[:3] == ["10", "89", "01"]  # exit_status 137
    assert done.stderr == ""


def test_a_start_waits_for_one_that_looks_at_the_sockets(shims: Shims, zygote: int) -> None:
    del zygote
    before = shims.node.run(["ls", SOCKETS_DIR]).stdout
    hold = ["flock", SOCKETS_DIR, "sh", "-c", "echo held; cat"]
    held = shims.node.popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert held.stdout is not None
    try:
        assert held.stdout.readline() == "held\n"
        with ThreadPoolExecutor() as threads:
            starting = threads.submit(shims.start, "one")
            wait_for_a_waiter(shims.node)
            assert shims.node.run(["ls", SOCKETS_DIR]).stdout == before
            held.communicate()
            starting.result()
    finally:
        held.kill()
        held.wait()


def wait_for_a_waiter(node: Node) -> None:
    """Wait until somebody waits for a lock: proc_locks(5)."""
    deadline = time.monotonic() + TIMEOUT_S
    while "-> FLOCK" not in node.run(["cat", "/proc/locks"]).stdout:
        assert time.monotonic() < deadline, "nobody waits for a lock"
        time.sleep(POLL_S)
