from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckpointRequest(_message.Message):
    __slots__ = ("target", "name", "after", "replace", "pod_is_going", "strict", "push", "uid", "capture", "tcp", "nccl", "token")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    POD_IS_GOING_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    TCP_FIELD_NUMBER: _ClassVar[int]
    NCCL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    target: str
    name: str
    after: str
    replace: bool
    pod_is_going: bool
    strict: bool
    push: str
    uid: str
    capture: _containers.RepeatedScalarFieldContainer[str]
    tcp: str
    nccl: str
    token: str
    def __init__(self, target: _Optional[str] = ..., name: _Optional[str] = ..., after: _Optional[str] = ..., replace: _Optional[bool] = ..., pod_is_going: _Optional[bool] = ..., strict: _Optional[bool] = ..., push: _Optional[str] = ..., uid: _Optional[str] = ..., capture: _Optional[_Iterable[str]] = ..., tcp: _Optional[str] = ..., nccl: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("namespace", "name", "sha256", "source", "host")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    sha256: str
    source: str
    host: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., sha256: _Optional[str] = ..., source: _Optional[str] = ..., host: _Optional[str] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("namespace", "name", "target")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    target: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class JobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "kind", "state", "phase", "namespace", "name", "sha256", "url", "begun", "ended", "done_bytes", "size_bytes", "moved_bytes", "bytes_per_s", "reason", "text", "token")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    state: str
    phase: str
    namespace: str
    name: str
    sha256: str
    url: str
    begun: str
    ended: str
    done_bytes: int
    size_bytes: int
    moved_bytes: int
    bytes_per_s: float
    reason: str
    text: str
    token: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[str] = ..., phase: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., sha256: _Optional[str] = ..., url: _Optional[str] = ..., begun: _Optional[str] = ..., ended: _Optional[str] = ..., done_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ..., moved_bytes: _Optional[int] = ..., bytes_per_s: _Optional[float] = ..., reason: _Optional[str] = ..., text: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class FactsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FactsReply(_message.Message):
    __slots__ = ("facts", "node", "version", "checkpoint_root")
    FACTS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_ROOT_FIELD_NUMBER: _ClassVar[int]
    facts: str
    node: str
    version: str
    checkpoint_root: str
    def __init__(self, facts: _Optional[str] = ..., node: _Optional[str] = ..., version: _Optional[str] = ..., checkpoint_root: _Optional[str] = ...) -> None: ...

class CheckpointRef(_message.Message):
    __slots__ = ("namespace", "name")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("sha256", "size_bytes", "gpu_bytes", "created", "containers", "needs", "warnings", "phases")
    class PhasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    size_bytes: int
    gpu_bytes: int
    created: str
    containers: _containers.RepeatedScalarFieldContainer[str]
    needs: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    phases: _containers.ScalarMap[str, float]
    def __init__(self, sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., gpu_bytes: _Optional[int] = ..., created: _Optional[str] = ..., containers: _Optional[_Iterable[str]] = ..., needs: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., phases: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("target", "uid", "checkpoint")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    target: str
    uid: str
    checkpoint: str
    def __init__(self, target: _Optional[str] = ..., uid: _Optional[str] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class ResumeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("namespace", "name", "store", "sha256", "deleted_pod_uid")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DELETED_POD_UID_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    store: str
    sha256: str
    deleted_pod_uid: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., store: _Optional[str] = ..., sha256: _Optional[str] = ..., deleted_pod_uid: _Optional[str] = ...) -> None: ...

class RemoveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RecordsRequest(_message.Message):
    __slots__ = ("pod_uid", "follow")
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    pod_uid: str
    follow: bool
    def __init__(self, pod_uid: _Optional[str] = ..., follow: _Optional[bool] = ...) -> None: ...

class RecordsReply(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: str
    def __init__(self, records: _Optional[str] = ...) -> None: ...
