"""Showing what a restore would do with a checkpoint, without doing it."""

from __future__ import annotations

import os
from typing import Any

from grit_runtime.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from grit_runtime.files import checkpoint_dir
from grit_runtime.host import cgroup, config_json, criu, process, procfs, runc
from grit_runtime.host import node as this_node
from grit_runtime.host.containerd import Containerd
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import mount_plan
from grit_runtime.model.annotations import DEVICE_MAP, tcp
from grit_runtime.model.cri import CONTAINER_NAME
from grit_runtime.nvidia import suspension
from grit_runtime.restore import checks
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Set

    from grit_runtime.config import Config
    from grit_runtime.files.checkpoint_dir import Checkpoint
    from grit_runtime.model.manifest import Container, Node


class Target(NamedTuple):
    """A bundle that a container of the checkpoint is checked against.

    *numbers* are the pids of its processes, which a new pod made like it would not have.
    """

    container: str
    bundle_dir: str
    numbers: frozenset[int] = frozenset()


class Opened(NamedTuple):
    """A checkpoint whose directory is open."""

    path: str
    dir_fd: int
    sealed: Checkpoint


def against(path: str, target: str, config: Config) -> list[dict[str, Any]]:
    """What a restore on this node would do with each container, as plain JSON values.

    *target* is a bundle's directory, or a running pod as for `Containerd.find`; nothing is changed.
    An entry has "container"; "kept", "remapped", "missing" and "extra" mounts; and "refusals", the
    reasons for which the restore would be refused, except those that depend on files which a
    restore puts in place first.
    """
    with checkpoint_dir.opened(path) as (dir_fd, sealed):
        running = {c.name: c for c in sealed.manifest.running}
        if os.path.exists(target) or target.startswith(("/", ".")):
            targets = [_of_bundle(target, running.keys())]
        else:
            targets = list(_of_pod(target, config))
        targets = [each for each in targets if each.container in running]
        if not targets:
            raise FailedPreconditionError(
                f"{target}: checkpoint {path} holds no container of it, expected one of "
                f"{', '.join(running)}"
            )
        criu.prefer(config.criu)
        node = this_node.facts(criu.read_version(criu.start_version(process.new_token())))
        return [
            _entry(Opened(path, dir_fd, sealed), running[each.container], node, each)
            for each in targets
        ]


def text(plans: list[dict[str, Any]]) -> str:
    """What `against` returns, as an indented text."""
    lines = []
    for container in plans:
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


def _of_bundle(bundle_dir: str, running: Set[str]) -> Target:
    """The bundle's container; the checkpoint's only one if the bundle names none."""
    try:
        spec = config_json.read(bundle_dir)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"{bundle_dir} is no bundle: it has no config.json; expected a bundle's directory, "
            "NAMESPACE/POD or an id"
        ) from None
    for key in ("process", "root", "linux"):
        if not isinstance(spec.get(key), dict):
            raise InvalidArgumentError(
                f"{bundle_dir}/config.json is no OCI runtime spec of a container: it has no {key}"
            )
    name = spec.get("annotations", {}).get(CONTAINER_NAME)
    if name is None and len(running) != 1:
        raise FailedPreconditionError(
            f"bundle {bundle_dir} names no container, the checkpoint holds {len(running)}; give "
            f"it the annotation {CONTAINER_NAME}"
        )
    return Target(name or next(iter(running)), bundle_dir)


def _of_pod(target: str, config: Config) -> Iterator[Target]:
    tool = runc.installed(config.runc_root, process.new_token())
    with Containerd(config.containerd_address) as containerd:
        pod = containerd.find(target)
    states = {c.name: runc.state(tool, c.id) for c in pod.running}
    pids = {pid for state in states.values() for pid in cgroup.pids(cgroup.of(state.pid))}
    threads = [int(tid) for pid in pids for tid in os.listdir(f"/proc/{pid}/task")]
    numbers = frozenset(procfs.container_pids(threads).values())
    for name, state in states.items():
        yield Target(name, state.bundle_dir, numbers)


def _entry(checkpoint: Opened, container: Container, node: Node, target: Target) -> dict[str, Any]:
    manifest = checkpoint.sealed.manifest
    spec = config_json.read(target.bundle_dir)
    annotations = spec.get("annotations", {})
    case = checks.case(
        checkpoint.path,
        checkpoint.dir_fd,
        container,
        [c.name for c in manifest.running],
        target.bundle_dir,
        spec,
    )
    here = checks.Here(
        node=node,
        taken_on=manifest.node if checkpoint.sealed.is_verifiable else None,
        tcp=tcp(annotations),
        taking_over=target.numbers,
        place_gpus=lambda: _place_gpus(container, spec, annotations.get(DEVICE_MAP, "auto")),
    )
    plan = case.plan
    with closing_fd(case.images_fd):
        reasons = list(checks.refusals(case, here))
    return {
        "container": target.container,
        "kept": list(plan.kept),
        "remapped": [mount._asdict() for mount in plan.remapped],
        "missing": [
            {**mount._asdict(), "spec_line": mount_plan.spec_line(mount)} for mount in plan.missing
        ],
        "extra": list(plan.extra),
        "refusals": reasons,
    }


def _place_gpus(container: Container, spec: dict[str, Any], device_map: str) -> None:
    with suspension.opened_driver(process.new_token()) as driver:
        suspension.plan(driver, container, spec, device_map)
