"""Statistics of a container, from copies of what real kernels say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from grit_runtime.errors import NotFoundError
from grit_runtime.host import cgroup, cgroup_stats
from grit_runtime.host.cgroup_stats import NO_LIMIT

if TYPE_CHECKING:
    from pathlib import Path

    from grit_runtime.proto import cgroup1_pb2, cgroup2_pb2

# Linux 6.18, a container with a limit of 64 MiB.
V1 = {
    "cpuacct/cpuacct.usage": "18093018\n",
    "cpuacct/cpuacct.usage_percpu": "14671068 3421950 \n",
    "cpuacct/cpuacct.stat": "user 3\nsystem 1\n",
    "cpu/cpu.stat": "nr_periods 10\nnr_throttled 2\nthrottled_time 5000\nnr_bursts 0\n",
    "memory/memory.stat": "cache 8192\nrss 110592\npgpgin 728\npgfault 1187\n"
    "hierarchical_memory_limit 67108864\ntotal_inactive_file 4096\ntotal_pgmajfault 7\n",
    "memory/memory.limit_in_bytes": "67108864\n",
    "memory/memory.usage_in_bytes": "720896\n",
    "memory/memory.max_usage_in_bytes": "3297280\n",
    "memory/memory.failcnt": "4\n",
    "memory/memory.memsw.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "pids/pids.current": "2\n",
    "pids/pids.max": "max\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 512\nTotal 4608\n",
}
V2 = {
    "cgroup.controllers": "cpu memory pids io\n",
    "cpu.stat": "usage_usec 18093\nuser_usec 10000\nsystem_usec 8093\nnr_periods 10\n"
    "nr_throttled 2\nthrottled_usec 5\nnice_usec 0\ncore_sched.force_idle_usec 0\n",
    "cpu.pressure": "some avg10=0.50 avg60=0.10 avg300=0.00 total=123\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    "memory.stat": "anon 110592\nfile 8192\ninactive_file 4096\npgfault 1187\npgmajfault 7\n",
    "memory.current": "720896\n",
    "memory.max": "67108864\n",
    "memory.peak": "3297280\n",
    "memory.swap.max": "max\n",
    "memory.events": "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\noom_group_kill 0\n",
    "pids.current": "2\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=4096 wbytes=512 rios=1 wios=2 dbytes=0 dios=0\n254:1 \n",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "_ROOT", str(tmp_path))
    return tmp_path


def make(root: Path, files: dict[str, str], *, below: str) -> None:
    """Write the files of the cgroup *below* the root of each hierarchy."""
    for name, text in files.items():
        hierarchy, _, file = name.rpartition("/")
        path = root / hierarchy / below / file
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "cgroup.procs").touch()
        path.write_text(text)


def read_v1(root: Path, files: dict[str, str]) -> cgroup1_pb2.Metrics:
    make(root, files, below="pod/c")
    metrics: cgroup1_pb2.Metrics = cgroup_stats.read("/pod/c")  # type: ignore[assignment]
    return metrics


def read_v2(root: Path, files: dict[str, str]) -> cgroup2_pb2.Metrics:
    make(root, files, below="pod/c")
    (root / "cgroup.controllers").touch()
    metrics: cgroup2_pb2.Metrics = cgroup_stats.read("/pod/c")  # type: ignore[assignment]
    return metrics


def test_figures_of_version_1_are_where_clients_look(root: Path) -> None:
    metrics = read_v1(root, V1)
    assert metrics.DESCRIPTOR.full_name == "io.containerd.cgroups.v1.Metrics"
    assert metrics.cpu.usage.total == 18093018
    assert metrics.cpu.usage.per_cpu == [14671068, 3421950]
    assert (metrics.cpu.usage.user, metrics.cpu.usage.kernel) == (30_000_000, 10_000_000)
    throttling = metrics.cpu.throttling
    assert (throttling.periods, throttling.throttled_periods, throttling.throttled_time) == (
        *(10, 2, 5000),
    )
    memory = metrics.memory
    assert (memory.rss, memory.pg_pg_in, memory.pg_fault) == (110592, 728, 1187)
    assert (memory.total_inactive_file, memory.total_pg_maj_fault) == (4096, 7)
    assert (memory.usage.limit, memory.usage.usage, memory.usage.max) == (67108864, 720896, 3297280)
    assert memory.usage.failcnt == 4
    assert memory.swap.limit == 9223372036854771712
    assert metrics.memory_oom_control.oom_kill == 1
    assert (metrics.pids.current, metrics.pids.limit) == (2, 0)
    served = [(e.op, e.major, e.minor, e.value) for e in metrics.blkio.io_service_bytes_recursive]
    assert served == [("Read", 8, 0, 4096), ("Write", 8, 0, 512)]


def test_figures_of_version_2_are_where_clients_look(root: Path) -> None:
    metrics = read_v2(root, V2)
    assert metrics.DESCRIPTOR.full_name == "io.containerd.cgroups.v2.Metrics"
    assert (metrics.cpu.usage_usec, metrics.cpu.nr_throttled) == (18093, 2)
    assert (metrics.cpu.psi.some.avg10, metrics.cpu.psi.full.total) == (0.5, 7)
    memory = metrics.memory
    assert (memory.anon, memory.inactive_file, memory.pgfault) == (110592, 4096, 1187)
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (720896, 67108864, 3297280)
    assert memory.swap_limit == NO_LIMIT
    assert (metrics.memory_events.oom, metrics.memory_events.oom_kill) == (1, 1)
    assert (metrics.pids.current, metrics.pids.limit) == (2, NO_LIMIT)
    first, second = metrics.io.usage
    assert (first.major, first.rbytes, first.wios) == (8, 4096, 2)
    assert (second.major, second.rbytes) == (254, 0)


@pytest.mark.parametrize("name", V1)
def test_a_file_that_version_1_lacks_is_left_out(root: Path, name: str) -> None:
    read_v1(root, {key: text for key, text in V1.items() if key != name})


@pytest.mark.parametrize("name", V2)
def test_a_file_that_version_2_lacks_is_left_out(root: Path, name: str) -> None:
    read_v2(root, {key: text for key, text in V2.items() if key != name})


@pytest.mark.parametrize("path", ["/pod/c", "", "/"])
def test_a_cgroup_that_is_not_there_is_not_found(root: Path, path: str) -> None:
    (root / "cgroup.procs").touch()
    with pytest.raises(NotFoundError):
        cgroup_stats.read(path)
