"""The check of cgroup.img, on those of real dumps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grit_runtime.errors import PrivilegeError
from grit_runtime.model import cgroup_check
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDENS = Path(__file__).parent.parent / "goldens"


def golden(container: str = "criu-4.2/root") -> criu.cgroup_entry:
    data = (GOLDENS / container / "cgroup.img").read_bytes()
    return criu_image.entry(criu_image.parse(data, name="cgroup.img"), criu.cgroup_entry)


@pytest.mark.parametrize(
    "container",
    ["criu-4.2/root", "criu-4.2/user", "criu-4.2/tty", "criu-4.2/privileged", "criu-4.1/root"],
)
def test_the_cgroups_of_a_container_of_runc_stay_below_its_own(container: str) -> None:
    cgroup_check.check(golden(container), own_set=1)


def test_a_dump_without_cgroups_asks_for_none() -> None:
    cgroup_check.check(None, own_set=1)


def test_a_cgroup_below_the_containers_is_its_own_to_make() -> None:
    cgroup = golden()
    child = cgroup.controllers[0].dirs[0].children.add(dir_name=b"worker")
    child.properties.add(name=b"pids.max", value=b"5")
    cgroup.sets[0].ctls[9].path += b"/worker"
    cgroup_check.check(cgroup, own_set=1)


@pytest.mark.parametrize("prefix", [0, len("/grit-golden"), len("/grit-golden/root")])
def test_a_cgroup_namespace_begins_at_the_container_or_above(prefix: int) -> None:
    cgroup = golden()
    cgroup.sets[0].ctls[0].cgns_prefix = prefix
    cgroup_check.check(cgroup, own_set=1)


def test_the_set_that_criu_was_in_moves_no_task() -> None:
    cgroup = golden()
    cgroup.sets.add(id=1).ctls.add(name=b"cpu", path=b"/")
    cgroup_check.check(cgroup, own_set=1)


def directory(name: bytes) -> Callable[[criu.cgroup_entry], None]:
    def change(cgroup: criu.cgroup_entry) -> None:
        cgroup.controllers[0].dirs[0].dir_name = name

    return change


def child(name: bytes) -> Callable[[criu.cgroup_entry], None]:
    def change(cgroup: criu.cgroup_entry) -> None:
        cgroup.controllers[0].dirs[0].children.add(dir_name=b"a").children.add(dir_name=name)

    return change


def prop(name: bytes) -> Callable[[criu.cgroup_entry], None]:
    def change(cgroup: criu.cgroup_entry) -> None:
        cgroup.controllers[0].dirs[0].properties.add(name=name, value=b"1")

    return change


def grandchilds_prop(cgroup: criu.cgroup_entry) -> None:
    below = cgroup.controllers[0].dirs[0].children.add(dir_name=b"a")
    below.children.add(dir_name=b"b").properties.add(name=b"../x", value=b"1")


def member(path: bytes, prefix: int = 0) -> Callable[[criu.cgroup_entry], None]:
    def change(cgroup: criu.cgroup_entry) -> None:
        cgroup.sets[0].ctls[0].path = path
        cgroup.sets[0].ctls[0].cgns_prefix = prefix

    return change


def second_directory(cgroup: criu.cgroup_entry) -> None:
    cgroup.controllers[0].dirs.add(dir_name=b"system.slice")


def controller(name: bytes) -> Callable[[criu.cgroup_entry], None]:
    def change(cgroup: criu.cgroup_entry) -> None:
        cgroup.controllers[0].cnames[0] = name

    return change


def without_controller(cgroup: criu.cgroup_entry) -> None:
    del cgroup.controllers[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(directory(b"../../etc"), "directory '../../etc'", id="directory outside"),
        pytest.param(directory(b"a/../../b"), "directory 'a/../../b'", id="directory through .."),
        pytest.param(directory(b""), "directory ''", id="the hierarchy's own directory"),
        pytest.param(directory(b"/abs"), "directory '/abs'", id="absolute directory"),
        pytest.param(directory(b"a\xc3\xa9"), "directory 'a", id="bytes that are no characters"),
        pytest.param(directory(b"a" * 2049), "property 'pids.max'", id="directory overlong"),
        pytest.param(second_directory, "2 directories", id="second directory"),
        pytest.param(child(b".."), "directory '..' in grit-golden/root/a", id="child outside"),
        pytest.param(child(b"x/../.."), "directory 'x/../..'", id="child of several names"),
        pytest.param(child(b""), "directory ''", id="child without name"),
        pytest.param(child(b"a" * 2049), "directory 'aaa", id="child overlong"),
        pytest.param(prop(b"../../../etc/passwd"), "property '../../..", id="property outside"),
        pytest.param(prop(b"release_agent"), "property 'release_agent'", id="node-wide property"),
        pytest.param(
            grandchilds_prop, "property '../x' of grit-golden/root/a/b", id="deep property"
        ),
        pytest.param(member(b"/"), "a task in / of cgroup v2", id="task in the root"),
        pytest.param(member(b"/grit-golden"), "a task in /grit-golden of", id="task above"),
        pytest.param(
            member(b"/grit-golden/root-2"), "a task in /grit-golden/root-2", id="task beside"
        ),
        pytest.param(member(b"/grit-golden/root/../x"), "a task in", id="task through .."),
        pytest.param(member(b"/grit-golden/root", 5), "a task in", id="prefix within a name"),
        pytest.param(member(b"/grit-golden/root", 99), "a task in", id="prefix beyond the path"),
        pytest.param(member(b"/grit-golden/root/" + b"a" * 2049), "a task in", id="overlong"),
        pytest.param(controller(b"name=evil"), "controller 'name=evil'", id="hierarchy to mount"),
        pytest.param(controller(b"../x"), "controller '../x'", id="controller outside"),
        pytest.param(without_controller, "a task in /grit-golden/root of pids", id="no directory"),
    ],
)
def test_a_path_that_leaves_the_containers_cgroup_is_refused(
    change: Callable[[criu.cgroup_entry], None], reason: str
) -> None:
    cgroup = golden()
    change(cgroup)
    with pytest.raises(PrivilegeError) as caught:
        cgroup_check.check(cgroup, own_set=1)
    assert str(caught.value).startswith("cgroup.img: ")
    assert reason in str(caught.value)


def at_the_root_of_v2() -> criu.cgroup_entry:
    """A container that is in no cgroup of v2's, because v1 has all controllers."""
    cgroup = golden()
    for controller in cgroup.controllers:
        if controller.cnames == [b""]:
            controller.dirs[0].dir_name = b""
    for group in cgroup.sets:
        for member in group.ctls:
            if member.name == b"":
                member.path = b"/"
    return cgroup


