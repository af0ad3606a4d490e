"""How far a transfer is: a bar on a terminal, or a line of JSON at most twice a second."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from threading import Lock

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress

_EVERY_S = 0.5


@contextmanager
def shown(what: str, size_bytes: int, *, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """What is to be told of bytes that are done and bytes that went over the link."""
    if as_json:
        yield _lines(what, size_bytes)
    elif sys.stderr.isatty():
        with _bar(what, size_bytes) as told:
            yield told
    else:
        yield lambda _done, _moved: None


def _lines(what: str, size_bytes: int) -> Callable[[int, int], None]:
    lock = Lock()
    begin = told_at = time.monotonic()
    total = moved = 0

    def told(done_bytes: int, moved_bytes: int) -> None:
        nonlocal total, moved, told_at
        with lock:
            total, moved = total + done_bytes, moved + moved_bytes
            now = time.monotonic()
            if now - told_at < _EVERY_S and total < size_bytes:
                return
            told_at = now
            line = {
                "phase": what,
                "done_bytes": total,
                "size_bytes": size_bytes,
                "moved_bytes": moved,
                "seconds": round(now - begin, 3),
            }
            click.echo(json.dumps(line), err=True)

    return told


@contextmanager
def _bar(what: str, size_bytes: int) -> Iterator[Callable[[int, int], None]]:
    with bars() as progress:
        task = progress.add_task(what, total=size_bytes)
        yield lambda done_bytes, _moved: progress.advance(task, done_bytes)


def bars() -> Progress:
    """Bars of bytes on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
