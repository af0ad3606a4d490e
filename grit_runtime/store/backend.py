"""What a store is kept in: objects with names, each written whole or not at all.

Names: ``packs/PUSH/PACK``; ``checkpoints/NAMESPACE/NAME/SHA256``, an index; ``locks/TOKEN``;
``damaged/PUSH/PACK``, of a pack that is; and ``grit-store.json``, which says that this is a store.
"""

from __future__ import annotations

import json

from grit_runtime.errors import NewerFormatError, NoStoreError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Protocol

    from grit_runtime.store.listed import Stored

    class Writing(Protocol):
        """An object that is being written."""

        def write(self, data: bytes | memoryview) -> int:
            """How many bytes, of this and earlier calls, have gone to the medium meanwhile."""

    class Backend(Protocol):
        """Every method may be called from any thread, blocks, and raises OSError for the medium."""

        url: str
        pack_bytes: int  # what an object should have to be written quickly

        def writing(self, name: str) -> AbstractContextManager[Writing]:
            """An object of that name, in place of one that is there.

            It is whole, durable and has its name once the block has ended, and is no more if that
            raises.
            """

        def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
            """A part of the object, shorter only where that ends; NotFoundError without it."""

        def listed(self, prefix: str) -> list[Stored]:
            """The objects whose names begin with *prefix*, which ends in a slash, and more."""

        def remove(self, name: str) -> None:
            """Remove an object, if it is there."""

        def remove_unfinished(self) -> None:
            """Remove what writers that were killed have left; nobody may be writing."""


FORMAT_NAME = "grit-store.json"
VERSION = 1


def put(store: Backend, name: str, data: bytes) -> None:
    """Write a small object."""
    with store.writing(name) as file:
        file.write(data)


def open_store(url: str, *, make: bool = False) -> Backend:
    """The store at *url*: a directory's path, or s3://, gs:// or az:// and what is behind it.

    *make* makes an empty place a store. NoStoreError if it is none.
    """
    return known(_backend(url, make=make), make=make)


def known(store: Backend, *, make: bool) -> Backend:
    """*store*, whose place is there, if it is one; *make* and errors as of `open_store`."""
    url = store.url
    try:
        found = json.loads(store.read(FORMAT_NAME, size_bytes=4096))
        version = found["grit-store"]
    except NotFoundError:
        if not make:
            raise NoStoreError(
                f"{url} is not a store: it has no {FORMAT_NAME}; the first push makes an empty "
                "directory or bucket one"
            ) from None
        if store.listed(""):
            raise NoStoreError(
                f"{url} is neither a store nor empty; name another place, or empty it"
            ) from None
        put(store, FORMAT_NAME, json.dumps({"grit-store": VERSION}).encode())
        return store
    except (ValueError, TypeError, KeyError):
        raise NoStoreError(
            f"{url}: {FORMAT_NAME} means nothing; restore it or name another place"
        ) from None
    if version != VERSION:
        raise NewerFormatError(
            f"{url}: the store's version is {version!r}, this grit knows {VERSION}; upgrade grit"
        )
    return store


def _backend(url: str, *, make: bool) -> Backend:
    if "://" in url:
        from grit_runtime.store.objects import Objects  # an extra of its own

        return Objects(url)
    from grit_runtime.store.directory import Directory

    return Directory(url, make=make)
