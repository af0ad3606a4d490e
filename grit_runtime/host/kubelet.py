"""kubelet of this node, as it was told to be: by its command line, or its configuration file."""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import suppress

from grit_runtime.errors import ConfigurationError
from grit_runtime.host import procfs
from grit_runtime.host.descriptor import closing_fd
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
_GO_PART = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|h|m|s)"
_GO_UNITS_S = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


class Kubelet(NamedTuple):
    endpoint: str  # its container runtime's socket, "" if nothing says so
    cgroup_driver: str
    request_timeout: str  # as Go has durations, "" if nothing says so
    root_dir: str = _ROOT_DIR

    @property
    def request_timeout_s(self) -> float:
        """kubelet's default if it was told none; ConfigurationError for one that means nothing."""
        text = self.request_timeout
        if not re.fullmatch(f"0|({_GO_PART})*", text):
            raise ConfigurationError(
                f"kubelet's runtimeRequestTimeout is {text!r}, expected a duration such as 2m30s"
            )
        parts = re.findall(_GO_PART, text)
        return sum(float(n) * _GO_UNITS_S[unit] for n, unit in parts) or _REQUEST_TIMEOUT_S


def told() -> Kubelet | None:
    """What kubelet was told, by its command line or its files; None if neither is to be seen.

    ConfigurationError or OSError if a file cannot be read.
    Source: kubernetes staging/src/k8s.io/kubelet/config/v1beta1/types.go, and
    cmd/kubelet/app/server.go mergeKubeletConfigurations.
    """
    options, root = dict[str, str](), ""
    for pid, name in procfs.names().items():
        if name == "kubelet" and procfs.is_like_us(pid):  # a pod may have one of that name
            root = f"/proc/{pid}/root"
            options = _options(procfs.text(pid, "cmdline").split("\0"))
    paths = [root + options.get("config", _KUBELET_CONFIG)]
    if "config-dir" in options:
        paths += _drop_ins(root + options["config-dir"])
    texts = [text for text in map(_read, paths) if text]
    if not (options or texts):
        return None
    return Kubelet(
        endpoint=_told(
            options, texts, "container-runtime-endpoint", "containerRuntimeEndpoint"
        ).removeprefix("unix://"),
        cgroup_driver=_told(options, texts, "cgroup-driver", "cgroupDriver"),
        request_timeout=_told(options, texts, "runtime-request-timeout", "runtimeRequestTimeout"),
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


def _drop_ins(directory: str) -> list[str]:
    """The files of kubelet's --config-dir, of which the last one that says a thing holds."""
    found = [
        os.path.join(place, name)
        for place, _, names in os.walk(directory)
        for name in names
        if name.endswith(".conf")
    ]
    return sorted(found, key=lambda path: path.split("/"))


def _told(options: dict[str, str], texts: list[str], option: str, key: str) -> str:
    """A setting's value: the command line's, or that of the last file that has it."""
    values = [options.get(option) or "", *(_value(text, key) for text in reversed(texts))]
    return next(filter(None, values), "")


def _value(text: str, key: str) -> str:
    """What a file of YAML or JSON says; "" if it does not."""
    if text.lstrip().startswith("{"):
        with suppress(json.JSONDecodeError):  # YAML's flows begin so, too
            return str(json.loads(text).get(key, ""))
    found = re.search(rf'^[ {{,]*"?{key}"?\s*:\s*"?([^",}}\s]+)', text, flags=re.MULTILINE)
    return found[1].strip("'") if found else ""


def _read(path: str) -> str:
    """A file's text; "" if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo would be waited for
    except FileNotFoundError:
        return ""
    with closing_fd(fd):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigurationError(
                f"{path} is no regular file; expected kubelet's configuration there"
            )
        with open(fd, encoding="utf-8", errors="replace", closefd=False) as file:
            return file.read()
