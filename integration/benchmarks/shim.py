"""What a pod's shim costs: containerd-shim-grit-v1 beside containerd's own, on one node."""

from __future__ import annotations

import os
import shlex
import statistics
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from integration.benchmarks.comparison import Bench, Row, Side, ratio_row
from integration.node import rootfs
from integration.node.node import SHIM_HANDLER
from integration.pods import kubelet
from integration.pods.workload import shell_pod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from integration.pods.kubelet import Pod

SHIM = "/usr/local/bin/containerd-shim-grit-v1"
STOCK_SHIM = "/usr/bin/containerd-shim-runc-v2"
RUNTIME = "io.containerd.grit.v1"
STOCK_RUNTIME = "io.containerd.runc.v2"
BUSYBOX = "localhost/busybox:1"
PODS = 20
IDLE_S = 60
IDLE_ALLOWANCE_S = 0.050  # in ten minutes
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def start(bench: Bench, name: str, *, alone: bool = False) -> Row:
    """`start` until the address is printed: by the zygote or, *alone*, without one."""
    edition = bench.node.edition
    main = f"/{rootfs.site_packages(edition)}/grit_runtime/shim/main.py"
    program = [f"/usr/bin/python{edition.python}", "-ISE", main, SHIM] if alone else [SHIM]
    ours, theirs = start_side(name, *program), start_side(f"{name}-stock", STOCK_SHIM)
    return ratio_row(name, *bench.pairs(30, ours=ours, theirs=theirs), None if alone else 1.25)


def start_side(name: str, *program: str) -> Side:
    bundle_dir = f"/run/bench/{name}"
    address = "/run/containerd/containerd.sock"
    environment = ["env", f"TTRPC_ADDRESS={address}.ttrpc", "GOMAXPROCS=2"]
    flags = ["-namespace", "bench", "-address", address, "-id", name]
    return Side(
        calls=[[*environment, *program, *flags, "start"]],
        before=f"""
        mkdir -p {bundle_dir}
        echo '{{}}' >{bundle_dir}/config.json
        [ -p {bundle_dir}/log ] || mkfifo {bundle_dir}/log
        """,
        # The shim is the process that has its bundle for a directory.
        after=f"""
        for process in /proc/[0-9]*; do
            if [ "$(readlink $process/cwd)" = {bundle_dir} ]; then kill ${{process#/proc/}} || :; fi
        done
        """,
        directory=bundle_dir,
    )


def run(bench: Bench, name: str) -> Row:
    """`ctr run` of a container that exits at once."""

    def side(runtime: str) -> Side:
        return Side(calls=[ctr("run", "--rm", "--runtime", runtime, BUSYBOX, "once", "true")])

    return ratio_row(name, *bench.pairs(30, ours=side(RUNTIME), theirs=side(STOCK_RUNTIME)), 1.15)


@contextmanager
def tasks(bench: Bench) -> Iterator[tuple[str, str]]:
    """Two tasks that do nothing, of ours and of the stock shim."""
    names = ("exec-ours", "exec-theirs")
    for name, runtime in zip(names, (RUNTIME, STOCK_RUNTIME), strict=True):
        bench.node.run(ctr("run", "-d", "--runtime", runtime, BUSYBOX, name, "sleep", "1000"))
    yield names
    for name in names:
        bench.node.run(ctr("task", "rm", "--force", name))
        bench.node.run(ctr("container", "rm", name))


def execs(bench: Bench, name: str, *, quantile: int) -> Row:
    """`ctr task exec` of a program that exits at once."""
    with tasks(bench) as names:
        ours, theirs = (
            Side(calls=[ctr("task", "exec", "--exec-id", "exec", task, "true")]) for task in names
        )
        taken = bench.times(200, ours=ours, theirs=theirs)
    ours_s, theirs_s = (statistics.quantiles(side, n=100)[quantile - 1] for side in taken)
    return ratio_row(name, ours_s, theirs_s, 1.2)


