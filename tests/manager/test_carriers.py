"""A carrier is a pod that every namespace lets in."""

from __future__ import annotations

from grit_runtime.manager import api, carriers
from grit_runtime.manager.storage import Store

META = api.Metadata(name="nightly", namespace="team", uid="uid-1")
MADE = carriers._pod(
    api.Checkpoint(META, api.CheckpointSpec(pod_name="trainer")),
    Store(volume="pv-1", claim="ckpt-store"),
    "node-a",
    "registry/busybox:1",
)


def test_it_is_restricted() -> None:
    """As Pod Security's level of that name, and with no token."""
    spec = MADE["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert not spec["automountServiceAccountToken"]
    assert {"requests", "limits"} == container["resources"].keys()


def test_it_mounts_the_claim_on_the_node_and_goes_with_its_object() -> None:
    spec = MADE["spec"]
    (volume,) = spec["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "ckpt-store"}
    assert spec["nodeName"] == "node-a"
    (owner,) = MADE["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Checkpoint", "uid-1")
    assert MADE["metadata"]["namespace"] == "team"
    assert carriers.is_carrier(MADE)
