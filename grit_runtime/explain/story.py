"""What has become of a checkpoint, a pod or one container's restore, put together for people.

From records, logs and the checkpoint itself, of which nothing is believed: whoever shows a story
makes its texts printable, or escapes them.
"""

from __future__ import annotations

import calendar
import os
import time
from contextlib import suppress
from typing import Any

from grit_runtime import paths
from grit_runtime.errors import GritError, NotFoundError
from grit_runtime.host import criu, records, runc
from grit_runtime.model import losses, outcomes, sizes
from grit_runtime.model.losses import Loss
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.config import Config
    from grit_runtime.model.outcomes import Outcome

_EVIDENCE_LINES = 12
_SLACK_S = 2.0  # records have whole seconds
_SHORTEST_ID = 6
_GOOD = {outcomes.RESTORED, outcomes.SEALED, outcomes.SKIPPED}
_TOTAL = "all"  # the phase that is the sum of a restore


class Phase(NamedTuple):
    name: str
    begin_s: float  # after the beginning of its act
    seconds: float
    size_bytes: int | None
    failed: bool

    @property
    def size(self) -> str:
        return "" if self.size_bytes is None else sizes.shown(self.size_bytes)

    @property
    def rate(self) -> str:
        if self.size_bytes is None or not self.seconds:
            return ""
        return f"{sizes.shown(self.size_bytes / self.seconds)}/s"


class Act(NamedTuple):
    """A checkpoint or a container's restore: how it went, and how it ended."""

    time: str  # of its end; RFC 3339, UTC
    title: str
    outcome: str  # as in a record
    phases: tuple[Phase, ...]
    reason: str
    error: str  # of docs/errors.md
    evidence: tuple[str, ...]  # lines of CRIU's and runc's logs
    warnings: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return self.outcome in _GOOD

    @property
    def seconds(self) -> float:
        return max((phase.begin_s + phase.seconds for phase in self.phases), default=0.0)


class Process(NamedTuple):
    pid: int
    text: str
    depth: int  # how many of its ancestors stand before it


class Container(NamedTuple):
    name: str
    text: str
    processes: tuple[Process, ...]
    mounts: tuple[str, ...]


class Story(NamedTuple):
    title: str
    facts: tuple[tuple[str, str], ...]
    acts: tuple[Act, ...]  # oldest first
    containers: tuple[Container, ...]  # of the checkpoint that it is about


def tell(target: str, config: Config) -> Story:
    """The story of a checkpoint (a directory, an archive or NAMESPACE/NAME), a pod or an attempt.

    A pod is NAMESPACE/POD or a uid, an attempt the id of a container, of which the beginning is
    enough. A pod goes before a checkpoint of the same name. NotFoundError if it is none of them.
    """
    if os.path.exists(target):
        return _of_checkpoint(os.path.abspath(target))
    past = records.mentioning(target.rpartition("/")[2])
    if of_pod := [one for one in past if one.is_of(target)]:
        return _of_records(f"pod {of_pod[-1].namespace}/{of_pod[-1].pod}", of_pod)
    if len(target) >= _SHORTEST_ID and (
        of_attempt := [one for one in past if one.container_id.startswith(target)]
    ):
        return _of_records(f"container {of_attempt[-1].container}", of_attempt)
    named = f"{config.checkpoint_root}/{target}"
    if os.path.exists(named):
        return _of_checkpoint(named)
    raise NotFoundError(
        f"{target}: this node has no record of such a pod or container, and no checkpoint {named}; "
        "expected a reason, NAMESPACE/POD, an id, or a checkpoint's directory or NAMESPACE/NAME"
    )


def with_error(name: str) -> list[Outcome]:
    """The records that have this reason, oldest first; none for who may not read them."""
    if not os.access(records.DIR, os.R_OK):
        return []
    return [one for one in records.mentioning(name) if one.error == name]


def _of_records(title: str, past: list[Outcome]) -> Story:
    newest = past[-1]
    facts = [("pod", f"{newest.namespace}/{newest.pod}"), ("uid", newest.pod_uid)]
    facts += [("sandbox", newest.sandbox_id), ("checkpoint", newest.checkpoint)]
    containers: tuple[Container, ...] = ()
    with suppress(GritError, OSError):  # it may be gone, or damaged, which its act says
        containers = _containers(_inspected(newest.checkpoint))
    if newest.container_id:
        containers = tuple(one for one in containers if one.name == newest.container)
    return Story(title, tuple(facts), _acts(past), containers)


