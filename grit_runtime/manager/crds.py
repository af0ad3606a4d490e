"""The CustomResourceDefinitions, made of the classes in `api`. Pure.

A server that knows no CEL or selectable fields drops these from what it is given.
"""

from __future__ import annotations

from typing import Any

from grit_runtime.manager import api, fields, rules
from grit_runtime.startup import named
from grit_runtime.startup.named import NamedTuple


class Kind(NamedTuple):
    """How the API server and kubectl show the objects of a class."""

    record: Any
    plural: str
    short: str
    columns: tuple[tuple[str, str], ...]  # heading and path
    selectable: tuple[str, ...]


_AGE = ("Age", ".metadata.creationTimestamp")
_TYPES = {"Age": "date", "Downtime": "number"}  # of columns; the others are texts

KINDS = (
    Kind(
        api.Checkpoint,
        "checkpoints",
        "ckpt",
        (
            ("Pod", ".spec.podName"),
            ("Phase", ".status.phase"),
            ("Node", ".status.nodeName"),
            ("Storage", ".status.dataPath"),
            ("Size", ".status.size"),
            ("Duration", ".status.duration"),
            _AGE,
        ),
        (".spec.podName", ".status.phase", ".status.nodeName"),
    ),
    Kind(
        api.Restore,
        "restores",
        "rt",
        (
            ("Checkpoint", ".spec.checkpointName"),
            ("RestorationPod", ".status.targetPod"),
            ("NodeName", ".status.nodeName"),
            ("Phase", ".status.phase"),
            ("Duration", ".status.duration"),
            _AGE,
        ),
        (".spec.checkpointName", ".status.phase", ".status.targetPod"),
    ),
    Kind(
        api.Migration,
        "migrations",
        "mig",
        (
            ("Pod", ".status.sourcePod"),
            ("Phase", ".status.phase"),
            ("From", ".status.sourceNode"),
            ("To", ".status.targetNode"),
            ("NewPod", ".status.targetPod"),
            ("Size", ".status.size"),
            ("Downtime", ".status.downtimeSeconds"),
            ("Duration", ".status.duration"),
            _AGE,
        ),
        (".spec.podName", ".status.phase"),
    ),
    Kind(
        api.CheckpointSchedule,
        "checkpointschedules",
        "cksched",  # cs is ComponentStatus
        (
            ("Pod", ".spec.podName"),
            ("Interval", ".spec.interval"),
            ("Cron", ".spec.cron"),
            ("Last", ".status.lastCheckpoint"),
            ("Next", ".status.nextTime"),
            _AGE,
        ),
        (".spec.podName",),
    ),
)


def crds() -> dict[str, dict[str, Any]]:
    """The definitions, by their plurals."""
    return {kind.plural: _definition(kind) for kind in KINDS}


def _definition(kind: Kind) -> dict[str, Any]:
    name = kind.record.__name__
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{api.GROUP}"},
        "spec": {
            "group": api.GROUP,
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": kind.plural,
                "singular": name.lower(),
                "shortNames": [kind.short],
                "categories": ["grit", "girt"],  # the second is upstream's spelling
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": api.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {
                            "name": heading,
                            "type": _TYPES.get(heading, "string"),
                            "jsonPath": path,
                        }
                        for heading, path in kind.columns
                    ],
                    "selectableFields": [{"jsonPath": path} for path in kind.selectable],
                    "schema": {"openAPIV3Schema": _schema(kind)},
                }
            ],
        },
    }


def _schema(kind: Kind) -> dict[str, Any]:
    hints = named.types(kind.record)
    spec = hints["spec"]
    validations = [{"rule": rule.cel, "message": rule.message} for rule in rules.RULES[spec]]
    if spec in rules.MUTABLE:
        validations.append({"rule": rules.SAME_STORE_CEL, "message": rules.SAME_STORE})
    else:
        validations.append({"rule": "self == oldSelf", "message": rules.IMMUTABLE})
    return {
        "type": "object",
        "description": kind.record.__doc__,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {**fields.schema(spec), "x-kubernetes-validations": validations},
            "status": fields.schema(hints["status"]),
        },
    }
