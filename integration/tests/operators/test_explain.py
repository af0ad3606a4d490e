"""What has happened is told of real checkpoints and restores, good and failed; and the archive."""

from __future__ import annotations

import json
import shlex
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from integration.documents import documented
from integration.node.cri import CriError
from integration.pods import checkpoints, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.node import Node
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CRIU = Path("/usr/local/sbin/criu")
PRIVATE = "hunter2-of-the-pod"
# CRIU that a restore, or a dump, leaves without descriptors.
# So few descriptors that it ends long before it has all that it opens: one more or less that it
# inherits makes no other error of it.
STARVED = """\
#!/bin/sh
[ "$1" != swrk ] || ulimit -n 18
exec /usr/sbin/criu "$@"
"""
CLONE = (("grit.dev/restore-name", "told"), ("grit.dev/clone", "true"))


def explained(node: Node, target: str) -> str:
    return node.run(["env", "COLUMNS=150", "grit", "explain", target]).stdout


def test_a_checkpoint_and_its_restores_are_told_phase_by_phase(
    nodes: Nodes, run_pod: RunPod
) -> None:
    source = run_pod(nodes.a, workload.counter_pod("told", ballast_mib=32))
    workload.wait_for_count(source, 5)
    checkpoints.take(source, "told")
    target = run_pod(nodes.a, workload.counter_pod("told-2", ballast_mib=32, annotations=CLONE))
    criu = nodes.a.path(CRIU)
    sound = criu.read_text()
    criu.write_text(STARVED)
    try:
        with pytest.raises(CriError, match="RestoreFailed"):
            run_pod(nodes.a, workload.counter_pod("told-3", ballast_mib=32, annotations=CLONE))
        assert checkpoints.take(source, "again", check=False).returncode == 1
    finally:
        criu.write_text(sound)

    told = explained(nodes.a, "/mnt/grit-agent/default/told")
    assert "default/told checkpoint sealed: /mnt/grit-agent/default/told" in told
    assert "default/told-2/counter restored from /mnt/grit-agent/default/told" in told
    for phase in ("freeze", "dump counter", "digest", "verify", "read back", "✗ restore"):
        assert f"  {phase} " in told
    assert "█" in told
    assert "/scratch" in told  # a mount
    assert " 1 python3, uid 0" in told

    pod = explained(nodes.a, "default/told-3")
    assert pod.count("Too many open files") >= 2  # the reason, and CRIU's log
    assert "restore.log: criu/" in pod
    assert "grit explain RestoreFailed" in pod
    failed = explained(nodes.a, "default/told").partition("checkpoint failed")[2]
    assert "✗ dump counter" in failed
    assert "dump.log: " in failed
    attempt = explained(nodes.a, target.container_ids["counter"][:12])
    assert "told-2/counter restored from" in attempt
    assert "told-3" not in attempt
    reason = explained(nodes.a, "restorefailed")
    assert "runc restore has failed; nothing of the attempt is left" in reason
    assert "default/told-3/counter restore failed" in reason


def test_a_page_is_one_file_that_asks_for_nothing_else(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("paged"))
    workload.wait_for_count(source, 5)
    checkpoints.take(source, "paged")
    nodes.a.run(["grit", "explain", "default/paged", "--html", "/run/paged.html"])
    page = nodes.a.path(Path("/run/paged.html"))
    text = page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    assert '<th scope="row">dump counter</th>' in text
    assert "<script" not in text
    assert "http:" not in text
    nodes.a.run(["ln", "-s", "/etc/passwd", "/run/link.html"])
    words = ["grit", "explain", "default/paged", "--html", "/run/link.html"]
    assert nodes.a.run(words, check=False).returncode == 1


def test_a_checkpoint_of_another_node_is_told_by_its_manifest(
    nodes: Nodes, run_pod: RunPod
) -> None:
    source = run_pod(nodes.a, workload.counter_pod("carried"))
    workload.wait_for_count(source, 5)
    checkpoints.take(source, "carried")
    checkpoints.carry(nodes.a, nodes.b, "carried")
    told = explained(nodes.b, "default/carried")
    assert "checkpoint sealed on its node" in told
    assert "  dump counter " in told


def test_what_is_not_known_is_said_with_what_was_expected(nodes: Nodes) -> None:
    done = nodes.a.run(["grit", "explain", "default/nobody"], check=False)
    assert done.returncode == 1
    assert "expected a reason, NAMESPACE/POD, an id, or a checkpoint's" in done.stderr


def test_an_archive_for_a_report_has_everything_but_secrets(nodes: Nodes, run_pod: RunPod) -> None:
    spec = workload.counter_pod("secretive", annotations=(("example.com/password", PRIVATE),))
    main = spec.containers[0]
    main = replace(main, env=(*main.env, ("DB_PASSWORD", PRIVATE)))
    source = run_pod(nodes.a, replace(spec, containers=(main,)))
    workload.wait_for_count(source, 5)
    checkpoints.take(source, "secretive")
    log = nodes.a.path(Path("/var/log/grit/default/leaky.log"))
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"msg=x token={PRIVATE}\n-----BEGIN PRIVATE KEY-----\n{PRIVATE}\n")
    (log.parent / "link.log").symlink_to("/etc/shadow")

    nodes.a.run(["grit", "bundle", "--output", "/run/report.tar.gz"])
    archive = nodes.a.path(Path("/run/report.tar.gz"))
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as file:
        files = {
            member.name.partition("/")[2]: taken.read().decode()
            for member in file
            if (taken := file.extractfile(member)) is not None
        }
    assert [name for name, text in files.items() if PRIVATE in text] == []
    assert "log/default/link.log" not in files
    assert "token=[removed]" in files["log/default/leaky.log"]
    assert {"README.txt", "doctor.json", "records.json", "containerd.json"} <= files.keys()
    assert "checkpoints/default/secretive/manifest.json" in files
    assert "checkpoints/default/secretive/counter/dump.log" in files
    assert "criu" in {one["name"] for one in json.loads(files["doctor.json"])}
    assert "2 times" in files["README.txt"]
    again = nodes.a.run(["grit", "bundle", "--output", "/run/report.tar.gz"], check=False)
    assert again.returncode == 1  # nothing is overwritten


def test_the_documents_commands_explain(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("counter-2"))
    workload.wait_for_count(source, 5)
    checkpoints.take(source, "nightly")
    for line in documented("explain"):
        nodes.a.run(shlex.split(line))
