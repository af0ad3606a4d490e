"""kubelet of this node, as it was told to be: by its command line, or its configuration file."""

from __future__ import annotations

import re

from grit_runtime.host import procfs
from grit_runtime.startup.named import NamedTuple

# Where distributions have the socket that kubelet uses: containerd's own, k3s and RKE2, microk8s,
# k0s.
SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
)

_ROOT_DIR = "/var/lib/kubelet"  # unless its command line names another
_KUBELET_CONFIG = f"{_ROOT_DIR}/config.yaml"  # kubeadm's place
_REQUEST_TIMEOUT_S = 120.0
_GO_PARTS = re.compile(r"([0-9.]+)(ms|h|m|s)")
_GO_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Kubelet(NamedTuple):
    endpoint: str  # its container runtime's socket, "" if nothing says so
    cgroup_driver: str
    request_timeout_s: float
    root_dir: str = _ROOT_DIR


def told() -> Kubelet | None:
    """What kubelet was told, by its command line or its file; None if neither is to be seen.

    Source: kubernetes staging/src/k8s.io/kubelet/config/v1beta1/types.go.
    """
    options, root = dict[str, str](), ""
    for pid, name in procfs.names().items():
        if name == "kubelet" and procfs.is_like_us(pid):  # a pod may have one of that name
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
        root_dir=options.get("root-dir", _ROOT_DIR),
    )


def pods_dir() -> str:
    """Where kubelet has a directory for each pod, by its uid."""
    found = told()
    return f"{found.root_dir if found else _ROOT_DIR}/pods"


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
    return (options.get(option) or (found[1] if found else "")).strip("'")


def _go_seconds(text: str) -> float:
    return sum(float(number) * _GO_UNITS_S[unit] for number, unit in _GO_PARTS.findall(text))


def _read(path: str) -> str:
    """A file's text; "" if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
