from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.model.dump_check import ContainerFacts, ProcessFacts, refusals, watch_options


def mount(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "options": ["rbind", "rw", *options]}


def container(*mountpoints: str, options: str = "rprivate") -> ContainerFacts:
    mounts = (mount("/data", options), mount("/data/sub"), {"destination": "/proc"})
    return ContainerFacts("main", mounts, ("/", "/proc", "/data", "/data/sub", *mountpoints))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"has_io_uring": True}, "has an io_uring, which CRIU cannot dump; disable it"),
        ({"tracer_pid": 99}, "is traced by process 99; detach the debugger"),
        ({"unix_peers": ("/run/x",)}, "over the unix socket /run/x, whose other end is not"),
        ({"cannot_stir": True}, "is stopped by a signal, and so CRIU would wait"),
        ({"nameless_watches": (5,)}, "watches inode 5 (inotify), to which no name"),
    ],
)
def test_a_process_that_could_not_be_dumped_is_refused(facts: dict[str, Any], reason: str) -> None:
    [told] = refusals([container()], [ProcessFacts(7, "main"), ProcessFacts(8, "main", **facts)])
    assert told.startswith("process 8 in container main ")
    assert reason in told


def test_all_reasons_are_told_at_once() -> None:
    process = ProcessFacts(7, "main", has_io_uring=True, tracer_pid=9, unix_peers=("/a", "/b"))
    assert len(refusals([container(options="rshared")], [process])) == 5


def test_what_the_node_mounts_later_is_refused_where_it_reaches_the_container() -> None:
    assert refusals([container(options="rslave")], []) == []
    assert refusals([container("/data/late", options="rprivate")], []) == []
    [told] = refusals([container("/data/late", "/database", options="rslave")], [])
    assert told.startswith("container main: /data/late was mounted by the node")


@given(st.lists(st.text(max_size=20).map(lambda name: f"/{name}")))
def test_a_watched_name_is_never_more_than_one_word_of_the_file(paths: list[str]) -> None:
    for line in watch_options(paths):
        option, path = line.split(" ")
        assert option == "irmap-scan-path"
        assert path.isascii()
        assert path.isprintable()
        assert not set(path) & set("#\"'\\")
        assert any(f"{one}/".startswith(f"{path}/") or one == path for one in paths)


def test_a_name_that_is_not_one_word_is_looked_for_in_the_directory_above() -> None:
    assert watch_options(["/app/my dir/x", "/app/b", "/ "]) == (
        "irmap-scan-path /app",
        "irmap-scan-path /app/b",
    )
