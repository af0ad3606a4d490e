"""Adapting the open files and the cgroups of a dump to the new pod."""

from __future__ import annotations

import os
from contextlib import suppress

from grit_runtime.dump import images
from grit_runtime.host import cgroup
from grit_runtime.model import cgroup_check, fit_to_pod
from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.model.dump import Dump
    from grit_runtime.model.live_pod import LivePod
    from grit_runtime.model.task_facts import ProcessFacts
    from grit_runtime.proto import criu_pb2 as criu

_PROC = 1  # enum fstype of mnt.proto


def adapt_open_files(
    images_fd: int, dump: Dump, live: LivePod, facts: Sequence[ProcessFacts]
) -> tuple[Dump, dict[str, bytes]]:
    """The dump as it is to be restored, and those of its images that this changes."""
    rewritten = {}
    changed = _changed_files(dump, live, facts)
    if changed:
        (name,) = images.named(dump.names, "files")
        image = images.load(images_fd, name)
        files = list(dump.files)
        for index, file in changed.items():
            files[index] = file
            image = criu_image.with_entry(image, index, file)
        dump = dump._replace(files=tuple(files))
        rewritten[name] = criu_image.serialize(image)
    groups = _fitted_cgroup(dump, live)
    if groups is not None:
        (name,) = images.named(dump.names, "cgroup")
        image = criu_image.with_entry(images.load(images_fd, name), 0, groups)
        dump = dump._replace(cgroup=groups)
        rewritten[name] = criu_image.serialize(image)
    return dump, rewritten


def _fitted_cgroup(dump: Dump, live: LivePod) -> criu.cgroup_entry | None:
    """cgroup.img as it is to be; None if it needs no change."""
    if dump.cgroup is None:
        return None
    rest = cgroup_check.without_roots(dump.cgroup)
    cgroups_path = live.spec["linux"].get("cgroupsPath", "")
    if cgroup.is_unified() and cgroups_path.startswith("/"):  # systemd's name is not a path
        return cgroup_check.moved(rest or dump.cgroup, cgroups_path)
    return rest


def _changed_files(
    dump: Dump, live: LivePod, facts: Sequence[ProcessFacts]
) -> dict[int, criu.file_entry]:
    """The changed entries of files.img, by their indices."""
    stamped = _stamped(live)
    renamed = {file.bound: file for process in facts for file in process.renamed}
    places = zip(dumped_mounts(dump.mounts), dump.mounts, strict=True)
    procs = {mount.destination for mount, entry in places if entry.fstype == _PROC}
    adapted = (fit_to_pod.adapt_open_files(file, stamped, procs, renamed) for file in dump.files)
    return {index: file for index, file in enumerate(adapted) if file is not None}


def _stamped(live: LivePod) -> dict[str, str]:
    """The directory with the current files of each volume that kubelet updates atomically."""
    found = {}
    for mount in live.mounts:
        if mount.fs_type == "bind":
            with suppress(OSError):  # most volumes have no such link
                directory = os.readlink(f"{mount.source}/..data")
                if fit_to_pod.is_stamped(directory):
                    found[mount.destination] = directory
    return found
