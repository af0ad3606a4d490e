"""Packages of grit: made of the checkout, installed where nothing else is, and removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from grit_runtime.version import VERSION
from integration.node.bare import BareNode
from integration.node.rootfs import REPO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.network import Network
    from integration.node.rootfs import Edition

# What the tests' own nodes have in its place.
AWAY = "rm -rf /opt/grit /usr/local/sbin/systemctl /run/systemd"
KEPT_BY_DPKG = re.compile(r"/var/(lib/dpkg|cache|log)\b")


@pytest.fixture(scope="module")
def node(edition: Edition, network: Network) -> Iterator[BareNode]:
    """A node that has nothing of grit at all."""
    with BareNode(edition, name="packaged", network=network) as node:
        node.restart_containerd()
        node.run(["sh", "-c", AWAY])
        yield node


@pytest.fixture(scope="session")
def deb(edition: Edition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("deb")
    argv = [str(REPO / "packaging/build-deb"), edition.python, str(directory)]
    subprocess.run(argv, check=True, timeout=300)
    (path,) = directory.iterdir()
    return path


def disk(node: BareNode) -> set[str]:
    return {line for line in node.disk() if not KEPT_BY_DPKG.search(line)}


def test_a_node_needs_neither_pip_nor_network(node: BareNode, deb: Path) -> None:
    before = disk(node)
    there = node.path(Path("/run") / deb.name)
    there.write_bytes(deb.read_bytes())
    node.run(["dpkg", "-i", f"/run/{deb.name}"], timeout_s=300)
    assert "Checkpoint running pods" in node.run(["grit", "--help"]).stdout
    assert "has not read its configuration yet" in node.run(["grit", "install"]).stdout
    node.run(["dpkg", "-i", f"/run/{deb.name}"], timeout_s=300)  # an upgrade, which goes on
    node.run(["dpkg", "-r", "grit-runtime"], timeout_s=300)
    assert disk(node) ^ before == set()


def test_the_package_is_not_removed_while_containerd_has_its_handler(
    node: BareNode, deb: Path
) -> None:
    node.path(Path("/run") / deb.name).write_bytes(deb.read_bytes())
    node.run(["dpkg", "-i", f"/run/{deb.name}"], timeout_s=300)
    node.run(["grit", "install"])
    node.restart_by_hand()
    assert "self-test: a container" in node.run(["grit", "install"]).stdout
    refused = node.run(["dpkg", "-r", "grit-runtime"], check=False, timeout_s=300)
    assert refused.returncode != 0
    assert "still has the handler grit" in refused.stderr
    assert "Usage" in node.run(["grit", "--help"]).stdout
    # What waits for that restart is not installed again by another package.
    again = node.run(["dpkg", "-i", f"/run/{deb.name}"], timeout_s=300)
    assert "grit uninstall has begun here, so nothing is upgraded" in again.stdout
    node.restart_by_hand()
    node.run(["dpkg", "-r", "grit-runtime"], timeout_s=300)


def test_the_package_has_manual_pages_and_completions(deb: Path) -> None:
    listed = subprocess.run(["dpkg-deb", "-c", deb], check=True, capture_output=True, text=True)
    for name in ("man/man8/grit-checkpoint.8.gz", "bash-completion/completions/grit"):
        assert f"./usr/share/{name}\n" in listed.stdout
    assert str(REPO) not in listed.stdout


def tracked(directory: str) -> list[str]:
    """The files of a directory of the checkout that are or would be committed."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", directory]
    done = subprocess.run(argv, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def test_the_sources_make_the_same_package(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin/pip", "install", "-qq", "build"], check=True)
    made = tmp_path / "made"
    build = [str(venv / "bin/python"), "-m", "build", "--outdir", str(made)]
    sources_dir = tmp_path / "sources"
    for name in ("README.md", "LICENSE", "pyproject.toml", *tracked("grit_runtime")):
        (sources_dir / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, sources_dir / name)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([*build, str(sources_dir)], check=True, stdout=subprocess.PIPE, env=environment)
    wheel = made / f"grit_runtime-{VERSION}-py3-none-any.whl"
    with ZipFile(wheel) as files:
        packaged = {name for name in files.namelist() if ".dist-info/" not in name}
    with tarfile.open(made / f"grit_runtime-{VERSION}.tar.gz") as tar:
        sources = {name.partition("/")[2] for name in tar.getnames()}
    assert packaged == set(tracked("grit_runtime"))
    assert packaged <= sources
    subprocess.run([venv / "bin/pip", "install", "-qq", wheel], check=True, env=environment)
    argv = [str(venv / "bin/grit"), "--help"]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    assert "checkpoint " in done.stdout
