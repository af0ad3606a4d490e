"""Where the checkpoints of a cluster are kept: a claim or a URL, as an agent of a node opens it."""

from __future__ import annotations

import re

from grit_runtime.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from grit_runtime.manager import api
from grit_runtime.manager import cluster as kube
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.api import Storage
    from grit_runtime.manager.cluster import Cluster, Object

_FILE = "file://"
_ONE_NODE, _ONE_POD = "ReadWriteOnce", "ReadWriteOncePod"  # access modes of claims
_ON_NODES = ("hostPath", "local")  # types of volumes that are a directory of the node


class Store(NamedTuple):
    """A store; neither a URL nor a volume if a checkpoint stays on its node."""

    url: str = ""  # as `grit push` takes it on any node
    volume: str = ""  # or the volume that a carrier has to mount on the node
    claim: str = ""  # and the claim that the carrier mounts it by


async def store_of(cluster: Cluster, namespace: str, storage: Storage | None) -> Store:
    """Where the spec has it put. NotFoundError or FailedPreconditionError if that is nowhere."""
    if storage is None:
        return Store()
    if bool(storage.claim_name) == bool(storage.url):
        raise InvalidArgumentError("storage: expected a claimName or a url, one of them")
    if storage.url:
        if not re.match(api.STORE, storage.url):  # the rest of an agent's are for itself
            raise InvalidArgumentError(
                f"storage.url {storage.url[:100]!r}: expected file:///DIRECTORY, or s3://, gs:// "
                "or az:// and a bucket; make another object"
            )
        return Store(storage.url.removeprefix(_FILE))
    volume = await _volume(cluster, namespace, storage.claim_name)
    name, spec = volume["metadata"]["name"], volume["spec"]
    for kind in _ON_NODES:
        if kind in spec:
            return Store(str(spec[kind]["path"]))
    if spec.get("volumeMode") == "Block":
        raise FailedPreconditionError(
            f"volume {name} of claim {namespace}/{storage.claim_name} is a block device, expected "
            "a file system; name another claim"
        )
    return Store(volume=name, claim=storage.claim_name)


async def data_path(cluster: Cluster, namespace: str, storage: Storage | None, name: str) -> str:
    """Where the data is, as upstream's status has it: ``VOLUME://NAMESPACE/NAME``."""
    if storage is None:
        return ""
    if storage.url:
        return f"{storage.url.rstrip('/')}/{namespace}/{name}"
    volume = await _volume(cluster, namespace, storage.claim_name)
    return f"{volume['metadata']['name']}://{namespace}/{name}"


async def _volume(cluster: Cluster, namespace: str, claim: str) -> Object:
    found = await cluster.find(kube.CLAIMS, namespace, claim)
    if found is None:
        raise NotFoundError(
            f"claim {namespace}/{claim} does not exist; make it, or name another one"
        )
    phase = found.get("status", {}).get("phase", "")
    if phase != "Bound":
        raise FailedPreconditionError(
            f"claim {namespace}/{claim} is {phase or 'new'}, expected Bound: it has no volume yet"
        )
    return await cluster.get(kube.VOLUMES, "", found["spec"]["volumeName"])


async def is_of_one_node(cluster: Cluster, namespace: str, spec: Object) -> bool:
    """Whether a claim of the pod can be used on one node at a time, or by one pod."""
    for volume in spec.get("volumes") or ():
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        claim = await cluster.find(kube.CLAIMS, namespace, name) if name else None
        if claim is None:
            continue
        modes = set(claim["spec"].get("accessModes") or ())
        if modes == {_ONE_POD}:
            return True
        if modes == {_ONE_NODE}:
            bound = await cluster.find(kube.VOLUMES, "", claim["spec"].get("volumeName", ""))
            if bound and not any(kind in bound["spec"] for kind in _ON_NODES):
                return True
    return False
