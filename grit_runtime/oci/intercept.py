"""The calls of runc that grit answers.

`create` restores a container, whose `start` then has nothing to do, and `delete` removes grit's
state of it. `kill` thaws a container that a checkpoint holds frozen.

containerd's shim learns why a runtime failed from its exit code and from the last line of level
error in the file of ``--log``, so grit sets both as runc does.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress

from grit_runtime import config, log, paths
from grit_runtime.errors import GritError, HeldError, told
from grit_runtime.host import config_json, journal
from grit_runtime.oci.command_line import exec_runc, global_options, options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from grit_runtime.host.runc import Runc
    from grit_runtime.model.annotations import RestoreOrder

_LOG = f"{paths.LOG_DIR}/runtime.log"

# Options of `create` that `restore` has under the same name and meaning.
_SHARED_VALUES = ("console-socket", "pid-file")
_SHARED_FLAGS = ("no-pivot",)


def intercept(argv: list[str], at: int, runc: str) -> NoReturn:
    """Run the command at argv[at], which is one of _COMMANDS, and end the process."""
    try:
        handled = _COMMANDS[argv[at]](argv, at, runc)
    except (GritError, OSError) as error:
        _fail(argv, at, told(error))
    except Exception as error:  # noqa: BLE001  without a line containerd reports only "exit 1"
        _fail(argv, at, f"internal error in grit-runtime: {_where(error)}")
    if handled is None:
        exec_runc(runc, argv)
    _end(handled)


def _create(argv: list[str], at: int, runc: str) -> int | None:
    named, operands = options(argv[at + 1 :])
    bundle_dir = _bundle_dir(named)
    spec = config_json.read(bundle_dir)

    from grit_runtime.model.annotations import (
        restore_order,
        unknown,
        wants_safe_nccl,
    )

    settings = config.load()
    annotations = spec.get("annotations", {})
    order = _second_life(annotations) or restore_order(annotations, settings.checkpoint_root)
    strange = unknown(annotations)
    if strange:
        log.to_file(_LOG)
        log.warning("unknown annotations are ignored", id=operands[0], keys=strange)
    if order is None:
        if wants_safe_nccl(annotations):
            from grit_runtime.model.gpu_preflight import SAFE_NCCL

            _add_environment(bundle_dir, spec, SAFE_NCCL)
        return None

    from grit_runtime.host import linux  # a cold start needs none of it
    from grit_runtime.restore import restore
    from grit_runtime.restore.attempts import Request
    from grit_runtime.startup import protobuf

    protobuf.leave_out_python()
    if "no-new-keyring" not in named:
        linux.join_new_keyring(operands[0])
    request = Request(
        container_id=operands[0],
        bundle_dir=bundle_dir,
        spec=spec,
        runc=_callers_runc(argv, at, runc),
        flags=_shared_flags(named),
        order=order,
        checkpoint_root=settings.checkpoint_root,
        trusted_keys=settings.trusted_keys,
        huge_pages=settings.huge_pages,
        criu=settings.criu,
        restore_wait_s=settings.restore_wait_s,
    )
    log.to_file(f"{request.log_dir}/grit.log")
    return 0 if restore.restore(request) is restore.End.RESTORED else None


def _second_life(annotations: dict[str, str]) -> RestoreOrder | None:
    """The order to restore a container of a pod that was held; HeldError if it still is held."""
    from grit_runtime.model import annotations as model
    from grit_runtime.model import hold as holding
    from grit_runtime.pod import held_pods

    identity = model.identity_of(annotations) if model.is_container(annotations) else None
    hold = held_pods.of(identity.pod_uid) if identity else None
    if identity is None or hold is None:
        return None
    if hold.forbids(identity.container):
        raise HeldError(holding.refusal(hold, identity.container))
    return holding.second_life(hold, identity, annotations)


def _add_environment(bundle_dir: str, spec: dict[str, Any], variables: dict[str, str]) -> None:
    """Add *variables* to the container's environment, in place of the pod's of the same names."""
    kept = [pair for pair in spec["process"]["env"] if pair.partition("=")[0] not in variables]
    spec["process"]["env"] = kept + [f"{name}={value}" for name, value in variables.items()]
    config_json.write(bundle_dir, spec)


def _start(argv: list[str], at: int, _runc: str) -> int | None:
    from grit_runtime.restore.attempts import claim_start

    directories = journal.dirs_of(options(argv[at + 1 :])[1][0])
    return 0 if any(claim_start(path) for path in directories) else None


def _delete(argv: list[str], at: int, _runc: str) -> None:
    from grit_runtime.checkpoint import undoing
    from grit_runtime.pod import held_pods
    from grit_runtime.restore import attempts

    container_id = options(argv[at + 1 :])[1][0]
    log.to_file(_LOG)
    held_pods.drop_gone()
    for path in journal.dirs_of(container_id):
        if path == f"{journal.PODS_DIR}/{container_id}":
            attempts.forget_pod(path)
            undoing.forget_pod(path)
        else:
            attempts.forget(path)


def _kill(argv: list[str], at: int, runc: str) -> int | None:
    """Send SIGKILL to a container that is held frozen, whatever the signal is.

    While it is frozen it cannot use its grace period; thawed first, it would run beside the pod
    that is restored from its checkpoint. If its init process has ended already, runc sends the
    signal to the processes that are left, and they are thawed to receive it.
    """
    container_id, *words = options(argv[at + 1 :])[1]
    if words == ["0"]:  # signal 0 asks only whether it lives
        return None

    named = global_options(argv, at)
    if not journal.checkpoints_with(container_id) and not _outlives_its_pod(named):
        return None

    from grit_runtime.checkpoint import undoing  # seldom needed
    from grit_runtime.host import process
    from grit_runtime.host.runc import resume, stop

    undoing.recover_gone()
    if not any(undoing.is_pod_held(path) for path in journal.checkpoints_with(container_id)):
        return None
    tool = _callers_runc(argv, at, runc)
    if stop(tool, container_id):
        return 0
    status = process.run_attached([runc, *argv[1:]], token=tool.token)
    resume(tool, container_id)
    return status


def _outlives_its_pod(named: dict[str, str]) -> bool:
    """Whether there is the journal of a pod that runc no longer knows: it is still to be undone."""
    root = named.get("root", "/run/runc")
    pods = map(os.path.dirname, journal.checkpoints())
    return not all(os.path.exists(f"{root}/{os.path.basename(pod)}") for pod in pods)


def _checkpoint(argv: list[str], at: int, runc: str) -> int | None:
    named, operands = options(argv[at + 1 :])
    if not operands:
        return None

    from grit_runtime import runc_level  # a node without GPUs needs none of it
    from grit_runtime.host import criu
    from grit_runtime.host.runc import state

    tool = _callers_runc(argv, at, runc)
    log.to_file(_LOG)
    bundle_dir = state(tool, operands[0]).bundle_dir
    call = runc_level.Call(argv, operands[0], tool, config_json.read(bundle_dir))
    criu.prefer(config.load().criu)
    # runc's and CRIU's defaults (runc checkpoint.go, CRIU's work_dir in rpc.proto)
    criu_dir = os.path.abspath(named.get("work-path") or named.get("image-path") or "checkpoint")
    return runc_level.checkpoint(call, criu_dir, leave_running="leave-running" in named)


def _restore(argv: list[str], at: int, runc: str) -> int | None:
    named, operands = options(argv[at + 1 :])
    if not operands:
        return None

    from grit_runtime import runc_level
    from grit_runtime.host import criu, linux

    tool = _callers_runc(argv, at, runc)
    log.to_file(_LOG)
    criu.prefer(config.load().criu)
    linux.join_new_keyring(operands[0])
    bundle_dir = _bundle_dir(named)
    images_dir = os.path.abspath(named.get("image-path") or "checkpoint")  # runc's default
    call = runc_level.Call(argv, operands[0], tool, config_json.read(bundle_dir))
    if "detach" in named or "d" in named:
        return runc_level.restore(call, bundle_dir, images_dir)
    config_path = runc_level.write_config(call)
    own_pid_file = f"{config_path}.pid"
    pid_path = named.get("pid-file") or own_pid_file
    pid_file = runc_level.PidFile(pid_path, runc_level.inode(pid_path))
    runc_fd = os.pidfd_open(os.getpid())
    if os.fork():
        # The caller waits for this process and signals it; runc forwards signals.
        os.environ[runc_level.CONFIG_FILE] = config_path
        exec_runc(runc, [*argv[: at + 1], "--pid-file", pid_path, *argv[at + 1 :]])
    try:
        runc_level.attend(call, bundle_dir, images_dir, pid_file, runc_fd)
    finally:
        for path in (config_path, own_pid_file):
            with suppress(FileNotFoundError):
                os.unlink(path)
    return 0


_COMMANDS = {
    "create": _create,
    "start": _start,
    "delete": _delete,
    "kill": _kill,
    "checkpoint": _checkpoint,
    "restore": _restore,
}


def _where(error: Exception) -> str:
    """The exception and the innermost line of code that raised it, as one line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__}: {error} at {place}".replace("\n", " ")


def _bundle_dir(named: dict[str, str]) -> str:
    return os.path.abspath(named.get("bundle") or named.get("b") or ".")


def _callers_runc(argv: list[str], at: int, program: str) -> Runc:
    """Runc with the caller's global options but those of the log, which grit writes itself."""
    from grit_runtime.host.process import new_token  # most calls run no program
    from grit_runtime.host.runc import Runc

    named = global_options(argv, at)
    kept = tuple(
        f"--{name}={value}" if value else f"--{name}"
        for name, value in named.items()
        if name not in ("log", "log-format", "debug")
    )
    return Runc(program, kept, new_token())


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
    """Exit without finalizing the interpreter, which takes 15 ms."""
    sys.stderr.flush()
    os._exit(status)
