"""The list of checks: a real dump passes, and one with any fact broken is refused by the list."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grit_runtime.dump import fit_to_pod, images
from grit_runtime.errors import FailedPreconditionError, GritError
from grit_runtime.model import manifest as manifests
from grit_runtime.model import mount_plan
from grit_runtime.model.live_pod import LivePod
from grit_runtime.model.manifest import Node
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.restore import checks
from grit_runtime.restore.checks import Case, Here
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    Change = Callable[[Path, dict[str, Any]], object]

PACKAGE = Path(checks.__file__).parent
GOLDEN = Path(__file__).parent.parent / "goldens/criu-4.2/root"
NODE = Node("6.18", "x86_64", ("avx2", "sse2"), "4.2.1", "1.3.6", "2.1.9", "")
HERE = Here(NODE, NODE, "refuse", frozenset(), dict)
EXPOSED = frozenset({"/proc/acpi", "/proc/keys", "/proc/sys", "/sys/firmware"})
MEMORY = "pagemap-1.img"
ASKED = re.compile(
    r"(privilege|seccomp|mount_check|cgroup_check|links|open_files)\.check|pod_check\.check_\w+"
    r"|compatibility\.refusals|images\.check_pages|runc_dump\.adapted"
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of one container, with a page of memory; beside it an empty root."""
    shutil.copytree(GOLDEN, tmp_path / "main/checkpoint")
    (tmp_path / "rootfs").mkdir()
    head = criu.pagemap_head(pages_id=1)
    page = criu.pagemap_entry(vaddr=4096, compat_nr_pages=1, nr_pages=1, flags=4)
    write(tmp_path / "main/checkpoint" / MEMORY, head, page)
    (tmp_path / "main/checkpoint/pages-1.img").write_bytes(bytes(4096))
    return tmp_path


def case(checkpoint: Path, spec: dict[str, Any], *, running: tuple[str, ...] = ("main",)) -> Case:
    """The container, held against the pod that it was in, but for what a test has changed."""
    mounts = mount_plan.live_mounts(spec, lambda path: path.replace("/var/run/", "/run/"))
    live = LivePod(spec, tuple(mounts), EXPOSED, frozenset())
    images_fd = os.open(checkpoint / "main/checkpoint", os.O_RDONLY)
    dump, fitted = fit_to_pod.adapt_open_files(images_fd, images.read(images_fd), live, ())
    return Case(
        path=str(checkpoint),
        checkpoint_fd=os.open(checkpoint, os.O_RDONLY),
        container=manifests.for_foreign_dump(["main"], {}).containers[0],
        running=running,
        rootfs_dir=str(checkpoint / "rootfs"),
        images_fd=images_fd,
        dump=dump,
        live=live,
        plan=mount_plan.plan_mounts(mount_plan.dumped_mounts(dump.mounts), live.mounts),
        fitted=fitted,
    )


def spec_of_golden() -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((GOLDEN / "config.json").read_text())
    return spec


def write(path: Path, *entries: Message) -> None:
    payloads = tuple(entry.SerializeToString() for entry in entries)
    image = Image(path.name, criu_image.kind_of(path.name).magics, payloads)
    path.write_bytes(criu_image.serialize(image))


def forged(name: str, change: Callable[[Any], object], *, which: int = 0) -> Change:
    """What changes one entry of an image, given by a pattern of its name."""

    def forge(checkpoint: Path, _spec: dict[str, Any]) -> None:
        (path,) = (checkpoint / "main/checkpoint").glob(name)
        image = criu_image.parse(path.read_bytes(), name=path.name)
        entry = criu_image.entries(image, criu_image.kind_of(path.name).message)[which]
        change(entry)
        path.write_bytes(criu_image.serialize(criu_image.with_entry(image, which, entry)))

    return forge


def core(change: Callable[[criu.core_entry], object]) -> Change:
    return forged("core-1.img", change)


def mount(place: bytes, **fields: Any) -> Change:
    def forge(checkpoint: Path, spec: dict[str, Any]) -> None:
        (path,) = (checkpoint / "main/checkpoint").glob("mountpoints-*.img")
        image = criu_image.parse(path.read_bytes(), name=path.name)
        entries = criu_image.entries(image, criu.mnt_entry)
        which = next(i for i, entry in enumerate(entries) if entry.mountpoint == place)
        change = criu.mnt_entry(**fields)
        forged("mountpoints-*.img", lambda entry: entry.MergeFrom(change), which=which)(
            checkpoint, spec
        )

    return forge


