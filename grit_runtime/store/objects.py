"""A store in an object store: S3 (s3://), Google's (gs://) or Azure's (az://).

Credentials, region and endpoint are those of the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL for S3), of the instance or of the pod's service
account, as obstore finds them. An endpoint at http:// is taken as it is: nothing is encrypted then
but what a key encrypts.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import BytesIO

from grit_runtime.errors import (
    ConfigurationError,
    InvalidArgumentError,
    NoStoreError,
    NotFoundError,
)
from grit_runtime.store.listed import Stored

try:
    import obstore
    from obstore import exceptions
    from obstore.store import from_url
except ImportError:
    raise ConfigurationError(
        "object stores need obstore: install grit-runtime[object-store], or use a directory"
    ) from None

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from obstore.store import RetryConfig


# An object is sent or read in one request: a pack of 32 MiB in this time by 1 Mbit/s and more.
_REQUEST = timedelta(minutes=5)
_RETRIES: RetryConfig = {
    "max_retries": 8,
    "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=10)},
}

_REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
_INSTANCE = ("169.254.169.254", "metadata.google.internal")  # who is asked if nothing else is there
_NO_CREDENTIALS = "no credentials; set those of the environment, or give the pod a service account"
_WRONG_CREDENTIALS = "the credentials are wrong, or do not allow this"


class Objects:
    pack_bytes = 32 << 20  # each thread has one in memory

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        is_plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        try:
            self._store = from_url(
                self.url,
                client_options={"allow_http": is_plain, "timeout": _REQUEST},
                retry_config=_RETRIES,
            )
        except (exceptions.BaseError, ValueError):
            raise InvalidArgumentError(
                f"store {url!r}: expected a directory, s3://BUCKET, gs://BUCKET or "
                "az://ACCOUNT/CONTAINER, and perhaps a prefix behind it"
            ) from None

    def writing(self, name: str) -> _Object:
        return _Object(self, name)

    def put(self, name: str, data: memoryview) -> None:
        # One request: an upload in parts that is never ended stays, unseen, and costs.
        with _as_os_error(f"{self.url}/{name}"):
            obstore.put(self._store, name, data, use_multipart=False)

    def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        try:
            with _as_os_error(f"{self.url}/{name}"):
                if offset == 0 and size_bytes is None:
                    return bytes(obstore.get(self._store, name).bytes())
                if size_bytes is None:
                    size_bytes = obstore.head(self._store, name)["size"] - offset
                return self._part(name, offset, size_bytes)
        except FileNotFoundError:
            raise NotFoundError(f"{self.url} has no {name}") from None

    def _part(self, name: str, offset: int, size_bytes: int) -> bytes:
        try:
            return bytes(obstore.get_range(self._store, name, start=offset, length=size_bytes))
        except exceptions.GenericError as error:
            if "416 Range Not Satisfiable" in str(error):  # it begins where the object ends
                return b""
            raise

    def listed(self, prefix: str) -> list[Stored]:
        with _as_os_error(f"{self.url}/{prefix}"):
            pages = list(obstore.list(self._store, prefix or None))
        return [
            Stored(meta["path"], meta["size"], meta["last_modified"].timestamp())
            for page in pages
            for meta in page
        ]

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), _as_os_error(f"{self.url}/{name}"):
            obstore.delete(self._store, name)

    def remove_unfinished(self) -> None:
        """There is nothing: an object is put as a whole."""


class _Object:
    """An object that is being written, in memory: it is put as a whole."""

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects = objects
        self._name = name
        self._data = BytesIO()

    def __enter__(self) -> Self:
        return self

    def write(self, data: bytes | memoryview) -> int:
        self._data.write(data)
        return 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._objects.put(self._name, self._data.getbuffer())
        self._data = BytesIO()


@contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """Raise what obstore raises as the OSError that a file would give; NoStoreError if no bucket.

    What an address ends with is left out: it may be a signature or a token.
    """
    try:
        yield
    except exceptions.BaseError as error:
        said = str(error)
        first = re.sub(r"\?\S*|:? *<.*", "", said.strip().split("\n")[0])
        if any(word in said for word in _NO_BUCKET):
            bucket = "/".join(path.split("/")[:3])
            raise NoStoreError(f"{bucket} does not exist; make the bucket first") from None
        if isinstance(error, FileNotFoundError):
            raise
        if any(word in said for word in _INSTANCE):
            raise PermissionError(errno.EACCES, f"{_NO_CREDENTIALS}: {first}", path) from None
        if isinstance(error, _REFUSED):
            raise PermissionError(errno.EACCES, f"{_WRONG_CREDENTIALS}: {first}", path) from None
        raise OSError(errno.EIO, first, path) from None
