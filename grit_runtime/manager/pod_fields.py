"""Which newer fields of pods the API server keeps: it drops those that it does not serve.

It is asked by a pod that is not made (a dry run), and not by its version.
"""

from __future__ import annotations

import asyncio

from grit_runtime import log
from grit_runtime.errors import GritError, one_line
from grit_runtime.manager import cluster as kube
from grit_runtime.manager import gates, names, responder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.cluster import Cluster

_ASK_EVERY_S = 600.0  # a control plane may be upgraded
_PROBE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"generateName": "grit-manager-asks-", "namespace": names.NAMESPACE},
    "spec": {
        "serviceAccountName": names.MANAGER,
        "automountServiceAccountToken": False,
        "containers": [{"name": "none", "image": "none"}],
        responder.FIELD: [responder.OURS],
        gates.FIELD: [gates.GATE],
    },
}


class PodFields:
    """What is known of them; `watch` keeps it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.has_gates = self.has_responders = False

    async def watch(self) -> None:
        while True:
            try:
                kept = await self._cluster.create(kube.PODS, _PROBE, dry_run=True)
                self.has_gates = gates.FIELD in kept["spec"]
                self.has_responders = responder.FIELD in kept["spec"]
            except GritError as error:  # a policy of the cluster may want something of all pods
                log.info("the fields of pods are not known", reason=one_line(error))
            await asyncio.sleep(_ASK_EVERY_S)