def terminal(bench: Bench, name: str) -> Row:
    """100 MB that a program writes to its terminal, until `ctr task exec --tty` has shown all."""

    def side(task: str) -> Side:
        write = ("dd", "if=/dev/zero", "bs=1M", "count=100")
        command = shlex.join(ctr("task", "exec", "--tty", "--exec-id", "exec", task, *write))
        script = 'exec script --quiet --return --command "$0" /dev/null >/dev/null'
        return Side(calls=[["sh", "-c", script, command]])

    with tasks(bench) as (ours, theirs):
        return ratio_row(name, *bench.pairs(5, ours=side(ours), theirs=side(theirs)), 1.0)


def memory(bench: Bench, name: str) -> Row:
    """PSS of a pod's shim, idle, at 20 pods: the mean."""

    def mean_bytes(handler: str) -> float:
        with ExitStack() as stack:
            pods = [stack.enter_context(running(bench, number, handler)) for number in range(PODS)]
            time.sleep(1)  # until the last one's requests are over
            return statistics.mean(pss_bytes(bench, shim_of(pod)) for pod in pods)

    wait_for_zygote(bench)
    return ratio_row(name, mean_bytes(SHIM_HANDLER), mean_bytes("runc"), 1.0, unit="B")


def idle(bench: Bench, name: str) -> Row:
    """Processor time of an idle shim, measured for a minute and told for ten."""
    with running(bench, 0, SHIM_HANDLER) as pod, running(bench, 1, "runc") as stock:
        shims = [shim_of(pod), shim_of(stock)]
        before = [ticks(bench, pid) for pid in shims]
        time.sleep(IDLE_S)
        used = (ticks(bench, pid) - then for pid, then in zip(shims, before, strict=True))
        ours, theirs = (count / TICKS_PER_S * 600 / IDLE_S for count in used)
    # Neither may have used any: the allowance stands on both sides.
    return ratio_row(name, ours + IDLE_ALLOWANCE_S, theirs + IDLE_ALLOWANCE_S, 2.0)


def log(bench: Bench, name: str) -> Row:
    """A container that writes 1 GB to its standard output, until `ctr run` has read all.

    One run takes 1.5 to 3 s on either side, by which cores the writer, the shim and the reader are
    on: hence the many pairs.
    """

    def side(runtime: str) -> Side:
        write = ["dd", "if=/dev/zero", "bs=1M", "count=1024"]
        words = ctr("run", "--rm", "--runtime", runtime, BUSYBOX, "writes", *write)
        return Side(calls=[["sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *words]])

    return ratio_row(name, *bench.pairs(21, ours=side(RUNTIME), theirs=side(STOCK_RUNTIME)), 1.05)


def wait_for_zygote(bench: Bench) -> None:
    """Have a zygote, as a node has before any pod; where there is none, a start leaves one."""
    serving = bench.node.path(Path("/run/grit/zygote.pid"))
    with running(bench, PODS, SHIM_HANDLER):
        while not serving.exists():
            bench.node.assert_alive()
            time.sleep(kubelet.POLL_S)


def ctr(*words: str) -> list[str]:
    return ["ctr", "--namespace", "k8s.io", *words]


def running(bench: Bench, number: int, handler: str) -> AbstractContextManager[Pod]:
    spec = shell_pod(f"idle-{number}", "sleep 1000 & wait", handler=handler)
    return kubelet.running(bench.node, spec)


def shim_of(pod: Pod) -> int:
    """The shim's pid: containers' first processes are its children."""
    status = pod.node.path(Path(f"/proc/{pod.pid('main')}/status")).read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def pss_bytes(bench: Bench, pid: int) -> int:
    rollup = bench.node.path(Path(f"/proc/{pid}/smaps_rollup")).read_text()
    line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) << 10


def ticks(bench: Bench, pid: int) -> int:
    """Processor time of a process, children that it has waited for included."""
    stat = bench.node.path(Path(f"/proc/{pid}/stat")).read_text()
    return sum(int(word) for word in stat.rpartition(") ")[2].split()[11:15])


ROWS: dict[str, Callable[[Bench, str], Row]] = {
    "shim.start": start,
    "shim.start_alone": partial(start, alone=True),
    "shim.run": run,
    "shim.exec_p50": partial(execs, quantile=50),
    "shim.exec_p99": partial(execs, quantile=99),
    "shim.memory": memory,
    "shim.log": log,
    "shim.tty": terminal,
    "shim.idle": idle,
}
