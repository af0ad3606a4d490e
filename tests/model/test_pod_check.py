"""What the containers of a pod have between them."""

from __future__ import annotations

import pytest

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.model import pod_check


def limited(limit: int | None) -> dict[str, object]:
    return {"linux": {"resources": {"memory": {"limit": limit}}}}


@pytest.mark.parametrize(
    "spec", [{"linux": {}}, {"linux": {"resources": None}}, limited(None), limited(-1), limited(9)]
)
def test_memory_that_fits_is_let_through(spec: dict[str, object]) -> None:
    pod_check.check_memory(pod_check.memory_limit_bytes(spec), 9)


def test_memory_above_the_limit_is_refused_with_both_numbers() -> None:
    with pytest.raises(FailedPreconditionError, match=r"holds 9 bytes .* limit is 8; raise"):
        pod_check.check_memory(pod_check.memory_limit_bytes(limited(8)), 9)


def test_only_a_user_namespace_that_is_joined_is_refused() -> None:
    def refusal(*namespaces: dict[str, str]) -> str | None:
        return pod_check.user_namespace_refusal({"linux": {"namespaces": namespaces}})

    network = {"type": "network", "path": "/proc/1/ns/net"}
    assert refusal(network) is None
    assert refusal(network, {"type": "user"}) is None
    assert "hostUsers" in (refusal(network, {"type": "user", "path": "/proc/1/ns/user"}) or "")


def test_a_number_that_is_taken_is_named_with_its_holder() -> None:
    pod_check.check_numbers([7, 8], {1: "pause", 9: "sh"})
    with pytest.raises(FailedPreconditionError, match="number 8 of the dump is taken by sh"):
        pod_check.check_numbers([9, 8, 7], {8: "sh", 9: "ash"})


def test_sysv_objects_go_with_whom_they_are_attached_to() -> None:
    assert pod_check.sysv_owner(["one", "two"], ["two"]) == "two"
    assert pod_check.sysv_owner(["one", "two"], []) == "one"


def test_sysv_memory_of_two_containers_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="containers one and two have attached"):
        pod_check.sysv_owner(["one", "two"], ["one", "two"])
