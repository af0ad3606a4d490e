"""grit install, upgrade and uninstall on nodes that have nothing of grit but its package."""

from __future__ import annotations

import os
import re
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from grit_runtime.proto import cri_pb2
from integration.node.bare import GRIT, BareNode
from integration.pods import checkpoints, kubelet, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from integration.node.network import Network
    from integration.node.rootfs import Edition

LOOPS = 50 if os.environ.get("GRIT_LONG") else 5
CONFIG = Path("/etc/containerd/config.toml")
# What a table of options has or lacks to the same effect.
UNSAID: tuple[Any, ...] = ("", 0, [], False, "podsandbox")
HANDLER = re.compile(r"^plugins\.[^ ]*\.containerd\.runtimes\.grit\.")


@pytest.fixture(scope="module")
def bare(edition: Edition, network: Network) -> Iterator[tuple[BareNode, BareNode]]:
    """Two nodes that nothing but their packages was installed on."""
    with (
        BareNode(edition, name="bare-a", network=network) as a,
        BareNode(edition, name="bare-b", network=network) as b,
    ):
        for node in (a, b):
            node.restart_containerd()
        yield a, b


@pytest.fixture
def node(bare: tuple[BareNode, BareNode]) -> BareNode:
    return bare[0]


def grit(node: BareNode, *words: str, check: bool = True) -> CompletedProcess[str]:
    return node.run([GRIT, *words], check=check, timeout_s=120)


def effective(node: BareNode, *arguments: str) -> dict[str, Any]:
    """What containerd makes of its files, value by value, as it prints it itself."""
    argv = ["containerd", *arguments, "config", "dump"]
    return dict(leaves(tomllib.loads(node.run(argv).stdout)))


def leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "imports" and value not in UNSAID:
            yield f"{prefix}{key}", value


def others(values: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in values.items() if not HANDLER.match(path)}


def handler(values: dict[str, Any]) -> dict[str, Any]:
    return {HANDLER.sub("", path): value for path, value in values.items() if HANDLER.match(path)}


def test_a_bare_node_gets_grit_moves_a_pod_and_is_bare_again(
    bare: tuple[BareNode, BareNode],
) -> None:
    a, b = bare
    disks = [node.disk() for node in bare]
    for node in bare:
        assert (
            "self-test: a container was checkpointed" in grit(node, "install", "--restart").stdout
        )
    with ExitStack() as pods:
        source = pods.enter_context(kubelet.running(a, workload.counter_pod("moving")))
        workload.wait_for_count(source, 20)
        pid = source.pid("counter")
        grit(a, "upgrade", "--restart")
        assert source.pid("counter") == pid
        checkpoints.take(source, "moving")
        checkpoints.carry(a, b, "moving")
        annotations = (("grit.dev/restore-name", "moving"),)
        spec = workload.counter_pod("moved", annotations=annotations)
        target = pods.enter_context(kubelet.running(b, spec))
        workload.assert_goes_on_from(target, 20, node=b)
        refused = grit(b, "uninstall", "--restart", check=False)
        assert refused.returncode == 1
        assert "default/moved; delete them, or say --drain" in refused.stderr
        workload.assert_goes_on_from(target, 20, node=b)
    for node, disk in zip(bare, disks, strict=True):
        grit(node, "uninstall", "--restart", "--purge")
        node.run(["sh", "-c", "rm -rf /mnt/grit-agent/*"])  # checkpoints are left
        assert node.disk() ^ disk == set()


def test_an_installation_is_made_and_taken_back_again_and_again(node: BareNode) -> None:
    disk = node.disk()
    for _ in range(LOOPS):
        grit(node, "install", "--restart")
        grit(node, "uninstall", "--restart")
        assert node.disk() ^ disk == set()