def without_mask(checkpoint: Path, _spec: dict[str, Any]) -> None:
    (path,) = (checkpoint / "main/checkpoint").glob("mountpoints-*.img")
    image = criu_image.parse(path.read_bytes(), name=path.name)
    entries = criu_image.entries(image, criu.mnt_entry)
    write(path, *(entry for entry in entries if entry.mountpoint != b"/proc/acpi"))


def added(name: str, entry: Message) -> Change:
    return lambda checkpoint, _: write(checkpoint / "main/checkpoint" / name, entry)


def removed(pattern: str) -> Change:
    def forge(checkpoint: Path, _spec: dict[str, Any]) -> None:
        for path in (checkpoint / "main/checkpoint").glob(pattern):
            path.unlink()

    return forge


def in_spec(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda _, spec: change(spec)


def without_volume(spec: dict[str, Any]) -> None:
    spec["mounts"] = [one for one in spec["mounts"] if one["destination"] != "/data"]


def with_limit(spec: dict[str, Any]) -> None:
    spec["linux"]["resources"] = {"memory": {"limit": 4095}}


def without_filters(checkpoint: Path, _spec: dict[str, Any]) -> None:
    for path in (checkpoint / "main/checkpoint").glob("core-*.img"):
        image = criu_image.parse(path.read_bytes(), name=path.name)
        entry = criu_image.entry(image, criu.core_entry)
        entry.thread_core.seccomp_mode = 0
        path.write_bytes(criu_image.serialize(criu_image.with_entry(image, 0, entry)))


def opens(name: bytes) -> Callable[[criu.file_entry], None]:
    def change(entry: criu.file_entry) -> None:
        reg = criu.reg_file_entry(id=entry.id, flags=0, pos=0, name=name)
        entry.CopyFrom(criu.file_entry(type=1, id=entry.id, reg=reg))

    return change


def holds_raw_socket(entry: criu.file_entry) -> None:
    socket = criu.inet_sk_entry(id=entry.id, ino=1, family=2, type=3, proto=1, state=7)
    socket.src_port = socket.dst_port = 0
    entry.CopyFrom(criu.file_entry(type=4, id=entry.id, isk=socket))


def names_a_fourth_stream(checkpoint: Path, _spec: dict[str, Any]) -> None:
    path = checkpoint / "main/checkpoint/descriptors.json"
    path.write_text('["", "", "", "pipe:[1]"]')


def drops_net_raw(spec: dict[str, Any]) -> None:
    for held in spec["process"]["capabilities"].values():
        held.remove("CAP_NET_RAW")


BROKEN = {
    "a volume": (in_spec(without_volume), "the new pod mounts nothing at /data"),
    "a capability": (
        core(lambda c: c.thread_core.creds.cap_eff.__setitem__(0, 1 << 21)),
        "task 1 .*cap_eff CAP_SYS_ADMIN",
    ),
    "the bounding set": (in_spec(drops_net_raw), "cap_prm CAP_NET_RAW"),
    "no_new_privs": (
        in_spec(lambda spec: spec["process"].update(noNewPrivileges=True)),
        "no_new_privs 0",
    ),
    "a policy": (
        core(lambda c: setattr(c.thread_core, "sched_policy", 0x40000001)),
        "sched_policy SCHED_FIFO",
    ),
    "a nice value": (core(lambda c: setattr(c.thread_core, "sched_nice", -5)), "sched_nice -5"),
    "a task's state": (core(lambda c: setattr(c.tc, "task_state", 9)), "state 9, expected running"),
    "a seccomp filter": (without_filters, "seccomp"),
    "a namespace": (
        forged("ids-1.img", lambda ids: setattr(ids, "net_ns_id", 1 << 30)),
        "network namespace|a network namespace of its own",
    ),
    "an AppArmor policy": (
        added("apparmor.img", criu.apparmor_entry(namespaces=[criu.aa_namespace(name=b"ns1")])),
        "policies for the namespace ns1",
    ),
    "files.img": (removed("files.img"), "files.img is missing"),
    "a file's name": (forged("files.img", opens(b"../../etc/shadow")), "expected no '..' in it"),
    "a file of a thread": (
        forged("files.img", opens(b"/proc/1/task/7/stat")),
        r"file \d+ of task \d+ \(\w+\): '/proc/1/task/7/stat' is of a thread",
    ),
    "a file of another's process": (
        forged("files.img", opens(b"/proc/4711/maps")),
        "'/proc/4711/maps' is of a thread or a process that is not there",
    ),
    "a device node": (
        added("ghost-file-1.img", criu.ghost_file_entry(uid=0, gid=0, mode=0o060666, rdev=0xFE00)),
        "device node ghost-file-1.img: b 254:0",
    ),
    "a deleted file's other name": (
        added("remap-fpath.img", criu.remap_file_path_entry(orig_id=1, remap_id=99, remap_type=0)),
        "which the restore would remove",
    ),
    "a cgroup": (
        forged("cgroup.img", lambda group: setattr(group.sets[0].ctls[1], "path", b"/")),
        "a task in / of .*, expected one in the container's",
    ),
    "a mount's file system": (mount(b"/dev", fstype=9), "file system type 9"),
    "a mask": (without_mask, "the dump leaves /proc/acpi open"),
    "memory": (
        lambda at, _: (at / "main/checkpoint/pages-1.img").write_bytes(b"cut"),
        "pages-1.img: 3 bytes, expected 4096",
    ),
    "the memory limit": (in_spec(with_limit), "holds 4096 bytes of memory, but .* limit is 4095"),
    "descriptors.json": (names_a_fourth_stream, "descriptors.json: expected a list of at most 3"),
    "the network": (
        added("netns-11.img", criu.netns_entry()),
        "the dump brings a network of its own",
    ),
}


def test_a_real_dump_is_taken_by_the_pod_that_it_is_of(checkpoint: Path) -> None:
    held = case(checkpoint, spec_of_golden())
    assert checks.check(held).keys() >= {"descriptors.json"}  # the goldens have none
    checks.check_here(held, HERE)
    assert list(checks.refusals(held, HERE)) == []


@pytest.mark.parametrize("fact", BROKEN)
def test_a_dump_with_a_fact_broken_is_refused_with_its_name(checkpoint: Path, fact: str) -> None:
    break_it, name = BROKEN[fact]
    spec = spec_of_golden()
    break_it(checkpoint, spec)
    held = case(checkpoint, spec)
    with pytest.raises(GritError, match=name) as refused:
        checks.check(held)
    assert str(refused.value) in checks.refusals(held, HERE)
    with (
        pytest.raises(FailedPreconditionError, match=r"^container main cannot come back: ") as told,
        checks.of_source("main"),
    ):
        checks.check(held)
    assert "restore into a pod" not in str(told.value)


def test_sysv_memory_that_two_containers_have_attached_is_refused(checkpoint: Path) -> None:
    forged("mm-1.img", lambda mm: setattr(mm.vmas[0], "status", 1 << 10))(checkpoint, {})
    (checkpoint / "main/checkpoint/ipcns-shm-11.img").touch()
    shutil.copytree(checkpoint / "main", checkpoint / "other")
    checks.check(case(checkpoint, spec_of_golden()))
    with pytest.raises(FailedPreconditionError, match="containers main and other have attached"):
        checks.check(case(checkpoint, spec_of_golden(), running=("main", "other")))


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (HERE._replace(taken_on=NODE._replace(criu="5.0")), "install CRIU 5.0 or newer"),
        (HERE._replace(taken_on=NODE._replace(machine="aarch64")), "taken on aarch64"),
    ],
)
def test_what_the_node_lacks_is_for_the_restore_and_the_rehearsal_to_refuse(
    checkpoint: Path, here: Here, reason: str
) -> None:
    held = case(checkpoint, spec_of_golden())
    with pytest.raises(FailedPreconditionError, match=reason):
        checks.check_here(held, here)
    assert any(reason in refused for refused in checks.refusals(held, here))


def test_a_link_in_the_root_is_seen_when_the_root_is_in_place(checkpoint: Path) -> None:
    (checkpoint / "rootfs/usr").symlink_to("/proc/self/fd")
    held = case(checkpoint, spec_of_golden())
    checks.check(held)
    with pytest.raises(GritError, match=r"^file \d+ of task \d+ \(.*\): '/usr/.* through the link"):
        checks.check_files(held)


@pytest.mark.parametrize(
    "path", sorted(set(PACKAGE.glob("*.py")) - {PACKAGE / "checks.py"}), ids=lambda path: path.name
)
def test_nobody_asks_beside_the_list(path: Path) -> None:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    assert [
        call for call in (ast.unparse(node.func) for node in calls) if ASKED.fullmatch(call)
    ] == []
