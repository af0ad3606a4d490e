"""What several checks ask about: this node as its configuration, containerd and kubelet tell it."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from grit_runtime.errors import GritError, NotFoundError
from grit_runtime.host import kubelet, process
from grit_runtime.host.containerd import Containerd
from grit_runtime.nvidia import gpu_driver, suspension
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.config import Config
    from grit_runtime.host.kubelet import Kubelet
    from grit_runtime.nvidia.gpu_driver import Card

LAUNCHER = "/usr/local/bin/grit-runtime"
_SHIM = "containerd-shim-grit-v1"
_SHIM_TYPE = "io.containerd.grit.v1"


class Answers(NamedTuple):
    """What containerd says of itself; *runtimes* are its handlers, as its configuration has them.

    Source: containerd v2.1.9 and v1.7.24, internal/cri/server/status.go, config/config.go.
    """

    version: str
    not_ready: tuple[str, ...]
    runtimes: dict[str, dict[str, Any]]
    default_runtime: str
    image_directory: str
    cdi_directories: tuple[str, ...]  # none if it has CDI turned off


class Driver(NamedTuple):
    version: str
    cards: tuple[Card, ...]


class Node(NamedTuple):
    config: Config
    containerd: Answers | GritError
    kubelet: Kubelet | None
    driver: Driver | GritError | None  # None: there is none
    peers: tuple[str, ...]  # that are to be reached, as peer://NODE

    @property
    def handlers(self) -> dict[str, dict[str, Any]]:
        """Those handlers of containerd that lead to grit."""
        if isinstance(self.containerd, GritError):
            return {}
        return {name: one for name, one in self.containerd.runtimes.items() if _is_ours(one)}

    @property
    def launcher(self) -> str:
        """What containerd calls as the runtime of grit's pods."""
        for handler in self.handlers.values():
            return str((handler.get("options") or {}).get("BinaryName") or LAUNCHER)
        return LAUNCHER

    @property
    def gpu_bytes(self) -> int:
        """The memory of all cards."""
        if isinstance(self.driver, Driver):
            return sum(card.total_bytes for card in self.driver.cards)
        return 0


def look(config: Config, peers: tuple[str, ...]) -> Node:
    """Ask containerd and the driver, and read what kubelet was told."""
    told = kubelet.told()
    return Node(config, _containerd(config, told), told, _driver(), peers)


def launcher_runc(launcher: str) -> str:
    """The runc that the launcher has in it; "" if it does not say."""
    with open(launcher, encoding="utf-8", errors="replace") as file:
        found = re.search(r"^runc=(\S+)$", file.read(), flags=re.MULTILINE)
    return found[1] if found else ""


def _is_ours(handler: dict[str, Any]) -> bool:
    program = (handler.get("options") or {}).get("BinaryName") or ""
    return (
        os.path.basename(program) == os.path.basename(LAUNCHER)
        or os.path.basename(handler.get("runtimePath") or "") == _SHIM
        or handler.get("runtimeType") == _SHIM_TYPE
    )


def _containerd(config: Config, beside: Kubelet | None) -> Answers | GritError:
    address = config.containerd_address
    if not os.path.exists(address):
        told = (beside.endpoint,) if beside else ()
        others = [
            path
            for path in dict.fromkeys((*told, *kubelet.SOCKETS))
            if path and os.path.exists(path)
        ]
        seen = f"there is {' and '.join(others)}" if others else "is containerd running?"
        return NotFoundError(f"no containerd at {address}; {seen}")
    try:
        with Containerd(address) as containerd:
            status = containerd.status()
            version, images = containerd.version(), containerd.image_directory()
    except GritError as error:
        return error
    told = json.loads(status.config)
    return Answers(
        version=version,
        not_ready=status.not_ready,
        runtimes=told["containerd"]["runtimes"],
        default_runtime=told["containerd"]["defaultRuntimeName"],
        image_directory=images,
        cdi_directories=tuple(told.get("cdiSpecDirs") or ()) if told.get("enableCDI") else (),
    )


def _driver() -> Driver | GritError | None:
    try:
        with suspension.opened_driver(process.new_token()) as driver:
            if driver is None:
                return None
            gpu_driver.states(driver, [os.getpid()])  # a driver without the calls refuses
            version, cards = gpu_driver.cards(driver)
    except GritError as error:
        return error
    return Driver(version, tuple(cards))
