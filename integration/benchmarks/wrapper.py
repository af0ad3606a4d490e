"""What the wrapper costs: grit-runtime beside runc, and files of checkpoints beside plain tar."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from grit_runtime.files import digest, layer_apply, layer_save
from integration.benchmarks.comparison import (
    Bench,
    Row,
    Side,
    allowance_row,
    bar_row,
    ratio_row,
    timed,
)
from integration.pods import checkpoints, kubelet, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.pods.kubelet import Pod

STATE = "/run/bench/runc"
PASS_THROUGH_ALLOWANCE_S = 0.015
POD_START_ALLOWANCE_S = 0.065
RESTORE_RATIO = 1.6
DIGEST_SHARE = 0.8

RUNC_ROOT = "/run/containerd/runc/k8s.io"


def pass_through(verb: str, *arguments: str) -> Callable[[Bench, str], Row]:
    """A row for a command that the wrapper hands to runc."""

    def measure(bench: Bench, name: str) -> Row:
        call = ["--root", RUNC_ROOT, verb, bench.counter.container_ids["counter"], *arguments]
        ours, theirs = bench.pairs(
            40, ours=Side([["grit-runtime", *call]]), theirs=Side([["runc", *call]])
        )
        return allowance_row(name, ours, theirs, PASS_THROUGH_ALLOWANCE_S)

    return measure


def pod_start(bench: Bench, name: str) -> Row:
    """create and start of two containers, which are the runtime's part of a pod's start."""
    make_bundle(bench)
    ours, theirs = (four_calls(runtime) for runtime in ("grit-runtime", "runc"))
    return allowance_row(name, *bench.pairs(15, ours=ours, theirs=theirs), POD_START_ALLOWANCE_S)


def four_calls(runtime: str) -> Side:
    names = ("sandbox", "container")
    return Side(
        calls=[
            call
            for name in names
            for call in (
                [runtime, "--root", STATE, "create", "--bundle", f"/run/bench/{name}", name],
                [runtime, "--root", STATE, "start", name],
            )
        ],
        after="; ".join(f"runc --root {STATE} delete --force {name}" for name in names),
    )


def make_bundle(bench: Bench) -> None:
    """Two bundles that sleep, with the root filesystem of the image that the counter runs."""
    make = """
    for name in sandbox container; do
        mkdir -p /run/bench/$name/rootfs
        cd /run/bench/$name
        [ -e config.json ] && continue
        runc spec
        mount --bind "$1" rootfs
        python3 - <<'END'
import json
spec = json.load(open("config.json"))
spec["process"] |= {"terminal": False, "args": ["/bin/sleep", "1000"]}
spec["process"].pop("rlimits", None)
json.dump(spec, open("config.json", "w"))
END
    done
    """
    rootfs_dir = task_dir(bench.counter) + "/rootfs"
    bench.node.run(["sh", "-ec", make, "make", rootfs_dir])


def restore(bench: Bench, name: str) -> Row:
    checkpoints.take(bench.counter, "bench", "--replace")
    return ratio_row(name, *restore_pairs(bench, 15), RESTORE_RATIO)


def restore_pairs(bench: Bench, count: int) -> tuple[float, float]:
    """Restores of checkpoint "bench" by the wrapper's `create`, and by `runc restore`."""
    node = bench.node
    images_dir = "/mnt/grit-agent/default/bench/counter/checkpoint"
    annotations = (("grit.dev/restore-name", "bench"), ("grit.dev/clone", "true"))
    spec = workload.counter_pod("target", annotations=annotations)
    with kubelet.running(node, spec) as target:
        make_restore_bundle(target)
        create = ["--root", STATE, "create", "--bundle", "/run/bench/restore"]
        by_hand = ["--detach", "--bundle", "/run/bench/restore", "--file-locks"]
        by_hand += ["--image-path", images_dir, "--work-path", "/run/bench/work"]
        unmount = "umount /run/bench/restore/rootfs"
        ours = Side(
            calls=[["grit-runtime", *create, "restored"]],
            before=f"rm -rf {RECORDS}{FRESH_ROOTFS}",
            after=f"test -d /run/grit/pods/*/restored; "
            f"grit-runtime --root {STATE} delete --force restored; {unmount}",
        )
        theirs = Side(
            calls=[["runc", "--root", STATE, "restore", *by_hand, "restored"]],
            before=f"{FRESH_ROOTFS}tar -C /run/bench/restore/rootfs -xf {LAYER}",
            after=f"runc --root {STATE} delete --force restored; {unmount}",
        )
        return bench.pairs(count, ours=ours, theirs=theirs)


# A container is restored once; where that is recorded it would be started cold.
RECORDS = "/var/lib/grit/records/*"
LAYER = "/mnt/grit-agent/default/bench/counter/rootfs-diff.tar"
FRESH_ROOTFS = """
cd /run/bench/restore
rm -rf upper work
mkdir upper work
cp config.json.orig config.json
mount -t overlay overlay -o lowerdir=$(cat lower),upperdir=upper,workdir=work rootfs
"""


def make_restore_bundle(target: Pod) -> None:
    """A bundle as containerd made it for *target*, for containers in the same sandbox."""
    make = """
    mkdir -p /run/bench/restore/rootfs /run/bench/work
    cd /run/bench/restore
    python3 - "$1" <<'END'
import json, sys
spec = json.load(open(sys.argv[1] + "/config.json"))
spec["root"]["path"] = "rootfs"
spec["linux"]["cgroupsPath"] += "-bench"
spec["annotations"].pop("org.criu.config")
json.dump(spec, open("config.json.orig", "w"))
END
    grep " $1/rootfs " /proc/self/mountinfo | sed 's/.*lowerdir=\\([^,]*\\).*/\\1/' > lower
    """
    target.node.run(["sh", "-ec", make, "make", task_dir(target)])


