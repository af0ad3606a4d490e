"""Fixtures: a pair of joined nodes of each edition, and their logs where a test fails."""

from __future__ import annotations

import os
import shutil
import zlib
from contextlib import ExitStack
from typing import NamedTuple, cast

import pytest

from integration.node import images, rootfs
from integration.node.network import Network
from integration.node.node import HANDLER, SHIM_HANDLER, Node
from integration.pods import kubelet
from integration.requirements import do_without

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from integration.node.rootfs import Edition
    from integration.pods.kubelet import Pod
    from integration.pods.pod_spec import PodSpec

    RunPod = Callable[[Node, PodSpec], Pod]

PROGRAMS = ("gcc", "mmdebstrap", "nsenter", "setpriv", "unshare", str(images.HOST_BUSYBOX))

# Parts and files that are hardly another on another edition, but for tests that are marked.
SHARED = {
    "faults",
    "gpu",
    "manager",
    "migrate",
    "operators",
    "matrix/test_clones.py",
    "matrix/test_files.py",
    "matrix/test_freeze.py",
    "matrix/test_generations.py",
    "matrix/test_held.py",
    "matrix/test_hostile.py",
    "matrix/test_lies.py",
    "matrix/test_preflight.py",
    "matrix/test_random_pods.py",
    "matrix/test_sealing.py",
    "matrix/test_settings.py",
}
EVERY_EDITION = "every_edition"


class Nodes(NamedTuple):
    """Two nodes of one edition on one network."""

    a: Node
    b: Node


@pytest.fixture(scope="session", params=list(rootfs.EDITIONS.values()), ids=list(rootfs.EDITIONS))
def edition(request: pytest.FixtureRequest) -> Edition:
    """Every edition in turn; without what nodes are made of, a skip or, if required, a failure."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        reason = f"no nodes without {', '.join(missing)}; integration/test brings them"
        do_without("nodes", reason)
    chosen: Edition = request.param
    return chosen


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """The network all nodes are on."""
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def nodes(edition: Edition, network: Network) -> Iterator[Nodes]:
    """Two nodes that serve all tests of an edition."""
    with (
        Node(edition, name="node-a", network=network) as a,
        Node(edition, name="node-b", network=network) as b,
    ):
        yield Nodes(a, b)


@pytest.fixture(scope="module")
def fresh_nodes(nodes: Nodes) -> None:
    """What the tests of another file have left on the nodes by name is gone."""
    for node in nodes:
        node.run(["sh", "-c", "rm -rf /mnt/grit-agent/* /run/by-hand"])


@pytest.fixture(scope="module")
def shim_handler(nodes: Nodes) -> Iterator[None]:
    """Pods of the module's tests run under grit's own shim, unless they say otherwise."""
    for node in nodes:
        node.runtime_handler = SHIM_HANDLER
    yield
    for node in nodes:
        node.runtime_handler = HANDLER


@pytest.fixture
def run_pod(nodes: Nodes) -> Iterator[RunPod]:  # noqa: ARG001 -- pods end before their nodes
    """Runs a pod on a node; what the test has not removed by itself goes at its end."""
    with ExitStack() as pods:
        yield lambda node, spec: pods.enter_context(kubelet.running(node, spec))


@pytest.hookimpl(tryfirst=True)  # xdist's own reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Keep what shares nodes in one process, in order, where tests run side by side.

    The tests of a directory on an edition are such a group: it starts its nodes once. Those with
    a control plane alone are another. Of what the editions share each has about half, and all of
    it only where there is time.
    """
    kept = [item for item in items if "GRIT_LONG" in os.environ or _is_due(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for item in items:
        if "control_plane" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("control-plane"))
        if "edition" in item.fixturenames:
            edition = cast("Edition", item.callspec.params["edition"])
            item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}-{edition.suite}"))


def _is_due(item: pytest.Function) -> bool:
    """Whether a test is for its edition: every other file of the manager, for what clusters keep
    between tests, and any half of the other parts."""
    part = item.path.parent.name
    if "edition" not in item.fixturenames or not SHARED & {part, f"{part}/{item.path.name}"}:
        return True
    if item.get_closest_marker(EVERY_EDITION):
        return True
    if part == "manager":
        number = sorted(item.path.parent.glob("test_*.py")).index(item.path)
    else:
        number = zlib.crc32(item.originalname.encode())
    suites = list(rootfs.EDITIONS)
    edition = cast("Edition", item.callspec.params["edition"])
    return edition.suite == suites[number % len(suites)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the nodes have logged to the report of a test that failed on them."""
    report = yield
    nodes = item.funcargs.get("nodes")
    if report.failed and isinstance(nodes, Nodes):
        for node in nodes:
            report.sections.append((f"logs of {node.name}", node.collect_logs()))
    return report
