import click

from grit_runtime import config
from grit_runtime.errors import InvalidArgumentError
from grit_runtime.nvidia import control
from grit_runtime.nvidia.control import ACTIONS
from grit_runtime.nvidia.gpu_driver import Driver

_MAP_HELP = "GPUs to restore to: OLDUUID=NEWUUID,... for every GPU that the process saw."
_TIMEOUT_HELP = "How long to wait for the lock, in ms."


@click.group(invoke_without_command=True)
@click.option("--pid", type=int, help="Process that the options below act on.")
@click.option("--get-state", is_flag=True, help="Print running, locked, checkpointed or failed.")
@click.option("--get-restore-tid", is_flag=True, help="Print the driver's thread in the process.")
@click.option("--action", type=click.Choice(ACTIONS), help="Make one call of the driver.")
@click.option("--toggle", is_flag=True, help="Suspend a running process, resume a suspended one.")
@click.option("--timeout", "timeout_ms", type=int, default=10_000, help=_TIMEOUT_HELP)
@click.option("--device-map", default="", help=_MAP_HELP)
@click.pass_context
def gpu(
    context: click.Context,
    pid: int | None,
    get_state: bool,
    get_restore_tid: bool,
    action: str | None,
    toggle: bool,
    timeout_ms: int,
    device_map: str,
) -> None:
    """Suspend and resume the GPU state of running processes.

    Without a command, the options are those of NVIDIA's cuda-checkpoint utility. A TARGET of a
    command is a pid, a container's id, a sandbox's id or NAMESPACE/POD.
    """
    if context.invoked_subcommand:
        return
    if pid is None:
        raise InvalidArgumentError("grit gpu: expected a command or --pid; see grit gpu --help")
    chosen = [get_state, get_restore_tid, action is not None, toggle]
    if sum(chosen) != 1:
        raise InvalidArgumentError(
            "grit gpu: expected one of --get-state, --get-restore-tid, --action, --toggle"
        )
    driver = control.require_driver()
    if get_state:
        click.echo(control.state(driver, pid))
    elif get_restore_tid:
        click.echo(control.restore_tid(driver, pid))
    elif toggle:
        control.toggle(driver, [pid], timeout_ms=timeout_ms, device_map=device_map)
    else:
        control.act(driver, str(action), [pid], timeout_ms=timeout_ms, device_map=device_map)


@gpu.command("list")
def list_() -> None:
    """Print the node's GPUs, their memory and the processes on them."""
    for line in control.listing(control.require_driver()):
        click.echo(line)


@gpu.command("state")
@click.argument("targets", nargs=-1, required=True)
def state(targets: tuple[str, ...]) -> None:
    """Print the state of each CUDA process of the TARGETs."""
    driver = control.require_driver()
    for pid in _pids(driver, targets):
        click.echo(f"{pid} {control.state(driver, pid)}")


@gpu.command("lock")
@click.argument("targets", nargs=-1, required=True)
@click.option("--timeout", "timeout_ms", type=int, default=10_000, help=_TIMEOUT_HELP)
def lock(targets: tuple[str, ...], timeout_ms: int) -> None:
    """Wait until the GPU work of the TARGETs has ended, and block new GPU work."""
    driver = control.require_driver()
    control.act(driver, "lock", _pids(driver, targets), timeout_ms=timeout_ms, device_map="")


@gpu.command("unlock")
@click.argument("targets", nargs=-1, required=True)
def unlock(targets: tuple[str, ...]) -> None:
    """Let locked TARGETs use the GPU again."""
    driver = control.require_driver()
    control.act(driver, "unlock", _pids(driver, targets), timeout_ms=0, device_map="")


@gpu.command("checkpoint")
@click.argument("targets", nargs=-1, required=True)
@click.option("--timeout", "timeout_ms", type=int, default=10_000, help=_TIMEOUT_HELP)
def checkpoint(targets: tuple[str, ...], timeout_ms: int) -> None:
    """Lock the TARGETs and move their device memory into host memory."""
    driver = control.require_driver()
    control.suspend(driver, _pids(driver, targets), timeout_ms=timeout_ms)


@gpu.command("restore")
@click.argument("targets", nargs=-1, required=True)
@click.option("--device-map", default="", help=_MAP_HELP)
def restore(targets: tuple[str, ...], device_map: str) -> None:
    """Move the device memory of suspended TARGETs back to the GPUs, and unlock them."""
    driver = control.require_driver()
    control.resume(driver, _pids(driver, targets), device_map=device_map)


@gpu.command("toggle")
@click.argument("targets", nargs=-1, required=True)
@click.option("--timeout", "timeout_ms", type=int, default=10_000, help=_TIMEOUT_HELP)
@click.option("--device-map", default="", help=_MAP_HELP)
def toggle(targets: tuple[str, ...], timeout_ms: int, device_map: str) -> None:
    """Suspend the TARGETs that run, and resume those that are suspended."""
    driver = control.require_driver()
    control.toggle(driver, _pids(driver, targets), timeout_ms=timeout_ms, device_map=device_map)


def _pids(driver: Driver, targets: tuple[str, ...]) -> list[int]:
    return control.pids_of(driver, targets, config.load())