def test_a_hierarchy_in_which_the_container_was_at_the_root_is_left_out() -> None:
    with pytest.raises(PrivilegeError, match="directory ''"):
        cgroup_check.check(at_the_root_of_v2(), own_set=1)
    fitted = cgroup_check.without_roots(at_the_root_of_v2())
    assert fitted is not None
    cgroup_check.check(fitted, own_set=1)
    assert [c.cnames for c in fitted.controllers] == [
        c.cnames for c in golden().controllers if c.cnames != [b""]
    ]
    assert b"" not in {member.name for group in fitted.sets for member in group.ctls}


def test_a_hierarchy_in_which_the_container_has_a_cgroup_is_not_left_out() -> None:
    assert cgroup_check.without_roots(golden()) is None
    cgroup = golden()
    del cgroup.controllers[0].dirs[:]
    assert cgroup_check.without_roots(cgroup) is None


def test_on_v2_the_tasks_go_to_the_new_pods_cgroup() -> None:
    old, new = b"kubepods/old/c1", b"kubepods/other/c2"
    dumped = criu.cgroup_entry()
    controller = dumped.controllers.add(cnames=[b""])
    controller.dirs.add(dir_name=old)
    dumped.controllers.add(cnames=[b"freezer"]).dirs.add(dir_name=old)
    tasks = dumped.sets.add(id=2)
    tasks.ctls.add(name=b"", path=b"/" + old, cgns_prefix=len(old) + 1)
    tasks.ctls.add(name=b"", path=b"/" + old + b"/below", cgns_prefix=len(old) + 1)
    tasks.ctls.add(name=b"freezer", path=b"/" + old)
    moved = cgroup_check.moved(dumped, "/" + new.decode())
    assert [c.dirs[0].dir_name for c in moved.controllers] == [new, old]
    assert [(m.path, m.cgns_prefix) for m in moved.sets[0].ctls] == [
        (b"/" + new, len(new) + 1),
        (b"/" + new + b"/below", len(new) + 1),
        (b"/" + old, 0),
    ]
    cgroup_check.check(moved, own_set=1)
