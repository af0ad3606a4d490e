"""Descriptors of this process, as /proc shows them."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager

from grit_runtime.host import procfs
from grit_runtime.tasks import descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from grit_runtime.model.process_preflight import Descriptor


def described(fd: int) -> Descriptor:
    me = os.getpid()
    links = {fd: procfs.open_links(me)[fd]}
    (found,) = descriptors.described(me, links, descriptors.mounts(me))
    return found


@contextmanager
def closing_pipe(flags: int) -> Iterator[tuple[int, int]]:
    ends = os.pipe2(flags)
    yield ends
    for fd in ends:
        os.close(fd)


def test_a_socket_is_told_by_its_protocol() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        assert described(udp.fileno()).protocol == "UDPv6"
    with socket.socket(socket.AF_UNIX) as unix:
        assert described(unix.fileno()).protocol.startswith("UNIX")


def test_a_pipe_is_told_by_its_end_and_its_mode() -> None:
    with open(os.devnull, "rb") as null, closing_pipe(0) as (reader, writer):
        assert described(reader).is_read
        assert not described(writer).is_read
        assert not described(reader).is_packet_pipe
        assert not described(null.fileno()).is_elsewhere
    with closing_pipe(os.O_DIRECT) as (reader, writer):
        assert described(writer).is_packet_pipe


def test_what_is_open_by_its_path_alone_is_told_where_it_is_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fds = [os.open(path, os.O_PATH) for path in (tmp_path / "fifo", tmp_path)]
    assert [described(fd).is_path_alone for fd in fds] == [True, False]
    for fd in fds:
        os.close(fd)


def test_memory_is_on_no_mount_and_no_matter() -> None:
    fd = os.memfd_create("memory")
    assert not described(fd).is_elsewhere
    os.close(fd)


def test_a_fifo_that_nobody_has_written_to_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    me = os.getpid()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert descriptors.hang_up_after_restore({me}) == {me: path}
    writer = os.open(path, os.O_WRONLY)
    assert descriptors.hang_up_after_restore({me}) == {}
    os.close(writer)
    assert descriptors.hang_up_after_restore({me}) == {}
    os.close(reader)
