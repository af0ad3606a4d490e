"""What a filter may let through: filters that runc made, and an interpreter's second opinion."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import PrivilegeError
from grit_runtime.model.seccomp_filter import MAX_STEPS, permitted
from grit_runtime.model.syscall_numbers import NUMBERS
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image

GOLDENS = Path(__file__).parent.parent / "goldens"
X86_64 = 0xC000003E
ALLOW, LOG, TRACE, NOTIFY = 0x7FFF0000, 0x7FFC0000, 0x7FF00000, 0x7FC00000
KILL_PROCESS, KILL, TRAP, ERRNO = 0x80000000, 0, 0x30000, 0x50001
LD, LDX_IMM, JEQ, JGT, JGE, JSET, JA, RET, RET_A = 0x20, 0x01, 0x15, 0x25, 0x35, 0x45, 5, 6, 0x16
NUMBER, ARCH, ARGUMENT = 0, 4, 16

Line = tuple[int, int, int, int]


def assembled(*lines: Line) -> bytes:
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def ld(offset: int) -> Line:
    return (LD, 0, 0, offset)


def ret(value: int) -> Line:
    return (RET, 0, 0, value)


@pytest.mark.parametrize("container", ["criu-4.2/root", "criu-4.2/user", "criu-4.1/root"])
def test_a_filter_of_runc_lets_through_exactly_what_its_profile_allows_for_some_arguments(
    container: str,
) -> None:
    profile = json.loads((GOLDENS / container / "config.json").read_text())["linux"]["seccomp"]
    data = (GOLDENS / container / "seccomp.img").read_bytes()
    image = criu_image.entry(criu_image.parse(data, name="seccomp.img"), criu.seccomp_entry)
    allowed = {
        NUMBERS[name][0]
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW"
        for name in rule["names"]
        if name in NUMBERS
    }
    found = permitted(image.seccomp_filters[0].filter, arch=X86_64, numbers=range(512))
    assert found == allowed - {None}
    assert len(found) > 300


@pytest.mark.parametrize("action", [ALLOW, ALLOW | 5, LOG, TRACE | 1, NOTIFY])
def test_an_answer_that_someone_may_turn_into_yes_lets_through(action: int) -> None:
    assert permitted(assembled(ret(action)), arch=X86_64, numbers=[1, 2]) == {1, 2}


@pytest.mark.parametrize("action", [KILL_PROCESS, KILL, TRAP, ERRNO, 0x12340000])
def test_an_answer_that_ends_the_call_does_not(action: int) -> None:
    assert permitted(assembled(ret(action)), arch=X86_64, numbers=[1, 2]) == set()


@pytest.mark.parametrize(
    ("jump", "value", "expected"),
    [
        (JEQ, 5, {5}),
        (JEQ, 6, set()),
        (JGT, 5, {9}),
        (JGE, 5, {5, 9}),
        (JGE, 6, {9}),
        (JSET, 4, {5}),
        (JSET, 1, {1, 5, 9}),
    ],
)
def test_a_test_of_the_number_splits_the_set(jump: int, value: int, expected: set[int]) -> None:
    program = assembled(ld(NUMBER), (jump, 1, 0, value), ret(ERRNO), ret(ALLOW))
    assert permitted(program, arch=X86_64, numbers=[9, 1, 5]) == expected


def test_a_test_of_an_argument_goes_both_ways() -> None:
    program = assembled(ld(ARGUMENT), (JEQ, 0, 1, 7), ret(ALLOW), ret(ERRNO))
    assert permitted(program, arch=X86_64, numbers=[1]) == {1}


def test_a_test_of_the_architecture_goes_one_way() -> None:
    program = assembled(ld(ARCH), (JEQ, 1, 0, X86_64), ret(ALLOW), ret(ERRNO))
    assert permitted(program, arch=X86_64, numbers=[1]) == set()
    assert permitted(program, arch=0x40000003, numbers=[1]) == {1}


def test_the_number_is_followed_through_arithmetic_and_memory() -> None:
    program = assembled(
        ld(NUMBER),
        (0x54, 0, 0, 0xFF),  # and #255
        (0x07, 0, 0, 0),  # tax
        (0x03, 0, 0, 3),  # stx M[3]
        (0x00, 0, 0, 2),  # ld #2
        (0x0C, 0, 0, 0),  # add x
        (0x61, 0, 0, 3),  # ldx M[3]
        (0x1C, 0, 0, 0),  # sub x: 2 again
        (JEQ, 0, 3, 2),
        (0x87, 0, 0, 0),  # txa
        (JEQ, 0, 1, 5),
        ret(ALLOW),
        ret(ERRNO),
    )
    assert permitted(program, arch=X86_64, numbers=[5, 6, 0x105]) == {5, 0x105}


def test_a_returned_register_is_judged_by_its_value_if_that_is_known() -> None:
    known = assembled((0x00, 0, 0, ERRNO), (RET_A, 0, 0, 0))
    unknown = assembled(ld(ARGUMENT), (RET_A, 0, 0, 0))
    assert permitted(known, arch=X86_64, numbers=[1]) == set()
    assert permitted(unknown, arch=X86_64, numbers=[1]) == {1}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"", "0 bytes"),
        (b"\0" * 7, "7 bytes"),
        (assembled(*[ret(0)] * 4097), "32776 bytes, expected 1 to 4096 instructions"),
        (assembled((0x28, 0, 0, 0), ret(0)), "instruction 0 is none"),
        (assembled(ret(0), (0x94, 0, 0, 3)), "instruction 1 is none"),
        (assembled(ld(2), ret(0)), "instruction 0 is none"),
        (assembled(ld(64), ret(0)), "instruction 0 is none"),
        (assembled((0x60, 0, 0, 16), ret(0)), "instruction 0 is none"),
        (assembled(ld(0)), "instruction 0 leads out of it"),
        (assembled((JA, 0, 0, 0xFFFFFFFF), ret(0)), "instruction 0 leads out of it"),
        (assembled(ld(0), (JEQ, 9, 0, 1), ret(0)), "instruction 1 leads out of it"),
    ],
)
def test_a_program_that_the_kernel_would_not_take_is_refused(program: bytes, reason: str) -> None:
    with pytest.raises(PrivilegeError, match=f"seccomp filter: {reason}"):
        permitted(program, arch=X86_64, numbers=[1])


def test_a_program_that_branches_without_end_is_refused() -> None:
    doubling = [(0x04, 0, 0, 0)]  # add #0: each bit of what follows is another state
    for bit in range(18):
        doubling += [(LDX_IMM, 0, 0, 0), (0x00, 0, 0, 1 << bit), (0x02, 0, 0, bit % 16)]
        doubling += [ld(ARGUMENT), (JEQ, 1, 0, bit), (0x60, 0, 0, 15), (0x02, 0, 0, bit % 15)]
    program = assembled(*doubling, ret(ERRNO))
    with pytest.raises(PrivilegeError, match=f"takes more than {MAX_STEPS} steps"):
        permitted(program, arch=X86_64, numbers=range(500))


PLAIN = [0x00, 0x01, 0x02, 0x03, 0x60, 0x61, 0x80, 0x81, 0x07, 0x87, 0x84, RET, RET_A, JA, LD, LD]
PLAIN += [JEQ, JEQ, JEQ, JGT, JGE, JSET, 0x1D, 0x2D, 0x3D, 0x4D]
PLAIN += [operation << 4 | 4 | by for operation in (0, 1, 2, 4, 5, 10) for by in (0, 8)]
INEXACT = [operation << 4 | 4 | by for operation in (3, 6, 7) for by in (0, 8)]
VALUES = st.sampled_from([0, 1, 2, 3, 5, 31, 255, ALLOW, ERRNO, X86_64, 0xFFFFFFFF])


@st.composite
def programs(draw: st.DrawFn, codes: list[int], offsets: list[int]) -> list[Line]:
    lines: list[Line] = []
    size = draw(st.integers(0, 14))
    for place in range(size):
        code = draw(st.sampled_from(codes))
        k = draw(VALUES)
        if code == LD:
            k = draw(st.sampled_from(offsets))
        elif code in {0x02, 0x03, 0x60, 0x61}:
            k %= 3
        elif code == JA:
            k %= size - place
        elif code in {0x34, 0x64, 0x74}:
            k = k % 31 + 1
        jumps = st.integers(0, size - place - 1)
        lines.append((code, draw(jumps), draw(jumps), k))
    return [*lines, (RET, 0, 0, draw(VALUES))]


@given(
    programs(PLAIN + INEXACT, [NUMBER, ARCH, 8, ARGUMENT, 60]),
    st.integers(0, 5),
    st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 14),
)
def test_what_the_kernel_would_let_through_is_never_missed(
    lines: list[Line], number: int, rest: tuple[int, ...]
) -> None:
    answer = interpreted(lines, (number, X86_64, *rest))
    found = permitted(assembled(*lines), arch=X86_64, numbers=range(6))
    if answer & 0xFFFF0000 in {ALLOW, LOG, TRACE, NOTIFY}:
        assert number in found


@given(programs(PLAIN, [NUMBER, ARCH]), st.integers(0, 5))
def test_a_program_that_looks_at_no_argument_is_judged_as_the_kernel_would(
    lines: list[Line], number: int
) -> None:
    answer = interpreted(lines, (number, X86_64, *[0] * 14))
    found = permitted(assembled(*lines), arch=X86_64, numbers=range(6))
    assert (number in found) == (answer & 0xFFFF0000 in {ALLOW, LOG, TRACE, NOTIFY})


@given(st.binary(max_size=80))
def test_any_bytes_are_judged_or_refused(program: bytes) -> None:
    try:
        found = permitted(program, arch=X86_64, numbers=range(4))
    except PrivilegeError:
        found = set()
    assert found <= set(range(4))


def interpreted(lines: list[Line], data: tuple[int, ...]) -> int:
    """The answer of a program to one call, by the book (Documentation/networking/filter.rst)."""
    a = x = pc = 0
    cells = [0] * 16
    while True:
        code, jt, jf, k = lines[pc]
        pc += 1
        operand = x if code & 8 else k
        match code & 7:
            case 6:
                return a if code == RET_A else k
            case 5 if code == JA:
                pc += k
            case 5:
                tests = {1: a == operand, 2: a > operand, 3: a >= operand, 4: a & operand != 0}
                pc += jt if tests[code >> 4] else jf
            case 0 | 1:
                value = {0x20: data[k // 4 % 16], 0x60: cells[k % 16], 0x80: 64, 0: k}[code & 0xE0]
                a, x = (a, value) if code & 7 else (value, x)
            case 2 | 3:
                cells[k] = x if code & 7 == 3 else a
            case 7:
                a, x = (x, x) if code == 0x87 else (a, a)
            case _:
                if code >> 4 == 3 and operand == 0:
                    return 0
                results = [a + operand, a - operand, a * operand, a // (operand or 1), a | operand]
                results += [a & operand, a << operand % 32, a >> operand % 32, -a, 0, a ^ operand]
                a = results[code >> 4] & 0xFFFFFFFF
