from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Coding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLAIN: _ClassVar[Coding]
    ZEROS: _ClassVar[Coding]
    ZSTD: _ClassVar[Coding]
PLAIN: Coding
ZEROS: Coding
ZSTD: Coding

class Request(_message.Message):
    __slots__ = ("hello", "list", "manifest", "chunk", "fetch")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    list: List
    manifest: Manifest
    chunk: Chunk
    fetch: Fetch
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., list: _Optional[_Union[List, _Mapping]] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, versions: _Optional[_Iterable[int]] = ...) -> None: ...

class List(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("namespace", "name", "sha256")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    sha256: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("checkpoint", "path", "number", "may_compress")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MAY_COMPRESS_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    path: str
    number: int
    may_compress: bool
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., path: _Optional[str] = ..., number: _Optional[int] = ..., may_compress: _Optional[bool] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("checkpoint", "port")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    port: int
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., port: _Optional[int] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("failure", "welcome", "listing", "signature", "piece", "progress", "body_bytes")
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    failure: Failure
    welcome: Welcome
    listing: Listing
    signature: Signature
    piece: Piece
    progress: Progress
    body_bytes: int
    def __init__(self, failure: _Optional[_Union[Failure, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., listing: _Optional[_Union[Listing, _Mapping]] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., body_bytes: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "text")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    text: str
    def __init__(self, reason: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class Listing(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Listed]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Listed, _Mapping]]] = ...) -> None: ...

class Listed(_message.Message):
    __slots__ = ("checkpoint", "created", "pod", "containers", "size_bytes", "gpu_bytes")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_BYTES_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    created: str
    pod: str
    containers: _containers.RepeatedScalarFieldContainer[str]
    size_bytes: int
    gpu_bytes: int
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., created: _Optional[str] = ..., pod: _Optional[str] = ..., containers: _Optional[_Iterable[str]] = ..., size_bytes: _Optional[int] = ..., gpu_bytes: _Optional[int] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("signature",)
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signature: bytes
    def __init__(self, signature: _Optional[bytes] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("coding",)
    CODING_FIELD_NUMBER: _ClassVar[int]
    coding: Coding
    def __init__(self, coding: _Optional[_Union[Coding, str]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done_bytes", "size_bytes", "moved_bytes", "is_done")
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    IS_DONE_FIELD_NUMBER: _ClassVar[int]
    done_bytes: int
    size_bytes: int
    moved_bytes: int
    is_done: bool
    def __init__(self, done_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ..., moved_bytes: _Optional[int] = ..., is_done: _Optional[bool] = ...) -> None: ...
