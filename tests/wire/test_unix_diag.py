"""The kernel's own answer, and answers that no kernel gives."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.wire import unix_diag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def answer() -> list[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as diag:
        diag.send(unix_diag.request())
        datagrams = [diag.recv(1 << 16)]
        while not unix_diag.parse(datagrams[-1])[1]:
            datagrams.append(diag.recv(1 << 16))
    return datagrams


def test_both_ends_of_a_connection_know_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.connect(path)
        with listener.accept()[0] as server:
            listed = {s.inode: s for some in answer() for s in unix_diag.parse(some)[0]}
            here, there = (os.fstat(end.fileno()).st_ino for end in (client, server))
    assert listed[here].peer == there
    assert listed[there].peer == here
    assert listed[there].name == path
    assert listed[here].name == ""


def test_an_abstract_name_is_shown_as_ss_does() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0grit-{os.getpid()}")
        names = {one.name for some in answer() for one in unix_diag.parse(some)[0]}
    assert f"@grit-{os.getpid()}" in names


def test_an_error_is_told() -> None:
    with pytest.raises(ValueError, match="does not list unix sockets"):
        unix_diag.parse(b"\x14\0\0\0\2\0\0\0" + bytes(12))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        unix_diag.parse(data)


@cache
def recorded() -> bytes:
    """The kernel's answer at one time: it has another whenever sockets come and go."""
    return answer()[0][:2000]


@given(st.data())
def test_a_damaged_answer_is_an_answer_or_a_value_error(data: st.DataObject) -> None:
    whole = bytearray(recorded())
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        unix_diag.parse(bytes(whole))
