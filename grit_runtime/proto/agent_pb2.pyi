from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckpointRequest(_message.Message):
    __slots__ = ("target", "name", "after", "replace", "pod_is_going", "strict", "push")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    POD_IS_GOING_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    target: str
    name: str
    after: str
    replace: bool
    pod_is_going: bool
    strict: bool
    push: str
    def __init__(self, target: _Optional[str] = ..., name: _Optional[str] = ..., after: _Optional[str] = ..., replace: _Optional[bool] = ..., pod_is_going: _Optional[bool] = ..., strict: _Optional[bool] = ..., push: _Optional[str] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("namespace", "name", "sha256", "source")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    sha256: str
    source: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., sha256: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("id", "kind", "state", "phase", "namespace", "name", "sha256", "url", "begun", "ended", "done_bytes", "size_bytes", "moved_bytes", "bytes_per_s", "reason", "text")
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
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[str] = ..., phase: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., sha256: _Optional[str] = ..., url: _Optional[str] = ..., begun: _Optional[str] = ..., ended: _Optional[str] = ..., done_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ..., moved_bytes: _Optional[int] = ..., bytes_per_s: _Optional[float] = ..., reason: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
