"""The objects of kaito.sh at a real API server: what it takes, refuses, shows and keeps."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from grit_runtime.manager import api, conditions, fields
from grit_runtime.manager.conditions import Moment
from grit_runtime.manager.crds import KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster

CONFIG = Path(__file__).parents[3] / "runtime-config"
CRDS = [f"crd/{kind.plural}.{api.GROUP}" for kind in KINDS]
NAMES = (f"try-{number}" for number in itertools.count())

# As upstream's users have them: fields and forms that its own definitions take.
UPSTREAM = {
    "a checkpoint": """
        apiVersion: kaito.sh/v1alpha1
        kind: Checkpoint
        metadata: {name: demo, namespace: default}
        spec:
          autoMigration: false
          podName: "falcon7b-tuning-cp4kz"
          volumeClaim: {claimName: "ckpt-store"}
    """,
    "a checkpoint without a namespace": """
        apiVersion: kaito.sh/v1alpha1
        kind: Checkpoint
        metadata: {name: gpu-checkpoint}
        spec:
          podName: gpu-test-7d9c
          autoMigration: false
          volumeClaim: {claimName: ckpt-store}
    """,
    "a restore by labels": """
        apiVersion: kaito.sh/v1alpha1
        kind: Restore
        metadata: {name: gpu-restore}
        spec:
          checkpointName: gpu-checkpoint
          selector: {matchLabels: {app: gpu-test-restored}}
    """,
}


@pytest.fixture(scope="module")
def server(control_plane: Cluster) -> Iterator[Cluster]:
    """One that has the definitions, by what a cluster is installed from."""
    rendered = control_plane.kubectl("kustomize", CONFIG / "kubernetes-older").stdout
    definitions = [
        found
        for found in yaml.safe_load_all(rendered)
        if found["kind"] == "CustomResourceDefinition"
    ]
    control_plane.apply(*definitions)
    for name in CRDS:
        control_plane.wait("--for=condition=Established", name)
    yield control_plane
    control_plane.kubectl("delete", *CRDS, "--wait=true")


def checkpoint(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": api.API_VERSION,
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": spec,
    }


def refused(server: Cluster, body: dict[str, Any]) -> str:
    """What is said about *body*, which must not be taken."""
    # As a client that knows no schema: kubectl would refuse much by itself.
    words = ["create", "--validate=false", "-f", "-"]
    done = server.kubectl(*words, input=json.dumps(body), check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


@pytest.mark.parametrize("text", UPSTREAM.values(), ids=UPSTREAM.keys())
def test_upstream_s_manifests_are_taken_unchanged(server: Cluster, text: str) -> None:
    manifest = yaml.safe_load(text)
    server.kubectl("apply", "-f", "-", input=text)
    found = server.get(manifest["kind"].lower(), manifest["metadata"]["name"])
    assert found["spec"] == manifest["spec"]
    kind = {"Checkpoint": api.Checkpoint, "Restore": api.Restore}[manifest["kind"]]
    assert api.read(kind, found).metadata.name == manifest["metadata"]["name"]


@pytest.mark.parametrize("file", sorted((CONFIG / "kubernetes/samples").iterdir()), ids=str)
def test_samples_are_taken(server: Cluster, file: Path) -> None:
    server.kubectl("apply", "-f", file)
    server.kubectl("delete", "-f", file, "--wait=false")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"podName": 7}, 'spec.podName: Invalid value: "integer"'),
        ({"after": "later"}, 'spec.after: Unsupported value: "later"'),
        ({"after": "later"}, '"running", "frozen", "stopped"'),
        ({"volumeClaim": {}}, "spec.volumeClaim.claimName: Required value"),
        ({"storage": {"url": "nowhere"}}, "spec.storage.url: Invalid value"),
        ({"capture": ["data"]}, "spec.capture: Invalid value"),
        ({"retention": {"maxAge": "soon"}}, "spec.retention.maxAge: Invalid value"),
        ({"retention": {"maxAge": "0h0s"}}, "spec.retention.maxAge: Invalid value"),
        ({"timeoutSeconds": 0}, "spec.timeoutSeconds: Invalid value"),
        (
            {"selector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}},
            "Unsupported value",
        ),
    ],
)
def test_a_wrong_object_is_refused_with_its_field(
    server: Cluster, spec: dict[str, Any], words: str
) -> None:
    assert words in refused(server, checkpoint(next(NAMES), **spec))


def test_an_object_without_a_spec_is_refused(server: Cluster) -> None:
    body = checkpoint(next(NAMES))
    del body["spec"]
    assert "spec: Required value" in refused(server, body)


def test_what_no_field_is_for_is_dropped(server: Cluster) -> None:
    body = checkpoint(next(NAMES), podName="a", pod="b")
    server.kubectl("create", "--validate=false", "-f", "-", input=json.dumps(body))
    assert server.get("ckpt", body["metadata"]["name"])["spec"] == {"podName": "a"}


def with_status(server: Cluster, path: str, status: dict[str, Any]) -> dict[str, Any]:
    """The object at *path* after its status was written as the manager does."""
    found = json.loads(server.kubectl("get", "--raw", path).stdout)
    body = {**found, "status": status}
    server.kubectl("replace", "--raw", f"{path}/status", "-f", "-", input=json.dumps(body))
    written: dict[str, Any] = json.loads(server.kubectl("get", "--raw", path).stdout)
    return written


def path_of(plural: str, name: str) -> str:
    return f"/apis/{api.API_VERSION}/namespaces/default/{plural}/{name}"


def test_a_status_is_written_apart_shown_and_waited_for(server: Cluster) -> None:
    name = next(NAMES)
    server.apply(checkpoint(name, podName="trainer-0"))
    reached = conditions.reached(
        (), api.CHECKPOINTED, "GritAgentJobCompleted", "sealed", Moment("2026-11-24T12:00:00Z", 1)
    )
    status = api.CheckpointStatus(
        phase="Checkpointed",
        node_name="node-a",
        pod_template={"spec": {"containers": [{"name": "main", "anything": [1, {"a": None}]}]}},
        data_path=f"pv-1://default/{name}",
        needs={"node": {"cpu_features": ["avx2"]}},
        size_bytes=1 << 40,
        size="1.0 TiB",
        duration="1m23s",
        durations={"dump": 0.25},
        conditions=reached,
    )
    written = with_status(server, path_of("checkpoints", name), fields.plain(status))
    assert api.read(api.Checkpoint, written).status == status
    server.wait("--for=condition=Checkpointed", f"checkpoint/{name}")
    server.wait("--for=condition=Ready", f"ckpt/{name}")

    header, row = server.kubectl("get", "ckpt", name).stdout.splitlines()
    headings = ["NAME", "POD", "PHASE", "NODE", "STORAGE", "SIZE", "DURATION", "AGE"]
    assert header.split() == headings
    shown = [name, "trainer-0", "Checkpointed", "node-a", f"pv-1://default/{name}", "1.0", "TiB"]
    assert row.split()[:-1] == [*shown, "1m23s"]

    server.apply({**checkpoint(name, podName="trainer-0"), "status": {"phase": "Failed"}})
    assert server.get("ckpt", name)["status"]["phase"] == "Checkpointed"


def test_a_status_that_means_nothing_is_refused(server: Cluster) -> None:
    name = next(NAMES)
    server.apply(checkpoint(name, podName="trainer-0"))
    path = path_of("checkpoints", name)
    body = {**server.get("ckpt", name), "status": {"phase": "Done"}}
    words = ["replace", "--raw", f"{path}/status", "-f", "-"]
    done = server.kubectl(*words, input=json.dumps(body), check=False)
    assert 'status.phase: Unsupported value: "Done"' in done.stderr


@pytest.mark.parametrize(
    ("short", "headings"),
    [
        ("rt", "NAME CHECKPOINT RESTORATIONPOD NODENAME PHASE DURATION AGE"),
        ("mig", "NAME POD PHASE FROM TO NEWPOD SIZE DOWNTIME DURATION AGE"),
        ("cksched", "NAME POD INTERVAL CRON LAST NEXT AGE"),
    ],
)
def test_the_others_have_their_columns(server: Cluster, short: str, headings: str) -> None:
    samples = CONFIG / "kubernetes/samples"
    for name in ("restore", "migration", "schedule"):
        server.kubectl("apply", "-f", samples / f"{name}.yaml")
    header, *_ = server.kubectl("get", short).stdout.splitlines()
    assert header.split() == headings.split()


def test_all_of_grit_is_listed_by_one_word(server: Cluster) -> None:
    name = next(NAMES)
    server.apply(checkpoint(name, podName="trainer-0"))
    for category in ("grit", "girt"):
        assert f"checkpoint.kaito.sh/{name}" in server.kubectl("get", category, "-o", "name").stdout


def test_fields_are_explained(server: Cluster) -> None:
    said = server.kubectl("explain", "checkpoint.spec.after").stdout
    assert "it runs on (the default), is held frozen, or is stopped" in " ".join(said.split())


UPSTREAM_S_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "checkpoints.kaito.sh"},
    "spec": {
        "group": "kaito.sh",
        "names": {
            "categories": ["girt"],
            "kind": "Checkpoint",
            "listKind": "CheckpointList",
            "plural": "checkpoints",
            "shortNames": ["ckpt"],
            "singular": "checkpoint",
        },
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                            },
                            "status": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                            },
                        },
                    }
                },
            }
        ],
    },
}


def test_objects_outlast_the_upgrade_of_their_definition(server: Cluster) -> None:
    """From upstream's to ours, and from ours to ours."""
    name = next(NAMES)
    ours = server.get("crd", "checkpoints.kaito.sh")["spec"]
    before = checkpoint(name, podName="trainer-0", volumeClaim={"claimName": "store"})
    server.apply(UPSTREAM_S_CRD)
    server.apply(before)
    condition = {
        "type": "Checkpointed",
        "status": "True",
        "reason": "GritAgentJobCompleted",
        "message": "grit agent job is completed",
        "lastTransitionTime": "2025-04-01T00:00:00Z",
    }
    old = {"phase": "Checkpointed", "podUID": "7", "podSpecHash": "12", "conditions": [condition]}
    with_status(server, path_of("checkpoints", name), old)

    server.apply({**UPSTREAM_S_CRD, "spec": ours})
    found = server.get("ckpt", name)
    assert found["spec"] == before["spec"]
    assert found["status"] == old
    kept = api.read(api.Checkpoint, found)
    later = conditions.reached(
        kept.status.conditions,
        api.SUBMITTING,
        "CheckpointedCompleted",
        "goes on",
        Moment(kept.metadata.creation_timestamp, 1),
    )
    status = kept.status._replace(phase="Submitting", conditions=later)
    written = with_status(server, path_of("checkpoints", name), fields.plain(status))
    assert api.read(api.Checkpoint, written).status == status


