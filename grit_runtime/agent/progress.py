"""How far a job is, and being told to stop: what the threads that move its data call."""

from __future__ import annotations

import time
from threading import Condition, Event, Lock

from grit_runtime.errors import CancelledError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime.agent.job import Job


class StoppingError(BaseException):
    """The agent ends, and the job is gone on with when it is started again. No failure of it."""


class Progress:
    """Of one job. `told` raises CancelledError or StoppingError once it is to stop."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = Lock()
        self._since_s = time.monotonic()
        self._is_cancelled = self._is_stopping = False
        self._is_ending = Event()
        self._kill: Callable[[], None] | None = None

    @property
    def job(self) -> Job:
        with self._lock:
            return self._job

    def change(self, **fields: object) -> Job:
        """Set fields of the job."""
        with self._lock:
            self._job = self._job._replace(**fields)  # type: ignore[arg-type]
            return self._job

    @property
    def seconds(self) -> float:
        """Since its transfer began."""
        return time.monotonic() - self._since_s

    def begin(self, size_bytes: int) -> None:
        """A transfer begins, of so much."""
        self._since_s = time.monotonic()
        self.change(size_bytes=size_bytes, done_bytes=0, moved_bytes=0, bytes_per_s=0.0)

    def told(self, done_bytes: int, moved_bytes: int) -> None:
        """So much more is done, and was moved; from any thread."""
        self.check()
        with self._lock:
            done_bytes += self._job.done_bytes
            seconds = self.seconds
            self._job = self._job._replace(
                done_bytes=done_bytes,
                moved_bytes=self._job.moved_bytes + moved_bytes,
                bytes_per_s=done_bytes / seconds if seconds > 0 else 0.0,
            )

    def check(self) -> None:
        """Raise if the job is to stop."""
        if self._is_cancelled:
            raise CancelledError(f"job {self._job.id} was cancelled")
        if self._is_stopping:
            raise StoppingError

    def wait(self, seconds: float) -> None:
        """Wait; raises as `told` does once the job is to stop."""
        self._is_ending.wait(seconds)
        self.check()

    def killing(self, kill: Callable[[], None] | None) -> None:
        """What ends a program that the job waits for, while it does; called at once if late."""
        with self._lock:
            self._kill = kill
            if kill and (self._is_cancelled or self._is_stopping):
                kill()

    def cancel(self) -> None:
        self._is_cancelled = True
        self._end()

    def stop(self) -> None:
        self._is_stopping = True
        self._end()

    def _end(self) -> None:
        self._is_ending.set()
        with self._lock:
            if self._kill:
                self._kill()


class Slots:
    """So many jobs move data at a time; the others wait, first come first served."""

    def __init__(self, number: int) -> None:
        self._changed = Condition()
        self._free = number
        self._waiting: list[Progress] = []

    def acquire(self, progress: Progress) -> None:
        """Wait for a turn; raises as `told` does if the job is to stop meanwhile."""
        with self._changed:
            self._waiting.append(progress)
            try:
                while self._free == 0 or self._waiting[0] is not progress:
                    progress.check()
                    self._changed.wait()
                progress.check()
                self._free -= 1
            finally:
                self._waiting.remove(progress)
                self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Have those that wait look whether they are to stop."""
        with self._changed:
            self._changed.notify_all()