def digest_large(_bench: Bench, name: str) -> Row:
    """Digesting 2 GiB from the page cache, and what all cores could hash."""
    block = os.urandom(64 << 20)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        path = Path(directory, "large")
        with path.open("wb") as file:
            for _ in range(32):
                file.write(block)
        fd = os.open(directory, os.O_RDONLY)
        size_bytes = path.stat().st_size
        cores = len(os.sched_getaffinity(0))
        taken, ideal = [], []
        for _ in range(5):
            ideal.append(timed(lambda: blake3(block)) * (size_bytes / len(block)) / cores)
            taken.append(timed(lambda: digest.digest_tree(fd, ["large"])))
        os.close(fd)
    ours, theirs = statistics.median(taken), statistics.median(ideal)
    return Row(name, ours, theirs, ours / theirs, 1 / DIGEST_SHARE, theirs, "s")


RW_LAYER_RATIO = 1.5
SPARSE_BAR_S = 0.5
SMALL_FILES = 20_000
SPARSE_BYTES = 4 << 30


def rw_layer_save(_bench: Bench, name: str) -> Row:
    """Saving an rw layer of small files, and GNU tar with what it has to carry."""
    with small_files() as directory:

        def ours() -> None:
            save_layer(directory / "upper", directory / "ours.tar")

        def theirs() -> None:
            tar("-cf", directory / "theirs.tar", "-C", directory / "upper", ".")

        return ratio_row(name, *medians(ours, theirs), RW_LAYER_RATIO)


def rw_layer_apply(_bench: Bench, name: str) -> Row:
    """The same, put back."""
    with small_files() as directory:
        save_layer(directory / "upper", directory / "ours.tar")

        def ours() -> None:
            apply_layer(directory / "ours.tar", fresh(directory / "target"))

        def theirs() -> None:
            tar("-xf", directory / "ours.tar", "-C", fresh(directory / "target"))

        return ratio_row(name, *medians(ours, theirs), RW_LAYER_RATIO)


def rw_layer_sparse_save(_bench: Bench, name: str) -> Row:
    """Saving a sparse file and its digest."""
    with sparse_file() as directory:

        def work() -> None:
            save_layer(directory / "upper", directory / "ours.tar")
            digest_of(directory)

        return bar_row(name, statistics.median(timed(work) for _ in range(5)), SPARSE_BAR_S)


def rw_layer_sparse_apply(_bench: Bench, name: str) -> Row:
    """Its digest again, and putting it back."""
    with sparse_file() as directory:
        save_layer(directory / "upper", directory / "ours.tar")

        def work() -> None:
            digest_of(directory)
            apply_layer(directory / "ours.tar", fresh(directory / "target"))

        return bar_row(name, statistics.median(timed(work) for _ in range(5)), SPARSE_BAR_S)


@contextmanager
def small_files() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        for number in range(SMALL_FILES):
            path = Path(directory, "upper", str(number // 100), str(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(1000))
        yield Path(directory)


@contextmanager
def sparse_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        path = Path(directory, "upper", "sparse")
        path.parent.mkdir()
        with path.open("wb") as file:
            file.truncate(SPARSE_BYTES)
            file.seek(SPARSE_BYTES // 3)
            file.write(os.urandom(1 << 20))
        yield Path(directory)


def medians(ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of both, which take turns."""
    taken = [(timed(ours), timed(theirs)) for _ in range(3)]
    mine, other = zip(*taken, strict=True)
    return statistics.median(mine), statistics.median(other)


def save_layer(upper: Path, path: Path) -> None:
    path.unlink(missing_ok=True)
    upper_fd = os.open(upper, os.O_RDONLY)
    with path.open("xb") as file:
        layer_save.save(upper_fd, file.fileno())
    os.close(upper_fd)


def apply_layer(path: Path, target: Path) -> None:
    target_fd = os.open(target, os.O_RDONLY)
    with path.open("rb") as file:
        layer_apply.apply(file.fileno(), target_fd)
    os.close(target_fd)


def digest_of(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    digest.digest_tree(fd, ["ours.tar"])
    os.close(fd)


def fresh(directory: Path) -> Path:
    """A new directory in which as little lies as in a fresh root."""
    made = directory.with_name(f"{directory.name}-{os.urandom(4).hex()}")
    made.mkdir()
    return made


def tar(*arguments: str | Path) -> None:
    subprocess.run(["tar", "--xattrs", "--format=pax", *arguments], check=True)


def task_dir(pod: Pod) -> str:
    """The bundle of the pod's counter."""
    container_id = pod.container_ids["counter"]
    return f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{container_id}"


ROWS: dict[str, Callable[[Bench, str], Row]] = {
    "wrapper.state": pass_through("state"),
    "wrapper.kill": pass_through("kill", "0"),
    "wrapper.exec": pass_through("exec", "/bin/sh", "-c", ":"),
    "wrapper.pod_start": pod_start,
    "wrapper.restore_10mb": restore,
    "wrapper.digest": digest_large,
    "wrapper.rw_layer_save": rw_layer_save,
    "wrapper.rw_layer_apply": rw_layer_apply,
    "wrapper.rw_layer_sparse_save": rw_layer_sparse_save,
    "wrapper.rw_layer_sparse_apply": rw_layer_sparse_apply,
}
