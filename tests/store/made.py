"""Checkpoints of any content, sealed as the engine seals them, to be moved."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from grit_runtime.files import checkpoint_dir
from grit_runtime.model import manifest as manifests

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ROOT = "default"
MIB = 1 << 20


def checkpoint(
    root: Path,
    name: str,
    files: Mapping[str, bytes | list[tuple[int, bytes]]],
    *,
    size_bytes: dict[str, int] | None = None,
) -> Path:
    """A sealed checkpoint below *root*: *files* whole, or sparse, of pieces at offsets."""
    directory = root / ROOT / name
    for path, content in files.items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            if isinstance(content, bytes):
                out.write(content)
            else:
                for offset, data in content:
                    out.seek(offset)
                    out.write(data)
        if size_bytes and path in size_bytes:
            os.truncate(file, size_bytes[path])
    seal(directory, name)
    return directory


def seal(directory: Path, name: str) -> str:
    """Write the manifest of what is in *directory*."""
    (directory / manifests.FILE_NAME).unlink(missing_ok=True)
    manifest = manifests.for_foreign_dump(["main"], {})._replace(
        name=name,
        created="2026-11-29T00:00:00Z",
        pod=manifests.Pod(ROOT, "counter-0", "uid-1", "sandbox-1"),
        files=checkpoint_dir.contents(str(directory)),
    )
    (directory / manifests.FILE_NAME).write_bytes(manifests.dump(manifest))
    return checkpoint_dir.read_manifest(os.open(directory, os.O_RDONLY), name).sha256


def content(root: Path) -> dict[str, bytes]:
    """Every file below *root*, by its path."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def noise(size_bytes: int, seed: int = 1) -> bytes:
    """What no compression makes smaller."""
    chance = random.Random(seed)  # noqa: S311  it is no secret
    whole, rest = divmod(size_bytes, MIB)
    return b"".join([chance.randbytes(MIB) for _ in range(whole)] + [chance.randbytes(rest)])


def text(size_bytes: int) -> bytes:
    lines = b"".join(b"line %d of a log, %d\n" % (at, at * 7919 % 10007) for at in range(20000))
    return (lines * (size_bytes // len(lines) + 1))[:size_bytes]


def ignore(_done_bytes: int, _moved_bytes: int) -> None:
    """Nobody looks at the progress."""
