"""Pods as kubelet is told of them, as far as the tests need."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from typing import NamedTuple

from grit_runtime.proto import cri_pb2


class EmptyDir(NamedTuple):
    """A volume that lives as long as its pod, on disk or in memory."""

    name: str
    in_memory: bool = False


class HostPath(NamedTuple):
    """A directory or file of the node."""

    name: str
    path: str


class VolumeMount(NamedTuple):
    """Where a container sees a volume, or the part *sub_path* of it."""

    volume: str
    path: str
    readonly: bool = False
    sub_path: str = ""
    propagation: cri_pb2.MountPropagation = cri_pb2.PROPAGATION_PRIVATE


class Security(NamedTuple):
    """securityContext of a container; what is left out is as kubelet leaves it."""

    user: int = 0
    group: int | None = None
    groups: tuple[int, ...] = ()
    privileged: bool = False
    readonly_rootfs: bool = False
    no_new_privs: bool = False
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    seccomp: cri_pb2.SecurityProfile.ProfileType = cri_pb2.SecurityProfile.Unconfined


class Resources(NamedTuple):
    """Limits of a container; 0 is none."""

    memory_bytes: int = 0
    cpu_quota_us: int = 0


NO_LIMITS = Resources()
DEFAULT_SECURITY = Security()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """One container of a pod."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[VolumeMount, ...] = ()
    devices: tuple[str, ...] = ()
    resources: Resources = NO_LIMITS
    security: Security = DEFAULT_SECURITY
    stdin: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpec:
    """A pod as kubelet is told of it."""

    name: str
    containers: tuple[ContainerSpec, ...]
    namespace: str = "default"
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    annotations: tuple[tuple[str, str], ...] = ()
    runtime_handler: str = ""  # the one that its host has pods run by
    volumes: tuple[EmptyDir | HostPath, ...] = ()
    token_volume: str = field(default_factory=lambda: f"kube-api-access-{secrets.token_hex(3)}")
    host_network: bool = False
    host_pid: bool = False
    share_process_namespace: bool = False
    host_users: bool = True
