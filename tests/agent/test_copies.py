"""Checkpoints that the agent has brought, and which of them go when there are too many."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from grit_runtime import paths
from grit_runtime.agent import copies
from grit_runtime.errors import AlreadyExistsError, FailedPreconditionError, ImageError
from grit_runtime.files import arrivals, confine, unfinished
from grit_runtime.host import journal
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model.hold import Hold
from grit_runtime.model.restore_steps import STEPS, Begin, Restored, Started
from grit_runtime.pod import held_pods
from tests.outcomes import NOW
from tests.store import made

if TYPE_CHECKING:
    from pathlib import Path

    from grit_runtime.host.journal import Journal
    from grit_runtime.model.outcomes import Outcome
    from grit_runtime.model.restore_steps import Step

HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def kept_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (copies, "DIR"),
        (arrivals, "DIR"),
        (held_pods, "DIR"),
        (journal, "PODS_DIR"),
    ):
        monkeypatch.setattr(module, name, str(tmp_path / "state" / module.__name__))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three checkpoints that the agent has brought, c0 first, and one of the node's own."""
    for at, name in enumerate(("c0", "c1", "c2")):
        path = made.checkpoint(tmp_path / "root", name, {"main/pages": bytes([at]) * 1000})
        copies.note(made.ROOT, name, made.seal(path, name), 1000)
        used_s = time.time() - (10 - at) * HOUR_S
        os.utime(f"{copies.DIR}/{made.ROOT}/{name}.json", (used_s, used_s))
    made.checkpoint(tmp_path / "root", "own", {"main/pages": b"taken here"})
    return tmp_path / "root"


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / made.ROOT).iterdir())


def sha256_of(name: str) -> str:
    return next(copy.sha256 for copy in copies.every() if copy.name == name)


def outcome(sha256: str) -> Outcome:
    return NOW._replace(manifest_sha256=sha256)


def hold_for(sha256: str) -> None:
    pod = (made.ROOT, "counter", "uid-1", "sandbox", "/run/runc")
    held_pods.keep(Hold("2026-11-29T00:00:00Z", *pod, "", sha256, {}, is_whole=True))


def restoring_from(sha256: str) -> Journal[Step]:
    """What a container has that is restored and not started."""
    attempt = journal.begin(f"{journal.PODS_DIR}/sandbox/container/attempt.journal", STEPS)
    attempt.record(Begin(outcome(sha256)))
    attempt.record(Restored(outcome(sha256)))
    return attempt


def test_the_least_recently_used_go_until_the_rest_fits(root: Path) -> None:
    copies.evict(str(root), 3000)
    assert names(root) == ["c0", "c1", "c2", "own"]
    copies.evict(str(root), 1500)
    assert names(root) == ["c2", "own"]
    assert [copy.name for copy in copies.every()] == ["c2"]


def test_what_was_used_a_moment_ago_stays(root: Path) -> None:
    copies.note(made.ROOT, "c0", sha256_of("c0"), 1000)
    copies.evict(str(root), 0)
    assert names(root) == ["c0", "own"]


def left_by_a_pull(root: Path, name: str) -> Path:
    """What a pull of the checkpoint has left, of 8000 bytes."""
    path = root / made.ROOT / f".{name}.{16 * 'a'}.pull"
    (path / "main").mkdir(parents=True)
    (path / "main/pages").write_bytes(bytes(8000))
    return path


def test_what_a_pull_has_left_counts_and_goes_first(root: Path) -> None:
    left = left_by_a_pull(root, "c3.old")
    copies.evict(str(root), 30000)
    assert left.exists()
    copies.evict(str(root), 8000)
    assert names(root) == ["c0", "c1", "c2", "own"]


def test_what_a_pull_goes_on_with_stays(root: Path) -> None:
    coming, awaited = left_by_a_pull(root, "c3"), left_by_a_pull(root, "c4")
    with (
        arrivals.announced(str(root), made.ROOT, "c4", "", 1000, "node-a"),
        closing_fd(confine.open_dir(str(root), made.ROOT)) as parent_fd,
        unfinished.locked(parent_fd, "c3", 64 * "a"),
    ):
        copies.evict(str(root), 3000)
        assert coming.exists()
        assert awaited.exists()


def test_what_a_pull_has_left_is_removed_with_the_checkpoint_of_its_name(root: Path) -> None:
    other = left_by_a_pull(root, "c1")
    for name in ("c0", "c3"):
        left_by_a_pull(root, name)
        copies.remove(str(root), made.ROOT, name)
    assert names(root) == [other.name, "c1", "c2", "own"]


def test_what_is_announced_stays(root: Path) -> None:
    with arrivals.announced(str(root), made.ROOT, "c0", "", 1000, "node-a"):
        copies.evict(str(root), 0)
    assert names(root) == ["c0", "own"]


def test_what_does_not_come_any_more_needs_nothing(root: Path) -> None:
    def bring() -> None:
        with arrivals.announced(str(root), made.ROOT, "c0", "", 1000, "node-a"):
            raise ImageError("piece 7 is damaged")

    with pytest.raises(ImageError):
        bring()
    copies.evict(str(root), 2000)
    assert names(root) == ["c1", "c2", "own"]


