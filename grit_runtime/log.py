"""A line for each change of state, logfmt or JSON, on standard error or appended to a file.

The OCI wrapper logs to a file, because its standard error is the container's.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_fd = 2
_is_json = False
_about: dict[str, object] = {}


def as_json() -> None:
    """Write this process's lines as JSON from now on."""
    global _is_json  # noqa: PLW0603  one process logs in one format
    _is_json = True


def is_json() -> bool:
    return _is_json


@contextmanager
def about(**fields: object) -> Iterator[None]:
    """While the block runs, this process's lines have these *fields* too, before their own."""
    global _about  # noqa: PLW0603  one process does one checkpoint or restore at a time
    before = _about
    _about = {**before, **fields}
    try:
        yield
    finally:
        _about = before


def to_file(path: str) -> None:
    """Append this process's lines to *path* from now on; missing directories are made."""
    global _fd  # noqa: PLW0603  one process logs to one place
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    _fd = os.open(
        path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )


def info(event: str, **fields: object) -> None:
    _write("info", event, fields)


def warning(event: str, **fields: object) -> None:
    _write("warning", event, fields)


def error(event: str, **fields: object) -> None:
    _write("error", event, fields)


def rfc3339(time_s: float | None = None) -> str:
    """*time_s*, or now, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


def _write(level: str, event: str, fields: dict[str, object]) -> None:
    now_s = time.time()
    stamp = f"{rfc3339(now_s)[:-1]}.{int(now_s % 1 * 1000):03}Z"
    pairs = {"time": stamp, "level": level, "msg": event, **_about, **fields}
    line = _json(pairs) if _is_json else _logfmt(pairs)
    # A shim's log is a fifo, which is full once containerd has been away for long.
    with suppress(BlockingIOError):
        os.write(_fd, f"{line}\n".encode())


def _logfmt(pairs: dict[str, object]) -> str:
    return " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())


def _json(pairs: dict[str, object]) -> str:
    import json  # few configure it

    return json.dumps(pairs, default=str)


def _quoted(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if text and not any(c in ' "=\n' for c in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


class Timeline:
    """The phases of one checkpoint or restore, each logged as it ends. It begins when it is made.

    An entry of `phases` has "phase", "begin_s", "epoch_s", "seconds" and, if they apply,
    "container", "size_bytes" and "failed".
    """

    def __init__(self) -> None:
        self.phases: list[dict[str, object]] = []
        self._begin = time.monotonic()
        self._begin_epoch_s = time.time()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begin

    @contextmanager
    def phase(self, name: str, **fields: object) -> Iterator[dict[str, object]]:
        """Time the block; the entry also has what the block puts into the yielded dict."""
        begin = time.monotonic()
        try:
            yield fields
        except BaseException:
            self.add(name, seconds=time.monotonic() - begin, **fields, failed=True)
            raise
        self.add(name, seconds=time.monotonic() - begin, **fields)

    def add(self, name: str, *, seconds: float, **fields: object) -> None:
        """A phase that ends now."""
        entry = {**fields, "seconds": round(seconds, 4)}
        begin_s = round(max(0.0, self.elapsed_s - seconds), 4)
        epoch_s = round(self._begin_epoch_s + begin_s, 3)
        self.phases.append({"phase": name, "begin_s": begin_s, "epoch_s": epoch_s, **entry})
        info(name, **entry)
