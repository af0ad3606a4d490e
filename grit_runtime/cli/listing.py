"""Checkpoints of a node or a store, as rows of a table."""

from __future__ import annotations

from grit_runtime.errors import GritError, NotFoundError
from grit_runtime.files import found
from grit_runtime.files.found import Found
from grit_runtime.model import sizes
from grit_runtime.store import catalog
from grit_runtime.store.backend import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.config import Config


def of(where: str | None, config: Config) -> list[Found]:
    """What is on this node, in a store or on a peer."""
    if not where:
        return list(found.beneath(config.checkpoint_root))
    from grit_runtime.agent import peers

    return _of_peer(where, config) if peers.is_peer(where) else _of_store(where)


def _of_peer(url: str, config: Config) -> list[Found]:
    from grit_runtime.agent import peers

    return [
        Found(
            f"{one.checkpoint.namespace}/{one.checkpoint.name}",
            found.SEALED,
            one.created,
            one.pod,
            tuple(one.containers),
            one.size_bytes,
            one.gpu_bytes,
            one.checkpoint.sha256,
        )
        for one in peers.listing(peers.address(url), peers.own(config))
    ]


def _of_store(url: str) -> list[Found]:
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
            rows.append(Found(name, error.reason, sha256=entry.sha256))
            continue
        rows.append(
            Found(
                name,
                found.SEALED,
                header.created,
                header.pod,
                tuple(header.containers),
                header.size_bytes,
                header.gpu_bytes,
                entry.sha256,
            )
        )
    return rows


def table(rows: list[Found]) -> Iterator[str]:
    """Lines with columns that are as wide as what is in them."""
    cells = [("CHECKPOINT", "STATE", "CREATED", "POD", "CONTAINERS", "SIZE", "GPU", "MANIFEST")]
    cells += [
        (
            row.checkpoint,
            row.state,
            row.created,
            row.pod,
            ",".join(row.containers),
            sizes.shown(row.size_bytes),
            sizes.shown(row.gpu_bytes) if row.gpu_bytes else "-",
            row.sha256[:12],
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row_cells in cells:
        padded = (cell.ljust(width) for cell, width in zip(row_cells, widths, strict=True))
        yield "  ".join(padded).rstrip()
