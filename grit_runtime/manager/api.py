"""The objects of kaito.sh/v1alpha1. Pure.

The classes are the format: `fields` reads and writes objects by them, and `crds` makes their
definitions of them, where the texts are what `kubectl explain` shows. Names, phases and reasons
that upstream GRIT has are upstream's (kaito-project/grit pkg/apis/v1alpha1@8bf3b54); so its
manifests can be applied and scripts that wait for its conditions go on working.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from grit_runtime.manager import fields, names
from grit_runtime.model.selectors import LabelSelector
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP = "kaito.sh"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

CREATED, PENDING, FAILED = "Created", "Pending", "Failed"
CHECKPOINTING, CHECKPOINTED = "Checkpointing", "Checkpointed"
SUBMITTING, SUBMITTED = "Submitting", "Submitted"
RESTORING, RESTORED = "Restoring", "Restored"
PLACING, VERIFIED = "Placing", "Verified"
SUCCEEDED, ROLLING_BACK = "Succeeded", "RollingBack"
HOLDING = (PLACING, RESTORING, ROLLING_BACK)  # a source is held, and is to be given back
READY = "Ready"  # a condition's type alone

CheckpointPhase = Literal[
    "Created", "Pending", "Checkpointing", "Checkpointed", "Submitting", "Submitted", "Failed"
]
RestorePhase = Literal["Created", "Pending", "Restoring", "Restored", "Failed"]
MigrationPhase = Literal[
    "Pending", "Checkpointing", "Placing", "Restoring", "Verified", "Succeeded",
    "RollingBack", "Failed",
]  # fmt: skip

NAME = {"maxLength": 253}
TEXT = {"maxLength": 32768}
TIME = {"format": "date-time"}
DURATION = {"maxLength": 32, "pattern": r"^([0-9]+[dhms])*0*[1-9][0-9]*[dhms]([0-9]+[dhms])*$"}
STORE = "^(file:///|(s3|gs|az)://)."  # what an agent opens by the node's own rights, of its URLs
CAPTURED = r"^(shm|emptydir:[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$"
ATOMIC_MAP = {"x-kubernetes-map-type": "atomic"}
BY_TYPE = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}

Selector = Annotated[LabelSelector | None, ATOMIC_MAP]


class OwnerReference(NamedTuple):
    api_version: Annotated[str, NAME]
    kind: Annotated[str, NAME]
    name: Annotated[str, NAME]
    uid: Annotated[str, NAME]
    controller: bool = False
    block_owner_deletion: bool = False


class Metadata(NamedTuple):
    """What is read of an object's metadata."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    labels: dict[str, str] = {}  # noqa: RUF012  never changed
    annotations: dict[str, str] = {}  # noqa: RUF012
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def parent(self) -> OwnerReference | None:
        """The object of this group that it goes with, as whoever has made it says."""
        of_group = (one for one in self.owner_references if one.api_version == API_VERSION)
        return next((one for one in of_group if one.controller), None)


