"""kubelet was told by its command line or its file; a pod of that name tells nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from grit_runtime.host import kubelet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMED = """
import sys
from grit_runtime.host import linux
linux.set_name("kubelet")
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def running(*options: str, inside: tuple[str, ...] = ()) -> Iterator[None]:
    argv = [*inside, sys.executable, "-c", NAMED, *options]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, **streams) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"\n"
        yield
        process.communicate()


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "kind: KubeletConfiguration\ncgroupDriver: 'systemd'\nruntimeRequestTimeout: 2m30.5s\n"
        'containerRuntimeEndpoint: "unix:///run/of-the-file.sock"\n'
    )
    options = ("--config", str(config), "--container-runtime-endpoint=unix:///run/of-the-line.sock")
    with running(*options):
        told = kubelet.told()
    assert told == kubelet.Kubelet("/run/of-the-line.sock", "systemd", 150.5)


def test_a_file_may_be_json(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text('{"kind": "KubeletConfiguration",\n "runtimeRequestTimeout": "90s"}')
    with running(f"--config={config}"):
        told = kubelet.told()
    assert told == kubelet.Kubelet("", "", 90)


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace is root's to make")
def test_a_kubelet_of_a_pod_is_none_of_the_node_s() -> None:
    inside = ("unshare", "--pid", "--fork", "--mount-proc")
    with running("--container-runtime-endpoint=/run/mine.sock", inside=inside):
        assert kubelet.told() is None
