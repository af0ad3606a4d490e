"""Deciding whether a process dumped on one node can continue on another. Pure."""

from __future__ import annotations

import json

from grit_runtime.errors import GpuError, InvalidArgumentError, ManifestError
from grit_runtime.model import device_map
from grit_runtime.model import manifest as manifests
from grit_runtime.model.manifest import Gpu, Manifest, Node  # noqa: TC001  read by types
from grit_runtime.startup.named import NamedTuple


class Facts(NamedTuple):
    """What of a node decides whether a checkpoint can be restored there.

    Of a checkpoint: the node that it was taken on, and the cards that its processes saw.
    """

    node: Node
    gpus: tuple[Gpu, ...]


# CPU flags that libraries choose their code by at start-up (glibc's ifuncs, BLAS, crypto): a
# process that has chosen cannot go on where the instruction is missing.
_INSTRUCTION_SETS = (
    "aes", "adx", "amx", "avx", "bmi", "f16c", "fma", "gfni", "lzcnt", "abm", "movbe", "pclmulqdq",
    "popcnt", "rdrand", "rdseed", "sha", "sse", "ssse", "vaes", "vpclmulqdq", "xsave",
)  # fmt: skip


def instruction_sets(cpu_flags: list[str]) -> tuple[str, ...]:
    """The flags of /proc/cpuinfo that running code may depend on, sorted."""
    return tuple(sorted(flag for flag in cpu_flags if flag.startswith(_INSTRUCTION_SETS)))


def refusals(dumped: Node, here: Node) -> list[str]:
    """The reasons why a process dumped on *dumped* cannot be restored *here*; empty if it can."""
    reasons = []
    if dumped.machine != here.machine:
        reasons.append(f"was taken on {dumped.machine}, this node is {here.machine}")
    missing = sorted(set(dumped.cpu_features) - set(here.cpu_features))
    if missing:
        reasons.append(f"this node's CPU lacks {', '.join(missing)}, which the source had")
    if _numbers(here.criu) < _numbers(dumped.criu):
        # Images only grow; seen: a 4.2.1 image on 4.1.1 fails on the vdso.
        reasons.append(
            f"was dumped by CRIU {dumped.criu}, this node has {here.criu}; "
            f"install CRIU {dumped.criu} or newer here"
        )
    return reasons


def needs_of(manifest: Manifest) -> Facts:
    """What `verdict` compares with a node: the driver wants all that a process saw, used or not."""
    seen = {gpu.uuid: gpu for c in manifest.running if c.cuda for gpu in c.gpus}
    return Facts(manifest.node, tuple(seen.values()))


def verdict(needs: Facts, facts: Facts) -> list[str]:
    """The reasons why no pod of the node of *facts* could be restored from a checkpoint.

    Whether a particular pod can depends on its spec too, which `grit inspect --against` looks at.
    """
    reasons = refusals(needs.node, facts.node)
    if needs.gpus and not facts.node.driver:
        reasons.append(f"needs {len(needs.gpus)} GPUs, and this node has no NVIDIA driver")
    elif needs.gpus:
        try:
            device_map.plan(needs.gpus, facts.gpus)
        except GpuError as error:
            reasons.append(str(error))
    return reasons


def dump_facts(facts: Facts) -> str:
    return json.dumps(manifests.plain(facts), indent=1)


def parse_facts(data: bytes, where: str) -> Facts:
    """What `dump_facts` has written; InvalidArgumentError if it means nothing."""
    try:
        facts: Facts = manifests.checked(Facts, json.loads(data), where)
    except (ValueError, RecursionError, ManifestError) as error:
        raise InvalidArgumentError(f"{where}: not facts of a node: {error}") from None
    return facts


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
