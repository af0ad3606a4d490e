"""Deciding whether a process dumped on one node can continue on another. Pure."""

from grit_runtime.model.manifest import Node

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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
