"""Descriptors that are closed where a block ends."""

from __future__ import annotations

import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Have *fd* open for as long as the block lasts."""
    try:
        yield fd
    finally:
        os.close(fd)
