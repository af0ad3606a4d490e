"""The privilege check: real dumps pass, and each of their fields raised is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from grit_runtime.errors import PrivilegeError
from grit_runtime.model import mount_plan, privilege
from grit_runtime.model.privilege import Device, Dump, Live
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image, tmpfs_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

GOLDENS = Path(__file__).parent.parent / "goldens"
M = TypeVar("M", bound="Message")

# Of the paths that containerd masks or makes read-only, those that this kernel has.
EXPOSED = frozenset(
    {
        "/proc/acpi",
        "/proc/bus",
        "/proc/fs",
        "/proc/interrupts",
        "/proc/irq",
        "/proc/keys",
        "/proc/sys",
        "/proc/timer_list",
        "/sys/firmware",
    }
)


def read(container: str) -> Dump:
    directory = GOLDENS / container
    names = tuple(sorted(path.name for path in directory.iterdir()))

    def all_of(name: str, message: type[M]) -> list[M]:
        data = (directory / name).read_bytes()
        return criu_image.entries(criu_image.parse(data, name=name), message)

    def numbered(kind: str, message: type[M]) -> dict[int, M]:
        files = [name for name in names if name.startswith(f"{kind}-")]
        return {int(n[len(kind) + 1 : -4]): all_of(n, message)[0] for n in files}

    nodes = []
    for name in names:
        if name.startswith("tmpfs-dev-"):
            with (directory / name).open("rb") as file:
                nodes += tmpfs_image.device_nodes(file.read, name=name)
    (mountpoints,) = (name for name in names if name.startswith("mountpoints-"))
    return Dump(
        names=names,
        inventory=all_of("inventory.img", criu.inventory_entry)[0],
        tasks=tuple(all_of("pstree.img", criu.pstree_entry)),
        cores=numbered("core", criu.core_entry),
        ids=numbered("ids", criu.task_kobj_ids_entry),
        mounts=tuple(all_of(mountpoints, criu.mnt_entry)),
        files=tuple(all_of("files.img", criu.file_entry)) if "files.img" in names else (),
        devices=tuple((node.name, Device(*node[1:])) for node in nodes),
        seccomp=all_of("seccomp.img", criu.seccomp_entry)[0] if "seccomp.img" in names else None,
        userns=None,
        apparmor=None,
        cgroup=all_of("cgroup.img", criu.cgroup_entry)[0],
    )


def pod(container: str, **process: Any) -> Live:
    """The pod that the container was in, with members of config.json's process replaced."""
    spec = json.loads((GOLDENS / container / "config.json").read_text())
    spec["process"] |= process
    mounts = mount_plan.live_mounts(spec, lambda path: path.replace("/var/run/", "/run/"))
    guarded = {*spec["linux"]["maskedPaths"], *spec["linux"]["readonlyPaths"]}
    return Live(spec, tuple(mounts), frozenset(EXPOSED & guarded), frozenset())


def refusal(dump: Dump, live: Live) -> str:
    with pytest.raises(PrivilegeError) as caught:
        privilege.check(dump, live)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "container",
    ["criu-4.2/root", "criu-4.2/user", "criu-4.2/privileged", "criu-4.1/root"],
)
def test_a_real_dump_may_be_restored_into_the_pod_it_came_from(container: str) -> None:
    privilege.check(read(container), pod(container))
