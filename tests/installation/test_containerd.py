"""Finding a node's containerd, what it reads, and paths that outlive an upgrade of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from grit_runtime import config
from grit_runtime.doctor import node as this_node
from grit_runtime.errors import CommandError
from grit_runtime.installation import containerd, wanted
from grit_runtime.installation.containerd import Daemon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LISTENS = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
sys.stdin.read()
"""
PRINTS_ITS_FILE = '#!/bin/sh\ncat "$2"\n'


@pytest.mark.parametrize("option", ["--config FILE", "--config=FILE", "-config FILE", "-c FILE"])
def test_its_configuration_is_the_one_that_it_was_started_with(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go's options may have one dash."""
    script, address, own = tmp_path / "containerd.py", tmp_path / "socket", tmp_path / "grit.toml"
    script.write_text(LISTENS)
    own.write_text(f'containerd_address = "{address}"\n')
    monkeypatch.setattr(config, "PATH", str(own))
    argv = [sys.executable, str(script), str(address), *option.replace("FILE", "/etc/x").split()]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, **streams) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        found = containerd.find()
        process.communicate()
    assert (found.pid, found.config) == (process.pid, "/etc/x")


def printing(directory: Path) -> Daemon:
    """What stands for a containerd that prints its file as it is."""
    program = directory / "containerd"
    program.write_text(PRINTS_ITS_FILE)
    program.chmod(0o755)
    return Daemon(
        address=f"{directory}/socket",
        pid=1,
        argv0=str(program),
        program=str(program),
        config=f"{directory}/etc/config.toml",
        path=os.defpath,
        temporary_dir="/run",
        unit="",
    )


@pytest.fixture
def beside_tmp() -> Iterator[Path]:
    """A directory that is not below /tmp, which programs that see other files have none of."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


def test_an_import_through_a_link_is_known_to_go(beside_tmp: Path) -> None:
    (beside_tmp / "real").mkdir()
    (beside_tmp / "etc").mkdir()
    (beside_tmp / "etc/conf.d").symlink_to(beside_tmp / "real")
    (beside_tmp / "real/grit.toml").write_text("version = 2\n")
    (beside_tmp / "etc/config.toml").write_text("imports = ['conf.d/grit.toml']\n")
    daemon, staged = printing(beside_tmp), {f"{beside_tmp}/real/grit.toml": None}
    assert containerd.effective(daemon, {})["imports"] == ["conf.d/grit.toml"]
    with pytest.raises(CommandError, match=r"imports .*/real/grit\.toml, which is not there"):
        containerd.effective(daemon, staged)


@pytest.mark.parametrize(
    ("path", "lasting"),
    [
        ("/snap/microk8s/7/bin/runc", "/snap/microk8s/current/bin/runc"),
        ("/var/snap/microk8s/7/args/t.toml", "/var/snap/microk8s/current/args/t.toml"),
        ("/var/lib/rancher/k3s/data/7/bin/runc", "/var/lib/rancher/k3s/data/current/bin/runc"),
        ("/var/lib/rancher/rke2/data/7/bin/runc", "/var/lib/rancher/rke2/bin/runc"),
        ("/usr/sbin/runc", "/usr/sbin/runc"),
    ],
)
def test_a_distribution_s_next_version_has_the_same_path(
    path: str, lasting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [(one.replace("^(", f"^({tmp_path}"), to) for one, to in containerd._LASTING]
    monkeypatch.setattr(containerd, "_LASTING", here)
    file, current = Path(f"{tmp_path}{path}"), Path(f"{tmp_path}{lasting}")
    file.parent.mkdir(parents=True)
    file.touch()
    assert containerd.lasting(str(file)) == str(file)  # without the distribution's link
    if path != lasting:
        link = next(one for one in (current, *current.parents) if one.parent.exists())
        link.symlink_to(next(one for one in file.parents if one.name in {"7", link.name}))
    assert containerd.lasting(str(file)) == str(current)


def test_a_launcher_s_paths_may_have_spaces(tmp_path: Path) -> None:
    runc = tmp_path / "it's a \\ runc"
    runc.write_text('#!/bin/sh\necho "$1"\n')
    runc.chmod(0o755)
    launcher = tmp_path / "grit-runtime"
    launcher.write_bytes(wanted.launcher(launcher.name, runc=str(runc)).content)
    assert this_node.launcher_paths(str(launcher))["runc"] == str(runc)
    done = subprocess.run(["sh", launcher, "state"], check=True, capture_output=True, text=True)
    assert done.stdout == "state\n"