def test_a_copy_makes_way_for_another_checkpoint_of_its_name(root: Path) -> None:
    copies.make_way(str(root), made.ROOT, "c0", sha256_of("c0"))
    copies.make_way(str(root), made.ROOT, "none", "ab" * 32)
    assert names(root) == ["c0", "c1", "c2", "own"]
    copies.make_way(str(root), made.ROOT, "c0", "ab" * 32)
    assert names(root) == ["c1", "c2", "own"]
    assert {copy.name for copy in copies.every()} == {"c1", "c2"}


def test_what_was_taken_here_or_is_used_makes_no_way(root: Path) -> None:
    hold_for(sha256_of("c0"))
    restoring_from(sha256_of("c1")).close()
    copies.note(made.ROOT, "c2", sha256_of("c2"), 1000)
    for name, why in {
        "own": "was not brought by this node's agent",
        "c0": "is what pod default/counter is held for",
        "c1": "is what pod default/counter is just being restored from",
        "c2": "was brought or asked for within the last ten minutes",
    }.items():
        with pytest.raises(AlreadyExistsError, match=f"{name} exists and is another one, .*{why}"):
            copies.make_way(str(root), made.ROOT, name, "ab" * 32)
    assert names(root) == ["c0", "c1", "c2", "own"]


def test_what_a_pod_is_held_for_stays(root: Path) -> None:
    hold_for(sha256_of("c1"))
    copies.evict(str(root), 0)
    assert names(root) == ["c1", "own"]


@pytest.mark.parametrize(
    ("told", "has_sandbox", "is_removed"),
    [("", False, False), ("uid-2", False, False), ("uid-1", True, False), ("uid-1", False, True)],
    ids=["nothing is told", "of another pod", "kubelet has yet to hear", "deleted"],
)
def test_a_pod_that_is_deleted_needs_no_checkpoint_whatever_is_left_of_its_logs(
    root: Path, tmp_path: Path, *, told: str, has_sandbox: bool, is_removed: bool
) -> None:
    if has_sandbox:
        (tmp_path / "runc/sandbox").mkdir(parents=True)
    logs = tmp_path / f"logs/{made.ROOT}_counter_uid-1"
    logs.mkdir(parents=True)
    pod = (made.ROOT, "counter", "uid-1", "sandbox", str(tmp_path / "runc"))
    hold = Hold("2026-11-29T00:00:00Z", *pod, "", sha256_of("c1"), {}, is_whole=True)
    held_pods.keep(hold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "POD_LOGS_DIR", str(logs.parent))
        if is_removed:
            copies.remove(str(root), made.ROOT, "c1", told)
        else:
            with pytest.raises(FailedPreconditionError, match="is held for"):
                copies.remove(str(root), made.ROOT, "c1", told)
    assert ("c1" in names(root)) is not is_removed
    assert held_pods.of("uid-1")  # kubelet may start it still, and must not from its image


@pytest.mark.parametrize(
    ("is_started", "age_s", "left"),
    [(False, HOUR_S, ["c1", "own"]), (True, 0.0, ["c1", "own"]), (True, HOUR_S, ["own"])],
    ids=["not started", "just started", "started long ago"],
)
def test_what_a_container_is_restored_from_stays_until_it_has_started(
    root: Path, *, is_started: bool, age_s: float, left: list[str]
) -> None:
    attempt = restoring_from(sha256_of("c1"))
    if is_started:
        attempt.record(Started())
    attempt.close()
    then_s = time.time() - age_s
    os.utime(attempt.path, (then_s, then_s))
    copies.evict(str(root), 0)
    assert names(root) == left


def test_another_checkpoint_of_the_name_is_none_of_the_agent_s(root: Path) -> None:
    path = root / made.ROOT / "c0"
    (path / "main/pages").write_bytes(b"taken here since")
    made.seal(path, "c0")
    copies.evict(str(root), 0)
    assert names(root) == ["c0", "own"]
    assert copies.every() == []


def test_a_copy_gives_way_to_a_checkpoint_that_is_taken_and_what_was_taken_does_not(
    root: Path,
) -> None:
    for name in ("c1", "own", "none"):
        copies.give_way(str(root), made.ROOT, name)
    assert names(root) == ["c0", "c2", "own"]
    assert {copy.name for copy in copies.every()} == {"c0", "c2"}


@pytest.mark.parametrize("text", ["", '{"sha256": "', "[]", '{"sha256": "ab", "size_bytes": "1"}'])
def test_a_record_that_was_cut_is_in_nobody_s_way_and_is_named(
    root: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    record = f"{copies.DIR}/{made.ROOT}/c0.json"
    with open(record, "w") as file:
        file.write(text)
    copies.give_way(str(root), made.ROOT, "c1")
    copies.evict(str(root), 0)
    assert names(root) == ["c0", "own"]
    assert record in capfd.readouterr().err
    copies.note(made.ROOT, "c0", "ab" * 32, 1000)
    assert [copy.name for copy in copies.every()] == ["c0"]