def _of_checkpoint(path: str) -> Story:
    inspected = _inspected(path)
    sha256 = inspected["manifest_sha256"]
    past = [
        one
        for one in records.mentioning(path, *filter(None, [sha256]))
        if one.checkpoint == path or (sha256 and one.manifest_sha256 == sha256)
    ]
    acts = _acts(past)
    taken = inspected["created"]
    if not any(act.outcome == outcomes.SEALED for act in acts):  # it was taken elsewhere
        sealed = _act_of_manifest(inspected)
        acts = (sealed, *acts) if taken else acts
    node, pod = inspected["node"], inspected["pod"]
    size_bytes = sum(file["size_bytes"] for file in inspected["files"])
    facts = [
        ("directory", path),
        ("size", f"{sizes.shown(size_bytes)} in {len(inspected['files'])} files"),
        ("manifest", f"sha256:{sha256}"),
    ]
    if taken:
        facts += [
            ("pod", f"{pod['namespace']}/{pod['name']}"),
            ("taken", taken),
            ("by", f"CRIU {node['criu']}, runc {node['runc']}, containerd {node['containerd']}"),
            ("on", f"kernel {node['kernel']} {node['machine']}"),
        ]
    if node["driver"]:
        facts.append(("driver", node["driver"]))
    name = inspected["name"] or os.path.basename(path)
    return Story(f"checkpoint {name}", tuple(facts), acts, _containers(inspected))


def _inspected(path: str) -> dict[str, Any]:
    from grit_runtime.checkpoint import inspection  # knows CRIU's images

    return inspection.inspect(path)


def _acts(past: list[Outcome]) -> tuple[Act, ...]:
    return tuple(_act(one) for one in past)


def _act(one: Outcome) -> Act:
    phases = tuple(_phase(entry) for entry in one.timeline if entry["phase"] != _TOTAL)
    what, _, _ = outcomes.line(one._replace(warnings=(), reason="", error="")).partition("\n")
    act = Act(
        time=one.time,
        title=what.removeprefix(one.time).strip().rstrip(": "),
        outcome=one.outcome,
        phases=phases,
        reason=one.reason,
        error=one.error,
        evidence=(),
        warnings=one.warnings,
    )
    return act._replace(evidence=_evidence(one, act.seconds)) if one.error else act


def _act_of_manifest(inspected: dict[str, Any]) -> Act:
    """Its phases have no beginning: those of one pod's checkpoint follow each other, but for the
    pause, which is the sum of many."""
    phases, begin_s = [], 0.0
    for entry in inspected["timeline"]:
        if entry["phase"] != "paused":
            phases.append(_phase({**entry, "begin_s": begin_s}))
            begin_s += entry["seconds"]
    return Act(
        time=inspected["created"],
        title="checkpoint sealed on its node",
        outcome=outcomes.SEALED,
        phases=tuple(phases),
        reason="",
        error="",
        evidence=(),
        warnings=tuple(losses.line(Loss(**loss)) for loss in inspected["warnings"]),
    )


def _phase(entry: dict[str, Any]) -> Phase:
    """An entry of a timeline; older ones do not say when they began."""
    return Phase(
        name=" ".join(filter(None, (entry["phase"], entry.get("container")))),
        begin_s=float(entry.get("begin_s", 0.0)),
        seconds=float(entry["seconds"]),
        size_bytes=entry.get("size_bytes"),
        failed=bool(entry.get("failed")),
    )


def _evidence(one: Outcome, seconds: float) -> tuple[str, ...]:
    """What the logs of an attempt say, unless a later one has overwritten them."""
    directory = f"{paths.LOG_DIR}/{one.namespace}/{one.pod}"
    names = [one.container] if one.container else _listed(directory)
    files = ("restore.log", "runc.log") if one.container else ("dump.log",)
    end = calendar.timegm(time.strptime(one.time, "%Y-%m-%dT%H:%M:%SZ")) + _SLACK_S
    lines = []
    for path in (f"{directory}/{name}/{file}" for name in names for file in files):
        with suppress(FileNotFoundError):
            if end - seconds - 2 * _SLACK_S <= os.stat(path).st_mtime <= end:
                lines += [f"{os.path.basename(path)}: {line}" for line in _errors_in(path)]
    return tuple(lines[:_EVIDENCE_LINES])


def _errors_in(path: str) -> list[str]:
    if path.endswith("/runc.log"):
        last = runc.last_error(path)
        return [last] if last else []
    return criu.telling_lines(path)


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _containers(inspected: dict[str, Any]) -> tuple[Container, ...]:
    return tuple(_container(one) for one in inspected["containers"])


def _container(one: dict[str, Any]) -> Container:
    ended = one["exit_code"]
    state = "running" if ended is None else f"had exited with {ended}"
    return Container(
        name=one["name"],
        text=", ".join(filter(None, (state, sizes.shown(one["size_bytes"]), one["image"]))),
        processes=_processes(one["tasks"]),
        mounts=tuple(mount["destination"] for mount in one["mounts"]),
    )


def _processes(tasks: list[dict[str, Any]]) -> tuple[Process, ...]:
    from grit_runtime.checkpoint import inspection  # as above

    return tuple(
        Process(task["pid"], _described(task), depth)
        for depth, task in inspection.descending(tasks)
    )


def _described(task: dict[str, Any]) -> str:
    threads = f", {task['threads']} threads" if task["threads"] > 1 else ""
    return f"{task['comm']}, uid {task['uid']}{threads}"
