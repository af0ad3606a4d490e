"""What /proc and config.json say about the CUDA processes of a container."""

from __future__ import annotations

from typing import Any

from grit_runtime.host import cgroup, overlay, procfs
from grit_runtime.host.procfs import open_links
from grit_runtime.model import nvidia_nodes
from grit_runtime.model.annotations import NCCL
from grit_runtime.model.gpu_preflight import ContainerFacts, ProcessFacts, driver_mounts
from grit_runtime.model.manifest import Gpu
from grit_runtime.tasks import ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.nvidia.gpu_driver import Card, CudaProcess


def assigned_cards(spec: dict[str, Any], cards: Sequence[Card]) -> tuple[Card, ...]:
    """The GPUs whose device nodes config.json gives the container."""
    nodes = spec["linux"].get("devices") or ()
    # The container may give the node another name; the minor is always the card's.
    minors = {node["minor"] for node in nodes if nvidia_nodes.is_card(node["path"])}
    return tuple(card for card in cards if card.minor in minors)


def described(cards: Sequence[Card]) -> tuple[Gpu, ...]:
    return tuple(Gpu(card.uuid, card.model, card.total_bytes) for card in cards)


def container_facts(
    name: str,
    init_pid: int,
    spec: dict[str, Any],
    cards: Sequence[Card],
    processes: Sequence[CudaProcess],
) -> ContainerFacts:
    ordered = [mount["destination"] for mount in spec.get("mounts") or ()]
    ordered += [node["path"] for node in spec["linux"].get("devices") or ()]
    return ContainerFacts(
        name=name,
        assumes_nccl_safe=spec.get("annotations", {}).get(NCCL) == "assume-safe",
        foreign_mounts=driver_mounts(overlay.mountpoints(init_pid), ordered),
        mig_cards=tuple(card.uuid for card in assigned_cards(spec, cards) if card.mig),
        needed_bytes=sum(process.size_bytes for process in processes),
        limit_left_bytes=cgroup.memory_left_bytes(cgroup.of(init_pid)),
    )


def process_facts(process: CudaProcess, container: str) -> ProcessFacts:
    links = open_links(process.pid).values()
    return ProcessFacts(
        pid=process.pid,
        container=container,
        environ=_environ(process.pid),
        maps_nccl="/libnccl" in procfs.text(process.pid, "maps"),
        devices=len(process.used_bytes),
        tracer_pid=ptrace_agent.debugger(process.pid),
        talks_to_mps=any("/nvidia-mps/" in link for link in links),
    )


def host_left_bytes() -> int:
    """MemAvailable of this node."""
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["MemAvailable"].split()[0]) << 10


def _environ(pid: int) -> dict[str, str]:
    words = procfs.text(pid, "environ").split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)
