"""What several checks ask about: this node as its configuration, containerd and kubelet tell it."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from grit_runtime.errors import GritError, NotFoundError
from grit_runtime.host import process, procfs
from grit_runtime.host.containerd import Containerd
from grit_runtime.nvidia import gpu_driver, suspension
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.config import Config
    from grit_runtime.nvidia.gpu_driver import Card

LAUNCHER = "/usr/local/bin/grit-runtime"
_SHIM = "containerd-shim-grit-v1"
_SHIM_TYPE = "io.containerd.grit.v1"

# Where distributions have the socket that kubelet uses: containerd's own, k3s and RKE2, microk8s,
# k0s.
SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
)

_KUBELET_CONFIG = "/var/lib/kubelet/config.yaml"  # kubeadm's place
_REQUEST_TIMEOUT_S = 120.0
_GO_PARTS = re.compile(r"([0-9.]+)(ms|h|m|s)")
_GO_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


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


class Kubelet(NamedTuple):
    endpoint: str  # its container runtime's socket, "" if nothing says so
    cgroup_driver: str
    request_timeout_s: float


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
    kubelet = _kubelet()
    return Node(config, _containerd(config, kubelet), kubelet, _driver(), peers)


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


def _containerd(config: Config, kubelet: Kubelet | None) -> Answers | GritError:
    address = config.containerd_address
    if not os.path.exists(address):
        told = (kubelet.endpoint,) if kubelet else ()
        others = [
            path for path in dict.fromkeys((*told, *SOCKETS)) if path and os.path.exists(path)
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


def _kubelet() -> Kubelet | None:
    """What kubelet was told, by its command line or its file; None if neither is to be seen.

    Source: kubernetes staging/src/k8s.io/kubelet/config/v1beta1/types.go.
    """
    options, root = dict[str, str](), ""
    for pid, name in procfs.names().items():
        if name == "kubelet":
            root = f"/proc/{pid}/root"
            options = _options(procfs.text(pid, "cmdline").split("\0"))
    text = _read(root + options.get("config", _KUBELET_CONFIG))
    if not (options or text):
        return None
    timeout = _told(options, text, "runtime-request-timeout", "runtimeRequestTimeout")
    return Kubelet(
        endpoint=_told(
            options, text, "container-runtime-endpoint", "containerRuntimeEndpoint"
        ).removeprefix("unix://"),
        cgroup_driver=_told(options, text, "cgroup-driver", "cgroupDriver"),
        request_timeout_s=_go_seconds(timeout) or _REQUEST_TIMEOUT_S,
    )


def _options(words: list[str]) -> dict[str, str]:
    """Those of a command line: ``--name=value``, or ``--name value``."""
    found = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = value if equals else after
    return found


def _told(options: dict[str, str], text: str, option: str, key: str) -> str:
    """A setting's value: the command line's, or that of the file, which is YAML or JSON."""
    found = re.search(rf'^[ {{,]*"?{key}"?\s*:\s*"?([^",\s]+)', text, flags=re.MULTILINE)
    return options.get(option) or (found[1] if found else "")


def _go_seconds(text: str) -> float:
    return sum(float(number) * _GO_UNITS_S[unit] for number, unit in _GO_PARTS.findall(text))


def _read(path: str) -> str:
    """A file's text; "" if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
