"""The handler in containerd's configuration."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.model import handlers

RUNTIMES = f"plugins.{handlers.CRI[3]}.containerd.runtimes"
RUNC = {"runtime_type": handlers.RUNTIME_TYPE, "options": {"SystemdCgroup": False}}


def effective(runtimes: dict[str, Any], default: str = "runc", **others: Any) -> dict[str, Any]:
    containerd = {"default_runtime_name": default, "runtimes": runtimes}
    return {"version": 3, "plugins": {handlers.CRI[3]: {"containerd": containerd}}, **others}


def grits(**base: Any) -> dict[str, Any]:
    table = {"runtime_type": handlers.RUNTIME_TYPE, **base}
    return handlers.table(handlers.Base("runc", table), runtime="/r", shim="/s")


def test_what_the_node_s_own_handler_says_is_taken_over() -> None:
    table = grits(
        snapshotter="native",
        base_runtime_spec="",
        sandboxer="podsandbox",
        pod_annotations=["a/*"],
        options={"SystemdCgroup": True, "BinaryName": "/opt/other", "Root": ""},
    )
    assert table == {
        "runtime_type": handlers.RUNTIME_TYPE,
        "runtime_path": "/s",
        "snapshotter": "native",
        "pod_annotations": ["a/*", "grit.dev/*"],
        "container_annotations": ["grit.dev/*"],
        "options": {"SystemdCgroup": True, "BinaryName": "/r"},
    }


def test_the_base_is_the_handler_that_pods_get_by_default() -> None:
    nvidia = {**RUNC, "options": {"BinaryName": "/usr/bin/nvidia-container-runtime"}}
    found = handlers.base(effective({"runc": RUNC, "nvidia": nvidia}, "nvidia"))
    assert (found.name, found.program) == ("nvidia", "/usr/bin/nvidia-container-runtime")
    assert handlers.base(effective({"runc": RUNC, "grit": RUNC}, "grit")).name == "runc"
    with pytest.raises(FailedPreconditionError, match=r"io\.containerd\.kata\.v2, expected"):
        handlers.base(effective({"kata": {"runtime_type": "io.containerd.kata.v2"}}, "kata"))


@given(st.dictionaries(st.text(min_size=1), st.text() | st.booleans() | st.lists(st.text())))
def test_tables_are_read_as_they_were_written(options: dict[str, Any]) -> None:
    table = {"runtime_type": "t", "options": options}
    read = tomllib.loads(handlers.text(2, {"a b": table}))
    assert read["plugins"][handlers.CRI[2]]["containerd"]["runtimes"]["a b"] == table


def test_anything_but_the_handler_is_a_difference() -> None:
    before = effective({"runc": RUNC}, debug={"level": "info"})
    table = grits()
    after = effective({"runc": RUNC, "grit": table}, debug={"level": "info"}, imports=["x"])
    assert handlers.differences(before, after, table) == []
    assert handlers.differences(before, effective({"grit": table}), table) == [
        "debug.level: 'info' would become nothing",
        f"{RUNTIMES}.runc.runtime_type: 'io.containerd.runc.v2' would become nothing",
    ]
    (missing,) = handlers.differences(before, before, {"runtime_path": "/s"})
    assert missing.endswith("runtimes.grit.runtime_path: nothing instead of '/s'")


def test_a_running_containerd_has_the_handler_as_it_is_wanted_or_has_not() -> None:
    told = {
        "runtimeType": handlers.RUNTIME_TYPE,
        "runtimePath": "/s",
        "PodAnnotations": ["grit.dev/*"],
        "ContainerAnnotations": ["grit.dev/*"],
        "options": {"BinaryName": "/r"},
        "snapshotter": "",
        "cniMaxConfNum": 0,
        "sandboxer": "podsandbox",
    }
    assert handlers.is_live(grits(), told)
    assert not handlers.is_live(grits(), {**told, "snapshotter": "native"})
    assert not handlers.is_live(grits(snapshotter="native"), told)
    assert not handlers.is_live(grits(options={"SystemdCgroup": True}), told)
