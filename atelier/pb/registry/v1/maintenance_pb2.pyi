from atelier.pb.common.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Quota(_message.Message):
    __slots__ = ("name", "max_stored_bytes", "max_versions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MAX_STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    max_stored_bytes: int
    max_versions: int
    def __init__(self, name: _Optional[str] = ..., max_stored_bytes: _Optional[int] = ..., max_versions: _Optional[int] = ...) -> None: ...

class CollectGarbageRequest(_message.Message):
    __slots__ = ("validate_only",)
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    validate_only: bool
    def __init__(self, validate_only: _Optional[bool] = ...) -> None: ...

class CollectGarbageResponse(_message.Message):
    __slots__ = ("blob_count", "blob_bytes", "orphan_count", "upload_count", "version_count", "adapter_count")
    BLOB_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    ORPHAN_COUNT_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    VERSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_COUNT_FIELD_NUMBER: _ClassVar[int]
    blob_count: int
    blob_bytes: int
    orphan_count: int
    upload_count: int
    version_count: int
    adapter_count: int
    def __init__(self, blob_count: _Optional[int] = ..., blob_bytes: _Optional[int] = ..., orphan_count: _Optional[int] = ..., upload_count: _Optional[int] = ..., version_count: _Optional[int] = ..., adapter_count: _Optional[int] = ...) -> None: ...

class ScrubRequest(_message.Message):
    __slots__ = ("limit_bytes",)
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    limit_bytes: int
    def __init__(self, limit_bytes: _Optional[int] = ...) -> None: ...

class ScrubResponse(_message.Message):
    __slots__ = ("progress", "rot")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ROT_FIELD_NUMBER: _ClassVar[int]
    progress: ScrubProgress
    rot: Rot
    def __init__(self, progress: _Optional[_Union[ScrubProgress, _Mapping]] = ..., rot: _Optional[_Union[Rot, _Mapping]] = ...) -> None: ...

class ScrubProgress(_message.Message):
    __slots__ = ("blob_count", "blob_bytes", "rot_count")
    BLOB_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROT_COUNT_FIELD_NUMBER: _ClassVar[int]
    blob_count: int
    blob_bytes: int
    rot_count: int
    def __init__(self, blob_count: _Optional[int] = ..., blob_bytes: _Optional[int] = ..., rot_count: _Optional[int] = ...) -> None: ...

class Rot(_message.Message):
    __slots__ = ("sha256", "kind", "versions")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Rot.Kind]
        KIND_MISSING: _ClassVar[Rot.Kind]
        KIND_CHANGED: _ClassVar[Rot.Kind]
    KIND_UNSPECIFIED: Rot.Kind
    KIND_MISSING: Rot.Kind
    KIND_CHANGED: Rot.Kind
    SHA256_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    kind: Rot.Kind
    versions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[str] = ..., kind: _Optional[_Union[Rot.Kind, str]] = ..., versions: _Optional[_Iterable[str]] = ...) -> None: ...

class UpdateQuotaRequest(_message.Message):
    __slots__ = ("quota", "request_id", "validate_only")
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    quota: Quota
    request_id: str
    validate_only: bool
    def __init__(self, quota: _Optional[_Union[Quota, _Mapping]] = ..., request_id: _Optional[str] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class GetQuotaRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...
