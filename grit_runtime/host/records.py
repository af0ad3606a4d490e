"""Records: what became of each checkpoint and restore on this node. They outlive a reboot.

One file per pod uid, a list in JSON, replaced whole, so that a reader never sees half a record.
The records of pods that are gone are kept too, the newest of them.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress

from grit_runtime import log, paths
from grit_runtime.errors import FailedPreconditionError, one_line
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import outcomes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.model.outcomes import Outcome

DIR = f"{paths.STATE_DIR}/records"

_GONE_PODS_KEPT = 256


def append(outcome: Outcome) -> None:
    """Add a record; it is on the medium when this returns."""
    os.makedirs(DIR, mode=0o700, exist_ok=True)
    with closing_fd(os.open(DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as lock_fd:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        past = of_pod(outcome.pod_uid)
        if not past:
            _prune()
        _replace(_path(outcome.pod_uid), outcomes.bounded((*past, outcome)))
        os.fsync(lock_fd)


def of_pod(pod_uid: str) -> tuple[Outcome, ...]:
    """All records of one pod, oldest first.

    NewerFormatError or FailedPreconditionError, with the file's name, if they cannot be read.
    """
    data = _read(pod_uid)
    try:
        return outcomes.parse(data) if data is not None else ()
    except FailedPreconditionError as error:
        raise type(error)(f"{_path(pod_uid)}: {error}") from None


def readable(pod_uid: str) -> tuple[Outcome, ...]:
    """The same for who only looks: none, and a warning in the log, if they cannot be read."""
    try:
        return of_pod(pod_uid)
    except FailedPreconditionError as error:  # of a newer grit, or damaged
        log.warning("a pod's records are passed over", reason=one_line(error))
        return ()


def unreadable() -> Iterator[str]:
    """The files that `matching` passes over."""
    for uid in _uids():
        try:
            of_pod(uid)
        except FailedPreconditionError:
            yield _path(uid)


def matching(pod: str | None) -> list[Outcome]:
    """The records of *pod* (NAMESPACE/POD or its uid), or of all pods; oldest first."""
    records = [outcome for uid in _uids() for outcome in readable(uid) if outcome.is_of(pod)]
    return sorted(records, key=lambda outcome: outcome.time)


def mentioning(*words: str) -> list[Outcome]:
    """All records of those pods whose file has one of *words* somewhere; oldest first.

    Of many pods' records few have to be understood so. A file that was cut may have had any word.
    """
    wanted = [json.dumps(word)[1:-1].encode() for word in words]
    records: list[Outcome] = []
    for uid in _uids():
        data = _read(uid) or b""
        if any(word in data for word in wanted) or not data.endswith(b"]"):
            records += readable(uid)
    return sorted(records, key=lambda outcome: outcome.time)


def written() -> Iterator[tuple[str, int]]:
    """The pods of which there are records, by their uids, and when their files were made."""
    for uid in _uids():
        with suppress(FileNotFoundError):  # it has just been dropped
            yield uid, os.stat(_path(uid)).st_mtime_ns


def _read(pod_uid: str) -> bytes | None:
    with suppress(FileNotFoundError), open(_path(pod_uid), "rb") as file:
        return file.read()
    return None


def _prune() -> None:
    """Drop the oldest files of pods that this node no longer has."""
    try:
        living = {name.rpartition("_")[2] for name in os.listdir(paths.POD_LOGS_DIR)}
    except FileNotFoundError:
        living = set()
    gone = [_path(uid) for uid in _uids() if uid not in living]
    if len(gone) > _GONE_PODS_KEPT:
        gone.sort(key=os.path.getmtime)
        for path in gone[:-_GONE_PODS_KEPT]:
            os.unlink(path)


def _replace(path: str, outcomes: tuple[Outcome, ...]) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump([outcome._asdict() for outcome in outcomes], file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def _uids() -> Iterator[str]:
    with suppress(FileNotFoundError):
        for name in os.listdir(DIR):
            if name.endswith(".json"):
                yield name.removesuffix(".json")


def _path(pod_uid: str) -> str:
    return f"{DIR}/{pod_uid}.json"
