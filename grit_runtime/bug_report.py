"""Everything of this node that a report of a fault needs, in one archive, without secrets.

What may hold secrets by its nature is not read at all: the processes' memory and environment, specs
and annotations of pods, rw layers, volumes, logs of containers, keys. From the rest is taken out
what looks like one (model/secrets.py).
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import time
from contextlib import suppress
from itertools import islice
from typing import Any

from grit_runtime import config, paths
from grit_runtime.doctor import examination, storage
from grit_runtime.errors import DeadlineExceededError, GritError
from grit_runtime.files import checkpoint_dir
from grit_runtime.host import process, records
from grit_runtime.model import manifest as manifests
from grit_runtime.model import secrets
from grit_runtime.startup.named import NamedTuple
from grit_runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.model.outcomes import Outcome

_LOG_TAIL_BYTES = 256 << 10
_DUMP_LOG_BYTES = 16 << 20
_LOGS = 200  # the newest
_CHECKPOINTS = 20  # the newest that records name

_README = """\
A report about a node with grit {version}, made {time}.

doctor.json              what grit doctor finds
records.json             what became of each checkpoint and restore
records/                 the files of those that this grit cannot read
jobs.json                jobs of the node's agent, if one runs
config.toml              grit's configuration, if there is one
containerd.json          its runtime handlers
log/                     the ends of the {logs} newest logs in {log_dir}
checkpoints/             manifests, and CRIU's logs of dumps, of those that records name

Not in it: memory, environment and files of processes, specs and annotations of pods, what
containers have logged, keys. Names of pods, images, files and hosts are in it. What looked like
a password, token or key was replaced by {removed}, {count} times: look for yourself before you
send it.
"""


class Report(NamedTuple):
    files: int
    size_bytes: int
    removed: int  # what looked like secrets


def write(path: str) -> Report:
    """Write the archive *path*, which must not exist; nothing is left of it if that fails."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        with open(fd, "wb") as file:
            return _written(file)
    except BaseException:
        os.unlink(path)
        raise


def _written(file: Any) -> Report:
    top = f"grit-{os.uname().nodename}"
    files = count = 0
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in _contents():
            left, found = secrets.removed(text)
            _add(archive, f"{top}/{name}", left)
            files, count = files + 1, count + found
        _add(archive, f"{top}/README.txt", _readme(count))
    return Report(files + 1, file.tell(), count)


def _readme(count: int) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return _README.format(
        version=f"{VERSION} (Python {sys.version.split()[0]})",
        time=now,
        logs=_LOGS,
        log_dir=paths.LOG_DIR,
        removed=secrets.REMOVED,
        count=count,
    )


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode(errors="replace")
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
    archive.addfile(member, io.BytesIO(data))


def _contents() -> Iterator[tuple[str, str]]:
    """Names and texts, with whatever secrets these have."""
    found = [one._asdict() for one in examination.findings(with_live=False)]
    yield "doctor.json", json.dumps(found, indent=1)
    past = records.matching(None)
    yield "records.json", json.dumps([one._asdict() for one in past], indent=1)
    for path in records.unreadable():
        with suppress(FileNotFoundError):  # it has gone since
            yield f"records/{os.path.basename(path)}", _tail(path)
    yield from _jobs()
    with suppress(FileNotFoundError):
        yield "config.toml", _tail(os.path.realpath(config.PATH))  # root's own may be a link
    yield from _handlers()
    yield from _logs()
    for checkpoint in _newest_checkpoints(past):
        yield from _of_checkpoint(checkpoint)


def _jobs() -> Iterator[tuple[str, str]]:
    from google.protobuf.json_format import MessageToDict

    from grit_runtime.agent import client

    with suppress(GritError):  # none runs: doctor says whether one should
        jobs = [MessageToDict(job, preserving_proto_field_name=True) for job in client.status()]
        yield "jobs.json", json.dumps(jobs, indent=1)


def _handlers() -> Iterator[tuple[str, str]]:
    from grit_runtime.host.containerd import Containerd

    with suppress(GritError):  # it does not answer: doctor says so
        with Containerd(config.load().containerd_address) as containerd:
            told = json.loads(containerd.status().config)
        yield "containerd.json", json.dumps(told["containerd"]["runtimes"], indent=1)


def _logs() -> Iterator[tuple[str, str]]:
    found = []
    for directory, _, names in os.walk(paths.LOG_DIR):
        for path in [f"{directory}/{name}" for name in names]:
            with suppress(FileNotFoundError):  # logs go while we look, with their pods
                found.append((os.lstat(path).st_mtime, path))
    for _, path in sorted(found, reverse=True)[:_LOGS]:
        if os.path.isfile(path) and not os.path.islink(path):
            with suppress(FileNotFoundError):
                yield f"log/{os.path.relpath(path, paths.LOG_DIR)}", _tail(path)


def _newest_checkpoints(past: list[Outcome]) -> list[str]:
    """Those that are there; none if what they lie on does not answer, as doctor.json says."""

    def there() -> list[str]:
        named = dict.fromkeys(one.checkpoint for one in reversed(past))
        return list(islice(filter(os.path.isdir, named), _CHECKPOINTS))

    with suppress(DeadlineExceededError):
        found: list[str] = process.answered(there, timeout_s=storage.ANSWERS_WITHIN_S)
        return found
    return []


def _of_checkpoint(path: str) -> Iterator[tuple[str, str]]:
    """Its manifest, and the log of each dump; nothing of one that means nothing."""
    where = f"checkpoints/{os.path.basename(os.path.dirname(path))}/{os.path.basename(path)}"
    with suppress(GritError, OSError), checkpoint_dir.opened(path) as (dir_fd, sealed):
        yield f"{where}/manifest.json", manifests.dump(sealed.manifest).decode()
        for container in sealed.manifest.running:
            log = checkpoint_dir.read_optional(
                dir_fd, f"{container.name}/dump.log", _DUMP_LOG_BYTES
            )
            if log is not None:
                text = _last_lines(log[-_LOG_TAIL_BYTES:], of_bytes=len(log))
                yield f"{where}/{container.name}/dump.log", text


def _tail(path: str) -> str:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        file.seek(max(0, size_bytes - _LOG_TAIL_BYTES))
        return _last_lines(file.read(_LOG_TAIL_BYTES), of_bytes=size_bytes)


def _last_lines(end: bytes, of_bytes: int) -> str:
    """The end of a text of that size; the line that it was cut in may begin within a secret."""
    whole = end if of_bytes <= _LOG_TAIL_BYTES else end.partition(b"\n")[2]
    return whole.decode(errors="replace")
