"""grit doctor on nodes that are broken in one way each: it names that, and nothing else."""

from __future__ import annotations

import datetime
import json
import shlex
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from grit_runtime import certificates
from grit_runtime.agent import service
from integration.documents import documented
from integration.fakes import fake_gpu
from integration.node.node import READY, START_TIMEOUT_S
from integration.pods import agents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from integration.node.node import Node
    from integration.tests.conftest import Nodes

    Break = Callable[[Node], AbstractContextManager[None]]

CONFIG = Path("/etc/grit/config.toml")
KUBELET = Path("/var/lib/kubelet/config.yaml")
LAUNCHER = Path("/usr/local/bin/grit-runtime")
SHIM = Path("/usr/local/bin/containerd-shim-grit-v1")
CDI = Path("/etc/cdi/nvidia.yaml")
OLD_RUNC = """\
#!/bin/sh
[ "$1" != --version ] || { echo "runc version 1.0.3"; exit; }
exec /usr/sbin/runc "$@"
"""


@pytest.fixture(autouse=True)
def without_agents(nodes: Nodes) -> None:
    """No earlier test's agent is left, nor its certificate."""
    for node in nodes:
        node.run(["rm", "-rf", str(agents.DIRECTORY), service.SOCKET])


def doctor(node: Node, *options: str) -> dict[str, dict[str, str]]:
    """What it finds, by name."""
    done = node.run(["grit", "doctor", "--json", *options], check=False)
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert done.returncode == any(one["verdict"] == "broken" for one in found.values())
    return found


def verdicts(found: dict[str, dict[str, str]], *of: str) -> dict[str, str]:
    """Those findings that have one of these verdicts."""
    return {name: one["verdict"] for name, one in found.items() if one["verdict"] in of}


@contextmanager
def written(node: Node, path: Path, text: str, *, mode: int = 0o644) -> Iterator[None]:
    """Have the node's file be this; then what it was, or nothing."""
    place = node.path(path)
    before = place.read_text() if place.exists() else None
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)
    try:
        yield
    finally:
        if before is None:
            place.unlink()
        else:
            place.write_text(before)


@contextmanager
def gone(node: Node, *paths: str) -> Iterator[None]:
    with ExitStack() as stack:
        for path in paths:
            place = node.path(Path(path))
            aside = place.rename(f"{place}.aside")
            stack.callback(aside.rename, place)
        yield


@contextmanager
def mounted(node: Node, path: str, options: str) -> Iterator[None]:
    node.run(["mkdir", "-p", path])
    node.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path])
    try:
        yield
    finally:
        node.run(["umount", path])


@contextmanager
def containerd_with(node: Node, change: Callable[[str], str]) -> Iterator[None]:
    """containerd, started with another configuration; then with its own again."""
    directory = Path("/etc/containerd")
    files = [path for path in node.path(directory).rglob("*.toml") if path.is_file()]
    with ExitStack() as stack:
        stack.callback(restart, node)
        for path in files:
            text = path.read_text()
            stack.callback(path.write_text, text)
            path.write_text(change(text))
        restart(node)
        yield


def restart(node: Node) -> None:
    node.stop_containerd()
    node.start_containerd()
    assert node.cri.becomes_ready(node._containerd, READY, START_TIMEOUT_S)  # noqa: SLF001


def without_annotations(text: str) -> str:
    return text.replace('container_annotations = ["grit.dev/*"]', 'container_annotations = ["*"]')


def without_handlers(text: str) -> str:
    text = text.replace("/usr/local/bin/grit-runtime", "/usr/sbin/runc")
    return text.replace('runtime_path = "/usr/local/bin/containerd-shim-grit-v1"', "")


def with_cdi(text: str) -> str:
    head = '[plugins."io.containerd.grpc.v1.cri"]\n'
    return text.replace(head, f"{head}enable_cdi = true\n")


def config(line: str) -> Break:
    return lambda node: written(node, CONFIG, f"{line}\n")


def kubelet(line: str) -> Break:
    return lambda node: written(node, KUBELET, f"kind: KubeletConfiguration\n{line}\n")


@contextmanager
def old_runc(node: Node) -> Iterator[None]:
    with (
        written(node, Path("/usr/local/bin/old-runc"), OLD_RUNC, mode=0o755),
        written(node, CONFIG, 'runc = "/usr/local/bin/old-runc"\n'),
    ):
        yield


@contextmanager
def misdirected_launcher(node: Node) -> Iterator[None]:
    text = node.path(LAUNCHER).read_text()
    with written(
        node, LAUNCHER, text.replace("packages=/opt/grit", "packages=/opt/other"), mode=0o755
    ):
        yield


