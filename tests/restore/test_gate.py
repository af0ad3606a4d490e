"""The gate: whatever lies at a checkpoint's place, only what was announced ends the wait."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from grit_runtime import log
from grit_runtime.errors import ArrivalFailedError, GritError, NotArrivedError, PodStateError
from grit_runtime.files import arrivals, checkpoint_dir
from grit_runtime.host import linux
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.host.runc import Runc
from grit_runtime.model.annotations import RestoreOrder
from grit_runtime.restore import gate
from grit_runtime.restore.attempts import Request
from grit_runtime.restore.gate import Place
from tests import forked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG_S = 60.0
SHORT_S = 0.3
ANNOUNCED, STALE = b'{"announced"}', b'{"stale"}'
SHA256 = hashlib.sha256(ANNOUNCED).hexdigest()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place whose root is not there yet."""
    monkeypatch.setattr(arrivals, "DIR", str(tmp_path / "arrivals"))
    return Place(str(tmp_path / "mnt/checkpoints"), "default", "nightly")


@contextmanager
def announced(place: Place, sha256: str = SHA256) -> Iterator[arrivals.Announcement]:
    names = (place.root, place.namespace, place.name)
    with arrivals.announced(*names, sha256, 40 << 30, "peer node-b") as arrival:
        yield arrival


def staged(place: Place, manifest: bytes | None) -> str:
    """A finished directory beside the place."""
    path = Path(place.root, place.namespace, ".staged")
    path.mkdir(parents=True)
    if manifest is not None:
        (path / "manifest.json").write_bytes(manifest)
    return str(path)


def publish(place: Place, manifest: bytes) -> None:
    os.rename(staged(place, manifest), place.path)


class Waiting:
    """A wait in another thread."""

    def __init__(
        self,
        place: Place,
        wait_s: float = LONG_S,
        sandbox_fd: int = -1,
        wait: Callable[[], str] | None = None,
    ) -> None:
        self._wait_for = wait or (lambda: gate.wait(place, wait_s, sandbox_fd))
        self._result: str | GritError = ""
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        try:
            self._result = self._wait_for()
        except GritError as error:
            self._result = error

    def is_on(self, for_s: float = SHORT_S) -> bool:
        """Whether it still waits when some time has passed."""
        self._thread.join(for_s)
        return self._thread.is_alive()

    def result(self) -> str:
        self._thread.join(LONG_S / 2)
        assert not self._thread.is_alive()
        if isinstance(self._result, GritError):
            raise self._result
        return self._result


def test_without_an_announcement_nothing_is_waited_for(place: Place) -> None:
    assert gate.wait(place, LONG_S) == ""


def test_what_is_renamed_into_place_is_taken(place: Place) -> None:
    with announced(place):
        waiting = Waiting(place)
        assert waiting.is_on()
        publish(place, ANNOUNCED)
        assert waiting.result() == SHA256


def test_each_directory_on_the_way_may_come_later(place: Place) -> None:
    with announced(place):
        waiting = Waiting(place)
        for path in (Path(place.root).parent, Path(place.root), Path(place.path).parent):
            assert waiting.is_on(0.05)
            path.mkdir()
        Path(place.path).mkdir()
        assert waiting.is_on(0.05)
        Path(place.path, "manifest.json").write_bytes(ANNOUNCED)
        assert waiting.result() == SHA256


def test_a_stale_checkpoint_of_the_name_is_not_taken(place: Place) -> None:
    publish(place, STALE)
    with announced(place):
        waiting = Waiting(place)
        assert waiting.is_on()
        linux.exchange(staged(place, ANNOUNCED), place.path)
        assert waiting.result() == SHA256


@pytest.mark.parametrize("kind", ["file", "link", "manifest is a link", "manifest is a fifo"])
def test_what_is_no_checkpoint_is_not_taken(place: Place, kind: str) -> None:
    elsewhere = Path(staged(place, ANNOUNCED)).rename(Path(place.root, "elsewhere"))
    own = Path(place.path)
    if kind == "file":
        own.touch()
    elif kind == "link":
        own.symlink_to(elsewhere)
    else:
        own.mkdir()
        if kind == "manifest is a link":
            (own / "manifest.json").symlink_to(elsewhere / "manifest.json")
        else:
            os.mkfifo(own / "manifest.json")
    with announced(place), pytest.raises(NotArrivedError):
        gate.wait(place, SHORT_S)


def test_what_is_here_already_is_taken_at_once(place: Place) -> None:
    publish(place, ANNOUNCED)
    with announced(place):
        assert gate.wait(place, LONG_S) == SHA256


def test_the_digest_that_the_pod_names_wins(place: Place) -> None:
    pinned = place._replace(manifest_sha256="1" * 64)
    with announced(place):
        assert gate.wait(pinned, LONG_S) == "1" * 64
    with announced(place, "1" * 64), pytest.raises(NotArrivedError):
        gate.wait(pinned, SHORT_S)


def test_when_the_time_is_over_it_says_how_far_it_is(place: Place) -> None:
    with announced(place) as arrival:
        arrival.tell(12 << 30)
        with pytest.raises(NotArrivedError) as caught:
            gate.wait(place, SHORT_S)
    assert str(caught.value) == (
        f"checkpoint {place.path} has not arrived on this node: 12.0 of 40.0 GiB after 0.3 s, "
        "from peer node-b; kubelet asks again"
    )


