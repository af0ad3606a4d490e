"""Checkpoints of a node or a store, as rows of a table."""

from __future__ import annotations

import os

from grit_runtime.errors import GritError, NotFoundError
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import catalog
from grit_runtime.store.backend import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Row(NamedTuple):
    checkpoint: str
    state: str  # "sealed", or what is wrong
    created: str
    pod: str
    containers: tuple[str, ...]
    size_bytes: int
    gpu_bytes: int
    sha256: str


def of_node(root: str) -> list[Row]:
    """What is below the checkpoint root; names that begin with a dot are still being made."""
    rows = []
    for namespace in _directories(root):
        for name in _directories(root, namespace):
            path = f"{root}/{namespace}/{name}"
            with closing_fd(confine.open_dir(root, namespace, name)) as dir_fd:
                try:
                    sealed = checkpoint_dir.read_manifest(dir_fd, path)
                except (GritError, OSError) as error:
                    reason = error.reason if isinstance(error, GritError) else "SystemCallFailed"
                    rows.append(Row(f"{namespace}/{name}", reason, "", "", (), 0, 0, ""))
                    continue
            manifest = sealed.manifest
            rows.append(
                Row(
                    f"{namespace}/{name}",
                    "sealed",
                    manifest.created,
                    manifest.pod.name,
                    tuple(container.name for container in manifest.containers),
                    sum(file.size_bytes for file in manifest.files),
                    sum(process.size_bytes for c in manifest.containers for process in c.cuda),
                    sealed.sha256,
                )
            )
    return rows


def of_store(url: str) -> list[Row]:
    """What is in a store, the newest first."""
    store = open_store(url)
    rows = []
    for entry in catalog.entries(store):
        name = f"{entry.namespace}/{entry.name}"
        try:
            header = catalog.read_header(store, entry)
        except NotFoundError:  # it has just been removed
            continue
        except GritError as error:
            rows.append(Row(name, error.reason, "", "", (), 0, 0, entry.sha256))
            continue
        rows.append(
            Row(
                name,
                "sealed",
                header.created,
                header.pod,
                tuple(header.containers),
                header.size_bytes,
                header.gpu_bytes,
                entry.sha256,
            )
        )
    return rows


def table(rows: list[Row]) -> Iterator[str]:
    """Lines with columns that are as wide as what is in them."""
    cells = [("CHECKPOINT", "STATE", "CREATED", "POD", "CONTAINERS", "SIZE", "GPU", "MANIFEST")]
    cells += [
        (
            row.checkpoint,
            row.state,
            row.created,
            row.pod,
            ",".join(row.containers),
            size(row.size_bytes),
            size(row.gpu_bytes) if row.gpu_bytes else "-",
            row.sha256[:12],
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row_cells in cells:
        padded = (cell.ljust(width) for cell, width in zip(row_cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


def size(size_bytes: int) -> str:
    """For people: 3.4 GiB."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size_bytes} B"


def _directories(root: str, *names: str) -> list[str]:
    try:
        fd = confine.open_dir(root, *names)
    except FileNotFoundError:
        return []
    with closing_fd(fd), os.scandir(fd) as entries:
        found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(name for name in found if not name.startswith("."))
