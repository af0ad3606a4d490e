"""grit install, upgrade and uninstall on nodes that have nothing of grit but its package."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from grit_runtime.proto import cri_pb2
from grit_runtime.version import VERSION
from integration.documents import documented
from integration.node import killed as killing
from integration.node.bare import GRIT, BareNode
from integration.node.node import write_script
from integration.pods import checkpoints, kubelet, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from integration.node.network import Network
    from integration.node.rootfs import Edition
    from integration.pods.kubelet import Pod

LONG = bool(os.environ.get("GRIT_LONG"))
LOOPS = 50 if LONG else 5
STRIDE = 1 if LONG else 3  # between the steps that a command is killed at
CONFIG = Path("/etc/containerd/config.toml")
INSTALLATION = Path("/var/lib/grit/installation/journal")
NEWER, OLDER = "9.0.0", "0.0.1"
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


@pytest.mark.every_edition
def test_a_bare_node_gets_grit_moves_pods_through_versions_and_is_bare_again(
    bare: tuple[BareNode, BareNode],
) -> None:
    a, b = bare
    disks = [node.disk() for node in bare]
    for node in bare:
        shown, told = [
            node.run(shlex.split(line), timeout_s=120).stdout for line in documented("install")
        ]
        assert "+++ /usr/local/bin/grit-runtime" in shown
        assert "self-test: a container was checkpointed" in told
        (line,) = documented("doctor")
        assert "\n0 broken, " in node.run(shlex.split(line), timeout_s=120).stdout
    with ExitStack() as pods:
        source = pods.enter_context(kubelet.running(a, workload.counter_pod("moving")))
        workload.wait_for_count(source, 20)
        target = moved(source, (a, b), "moved", pods)
        pods_of = {a: source, b: target}
        for version in (NEWER, OLDER):
            change_version(pods_of, version)
        back = moved(target, (b, a), "back", pods)
        change_version(pods_of, VERSION)
        workload.assert_goes_on_from(back, 60, node=a)
        refused = grit(b, "uninstall", "--restart", check=False)
        assert refused.returncode == 1
        assert "default/moved; delete them, or say --drain" in refused.stderr
        workload.assert_goes_on_from(target, 60, node=b)
    for node, disk in zip(bare, disks, strict=True):
        node.run(["sh", "-c", "rm -rf /mnt/grit-agent/*"])  # checkpoints would be left
        (line,) = documented("uninstall")
        node.run([*shlex.split(line), "--purge"])
        assert node.disk() ^ disk == set()


def moved(source: Pod, way: tuple[BareNode, BareNode], name: str, pods: ExitStack) -> Pod:
    """A pod on the other node that goes on from where *source* is."""
    here, there = way
    count = max(workload.counts(source).logged)
    checkpoints.take(source, name)
    checkpoints.carry(here, there, name)
    annotations = (("grit.dev/restore-name", name),)
    spec = workload.counter_pod(name, annotations=annotations)
    target = pods.enter_context(kubelet.running(there, spec))
    workload.assert_goes_on_from(target, count, node=there)
    return target


def change_version(pods: dict[BareNode, Pod], version: str) -> None:
    """Bring the nodes to that version of grit, up or down, under pods that run on."""
    for node, pod in pods.items():
        pid = pod.pid("counter")
        node.replace_package(version)
        assert "self-test: a container" in grit(node, "upgrade", "--restart").stdout
        assert f'"{version}"' in node.path(INSTALLATION).read_text().splitlines()[-1]
        assert pod.pid("counter") == pid
        workload.assert_goes_on_from(pod, max(workload.counts(pod).logged), node=node)


def test_an_installation_is_made_and_taken_back_again_and_again(node: BareNode) -> None:
    disk = node.disk()
    for _ in range(LOOPS):
        grit(node, "install", "--restart")
        grit(node, "uninstall", "--restart")
        assert node.disk() ^ disk == set()


def test_a_dry_run_shows_all_and_writes_nothing(node: BareNode) -> None:
    node.run(["rmdir", "/mnt/grit-agent"])
    disk = node.disk()
    shown = grit(node, "install", "--dry-run", "--agent").stdout
    assert node.disk() ^ disk == set()
    grit(node, "install", "--agent")
    written = {line.split()[0] for line in node.disk() - disk}
    files = {path for path in written if not path.startswith(("/var/lib/grit", "/mnt"))}
    named = set(re.findall(r"^\+\+\+ (\S+)", shown, flags=re.MULTILINE))
    assert {path for path in files if path in named} == named
    assert "made: /mnt/grit-agent\n" in shown
    grit(node, "uninstall")
    assert node.disk() ^ disk == set()
    node.run(["mkdir", "-m", "0700", "/mnt/grit-agent"])


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


def test_an_upgrade_restarts_the_agent_and_no_other_call_does(node: BareNode) -> None:
    log = node.path(Path("/var/log/systemctl.log"))

    def restarted(*words: str) -> bool:
        before = len(log.read_text())
        grit(node, *words)
        return "restart grit-agent.service\n" in log.read_text()[before:]

    assert restarted("install", "--agent")
    assert not restarted("install", "--agent")
    for version in (NEWER, VERSION):
        node.replace_package(version)
        assert restarted("upgrade")
        assert not restarted("upgrade")
    grit(node, "uninstall")


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
    "line ends of another system": Wild({"config.toml": "# by hand\r\nversion = 2\r\n"}),
    "imports of a file that has the handlers": Wild(
        {
            "config.toml": 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n',
            "conf.d/99.toml": f"version = 2\n[{V2}.containerd.runtimes.runc]\n"
            "runtime_type = 'io.containerd.runc.v2'\n[debug]\nlevel = 'info'\n",
        },
    ),
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


CDI = '[nvidia-container-runtime]\nmode = "cdi"\n'


def test_nvidia_s_runtime_is_called_where_it_works_by_cdi(configured: BareNode) -> None:
    """It is a script here, which hands all on to runc, as it does itself."""
    node = configured
    config = Path("/etc/nvidia-container-runtime/config.toml")
    launcher = node.path(Path("/usr/local/bin/grit-runtime"))
    write_script(node.path(Path(NVIDIA)), '#!/bin/sh\nexec runc "$@"\n')
    configure(node, WILD["nvidia as default runtime"].files)
    node.restart_containerd()
    node.path(config).parent.mkdir()
    for text, runtime in (("", "/usr/sbin/runc"), (CDI, NVIDIA)):
        node.path(config).write_text(text)
        assert "self-test: a container" in grit(node, "install", "--restart").stdout
        assert f"\nrunc={runtime}\n" in launcher.read_text()
    grit(node, "uninstall", "--restart")
    node.run(["rm", "-r", NVIDIA, str(config.parent)])


@pytest.fixture
def configured(node: BareNode) -> Iterator[BareNode]:
    """A node whose containerd gets other files; it has its own again at the end."""
    directory = node.path(CONFIG.parent)
    own = node.path(CONFIG).read_text()
    yield node
    node.run(["sh", "-c", f"rm -rf {CONFIG.parent}/*"])
    (directory / CONFIG.name).write_text(own)
    node.restart_containerd()
    grit(node, "uninstall", "--restart")  # what a test that failed has left


def configure(node: BareNode, files: dict[str, str]) -> None:
    directory = node.path(CONFIG.parent)
    node.run(["sh", "-c", f"rm -rf {CONFIG.parent}/*"])
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    spec = node.run(["ctr", "oci", "spec"]).stdout
    (directory / "base.json").write_text(spec)


@pytest.mark.every_edition
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
    installed = node.disk()
    grit(node, "install")
    assert node.disk() ^ installed == set()
    grit(node, "uninstall", "--restart")
    assert node.disk() ^ disk == set()


def killed(node: BareNode, step: int, *words: str) -> bool:
    """Run a command of grit, killed before its change number *step*; false if it has fewer."""
    script = Path(killing.__file__).read_text()
    python = str(Path(GRIT).with_name("python"))
    done = node.run([python, "-c", script, str(step), *words], check=False)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode != 0


def test_an_installation_killed_anywhere_is_finished_or_taken_back(node: BareNode) -> None:
    disk = node.disk()
    step = 1
    while killed(node, step, "install", "--agent"):
        if step % 2:
            grit(node, "install")
            assert not killed(node, 1 << 20, "install")  # which finds nothing amiss
        grit(node, "uninstall")
        assert node.disk() ^ disk == set(), step
        step += STRIDE
    assert step > 30
    grit(node, "uninstall")
    assert node.disk() ^ disk == set()


def test_taking_back_goes_on_where_it_was_killed(node: BareNode) -> None:
    disk = node.disk()
    step = 1
    grit(node, "install", "--agent")
    while killed(node, step, "uninstall"):
        if step % 2:
            grit(node, "install", "--agent")
        else:
            grit(node, "uninstall")
            assert node.disk() ^ disk == set(), step
            grit(node, "install", "--agent")
        step += STRIDE
    assert step > 20
    assert node.disk() ^ disk == set()


def refused(node: BareNode, *words: str) -> str:
    """Why grit does not do it, which changes nothing."""
    disk = node.disk()
    done = grit(node, *words, check=False)
    assert done.returncode == 1
    assert node.disk() ^ disk == set()
    return done.stderr


REFUSED = {
    "version 1": ({"config.toml": "[debug]\nlevel = 'info'\n"}, "is of version 1, expected 2 or 3"),
    "a handler made by hand": (
        {
            "config.toml": f"version = 2\n[{V2}.containerd.runtimes.runc]\n"
            "runtime_type = 'io.containerd.runc.v2'\n"
            f"[{V2}.containerd.runtimes.grit]\nruntime_type = 'io.containerd.runc.v2'\n"
        },
        "has a handler grit already, which grit install has not written",
    ),
    "not runc": (
        {
            "config.toml": f"version = 2\n[{V2}.containerd]\ndefault_runtime_name = 'kata'\n"
            f"[{V2}.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\n"
        },
        "handler kata is of type io.containerd.kata.v2, expected io.containerd.runc.v2",
    ),
    "another runtime": (
        {
            "config.toml": f"version = 2\n[{V2}.containerd.runtimes.runc]\n"
            f"runtime_type = 'io.containerd.runc.v2'\n[{V2}.containerd.runtimes.runc.options]\n"
            "BinaryName = 'crun'\n"
        },
        "handler runc calls crun, expected runc",
    ),
    "tables that cannot be added to": (
        {
            "config.toml": "version = 2\n[plugins]\n"
            f"{V2[8:]} = {{ restrict_oom_score_adj = true }}\n"
        },
        "cannot be given the handler grit: with the handler in /etc/containerd/config.toml",
    ),
}


@pytest.mark.every_edition
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_take_the_handler_is_left_as_it_is(configured: BareNode, name: str) -> None:
    files, reason = REFUSED[name]
    if name == "version 1" and configured.edition.containerd == "2.x":
        pytest.skip("a version that this containerd does not read")
    configure(configured, files)
    configured.restart_containerd()
    assert reason in refused(configured, "install", "--restart")


@pytest.mark.every_edition
def test_an_address_that_is_said_otherwise_is_not_said_twice(configured: BareNode) -> None:
    """Not even if it is the usual one."""
    node = configured
    own = node.path(Path("/etc/grit/config.toml"))
    told = node.path(Path("/var/lib/kubelet/config.yaml"))
    own.parent.mkdir(exist_ok=True)
    own.write_text('containerd_address = "/run/containerd/containerd.sock"\n')
    told.write_text("containerRuntimeEndpoint: unix:///run/k3s/containerd.sock\n")
    try:
        assert "kubelet calls the containerd at /run/k3s/" in refused(node, "install")
    finally:
        told.unlink()
        own.unlink()
        own.parent.rmdir()


@pytest.mark.every_edition
def test_a_file_that_is_imported_by_name_is_not_removed(configured: BareNode) -> None:
    if configured.edition.containerd == "1.7":
        pytest.skip("1.7 gets no file of grit's own")
    imports = "version = 2\nimports = ['/etc/containerd/conf.d/*.toml'"
    configure(configured, {"config.toml": f"{imports}]\n"})
    configured.restart_containerd()
    grit(configured, "install", "--restart")
    by_name = f"{imports}, '/etc/containerd/conf.d/grit.toml']\n"
    configured.path(CONFIG).write_text(by_name)
    reason = refused(configured, "uninstall", "--restart")
    assert "containerd would not start" in reason
    assert "imports /etc/containerd/conf.d/grit.toml, which is not there" in reason
    configured.path(CONFIG).write_text(f"{imports}]\n")
    grit(configured, "uninstall", "--restart")


@pytest.mark.every_edition
@pytest.mark.parametrize("runs", [True, False], ids=["runs still", "does not run"])
def test_what_keeps_containerd_from_starting_can_be_taken_back(
    configured: BareNode, *, runs: bool
) -> None:
    node = configured
    disk = node.disk()
    grit(node, "install", "--agent")
    for path in node.path(CONFIG.parent).rglob("*.toml"):
        path.write_text(path.read_text().replace("runtimes.grit]", "runtimes.grit"))
    assert node.run(["containerd", "config", "dump"], check=False).returncode != 0
    if not runs:
        node.run(["sh", "-c", "kill $(pidof containerd); while pidof containerd; do :; done"])
    told = grit(node, "uninstall").stdout
    assert ("is taken back without it" in told) is not runs
    assert node.disk() ^ disk == set()


def test_what_others_write_beside_the_handler_is_kept(configured: BareNode) -> None:
    configure(configured, {"config.toml": "version = 2\n"})
    configured.restart_containerd()
    grit(configured, "install")
    with configured.path(CONFIG).open("a") as file:
        file.write("[debug]\nlevel = 'info'\n")
    grit(configured, "uninstall")
    assert configured.path(CONFIG).read_text() == "version = 2\n[debug]\nlevel = 'info'\n"


def test_nothing_is_half_written_where_etc_is_read_only(configured: BareNode) -> None:
    node = configured
    node.path(Path("/opt/containerd")).mkdir(exist_ok=True)
    configure(node, {"config.toml": "version = 2\nimports = ['/opt/containerd/*.toml']\n"})
    node.restart_containerd()
    disk = node.disk()
    node.run(["sh", "-c", "mount --bind /etc /etc && mount -o remount,bind,ro /etc"])
    try:
        if node.edition.containerd == "1.7":
            assert "no file of its configuration can be written" in refused(node, "install")
        else:
            grit(node, "install", "--restart")
            assert node.path(Path("/opt/containerd/grit.toml")).exists()
            grit(node, "uninstall", "--restart")
    finally:
        node.run(["umount", "/etc"])
    assert node.disk() ^ disk == set()


K3S = Path("/var/lib/rancher/k3s/agent/etc/containerd")
MICROK8S = Path("/var/snap/microk8s/current/args")


@pytest.mark.parametrize("custom", [False, True], ids=["no template", "a template"])
def test_on_k3s_the_handler_goes_into_the_template(node: BareNode, *, custom: bool) -> None:
    """There is no k3s here: what it would make of its template is put together by the test."""
    version, name = (2, "config.toml.tmpl")
    if node.edition.containerd == "2.x":
        version, name = 3, "config-v3.toml.tmpl"
    base = f"version = {version}\n[debug]\nlevel = 'info'\n"
    node.path(K3S).mkdir(parents=True)
    node.path(K3S / "config.toml").write_text(base)
    template = '{{ template "base" . }}\n# our own\n'
    if custom:
        node.path(K3S / name).write_text(template)
    arguments = ("--config", str(K3S / "config.toml"))
    node.restart_containerd(*arguments)
    before, disk = effective(node, *arguments), node.disk()
    told = grit(node, "install").stdout
    assert f"+++ {K3S / name}" in told
    written = node.path(K3S / name).read_text()
    assert written.startswith(template if custom else '{{ template "base" . }}\n')
    node.path(K3S / "config.toml").write_text(written.replace('{{ template "base" . }}\n', base))
    node.restart_containerd(*arguments)
    assert "self-test" in grit(node, "install").stdout
    assert others(effective(node, *arguments)) == before
    stale = grit(node, "uninstall", check=False)
    assert "still has the handler" in stale.stderr
    node.path(K3S / "config.toml").write_text(base)
    node.restart_containerd(*arguments)
    grit(node, "uninstall")
    assert {line for line in node.disk() ^ disk if "/config.toml" not in line} == set()
    node.run(["rm", "-r", "/var/lib/rancher"])
    node.restart_containerd()


def test_on_microk8s_the_handler_goes_into_the_template(node: BareNode) -> None:
    """There is no microk8s here, either. A template that is a link is one afterwards, too."""
    node.path(MICROK8S).mkdir(parents=True)
    for name in ("theirs.toml", "containerd.toml"):
        node.path(MICROK8S / name).write_text("version = 2\n[debug]\nlevel = 'info'\n")
    node.path(MICROK8S / "containerd-template.toml").symlink_to("theirs.toml")
    node.restart_containerd("--config", str(MICROK8S / "containerd.toml"))
    disk = node.disk()
    assert f"+++ {MICROK8S}/theirs.toml" in grit(node, "install").stdout
    grit(node, "install")
    assert "runtimes.grit]" in node.path(MICROK8S / "containerd-template.toml").read_text()
    grit(node, "uninstall")
    assert node.disk() ^ disk == set()
    node.run(["rm", "-r", "/var/snap"])
    node.restart_containerd()


OTHER = "/run/k3s/containerd/containerd.sock"
OTHER_CONTAINERD = f"""
mkdir -p /etc/other && echo 'version = 2' >/etc/other/config.toml
exec containerd --config /etc/other/config.toml --address {OTHER} --root /run/other-root \
    --state /run/other
