"""The live pod's bundle, which containerd has made, in the form that the checks need."""

from __future__ import annotations

import os
from typing import Any

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.files import confine
from grit_runtime.host import config_json
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import mount_plan
from grit_runtime.model.live_pod import LivePod
from grit_runtime.wire import elf

_EXITING = ".grit-completed"
_LINK_LIMIT = 40  # the kernel's own, path_lookup(7)

# Namespace types of config.json whose names in /proc/PID/ns differ.
_PROC_NAMES = {"network": "net", "mount": "mnt"}


def rootfs(bundle_dir: str, spec: dict[str, Any]) -> str:
    return os.path.join(bundle_dir, spec["root"]["path"])


def exit_at_once(bundle_dir: str, spec: dict[str, Any]) -> None:
    """Replace the container's process by one that exits 0.

    Its program is written into the rw layer, because the image may not contain such a program.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        closing_fd(confine.open_dir(rootfs(bundle_dir, spec))) as root_fd,
        open(os.open(_EXITING, flags, 0o755, dir_fd=root_fd), "wb") as file,
    ):
        os.fchmod(file.fileno(), 0o755)
        file.write(elf.exiting(os.uname().machine))
    process = {**spec["process"], "args": [f"/{_EXITING}"]}
    config_json.write(bundle_dir, {**spec, "process": process})


def live(bundle_dir: str, spec: dict[str, Any]) -> LivePod:
    """The pod that config.json describes, and what only this node knows about it."""
    rootfs_dir = rootfs(bundle_dir, spec)
    linux = spec["linux"]
    guarded = [*(linux.get("maskedPaths") or ()), *(linux.get("readonlyPaths") or ())]
    return LivePod(
        spec=spec,
        mounts=tuple(mount_plan.live_mounts(spec, lambda path: resolve(rootfs_dir, path))),
        exposed=frozenset(path for path in guarded if _exists(rootfs_dir, path)),
        node_namespaces=frozenset(
            namespace["type"]
            for namespace in linux.get("namespaces") or ()
            if namespace.get("path") and _is_ours(namespace["type"], namespace["path"])
        ),
    )


def _exists(rootfs_dir: str, path: str) -> bool:
    """Whether the container will have *path*; its proc and sysfs have what this node's have."""
    return os.path.lexists(path if path.startswith(("/proc/", "/sys/")) else rootfs_dir + path)


def _is_ours(kind: str, path: str) -> bool:
    return os.path.samefile(path, f"/proc/self/ns/{_PROC_NAMES.get(kind, kind)}")


def resolve(rootfs_dir: str, path: str) -> str:
    """Resolve the symbolic links of *path* inside the rootfs; none leads outside.

    Parts that do not exist are kept as written; runc creates them there.
    """
    todo = path.split("/")[::-1]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del done[-1:]
            continue
        try:
            target = os.readlink("/".join((rootfs_dir, *done, part)))
        except OSError:
            done.append(part)
            continue
        links += 1
        if links > _LINK_LIMIT:
            raise InvalidArgumentError(f"mount destination {path}: too many symbolic links in it")
        if target.startswith("/"):
            done.clear()
        todo += target.split("/")[::-1]
    return "/" + "/".join(done)
