"""What a restore would do with a checkpoint, found out without doing it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from grit_runtime.errors import FailedPreconditionError, GritError
from grit_runtime.host import (
    bundle,
    checkpoint_dir,
    config_json,
    confine,
    criu,
    images,
    process,
    runc,
    runc_dump,
)
from grit_runtime.host import node as this_node
from grit_runtime.host.containerd import Containerd
from grit_runtime.host.runc import Runc
from grit_runtime.model import compatibility, mount_plan, privilege
from grit_runtime.model.annotations import CONTAINER_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.config import Config
    from grit_runtime.host.checkpoint_dir import Sealed
    from grit_runtime.model.manifest import Node
    from grit_runtime.model.mount_plan import MountPlan
    from grit_runtime.model.privilege import Dump, Live


class Target(NamedTuple):
    """A bundle that a container of the checkpoint is held against."""

    container: str
    bundle_dir: str


def against(path: str, target: str, config: Config) -> list[dict[str, Any]]:
    """What a restore on this node would do with each container, as plain JSON values.

    *target* is a bundle's directory, or a running pod as for `Containerd.find`; nothing is changed.
    An entry is "container"; "kept", "remapped", "missing" and "extra" mounts; and "refusals", the
    reasons for which the restore would end before it began.
    """
    here = this_node.facts(criu.version(criu.ask_version(process.new_token())))
    with checkpoint_dir.opened(path) as (dir_fd, sealed):
        running = {c.name for c in sealed.manifest.containers if c.state == "running"}
        if os.path.isdir(target):
            targets = [_of_bundle(target, running)]
        else:
            targets = list(_of_pod(target, config))
        return [_held(sealed, dir_fd, here, each) for each in targets if each.container in running]


def plans(held: list[dict[str, Any]]) -> str:
    """The same as an indented text."""
    lines = []
    for container in held:
        lines.append(f"container {container['container']}")
        lines += [f"  kept      {path}" for path in container["kept"]]
        lines += [
            f"  remapped  {mount['destination']} is {mount['source']}, was {mount['key']}"
            for mount in container["remapped"]
        ]
        lines += [
            f"  missing   {mount['destination']}; add to volumeMounts: {mount['spec_line']}"
            for mount in container["missing"]
        ]
        lines += [f"  extra     {path}, which it will not see" for path in container["extra"]]
        lines += [f"  refused: {reason}" for reason in container["refusals"]]
    return "\n".join(lines)


def _of_bundle(bundle_dir: str, running: set[str]) -> Target:
    """The bundle's container; by hand, where nobody names it, the only one."""
    name = config_json.read(bundle_dir).get("annotations", {}).get(CONTAINER_NAME)
    if name is None and len(running) != 1:
        raise FailedPreconditionError(
            f"bundle {bundle_dir} names no container, the checkpoint holds {len(running)}; give "
            f"it the annotation {CONTAINER_NAME}"
        )
    return Target(name or next(iter(running)), bundle_dir)


def _of_pod(target: str, config: Config) -> Iterator[Target]:
    tool = Runc("runc", ("--root", config.runc_root), process.new_token())
    with Containerd(config.containerd_address) as containerd:
        pod = containerd.find(target)
    for container in pod.containers:
        if container.state == "running":
            yield Target(container.name, runc.state(tool, container.id).bundle_dir)


def _held(sealed: Sealed, dir_fd: int, here: Node, target: Target) -> dict[str, Any]:
    live = bundle.live(target.bundle_dir, config_json.read(target.bundle_dir))
    images_fd = confine.descend(dir_fd, (target.container, "checkpoint"))
    dump = images.read(images_fd)
    plan = mount_plan.plan_mounts(mount_plan.dumped_mounts(dump.mounts), live.mounts)
    reasons = compatibility.refusals(sealed.manifest.node, here) if sealed.is_verifiable else []
    return {
        "container": target.container,
        "kept": list(plan.kept),
        "remapped": [mount._asdict() for mount in plan.remapped],
        "missing": [
            {**mount._asdict(), "spec_line": mount_plan.spec_line(mount)} for mount in plan.missing
        ],
        "extra": list(plan.extra),
        "refusals": [*reasons, *_refusals(images_fd, dump, live, plan)],
    }


def _refusals(images_fd: int, dump: Dump, live: Live, plan: MountPlan) -> Iterator[str]:
    missing = mount_plan.missing_reason(plan)
    if missing:
        yield missing
    try:
        privilege.check(dump, live)
        runc_dump.adapted(images_fd, dump, live.spec, plan)
    except GritError as error:
        yield str(error)
