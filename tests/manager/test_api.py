from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.manager import api, fields
from grit_runtime.manager.crds import KINDS, crds
from grit_runtime.startup import named

SPEC = {
    "podName": "trainer-0",
    "sourcePodUID": "7",
    "storage": {"claimName": "store"},
    "capture": ["emptydir:data"],
    "retention": {"keep": 2},
}


def body(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "nightly", "namespace": "shop"}, "spec": spec}


def test_a_checkpoint_is_read_by_the_names_of_the_api_server() -> None:
    checkpoint = api.read(api.Checkpoint, body(**SPEC))
    assert checkpoint.metadata.namespace == "shop"
    assert checkpoint.spec.source_pod_uid == "7"
    assert checkpoint.spec.stored == api.Storage("store")
    assert checkpoint.spec.retention == api.Retention(2)
    assert checkpoint.spec.after == "running"
    assert checkpoint.status == api.CheckpointStatus()


def test_what_was_read_is_written_as_it_was() -> None:
    checkpoint = api.read(api.Checkpoint, body(**SPEC))
    assert fields.plain(checkpoint.spec) == SPEC
    assert fields.plain(api.CheckpointStatus(pod_uid="7", size_bytes=0)) == {
        "podUID": "7",
        "sizeBytes": 0,
    }


def test_upstream_s_claim_is_where_the_checkpoint_is_put() -> None:
    claim = {"claimName": "ckpt-store"}
    checkpoint = api.read(api.Checkpoint, body(podName="trainer-0", volumeClaim=claim))
    assert checkpoint.spec.stored == api.Storage("ckpt-store")


def test_an_owner_of_empty_texts_is_none() -> None:
    """Upstream's clients write it: the field is no pointer in their code."""
    nobody = {"apiVersion": "", "kind": "", "name": "", "uid": ""}
    restore = api.read(api.Restore, body(checkpointName="nightly", ownerRef=nobody))
    assert restore.spec.owner is None


def test_fields_of_a_newer_manager_are_passed_over() -> None:
    checkpoint = api.read(api.Checkpoint, body(podName="trainer-0", newer={"a": 1}))
    assert checkpoint.spec == api.CheckpointSpec("trainer-0")


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        (api.Checkpoint, {"podName": 7}, "spec.podName: expected a text, is 7"),
        (api.Checkpoint, {"podName": ["a"]}, "spec.podName: expected a text, is ['a']"),
        (api.Checkpoint, {"after": "later"}, "spec.after: expected one of running, frozen, stop"),
        (api.Checkpoint, {"after": []}, "spec.after: expected one of"),
        (api.Checkpoint, {"autoMigration": "no"}, "expected true or false, is 'no'"),
        (api.Checkpoint, {"timeoutSeconds": True}, "expected a whole number, is True"),
        (api.Checkpoint, {"capture": "shm"}, "spec.capture: expected a list"),
        (api.Checkpoint, {"capture": [1]}, "spec.capture[0]: expected a text"),
        (api.Checkpoint, {"selector": []}, "spec.selector: expected an object"),
        (
            api.Checkpoint,
            {"selector": {"matchLabels": {"app": 1}}},
            "spec.selector.matchLabels[app]: expected a text, is 1",
        ),
        (api.Checkpoint, {"volumeClaim": {}}, "volumeClaim.claimName: expected a value"),
        (api.Restore, {}, "Restore shop/nightly.spec.checkpointName: expected a value"),
    ],
)
def test_a_wrong_field_is_named(kind: Any, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        api.read(kind, body(**spec))
    assert words in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


def names(record: Any) -> list[str]:
    return [fields.name_of(field) for field in record._fields]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
@given(data=st.data())
def test_any_object_is_read_or_refused(kind: Any, data: st.DataObject) -> None:
    parts = {}
    for part in ("spec", "status"):
        known = names(named.types(kind.record)[part])
        parts[part] = data.draw(JSON | st.dictionaries(st.sampled_from(known), JSON))
    try:
        found = api.read(kind.record, {"metadata": {}, **parts})
    except InvalidArgumentError:
        return
    assert api.read(kind.record, {"metadata": {}, **fields.plain(found)}) == found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_the_schema_takes_can_be_read(kind: Any, data: st.DataObject) -> None:
    schema = crds()[kind.plural]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec = schema["properties"]["spec"]
    drawn = data.draw(st.dictionaries(st.sampled_from(sorted(spec["properties"])), JSON))
    if jsonschema.Draft202012Validator(spec).is_valid(drawn):
        api.read(kind.record, {"metadata": {}, "spec": json.loads(json.dumps(drawn))})


@pytest.mark.parametrize(
    ("version", "kind", "is_part"),
    [
        (api.API_VERSION, "Migration", True),
        (api.API_VERSION, "CheckpointSchedule", False),
        ("example.com/v1", "Migration", False),
    ],
)
def test_a_checkpoint_is_a_part_of_a_migration_alone(
    version: str,
    kind: str,
    is_part: bool,  # noqa: FBT001
) -> None:
    parent = api.OwnerReference(version, kind, "move", "uid-1", controller=True)
    meta = api.Metadata("move", owner_references=(parent,))
    assert api.Checkpoint(meta, api.CheckpointSpec()).is_part == is_part
