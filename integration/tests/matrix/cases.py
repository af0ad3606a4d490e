"""How a case ends when its test passes, and what the cases share."""

from __future__ import annotations

from pathlib import Path

from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.pods.kubelet import Pod
    from integration.pods.pod_spec import PodSpec
    from integration.tests.conftest import Nodes

LOG_DIR = Path("/var/log/grit")
COPIES_DIR = Path("/var/lib/grit/copies")

RESTORED = "restored"
REFUSED = "refused"
COLD = "started cold"


def known_limit(reason: str) -> str:
    """What cannot be done, why, and where that is written upstream."""
    return f"known limit: {reason}"


def move(nodes: Nodes, source: Pod, name: str, *options: str) -> None:
    """Checkpoint *source* under *name* on node A, end it, and carry the checkpoint to node B."""
    checkpoints.take(source, name, "--after", "frozen", *options)
    checkpoints.carry(nodes.a, nodes.b, name)
    source.stop(grace_period_s=0)
    source.remove()


def refusal(nodes: Nodes, spec: PodSpec) -> str:
    """What kubelet is told when the first container of *spec* cannot be restored on node B."""
    with kubelet.sandbox(nodes.b, spec) as pod:
        name = spec.containers[0].name
        pod.create(name)
        try:
            pod.start(name)
        except CriError as error:
            assert checkpoints.left_by_restores(pod) == []
            return error.details
    raise AssertionError(f"pod {spec.name} was started, expected a refusal")
