"""What a hold allows, and what it tells."""

import json

import pytest

from grit_runtime.model import hold as holding
from grit_runtime.model.annotations import Identity
from grit_runtime.model.hold import Hold

HOLD = Hold(
    since="2026-11-28T10:00:00Z",
    namespace="shop",
    pod="cart-7",
    pod_uid="uid-7",
    sandbox_id="sandbox-7",
    runc_root="/run/runc",
    checkpoint="/mnt/grit-agent/shop/nightly",
    manifest_sha256="ab" * 32,
    containers={"app": "id-app", "proxy": "id-proxy"},
    is_whole=True,
)
RESUMED = HOLD._replace(is_resumed=True, ran_on=("proxy",), awaited=("app",))
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def identity(container: str, sandbox_id: str = "sandbox-7") -> Identity:
    return Identity("shop", "cart-7", "uid-7", sandbox_id, container)


@pytest.mark.parametrize(
    ("hold", "forbidden"),
    [
        (HOLD, ["app", "proxy", "debugger"]),
        (HOLD._replace(is_whole=False, containers={"app": "id-app"}), ["app"]),
        (RESUMED, []),
    ],
)
def test_nothing_of_a_held_pod_starts_and_all_else_does(hold: Hold, forbidden: list[str]) -> None:
    names = ("app", "proxy", "debugger")
    assert [name for name in names if hold.forbids(name)] == forbidden


def test_what_was_killed_comes_back_from_the_very_checkpoint_and_what_ran_on_does_not() -> None:
    order = holding.second_life(RESUMED, identity("app"), {"grit.dev/tcp": "close"})
    assert order is not None
    assert order.path == ("shop", "nightly")
    assert (order.manifest_sha256, order.tcp) == ("ab" * 32, "close")
    assert not order.cold_on_failure
    assert holding.second_life(RESUMED, identity("proxy"), {}) is None


@pytest.mark.parametrize(
    ("ran_on", "sandbox_id", "kept"),
    [
        (("proxy",), "sandbox-8", True),
        ((), "sandbox-7", True),
        ((), "sandbox-8", False),  # its /dev/shm is a new one
    ],
)
def test_volumes_that_somebody_uses_or_nobody_has_touched_stay_as_they_are(
    ran_on: tuple[str, ...], sandbox_id: str, *, kept: bool
) -> None:
    hold = RESUMED._replace(ran_on=ran_on)
    order = holding.second_life(hold, identity("app", sandbox_id), {})
    assert order is not None
    assert order.keeps_volumes == kept


def test_who_runs_a_container_and_who_asks_it_are_gaps() -> None:
    runtimes = {
        "a": "io.containerd.grit.v1",
        "b": "/usr/local/bin/grit-runtime",
        "c": "io.containerd.runc.v2",
    }
    probes: dict[str, object] = {"readinessProbe": {"httpGet": {}}, "startupProbe": {"grpc": {}}}
    applied = {"spec": {"containers": [{"name": "a", **probes}, {"name": "gone", **probes}]}}
    plain, probed = holding.gaps(runtimes, {APPLIED: json.dumps(applied)})
    assert plain.startswith("container c is not run by grit-runtime but by io.containerd.runc.v2")
    assert probed.startswith("container a has a startupProbe by grpc")


@pytest.mark.parametrize(
    "applied",
    ["", "{", "[]", "null", '{"spec": 1}', '{"spec": {"containers": [1]}}', "[" * 100_000],
)
def test_a_manifest_that_is_none_tells_of_no_probes(applied: str) -> None:
    assert holding.gaps({"a": "io.containerd.grit.v1"}, {APPLIED: applied}) == []
