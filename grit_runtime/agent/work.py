"""What each kind of job does, from its beginning or from where it was stopped."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from threading import Lock
from weakref import WeakValueDictionary

from grit_runtime import log
from grit_runtime.agent import copies, engine, job, moving
from grit_runtime.agent.jobs import journalled
from grit_runtime.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    UnavailableError,
    one_line,
)
from grit_runtime.files import arrivals, checkpoint_dir
from grit_runtime.store import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.agent.moving import Remote
    from grit_runtime.agent.progress import Progress, Slots
    from grit_runtime.config import Config

LOST_S = 300.0  # a peer that brings nothing for so long is given up
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_LOOK_EVERY_S = 0.2  # whether a job that waits for its turn is to stop


class Work:
    """Performs jobs below a directory of their files; *moved* is told of bytes, by direction."""

    def __init__(self, config: Config, directory: str, moved: Callable[[str, int], None]) -> None:
        self._config = config
        self._directory = directory
        self._moved = moved
        self._lock = Lock()
        self._turns: WeakValueDictionary[str, Lock] = WeakValueDictionary()  # by pod

    def perform(self, progress: Progress, slots: Slots) -> None:
        """Do what the job in *progress* is for; it raises as `Progress.told` does."""
        if progress.job.phase == job.CHECKPOINT:
            with self._taking(progress):
                copies.give_way(
                    self._config.checkpoint_root, progress.job.namespace, progress.job.name
                )
                engine.take(progress, self._config.checkpoint_root)
            if not progress.job.url:
                return
            self._note(progress, state=job.QUEUED, phase=job.PUSH)
        if progress.job.phase == job.PREPARE:
            self._prepare(progress, slots)
        else:
            self._push(progress, slots)

    def _prepare(self, progress: Progress, slots: Slots) -> None:
        wanted = progress.job
        names = wanted.namespace, wanted.name
        remote = self._remote(progress)
        root = self._config.checkpoint_root
        found = cache(lambda: remote.find(*names, wanted.sha256))
        if not wanted.size_bytes:  # or the agent was started again: its peer may be, too
            entry, size_bytes = found()
            self._note(progress, sha256=entry.sha256, size_bytes=size_bytes)
        sha256, size_bytes = progress.job.sha256, progress.job.size_bytes
        copies.make_way(root, *names, sha256)  # before a restore waits for it
        with arrivals.announced(root, *names, sha256, size_bytes, wanted.url) as announced:
            lock = Lock()

            def told(done_bytes: int, moved_bytes: int) -> None:
                progress.told(done_bytes, moved_bytes)
                self._moved("in", moved_bytes)
                with lock:
                    announced.tell(progress.job.done_bytes)

            def pull() -> None:
                with self._moving(progress, slots, size_bytes):
                    entry, _ = found()
                    pulled = remote.pull(entry, told, announced=announced)
                if not pulled.was_here or copies.known(*names, sha256):
                    copies.note(*names, sha256, pulled.size_bytes)

            self._until_lost(progress, pull)
        if self._config.agent_quota_bytes:
            copies.evict(root, self._config.agent_quota_bytes)

    def _push(self, progress: Progress, slots: Slots) -> None:
        wanted = progress.job
        remote = self._remote(progress)
        path = f"{self._config.checkpoint_root}/{wanted.namespace}/{wanted.name}"
        with checkpoint_dir.opened(path) as (_, sealed):
            size_bytes = sealed.manifest.size_bytes
        _require(wanted.sha256, sealed.sha256, path)
        self._note(progress, sha256=sealed.sha256)

        def told(done_bytes: int, moved_bytes: int) -> None:
            progress.told(done_bytes, moved_bytes)
            self._moved("out", moved_bytes)

        def push() -> None:
            with self._moving(progress, slots, size_bytes):
                pushed = remote.push(wanted.namespace, wanted.name, told)
            _require(sealed.sha256, pushed.entry.sha256, path)

        self._until_lost(progress, push)

    def _until_lost(self, progress: Progress, move: Callable[[], None]) -> None:
        """Have *move* done, which goes on where it was when its peer was lost.

        Between two attempts other jobs have their turn.
        """
        wait_s, lost_s = _FIRST_WAIT_S, 0.0
        while True:
            try:
                return move()
            except (UnavailableError, DeadlineExceededError) as error:
                lost_s += progress.seconds
                if progress.job.moved_bytes:
                    wait_s, lost_s = _FIRST_WAIT_S, 0.0
                if lost_s + wait_s > LOST_S:
                    raise
                text = one_line(error)
                log.warning("a job waits for its peer", id=progress.job.id, s=wait_s, reason=text)
                self._note(progress, state=job.QUEUED, text=text, reason=error.reason)
            progress.wait(wait_s)
            lost_s += wait_s
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    @contextmanager
    def _taking(self, progress: Progress) -> Iterator[None]:
        """The block runs when no other job takes a checkpoint of the pod."""
        with self._lock:
            turn = self._turns.setdefault(progress.job.target, Lock())
        while not turn.acquire(timeout=_LOOK_EVERY_S):
            progress.check()
        try:
            self._note(progress, state=job.RUNNING)
            yield
        finally:
            turn.release()

    @contextmanager
    def _moving(self, progress: Progress, slots: Slots, size_bytes: int) -> Iterator[None]:
        """The block runs when it is this job's turn."""
        slots.acquire(progress)
        try:
            self._note(progress, state=job.RUNNING, text="", reason="")
            progress.begin(size_bytes)
            yield
        finally:
            slots.release()

    def _remote(self, progress: Progress) -> Remote:
        return moving.remote(
            progress.job.url,
            self._config,
            records.file_key(self._config.store_key),
            progress.job.host,
        )

    def _note(self, progress: Progress, **fields: object) -> None:
        journalled(self._directory, progress, **fields)


def _require(wanted: str, found: str, path: str) -> None:
    """FailedPreconditionError unless what is pushed has the *wanted* manifest, if that is known."""
    if wanted not in {"", found}:
        raise FailedPreconditionError(
            f"checkpoint {path} is another one now: its manifest is sha256:{found}, expected "
            f"{wanted}, as it was when the push was asked for; push it again"
        )
