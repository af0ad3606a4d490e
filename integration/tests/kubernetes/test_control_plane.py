"""The control plane of the tests: it does what Kubernetes does, and nothing of it stays behind."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from integration.kubernetes.credentials import ADMINISTRATORS
from integration.node import rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.kubernetes.cluster import Cluster

DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "counts.tests.grit.dev"},
    "spec": {
        "group": "tests.grit.dev",
        "scope": "Namespaced",
        "names": {"kind": "Count", "plural": "counts"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"count": {"type": "integer"}},
                            }
                        },
                    }
                },
            }
        ],
    },
}
OWNER = """
import sys
from integration.kubernetes import cluster
with cluster.control_plane() as kubernetes:
    with kubernetes.plane.popen(["readlink", "/proc/self/ns/pid"]):
        pass
    sys.stdout.flush()
    sys.stdin.read()
"""


def count(number: object) -> dict[str, object]:
    return {
        "apiVersion": "tests.grit.dev/v1",
        "kind": "Count",
        "metadata": {"name": "one", "labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {"count": number},
    }


def test_a_custom_resource_is_kept_if_its_schema_allows(control_plane: Cluster) -> None:
    control_plane.apply(DEFINITION)
    control_plane.wait("--for=condition=Established", "crd/counts.tests.grit.dev")
    control_plane.apply(count(1))
    assert control_plane.get("count", "one")["spec"] == {"count": 1}
    refused = control_plane.kubectl(
        *("patch", "count", "one", "--type=merge", "-p", '{"spec": {"count": "two"}}'), check=False
    )
    assert 'spec.count in body must be of type integer: "string"' in refused.stderr


def test_a_program_beside_it_may_do_what_its_account_may(control_plane: Cluster) -> None:
    kubectl = control_plane.plane.programs / "kubectl"
    for kubeconfig, answer in (
        (control_plane.service_account("default"), "no\n"),
        (control_plane.plane.kubeconfig("jane"), "no\n"),
        (control_plane.plane.kubeconfig("root", (ADMINISTRATORS,)), "yes\n"),
    ):
        argv = [kubectl, "auth", "can-i", "list", "pods"]
        with control_plane.plane.popen(
            argv, kubeconfig=kubeconfig, stdout=subprocess.PIPE
        ) as asking:
            assert asking.communicate()[0] == answer


def test_a_killed_owner_leaves_no_process(compiled: None) -> None:  # noqa: ARG001 -- it is started
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=rootfs.REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        namespace = owner.stdout.readline().strip()
        processes = [os.pidfd_open(pid) for pid in processes_in(namespace)]
        assert len(processes) >= 5
        owner.kill()
    for process in processes:
        assert select.select([process], [], [], 10)[0]
        os.close(process)


def processes_in(namespace: str) -> list[int]:
    """Processes of this machine in the process namespace of that name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if str((process / "ns/pid").readlink()) == namespace:
                found.append(int(process.name))
    return found
