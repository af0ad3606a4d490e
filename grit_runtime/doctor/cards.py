"""NVIDIA's driver, its cards, and how containers get them."""

from __future__ import annotations

import glob
import os
import re

from grit_runtime import errors
from grit_runtime.doctor.finding import Finding, absent, broken, failed, ok, warning
from grit_runtime.doctor.node import Driver
from grit_runtime.host import procfs
from grit_runtime.model import gpu_preflight, sizes
from grit_runtime.nvidia import libcuda

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.doctor.node import Node

_CAN_CHANGE_CARDS = 580
_NO_DRIVER = absent("no NVIDIA driver")
_CDI_KIND = "nvidia.com/"
_SPECS = ("*.json", "*.yaml")  # container-device-interface 0dfd23b pkg/cdi/spec-dirs.go
# A key of YAML or JSON, quoted or not, that is at the beginning of its line or of a flow's item.
_KEY = r"""(?:^[-\s]*|[{,]\s*)["']?%s["']?\s*:\s*"""
_KIND = re.compile(_KEY % "kind" + f"[\"']?{_CDI_KIND}", re.MULTILINE)
_HOST_PATH = re.compile(
    _KEY % "hostPath" + r"""(?:"([^"\n]+)"|'([^'\n]+)'|([^\s"'][^,}\n]*?)\s*(?:$|[,}]|\s#))""",
    re.MULTILINE,
)
_COMM_BYTES = 15
_MPS = "nvidia-cuda-mps-server"


def nvidia_driver(node: Node) -> Finding:
    """It was asked for the state of a process, by which its calls are known to be there."""
    driver = node.driver
    if driver is None:
        return _NO_DRIVER
    if isinstance(driver, Exception):
        return failed(driver)
    if why := gpu_preflight.deadly(driver.version):
        return broken(f"NVIDIA driver {driver.version}", why, errors.GpuError.reason)
    shown = f"NVIDIA driver {driver.version}, with {len(libcuda.SYMBOLS)} calls for checkpoints"
    if int(driver.version.partition(".")[0]) < _CAN_CHANGE_CARDS:
        return warning(
            shown,
            f"pods come back on the same card only; {_CAN_CHANGE_CARDS} and newer take another",
        )
    return ok(shown)


def cards(node: Node) -> Finding:
    """Modes in which the driver cannot checkpoint."""
    if not isinstance(node.driver, Driver):
        return _NO_DRIVER if node.driver is None else absent("the driver does not answer")
    found = node.driver.cards
    models = ", ".join(dict.fromkeys(card.model for card in found))
    shown = f"{len(found)} cards ({models}), {sizes.shown(node.gpu_bytes)}"
    if split := [card.uuid for card in found if card.mig]:
        return warning(
            f"{shown}; {split[0]} is in MIG mode",
            "pods on its instances are refused: use whole GPUs for pods that move",
        )
    if _runs(_MPS):
        return warning(
            f"{shown}; MPS serves them", "its clients are refused: run pods that move without MPS"
        )
    if any(not card.persistent for card in found):
        return warning(
            f"{shown}; persistence mode is off",
            "run nvidia-persistenced: a restore waits for the driver's start otherwise",
        )
    return ok(shown)


def cdi(node: Node) -> Finding:
    """Its specs give containers the driver's files: NVIDIA's hook does what no restore repeats."""
    if node.driver is None:
        return _NO_DRIVER
    if isinstance(node.containerd, Exception):
        return absent("containerd does not answer")
    remedy = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    directories = node.containerd.cdi_directories
    if not directories:
        return broken(
            "containerd has CDI turned off",
            "set enable_cdi = true in the configuration of its CRI plugin, and restart it",
            errors.GpuError.reason,
        )
    specs = dict(_specs(directories))
    if not specs:
        where = " or ".join(directories)
        return broken(f"no spec of kind {_CDI_KIND}* in {where}", remedy, errors.GpuError.reason)
    for path, text in specs.items():
        for file in map("".join, _HOST_PATH.findall(text)):
            if not os.path.exists(file):
                return broken(
                    f"{path} names {file}, which is not there: was the driver upgraded?",
                    remedy,
                    errors.GpuError.reason,
                )
    return ok(f"{', '.join(specs)}; all files that it names are there")


def _specs(directories: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Path and text of NVIDIA's; read with its own few keys, without a parser of YAML."""
    for directory in directories:
        found = [
            path
            for name in _SPECS
            for path in glob.glob(name, root_dir=directory, include_hidden=True)
        ]
        for path in [f"{directory}/{name}" for name in sorted(found)]:
            if not os.path.isfile(path):
                continue
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
            if _KIND.search(text):
                yield path, text


def _runs(program: str) -> bool:
    return program[:_COMM_BYTES] in procfs.names().values()