@contextmanager
def known_to_peers(node: Node, *, days: int, answers: bool) -> Iterator[None]:
    """A node with a certificate for so many days, and perhaps an agent that answers."""
    agents.introduce([node])
    directory = node.path(agents.DIRECTORY)
    ca, ca_key = ((directory / name).read_bytes() for name in ("ca.pem", "ca.key"))
    pem, key = certificates.new_signed((node.name,), ca, ca_key, 825)
    if days < 0:
        pem, key = expired(node.name, ca, ca_key)
    (directory / "node.pem").write_bytes(pem)
    (directory / "node.key").write_bytes(key)
    with ExitStack() as stack:
        stack.callback(node.run, ["rm", "-rf", str(agents.DIRECTORY)])
        if answers:
            agents.start(node, stack)
        yield


def expired(name: str, ca: bytes, ca_key: bytes) -> tuple[bytes, bytes]:
    """A certificate of yesterday."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    key = certificates.new_key()
    now = datetime.datetime.now(datetime.UTC)
    pem, _ = certificates.new_signed((name,), ca, ca_key, 1)
    valid = x509.load_pem_x509_certificate(pem)
    builder = x509.CertificateBuilder(
        issuer_name=valid.issuer,
        subject_name=valid.subject,
        public_key=key.public_key(),
        serial_number=valid.serial_number,
        not_valid_before=now - datetime.timedelta(days=2),
        not_valid_after=now - datetime.timedelta(days=1),
    )
    signer: Any = serialization.load_pem_private_key(ca_key, password=None)
    return certificates.pem(builder.sign(signer, hashes.SHA256())), certificates.pem(key)


@contextmanager
def with_cards(
    node: Node, *, driver: str = fake_gpu.DRIVER, spec: str = "/usr/sbin/runc"
) -> Iterator[None]:
    """A node with a card, whose spec of CDI names that file."""
    text = f"kind: nvidia.com/gpu\ncontainerEdits:\n  mounts:\n  - hostPath: {spec}\n"
    with (
        fake_gpu.installed(node, [fake_gpu.new_card(0)], driver=driver),
        containerd_with(node, with_cdi),
        written(node, CDI, text),
    ):
        yield


@contextmanager
def damaged(node: Node, path: Path) -> Iterator[None]:
    """With nothing left in a file of a node that is known to its peers."""
    with known_to_peers(node, days=825, answers=True):
        node.path(path).write_text("")
        yield


@contextmanager
def silent(node: Node) -> Iterator[None]:
    """A socket in containerd's place that takes calls and answers none."""
    address = Path("/run/silent.sock")
    with (
        written(node, CONFIG, f'containerd_address = "{address}"\n'),
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(str(node.path(address)))
        listener.listen()
        try:
            yield
        finally:
            node.path(address).unlink()


@contextmanager
def made(node: Node, path: Path, kind: str) -> Iterator[None]:
    """A directory or a fifo where a file should be."""
    node.run(["mkdir", "-p", str(path.parent)])
    node.run([kind, str(path)])
    try:
        yield
    finally:
        node.run(["rm", "-r", str(path)])


BROKEN: dict[str, tuple[str, str, Break]] = {
    "a key that nobody knows": ("configuration", "checkpoint_rot", config('checkpoint_rot = "/a"')),
    "no CRIU": ("criu", "criu", lambda node: gone(node, "/usr/sbin/criu", "/usr/local/sbin/criu")),
    "no runc": ("runc", "runc not found", lambda node: gone(node, "/usr/sbin/runc")),
    "a runc that is too old": ("runc", "1.0.3", old_runc),
    "no containerd": (
        "containerd",
        "/run/none.sock",
        config('containerd_address = "/run/none.sock"'),
    ),
    "another containerd": (
        *("containerd", "/run/k3s/containerd.sock"),
        kubelet("containerRuntimeEndpoint: unix:///run/k3s/containerd.sock"),
    ),
    "no handler": ("handler", "runc", lambda node: containerd_with(node, without_handlers)),
    "a handler without annotations": (
        *("passed annotations", "container_annotations"),
        lambda node: containerd_with(node, without_annotations),
    ),
    "another cgroup driver": ("cgroup driver", "systemd", kubelet("cgroupDriver: systemd")),
    "a timeout that means nothing": (
        *("request timeout", "1.2.3s"),
        kubelet("runtimeRequestTimeout: 1.2.3s"),
    ),
    "a directory for kubelet's configuration": (
        *("request timeout", "no regular file"),
        lambda node: made(node, KUBELET, "mkdir"),
    ),
    "a fifo for kubelet's configuration": (
        *("request timeout", "no regular file"),
        lambda node: made(node, KUBELET, "mkfifo"),
    ),
    "a containerd that is silent": ("containerd", "has not answered", silent),
    "a signing key that is missing": (
        *("keys", "signing_key: /etc/grit/none.pem: No such file"),
        config('signing_key = "/etc/grit/none.pem"'),
    ),
    "a signing key that is none": (
        *("keys", "signing_key: /etc/passwd"),
        config('signing_key = "/etc/passwd"'),
    ),
    "an empty launcher": (
        *("launcher", "is not grit's"),
        lambda node: written(node, LAUNCHER, "", mode=0o755),
    ),
    "an empty shim": ("shim", "is not grit's", lambda node: written(node, SHIM, "", mode=0o755)),
    "an empty certificate": (
        *("certificate", "no certificate"),
        lambda node: damaged(node, Path(agents.DIRECTORY, "node.pem")),
    ),
    "a kubelet that gives up": ("request timeout", "60 s", kubelet("runtimeRequestTimeout: 1m0s")),
    "no shim": (
        *("handler", "containerd-shim-grit-v1"),
        lambda node: gone(node, "/usr/local/bin/containerd-shim-grit-v1"),
    ),
    "a launcher without its packages": ("launcher", "grit_runtime", misdirected_launcher),
    "a full disk": (
        *("checkpoint root", "No space left on device"),
        lambda node: mounted(node, "/mnt/grit-agent", "size=1m"),
    ),
    "a disk that is read only": (
        *("checkpoint root", "Read-only file system"),
        lambda node: mounted(node, "/mnt/grit-agent", "ro"),
    ),
    "no checkpoint root": (
        *("checkpoint root", "/mnt/other"),
        config('checkpoint_root = "/mnt/other"'),
    ),
    "logs that cannot be written": (
        *("own directories", "/var/log/grit"),
        lambda node: mounted(node, "/var/log/grit", "ro"),
    ),
    "a certificate that has expired": (
        *("certificate", "expired"),
        lambda node: known_to_peers(node, days=-1, answers=True),
    ),
    "no agent": (
        *("agent", "no agent answers"),
        lambda node: known_to_peers(node, days=825, answers=False),
    ),
    "a driver that kills": (
        *("nvidia driver", "610.57.04"),
        lambda node: with_cards(node, driver="610.57.04"),
    ),
    "a spec of the driver before": (
        *("cdi", "libcuda.so.550"),
        lambda node: with_cards(node, spec="/usr/lib/libcuda.so.550.1"),
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_doctor_names_what_is_broken_and_nothing_else(nodes: Nodes, how: str) -> None:
    name, evidence, breaking = BROKEN[how]
    before = doctor(nodes.a)
    with breaking(nodes.a):
        found = doctor(nodes.a)
    assert verdicts(found, "broken") == {name: "broken"}
    assert evidence in found[name]["evidence"]
    assert found[name]["remedy"]
    assert found[name]["reason"]
    assert verdicts(found, "warning").items() <= verdicts(before, "warning").items()
    assert verdicts(doctor(nodes.a), "broken") == {}


def test_a_whole_node_has_nothing_broken_and_a_container_goes_there_and_back(nodes: Nodes) -> None:
    with agents.running(nodes):
        found = doctor(nodes.a, "--live", "--peer", "peer://node-b")
    assert verdicts(found, "broken") == {}
    looked_at = {"dump and restore", "reached peers", "agent", "certificate", "handler", "criu"}
    assert looked_at <= verdicts(found, "ok").keys()
    assert list(nodes.a.path(Path("/run/grit/doctor")).iterdir()) == []


def test_a_peer_without_an_agent_is_named(nodes: Nodes) -> None:
    with known_to_peers(nodes.a, days=825, answers=True):
        found = doctor(nodes.a, "--peer", "peer://127.0.0.1:9")
    assert verdicts(found, "broken") == {"reached peers": "broken"}


def test_a_dump_that_fails_is_told_with_criu_s_own_line(nodes: Nodes) -> None:
    with written(
        nodes.a,
        Path("/usr/local/sbin/criu"),
        '#!/bin/sh\n[ "$1" != swrk ] || exec /usr/sbin/criu check --no-such-option\n'
        'exec /usr/sbin/criu "$@"\n',
        mode=0o755,
    ):
        found = doctor(nodes.a, "--live")
    assert verdicts(found, "broken") == {"dump and restore": "broken"}
    assert list(nodes.a.path(Path("/run/grit/doctor")).iterdir()) == []


def test_people_see_a_line_for_each_finding_at_any_width(nodes: Nodes) -> None:
    for columns in ("80", "200"):
        told = nodes.a.run(["env", f"COLUMNS={columns}", "grit", "doctor"]).stdout
        assert max(map(len, told.splitlines())) <= int(columns)
        assert "containerd" in told
        assert told.splitlines()[-1].startswith("0 broken, ")


def test_the_documents_command_finds_a_whole_node_whole(nodes: Nodes) -> None:
    (line,) = documented("doctor")
    nodes.a.run(shlex.split(line))
