"""What is left of a checkpoint that ends before it should: all of it, or nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.checkpoint import holds, undoing
from grit_runtime.errors import (
    CommandError,
    GpuError,
    SecondLifeError,
    SourceLostError,
    UnavailableError,
)
from grit_runtime.files import checkpoint_dir
from grit_runtime.host import journal, linux
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.host.procfs import started_ticks
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.model import outcomes, restore_steps
from grit_runtime.nvidia import suspension
from grit_runtime.pod import held_pods, lives
from tests.model.test_hold import HOLD
from tests.outcomes import NOW
from tests.store import made

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.journal import Journal
    from tests.plain_node import Node

OUTCOME = NOW._replace(
    outcome=outcomes.FAILED, pod_uid="5f0c", manifest_sha256="", namespace="shop", pod="cart-7"
)


def begun(node: Node, sandbox_id: str = HOLD.sandbox_id) -> Journal[steps.Step]:
    """The journal of a checkpoint that has frozen its container, and said so of its pod."""
    node.write(f"runc/{sandbox_id}/state.json", "")
    held = journal.begin(f"{node.path}/pods/{sandbox_id}/{journal.CHECKPOINT}", steps.STEPS)
    held.record(steps.Begin("4c1f", f"{node.path}/runc", OUTCOME))
    held.record(steps.Directory(f"{node.path}/.nightly"))
    held.record(steps.Freeze("c1"))
    return held


def hold(node: Node, held: Journal[steps.Step]) -> None:
    held.record(steps.Hold(HOLD.pod_uid))
    held_pods.keep(HOLD._replace(runc_root=f"{node.path}/runc", containers={}))


def sealed(path: Path, content: str) -> str:
    """The digest of a checkpoint at *path*."""
    (path / "main").mkdir(parents=True)
    (path / "main/pages-1.img").write_text(content)
    made.seal(path, "nightly")
    with closing_fd(checkpoint_dir.open_named(str(path.parent), (path.name,))) as dir_fd:
        return checkpoint_dir.read_manifest(dir_fd, str(path)).sha256


def test_what_is_interrupted_once_its_pod_is_held_leaves_it_held(node: Node) -> None:
    held = begun(node)
    hold(node, held)
    held.record(steps.Frozen())
    undoing.undo(held)
    assert undoing.is_pod_held(held.path)
    assert not held_pods.every()[0].may_run
    holds.resume(HOLD.pod_uid)
    assert node.called() == ["resume c1 "]
    assert held_pods.every() == []


@pytest.mark.parametrize("older", ["", "older"])
def test_a_checkpoint_that_has_its_name_but_is_not_final_loses_it(node: Node, older: str) -> None:
    staging, final = node.path / ".nightly", node.path / "nightly"
    held = begun(node)
    digest = sealed(staging, "new")
    if older:
        sealed(final, older)
    held.record(steps.Sealing(str(final), str(staging), digest))
    if older:
        linux.exchange(str(staging), str(final))
    else:
        staging.rename(final)
    held.close()
    undoing.supervise(held.path)
    assert node.called() == ["resume c1 "]
    assert not staging.exists()
    assert [path.read_text() for path in final.glob("main/pages-1.img")] == (
        [older] if older else []
    )
    assert [outcome for outcome, _ in node.outcomes()] == [outcomes.FAILED]


def test_a_checkpoint_that_is_final_keeps_its_name(node: Node) -> None:
    staging, final = node.path / ".nightly", node.path / "nightly"
    held = begun(node)
    held.record(steps.Sealing(str(final), str(staging), sealed(final, "new")))
    held.record(steps.Sealed())
    held.close()
    undoing.supervise(held.path)
    assert (final / "manifest.json").exists()
    assert node.outcomes() == [(outcomes.SEALED, "")]


def test_one_checkpoint_that_cannot_be_undone_does_not_keep_others_from_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = begun(node, "5a1e")
    failing.record(steps.Gpu((os.getpid(),), (started_ticks(os.getpid()),)))
    failing.close()
    other = begun(node, "5a1f")
    other.close()

    def lose(_token: str, _pids: object) -> None:
        raise SourceLostError("source lost: the driver does not answer")

    monkeypatch.setattr(suspension, "bring_back_pids", lose)
    recovered = undoing.recover()
    assert [str(error) for error in recovered.failed] == ["source lost: the driver does not answer"]
    assert node.called() == ["resume c1 ", "resume c1 "]
    assert journal.checkpoints() == []
    assert [outcome for outcome, _ in node.outcomes()] == [outcomes.LOST, outcomes.FAILED]


def test_a_step_that_fails_keeps_no_other_from_being_taken_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = begun(node)
    (node.path / ".nightly").mkdir()
    held.record(steps.Gpu((os.getpid(),)))

    def fail(_token: str, _pids: object) -> None:
        raise GpuError("the driver is busy")

    monkeypatch.setattr(suspension, "bring_back_pids", fail)
    with pytest.raises(GpuError, match="the driver is busy"):
        undoing.undo(held)
    assert node.called() == ["resume c1 "]
    assert not (node.path / ".nightly").exists()
    monkeypatch.setattr(suspension, "bring_back_pids", lambda _token, _pids: None)
    assert undoing.recover().undone == [held.path]


def test_another_process_of_the_same_number_is_left_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(suspension, "bring_back_pids", lambda *call: asked.append(call))
    held = begun(node)
    held.record(steps.Gpu((os.getpid(),), (1,)))
    undoing.undo(held)
    assert asked == []


def test_a_held_pod_that_is_deleted_while_another_looks_at_it_is_forgotten(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = begun(node)
    looking.record(steps.Frozen())
    monkeypatch.setattr(time, "sleep", lambda _: looking.close())
    undoing.forget_pod(os.path.dirname(looking.path))
    assert not os.path.exists(os.path.dirname(looking.path))


def test_nobody_else_may_go_on_while_a_pod_is_let_run(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = begun(node)
    hold(node, held)
    held.record(steps.Frozen())
    held.close()
    undo = undoing.undo
    meanwhile: list[bool] = []

    def looked_at(held: Journal[steps.Step], *, resuming: bool) -> None:
        meanwhile.append(held_pods.every()[0].may_run)
        undo(held, resuming=resuming)

    monkeypatch.setattr(undoing, "undo", looked_at)
    holds.resume(HOLD.pod_uid)
    assert meanwhile == [True]


def test_a_pod_is_not_let_run_beside_its_second_life(node: Node) -> None:
    held = begun(node)
    hold(node, held)
    held.record(steps.Frozen())
    held.close()
    path = f"{node.path}/pods/5a1e/c9/{lives.ATTEMPT_JOURNAL}"
    attempt = journal.begin(path, restore_steps.STEPS)
    attempt.record(restore_steps.Begin(OUTCOME._replace(pod="cart-8", pod_uid="uid-8")))
    pid = os.getpid()
    attempt.record(restore_steps.Claim(HOLD.manifest_sha256, pid=pid, started=started_ticks(pid)))
    with pytest.raises(SecondLifeError, match="pod shop/cart-8 on this node goes on"):
        holds.resume(HOLD.pod_uid)
    assert not held_pods.every()[0].may_run
    assert undoing.is_pod_held(held.path)


def test_what_is_not_thawed_is_not_asked_for_its_gpus_and_stays_for_the_next_undo(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(suspension, "bring_back_pids", lambda *call: asked.append(call))
    failing = Path(node.write("failing", "out of memory"))
    held = begun(node)
    held.record(steps.Gpu((os.getpid(),)))
    held.record(steps.Freeze("c1"))
    with pytest.raises(CommandError, match="out of memory"):
        undoing.undo(held)
    assert asked == []
    failing.unlink()
    assert undoing.recover().undone == [held.path]
    assert len(asked) == 1


def test_a_pod_that_runs_on_from_a_final_checkpoint_is_left_as_others_have_made_it(
    node: Node,
) -> None:
    held = begun(node)
    (node.path / ".nightly").mkdir()
    held.record(steps.Thaw("c1"))
    held.record(steps.Sealed())
    held.close()
    undoing.supervise(held.path)
    assert not (node.path / "called").exists()
    assert not (node.path / ".nightly").exists()


def test_a_pod_whose_engine_was_killed_once_it_was_held_is_recorded_as_sealed_once(
    node: Node,
) -> None:
    held = begun(node)
    hold(node, held)
    held.record(steps.Sealing(f"{node.path}/nightly", f"{node.path}/.nightly", "ab" * 32))
    held.record(steps.Frozen())
    held.close()
    for _ in range(2):
        undoing.supervise(held.path)
    assert node.outcomes() == [(outcomes.SEALED, "")]
    assert undoing.is_pod_held(held.path)


def test_a_resume_that_finds_another_at_work_changes_nothing(node: Node) -> None:
    held = begun(node)
    hold(node, held)
    with pytest.raises(UnavailableError, match="another grit command works on it"):
        holds.resume(HOLD.pod_uid)
    assert not held_pods.every()[0].may_run
