"""libnvidia-ml's facts about cards, by ctypes. Loaded only in a worker, as libcuda is.

Source: nvml.h of CUDA 12.8 (nvmlMemory_t, nvmlProcessInfo_t of version 3).
"""

from __future__ import annotations

import ctypes
from typing import Any

from grit_runtime.errors import FailedPreconditionError

_INSUFFICIENT_SIZE = 7
_NOT_SUPPORTED = 3
_TEXT_BYTES = 96
_NOT_AVAILABLE = (1 << 64) - 1


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_uint64),
        ("free", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
    )


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint32),
        ("used", ctypes.c_uint64),
        ("gpu_instance", ctypes.c_uint32),
        ("compute_instance", ctypes.c_uint32),
    )


def load(path: str) -> ctypes.CDLL:
    """The library at *path*, initialized; FailedPreconditionError if there is no driver."""
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise FailedPreconditionError(f"libnvidia-ml {path} cannot be loaded: {error}") from None
    _check(library, "nvmlInit_v2")
    return library


def facts(library: ctypes.CDLL) -> dict[str, Any]:
    """``{"driver": VERSION, "cards": [{uuid, model, minor, ..._bytes, mig, ..., processes}]}``.

    *processes* is a list of ``[pid, used_bytes]``, pids as this pid namespace has them.
    """
    count = ctypes.c_uint(0)
    _check(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    driver = _text(library, "nvmlSystemGetDriverVersion")
    return {"driver": driver, "cards": [_card(library, n) for n in range(count.value)]}


def _card(library: ctypes.CDLL, index: int) -> dict[str, Any]:
    device = ctypes.c_void_p()
    _check(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    minor, memory = ctypes.c_uint(0), _Memory()
    _check(library, "nvmlDeviceGetMinorNumber", device, ctypes.byref(minor))
    _check(library, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    mode, pending = ctypes.c_uint(0), ctypes.c_uint(0)
    # Cards without MIG return "not supported".
    library.nvmlDeviceGetMigMode(device, ctypes.byref(mode), ctypes.byref(pending))
    persistence = ctypes.c_uint(0)
    library.nvmlDeviceGetPersistenceMode(device, ctypes.byref(persistence))
    return {
        "uuid": _text(library, "nvmlDeviceGetUUID", device),
        "model": _text(library, "nvmlDeviceGetName", device),
        "minor": minor.value,
        "total_bytes": memory.total,
        "free_bytes": memory.free,
        "mig": bool(mode.value),
        "persistent": bool(persistence.value),
        "processes": _processes(library, device),
    }


def _processes(library: ctypes.CDLL, device: ctypes.c_void_p) -> list[list[int]]:
    count = ctypes.c_uint(0)
    table = (_Process * 0)()
    function = library.nvmlDeviceGetComputeRunningProcesses_v3
    # Processes come and go between the call that counts them and the one that lists them.
    while (code := function(device, ctypes.byref(count), table)) == _INSUFFICIENT_SIZE:
        count = ctypes.c_uint(count.value + 8)
        table = (_Process * count.value)()
    if code == _NOT_SUPPORTED:
        return []
    if code != 0:
        raise _error(library, "nvmlDeviceGetComputeRunningProcesses_v3", code)
    listed = table[: count.value]
    return [[p.pid, 0 if p.used == _NOT_AVAILABLE else p.used] for p in listed]


def _text(library: ctypes.CDLL, function: str, *leading: Any) -> str:
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    _check(library, function, *leading, buffer, ctypes.c_uint(_TEXT_BYTES))
    return buffer.value.decode(errors="replace")


def _check(library: ctypes.CDLL, function: str, *arguments: Any) -> None:
    code = library[function](*arguments)
    if code != 0:
        raise _error(library, function, code)


def _error(library: ctypes.CDLL, function: str, code: int) -> FailedPreconditionError:
    library.nvmlErrorString.restype = ctypes.c_char_p
    text = library.nvmlErrorString(code).decode(errors="replace")
    return FailedPreconditionError(f"{function}: {text} ({code})")
