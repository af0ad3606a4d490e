"""kubelet was told by its command line or its file; a pod of that name tells nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from grit_runtime.errors import ConfigurationError
from grit_runtime.host import kubelet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A process of that name is seen by all tests that look for one: they go one after the other.
KUBELET = pytest.mark.xdist_group("kubelet")
pytestmark = KUBELET

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
    assert told == kubelet.Kubelet("/run/of-the-line.sock", "systemd", "2m30.5s")


@pytest.mark.parametrize("indent", [None, 1, "\t"])
def test_a_file_may_be_json(tmp_path: Path, indent: int | str | None) -> None:
    config = tmp_path / "config"
    told_it = {"kind": "KubeletConfiguration", "runtimeRequestTimeout": "90s"}
    config.write_text(json.dumps(told_it, indent=indent))
    with running(f"--config={config}"):
        told = kubelet.told()
    assert told == kubelet.Kubelet("", "", "90s")


def test_a_file_may_be_a_flow_of_yaml(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("{kind: KubeletConfiguration,\n runtimeRequestTimeout: 90s}")
    with running(f"--config={config}"):
        told = kubelet.told()
    assert told == kubelet.Kubelet("", "", "90s")


def test_of_a_directory_s_files_the_last_one_holds(tmp_path: Path) -> None:
    """Of those that say a thing; other files are none of kubelet's."""
    (tmp_path / "config.d/30").mkdir(parents=True)
    for name, text in (
        ("config", "cgroupDriver: cgroupfs\nruntimeRequestTimeout: 1s"),
        ("config.d/10.conf", "cgroupDriver: systemd\nruntimeRequestTimeout: 2s"),
        ("config.d/20.conf", '{"runtimeRequestTimeout": "3s"}'),
        ("config.d/30/a.conf", "runtimeRequestTimeout: 4s"),
        ("config.d/40.yaml", "runtimeRequestTimeout: 5s"),
    ):
        (tmp_path / name).write_text(text)
    with running(f"--config={tmp_path}/config", f"--config-dir={tmp_path}/config.d"):
        told = kubelet.told()
    assert told == kubelet.Kubelet("", "systemd", "4s")


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace is root's to make")
def test_a_kubelet_of_a_pod_is_none_of_the_node_s() -> None:
    inside = ("unshare", "--pid", "--fork", "--mount-proc")
    with running("--container-runtime-endpoint=/run/mine.sock", inside=inside):
        assert kubelet.told() is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("", 120), ("0", 120), ("0s", 120), ("2m30.5s", 150.5), ("1.s", 1), (".5s", 0.5)],
        *[("1h1ms", 3600.001), ("1500us", 0.0015)],
    ],
)
def test_durations_are_go_s(text: str, seconds: float) -> None:
    assert kubelet.Kubelet("", "", text).request_timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["1.2.3s", "...s", "90", "s", "2m 30s", "-1s", "soon"])
def test_a_duration_that_means_nothing_is_told(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"runtimeRequestTimeout is {text!r}, expected"):
        _ = kubelet.Kubelet("", "", text).request_timeout_s


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_configuration_that_is_no_file_is_named(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "config.yaml")
    no_file = pytest.raises(ConfigurationError, match=f"{tmp_path}/config.yaml is no regular file")
    with running(f"--config={tmp_path}/config.yaml"), no_file:
        kubelet.told()


def test_a_link_that_leads_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").symlink_to("config.yaml")
    with running(f"--config={tmp_path}/config.yaml"), pytest.raises(OSError, match="symbolic"):
        kubelet.told()
