"""All checks of a node, in the order in which they are told."""

from __future__ import annotations

from grit_runtime import config
from grit_runtime.doctor import (
    agents,
    cards,
    finding,
    kernel,
    keys,
    live,
    programs,
    runtime,
    storage,
)
from grit_runtime.doctor import node as this_node
from grit_runtime.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.doctor.finding import Finding
    from grit_runtime.doctor.node import Node

    Check = Callable[[Node], Finding]

CHECKS: tuple[Check, ...] = (
    kernel.kernel,
    kernel.cgroups,
    kernel.idmapped_mounts,
    kernel.transparent_huge_pages,
    kernel.memory,
    kernel.clock,
    programs.criu,
    programs.runc,
    runtime.containerd,
    runtime.handler,
    programs.launcher,
    programs.shim,
    runtime.passed_annotations,
    runtime.cgroup_driver,
    runtime.snapshotter,
    runtime.request_timeout,
    cards.nvidia_driver,
    cards.cards,
    cards.cdi,
    storage.checkpoint_root,
    storage.own_directories,
    keys.keys,
    agents.certificate,
    agents.agent,
    agents.reached_peers,
)


def findings(*, with_live: bool, peers: tuple[str, ...] = ()) -> Iterator[Finding]:
    """What each check finds, as it finds it.

    A configuration that means nothing is all that is found: the others would look elsewhere than
    grit does.
    """
    try:
        settings = config.load()
    except (ConfigurationError, OSError) as error:
        yield finding.failed(error)._replace(name="configuration")
        return
    yield finding.ok(_told(settings))._replace(name="configuration")
    node = this_node.look(settings, peers)
    for check in (*CHECKS, *[live.dump_and_restore] * with_live):
        yield found_by(check, node)


def found_by(check: Check, node: Node) -> Finding:
    """What one check finds; whatever it raises is that."""
    try:
        found = check(node)
    except Exception as error:  # noqa: BLE001  what the other checks find is still wanted
        found = finding.failed(error)
    return found._replace(name=check.__name__.replace("_", " "))


def _told(settings: config.Config) -> str:
    defaults = config.Config()._asdict()
    changed = [key for key, value in settings._asdict().items() if value != defaults[key]]
    return f"{config.PATH} sets {', '.join(changed)}" if changed else "all defaults"
