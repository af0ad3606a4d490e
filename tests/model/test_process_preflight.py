from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.model.process_preflight import (
    ContainerFacts,
    DeletedFile,
    Descriptor,
    ProcessFacts,
    refusals,
    torn_apart,
    watch_options,
)


def mount(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "options": ["rbind", "rw", *options]}


def container(*mountpoints: str, options: str = "rprivate") -> ContainerFacts:
    mounts = (mount("/data", options), mount("/data/sub"), {"destination": "/proc"})
    return ContainerFacts("main", mounts, ("/", "/proc", "/data", "/data/sub", *mountpoints))


def holds(link: str, **fields: Any) -> dict[str, Any]:
    """Facts of a process that has such a descriptor, twice."""
    return {"descriptors": (Descriptor(link, **fields),) * 2}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"has_io_uring": True}, "has an io_uring, which CRIU cannot dump; deny it"),
        ({"tracer_pid": 99}, "is traced by process 99; detach the debugger"),
        ({"unix_peers": ("/run/x",)}, "over the unix socket /run/x, whose other end is not"),
        ({"stopped_on_cgroup_v1": True}, "is stopped by a signal, and so CRIU would wait"),
        ({"has_secret_memory": True}, "has secret memory (memfd_secret), which nobody else can"),
        ({"namespaces": ("user",)}, "is in a user namespace of its own, which would not come"),
        (holds("anon_inode:[perf_event]"), "has a descriptor of perf_event, which CRIU cannot"),
        (holds("anon_inode:seccomp notify"), "has a descriptor of seccomp notify, which CRIU"),
        (holds("anon_inode:[new]"), "has a descriptor of new, which CRIU cannot dump; close it"),
        (holds("socket:[1]", protocol="MPTCPv6"), "has an MPTCP socket, which CRIU cannot dump; "),
        (holds("socket:[1]", protocol="AF_VSOCK"), "has a socket of AF_VSOCK, which CRIU cannot"),
        (holds("pipe:[1]", is_packet_pipe=True), "has a pipe in packet mode (O_DIRECT), which"),
        (holds("/f", is_path_alone=True), "has /f, a fifo or a socket, open with O_PATH, which"),
        (holds("/q", is_elsewhere=True), "has /q open, which is on no mount of its container"),
        (
            {"displaced_sockets": (("/a", "/b"),)},
            "has the unix socket /b, which was bound as /a and",
        ),
        ({"is_32_bit": True}, "is a 32-bit program, which cannot be moved; end it"),
        ({"has_own_timer": True}, "has a timer that signals its first thread (SIGEV_THREAD_ID)"),
        ({"shared": ("memory (CLONE_VM)",)}, "shares memory (CLONE_VM) with its parent, which"),
        ({"nameless_watches": (5,)}, "watches inode 5 (inotify), to which no name"),
        (
            {"apart": ((9, "descriptors"),)},
            "has a thread, 9, with descriptors of its own (unshare)",
        ),
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


def test_a_deleted_file_that_two_containers_have_is_named_if_one_writes_to_it() -> None:
    read, written = (DeletedFile(1, 2, "/data/x", is_written) for is_written in (False, True))
    other = written._replace(inode=3)
    assert torn_apart({"one": {written, other}, "two": set()}) == []
    assert torn_apart({"one": {read}, "two": {read}}) == []
    assert torn_apart({"one": {written}, "two": {other}}) == []
    (reason,) = torn_apart({"one": {read}, "two": {written, other}})
    assert reason.startswith("/data/x was deleted, and is open in the containers one and two")


def test_sysv_memory_is_for_one_container() -> None:
    one, two = (DeletedFile(1, inode, "/SYSV00001234", is_written=True) for inode in (2, 3))
    assert torn_apart({"one": {one, two}, "two": set()}) == []
    (reason,) = torn_apart({"one": {one}, "two": {two}})
    assert reason.startswith("containers one and two have attached SysV shared memory")


@pytest.mark.parametrize(
    "link", ["anon_inode:[eventfd]", "anon_inode:inotify", "anon_inode:bpf-map", "socket:[1]"]
)
def test_what_criu_dumps_is_not_refused(link: str) -> None:
    process = ProcessFacts(7, "main", descriptors=(Descriptor(link),))
    assert refusals([container()], [process]) == []


def test_what_the_driver_closes_is_not_refused() -> None:
    held = (Descriptor("anon_inode:[new]"), Descriptor("/q", is_elsewhere=True))
    assert refusals([], [ProcessFacts(7, "main", descriptors=held, uses_gpus=True)]) == []


def test_more_pipes_than_criu_takes_are_refused_for_each_container() -> None:
    def process(pid: int, name: str, numbers: range) -> ProcessFacts:
        pipes = [Descriptor(f"pipe:[{number}]", is_read=True) for number in numbers]
        pipes += [Descriptor(f"pipe:[{number}]") for number in range(5000)]
        return ProcessFacts(pid, name, descriptors=tuple(pipes))

    few = [process(1, "main", range(1000)), process(2, "main", range(1024))]
    few.append(process(3, "other", range(1024)))
    assert refusals([], few) == []
    [told] = refusals([], [*few, process(4, "main", range(1020, 1030))])
    assert told.startswith("process 2 in container main has 1024 pipes to read from, of 1030 in ")
