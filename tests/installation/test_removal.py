"""grit uninstall where no containerd runs, and what it is refused for."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from grit_runtime import config, paths
from grit_runtime.errors import FailedPreconditionError, HeldError, PodStateError
from grit_runtime.host import journal
from grit_runtime.installation import changes, operations, removal, services, wanted
from grit_runtime.installation.changes import File
from grit_runtime.model.hold import Hold
from grit_runtime.model.installation_steps import Choice, Leaving
from grit_runtime.pod import held_pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMED = """
import sys
from grit_runtime.host import linux
linux.set_name(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's directories, with a file that grit has written, and no containerd."""
    state, run = f"{tmp_path}/var/lib/grit", f"{tmp_path}/run/grit"
    for owner, name, path in (
        (paths, "RUN_DIR", run),
        (paths, "STATE_DIR", state),
        (paths, "LOG_DIR", f"{tmp_path}/var/log/grit"),
        (changes, "DIR", f"{state}/installation"),
        (changes, "JOURNAL", f"{state}/installation/journal"),
        (changes, "_ORIGINALS", f"{state}/installation/originals"),
        (journal, "PODS_DIR", f"{run}/pods"),
        (held_pods, "DIR", f"{state}/held"),
        (config, "PATH", f"{tmp_path}/etc/grit/config.toml"),
        (services, "_RUNS", f"{tmp_path}/no-systemd"),
    ):
        monkeypatch.setattr(owner, name, path)
    monkeypatch.setattr(config.load, "__defaults__", (config.PATH,))
    os.makedirs(run)
    configure(tmp_path, checkpoint_root="/nowhere")
    with changes.opened() as held:
        held.record(Choice("1.0", wanted.OWN, has_agent=False))
        changes.make(
            {
                f"{tmp_path}/program": File(b"ours"),
                f"{tmp_path}/handler": File(b"ours", read_by=changes.CONTAINERD),
            },
            held,
        )
    return tmp_path


def configure(root: Path, checkpoint_root: str) -> None:
    path = Path(config.PATH)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'containerd_address = "{root}/none.sock"\ncheckpoint_root = "{checkpoint_root}"\n'
    )


def uninstall(*, drain: bool = False, purge: bool = False) -> str:
    told: list[str] = []
    removal.uninstall(restart=True, drain=drain, purge=purge, tell=told.append)
    return "\n".join(told)


def is_installed(root: Path) -> bool:
    found = {name for name in ("program", "handler") if (root / name).exists()}
    assert found in ({"program", "handler"}, set())
    return bool(found)


def test_all_is_taken_back_where_no_containerd_runs(root: Path) -> None:
    """It may not start for what grit has written."""
    told = uninstall()
    assert f"containerd does not answer at {root}/none.sock" in told
    assert "what grit has written is taken back without it" in told
    assert not is_installed(root)
    assert not os.path.exists(changes.DIR)


@contextmanager
def running(name: str, directory: Path) -> Iterator[int]:
    """A process of that name in that directory."""
    argv = [sys.executable, "-c", NAMED, name]
    with subprocess.Popen(
        argv, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate()


@pytest.mark.parametrize("name", ["grit-shim", "containerd-shim"])
def test_shims_of_grit_s_pods_hold_it_up_where_no_containerd_runs(root: Path, name: str) -> None:
    (root / "runtime").write_text(wanted.RUNTIME)
    with running(name, root) as pid:
        refused = pytest.raises(PodStateError, match=rf"need it to be stopped \(processes {pid}\)")
        with refused:
            uninstall(drain=True)
        assert is_installed(root)
    uninstall()
    assert not is_installed(root)


def test_shims_of_other_pods_hold_nothing_up(root: Path) -> None:
    (root / "runtime").write_text("/usr/sbin/runc")
    with running("containerd-shim", root):
        uninstall()
    assert not is_installed(root)


def hold_a_pod(root: Path) -> str:
    (root / "runc/sandbox").mkdir(parents=True)
    held_pods.keep(
        Hold(
            since="2026-01-01T00:00:00Z",
            namespace="default",
            pod="frozen",
            pod_uid="uid",
            sandbox_id="sandbox",
            runc_root=f"{root}/runc",
            checkpoint="/nowhere/default/one",
            manifest_sha256="",
            containers={"main": "id"},
            is_whole=True,
        )
    )
    return "default/frozen"


def begin_a_checkpoint(_: Path) -> str:
    path = Path(f"{journal.PODS_DIR}/sandbox/{journal.CHECKPOINT}")
    path.parent.mkdir(parents=True)
    path.touch()
    return str(path)


@pytest.mark.parametrize("begin", [hold_a_pod, begin_a_checkpoint])
@pytest.mark.parametrize("option", ["", "drain", "purge"])
def test_pods_of_any_handler_that_are_held_or_being_checkpointed_hold_it_up(
    root: Path, begin: Callable[[Path], str], option: str
) -> None:
    """What it would remove is needed to let go of them."""
    name = begin(root)
    with pytest.raises(HeldError, match=f"{name}: under way or held .* then uninstall"):
        uninstall(drain=option == "drain", purge=option == "purge")
    assert is_installed(root)
    assert journal.checkpoints() or held_pods.every()


@pytest.mark.parametrize("place", ["var/lib/grit/checkpoints", "var/log/grit", "etc/grit"])
def test_checkpoints_are_not_purged(root: Path, place: str) -> None:
    there = root / place
    (there / "default/one").mkdir(parents=True)
    configure(root, str(there))
    with pytest.raises(FailedPreconditionError, match=f"checkpoint_root {there} lies in {root}/"):
        uninstall(purge=True)
    assert is_installed(root)
    uninstall()
    assert (there / "default/one").exists()


def test_what_a_plain_uninstall_has_left_can_be_purged_later(root: Path) -> None:
    for directory in (paths.LOG_DIR, f"{paths.STATE_DIR}/records"):
        os.makedirs(directory)
    uninstall()
    assert os.path.exists(config.PATH)
    assert "all of it is taken back" in uninstall(purge=True)
    left = [paths.LOG_DIR, paths.STATE_DIR, os.path.dirname(config.PATH)]
    assert [path for path in left if os.path.exists(path)] == []
    assert root.exists()


def test_an_upgrade_leaves_alone_what_is_being_taken_back(root: Path) -> None:
    """It is called with a new package, while the uninstall waits for containerd's restart."""
    with changes.opened() as held:
        held.record(Leaving("1.0"))
    before = Path(changes.JOURNAL).read_text()
    told: list[str] = []
    operations.upgrade(restart=True, tell=told.append)
    assert "grit uninstall has begun here, so nothing is upgraded" in told[0]
    assert Path(changes.JOURNAL).read_text() == before
    assert is_installed(root)


def test_what_is_asked_for_after_an_uninstall_has_begun_holds(root: Path) -> None:
    with changes.opened() as held:
        held.record(Leaving("1.0"))
        assert changes.is_leaving(held.steps())
        held.record(Choice("1.0", wanted.OWN, has_agent=False))
        assert not changes.is_leaving(held.steps())
    assert is_installed(root)
