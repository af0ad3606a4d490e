"""What grit-runtime costs, side by side with what a user would run instead, in one run.

A row's ratio is ours over theirs, as costs; its limit is the most that is allowed. Each figure is
the median of pairs that take turns, so that a slow moment of the machine meets both sides.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from grit_runtime.host import digest
from grit_runtime.model import mount_plan
from grit_runtime.model.mount_plan import LiveMount
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Image
from integration import benchmark_shim, checkpoints, images, kubelet, rootfs, workload
from integration.measure import Bench, Row, Side, allowance_row, bar_row, timed
from integration.pod_spec import ContainerSpec, PodSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.kubelet import Pod

STATE = "/run/bench/runc"
PASS_THROUGH_ALLOWANCE_S = 0.015
POD_START_ALLOWANCE_S = 0.065
RESTORE_ALLOWANCE_S = 0.150
DIGEST_SHARE = 0.8

RUNC_ROOT = "/run/containerd/runc/k8s.io"


def main() -> None:
    arguments = [word for word in sys.argv[1:] if word != "--json"]
    chosen = [
        name for name in ROWS if not arguments or any(name.startswith(word) for word in arguments)
    ]
    if not chosen:
        sys.exit(f"no row {' '.join(arguments)}, only: {', '.join(ROWS)}")
    with Bench() as bench:
        rows = [ROWS[name](bench, name) for name in chosen]
    if "--json" in sys.argv:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    else:
        print_table(rows)
    if any(map(is_over, rows)):
        sys.exit(1)


def print_table(rows: list[Row]) -> None:
    print(f"{'row':<22}{'ours':>10}{'theirs':>10}{'ratio':>8}{'limit':>8}{'bound':>10}  unit")
    for row in rows:
        bound = f"{row.bound:10.4f}" if row.bound is not None else f"{'-':>10}"
        limit = f"{row.limit:8.2f}" if row.limit is not None else f"{'-':>8}"
        over = "  OVER" if is_over(row) else ""
        print(
            f"{row.name:<22}{row.ours:10.4f}{row.theirs:10.4f}{row.ratio:8.2f}{limit}"
            f"{bound}  {row.unit}{over}"
        )


def is_over(row: Row) -> bool:
    return row.limit is not None and row.ratio > row.limit


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
    """A restore by the wrapper's `create`, and `runc restore` of the same images."""
    node = bench.node
    checkpoints.take(bench.counter, "bench", "--replace")
    images_dir = "/mnt/grit-agent/default/bench/counter/checkpoint"
    annotations = (("grit.dev/restore-name", "bench"),)
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
        return allowance_row(name, *bench.pairs(15, ours=ours, theirs=theirs), RESTORE_ALLOWANCE_S)


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
            ideal.append(timed(lambda: hashlib.sha256(block)) * (size_bytes / len(block)) / cores)
            taken.append(timed(lambda: digest.digest_tree(fd, ["large"])))
        os.close(fd)
    ours, theirs = statistics.median(taken), statistics.median(ideal)
    return Row(name, ours, theirs, ours / theirs, 1 / DIGEST_SHARE, theirs, "s")


PLAN_BAR_S = 0.050
DECODE_BAR_S = 1.0
VOLUMES = 200
PROCESSES = 200


def plan(_bench: Bench, name: str) -> Row:
    """Pairing 200 mounts of a dump that CRIU made alone with a pod's; the image is made anew."""
    places = [f"/volumes/{number}" for number in range(VOLUMES)]
    payloads = tuple(dumped_mount(place).SerializeToString() for place in places)
    image_name = "mountpoints-1.img"
    data = criu_image.serialize(Image(image_name, criu_image.kind_of(image_name).magics, payloads))
    live = [LiveMount(place, f"/new{place}", "bind", ("rbind",)) for place in places]

    def work() -> None:
        image = criu_image.parse(data, name=image_name)
        dumped = mount_plan.dumped_mounts(criu_image.entries(image, criu.mnt_entry))
        found = mount_plan.plan_mounts(dumped, live)
        assert len(found.remapped) == VOLUMES
        criu_image.serialize(mount_plan.with_keys(image, found))

    return bar_row(name, statistics.median(timed(work) for _ in range(20)), PLAN_BAR_S)


def dumped_mount(place: str) -> criu.mnt_entry:
    return criu.mnt_entry(
        fstype=0, mnt_id=1, root_dev=1, parent_mnt_id=1, flags=0, options=b"discard",
        root=f"/var/lib/kubelet/pods/OLD{place}".encode(), mountpoint=place.encode(),
        source=b"/dev/sda", ext_key=b"CRIU:AUTOGENERATED",
    )  # fmt: skip


# Forks its processes, each with a file of its own open, and waits with them.
MANY = """
import os, sys, time
for number in range(int(sys.argv[1]) - 1):
    if os.fork() == 0:
        held = open(f"/{number}", "w")
        time.sleep(100000)
print("ready", flush=True)
time.sleep(100000)
"""
DECODE = """
import os, sys, time
from grit_runtime.host import images
from grit_runtime.wire import criu_image
fd = os.open(sys.argv[1], os.O_RDONLY)
begin = time.perf_counter()
dump = images.read(fd)
assert len(dump.tasks) == int(sys.argv[2])
for name in dump.names:
    stem = name.removesuffix(".img")
    if name.startswith("pagemap-"):
        criu_image.pages(images.load(fd, name))
    elif {stem, stem.rpartition("-")[0]} & criu_image.KINDS.keys():
        criu_image.entries(images.load(fd, name), criu_image.kind_of(name).message)
print(time.perf_counter() - begin)
"""


def decode(bench: Bench, name: str) -> Row:
    """Decoding the metadata images of a dump of 200 processes, those that the checks read twice."""
    container = ContainerSpec(
        name="many",
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", MANY, str(PROCESSES)),
    )
    with kubelet.running(bench.node, PodSpec(name="many", containers=(container,))) as pod:
        pod.wait_for_log("many", "ready\n")
        checkpoints.take(pod, "many", "--replace")
    python = f"/{rootfs.VENV}/bin/python"
    images_dir = "/mnt/grit-agent/default/many/many/checkpoint"
    call = [python, "-c", DECODE, images_dir, str(PROCESSES)]
    taken = [float(bench.node.run(call).stdout) for _ in range(5)]
    return bar_row(name, statistics.median(taken), DECODE_BAR_S)


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
    "control.plan": plan,
    "control.decode": decode,
    **benchmark_shim.ROWS,
}


if __name__ == "__main__":
    main()
