"""libcuda's checkpoint calls, by ctypes. Loaded only in a worker: a call can block for ever.

The argument structs changed their fields between CUDA 12.8 and 13.4 but kept 64 bytes and the
offsets used here, so one zero-filled layout is valid on every driver from 570 on. Source: cuda.h of
CUDA 12.8.90 to 13.5.37, "CUDA Checkpointing". None of the calls needs cuInit in the caller.
"""

from __future__ import annotations

import ctypes

from grit_runtime.errors import GpuError
from grit_runtime.startup.named import NamedTuple

# CUresult
SUCCESS = 0
NOT_READY = 600  # a lock timed out; the process runs on
NOT_SUPPORTED = 801

ERRORS = {
    1: "CUDA_ERROR_INVALID_VALUE",
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    3: "CUDA_ERROR_NOT_INITIALIZED",
    34: "CUDA_ERROR_STUB_LIBRARY",
    100: "CUDA_ERROR_NO_DEVICE",
    201: "CUDA_ERROR_INVALID_CONTEXT",
    304: "CUDA_ERROR_OPERATING_SYSTEM",
    401: "CUDA_ERROR_ILLEGAL_STATE",
    600: "CUDA_ERROR_NOT_READY",
    801: "CUDA_ERROR_NOT_SUPPORTED",
    999: "CUDA_ERROR_UNKNOWN",
}

# CUprocessState. From CUDA 13.4 on, 4 and 5 are operations under way; so is any higher value.
RUNNING, LOCKED, CHECKPOINTED, FAILED = range(4)
STATES = ("running", "locked", "checkpointed", "failed", "checkpointing", "restoring")

SYMBOLS = {
    "state": "cuCheckpointProcessGetState",
    "restore-tid": "cuCheckpointProcessGetRestoreThreadId",
    "lock": "cuCheckpointProcessLock",
    "checkpoint": "cuCheckpointProcessCheckpoint",
    "restore": "cuCheckpointProcessRestore",
    "unlock": "cuCheckpointProcessUnlock",
}


class Call(NamedTuple):
    """One call on one process. *pairs* maps GPU UUIDs, old to new, in a restore."""

    verb: str  # a key of SYMBOLS
    pid: int
    timeout_ms: int = 0
    pairs: tuple[tuple[str, str], ...] = ()


class Answer(NamedTuple):
    """CUresult, and the value of a query."""

    code: int
    value: int = 0


class Arguments(ctypes.Structure):
    """The arguments of all calls but lock; 64 bytes."""

    _fields_ = (
        ("pairs", ctypes.c_void_p),
        ("count", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("out", ctypes.c_void_p),
        ("reserved", ctypes.c_char * 40),
    )


class LockArguments(ctypes.Structure):
    """CUcheckpointLockArgs; 64 bytes."""

    _fields_ = (("timeout_ms", ctypes.c_uint32), ("reserved", ctypes.c_char * 60))


def load(path: str) -> ctypes.CDLL:
    """The library at *path*; FailedPreconditionError if it cannot checkpoint."""
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise GpuError(f"libcuda {path} cannot be loaded: {error}") from None
    for symbol in SYMBOLS.values():
        if not hasattr(library, symbol):
            raise GpuError(
                f"libcuda {path} lacks {symbol}: expected an NVIDIA driver of 570 or newer"
            )
    return library


def perform(library: ctypes.CDLL, call: Call) -> Answer:
    """Make one call. Blocks for as long as the driver needs, perhaps for ever."""
    function = library[SYMBOLS[call.verb]]
    if call.verb in ("state", "restore-tid"):
        value = ctypes.c_int(0)
        return Answer(function(ctypes.c_int(call.pid), ctypes.byref(value)), value.value)
    if call.verb == "lock":
        lock = LockArguments(timeout_ms=call.timeout_ms)
        return Answer(function(ctypes.c_int(call.pid), ctypes.byref(lock)))
    arguments = Arguments()
    uuids = b"".join(uuid_bytes(uuid) for pair in call.pairs for uuid in pair)
    table = ctypes.create_string_buffer(uuids, len(uuids)) if uuids else None
    if table is not None:
        arguments.pairs = ctypes.cast(table, ctypes.c_void_p)
        arguments.count = len(call.pairs)
    return Answer(function(ctypes.c_int(call.pid), ctypes.byref(arguments)))


def uuid_bytes(uuid: str) -> bytes:
    """The 16 bytes of ``GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx``."""
    return bytes.fromhex(uuid.removeprefix("GPU-").replace("-", ""))
