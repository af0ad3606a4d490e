"""Choosing the GPU of the new pod that replaces each GPU of the old one. Pure.

The driver wants every device that the checkpointed process saw, identity included, each once, and
the same kind of chip with at least as much memory (cuda.h, CUcheckpointGpuPair).
"""

from __future__ import annotations

from grit_runtime.errors import (
    AnnotationError,
    GpuError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.model.manifest import Gpu

Pairs = tuple[tuple[str, str], ...]


def plan(dumped: Sequence[Gpu], given: Sequence[Gpu], wanted: str = "auto") -> Pairs:
    """Old and new UUID of every dumped GPU.

    *wanted* is ``auto`` (the same card where the pod has it, then any of the same model) or
    ``OLD=NEW,...``. FailedPreconditionError or InvalidArgumentError says what does not fit.
    """
    if wanted != "auto":
        return _checked(_parsed(wanted), dumped, given)
    free = {gpu.uuid: gpu for gpu in given}
    chosen = {gpu.uuid: free.pop(gpu.uuid) for gpu in dumped if gpu.uuid in free}
    for gpu in dumped:
        if gpu.uuid not in chosen:
            fitting = [other for other in free.values() if _fits(gpu, other)]
            if not fitting:
                raise GpuError(
                    f"GPU {gpu.uuid} ({_described(gpu)}) has no place in the new pod, which was "
                    f"given {_listed(given)}; give it {len(dumped)} of {gpu.model}"
                )
            chosen[gpu.uuid] = free.pop(fitting[0].uuid)
    return tuple((gpu.uuid, chosen[gpu.uuid].uuid) for gpu in dumped)


def _parsed(text: str) -> Pairs:
    pairs = []
    for part in text.split(","):
        old, equals, new = part.strip().partition("=")
        if not (equals and old and new):
            raise AnnotationError(f"device map {text!r}: expected OLD=NEW,... or auto")
        pairs.append((old, new))
    return tuple(pairs)


def _checked(pairs: Pairs, dumped: Sequence[Gpu], given: Sequence[Gpu]) -> Pairs:
    known = {gpu.uuid: gpu for gpu in given}
    wanted = {gpu.uuid: gpu for gpu in dumped}
    for old, new in pairs:
        if old not in wanted:
            raise AnnotationError(f"device map: {old} is not a GPU of the checkpoint")
        if new not in known:
            raise AnnotationError(
                f"device map: {new} is not among the GPUs this pod was given: {_listed(given)}"
            )
        if not _fits(wanted[old], known[new]):
            raise GpuError(
                f"device map: {new} ({_described(known[new])}) cannot take the place of {old} "
                f"({_described(wanted[old])})"
            )
    missing = sorted(wanted.keys() - {old for old, _ in pairs})
    if missing:
        raise AnnotationError(f"device map: {', '.join(missing)} is not mapped; list all")
    if len({new for _, new in pairs}) != len(pairs) or len(pairs) != len(wanted):
        raise AnnotationError("device map: two GPUs are mapped to one, or one to two")
    return pairs


def _fits(old: Gpu, new: Gpu) -> bool:
    return old.model == new.model and new.memory_bytes >= old.memory_bytes


def _described(gpu: Gpu) -> str:
    return f"{gpu.model}, {gpu.memory_bytes >> 30} GiB"


def _listed(gpus: Sequence[Gpu]) -> str:
    return ", ".join(f"{gpu.uuid} ({_described(gpu)})" for gpu in gpus) or "no GPU"
