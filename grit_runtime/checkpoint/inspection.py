"""What a checkpoint holds, for people and for scripts."""

from __future__ import annotations

from typing import Any

from grit_runtime.dump import images
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import losses, sizes
from grit_runtime.model import manifest as manifests
from grit_runtime.model.losses import Loss
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.manifest import Container


def inspect(path: str) -> dict[str, Any]:
    """The manifest as plain JSON values, and for each dumped container its processes."""
    with checkpoint_dir.opened(path) as (dir_fd, sealed):
        plain: dict[str, Any] = manifests.plain(sealed.manifest)
        for container, shown in zip(sealed.manifest.containers, plain["containers"], strict=True):
            shown["tasks"] = _tasks(dir_fd, container) if container.state == "running" else []
            shown["size_bytes"] = sum(
                file.size_bytes
                for file in sealed.manifest.files
                if file.path.startswith(f"{container.name}/")
            )
    return {"directory": path, "manifest_sha256": sealed.sha256, **plain}


def tree(inspected: dict[str, Any]) -> str:
    """What `inspect` returns, as an indented text."""
    lines = _origin_lines(inspected)
    size_bytes = sum(file["size_bytes"] for file in inspected["files"])
    lines.append(f"  {len(inspected['files'])} files, {sizes.shown(size_bytes)}")
    for container in inspected["containers"]:
        lines += _container_lines(container)
    lines += [f"  warning: {losses.line(Loss(**loss))}" for loss in inspected["warnings"]]
    lines.append("  timeline")
    lines += [_phase_line(phase) for phase in inspected["timeline"]]
    return "\n".join(lines)


def _origin_lines(inspected: dict[str, Any]) -> list[str]:
    if not inspected["created"]:
        return [f"checkpoint {inspected['directory']} of another program, without a manifest"]
    name, pod, node = inspected["name"], inspected["pod"], inspected["node"]
    return [
        f"checkpoint {name} of pod {pod['namespace']}/{pod['name']} (uid {pod['uid']})",
        f"  taken {inspected['created']} on kernel {node['kernel']} {node['machine']}",
        f"  by CRIU {node['criu']}, runc {node['runc']}, containerd {node['containerd']}",
    ]


def _container_lines(container: dict[str, Any]) -> list[str]:
    ended = container["exit_code"]
    state = "running" if ended is None else f"had exited with {ended}"
    lines = [
        f"  container {container['name']}: {state}, {sizes.shown(container['size_bytes'])}",
    ]
    if container["image"]:
        lines.append(f"    image {container['image']} {container['image_digest']}")
    if container["tasks"]:
        lines.append("    processes")
        lines += [_task_line(task, depth) for depth, task in descending(container["tasks"])]
    if container["memory"]:
        lines.append("    large memory")
        lines += map(_memory_line, container["memory"])
    if container["mounts"]:
        lines.append("    mounts from outside")
        lines += [f"      {mount['destination']}" for mount in container["mounts"]]
    return lines


def descending(tasks: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Each task behind its parent, with how many others lie above it: as many as a pod likes."""
    below: dict[int, list[dict[str, Any]]] = {}
    for task in reversed(tasks):
        below.setdefault(task["ppid"], []).append(task)
    found = []
    left = [(0, task) for task in below.pop(0, [])]
    while left:
        depth, task = left.pop()
        found.append((depth, task))
        left += [(depth + 1, child) for child in below.pop(task["pid"], [])]
    return found


def _task_line(task: dict[str, Any], depth: int) -> str:
    threads = f", {task['threads']} threads" if task["threads"] > 1 else ""
    return f"{' ' * (6 + 2 * depth)}{task['pid']} {task['comm']} (uid {task['uid']}{threads})"


def _memory_line(memory: dict[str, Any]) -> str:
    place = f"{memory['pid']}: {sizes.shown(memory['size_bytes'])} mapped at {memory['start']:#x}"
    return f"      {place}, {sizes.shown(memory['moved_bytes'])} moved by grit"


def _phase_line(phase: dict[str, Any]) -> str:
    whose = f" {phase['container']}" if phase["container"] else ""
    size = f"  {sizes.shown(phase['size_bytes'])}" if phase["size_bytes"] is not None else ""
    return f"    {phase['phase'] + whose:<28}{phase['seconds']:>9.3f} s{size}"


def _tasks(dir_fd: int, container: Container) -> list[dict[str, Any]]:
    with closing_fd(confine.descend(dir_fd, (container.name, "checkpoint"))) as images_fd:
        dump = images.read(images_fd)
    return [
        {
            "pid": task.pid,
            "ppid": task.ppid,
            "threads": len(task.threads),
            "comm": text(dump.cores[task.pid].tc.comm),
            "uid": dump.cores[task.pid].thread_core.creds.uid,
        }
        for task in dump.tasks
    ]