def test_which_installation_fits_is_asked_as_the_document_says(server: Cluster) -> None:
    asked = server.kubectl("explain", "crd.spec.versions.selectableFields", check=False)
    applied = server.kubectl("apply", "--dry-run=server", "-k", CONFIG / "kubernetes", check=False)
    is_refused = 'unknown field "selectableFields"' in applied.stderr
    assert (asked.returncode != 0) == is_refused


def test_kubectl_explains_an_object_by_its_conditions(server: Cluster) -> None:
    name = next(NAMES)
    server.apply(checkpoint(name, podName="a"))
    now = conditions.reached(
        (), api.PENDING, "InitializingCompleted", "next", Moment("2026-11-24T12:00:00Z", 1)
    )
    now = conditions.reached(
        now, api.FAILED, "NoRoom", "the disk is full", Moment("2026-11-24T12:00:07Z", 1)
    )
    status = api.CheckpointStatus(phase="Failed", conditions=now)
    with_status(server, path_of("checkpoints", name), fields.plain(status))
    words = [sys.executable, "-m", "grit_runtime.cli.kubectl", "-n", "default", "explain"]
    with server.plane.popen([*words, f"checkpoint/{name}"], stdout=subprocess.PIPE) as asked:
        told, _ = asked.communicate()
    assert "the disk is full" in told
    assert "make room, or raise resources.limits.memory (grit explain NoRoom)" in told
