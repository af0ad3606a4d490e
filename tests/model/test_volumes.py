"""Which volumes go with a checkpoint, and who relies on those that were put back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.model import volumes
from grit_runtime.model.volume_steps import Filled, LetGo, Step, Use
from grit_runtime.model.volumes import Mounted

UID = "3f0c"
SANDBOX = "5a1e"
SHM = "/dev/shm"  # noqa: S108  a destination in a container
PODS = f"/var/lib/kubelet/pods/{UID}"


def spec(*mounts: tuple[str, str]) -> dict[str, object]:
    return {
        "annotations": {
            "io.kubernetes.cri.sandbox-uid": UID,
            "io.kubernetes.cri.sandbox-id": SANDBOX,
        },
        "mounts": [{"source": source, "destination": place} for source, place in mounts],
    }


def test_only_the_pods_own_volumes_are_found() -> None:
    shm = f"/run/containerd/sandboxes/{SANDBOX}/shm"
    own = f"{PODS}/volumes/kubernetes.io~empty-dir/data"
    found = volumes.mounted(
        spec(
            (shm, SHM),
            (own, "/data"),
            (f"{PODS}/volume-subpaths/data/counter/0", "/part"),
            (SHM, SHM),  # the node's
            (f"{PODS}/volumes/kubernetes.io~configmap/conf", "/conf"),
            ("/var/lib/kubelet/pods/other/volumes/kubernetes.io~empty-dir/data", "/foreign"),
            ("/srv", "/srv"),
        )
    )
    assert found == [
        Mounted("shm", shm, SHM),
        Mounted("emptydir:data", own, "/data"),
        Mounted("emptydir:data", own, "/part"),
    ]


def test_what_lies_at_dev_shm_goes_along_unasked_and_the_rest_when_asked() -> None:
    memory = Mounted("emptydir:memory", "/a", SHM)
    data = Mounted("emptydir:data", "/b", "/data")
    assert volumes.captured([memory, data], set()) == {"emptydir:memory": "/a"}
    assert volumes.captured([memory, data], {"emptydir:data"}) == {
        "emptydir:memory": "/a",
        "emptydir:data": "/b",
    }


def test_a_file_is_of_the_volume_that_it_lies_in() -> None:
    data = Mounted("emptydir:data", "/b", "/data")
    places = ["/data", "/data/claim"]
    assert volumes.holder("/data/x", [data], places) == data
    assert volumes.holder("/data/claim/x", [data], places) is None
    assert volumes.holder("/database", [data], places) is None


def test_a_volume_is_filled_anew_by_what_has_ended_and_could_write_to_it() -> None:
    data = Mounted("emptydir:data", f"{PODS}/volumes/kubernetes.io~empty-dir/data", "/data")
    assert volumes.is_filled_anew(data, ["/srv", data.path])
    assert volumes.is_filled_anew(data, [f"{PODS}/volume-subpaths/data/fetch/0"])
    assert not volumes.is_filled_anew(data, ["/srv", f"{PODS}/volume-subpaths/data-2/fetch/0"])


USERS = st.sampled_from(["one", "two", "three"])
STEPS = st.lists(
    st.one_of(
        st.builds(
            lambda user, volume: Use(volume, f"/{volume}", user),
            USERS,
            st.sampled_from(["a", "b"]),
        ),
        st.builds(Filled, st.sampled_from(["a", "b"])),
        st.builds(LetGo, USERS),
    )
)


def is_sound(steps: list[Step]) -> bool:
    """As they are written: a volume is filled by somebody who uses it."""
    used: set[str] = set()
    for step in steps:
        if isinstance(step, Filled) and step.volume not in used:
            return False
        used |= {step.volume} if isinstance(step, Use) else set()
    return True


@given(STEPS.filter(is_sound), USERS)
def test_what_one_container_relies_on_alone_is_needed_by_no_other(
    steps: list[Step], user: str
) -> None:
    holding = volumes.holding(steps)
    after = volumes.holding([*steps, LetGo(user)])
    alone = set(holding.only(user))
    assert {f"/{name}" for name, ids in after.users.items() if ids}.isdisjoint(alone)
    assert after.only(user) == []
    assert holding.is_needed_without(user) == any(after.users.values())
    assert after.filled == {name for name in holding.filled if after.users[name]}
