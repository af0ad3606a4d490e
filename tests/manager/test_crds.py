from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from grit_runtime.manager import api
from grit_runtime.manager.crds import KINDS, Kind, crds
from grit_runtime.startup import named

DIRECTORY = Path(__file__).parents[2] / "runtime-config/kubernetes/crds"


def version(plural: str) -> dict[str, Any]:
    found: dict[str, Any] = crds()[plural]["spec"]["versions"][0]
    return found


def nodes(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """*schema* and all that it has inside."""
    inside = [*schema.get("properties", {}).values()]
    inside += [schema[key] for key in ("items", "additionalProperties") if key in schema]
    return [schema, *(node for part in inside for node in nodes(part))]


def test_the_files_are_what_the_classes_make() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in DIRECTORY.iterdir()}
    assert files == crds()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_columns_and_selectable_fields_are_fields(kind: Kind) -> None:
    made = version(kind.plural)
    shown = {one["jsonPath"]: one["type"] for one in made["additionalPrinterColumns"]}
    del shown[".metadata.creationTimestamp"]
    for path, type_ in (shown | dict.fromkeys(kind.selectable, "string")).items():
        at = made["schema"]["openAPIV3Schema"]
        for name in path.removeprefix(".").split("."):
            at = at["properties"][name]
        assert at["type"] == type_, path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_schemas_are_structural_and_say_what_is_required(kind: Kind) -> None:
    schema = version(kind.plural)["schema"]["openAPIV3Schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    for node in nodes(schema):
        assert node["type"] in {"object", "array", "string", "boolean", "integer", "number"}
        assert set(node.get("required", ())) <= set(node.get("properties", ()))


def test_upstream_s_columns_come_first() -> None:
    headings = {kind.plural: [heading for heading, _ in kind.columns] for kind in KINDS}
    assert headings["checkpoints"][:4] == ["Pod", "Phase", "Node", "Storage"]
    assert headings["restores"][:4] == ["Checkpoint", "RestorationPod", "NodeName", "Phase"]


def test_each_field_of_a_spec_is_explained() -> None:
    for kind in KINDS:
        spec = version(kind.plural)["schema"]["openAPIV3Schema"]["properties"]["spec"]
        assert [
            name for name, said in spec["properties"].items() if "description" not in said
        ] == []
        assert set(named.types(kind.record)) == {"metadata", "spec", "status"}


def test_the_phases_begin_and_end_as_upstream_s() -> None:
    phases = {
        kind.plural: version(kind.plural)["schema"]["openAPIV3Schema"]["properties"]["status"][
            "properties"
        ]["phase"]["enum"]
        for kind in KINDS
        if kind.plural != "checkpointschedules"
    }
    assert phases["checkpoints"] == [
        *(api.CREATED, api.PENDING, api.CHECKPOINTING, api.CHECKPOINTED),
        *(api.SUBMITTING, api.SUBMITTED, api.FAILED),
    ]
    assert phases["restores"] == [
        *(api.CREATED, api.PENDING, api.RESTORING, api.RESTORED, api.FAILED)
    ]
    assert phases["migrations"][-3:] == [api.SUCCEEDED, api.ROLLING_BACK, api.FAILED]


def test_no_field_is_something_else_in_yaml() -> None:
    """YAML 1.1, which kubectl reads, has true and false in many words."""
    for definition in crds().values():
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for node in nodes(schema):
            for name in node.get("properties", ()):
                assert yaml.safe_load(name) == name
