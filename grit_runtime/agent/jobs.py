"""The agent's jobs: one of each kind and checkpoint at a time; they outlast a kill of the agent."""

from __future__ import annotations

import time
from threading import Condition, Thread

from grit_runtime import log
from grit_runtime.agent import job as jobs
from grit_runtime.agent.progress import Progress, Slots, StoppingError
from grit_runtime.errors import (
    INTERRUPTED,
    AlreadyExistsError,
    CancelledError,
    GritError,
    NotFoundError,
    ResourceExhaustedError,
    StoreBusyError,
    UnavailableError,
    one_line,
    reason,
)
from grit_runtime.host import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.agent.job import Job

    Perform = Callable[[Progress, Slots], None]

_MAX_UNFINISHED = 256
_FOLLOW_EVERY_S = 0.5
_NEWEST = "whichever is the newest"


class Jobs:
    """Each runs in a thread of its own, by *perform*, which waits for a slot before it moves data.

    Every method may be called from any thread.
    """

    def __init__(
        self, directory: str, perform: Perform, parallel: int, ended: Callable[[Job, float], None]
    ) -> None:
        self._directory = directory
        self._perform = perform
        self._told_ended = ended
        self._changed = Condition()
        self._slots = Slots(parallel)
        self._is_stopping = False
        self._running: dict[str, Progress] = {}
        self._ended: dict[str, Job] = {}
        self._threads: list[Thread] = []

    def resume(self, undo: Callable[[], None]) -> None:
        """Go on with what a killed agent has left; a checkpoint that was cut has failed.

        What that had begun is undone by *undo*, unless its supervisor has outlived the agent.
        """
        left = jobs.read(self._directory)
        if any(one.phase == jobs.CHECKPOINT and not one.has_ended for one in left):
            undo()
        for one in left:
            if one.has_ended:
                self._ended[one.id] = one
            elif one.phase == jobs.CHECKPOINT:
                text = "the agent was killed meanwhile; what it had begun is undone: take it again"
                self._end(one._replace(state=jobs.FAILED, reason=INTERRUPTED, text=text))
            else:
                log.info("going on with a job", **_named(one))
                with self._changed:
                    self._start(one._replace(state=jobs.QUEUED))

    def submit(self, job: Job) -> Job:
        """Begin the job, or join the one of its kind and checkpoint that has not ended.

        AlreadyExistsError if that is of another pod; StoreBusyError if it is of another manifest
        than the job names, or puts the checkpoint elsewhere.
        """
        with self._changed:
            if self._is_stopping:
                raise UnavailableError("the agent ends: it takes no new jobs; ask again later")
            for progress in self._running.values():
                if progress.job.key == job.key:
                    return _joined(progress.job, job)
            if len(self._running) >= _MAX_UNFINISHED:
                raise ResourceExhaustedError(
                    f"{_MAX_UNFINISHED} jobs have not ended yet; wait, or cancel some"
                )
            made = job._replace(id=process.new_token(), phase=job.kind, begun=log.rfc3339())
            jobs.write(self._directory, made)
            self._start(made)
            return made

    def every(self) -> list[Job]:
        """Those that have ended and are still kept, then the others; each oldest first."""
        with self._changed:
            return [*self._ended.values(), *(one.job for one in self._running.values())]

    def cancel(self, job_id: str) -> Job:
        """Have it stop; what it has moved stays for the next one. Nothing if it has ended."""
        with self._changed:
            progress = self._running.get(job_id)
            if progress is None:
                return self._of(job_id)
        progress.cancel()
        self._slots.wake()
        return progress.job

    def follow(self, job_id: str) -> Iterator[Job]:
        """The job as it is now, and again every half second, until it has ended."""
        while True:
            with self._changed:
                job = self._of(job_id)
                is_stopping = self._is_stopping
            yield job
            if job.has_ended:
                return
            if is_stopping:
                raise UnavailableError(
                    f"the agent ends; job {job_id} goes on when it is started again"
                )
            with self._changed:
                if job_id in self._running:
                    self._changed.wait(_FOLLOW_EVERY_S)

    def stop(self, timeout_s: float) -> bool:
        """Take no new jobs and stop the running ones at a chunk; whether all have stopped."""
        with self._changed:
            self._is_stopping = True
            running = list(self._running.values())
            self._changed.notify_all()
        for progress in running:
            progress.stop()
        self._slots.wake()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _of(self, job_id: str) -> Job:
        if progress := self._running.get(job_id):
            return progress.job
        if job := self._ended.get(job_id):
            return job
        raise NotFoundError(f"there is no job {job_id[:80]!r}; grit agent status shows all")

    def _start(self, job: Job) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._running[job.id] = progress = Progress(job)
        thread = Thread(target=self._run, args=(progress,), name=f"job {job.id}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, progress: Progress) -> None:
        begin = time.monotonic()
        try:
            self._perform(progress, self._slots)
            ended = progress.change(state=jobs.DONE)
        except StoppingError:
            log.info("a job is stopped, to be gone on with", id=progress.job.id)
            return
        except CancelledError:
            ended = progress.change(state=jobs.CANCELLED, reason="", text="")
        except Exception as error:  # noqa: BLE001  a fault of grit ends the job, not the agent
            text = one_line(error) if isinstance(error, GritError | OSError) else repr(error)
            ended = progress.change(state=jobs.FAILED, reason=reason(error), text=text)
        self._end(ended)
        self._told_ended(ended, time.monotonic() - begin)

    def _end(self, job: Job) -> None:
        job = job._replace(ended=log.rfc3339())
        write = log.info if job.state == jobs.DONE else log.warning
        why = {"reason": job.reason, "text": job.text} if job.state == jobs.FAILED else {}
        write("a job has ended", **_named(job), state=job.state, **why)
        with self._changed:
            self._running.pop(job.id, None)
            self._ended[job.id] = job
            self._changed.notify_all()
            jobs.write(self._directory, job)
            for old in jobs.drop_old(self._directory, list(self._ended.values())):
                del self._ended[old.id]


def _named(job: Job) -> dict[str, str]:
    """What lines of the log have of a job."""
    of_pod = {"pod": job.target} if job.target else {}
    return {**of_pod, "id": job.id, "kind": job.kind, "checkpoint": f"{job.namespace}/{job.name}"}


def _joined(running: Job, asked: Job) -> Job:
    """The job that is *running*, for who has *asked* for the same."""
    checkpoint = f"checkpoint {asked.namespace}/{asked.name}"
    if running.pod != asked.pod:
        raise AlreadyExistsError(
            f"{checkpoint} is just being taken of another pod, by job {running.id}; choose another "
            "name, or wait for that"
        )
    does = ""
    if asked.sha256 not in {"", running.sha256}:
        own = f"the one that is sha256:{running.sha256}" if running.sha256 else _NEWEST
        does = f"is of {own}, expected sha256:{asked.sha256}"
    elif asked.url not in {"", running.url} and running.kind != jobs.PREPARE:
        does = f"puts it {f'to {running.url}' if running.url else 'nowhere'}, expected {asked.url}"
    if does:
        raise StoreBusyError(
            f"{checkpoint}: job {running.id} {does}; wait until that has ended, or cancel it (grit "
            f"agent cancel {running.id}), and ask again"
        )
    return running


def journalled(directory: str, progress: Progress, **fields: object) -> None:
    """Set fields of the job, in its file too."""
    jobs.write(directory, progress.change(**fields))
