"""A job of the agent's: what was asked for, how far it is, how it ended; and its file."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress

from grit_runtime import log
from grit_runtime.host import durable, journal
from grit_runtime.startup import named
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKPOINT, PREPARE, PUSH = "checkpoint", "prepare", "push"
QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"

_ENDED_KEPT = 100
_ID = re.compile(r"[0-9a-f]{16}")


class Job(NamedTuple):
    id: str
    kind: str  # CHECKPOINT, PREPARE or PUSH
    namespace: str
    name: str  # of the checkpoint
    url: str = ""  # the store or peer that it comes from or goes to
    host: str = ""  # where the peer is, if not where its name leads
    sha256: str = ""
    target: str = ""  # of a checkpoint: NAMESPACE/POD
    after: str = ""
    replace: bool = False
    pod_is_going: bool = False
    strict: bool = False
    uid: str = ""  # the pod's that is meant; any if empty
    capture: str = ""  # as grit.dev/capture has it
    tcp: str = ""  # as grit.dev/tcp, which counts if this is empty
    nccl: str = ""  # as grit.dev/nccl, likewise
    token: str = ""  # by which who asks knows it again
    state: str = QUEUED
    phase: str = ""  # the kind of what it does
    begun: str = ""  # RFC 3339, UTC
    ended: str = ""
    done_bytes: int = 0
    size_bytes: int = 0
    moved_bytes: int = 0
    bytes_per_s: float = 0.0
    reason: str = ""
    text: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one job of at a time."""
        return self.kind, self.namespace, self.name

    @property
    def pod(self) -> tuple[str, str]:
        """What a checkpoint is of."""
        return self.target, self.uid

    @property
    def has_ended(self) -> bool:
        return self.state in {DONE, FAILED, CANCELLED}


def write(directory: str, job: Job) -> None:
    """Write the job's file; it is on the medium when this returns."""
    durable.write(f"{directory}/{job.id}.json", job._asdict())


def read(directory: str) -> list[Job]:
    """The jobs that have files, oldest first; a file that means nothing is left where it is."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return sorted(_read(directory), key=lambda job: (job.begun, job.id))


def drop_old(directory: str, jobs: list[Job]) -> list[Job]:
    """The ended *jobs* that are more than are kept, whose files are removed; oldest first."""
    old = [job for job in jobs if job.has_ended][:-_ENDED_KEPT]
    for job in old:
        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/{job.id}.json")
    return old


def _read(directory: str) -> Iterator[Job]:
    kinds = named.types(Job)
    for path in journal.beneath(directory, "*.json"):
        with open(path, "rb") as file:
            data = file.read()
        try:
            fields = json.loads(data)
            known = {name: fields[name] for name in kinds.keys() & fields.keys()}
            job = Job(**known)
            is_typed = all(type(value) is kinds[name] for name, value in known.items())
            if is_typed and _ID.fullmatch(job.id) and path.endswith(f"/{job.id}.json"):
                yield job
                continue
        except (ValueError, TypeError, AttributeError):
            pass  # as if it had other fields
        log.warning("the file of a job means nothing: it is passed over", path=path)
