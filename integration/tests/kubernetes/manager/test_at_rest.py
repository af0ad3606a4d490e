"""What the manager asks of the API server when there is nothing for it to do."""

from __future__ import annotations

import pytest

from grit_runtime.manager import names
from integration.kubernetes import pods
from integration.kubernetes.objects import until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager

PODS = 100
RENEWALS = 4  # of its lease: for so long it is looked at
FEW = 40


def renewed(kubernetes: Cluster) -> str:
    lease = kubernetes.get("lease", names.MANAGER, "-n", names.NAMESPACE)
    return str(lease["spec"]["renewTime"])


@pytest.mark.usefixtures("alone")
def test_pods_that_are_of_no_concern_cost_no_request(kubernetes: Cluster, manager: Manager) -> None:
    before = manager.requests()
    made = [pods.pending(f"pending-{number}") for number in range(PODS)]
    kubernetes.apply(*made)
    try:
        for _ in range(RENEWALS):
            since = renewed(kubernetes)
            until("the lease is renewed", lambda since=since: renewed(kubernetes) != since)  # type: ignore[misc]
        asked = manager.requests() - before
        assert RENEWALS <= asked < FEW
    finally:
        kubernetes.kubectl("delete", "pods", "--all", "--wait=false", "--grace-period=0")
