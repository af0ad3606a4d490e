"""A stand-in for kubelet: drives CRI and lays out /var/lib/kubelet and /var/log/pods as it does."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from grit_runtime.proto import cri_pb2
from integration.node import cgroup
from integration.node.cri import DEFAULT_TIMEOUT_S, CriError
from integration.pods.pod_spec import EmptyDir, HostPath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.message import Message

    from integration.pods.pod_host import Host
    from integration.pods.pod_spec import ContainerSpec, PodSpec, VolumeMount

PODS_DIR = Path("/var/lib/kubelet/pods")
LOGS_DIR = Path("/var/log/pods")
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 -- where one lies
TERMINATION_LOG = "/dev/termination-log"
GRACE_PERIOD_S = 30
POLL_S = 0.05

# A call may meet a shim that is on its way out; kubelet's next round then finds it gone.
STOP_ROUNDS = 5
SHIM_GONE = "ttrpc: closed"

SERVICE_ENVIRONMENT = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBERNETES_SERVICE_PORT_HTTPS": "443",
    "KUBERNETES_PORT": "tcp://10.96.0.1:443",
}
MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
USERS = cri_pb2.IDMapping(host_id=1 << 20, container_id=0, length=1 << 16)
USER_NAMESPACE = cri_pb2.UserNamespace(mode=cri_pb2.POD, uids=[USERS], gids=[USERS])


class Pod:
    """One pod on one host; a container is named as in the pod's spec."""

    def __init__(self, node: Host, spec: PodSpec) -> None:
        self.node = node
        self.spec = spec
        self.sandbox_id = ""
        self.container_ids: dict[str, str] = {}
        self.pod_dir = PODS_DIR / spec.uid
        self.log_dir = LOGS_DIR / f"{spec.namespace}_{spec.name}_{spec.uid}"
        self.removed = False
        self._attempts: dict[str, int] = {}
        self._created: list[str] = []
        self._sandboxes: list[str] = []
        self._config = self._sandbox_config()

    def run_sandbox(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Lay out the pod's directories and volumes, then run its sandbox."""
        for path in self._cgroup_dirs():
            path.mkdir(parents=True)
        for path in (self.pod_dir / "containers", self.pod_dir / "volumes", self.log_dir):
            self.node.path(path).mkdir(parents=True, mode=0o750)
        for volume in self.spec.volumes:
            if isinstance(volume, EmptyDir):
                self._make_empty_dir(volume)
        self._make_token_volume()
        self._run_sandbox(timeout_s)

    def renew_sandbox(self) -> None:
        """What kubelet does when the sandbox has died: stop all of the pod, run another."""
        self.stop(grace_period_s=0)
        self.container_ids.clear()
        self._config.metadata.attempt += 1
        self._run_sandbox(DEFAULT_TIMEOUT_S)

    def _run_sandbox(self, timeout_s: float) -> None:
        request = cri_pb2.RunPodSandboxRequest(
            config=self._config,
            runtime_handler=self.spec.runtime_handler or self.node.runtime_handler,
        )
        reply = self.node.cri.call(
            "RunPodSandbox", request, cri_pb2.RunPodSandboxResponse, timeout_s=timeout_s
        )
        self.sandbox_id = reply.pod_sandbox_id
        self._sandboxes.append(self.sandbox_id)
        self.node.path(self.pod_dir / "etc-hosts").write_text(
            f"# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n{self.ip}\t{self.spec.name}\n"
        )

    @property
    def ip(self) -> str:
        """The pod's address, empty on the host network."""
        request = cri_pb2.PodSandboxStatusRequest(pod_sandbox_id=self.sandbox_id)
        reply = self.node.cri.call("PodSandboxStatus", request, cri_pb2.PodSandboxStatusResponse)
        return reply.status.network.ip

    def create(self, name: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """Create the next attempt of container *name* and return its id."""
        spec = self._container_spec(name)
        self._attempts[name] = self._attempts.get(name, -1) + 1
        self.node.path(self.log_dir / name).mkdir(exist_ok=True)
        request = cri_pb2.CreateContainerRequest(
            pod_sandbox_id=self.sandbox_id,
            config=self._container_config(spec),
            sandbox_config=self._config,
        )
        reply = self.node.cri.call(
            "CreateContainer", request, cri_pb2.CreateContainerResponse, timeout_s=timeout_s
        )
        self.container_ids[name] = reply.container_id
        self._created.append(reply.container_id)
        return reply.container_id

    def start(self, name: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Start the latest attempt of container *name*."""
        request = cri_pb2.StartContainerRequest(container_id=self.container_ids[name])
        self.node.cri.call(
            "StartContainer", request, cri_pb2.StartContainerResponse, timeout_s=timeout_s
        )

    def run_containers(self) -> None:
        """Create and start every container, in the order of the spec."""
        for spec in self.spec.containers:
            self.create(spec.name)
            self.start(spec.name)

    def restart(self, name: str) -> None:
        """What kubelet does with a container that has ended: a new attempt in the same sandbox."""
        self.create(name)
        self.start(name)

    def exec_sync(
        self, name: str, argv: Sequence[str], *, timeout_s: int = 30
    ) -> cri_pb2.ExecSyncResponse:
        """Run *argv* in container *name*, as `kubectl exec` does."""
        request = cri_pb2.ExecSyncRequest(
            container_id=self.container_ids[name], cmd=argv, timeout=timeout_s
        )
        return self.node.cri.call("ExecSync", request, cri_pb2.ExecSyncResponse)

    def log_path(self, name: str) -> Path:
        """The log of the latest attempt of container *name*, as this machine finds it."""
        return self.node.path(self.log_dir / name / f"{self._attempts[name]}.log")

    def logs(self, name: str) -> str:
        """What container *name* has written, as `kubectl logs` shows it."""
        return "".join(_read_log(self.log_path(name)))

    def log_times(self, name: str) -> list[datetime]:
        """When each line of its log was written."""
        stamps = (line.split(" ", 1)[0] for line in self.log_path(name).read_text().splitlines())
        return [datetime.fromisoformat(f"{stamp[:26]}+00:00") for stamp in stamps]

    def wait_for_log(self, name: str, text: str, *, timeout_s: float = 30) -> str:
        """The log of container *name*, once *text* is in it."""
        deadline = time.monotonic() + timeout_s
        while text not in (log := self.logs(name)):
            assert time.monotonic() < deadline, f"{name} has not written {text!r} but:\n{log}"
            time.sleep(POLL_S)
        return log

    def status(self, name: str) -> cri_pb2.ContainerStatus:
        """CRI's word on the latest attempt of container *name*."""
        request = cri_pb2.ContainerStatusRequest(container_id=self.container_ids[name])
        reply = self.node.cri.call("ContainerStatus", request, cri_pb2.ContainerStatusResponse)
        return reply.status

    def pid(self, name: str) -> int:
        """The first process of container *name*, as the node numbers it."""
        request = cri_pb2.ContainerStatusRequest(
            container_id=self.container_ids[name], verbose=True
        )
        reply = self.node.cri.call("ContainerStatus", request, cri_pb2.ContainerStatusResponse)
        return int(json.loads(reply.info["info"])["pid"])

    def wait_exited(self, name: str, *, timeout_s: float = 30) -> cri_pb2.ContainerStatus:
        """The status of container *name*, once it has ended."""
        deadline = time.monotonic() + timeout_s
        while (status := self.status(name)).state != cri_pb2.CONTAINER_EXITED:
            assert time.monotonic() < deadline, f"{name} has not ended: {status}"
            time.sleep(POLL_S)
        return status

    def stop_container(self, name: str, *, grace_period_s: int = GRACE_PERIOD_S) -> None:
        """Stop container *name*: SIGTERM, and SIGKILL when the grace period is over."""
        self._end(
            "StopContainer",
            cri_pb2.StopContainerRequest(
                container_id=self.container_ids[name], timeout=grace_period_s
            ),
            cri_pb2.StopContainerResponse,
        )

    def stop(self, *, grace_period_s: int = GRACE_PERIOD_S) -> None:
        """Stop every container, then the sandbox."""
        for name in self.container_ids:
            self.stop_container(name, grace_period_s=grace_period_s)
        self._end(
            "StopPodSandbox",
            cri_pb2.StopPodSandboxRequest(pod_sandbox_id=self.sandbox_id),
            cri_pb2.StopPodSandboxResponse,
        )

    def remove(self) -> None:
        """Remove what stop() has stopped, and all that kubelet kept for the pod."""
        for container_id in self._created:
            self._end(
                "RemoveContainer",
                cri_pb2.RemoveContainerRequest(container_id=container_id),
                cri_pb2.RemoveContainerResponse,
            )
        for sandbox_id in self._sandboxes:
            self._end(
                "RemovePodSandbox",
                cri_pb2.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id),
                cri_pb2.RemovePodSandboxResponse,
            )
        self._unmount_volumes()
        shutil.rmtree(self.node.path(self.pod_dir))
        shutil.rmtree(self.node.path(self.log_dir))
        for path in self._cgroup_dirs():
            path.rmdir()
        self.removed = True

    def _end(self, method: str, request: Message, reply: type[Message]) -> None:
        for _ in range(STOP_ROUNDS):
            try:
                self.node.cri.call(method, request, reply)
            except CriError as error:
                if SHIM_GONE not in error.details:
                    raise
                time.sleep(POLL_S)
            else:
                return
        raise AssertionError(f"{method} was answered {SHIM_GONE!r} {STOP_ROUNDS} times")

    def _container_spec(self, name: str) -> ContainerSpec:
        return next(spec for spec in self.spec.containers if spec.name == name)

    @property
    def _qos_class(self) -> str:
        limits = [spec.resources for spec in self.spec.containers]
        return "burstable" if any(any(limit) for limit in limits) else "besteffort"

    @property
    def _cgroup_parent(self) -> str:
        return f"/kubepods/{self._qos_class}/pod{self.spec.uid}"

    def _cgroup_dirs(self) -> list[Path]:
        below = self._cgroup_parent.lstrip("/")
        mounts = self.node.run(["cat", "/proc/self/mounts"]).stdout
        return [self.node.path(one.path / below) for one in cgroup.hierarchies(mounts)]

    def _make_empty_dir(self, volume: EmptyDir) -> None:
        path = self._volume_dir(volume)
        self.node.path(path).mkdir(parents=True)
        if volume.in_memory:
            self.node.run(["mount", "-t", "tmpfs", "tmpfs", str(path)])
        self.node.path(path).chmod(0o777)

    def _make_token_volume(self) -> None:
        """A memory volume whose files are links into a directory named by the time, so that
        kubelet can replace all of them at once."""
        path = self._token_dir()
        self.node.path(path).mkdir(parents=True)
        self.node.run(["mount", "-t", "tmpfs", "tmpfs", str(path)])
        for name in self._write_token_files():
            (self.node.path(path) / name).symlink_to(f"..data/{name}")

    def renew_token(self) -> None:
        """Replace the token's files and remove the old ones, as when the token nears its end."""
        old = (self.node.path(self._token_dir()) / "..data").readlink()
        self._write_token_files()
        shutil.rmtree(self.node.path(self._token_dir()) / old)

    def _write_token_files(self) -> Sequence[str]:
        """Let ..data be a new directory with the files, which it names."""
        inside = self.node.path(self._token_dir())
        stamp = datetime.now(UTC).strftime("..%Y_%m_%d_%H_%M_%S.%f")
        (inside / stamp).mkdir()
        contents = {
            "ca.crt": "-----BEGIN CERTIFICATE-----\n",
            "namespace": self.spec.namespace,
            "token": f"token of pod {self.spec.uid}",
        }
        for name, content in contents.items():
            (inside / stamp / name).write_text(content)
        (inside / "..data_tmp").symlink_to(stamp)
        (inside / "..data_tmp").rename(inside / "..data")
        return list(contents)

    def _token_dir(self) -> Path:
        return self.pod_dir / "volumes/kubernetes.io~projected" / self.spec.token_volume

    def _volume_dir(self, volume: EmptyDir | HostPath) -> Path:
        if isinstance(volume, HostPath):
            return Path(volume.path)
        return self.pod_dir / "volumes/kubernetes.io~empty-dir" / volume.name

    def _unmount_volumes(self) -> None:
        mounts = self.node.run(["cat", "/proc/self/mounts"]).stdout.splitlines()
        targets = [Path(line.split()[1]) for line in mounts]
        for target in reversed(targets):
            if target.is_relative_to(self.pod_dir):
                self.node.run(["umount", str(target)])

    def _sandbox_config(self) -> cri_pb2.PodSandboxConfig:
        spec = self.spec
        return cri_pb2.PodSandboxConfig(
            metadata=cri_pb2.PodSandboxMetadata(
                name=spec.name, uid=spec.uid, namespace=spec.namespace
            ),
            hostname="" if spec.host_network else spec.name,
            log_directory=str(self.log_dir),
            dns_config=cri_pb2.DNSConfig(
                servers=["10.96.0.10"],
                searches=[f"{spec.namespace}.svc.cluster.local", "svc.cluster.local"],
                options=["ndots:5"],
            ),
            labels=self._pod_labels(),
            annotations={
                **dict(spec.annotations),
                "kubernetes.io/config.seen": datetime.now(UTC).isoformat(),
                "kubernetes.io/config.source": "api",
            },
            linux=cri_pb2.LinuxPodSandboxConfig(
                cgroup_parent=self._cgroup_parent,
                security_context=cri_pb2.LinuxSandboxSecurityContext(
                    namespace_options=self._namespaces(),
                    privileged=any(container.security.privileged for container in spec.containers),
                    seccomp=cri_pb2.SecurityProfile(
                        profile_type=cri_pb2.SecurityProfile.RuntimeDefault
                    ),
                ),
            ),
        )

    def _pod_labels(self) -> dict[str, str]:
        return {
            "io.kubernetes.pod.name": self.spec.name,
            "io.kubernetes.pod.namespace": self.spec.namespace,
            "io.kubernetes.pod.uid": self.spec.uid,
        }

    def _namespaces(self) -> cri_pb2.NamespaceOption:
        pid = cri_pb2.CONTAINER
        if self.spec.share_process_namespace:
            pid = cri_pb2.POD
        if self.spec.host_pid:
            pid = cri_pb2.NODE
        return cri_pb2.NamespaceOption(
            network=cri_pb2.NODE if self.spec.host_network else cri_pb2.POD,
            pid=pid,
            ipc=cri_pb2.POD,
            userns_options=None if self.spec.host_users else USER_NAMESPACE,
        )

    def _container_config(self, spec: ContainerSpec) -> cri_pb2.ContainerConfig:
        attempt = self._attempts[spec.name]
        environment = {**dict(spec.env), **SERVICE_ENVIRONMENT}
        return cri_pb2.ContainerConfig(
            metadata=cri_pb2.ContainerMetadata(name=spec.name, attempt=attempt),
            image=cri_pb2.ImageSpec(
                image=self._image_id(spec.image), user_specified_image=spec.image
            ),
            command=spec.command,
            args=spec.args,
            envs=[cri_pb2.KeyValue(key=key, value=value) for key, value in environment.items()],
            mounts=self._mounts(spec),
            devices=[
                cri_pb2.Device(container_path=path, host_path=path, permissions="rwm")
                for path in spec.devices
            ],
            labels={"io.kubernetes.container.name": spec.name, **self._pod_labels()},
            annotations={
                "io.kubernetes.container.hash": hashlib.sha256(repr(spec).encode()).hexdigest()[:8],
                "io.kubernetes.container.restartCount": str(attempt),
                "io.kubernetes.container.terminationMessagePath": TERMINATION_LOG,
                "io.kubernetes.container.terminationMessagePolicy": "File",
                "io.kubernetes.pod.terminationGracePeriod": str(GRACE_PERIOD_S),
            },
            log_path=f"{spec.name}/{attempt}.log",
            stdin=spec.stdin,
            tty=spec.tty,
            linux=cri_pb2.LinuxContainerConfig(
                resources=self._resources(spec), security_context=self._security(spec)
            ),
        )

    def _image_id(self, name: str) -> str:
        """CRI is given the id of an image that kubelet has seen to be there."""
        request = cri_pb2.ImageStatusRequest(image=cri_pb2.ImageSpec(image=name))
        reply = self.node.cri.call(
            "ImageStatus", request, cri_pb2.ImageStatusResponse, service="ImageService"
        )
        assert reply.image.id, f"node {self.node.name} has no image {name}"
        return reply.image.id

    def _mounts(self, spec: ContainerSpec) -> list[cri_pb2.Mount]:
        termination_log = self.pod_dir / "containers" / spec.name / secrets.token_hex(4)
        self.node.path(termination_log.parent).mkdir(exist_ok=True)
        self.node.path(termination_log).touch(0o666)
        mounts = [self._volume_mount(spec, mount) for mount in spec.mounts]
        return [
            *mounts,
            cri_pb2.Mount(
                container_path=TOKEN_PATH, host_path=str(self._token_dir()), readonly=True
            ),
            cri_pb2.Mount(container_path="/etc/hosts", host_path=str(self.pod_dir / "etc-hosts")),
            cri_pb2.Mount(container_path=TERMINATION_LOG, host_path=str(termination_log)),
        ]

    def _volume_mount(self, spec: ContainerSpec, mount: VolumeMount) -> cri_pb2.Mount:
        volume = next(volume for volume in self.spec.volumes if volume.name == mount.volume)
        source = self._volume_dir(volume)
        if mount.sub_path:
            source = self._bind_sub_path(source / mount.sub_path, spec, mount)
        return cri_pb2.Mount(
            container_path=mount.path,
            host_path=str(source),
            readonly=mount.readonly,
            propagation=mount.propagation,
        )

    def _bind_sub_path(self, source: Path, spec: ContainerSpec, mount: VolumeMount) -> Path:
        index = str(spec.mounts.index(mount))
        target = self.pod_dir / "volume-subpaths" / mount.volume / spec.name / index
        self.node.path(source).mkdir(exist_ok=True)
        self.node.path(target).mkdir(parents=True, exist_ok=True)
        self.node.run(["mount", "--bind", str(source), str(target)])
        return target

    def _resources(self, spec: ContainerSpec) -> cri_pb2.LinuxContainerResources:
        return cri_pb2.LinuxContainerResources(
            cpu_period=100_000,
            cpu_quota=spec.resources.cpu_quota_us,
            cpu_shares=2,
            memory_limit_in_bytes=spec.resources.memory_bytes,
            oom_score_adj=1000,
        )

    def _security(self, spec: ContainerSpec) -> cri_pb2.LinuxContainerSecurityContext:
        security = spec.security
        context = cri_pb2.LinuxContainerSecurityContext(
            capabilities=cri_pb2.Capability(
                add_capabilities=security.add_capabilities,
                drop_capabilities=security.drop_capabilities,
            ),
            privileged=security.privileged,
            namespace_options=self._namespaces(),
            run_as_user=cri_pb2.Int64Value(value=security.user),
            readonly_rootfs=security.readonly_rootfs,
            supplemental_groups=security.groups,
            no_new_privs=security.no_new_privs,
            masked_paths=() if security.privileged else MASKED_PATHS,
            readonly_paths=() if security.privileged else READONLY_PATHS,
            seccomp=cri_pb2.SecurityProfile(profile_type=security.seccomp),
        )
        if security.group is not None:
            context.run_as_group.value = security.group
        return context


def run_pod(node: Host, spec: PodSpec) -> Pod:
    """Run *spec* on *node*, with every container started, for the caller to stop and remove."""
    pod = Pod(node, spec)
    pod.run_sandbox()
    pod.run_containers()
    return pod


@contextmanager
def sandbox(node: Host, spec: PodSpec) -> Iterator[Pod]:
    """The pod *spec* on *node* with none of its containers yet; all of it is removed at the end."""
    pod = Pod(node, spec)
    pod.run_sandbox()
    try:
        yield pod
    finally:
        if not pod.removed:
            pod.stop(grace_period_s=0)
            pod.remove()


@contextmanager
def running(node: Host, spec: PodSpec) -> Iterator[Pod]:
    """The pod *spec* on *node* with every container started, in order."""
    with sandbox(node, spec) as pod:
        pod.run_containers()
        yield pod


def _read_log(path: Path) -> Iterator[str]:
    """The text of a log in CRI's format: time, stream, P for a part of a line or F, and text."""
    for line in path.read_text().splitlines():
        _, _, tag, text = line.split(" ", 3)
        yield text if tag == "P" else f"{text}\n"
