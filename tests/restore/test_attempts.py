"""Restored containers whose journals others look at."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from grit_runtime.host import journal
from grit_runtime.model import restore_steps
from grit_runtime.restore import attempts
from tests.outcomes import NOW
from tests.plain_node import PATIENCE_S, wait_until_it_waits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.plain_node import Node


def restored(node: Node) -> journal.Journal[restore_steps.Step]:
    path = f"{node.path}/pods/5a1e/c1/{attempts.JOURNAL}"
    attempt = journal.begin(path, restore_steps.STEPS)
    attempt.record(restore_steps.Begin(NOW))
    attempt.record(restore_steps.Restored(NOW))
    return attempt


def while_looked_at(
    looking: journal.Journal[restore_steps.Step], work: Callable[[], object]
) -> object:
    """What *work* gives, which waits until nobody looks at the journal any more."""
    with ThreadPoolExecutor() as beside:
        done = beside.submit(work)
        wait_until_it_waits(os.getpid())
        looking.close()
        return done.result(PATIENCE_S)


def test_a_restored_container_is_started_though_another_looks_at_its_journal(node: Node) -> None:
    looking = restored(node)
    directory = os.path.dirname(looking.path)
    assert while_looked_at(looking, lambda: attempts.claim_start(directory))


def test_a_deleted_container_is_forgotten_though_another_looks_at_its_journal(node: Node) -> None:
    looking = restored(node)
    looking.record(restore_steps.Started())
    directory = os.path.dirname(looking.path)
    while_looked_at(looking, lambda: attempts.forget(directory))
    assert not os.path.exists(directory)


def test_who_only_looks_locks_no_journal_of_a_container_that_runs(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = restored(node)
    attempt.record(restore_steps.Started())
    attempt.close()

    def adopt(path: str, *_: object, **__: object) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(journal, "adopt", adopt)
    attempts.sweep(f"{node.path}/pods/5a1e")
