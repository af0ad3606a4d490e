from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Header(_message.Message):
    __slots__ = ("version", "created", "pushed", "pod", "containers", "size_bytes", "stored_bytes", "gpu_bytes", "key")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    PUSHED_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    version: int
    created: str
    pushed: str
    pod: str
    containers: _containers.RepeatedScalarFieldContainer[str]
    size_bytes: int
    stored_bytes: int
    gpu_bytes: int
    key: Key
    def __init__(self, version: _Optional[int] = ..., created: _Optional[str] = ..., pushed: _Optional[str] = ..., pod: _Optional[str] = ..., containers: _Optional[_Iterable[str]] = ..., size_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., gpu_bytes: _Optional[int] = ..., key: _Optional[_Union[Key, _Mapping]] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("id", "wrapped")
    ID_FIELD_NUMBER: _ClassVar[int]
    WRAPPED_FIELD_NUMBER: _ClassVar[int]
    id: str
    wrapped: bytes
    def __init__(self, id: _Optional[str] = ..., wrapped: _Optional[bytes] = ...) -> None: ...

class Index(_message.Message):
    __slots__ = ("manifest", "signature", "keys", "packs", "files")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PACKS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    signature: bytes
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    packs: _containers.RepeatedCompositeFieldContainer[Pack]
    files: _containers.RepeatedCompositeFieldContainer[File]
    def __init__(self, manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., packs: _Optional[_Iterable[_Union[Pack, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ...) -> None: ...

class Pack(_message.Message):
    __slots__ = ("name", "key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    key: int
    def __init__(self, name: _Optional[str] = ..., key: _Optional[int] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("path", "chunks")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    path: str
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    def __init__(self, path: _Optional[str] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("pack", "offset", "size_bytes", "digest")
    PACK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    pack: int
    offset: int
    size_bytes: int
    digest: bytes
    def __init__(self, pack: _Optional[int] = ..., offset: _Optional[int] = ..., size_bytes: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Contents(_message.Message):
    __slots__ = ("chunks",)
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    def __init__(self, chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ...) -> None: ...
