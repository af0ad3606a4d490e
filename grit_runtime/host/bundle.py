"""The live pod's bundle: its root filesystem and the mounts that its config.json orders."""

from __future__ import annotations

import os
from typing import Any

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.model.mount_plan import LiveMount

_LINK_LIMIT = 40  # the kernel's own, path_lookup(7)


def rootfs(bundle_dir: str, spec: dict[str, Any]) -> str:
    return os.path.join(bundle_dir, spec["root"]["path"])


def live_mounts(spec: dict[str, Any], rootfs_dir: str) -> list[LiveMount]:
    """The mounts of config.json, each at the place that runc will find for it in the rootfs."""
    return [
        LiveMount(
            destination=resolve(rootfs_dir, mount["destination"]),
            source=mount.get("source", ""),
            fs_type=mount.get("type", "bind"),
            options=tuple(mount.get("options", ())),
        )
        for mount in spec.get("mounts", ())
    ]


def resolve(rootfs_dir: str, path: str) -> str:
    """*path* inside the rootfs with its symbolic links followed, none of them to the outside.

    What does not exist is kept as it is written; runc makes it there.
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