"""
KUBELET = f"#!/bin/sh\n# {OTHER}\nread -r line\n"


def test_of_two_containerds_kubelet_s_is_meant(node: BareNode) -> None:
    """Its own kubelet is a script of that name, which does nothing."""
    write_script(node.path(Path("/run/kubelet")), KUBELET)
    with ExitStack() as stack:
        for argv in (
            ["sh", "-c", OTHER_CONTAINERD],
            ["/run/kubelet", f"--container-runtime-endpoint=unix://{OTHER}"],
        ):
            if "kubelet" in argv[0]:
                node.run(["sh", "-c", f"until [ -S {OTHER} ]; do sleep 0.05; done"])
                assert "there are several containerds" in refused(node, "install")
            process = stack.enter_context(node.popen(argv, stdin=subprocess.PIPE))
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
        own = "mkdir /etc/grit; ln -s ../other/grit.toml /etc/grit/config.toml"
        node.run(["sh", "-c", f"touch /etc/other/grit.toml; {own}"])
        disk = node.disk()
        shown = grit(node, "install", "--dry-run").stdout
        assert "configured by /etc/other/config.toml" in shown
        grit(node, "install")
        assert "runtimes.grit]" in node.path(Path("/etc/other/config.toml")).read_text()
        address = node.path(Path("/etc/grit/config.toml")).read_text()
        assert f'containerd_address = "{OTHER}"\n' in address
        assert grit(node, "install").returncode == 0
        grit(node, "uninstall")
        assert node.disk() ^ disk == set()
    node.run(["rm", "-r", "/etc/other", "/etc/grit", "/run/k3s"])