def test_a_transfer_that_has_died_is_waited_for_and_named(place: Place) -> None:
    pid = os.fork()
    if pid == 0:
        with announced(place):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(ArrivalFailedError, match="its transfer has died; start it again or wait"):
        gate.wait(place, SHORT_S)
    waiting = Waiting(place)
    assert waiting.is_on()
    with announced(place):
        publish(place, ANNOUNCED)
        assert waiting.result() == SHA256


def test_a_transfer_that_fails_ends_the_wait(place: Place) -> None:
    with pytest.raises(OSError), announced(place):  # noqa: PT011, PT012
        waiting = Waiting(place)
        assert waiting.is_on()
        raise OSError(5, "Input/output error", "/dev/sdb")
    why = "peer node-b has failed: /dev/sdb: Input/output error; start it again"
    with pytest.raises(ArrivalFailedError, match=why):
        waiting.result()
    with pytest.raises(ArrivalFailedError, match=why):
        gate.wait(place, LONG_S)


def test_an_announcement_that_is_withdrawn_ends_the_wait_and_binds(place: Place) -> None:
    publish(place, STALE)
    with announced(place):
        waiting = Waiting(place)
        assert waiting.is_on()
    assert waiting.result() == SHA256


def test_a_pod_that_ends_ends_the_wait(place: Place) -> None:
    with (
        forked.child(lambda: None) as pid,
        announced(place),
        closing_fd(os.pidfd_open(pid)) as pidfd,
    ):
        waiting = Waiting(place, sandbox_fd=pidfd)
        assert waiting.is_on()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(PodStateError, match="the pod has ended while it waited for checkpoint"):
            waiting.result()


def test_a_checkpoint_without_manifest_ends_with_the_sentinel(place: Place) -> None:
    own = Path(place.path)
    own.mkdir(parents=True)
    with announced(place, ""):
        waiting = Waiting(place)
        assert waiting.is_on()
        with closing_fd(os.open(own, os.O_RDONLY)) as dir_fd:
            checkpoint_dir.write_sentinel(dir_fd)
        assert waiting.result() == ""
    assert (own / "download-state").read_text() == "Transfer Completed\n"


def test_an_older_sentinel_or_a_manifest_is_not_what_was_announced(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(place.path)
    own.mkdir(parents=True)
    (own / "download-state").touch()
    now_s = time.time()
    monkeypatch.setattr("grit_runtime.log.rfc3339", later(now_s))
    with announced(place, ""), pytest.raises(NotArrivedError):
        gate.wait(place, SHORT_S)
    monkeypatch.undo()
    monkeypatch.setattr(arrivals, "DIR", str(Path(place.root).parents[1] / "arrivals"))
    (own / "manifest.json").write_bytes(STALE)
    with announced(place, ""), pytest.raises(NotArrivedError):
        gate.wait(place, SHORT_S)


def later(now_s: float) -> Callable[[], str]:
    return lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s + 2))


def test_a_wait_does_not_spin(place: Place) -> None:
    with announced(place):
        begin = time.process_time()
        with pytest.raises(NotArrivedError):
            gate.wait(place, 1.0)
    assert time.process_time() - begin < 0.1


def request_of(place: Place, arriving: str = "") -> Request:
    """A restore of what the pod names by its digest."""
    order = RestoreOrder(
        path=(place.namespace, place.name),
        identity=None,
        device_map="auto",
        cold_on_failure=False,
        skip_completed=False,
        tcp="refuse",
        strict=False,
        manifest_sha256=SHA256,
    )
    return Request(
        container_id="counter",
        bundle_dir="",
        spec={"linux": {"namespaces": []}},
        runc=Runc("runc", (), "token"),
        flags=(),
        order=order,
        checkpoint_root=place.root,
        trusted_keys="",
        huge_pages=False,
        criu="",
        restore_wait_s=LONG_S,
        arriving=arriving,
    )


def test_a_pod_that_names_a_digest_waits_for_the_announcement(place: Place) -> None:
    """Whoever has it brought sees where the pod is when kubelet does, or a moment later."""
    timeline = log.Timeline()
    waiting = Waiting(
        place, wait=lambda: gate.passed(request_of(place), timeline).order.manifest_sha256
    )
    assert waiting.is_on()
    with announced(place):
        assert waiting.is_on()
        publish(place, ANNOUNCED)
        assert waiting.result() == SHA256


def test_a_pod_that_names_a_digest_does_not_wait_for_what_is_here(place: Place) -> None:
    Path(place.root, place.namespace).mkdir(parents=True)
    publish(place, ANNOUNCED)
    begin = time.monotonic()
    gate.passed(request_of(place), log.Timeline())
    assert time.monotonic() - begin < 1


def test_memory_that_is_verified_is_taken_before_it_is_durable(place: Place) -> None:
    with announced(place) as arrival:
        arrival.is_ready("/mnt/checkpoints/default/.staged")
        request = gate.passed(request_of(place), log.Timeline())
        assert request.arriving == "/mnt/checkpoints/default/.staged"

        def wait() -> str:
            gate.memory_is_here(request, log.Timeline())
            return "here"

        waiting = Waiting(place, wait=wait)
        assert waiting.is_on()
        arrival.is_whole()
        assert waiting.result() == "here"
