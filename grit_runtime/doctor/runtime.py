"""containerd as it says of itself, and kubelet beside it."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase

from grit_runtime import errors
from grit_runtime.doctor.finding import Finding, absent, broken, failed, ok, warning
from grit_runtime.errors import ConfigurationError, DeadlineExceededError
from grit_runtime.host.kubelet import Kubelet
from grit_runtime.model import annotations as known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.doctor.node import Node

_SNAPSHOTTER = "overlayfs"
_RESTORED_BYTES_PER_S = 1 << 30
_SILENT = absent("containerd does not answer")
_KUBELET_REMEDY = "correct kubelet's configuration, or the option that names it"
_NO_HANDLER = absent("containerd has no handler of grit")


def containerd(node: Node) -> Finding:
    """The one that kubelet uses, which need not be the one in PATH."""
    address, answers, kubelet = node.config.containerd_address, node.containerd, node.kubelet
    if isinstance(kubelet, Kubelet) and kubelet.endpoint and not _same(kubelet.endpoint, address):
        return broken(
            f"kubelet's containerd is at {kubelet.endpoint}, and grit asks the one at {address}",
            f'set containerd_address = "{kubelet.endpoint}", and runc_root, in the configuration',
            errors.ConfigurationError.reason,
        )
    if isinstance(answers, DeadlineExceededError):
        return failed(answers)._replace(remedy="its log may say why; restart it")
    if isinstance(answers, Exception):
        return failed(answers)._replace(
            remedy="start containerd, or set containerd_address to the socket of kubelet's"
        )
    if answers.not_ready:
        return warning(
            f"containerd {answers.version} at {address} is not ready: {answers.not_ready[0]}",
            "pods are started when it is; its log says more",
        )
    return ok(f"containerd {answers.version} at {address}")


def handler(node: Node) -> Finding:
    """Which of containerd's runtime handlers lead to grit."""
    if isinstance(node.containerd, Exception):
        return _SILENT
    if not node.handlers:
        others = ", ".join(sorted(node.containerd.runtimes))
        return broken(
            f"containerd has no handler that calls grit-runtime, only {others}",
            "run grit install",
            errors.NotFoundError.reason,
        )
    for name, one in node.handlers.items():
        shim = one.get("runtimePath") or ""
        if shim and not os.access(shim, os.X_OK):
            return broken(
                f"handler {name} has its shim at {shim}, and there is none",
                "run grit install",
                errors.NotFoundError.reason,
            )
    return ok(f"containerd has {_names(node)}")


def passed_annotations(node: Node) -> Finding:
    """Whether a pod's annotations reach grit: of the sandbox and of each container."""
    if not node.handlers:
        return _SILENT if isinstance(node.containerd, Exception) else _NO_HANDLER
    for name, one in node.handlers.items():
        for key, field in (
            ("pod_annotations", "PodAnnotations"),
            ("container_annotations", "ContainerAnnotations"),
        ):
            patterns = one.get(field) or []
            if not all(any(_passes(p, k) for p in patterns) for k in known.KNOWN):
                return broken(
                    f"handler {name} has {key} = {patterns}, which does not pass grit.dev/*",
                    f'run grit install, or set {key} = ["grit.dev/*"] in its table and restart '
                    "containerd: a pod starts from its image otherwise, and nothing says so",
                    errors.AnnotationError.reason,
                )
    return ok(f"{_names(node)} passes grit.dev/* of pods and containers")


def cgroup_driver(node: Node) -> Finding:
    """It has to be the same for kubelet, for runc's handler and for grit's."""
    if isinstance(node.containerd, Exception):
        return _SILENT
    if not node.handlers:
        return _NO_HANDLER
    usual = node.containerd.runtimes.get(node.containerd.default_runtime) or {}
    told = {f"handler {name}": _cgroup_driver(one) for name, one in node.handlers.items()}
    told[f"handler {node.containerd.default_runtime}"] = _cgroup_driver(usual)
    if isinstance(node.kubelet, Kubelet) and node.kubelet.cgroup_driver:
        told["kubelet"] = node.kubelet.cgroup_driver
    if len(set(told.values())) > 1:
        return broken(
            "; ".join(f"{who}: {driver}" for who, driver in told.items()),
            "set SystemdCgroup in the options of grit's handler as the others have it",
            errors.ConfigurationError.reason,
        )
    return ok(f"{next(iter(told.values()))}, for {', '.join(told)}")


def snapshotter(node: Node) -> Finding:
    """What a container has written is read from an overlay's upper directory."""
    if isinstance(node.containerd, Exception):
        return _SILENT
    usual = os.path.basename(node.containerd.image_directory).rpartition(".")[2]
    own = {one.get("snapshotter") or usual for one in node.handlers.values()} or {usual}
    if own != {_SNAPSHOTTER}:
        return broken(
            f"the snapshotter is {', '.join(sorted(own))}",
            f'set snapshotter = "{_SNAPSHOTTER}" in the table of the handler',
            errors.FailedPreconditionError.reason,
        )
    return ok(_SNAPSHOTTER)


def request_timeout(node: Node) -> Finding:
    """kubelet gives up a container's start after it; the restore is a part of that."""
    if node.kubelet is None:
        return absent("no kubelet, nor its configuration, is to be seen here")
    if isinstance(node.kubelet, Exception):
        return failed(node.kubelet)._replace(remedy=_KUBELET_REMEDY)
    try:
        timeout_s, wait_s = node.kubelet.request_timeout_s, node.config.restore_wait_s
    except ConfigurationError as error:  # its own remedy is about grit's configuration
        return failed(error)._replace(remedy=_KUBELET_REMEDY)
    gpu_s = node.gpu_bytes / _RESTORED_BYTES_PER_S
    evidence = f"runtimeRequestTimeout is {timeout_s:g} s; restore_wait_s is {wait_s:g} s"
    if node.gpu_bytes:
        evidence += f", and to fill all cards may take {gpu_s:.0f} s"
    remedy = "raise runtimeRequestTimeout in kubelet's configuration, or lower restore_wait_s"
    if timeout_s <= wait_s:
        return broken(evidence, remedy, errors.NotArrivedError.reason)
    if timeout_s < wait_s + gpu_s:
        return warning(evidence, remedy)
    return ok(evidence)


def _passes(pattern: str, key: str) -> bool:
    """As Go's path.Match has it: no "*" stands for a "/"."""
    return pattern.count("/") == key.count("/") and all(
        fnmatchcase(part, of) for part, of in zip(key.split("/"), pattern.split("/"), strict=True)
    )


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _names(node: Node) -> str:
    return f"handler {' and '.join(sorted(node.handlers))}"


def _cgroup_driver(handler: dict[str, object]) -> str:
    options = handler.get("options")
    is_systemd = isinstance(options, dict) and options.get("SystemdCgroup")
    return "systemd" if is_systemd else "cgroupfs"
