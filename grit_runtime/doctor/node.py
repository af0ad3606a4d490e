"""What several checks ask about: this node as its configuration, containerd and kubelet tell it."""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import Any, TypeVar

from grit_runtime.errors import NotFoundError
from grit_runtime.host import kubelet, process
from grit_runtime.host.containerd import Containerd
from grit_runtime.nvidia import gpu_driver, suspension
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime.config import Config
    from grit_runtime.host.kubelet import Kubelet
    from grit_runtime.nvidia.gpu_driver import Card

LAUNCHER = "/usr/local/bin/grit-runtime"
_SHIM = "containerd-shim-grit-v1"
_SHIM_TYPE = "io.containerd.grit.v1"
_CALL_TIMEOUT_S = 1.5  # of containerd: a person waits for all findings

T = TypeVar("T")


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
    """An exception is why nothing is known of a part."""

    config: Config
    containerd: Answers | Exception
    kubelet: Kubelet | Exception | None  # None: there is none
    driver: Driver | Exception | None  # the same
    peers: tuple[str, ...]  # that are to be reached, as peer://NODE

    @property
    def handlers(self) -> dict[str, dict[str, Any]]:
        """Those handlers of containerd that lead to grit."""
        if isinstance(self.containerd, Exception):
            return {}
        return {name: one for name, one in self.containerd.runtimes.items() if _is_ours(one)}

    @property
    def launcher(self) -> str:
        """What containerd calls as the runtime of grit's pods."""
        for handler in self.handlers.values():
            return str((handler.get("options") or {}).get("BinaryName") or LAUNCHER)
        return LAUNCHER

    @property
    def shims(self) -> tuple[str, ...]:
        """grit's own, as those handlers name them, or where an installation puts it."""
        paths = [
            one.get("runtimePath") or f"{os.path.dirname(LAUNCHER)}/{_SHIM}"
            for one in self.handlers.values()
            if _has_our_shim(one)
        ]
        return tuple(dict.fromkeys(paths))

    @property
    def gpu_bytes(self) -> int:
        """The memory of all cards."""
        if isinstance(self.driver, Driver):
            return sum(card.total_bytes for card in self.driver.cards)
        return 0


def look(config: Config, peers: tuple[str, ...]) -> Node:
    """Ask containerd and the driver, and read what kubelet was told."""
    told = _answer(kubelet.told)
    return Node(config, _answer(lambda: _containerd(config, told)), told, _answer(_driver), peers)


def launcher_paths(launcher: str) -> dict[str, str]:
    """The paths that a launcher has at its top, by their names there; none if it is not grit's."""
    with open(launcher, encoding="utf-8", errors="replace") as file:
        lines = re.findall(r"^(python|packages|runc)=(.+)$", file.read(), flags=re.MULTILINE)
    return {name: "".join(shlex.split(path)) for name, path in lines}


def _answer(ask: Callable[[], T]) -> T | Exception:
    try:
        return ask()
    except Exception as error:  # noqa: BLE001  the checks that do not ask for it go on
        return error


def _is_ours(handler: dict[str, Any]) -> bool:
    program = (handler.get("options") or {}).get("BinaryName") or ""
    return (
        os.path.basename(program) == os.path.basename(LAUNCHER)
        or os.path.basename(handler.get("runtimePath") or "") == _SHIM
        or handler.get("runtimeType") == _SHIM_TYPE
    )


def _has_our_shim(handler: dict[str, Any]) -> bool:
    path = handler.get("runtimePath") or ""
    return os.path.basename(path) == _SHIM if path else handler.get("runtimeType") == _SHIM_TYPE


def _containerd(config: Config, beside: Kubelet | Exception | None) -> Answers:
    address = config.containerd_address
    if not os.path.exists(address):
        told = (beside.endpoint,) if isinstance(beside, kubelet.Kubelet) else ()
        others = [
            path
            for path in dict.fromkeys((*told, *kubelet.SOCKETS))
            if path and os.path.exists(path)
        ]
        seen = f"there is {' and '.join(others)}" if others else "is containerd running?"
        raise NotFoundError(f"no containerd at {address}; {seen}")
    with Containerd(address, _CALL_TIMEOUT_S) as containerd:
        status = containerd.status()
        version, images = containerd.version(), containerd.image_directory()
    told = json.loads(status.config)
    return Answers(
        version=version,
        not_ready=status.not_ready,
        runtimes=told["containerd"]["runtimes"],
        default_runtime=told["containerd"]["defaultRuntimeName"],
        image_directory=images,
        cdi_directories=tuple(told.get("cdiSpecDirs") or ()) if told.get("enableCDI") else (),
    )


def _driver() -> Driver | None:
    with suspension.opened_driver(process.new_token()) as driver:
        if driver is None:
            return None
        gpu_driver.states(driver, [os.getpid()])  # a driver without the calls refuses
        version, cards = gpu_driver.cards(driver)
    return Driver(version, tuple(cards))
