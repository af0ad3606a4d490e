"""Finding the system calls that a seccomp filter may permit, for any arguments. Pure.

A filter is a loop-free classic BPF program over struct seccomp_data. It is run here for one
architecture and for many system call numbers at once: arguments are unknown, so a test of one goes
both ways; a test of the number splits the set. A call whose result is unknown counts as permitted.

Spec: linux kernel/seccomp.c seccomp_check_filter and seccomp_run_filters, include/uapi/linux/
filter.h and seccomp.h.
"""

from __future__ import annotations

import operator
import struct
from bisect import bisect_left, bisect_right

from grit_runtime.errors import SeccompError
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_STEPS = 200_000  # libseccomp's default profile takes one for each of its 1300 instructions

_INSTRUCTION = struct.Struct("<HBBI")
_MAX_BYTES = 4096 * _INSTRUCTION.size  # BPF_MAXINSNS
_DATA_BYTES = 64
_CELLS = 16
_LOAD, _JUMP, _RET_A = 0x20, 0x05, 0x16
_JMP, _RET, _BY_X = 0x05, 0x06, 0x08
_JEQ, _JGT, _JGE, _JSET, _NEG = 0x10, 0x20, 0x30, 0x40, 0x80
_SUB, _TAX = 0x10, 0x07
_OPERATIONS = {
    0x00: operator.add,
    _SUB: operator.sub,
    0x20: operator.mul,
    0x40: operator.or_,
    0x50: operator.and_,
    0xA0: operator.xor,
}
_USES_CELL = frozenset({0x02, 0x03, 0x60, 0x61})
_ALU = frozenset(
    0x04 | operation << 4 | by for operation in (0, 1, 2, 3, 4, 5, 6, 7, 10) for by in (0, 8)
)
_JUMPS = frozenset({0x15, 0x1D, 0x25, 0x2D, 0x35, 0x3D, 0x45, 0x4D})
_U32 = (1 << 32) - 1
_ACTION = 0xFFFF0000
# USER_NOTIF, TRACE, LOG and ALLOW: the supervisor or tracer may allow the call.
_PERMISSIVE = frozenset({0x7FC00000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000})

# A register: a number, or one of these.
_UNKNOWN = -1
_NUMBER = -2  # the system call's


# What may find the number in A and go on for the whole set: loads, and jumps by a constant.
_WHOLE = frozenset({0x00, 0x20, 0x60, 0x80, 0x01, 0x61, 0x81, 0x05, 0x15, 0x25, 0x35, 0x06})


_CODES = _WHOLE | {_RET_A} | _USES_CELL | _ALU | _JUMPS | {_TAX, 0x84, 0x87}


class Instruction(NamedTuple):
    """struct sock_filter."""

    code: int
    jt: int
    jf: int
    k: int


class _State(NamedTuple):
    """The registers and memory cells that a set of system calls comes to an instruction with."""

    a: int
    x: int
    cells: tuple[int, ...]


class _Calls(NamedTuple):
    """The system calls asked for, ascending; a set of them is a mask with bits in this order."""

    numbers: tuple[int, ...]
    bits: dict[int, int]


def permitted(program: bytes, *, arch: int, numbers: Iterable[int]) -> set[int]:
    """Those of *numbers* that the filter may let through on the AUDIT_ARCH *arch*.

    PrivilegeError for a program that the kernel would not take or that is too branched to follow.
    """
    code = _decode(program)
    ordered = tuple(sorted(numbers))
    calls = _Calls(ordered, {number: 1 << bit for bit, number in enumerate(ordered)})
    waiting: list[dict[_State, int]] = [{} for _ in code]
    waiting[0][_State(0, 0, (0,) * 16)] = (1 << len(ordered)) - 1
    passed = steps = 0
    for pc, instruction in enumerate(code):
        for state, mask in _split(instruction, waiting[pc], calls):
            steps += 1
            if steps > MAX_STEPS:
                raise SeccompError(f"a seccomp filter takes more than {MAX_STEPS} steps to follow")
            if instruction.code & 7 == _RET:
                passed |= mask if _is_permissive(instruction, state) else 0
                continue
            for offset, after, part in _flow(instruction, state, mask, calls, arch):
                target = pc + 1 + offset
                if target >= len(code):
                    raise SeccompError(f"seccomp filter: instruction {pc} leads out of it")
                waiting[target][after] = waiting[target].get(after, 0) | part
        waiting[pc].clear()
    return {number for number, bit in calls.bits.items() if passed & bit}


