"""What is worth keeping between runs: directories, each built once and named by its recipe."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CACHE = Path(os.environ.get("GRIT_CACHE", "/var/cache/grit-runtime"))


def path_of(kind: str, recipe: bytes) -> Path:
    """Where that which *recipe* says is, once it has been built."""
    return CACHE / f"{kind}-{hashlib.sha256(recipe).hexdigest()[:16]}"


@contextmanager
def use(kind: str, recipe: bytes, build: Callable[[Path], None]) -> Iterator[Path]:
    """The directory that *recipe* says, built now if no earlier run left it; it stays for as long
    as it is in use. Others of its kind that nobody uses go."""
    path = path_of(kind, recipe)
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / f"{kind}.lock"):
        if not path.exists():
            _remove_unused(kind)
            _build_into(path, kind, build)
        user = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(user, fcntl.LOCK_SH)
    try:
        yield path
    finally:
        os.close(user)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs out of what the file *path* stands for."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unused(kind: str) -> None:
    for path in CACHE.glob(f"{kind}-*"):
        user = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # somebody of another checkout stands on it
        finally:
            os.close(user)
        shutil.rmtree(path)


def _build_into(path: Path, kind: str, build: Callable[[Path], None]) -> None:
    building = Path(tempfile.mkdtemp(prefix=f"{kind}-building.", dir=CACHE))
    try:
        build(building)
        building.chmod(0o755)
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
