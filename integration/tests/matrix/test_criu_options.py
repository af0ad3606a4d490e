"""Each option that grit writes into a private configuration file of CRIU changes what CRIU does.

The criu of a node is run through a launcher that takes one option out of the file at the last
moment; the rest is grit's own checkpoint and restore.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from integration.node import images
from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet
from integration.pods.pod_spec import ContainerSpec, PodSpec
from integration.tests.matrix.test_connections import TO_ITSELF, TO_NODE, address_of, echo_on, netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.pods.kubelet import Pod
    from integration.pods.pod_host import Host
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

LAUNCHERS = Path("/usr/local/sbin")  # first on PATH
TAKE_OUT = """\
#!/bin/sh
for file in "$CRIU_CONFIG_FILE" /run/grit/pods/*/*/criu.conf; do
    if [ -e "$file" ] && grep "^OPTION" "$file" >>/run/taken-out; then
        sed -i "/^OPTION/d" "$file"
    fi
done
"""
CALLED = "/run/iptables-called"
COUNT_CALLS = f'#!/bin/sh\necho >>{CALLED}\nexec /usr/sbin/iptables-restore "$@"\n'

HOLD = f"""
import ctypes, os
watched = "/watched"
os.mkdir(watched)
libc = ctypes.CDLL(None)
watching = libc.inotify_init()
libc.inotify_add_watch(watching, watched.encode(), 0x100)
deleted = open("/deleted", "w+b")
deleted.write(bytes(2 << 20))
deleted.flush()
os.unlink("/deleted")
{TO_ITSELF}
"""


def talker(name: str, program: str, *arguments: str, **asked: str) -> PodSpec:
    container = ContainerSpec(
        name="talker",
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", program, *arguments),
    )
    annotations = tuple((f"grit.dev/{key.replace('_', '-')}", asked[key]) for key in asked)
    return PodSpec(name=name, containers=(container,), annotations=annotations)


@contextmanager
def launcher(node: Host, name: str, text: str) -> Iterator[None]:
    """A program on the node in front of one of the same name."""
    path = node.path(LAUNCHERS / name)
    kept = path.read_text() if path.exists() else None
    path.write_text(text)
    path.chmod(0o755)
    yield
    if kept is None:
        path.unlink()
    else:
        path.write_text(kept)


@contextmanager
def without(node: Host, option: str) -> Iterator[None]:
    """CRIU on *node* does not hear of *option*, which grit must have written."""
    original = node.path(LAUNCHERS / "criu").read_text()
    taking_out = TAKE_OUT.replace("OPTION", option)
    taken_out = node.path(Path("/run/taken-out"))
    with launcher(node, "criu", original.replace("#!/bin/sh\n", taking_out, 1)):
        yield
    assert taken_out.read_text().startswith(option)
    taken_out.unlink()


@pytest.fixture(scope="module")
def holder(nodes: Nodes, fresh_nodes: None) -> Iterator[Pod]:  # noqa: ARG001 -- emptied before
    """On node A: a large deleted file, a watched directory of the rw layer, a connection."""
    with kubelet.running(nodes.a, talker("holder", HOLD)) as pod:
        pod.wait_for_log("talker", "\n3\n")
        yield pod


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("ghost-limit", "Can't dump ghost file /deleted of 2097152 size, increase limit"),
        ("irmap-scan-path", "Can't dump that handle"),
    ],
)
def test_a_dump_fails_without_an_option(holder: Pod, option: str, reason: str) -> None:
    with without(holder.node, option):
        failed = checkpoints.take(holder, "holder", "--replace", check=False)
    assert reason in failed.stderr
    checkpoints.take(holder, "holder", "--replace")


def test_a_frozen_pods_own_connections_are_not_locked(holder: Pod) -> None:
    node = holder.node
    calls = node.path(Path(CALLED))
    with launcher(node, "iptables-restore", COUNT_CALLS):
        checkpoints.take(holder, "holder", "--replace")
        assert not calls.exists()
        with without(node, "network-lock"):
            checkpoints.take(holder, "holder", "--replace")
        assert calls.exists()
    calls.unlink()


def test_packets_pass_while_a_pod_without_connections_comes_back(
    nodes: Nodes, run_pod: RunPod
) -> None:
    program = "import time\nfor n in range(10000): print(n, flush=True); time.sleep(0.1)"
    source = run_pod(nodes.a, talker("quiet", program))
    source.wait_for_log("talker", "\n3\n")
    checkpoints.take(source, "quiet", "--after", "frozen")
    source.stop(grace_period_s=0)
    source.remove()
    with launcher(nodes.a, "iptables-restore", COUNT_CALLS):
        target = run_pod(nodes.a, talker("quiet", program, restore_name="quiet"))
    target.wait_for_log("talker", "\n10\n")
    assert not nodes.a.path(Path(CALLED)).exists()


def test_criu_loads_no_plugin_of_its_own(holder: Pod) -> None:
    plugins_dir = holder.node.path(Path("/usr/lib/criu"))
    plugins_dir.mkdir()
    (plugins_dir / "broken_plugin.so").write_text("no library")
    try:
        with without(holder.node, "libdir"):
            failed = checkpoints.take(holder, "holder", "--replace", check=False)
        assert "broken_plugin.so" in failed.stderr
        checkpoints.take(holder, "holder", "--replace")
    finally:
        shutil.rmtree(plugins_dir)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [("close", "Need to set the --tcp-close"), ("established", "Connected TCP socket in image")],
)
def test_neither_dump_nor_restore_takes_a_connection_without_being_told(
    nodes: Nodes, asked: str, reason: str
) -> None:
    with ExitStack() as stack:
        address = address_of(nodes.a)
        stack.enter_context(echo_on(nodes.a, address))
        source = stack.enter_context(
            kubelet.running(nodes.a, talker(asked, TO_NODE, address, tcp=asked))
        )
        source.wait_for_log("talker", "\n3\n")
        if asked == "close":  # the other is a flag of runc's at the dump
            with without(nodes.a, "tcp-close"):
                failed = checkpoints.take(source, asked, check=False)
            assert "Connected TCP socket, consider using --tcp-established" in failed.stderr
        checkpoints.take(source, asked, "--after", "frozen")
        old = source.ip
        source.stop(grace_period_s=0)
        source.remove()
        spec = talker(asked, TO_NODE, address, tcp=asked, restore_name=asked)
        target = stack.enter_context(kubelet.sandbox(nodes.a, spec))
        nodes.a.run([*netns(target), "ip", "addr", "add", f"{old}/24", "dev", "eth0"])
        target.create("talker")
        with without(nodes.a, f"tcp-{asked}"), pytest.raises(CriError) as caught:
            target.start("talker")
        assert reason in caught.value.details
        locked = nodes.a.path(Path(CALLED))
        locked.unlink(missing_ok=True)
        with launcher(nodes.a, "iptables-restore", COUNT_CALLS):
            target.restart("talker")
        assert locked.exists() == (asked == "established")
        seen = "over\n" if asked == "close" else "\n10\n"
        target.wait_for_log("talker", seen)
