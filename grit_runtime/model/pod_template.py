"""What a pod must have in common with a checkpointed one to go on in its place. Pure.

Pods are dicts as the API server has them. Named fields are compared: what is run, with what
rights, and what it sees of files and devices. Left out is what the scheduler, admission and kubelet
add to each pod for itself, and what a restored process cannot tell or the node looks at anyway:
cpu and memory (a pod may be resized), probes, ports, names of hosts, pull policies.
"""

from __future__ import annotations

import hashlib
import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    Pod = Mapping[str, Any]  # with metadata and spec

# What tells apart the pods of one template: they have states of their own.
_ORDINALS = ("batch.kubernetes.io/job-completion-index", "statefulset.kubernetes.io/pod-name")
_POD_FIELDS = (
    *("hostIPC", "hostNetwork", "hostPID", "hostUsers", "runtimeClassName", "securityContext"),
    *("serviceAccountName", "shareProcessNamespace"),
)
_CONTAINER_FIELDS = (
    *("args", "command", "envFrom", "image", "restartPolicy", "securityContext", "stdin"),
    *("stdinOnce", "terminationMessagePath", "tty", "workingDir"),
)
_OF_CONTAINERS = {"env": "name", "volumeDevices": "devicePath", "volumeMounts": "mountPath"}
# The API server writes these where a pod has nothing; one that was never stored may lack them.
_DEFAULTS = {
    **dict.fromkeys(
        (
            *("hostIPC", "hostNetwork", "hostPID", "shareProcessNamespace"),
            *("readOnly", "stdin", "stdinOnce", "tty"),
        ),
        False,
    ),
    "defaultMode": 420,
    "hostUsers": True,
    "mountPropagation": "None",
    "serviceAccountName": "default",
    "terminationMessagePath": "/dev/termination-log",
}
_PRESENT = "is there"
_MEASURED = {"cpu", "memory", "ephemeral-storage"}
# The ServiceAccount admission plugin gives each pod such a volume, from 1.21 on of a random name.
_TOKEN = "service-account-token"  # noqa: S105  a volume's name
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105
_TOKEN_VOLUME = re.compile(r"kube-api-access-[a-z0-9]{5}|.+-token-[a-z0-9]{5}")


def digest(pod: Pod) -> str:
    """sha256 of the named fields; equal for pods that have no `differences`."""
    text = json.dumps(_fields(pod), sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def differences(here: Pod, checkpointed: Pod) -> list[str]:
    """Why *here* cannot go on as *checkpointed*, a line for each field."""
    ours, theirs = _fields(here), _fields(checkpointed)
    found, named = [], "\n"
    for path in sorted(path for path in ours | theirs if ours.get(path) != theirs.get(path)):
        if path.startswith(named):
            continue
        if (path in ours) != (path in theirs) and (ours | theirs)[path] == _PRESENT:
            found.append(f"{path}: is only {'here' if path in ours else 'in the checkpoint'}")
            named = f"{path}."
        else:
            here_, there = (_shown(fields.get(path)) for fields in (ours, theirs))
            found.append(f"{path}: {here_} here, {there} in the checkpoint")
    return found


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields(pod: Pod) -> dict[str, Any]:
    """The compared fields by their paths, as ``containers[main].env[HOME]``."""
    return {path: value for path, value in _all_fields(pod) if value not in (None, "", [], {})}


def _all_fields(pod: Pod) -> Iterator[tuple[str, Any]]:
    metadata, spec = pod.get("metadata") or {}, pod["spec"]
    for place in ("annotations", "labels"):
        for key in _ORDINALS:
            yield f"{place}[{key}]", (metadata.get(place) or {}).get(key)
    for field in _POD_FIELDS:
        yield from _flat(field, spec.get(field))
    for claim in spec.get("resourceClaims") or ():
        yield from _flat(f"resourceClaims[{claim['name']}]", claim)
    tokens = _token_volumes(spec)
    for volume in spec.get("volumes") or ():
        if volume["name"] not in tokens:
            path = f"volumes[{volume['name']}]"
            yield path, _PRESENT
            for kind in volume.keys() - {"name"}:
                yield f"{path}.{kind}", _PRESENT
                yield from _flat(f"{path}.{kind}", volume[kind])
    for kind in ("initContainers", "containers"):
        for container in spec.get(kind) or ():
            path = f"{kind}[{container['name']}]"
            yield path, _PRESENT
            yield from _container_fields(path, container, tokens)


def _container_fields(
    path: str, container: Mapping[str, Any], tokens: set[str]
) -> Iterator[tuple[str, Any]]:
    for field in _CONTAINER_FIELDS:
        yield from _flat(f"{path}.{field}", container.get(field))
    for field, key in _OF_CONTAINERS.items():
        for item in container.get(field) or ():
            rest = {name: value for name, value in item.items() if name != key}
            if rest.get("name") in tokens:
                rest["name"] = _TOKEN
            at = f"{path}.{field}[{item[key]}]"
            yield from _flat(at, rest["value"] if rest.keys() == {"value"} else rest)
    resources = container.get("resources") or {}
    for name, amount in (resources.get("limits") or {}).items():
        if name not in _MEASURED:
            yield f"{path}.resources.limits[{name}]", str(amount)
    yield f"{path}.resources.claims", resources.get("claims")


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of *value*, without those that have the API server's default."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{path}.{name}", inner)
    elif value != _DEFAULTS.get(path.rpartition(".")[2]):
        yield path, value


def _token_volumes(spec: Mapping[str, Any]) -> set[str]:
    return {
        mount["name"]
        for kind in ("initContainers", "containers")
        for container in spec.get(kind) or ()
        for mount in container.get("volumeMounts") or ()
        if mount["mountPath"] == _TOKEN_PATH and _TOKEN_VOLUME.fullmatch(mount["name"])
    }
