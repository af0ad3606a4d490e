"""Adapting the images and the configuration that CRIU gets to the new pod."""

from __future__ import annotations

import os
import stat
from typing import Any

from grit_runtime.dump import images
from grit_runtime.host import (
    cgroup,
    config_json,
    criu,
    journal,
    namespaces,
    overlay,
)
from grit_runtime.model import (
    connections,
    mount_plan,
)
from grit_runtime.model import restore_steps as steps
from grit_runtime.pod import loopback, network
from grit_runtime.proto import criu_pb2
from grit_runtime.restore import checks
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.journal import Journal
    from grit_runtime.model.dump import Dump
    from grit_runtime.model.live_pod import LivePod
    from grit_runtime.restore.attempts import Request
    from grit_runtime.restore.checks import Case


def place_sockets(request: Request, attempt: Journal[steps.Step], held: Case) -> list[str]:
    """Prepare the pod's network for the dumped sockets; the lines of CRIU's configuration for them.

    The node's own network is never changed: a dump could name any address.
    """
    dumped = connections.sockets(held.dump.files)
    paths = checks.pod_networks(held.live)
    missing = checks.missing_addresses(held)
    if missing:
        attempt.record(steps.Addresses(paths[0], tuple(missing)))
        network.add_to_loopback(paths[0], missing)
    if request.order.tcp == "close":
        return ["tcp-close"]
    # CRIU sends data that was never sent, to a socket that may not be restored yet.
    is_early = images.has_unsent_data(held.images_fd, held.dump.names)
    if paths and (is_early or connections.reaches_neighbour(dumped)):
        with journal.locked(request.pod_dir):
            loopback.hold(request.pod_dir, paths[0])
    return ["tcp-established"] if any(socket.is_connected for socket in dumped) else []


def own_cgroup(request: Request, dump: Dump, live: LivePod) -> list[str]:
    """Show the container its own cgroup on v1, where runc would show the cgroup of runc itself.

    Only for the cgroupfs driver: systemd's name of a cgroup is not a path.
    """
    cgroups_path = request.spec["linux"].get("cgroupsPath", "")
    shown = {
        mount.destination
        for mount in mount_plan.dumped_mounts(dump.mounts)
        if mount.key is not None
    }
    return [
        f"external mnt[{top.destination}/{name}]:{directory}{cgroups_path}"
        for top in live.mounts
        if top.fs_type == "cgroup" and cgroups_path.startswith("/")
        for name, directory in cgroup.hierarchies().items()
        if f"{top.destination}/{name}" in shown
    ]


def configure_criu(request: Request, lines: list[str]) -> None:
    """Write CRIU's configuration file, and name it in config.json where runc looks for it."""
    path = criu_config_path(request)
    criu.write_config(path, lines)
    annotations = {**request.spec["annotations"], "org.criu.config": path}
    config_json.write(request.bundle_dir, {**request.spec, "annotations": annotations})


def criu_config_path(request: Request) -> str:
    return f"{request.attempt_dir}/criu.conf"


def mount_images(
    request: Request,
    attempt: Journal[steps.Step],
    images_fd: int,
    rewritten: dict[str, bytes | None],
) -> str:
    """Mount a read-only view of the images in which *rewritten* ones replace the originals.

    An image that is None is absent from the view.

    It is a mount because links fail: absolute symbolic links in CRIU, which opens images after it
    has changed its mount namespace, and hard links across filesystems.
    """
    rewritten_dir = f"{request.attempt_dir}/rewritten"
    images_dir = f"{request.attempt_dir}/images"
    os.mkdir(rewritten_dir)
    os.mkdir(images_dir)
    for name, data in rewritten.items():
        if data is None:
            os.mknod(f"{rewritten_dir}/{name}", stat.S_IFCHR)  # 0:0, an overlay's whiteout
            continue
        with open(f"{rewritten_dir}/{name}", "xb") as file:
            file.write(data)
    attempt.record(steps.Mount(images_dir))
    overlay.mount_layers([rewritten_dir, f"/proc/self/fd/{images_fd}"], images_dir)
    return images_dir


def adapt_namespaces(
    spec: dict[str, Any], pod: namespaces.PodNamespaces, images_fd: int, dump: Dump
) -> dict[str, bytes]:
    """The images of UTS and IPC namespaces, with the new pod's own values.

    CRIU sets hostname and limits even of a namespace that it joins.
    """
    joined = {ns["type"] for ns in spec["linux"]["namespaces"] if ns.get("path")}
    files = {}
    if "uts" in joined:
        for name in images.named(dump.names, "utsns"):
            image = images.load(images_fd, name)
            uts = criu_image.entry(image, criu_pb2.utsns_entry)
            uts.nodename, uts.domainname = pod.node_name.encode(), pod.domain_name.encode()
            files[name] = criu_image.serialize(criu_image.with_entry(image, 0, uts))
    if "ipc" in joined:
        for name in images.named(dump.names, "ipcns-var"):
            image = images.load(images_fd, name)
            ipc = criu_image.entry(image, criu_pb2.ipc_var_entry)
            for field, numbers in pod.ipc_sysctls.items():
                if field == "sem_ctls":
                    ipc.sem_ctls[:] = numbers
                else:
                    setattr(ipc, field, numbers[0])
            files[name] = criu_image.serialize(criu_image.with_entry(image, 0, ipc))
    return files


def without_lock(request: Request, images_fd: int, dump: Dump) -> dict[str, bytes]:
    """The inventory that makes CRIU skip its network lock, where no packet can do harm.

    The lock drops all packets of the pod, those of its other containers too, as for the dump;
    adding and removing its rules takes half of CRIU's time.
    Source: checkpoint-restore/criu criu/image.c check_img_inventory, criu/cr-restore.c
    restore_root_task, criu/net.c network_unlock_internal@2cf8f13.
    """
    if connections.needs_lock(connections.sockets(dump.files), request.order.tcp):
        return {}
    image = images.load(images_fd, "inventory.img")
    inventory = criu_image.entry(image, criu_pb2.inventory_entry)
    inventory.network_lock_method = connections.LOCK_SKIPPED
    return {image.name: criu_image.serialize(criu_image.with_entry(image, 0, inventory))}
