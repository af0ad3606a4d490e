import click

from grit_runtime import config
from grit_runtime.errors import InvalidArgumentError
from grit_runtime.nvidia import control
from grit_runtime.nvidia.control import ACTIONS
from grit_runtime.nvidia.gpu_driver import Driver

_MAP_HELP = "GPUs to restore to: OLDUUID=NEWUUID,... listing every GPU the process saw."


@click.group(invoke_without_command=True)
@click.option("--pid", type=int, help="Process of the options below.")
@click.option("--get-state", is_flag=True, help="Print running, locked, checkpointed or failed.")
@click.option("--get-restore-tid", is_flag=True, help="Print the driver's thread in the process.")
@click.option("--action", type=click.Choice(ACTIONS), help="Make one call of the driver.")
@click.option("--toggle", is_flag=True, help="Suspend a running process, resume a suspended one.")
@click.option("--timeout", "timeout_ms", type=int, default=10_000, help="Of a lock, in ms.")
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

    With options alone it takes the place of NVIDIA's cuda-checkpoint utility. The commands work on
    TARGETs: pids, container ids, sandbox ids or NAMESPACE/POD.
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
@click.option("--timeout", "timeout_ms", type=int, default=10_000, help="Milliseconds to try for.")
def lock(targets: tuple[str, ...], timeout_ms: int) -> None:
    """Wait for the TARGETs' GPU work to end and keep them from giving more."""
    driver = control.require_driver()
    control.act(driver, "lock", _pids(driver, targets), timeout_ms=timeout_ms, device_map="")


@gpu.command("unlock")
@click.argument("targets", nargs=-1, required=True)
def unlock(targets: tuple[str, ...]) -> None:
    """Let locked TARGETs work again."""
    driver = control.require_driver()
    control.act(driver, "unlock", _pids(driver, targets), timeout_ms=0, device_map="")


@gpu.command("checkpoint")
@click.argument("targets", nargs=-1, required=True)
@click.option("--timeout", "timeout_ms", type=int, default=10_000, help="Of the lock, in ms.")
def checkpoint(targets: tuple[str, ...], timeout_ms: int) -> None:
    """Lock the TARGETs and move their device memory into host memory."""
    driver = control.require_driver()
    control.suspend(driver, _pids(driver, targets), timeout_ms=timeout_ms)


@gpu.command("restore")
@click.argument("targets", nargs=-1, required=True)
@click.option("--device-map", default="", help=_MAP_HELP)
def restore(targets: tuple[str, ...], device_map: str) -> None:
    """Give suspended TARGETs their device memory back and let them work again."""
    driver = control.require_driver()
    control.resume(driver, _pids(driver, targets), device_map=device_map)


@gpu.command("toggle")
@click.argument("targets", nargs=-1, required=True)
@click.option("--timeout", "timeout_ms", type=int, default=10_000, help="Of a lock, in ms.")
@click.option("--device-map", default="", help=_MAP_HELP)
def toggle(targets: tuple[str, ...], timeout_ms: int, device_map: str) -> None:
    """Suspend TARGETs that run, resume those that are suspended."""
    driver = control.require_driver()
    control.toggle(driver, _pids(driver, targets), timeout_ms=timeout_ms, device_map=device_map)


def _pids(driver: Driver, targets: tuple[str, ...]) -> list[int]:
    return control.pids_of(driver, targets, config.load())
