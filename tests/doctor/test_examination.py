"""Whatever a check meets is a finding of that check; the report goes on."""

from __future__ import annotations

import datetime
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from grit_runtime import certificates, errors
from grit_runtime.agent import client, identity, service
from grit_runtime.config import Config
from grit_runtime.doctor import agents, examination, runtime, storage
from grit_runtime.doctor import node as this_node
from grit_runtime.doctor.finding import BROKEN, OK, WARNING, Finding
from tests.doctor import nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from grit_runtime.doctor.node import Node

ANSWERS_WITHIN_S = 3
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "garbage": lambda _: b"garbage\n",
    "cut": lambda pem: pem[: len(pem) // 2],
}
REMEDIES = {identity.CERTIFICATE: "grit agent init", identity.CA: "from another node"}


def test_a_fault_of_a_check_is_its_finding() -> None:
    def flux_level(_: Node) -> Finding:
        raise ValueError("no\nnumber")

    found = examination.found_by(flux_level, nodes.node())
    assert found[:3] == ("flux level", BROKEN, "ValueError: no?number")
    assert found.remedy
    assert found.reason == errors.INTERRUPTED


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_certificate_is_named(tmp_path: Path, name: str, damage: str) -> None:
    identity.make(str(tmp_path), "node-a")
    node = nodes.node(config=Config(agent_dir=str(tmp_path)))
    assert agents.certificate(node).verdict == OK
    (tmp_path / name).write_bytes(DAMAGES[damage]((tmp_path / name).read_bytes()))
    found = examination.found_by(agents.certificate, node)
    assert found.verdict == BROKEN
    assert found.evidence == f"{tmp_path}/{name} is no certificate: expected one in PEM, whole"
    assert REMEDIES[name] in found.remedy
    assert found.reason == "ConfigurationInvalid"


def test_a_certificate_of_another_ca_is_none_for_other_nodes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for directory in (ours, theirs):
        identity.make(str(directory), "node-a")
    node = nodes.node(config=Config(agent_dir=str(ours)))
    own_ca, other_ca = [(path / identity.CA).read_text() for path in (ours, theirs)]
    (ours / identity.CA).write_text(other_ca)
    found = examination.found_by(agents.certificate, node)
    assert found.verdict == BROKEN
    assert "node.pem is signed by no CA of ca.pem beside it" in found.evidence
    assert found.reason == "PeerUntrusted"
    (ours / identity.CA).write_text(other_ca + own_ca)  # while one takes the other's place
    assert examination.found_by(agents.certificate, node).verdict == OK


def test_a_certificate_that_is_not_valid_yet_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_SKEW", datetime.timedelta(days=-1))
    identity.make(str(tmp_path), "node-a")
    found = examination.found_by(
        agents.certificate, nodes.node(config=Config(agent_dir=str(tmp_path)))
    )
    assert found.verdict == BROKEN
    assert f"{tmp_path}/node.pem is not valid before " in found.evidence
    assert "set the clock of this node" in found.remedy


def test_an_agent_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{tmp_path}/agent.sock"
    monkeypatch.setattr(service, "SOCKET", address)
    monkeypatch.setattr(client.status, "__defaults__", (address, 30.0))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        begin = time.monotonic()
        found = examination.found_by(agents.agent, nodes.node())
        took_s = time.monotonic() - begin
    assert took_s < ANSWERS_WITHIN_S
    assert found.verdict == BROKEN
    assert f"the agent at {address} has not answered for 1.5 s" in found.evidence


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system whose server does not answer."""
    directory = tmp_path / "dead"
    directory.mkdir()
    with open("/dev/fuse", "r+b", buffering=0) as server:
        options = f"fd={server.fileno()},rootmode=40000,user_id=0,group_id=0"
        argv = ["mount", "-i", "-t", "fuse", "-o", options, "nobody", str(directory)]
        subprocess.run(argv, check=True, pass_fds=[server.fileno()])
        yield directory
    subprocess.run(["umount", "-i", "-l", directory], check=True)


def test_a_disk_that_does_not_answer_holds_nobody_up(dead: Path) -> None:
    begin = time.monotonic()
    found = examination.found_by(
        storage.checkpoint_root, nodes.node(config=Config(checkpoint_root=str(dead)))
    )
    assert time.monotonic() - begin < ANSWERS_WITHIN_S
    assert found.verdict == BROKEN
    assert found.evidence == f"{dead} does not answer within 2 s"
    assert found.reason == "DeadlineExceeded"


def test_a_disk_that_answers_is_told_of(tmp_path: Path) -> None:
    node = nodes.node(config=Config(checkpoint_root=str(tmp_path)))
    tmp_path.chmod(0o700)
    found = examination.found_by(storage.checkpoint_root, node)
    assert found.verdict in {OK, WARNING}
    assert f"{tmp_path}: " in found.evidence
    assert "/s to the medium" in found.evidence


def test_a_containerd_that_does_not_answer_holds_nobody_up(tmp_path: Path) -> None:
    address = f"{tmp_path}/containerd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        begin = time.monotonic()
        node = this_node.look(Config(containerd_address=address), ())
        took_s = time.monotonic() - begin
    found = runtime.containerd(node)
    assert took_s < ANSWERS_WITHIN_S
    assert found.verdict == BROKEN
    assert found.evidence == f"containerd at {address} has not answered Status in 1.5 s"
    assert found.reason == "DeadlineExceeded"