def test_a_dry_run_shows_all_and_writes_nothing(node: BareNode) -> None:
    disk = node.disk()
    shown = grit(node, "install", "--dry-run", "--agent").stdout
    assert node.disk() ^ disk == set()
    grit(node, "install", "--agent")
    written = {line.split()[0] for line in node.disk() - disk}
    files = {path for path in written if not path.startswith(("/var/lib/grit", "/mnt"))}
    named = set(re.findall(r"^\+\+\+ (\S+)", shown, flags=re.MULTILINE))
    assert {path for path in files if path in named} == named
    grit(node, "uninstall")
    assert node.disk() ^ disk == set()


def test_containerd_is_not_restarted_unless_that_is_asked_for(node: BareNode) -> None:
    pid = node.run(["pidof", "containerd"]).stdout
    told = grit(node, "install").stdout
    assert "systemctl restart containerd.service" in told
    assert node.run(["pidof", "containerd"]).stdout == pid
    node.restart_containerd()
    assert "self-test" in grit(node, "install").stdout
    refused = grit(node, "uninstall", check=False)
    assert "the containerd that runs still has the handler grit" in refused.stderr
    assert node.path(Path("/usr/local/bin/grit-runtime")).exists()
    node.restart_containerd()
    grit(node, "uninstall")


def test_what_is_no_longer_asked_for_is_taken_away(node: BareNode) -> None:
    units = node.path(Path("/usr/local/lib/systemd/system"))
    disk = node.disk()
    grit(node, "install", "--agent", "--restart")
    assert {path.name for path in units.glob("*.*")} >= {"grit-agent.service", "grit-zygote.socket"}
    assert "runtime_path" in handler(effective(node))
    grit(node, "install", "--shim", "stock", "--restart")
    assert [path.name for path in units.glob("grit-*")] == []
    assert "runtime_path" not in handler(effective(node))
    grit(node, "uninstall", "--restart")
    assert node.disk() ^ disk == set()


def test_pods_that_still_run_are_stopped_when_that_is_asked_for(node: BareNode) -> None:
    disk = node.disk()
    grit(node, "install", "--restart")
    with kubelet.running(node, workload.counter_pod("doomed")) as pod:
        workload.wait_for_count(pod, 3)
        assert "stopped: default/doomed" in grit(node, "uninstall", "--restart", "--drain").stdout
        assert pod.status("counter").state == cri_pb2.CONTAINER_EXITED
    grit(node, "install", "--restart")
    grit(node, "uninstall", "--restart", "--purge")
    assert node.disk() ^ disk == set()


class Wild(NamedTuple):
    """A configuration as it is found on nodes, and what of it grit's handler takes over."""

    files: dict[str, str]
    expected: tuple[tuple[str, Any], ...] = ()
    editions: tuple[str, ...] = ("2.x", "1.7")


V2 = 'plugins."io.containerd.grpc.v1.cri"'
V3 = 'plugins."io.containerd.cri.v1.runtime"'
NVIDIA = "/usr/bin/nvidia-container-runtime"

KUBEADM_2 = f"""\
disabled_plugins = []
version = 2

[{V2}]
  restrict_oom_score_adj = true
  [{V2}.containerd]
    default_runtime_name = "runc"
    [{V2}.containerd.runtimes]
      [{V2}.containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        base_runtime_spec = "/etc/containerd/base.json"
        [{V2}.containerd.runtimes.runc.options]
          SystemdCgroup = true
  [{V2}.registry]
    config_path = "/etc/containerd/certs.d"
"""