class Condition(NamedTuple):
    """As metav1.Condition."""

    type: Annotated[str, "The phase that was reached, or Ready.", {"maxLength": 316}]
    status: Literal["True", "False", "Unknown"]
    last_transition_time: Annotated[str, TIME]
    reason: Annotated[
        str,
        "Why, for scripts.",
        {"maxLength": 1024, "minLength": 1, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    ]
    message: Annotated[str, "Why, for people.", TEXT]
    observed_generation: Annotated[int, {"minimum": 0}] = 0


Conditions = Annotated[tuple[Condition, ...], "What has been reached, and why not.", BY_TYPE]
Durations = Annotated[dict[str, float], "Seconds that each phase took."]
ObservedGeneration = Annotated[int, "The generation of the spec that the status is of."]
Reason = Annotated[str, "The reason of the newest failure, for scripts."]
Message = Annotated[str, "What happens, or has failed, in one line.", TEXT]


class VolumeClaim(NamedTuple):
    """As PersistentVolumeClaimVolumeSource."""

    claim_name: Annotated[str, "The claim, in the same namespace.", NAME]
    read_only: Annotated[bool, "Accepted for upstream's sake; a checkpoint is written."] = False


class Storage(NamedTuple):
    claim_name: Annotated[str, "A PersistentVolumeClaim of the same namespace.", NAME] = ""
    url: Annotated[
        str,
        "A store: a directory of the nodes as file:///DIRECTORY, or a bucket as s3://BUCKET/PATH.",
        {"maxLength": 2048, "pattern": "^[a-z][a-z0-9+.-]*://."},
    ] = ""


class Gpu(NamedTuple):
    nccl: Annotated[
        Literal["assume-safe"] | None,
        "assume-safe: NCCL that was started without its checkpointable environment is not refused.",
    ] = None


class Retention(NamedTuple):
    keep: Annotated[
        int | None,
        "It is removed when so many newer ones of its pod are sealed.",
        {"minimum": 1},
    ] = None
    max_age: Annotated[
        str, "The checkpoint is removed when it is so old, as 12h or 7d.", DURATION
    ] = ""


class CheckpointSpec(NamedTuple):
    pod_name: Annotated[str, "The pod, in the same namespace. This or selector.", NAME] = ""
    selector: Annotated[Selector, "Selects the pod by its labels; exactly one may match."] = None
    source_pod_uid: Annotated[str, "Another pod of that name is refused.", NAME] = ""
    volume_claim: Annotated[VolumeClaim | None, "The same as storage.claimName."] = None
    storage: Annotated[
        Storage | None, "Where the checkpoint is put to; if nowhere, it stays on its node."
    ] = None
    after: Annotated[
        Literal["running", "frozen", "stopped"],
        "What becomes of the pod: it runs on (the default), is held frozen, or is stopped.",
    ] = "running"
    auto_migration: Annotated[
        bool,
        "The pod is held frozen and its owner replaces it; the new one goes on from there.",
    ] = False
    capture: Annotated[
        tuple[Annotated[str, {"maxLength": 80, "pattern": CAPTURED}], ...],
        "Volumes that go along, as emptydir:NAME.",
        {"maxItems": 100},
    ] = ()
    gpu: Annotated[Gpu | None, "What is to be done about GPUs."] = None
    tcp: Annotated[
        Literal["refuse", "close", "established"] | None,
        "What becomes of TCP connections to the outside; if not given, as the pod says.",
    ] = None
    retention: Annotated[Retention | None, "When it is removed; if not given, with its object."] = (
        None
    )
    timeout_seconds: Annotated[
        int | None, "It has failed, and the pod runs on, if not sealed by then.", {"minimum": 1}
    ] = None

    @property
    def stored(self) -> Storage | None:
        """Where it is put to, by whichever field says so."""
        return Storage(self.volume_claim.claim_name) if self.volume_claim else self.storage


class CheckpointStatus(NamedTuple):
    phase: CheckpointPhase | None = None
    node_name: Annotated[str, "The node that the pod was on."] = ""
    pod_name: Annotated[str, "The pod that was checkpointed."] = ""
    pod_uid: str = ""
    containers: Annotated[tuple[str, ...], "Those that ran, and go on."] = ()
    pod_spec_hash: Annotated[str, "sha256 of what a pod must have to go on from it."] = ""
    pod_template: Annotated[
        dict[str, Any], "The pod that was checkpointed: metadata and spec."
    ] = {}  # noqa: RUF012
    data_path: Annotated[str, "Where it is: PV://NAMESPACE/NAME, or a store's URL."] = ""
    manifest_digest: Annotated[str, "sha256: and the digits that name this very checkpoint."] = ""
    needs: Annotated[dict[str, Any], "The node and GPUs that it was taken of."] = {}  # noqa: RUF012
    size_bytes: Annotated[int | None, "Of all its files."] = None
    gpu_bytes: Annotated[int | None, "GPU memory in it."] = None
    size: Annotated[str, "sizeBytes for people."] = ""
    duration: Annotated[str, "From startTime to completionTime, for people."] = ""
    durations: Durations = {}  # noqa: RUF012
    warnings: Annotated[
        tuple[str, ...], "What will come back different, or may have been harmed."
    ] = ()
    start_time: Annotated[str, TIME] = ""
    completion_time: Annotated[str, TIME] = ""
    phase_time: Annotated[str, "When the phase began.", TIME] = ""
    observed_generation: ObservedGeneration = 0
    reason: Reason = ""
    message: Message = ""
    conditions: Conditions = ()


class RestoreSpec(NamedTuple):
    checkpoint_name: Annotated[
        str, "The Checkpoint, in the same namespace.", NAME, {"minLength": 1}
    ]
    owner_ref: Annotated[
        OwnerReference | None, "A new pod of this owner is restored.", ATOMIC_MAP
    ] = None
    selector: Annotated[Selector, "A new pod with such labels is restored."] = None
    timeout_seconds: Annotated[
        int | None, "It has failed if no pod is restored by then.", {"minimum": 1}
    ] = None
    on_failure: Annotated[
        Literal["fail", "coldStart"],
        "fail (the default): the pod does not start. coldStart: it starts from its image.",
    ] = "fail"

    @property
    def owner(self) -> OwnerReference | None:
        """The owner that is named; upstream's clients write one of empty texts for none."""
        return self.owner_ref if self.owner_ref and self.owner_ref.uid else None


class RestoreStatus(NamedTuple):
    phase: RestorePhase | None = None
    node_name: Annotated[str, "The node that the restored pod is on."] = ""
    target_pod: Annotated[str, "The pod that is restored."] = ""
    target_pod_uid: str = ""
    duration: Annotated[str, "From the pod's selection to its being verified, for people."] = ""
    durations: Durations = {}  # noqa: RUF012
    start_time: Annotated[str, TIME] = ""
    completion_time: Annotated[str, TIME] = ""
    phase_time: Annotated[str, "When the phase began.", TIME] = ""
    observed_generation: ObservedGeneration = 0
    reason: Reason = ""
    message: Message = ""
    conditions: Conditions = ()


class MigrationSpec(NamedTuple):
    pod_name: Annotated[str, "The pod, in the same namespace. This or selector.", NAME] = ""
    selector: Annotated[Selector, "Selects the pod by its labels; exactly one may match."] = None
    source_pod_uid: Annotated[str, "Another pod of that name is refused.", NAME] = ""
    node_name: Annotated[
        str, "The node that it goes to; if not given, the scheduler takes one that can.", NAME
    ] = ""
    storage: Annotated[
        Storage | None, "The checkpoint goes this way; if not given, from node to node."
    ] = None
    timeout_seconds: Annotated[
        int | None,
        "If the new pod is not verified by then, the old one runs on.",
        {"minimum": 1},
    ] = None


class MigrationStatus(NamedTuple):
    phase: MigrationPhase | None = None
    source_node: str = ""
    target_node: str = ""
    source_pod: str = ""
    source_pod_uid: str = ""
    target_pod: str = ""
    target_pod_uid: str = ""
    checkpoint_name: Annotated[str, "The Checkpoint that carries it."] = ""
    manifest_digest: Annotated[str, "Of that Checkpoint, once it is sealed."] = ""
    size: Annotated[str, "What was carried, for people."] = ""
    duration: Annotated[str, "Of all of it, for people."] = ""
    downtime_seconds: Annotated[
        float | None, "From the pod's being frozen to its running on, by the clocks of both nodes."
    ] = None
    durations: Durations = {}  # noqa: RUF012
    start_time: Annotated[str, TIME] = ""
    completion_time: Annotated[str, TIME] = ""
    phase_time: Annotated[str, "When the phase began.", TIME] = ""
    observed_generation: ObservedGeneration = 0
    reason: Reason = ""
    message: Message = ""
    conditions: Conditions = ()


class CheckpointScheduleSpec(NamedTuple):
    pod_name: Annotated[str, "The pod, in the same namespace. This or selector.", NAME] = ""
    selector: Annotated[Selector, "Selects the pods by their labels, each for itself."] = None
    interval: Annotated[str, "From one checkpoint to the next, as 30m or 1h30m.", DURATION] = ""
    cron: Annotated[str, "Five fields, in UTC, as 0 3 * * *.", {"maxLength": 256}] = ""
    triggers: Annotated[  # a field "on" would be true in YAML
        tuple[
            Literal[
                "NodeDrain",
                "PodEviction",
                "Preemption",
                "JobSuspension",
                "SpotNotice",
                "NodeLoss",
                "Annotation",
            ],
            ...,
        ],
        "What it is taken for besides.",
        {"maxItems": 7},
    ] = ()
    keep: Annotated[
        int, "Its checkpoints have this as their retention.keep; 3 if not given.", {"minimum": 1}
    ] = 3
    storage: Annotated[
        Storage | None, "Where checkpoints are put to; if nowhere, they stay on their node."
    ] = None


class CheckpointScheduleStatus(NamedTuple):
    last_checkpoint: Annotated[str, "The newest that is sealed."] = ""
    last_time: Annotated[str, "When checkpoints were last asked for by the clock.", TIME] = ""
    next_time: Annotated[str, "When they will be.", TIME] = ""
    observed_generation: ObservedGeneration = 0
    reason: Reason = ""
    message: Message = ""
    conditions: Conditions = ()


class Checkpoint(NamedTuple):
    """The state of a pod, kept on the pod's node and where its spec has it put."""

    metadata: Metadata
    spec: CheckpointSpec
    status: CheckpointStatus = CheckpointStatus()

    @property
    def is_part(self) -> bool:
        """Whether it is a Migration's, which makes its own Restore and takes it along."""
        parent = self.metadata.parent
        return parent is not None and parent.kind == "Migration"


class Restore(NamedTuple):
    """A new pod that goes on from a Checkpoint."""

    metadata: Metadata
    spec: RestoreSpec
    status: RestoreStatus = RestoreStatus()


class Migration(NamedTuple):
    """A pod that goes to another node, or stays as it is if that fails."""

    metadata: Metadata
    spec: MigrationSpec
    status: MigrationStatus = MigrationStatus()


class CheckpointSchedule(NamedTuple):
    """Checkpoints of pods again and again, and when their nodes are to go."""

    metadata: Metadata
    spec: CheckpointScheduleSpec
    status: CheckpointScheduleStatus = CheckpointScheduleStatus()


Record = TypeVar("Record", Checkpoint, Restore, Migration, CheckpointSchedule)


def read(kind: type[Record], body: Mapping[str, Any]) -> Record:
    """The object in *body*; InvalidArgumentError names the field that is not what it should be."""
    metadata = body.get("metadata") or {}
    where = f"{kind.__name__} {metadata.get('namespace')}/{metadata.get('name')}"
    found: Record = fields.read(kind, dict(body), where)
    return found


def made(kind: str, metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """An object as the manager makes one, which it looks after from its beginning."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"finalizers": [names.FINALIZER], **metadata},
        "spec": spec,
    }


def reference(kind: str, metadata: Metadata) -> dict[str, Any]:
    """What an object has among its ownerReferences that goes with this one."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": metadata.name,
        "uid": metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