def _decode(program: bytes) -> list[Instruction]:
    if not program or len(program) % _INSTRUCTION.size or len(program) > _MAX_BYTES:
        raise SeccompError(
            f"seccomp filter: {len(program)} bytes, expected 1 to {_MAX_BYTES // 8} instructions "
            "of 8"
        )
    code = [Instruction(*fields) for fields in _INSTRUCTION.iter_unpack(program)]
    for pc, instruction in enumerate(code):
        is_datum = instruction.k % 4 == 0 and instruction.k < _DATA_BYTES
        is_cell = instruction.k < _CELLS
        if (
            instruction.code not in _CODES
            or (instruction.code == _LOAD and not is_datum)
            or (instruction.code in _USES_CELL and not is_cell)
        ):
            raise SeccompError(f"seccomp filter: instruction {pc} is none that the kernel takes")
    return code


def _split(
    instruction: Instruction, waiting: dict[_State, int], calls: _Calls
) -> Iterator[tuple[_State, int]]:
    """The states at an instruction; with the number itself in A where it can't stay open."""
    for state, mask in waiting.items():
        if state.a != _NUMBER or instruction.code in _WHOLE:
            yield state, mask
        else:
            for number, bit in calls.bits.items():
                if mask & bit:
                    yield state._replace(a=number), bit


def _flow(
    instruction: Instruction, state: _State, mask: int, calls: _Calls, arch: int
) -> Iterator[tuple[int, _State, int]]:
    """How far each part of the set jumps, and with what state."""
    code, jt, jf, k = instruction
    if code == _JUMP:
        yield k, state, mask
    elif code & 7 == _JMP:
        yes, no = _compared(code & 0xF0, state.a, state.x if code & _BY_X else k, mask, calls)
        if yes:
            yield jt, state, yes
        if no:
            yield jf, state, no
    else:
        yield 0, _assigned(instruction, state, arch), mask


def _compared(operation: int, a: int, value: int, mask: int, calls: _Calls) -> tuple[int, int]:
    """The parts of *mask* for which the test holds and does not; unknown values are in both."""
    if a == _NUMBER:
        above = -1 << (bisect_right if operation == _JGT else bisect_left)(calls.numbers, value)
        chosen = calls.bits.get(value, 0) if operation == _JEQ else above
        return mask & chosen, mask & ~chosen
    if _UNKNOWN in {a, value}:
        return mask, mask
    holds = {_JEQ: a == value, _JGT: a > value, _JGE: a >= value, _JSET: bool(a & value)}
    return (mask, 0) if holds[operation] else (0, mask)


def _assigned(instruction: Instruction, state: _State, arch: int) -> _State:
    code, _, _, k = instruction
    kind = code & 7
    if kind in {0x00, 0x01}:  # ld, ldx
        value = _loaded(code & 0xE0, k, state.cells, arch)
        return state._replace(x=value) if kind else state._replace(a=value)
    if kind in {0x02, 0x03}:  # st, stx
        value = state.a if kind == 0x02 else state.x
        return state._replace(cells=(*state.cells[:k], value, *state.cells[k + 1 :]))
    if kind == 0x04:
        return state._replace(a=_computed(code & 0xF0, state.a, state.x if code & _BY_X else k))
    return state._replace(x=state.a) if code == _TAX else state._replace(a=state.x)


def _loaded(mode: int, k: int, cells: tuple[int, ...], arch: int) -> int:
    if mode == 0x20:  # of struct seccomp_data: number, architecture, instruction pointer, arguments
        return {0: _NUMBER, 4: arch}.get(k, _UNKNOWN)
    if mode == 0x60:
        return cells[k]
    return _DATA_BYTES if mode == 0x80 else k


def _computed(operation: int, a: int, b: int) -> int:
    # Division and shifts are unknown: the kernel may refuse or mask the operand.
    if operation == _NEG:
        a, b, operation = 0, a, _SUB
    if operation not in _OPERATIONS or _UNKNOWN in {a, b}:
        return _UNKNOWN
    return int(_OPERATIONS[operation](a, b)) & _U32


def _is_permissive(instruction: Instruction, state: _State) -> bool:
    value = state.a if instruction.code == _RET_A else instruction.k
    return value < 0 or value & _ACTION in _PERMISSIVE