WILD = {
    "version 2, systemd cgroups": Wild(
        {"config.toml": KUBEADM_2},
        (("options.SystemdCgroup", True), ("base_runtime_spec", "/etc/containerd/base.json")),
    ),
    "no line end, comments, odd order": Wild(
        {
            "config.toml": "# kept by hand\nversion = 2 # not 3\n\n"
            f"[{V2}.registry] # first\nconfig_path = '/etc/containerd/certs.d'\n"
            "[debug]\nlevel = 'info'\n"
            f"[ {V2} ]\n  restrict_oom_score_adj = true # last"
        },
    ),
    "only a version": Wild({"config.toml": "version = 2\n"}),
    "no file at all": Wild({}),
    "imports of another's files, version 2": Wild(
        {
            "config.toml": 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n',
            "conf.d/registry.toml": f"version = 2\n[{V2}.registry]\n"
            "config_path = '/etc/containerd/certs.d'\n",
        },
    ),
    "imports of another's files, version 3": Wild(
        {
            "config.toml": "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"
            f"[{V3}]\nrestrict_oom_score_adj = true\n",
            "conf.d/99-nvidia.toml": f"version = 3\n[{V3}.containerd]\n"
            f"default_runtime_name = 'nvidia'\n[{V3}.containerd.runtimes.nvidia]\n"
            f"runtime_type = 'io.containerd.runc.v2'\n[{V3}.containerd.runtimes.nvidia.options]\n"
            f"BinaryName = '{NVIDIA}'\nSystemdCgroup = true\n",
        },
        (("options.SystemdCgroup", True),),
        ("2.x",),
    ),
    "a relative import": Wild(
        {
            "config.toml": "version = 3\nimports = ['more/*.toml']\n",
            "more/debug.toml": "version = 3\n[debug]\nlevel = 'info'\n",
        },
        editions=("2.x",),
    ),
    "nvidia as default runtime": Wild(
        {
            "config.toml": f"version = 2\n[{V2}.containerd]\ndefault_runtime_name = 'nvidia'\n"
            f"[{V2}.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n"
            f"[{V2}.containerd.runtimes.nvidia]\nruntime_type = 'io.containerd.runc.v2'\n"
            f"[{V2}.containerd.runtimes.nvidia.options]\nBinaryName = '{NVIDIA}'\n"
            "SystemdCgroup = true\n"
        },
        (("options.SystemdCgroup", True),),
    ),
    "another containerd's snapshotter": Wild(
        {
            "config.toml": f"version = 2\n[{V2}.containerd.runtimes.runc]\n"
            "runtime_type = 'io.containerd.runc.v2'\nsnapshotter = 'native'\n"
            "pod_annotations = ['example.com/*']\n"
        },
        (("snapshotter", "native"), ("pod_annotations", ["example.com/*", "grit.dev/*"])),
    ),
}


@pytest.fixture
def configured(node: BareNode) -> Iterator[BareNode]:
    """A node whose containerd gets other files; it has its own again at the end."""
    directory = node.path(CONFIG.parent)
    own = node.path(CONFIG).read_text()
    yield node
    node.run(["sh", "-c", f"rm -rf {CONFIG.parent}/*"])
    (directory / CONFIG.name).write_text(own)
    node.restart_containerd()


def configure(node: BareNode, files: dict[str, str]) -> None:
    directory = node.path(CONFIG.parent)
    node.run(["sh", "-c", f"rm -rf {CONFIG.parent}/*"])
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    spec = node.run(["ctr", "oci", "spec"]).stdout
    (directory / "base.json").write_text(spec)


@pytest.mark.parametrize("name", WILD)
def test_a_configuration_of_the_wild_gets_the_handler_and_nothing_else(
    configured: BareNode, name: str
) -> None:
    node, wild = configured, WILD[name]
    if node.edition.containerd not in wild.editions:
        pytest.skip("a version that this containerd does not read")
    configure(node, wild.files)
    node.restart_containerd()
    disk = node.disk()
    before = effective(node) if wild.files or node.edition.containerd == "2.x" else None
    grit(node, "install", "--restart")
    after = effective(node)
    if before is not None:
        assert others(after) == before
    assert [handler(after).get(key) for key, _ in wild.expected] == [v for _, v in wild.expected]
    assert handler(after)["options.BinaryName"] == "/usr/local/bin/grit-runtime"
    grit(node, "uninstall", "--restart")
    assert node.disk() ^ disk == set()
