import click

from grit_runtime import config, gpu_control
from grit_runtime.errors import InvalidArgumentError
from grit_runtime.gpu_control import ACTIONS

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
    driver = gpu_control.require_driver()
    if get_state:
        click.echo(gpu_control.state(driver, pid))
    elif get_restore_tid:
        click.echo(gpu_control.restore_tid(driver, pid))
    elif toggle:
        gpu_control.toggle(driver, [pid], timeout_ms=timeout_ms, device_map=device_map)
    else:
        gpu_control.act(driver, str(action), [pid], timeout_ms=timeout_ms, device_map=device_map)


@gpu.command("list")
def list_() -> None:
    """Print the node's GPUs, their memory and the processes on them."""
    for line in gpu_control.listing(gpu_control.require_driver()):
        click.echo(line)


@gpu.command("state")
@click.argument("targets", nargs=-1, required=True)
def state(targets: tuple[str, ...]) -> None:
    """Print the state of each CUDA process of the TARGETs."""
    driver = gpu_control.require_driver()
    for pid in _pids(targets):
        click.echo(f"{pid} {gpu_control.state(driver, pid)}")


def _pids(targets: tuple[str, ...]) -> list[int]:
    return gpu_control.pids_of(targets, config.load())


def _command(action: str, help_text: str) -> None:
    @gpu.command(action, help=help_text)
    @click.argument("targets", nargs=-1, required=True)
    @click.option("--timeout", "timeout_ms", type=int, default=10_000, help="Of a lock, in ms.")
    @click.option("--device-map", default="", help=_MAP_HELP)
    def command(targets: tuple[str, ...], timeout_ms: int, device_map: str) -> None:
        driver = gpu_control.require_driver()
        pids = _pids(targets)
        if action == "toggle":
            gpu_control.toggle(driver, pids, timeout_ms=timeout_ms, device_map=device_map)
        else:
            gpu_control.act(driver, action, pids, timeout_ms=timeout_ms, device_map=device_map)


_command("lock", "Keep the TARGETs from giving the GPU work, and wait for what it has.")
_command("checkpoint", "Move the device memory of locked TARGETs into host memory.")
_command("restore", "Give checkpointed TARGETs their device memory back; they stay locked.")
_command("unlock", "Let locked TARGETs work again.")
_command("toggle", "Suspend TARGETs that run, resume those that are suspended.")
