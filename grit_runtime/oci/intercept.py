"""The calls that a restore changes: `create` becomes it, `start` finds it done, `delete` ends it.
And `kill` of a container that a checkpoint holds frozen, which has to thaw to die.

containerd's shim reads a runtime's failure from the file of ``--log`` (the last line of level
error) and its exit code, so ours are written as runc writes its own.
"""

from __future__ import annotations

import json
import os
import sys

from grit_runtime import config, log
from grit_runtime.errors import GritError, one_line
from grit_runtime.host import config_json
from grit_runtime.oci.main import (
    PODS_DIR,
    exec_runc,
    global_options,
    journals_of,
    options,
    pod_dirs_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


_LOG = f"{log.DIR}/runtime.log"

# Options of `create` that `restore` has under the same name and meaning.
_SHARED_VALUES = ("console-socket", "pid-file")
_SHARED_FLAGS = ("no-pivot",)


def intercept(argv: list[str], at: int, runc: str) -> NoReturn:
    """Run the command at argv[at], by a restore where one is ordered; ends the process."""
    try:
        handled = _COMMANDS[argv[at]](argv, at, runc)
    except (GritError, OSError) as error:
        _fail(argv, at, one_line(error))
    except Exception as error:  # noqa: BLE001  else containerd has nothing to tell but "exit 1"
        _fail(argv, at, f"internal error in grit-runtime: {_where(error)}")
    if handled is None:
        exec_runc(runc, argv)
    _end(handled)


def _create(argv: list[str], at: int, runc: str) -> int | None:
    named, operands = options(argv[at + 1 :])
    bundle_dir = _bundle_dir(named)
    spec = config_json.read(bundle_dir)

    from grit_runtime.model.annotations import restore_order, wants_safe_nccl  # noqa: PLC0415
    from grit_runtime.model.gpu_preflight import SAFE_NCCL  # noqa: PLC0415

    settings = config.load()
    order = restore_order(spec.get("annotations", {}), settings.checkpoint_root)
    if order is None:
        if wants_safe_nccl(spec.get("annotations", {})):
            _add_environment(bundle_dir, spec, SAFE_NCCL)
        return None

    from grit_runtime import restore  # noqa: PLC0415  a cold start does not pay for it
    from grit_runtime.host.process import new_token  # noqa: PLC0415
    from grit_runtime.host.runc import Runc  # noqa: PLC0415

    request = restore.Request(
        container_id=operands[0],
        bundle_dir=bundle_dir,
        spec=spec,
        runc=Runc(runc, _kept_options(argv, at), new_token()),
        flags=_shared_flags(named),
        order=order,
        checkpoint_root=settings.checkpoint_root,
        trusted_keys=settings.trusted_keys,
        huge_pages=settings.huge_pages,
    )
    log.to_file(f"{request.log_dir}/grit.log")
    return 0 if restore.restore(request) else None


def _add_environment(bundle_dir: str, spec: dict[str, Any], variables: dict[str, str]) -> None:
    """Have the container's process started with *variables*, whatever its pod says of them."""
    kept = [pair for pair in spec["process"]["env"] if pair.partition("=")[0] not in variables]
    spec["process"]["env"] = kept + [f"{name}={value}" for name, value in variables.items()]
    config_json.write(bundle_dir, spec)


def _start(argv: list[str], at: int, _runc: str) -> int | None:
    from grit_runtime.attempts import claim_start  # noqa: PLC0415

    paths = pod_dirs_of(options(argv[at + 1 :])[1][0])
    return 0 if any(claim_start(path) for path in paths) else None


def _delete(argv: list[str], at: int, _runc: str) -> None:
    from grit_runtime import attempts, holds  # noqa: PLC0415

    container_id = options(argv[at + 1 :])[1][0]
    log.to_file(_LOG)
    for path in pod_dirs_of(container_id):
        if path == f"{PODS_DIR}/{container_id}":
            attempts.forget_pod(path)
            holds.forget_pod(path)
        else:
            attempts.forget(path)


def _kill(argv: list[str], at: int, runc: str) -> int | None:
    """SIGKILL reaches what is held frozen on cgroup v1 only when it is thawed.

    runc does so itself for a container with a process namespace of its own, and some for all
    (libcontainer/container_linux.go Signal, signalAllProcesses).
    """
    container_id, *words = options(argv[at + 1 :])[1]
    if "".join(words).upper().removeprefix("SIG") not in ("KILL", "9"):
        return None

    from grit_runtime import holds  # noqa: PLC0415
    from grit_runtime.host import process  # noqa: PLC0415
    from grit_runtime.host.runc import Runc, resume  # noqa: PLC0415

    if not any(holds.is_held(path) for path in journals_of(container_id)):
        return None
    tool = Runc(runc, _kept_options(argv, at), process.new_token())
    status = process.run_attached([runc, *argv[1:]], token=tool.token)
    resume(tool, container_id)
    return status


def _checkpoint(argv: list[str], at: int, runc: str) -> int | None:
    named, operands = options(argv[at + 1 :])
    if not operands:
        return None

    from grit_runtime import plain  # noqa: PLC0415  a node without GPUs does not pay for it
    from grit_runtime.host.process import new_token  # noqa: PLC0415
    from grit_runtime.host.runc import Runc, state  # noqa: PLC0415

    tool = Runc(runc, _kept_options(argv, at), new_token())
    log.to_file(_LOG)
    bundle_dir = state(tool, operands[0]).bundle_dir
    call = plain.Call(argv, operands[0], tool, config_json.read(bundle_dir))
    return plain.checkpoint(call, leave_running="leave-running" in named)


def _restore(argv: list[str], at: int, runc: str) -> int | None:
    named, operands = options(argv[at + 1 :])
    if not operands or not ("detach" in named or "d" in named):
        return None  # without --detach runc stays until the container has ended

    from grit_runtime import plain  # noqa: PLC0415
    from grit_runtime.host.process import new_token  # noqa: PLC0415
    from grit_runtime.host.runc import Runc  # noqa: PLC0415

    tool = Runc(runc, _kept_options(argv, at), new_token())
    log.to_file(_LOG)
    return plain.restore(plain.Call(argv, operands[0], tool, config_json.read(_bundle_dir(named))))


_COMMANDS = {
    "create": _create,
    "start": _start,
    "delete": _delete,
    "kill": _kill,
    "checkpoint": _checkpoint,
    "restore": _restore,
}


def _where(error: Exception) -> str:
    """The exception and the innermost line it came from, on one line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__}: {error} at {place}".replace("\n", " ")


def _bundle_dir(named: dict[str, str]) -> str:
    return os.path.abspath(named.get("bundle") or named.get("b") or ".")


def _kept_options(argv: list[str], at: int) -> tuple[str, ...]:
    """The caller's global options, less those of the log, which is written by us."""
    named = global_options(argv, at)
    return tuple(
        f"--{name}={value}" if value else f"--{name}"
        for name, value in named.items()
        if name not in ("log", "log-format", "debug")
    )


def _shared_flags(named: dict[str, str]) -> tuple[str, ...]:
    values = [
        word for name in _SHARED_VALUES if name in named for word in (f"--{name}", named[name])
    ]
    flags = [f"--{name}" for name in _SHARED_FLAGS if name in named]
    return (*values, *flags)


def _fail(argv: list[str], at: int, message: str) -> NoReturn:
    named = global_options(argv, at)
    stamp = log.rfc3339()
    if named.get("log-format") == "json":
        line = json.dumps({"level": "error", "msg": message, "time": stamp})
    else:
        line = f'time="{stamp}" level=error msg={json.dumps(message)}'
    if "log" in named:
        with open(named["log"], "a", encoding="utf-8") as file:
            file.write(line + "\n")
    else:
        message = line
    sys.stderr.write(message + "\n")
    _end(1)


def _end(status: int) -> NoReturn:
    """Exit without taking the interpreter down piece by piece: 15 ms that the caller waits for."""
    sys.stderr.flush()
    os._exit(status)
