"""Files of a dump that must be others in another pod, and timers that CRIU would disarm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.model import fit_to_pod
from grit_runtime.proto import criu_pb2 as criu

TOKEN = "/run/secrets/token"  # noqa: S105  a place
OLD, NEW = "..2026_11_22_04_10_00.123", "..2026_11_25_07_14_03.4567"
PROCS = {"/proc"}
U64 = st.integers(0, 2**63)


def reg(name: str) -> criu.file_entry:
    entry = criu.reg_file_entry(id=1, flags=0, pos=3, name=name.encode(), size=9, mode=0o100644)
    return criu.file_entry(type=1, id=1, reg=entry)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{TOKEN}/{OLD}/token", f"{TOKEN}/{NEW}/token"),
        (f"{TOKEN}/{OLD}/deep/er", f"{TOKEN}/{NEW}/deep/er"),
        (f"{TOKEN}/{OLD}", f"{TOKEN}/{NEW}"),
        ("/etc/hosts", "/etc/hosts"),
    ],
)
def test_the_new_pods_own_file_is_opened_at_any_length(name: str, expected: str) -> None:
    before = reg(name)
    fitted = fit_to_pod.adapt_open_files(before, {TOKEN: NEW, "/data": NEW}, PROCS, {})
    assert fitted is not None
    assert fitted.reg.name == expected.encode()
    assert not fitted.reg.HasField("size")
    fitted.reg.name, fitted.reg.size = name.encode(), 9
    assert fitted == before == reg(name)


@pytest.mark.parametrize(
    "name",
    [
        f"{TOKEN}/token",
        f"{TOKEN}/..data/token",
        f"{TOKEN}/{OLD}x/token",
        f"/elsewhere/{OLD}/token",
        f"{TOKEN}/sub/{OLD}/token",
        TOKEN,
        "/",
        "/etc/hosts.allow",
    ],
)
def test_another_file_stays_what_it_was(name: str) -> None:
    assert fit_to_pod.adapt_open_files(reg(name), {TOKEN: NEW}, PROCS, {}) is None


@given(U64, st.sampled_from([0, 1]), U64, U64, U64, U64)
def test_only_a_timer_that_would_be_disarmed_is_given_its_interval(
    ticks: int, flags: int, vsec: int, vnsec: int, isec: int, insec: int
) -> None:
    timer = criu.timerfd_entry(
        id=1,
        flags=0,
        clockid=1,
        ticks=ticks,
        settime_flags=flags,
        vsec=vsec,
        vnsec=vnsec,
        isec=isec,
        insec=insec,
    )
    fitted = fit_to_pod.adapt_open_files(criu.file_entry(type=11, id=1, tfd=timer), {}, PROCS, {})
    had_expired = ticks and not (vsec or vnsec)
    if had_expired and not flags and (isec or insec):
        assert fitted is not None
        assert (fitted.tfd.vsec, fitted.tfd.vnsec) == (isec, insec)
        assert (fitted.tfd.ticks, fitted.tfd.isec, fitted.tfd.insec) == (ticks, isec, insec)
    else:
        assert fitted is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/proc/1/\x10", "/proc/1"),
        ("/proc/17/", "/proc/17"),
        ("/proc/1/fd", None),
        ("/proc/1/task/1", None),
        ("/proc/1", None),
        ("/proc/sys/kernel", None),
        ("/data/1/x", None),
        ("/other/proc/1/x", None),
    ],
)
def test_what_lay_behind_the_name_of_a_process_is_taken_off(
    name: str, expected: str | None
) -> None:
    entry = reg(name)
    entry.reg.mode = 0o040555
    fitted = fit_to_pod.adapt_open_files(entry, {}, PROCS, {})
    assert (fitted.reg.name.decode() if fitted else None) == expected
    assert fit_to_pod.adapt_open_files(reg(name), {}, PROCS, {}) is None  # no directory


def inet(proto: int = 6, state: int = 7, dst_port: int = 80) -> criu.file_entry:
    entry = criu.inet_sk_entry(id=1, ino=2, family=2, type=1, src_port=9)
    entry.proto, entry.state, entry.dst_port = proto, state, dst_port
    return criu.file_entry(type=4, id=1, isk=entry)


def test_a_socket_whose_connection_is_over_has_no_other_end() -> None:
    fitted = fit_to_pod.adapt_open_files(inet(), {}, PROCS, {})
    assert fitted == inet(dst_port=0)
    for other in (inet(state=1), inet(state=8), inet(proto=17), inet(dst_port=0)):
        assert fit_to_pod.adapt_open_files(other, {}, PROCS, {}) is None
