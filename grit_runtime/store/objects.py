"""A store in an object store: S3 (s3://), Google's (gs://) or Azure's (az://).

Credentials, region and endpoint are those of the usual environment variables, of the instance or of
the pod's service account, as obstore finds them.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress

from grit_runtime.errors import ConfigurationError, NotFoundError
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


class Objects:
    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        is_plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        with _as_os_error(self.url):
            self._store = from_url(self.url, client_options={"allow_http": is_plain})

    def writing(self, name: str) -> _Object:
        return _Object(self, name)

    def put(self, name: str, parts: list[bytes]) -> None:
        with _as_os_error(f"{self.url}/{name}"):
            obstore.put(self._store, name, iter(parts))

    def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        try:
            with _as_os_error(f"{self.url}/{name}"):
                if offset == 0 and size_bytes is None:
                    return bytes(obstore.get(self._store, name).bytes())
                if size_bytes is None:
                    size_bytes = obstore.head(self._store, name)["size"] - offset
                return bytes(obstore.get_range(self._store, name, start=offset, length=size_bytes))
        except FileNotFoundError:
            raise NotFoundError(f"{self.url} has no {name}") from None

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


class _Object:
    """An object that is being written, in memory: it is put as a whole."""

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects = objects
        self._name = name
        self._parts: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def write(self, data: bytes | memoryview) -> None:
        self._parts.append(bytes(data))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._objects.put(self._name, self._parts)
        self._parts = []


@contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """Raise what obstore raises as the OSError that a file would give."""
    try:
        yield
    except FileNotFoundError:  # obstore's own is one
        raise
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, _first_line(error), path) from None
    except exceptions.BaseError as error:
        raise OSError(errno.EIO, _first_line(error), path) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
