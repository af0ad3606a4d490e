"""The privilege check: real dumps pass, and each of their fields raised is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from grit_runtime.errors import PrivilegeError
from grit_runtime.model import mount_plan, privilege
from grit_runtime.model.dump import Device, Dump
from grit_runtime.model.live_pod import LivePod
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image, tmpfs_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

GOLDENS = Path(__file__).parent.parent / "goldens"
M = TypeVar("M", bound="Message")

# Of the paths that containerd masks or makes read-only, those that this kernel has.
EXPOSED = frozenset(
    {
        "/proc/acpi",
        "/proc/bus",
        "/proc/fs",
        "/proc/interrupts",
        "/proc/irq",
        "/proc/keys",
        "/proc/sys",
        "/proc/timer_list",
        "/sys/firmware",
    }
)


def read(container: str) -> Dump:
    directory = GOLDENS / container
    names = tuple(sorted(path.name for path in directory.iterdir()))

    def all_of(name: str, message: type[M]) -> list[M]:
        data = (directory / name).read_bytes()
        return criu_image.entries(criu_image.parse(data, name=name), message)

    def numbered(kind: str, message: type[M]) -> dict[int, M]:
        files = [name for name in names if name.startswith(f"{kind}-")]
        return {int(n[len(kind) + 1 : -4]): all_of(n, message)[0] for n in files}

    nodes: list[tmpfs_image.Node] = []
    for name in names:
        if name.startswith("tmpfs-dev-"):
            with (directory / name).open("rb") as file:
                nodes += tmpfs_image.special_files(file.read, name=name).nodes
    (mountpoints,) = (name for name in names if name.startswith("mountpoints-"))
    return Dump(
        names=names,
        inventory=all_of("inventory.img", criu.inventory_entry)[0],
        tasks=tuple(all_of("pstree.img", criu.pstree_entry)),
        cores=numbered("core", criu.core_entry),
        ids=numbered("ids", criu.task_kobj_ids_entry),
        mounts=tuple(all_of(mountpoints, criu.mnt_entry)),
        files=tuple(all_of("files.img", criu.file_entry)),
        devices=tuple((node.name, Device(*node[1:])) for node in nodes),
        links={},
        seccomp=all_of("seccomp.img", criu.seccomp_entry)[0] if "seccomp.img" in names else None,
        userns=None,
        apparmor=None,
        remaps=(),
        cgroup=all_of("cgroup.img", criu.cgroup_entry)[0],
    )


def pod(container: str, **process: Any) -> LivePod:
    """The pod that the container was in, with members of config.json's process replaced."""
    spec = json.loads((GOLDENS / container / "config.json").read_text())
    spec["process"] |= process
    mounts = mount_plan.live_mounts(spec, lambda path: path.replace("/var/run/", "/run/"))
    guarded = {*spec["linux"]["maskedPaths"], *spec["linux"]["readonlyPaths"]}
    return LivePod(spec, tuple(mounts), frozenset(EXPOSED & guarded), frozenset())


def refusal(dump: Dump, live: LivePod) -> str:
    with pytest.raises(PrivilegeError) as caught:
        privilege.check(dump, live)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "container",
    [
        "criu-4.2/root",
        "criu-4.2/user",
        "criu-4.2/privileged",
        "criu-4.2/direct",
        "criu-4.1/root",
    ],
)
def test_a_real_dump_may_be_restored_into_the_pod_it_came_from(container: str) -> None:
    privilege.check(read(container), pod(container))


def test_only_a_name_of_the_dumps_own_may_be_removed_by_its_restore() -> None:
    dump, live = read("criu-4.2/root"), pod("criu-4.2/root")
    for remap_id, name, remap_type, allowed in (
        (900, b"/data/link_remap.900", 0, True),
        (900, b"/data/link_remap.900", None, True),
        (901, b"/data/link_remap.900", 0, False),
        (900, b"/data/precious", 0, False),
        (900, b"/data/precious", 1, True),  # a ghost's is a number of its image
    ):
        reg = criu.reg_file_entry(id=900, flags=0, pos=0, name=name)
        file = criu.file_entry(type=1, id=900, reg=reg)
        remap = criu.remap_file_path_entry(orig_id=1, remap_id=remap_id, remap_type=remap_type)
        forged = dump._replace(files=(*dump.files, file), remaps=(remap,))
        if allowed:
            privilege.check(forged, live)
        else:
            assert "expected a file called link_remap.9" in refusal(forged, live)


def test_a_dump_with_a_terminal_may_be_restored_into_its_pod() -> None:
    live = pod("criu-4.2/tty")
    del live.spec["linux"]["seccomp"]  # the golden has no seccomp.img
    privilege.check(read("criu-4.2/tty"), live)


def test_a_zombie_is_not_held_against_the_pod_and_its_thread_numbers_not_believed() -> None:
    dump = read("criu-4.2/user")
    zombies = [t for t in dump.tasks if dump.cores[t.pid].tc.task_state == 2]
    assert [list(zombie.threads) != [zombie.pid] for zombie in zombies] == [True]
    privilege.check(dump, pod("criu-4.2/user"))


@pytest.mark.parametrize("field", ["cap_prm", "cap_eff", "cap_amb", "cap_inh", "cap_bnd"])
@pytest.mark.parametrize("number", range(len(privilege.CAPABILITIES)))
def test_any_capability_in_any_set_of_a_pod_without_any_is_refused(field: str, number: int) -> None:
    dump = read("criu-4.2/user")
    getattr(dump.cores[7].thread_core.creds, field)[number // 32] |= 1 << number % 32
    name = privilege.CAPABILITIES[number]
    assert refusal(dump, pod("criu-4.2/user")).startswith(
        f"task 1 (python3), thread 7 (worker-1): {field} {name}; the pod allows no capabilities; "
    )


@pytest.mark.parametrize("field", ["cap_prm", "cap_eff", "cap_amb", "cap_inh", "cap_bnd"])
def test_a_capability_beyond_the_bounding_set_is_refused_by_name(field: str) -> None:
    dump = read("criu-4.2/root")
    getattr(dump.cores[9].thread_core.creds, field)[0] |= 1 << 21
    message = refusal(dump, pod("criu-4.2/root"))
    assert message.startswith(f"task 9 (python3): {field} CAP_SYS_ADMIN; the pod allows CAP_CHOWN,")
    assert message.endswith("restore into a pod with the securityContext of the checkpointed one")


def test_a_capability_that_no_kernel_had_yet_is_refused_as_unknown() -> None:
    dump = read("criu-4.2/privileged")
    dump.cores[1].thread_core.creds.cap_eff[1] |= 1 << 20
    assert "task 1 (python3): cap_eff unknown 0x10000000000000;" in refusal(
        dump, pod("criu-4.2/privileged")
    )


def test_what_config_json_calls_effective_does_not_count_for_another_user_than_root() -> None:
    """containerd lists the default capabilities for runAsUser too; exec takes them away."""
    sets = pod("criu-4.2/root").spec["process"]["capabilities"]
    dump = read("criu-4.2/user")
    for core in dump.cores.values():
        if core.HasField("thread_core"):
            core.thread_core.creds.uid = 0
    live = pod("criu-4.2/user", capabilities=sets, noNewPrivileges=False)
    assert refusal(dump, live).startswith("task 1 (python3): uid 0; the pod allows 1000; ")


@pytest.mark.parametrize(
    ("no_new_privs", "is_refused"), [(True, True), (False, False)], ids=["it can't", "it can"]
)
def test_a_file_on_disk_gives_another_user_bounded_capabilities_unless_forbidden(
    *, no_new_privs: bool, is_refused: bool
) -> None:
    sets = pod("criu-4.2/root").spec["process"]["capabilities"]
    dump = read("criu-4.2/user")
    dump.cores[1].thread_core.creds.cap_eff[0] = 1 << 13
    live = pod("criu-4.2/user", capabilities=sets, noNewPrivileges=no_new_privs)
    if is_refused:
        assert "task 1 (python3): cap_eff CAP_NET_RAW;" in refusal(dump, live)
    else:
        privilege.check(dump, live)


@pytest.mark.parametrize("field", ["uid", "euid", "suid", "fsuid", "gid", "egid", "sgid", "fsgid"])
def test_any_other_id_than_the_pods_is_refused_where_the_pod_can_not_change_it(field: str) -> None:
    dump = read("criu-4.2/user")
    setattr(dump.cores[8].thread_core.creds, field, 0)
    allowed = 1000 if "uid" in field else 3000
    assert refusal(dump, pod("criu-4.2/user")).startswith(
        f"task 8 (python3): {field} 0; the pod allows {allowed}; "
    )


def test_a_supplementary_group_that_the_pod_has_not_is_refused() -> None:
    dump = read("criu-4.2/user")
    dump.cores[6].thread_core.creds.groups.append(0)
    assert "thread 6 (worker-0): groups [0]; the pod allows [2000, 3000]; " in refusal(
        dump, pod("criu-4.2/user")
    )


@pytest.mark.parametrize(
    ("capability", "found"), [("CAP_SETUID", "uid 65534"), ("CAP_SETGID", "gid 65534")]
)
def test_a_worker_that_dropped_root_may_be_restored_only_where_it_could_have(
    capability: str, found: str
) -> None:
    dump = read("criu-4.2/root")
    sets = pod("criu-4.2/root").spec["process"]["capabilities"]
    live = pod(
        "criu-4.2/root",
        capabilities={**sets, "permitted": [n for n in sets["permitted"] if n != capability]},
    )
    assert refusal(dump, live).startswith(f"task 11 (dropped): {found}; the pod allows 0; ")


def test_a_thread_without_no_new_privs_is_refused_where_the_pod_sets_it() -> None:
    dump = read("criu-4.2/user")
    dump.cores[7].thread_core.creds.ClearField("no_new_privs")
    assert "thread 7 (worker-1): no_new_privs 0; the pod allows 1 " in refusal(
        dump, pod("criu-4.2/user")
    )


@pytest.mark.parametrize(
    ("secbits", "is_refused"), [(1, True), (4, True), (0x2F, True), (16, False)]
)
def test_secure_bits_need_the_capability_to_set_them(*, secbits: int, is_refused: bool) -> None:
    dump = read("criu-4.2/user")
    dump.cores[1].thread_core.creds.secbits = secbits
    if is_refused:
        assert f"secbits {secbits:#x}; the pod allows 0 " in refusal(dump, pod("criu-4.2/user"))
    else:
        privilege.check(dump, pod("criu-4.2/user"))


def test_a_priority_above_the_usual_needs_the_capability_to_set_it() -> None:
    dump = read("criu-4.2/root")
    dump.cores[1].thread_core.sched_nice = -5
    assert "sched_nice -5; the pod allows 0 or more" in refusal(dump, pod("criu-4.2/root"))
    dump = read("criu-4.2/privileged")
    dump.cores[1].thread_core.sched_nice = -5
    privilege.check(dump, pod("criu-4.2/privileged"))


@pytest.mark.parametrize(
    ("policy", "name"),
    [(1, "SCHED_FIFO"), (2, "SCHED_RR"), (6, "SCHED_DEADLINE"), (4, "4"), (1 << 31, "2147483648")],
)
@pytest.mark.parametrize("flag", [0, 0x40000000], ids=["", "reset on fork"])
def test_a_real_time_policy_needs_the_capability_to_set_it(
    policy: int, name: str, flag: int
) -> None:
    dump = read("criu-4.2/root")
    dump.cores[1].thread_core.sched_policy = policy | flag
    assert f"sched_policy {name}" in refusal(dump, pod("criu-4.2/root"))


@pytest.mark.parametrize("policy", [0, 3, 5, 7, 0x40000003])
def test_an_ordinary_policy_needs_nothing(policy: int) -> None:
    dump = read("criu-4.2/root")
    dump.cores[1].thread_core.sched_policy = policy
    privilege.check(dump, pod("criu-4.2/root"))


def without_credentials(dump: Dump) -> None:
    dump.cores[12].thread_core.ClearField("creds")


def without_thread_core(dump: Dump) -> None:
    dump.cores[1].ClearField("thread_core")


def without_state(dump: Dump) -> None:
    dump.cores[1].ClearField("tc")


def with_a_helpers_state(dump: Dump) -> None:
    dump.cores[1].tc.task_state = 4


def with_another_leader(dump: Dump) -> None:
    dump.tasks[0].threads[0] = 12


def with_two_roots(dump: Dump) -> None:
    dump.tasks[1].ppid = 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_credentials, "thread 12 (narrowed): its core image has no credentials"),
        (without_thread_core, "task 1 (python3): its core image has no credentials"),
        (without_state, "task 1: its core image has no state"),
        (with_a_helpers_state, "task 1 (python3): state 4, expected running, stopped or dead"),
        (with_another_leader, "task 1 (python3): expected it to be the first of its threads"),
        (with_two_roots, "2 tasks without a parent, expected one"),
    ],
)
def test_an_image_that_leaves_criu_to_its_own_privileges_is_refused(
    change: Callable[[Dump], None], reason: str
) -> None:
    dump = read("criu-4.2/root")
    change(dump)
    assert reason in refusal(dump, pod("criu-4.2/root"))


def test_a_name_that_would_break_the_line_is_shown_without_its_control_characters() -> None:
    dump = read("criu-4.2/user")
    dump.cores[1].tc.comm = b"a\nb\xff\x1b[31m"
    dump.cores[1].thread_core.creds.uid = 0
    assert refusal(dump, pod("criu-4.2/user")).startswith(
        "task 1 (a?b\N{REPLACEMENT CHARACTER}?[31m)"
    )


NAMESPACES = [("pid", "pid_ns_id"), ("network", "net_ns_id"), ("ipc", "ipc_ns_id")]
NAMESPACES += [("uts", "uts_ns_id"), ("mount", "mnt_ns_id")]


@pytest.mark.parametrize(("kind", "field"), NAMESPACES)
def test_a_namespace_of_the_nodes_is_refused_where_the_pod_has_its_own(
    kind: str, field: str
) -> None:
    dump = read("criu-4.2/root")
    for ids in dump.ids.values():
        setattr(ids, field, getattr(dump.inventory.root_ids, field))
    live = pod("criu-4.2/root")
    assert refusal(dump, live).startswith(f"{kind} namespace: the node's own; the pod allows one ")
    privilege.check(dump, live._replace(node_namespaces=frozenset({kind})))


@pytest.mark.parametrize(("kind", "field"), [*NAMESPACES, ("cgroup", "cgroup_ns_id")])
def test_a_task_in_a_namespace_of_its_own_is_refused_without_the_capability_to_make_one(
    kind: str, field: str
) -> None:
    dump = read("criu-4.2/root")
    setattr(dump.ids[9], field, 99)
    assert refusal(dump, pod("criu-4.2/root")).startswith(
        f"task 9: a {kind} namespace of its own; the pod allows that of the first task; "
    )
    dump = read("criu-4.2/privileged")
    child = next(task.pid for task in dump.tasks if task.ppid == 1 and task.pid in dump.ids)
    setattr(dump.ids[child], field, 99)
    privilege.check(dump, pod("criu-4.2/privileged"))


def with_user_namespace(live: LivePod, **member: str) -> LivePod:
    linux = live.spec["linux"]
    linux["namespaces"].append({"type": "user", **member})
    linux["uidMappings"] = [{"containerID": 0, "hostID": 65536, "size": 65536}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": 65536, "size": 65536}]
    return live


def in_user_namespace(lower_first: int) -> Dump:
    dump = read("criu-4.2/root")
    for ids in dump.ids.values():
        ids.user_ns_id = 99
    extent = criu.uid_gid_extent(first=0, lower_first=lower_first, count=65536)
    return dump._replace(userns=criu.userns_entry(uid_map=[extent], gid_map=[extent]))


def test_a_dump_in_a_user_namespace_fits_a_pod_in_one_with_the_same_ids() -> None:
    privilege.check(in_user_namespace(65536), with_user_namespace(pod("criu-4.2/root")))


def test_ids_of_a_joined_user_namespace_are_the_namespaces_own() -> None:
    live = with_user_namespace(pod("criu-4.2/root"), path="/proc/7/ns/user")
    privilege.check(in_user_namespace(0), live)


def test_a_user_namespace_that_maps_to_other_ids_of_the_node_is_refused() -> None:
    live = with_user_namespace(pod("criu-4.2/root"))
    assert refusal(in_user_namespace(0), live).startswith(
        "user namespace: uidMappings [(0, 0, 65536)]; the pod allows [(0, 65536, 65536)]; "
    )


def test_a_dump_outside_a_user_namespace_is_refused_by_a_pod_in_one() -> None:
    live = with_user_namespace(pod("criu-4.2/root"))
    assert "user namespace: the node's own" in refusal(read("criu-4.2/root"), live)


def test_a_dump_in_a_user_namespace_is_refused_by_a_pod_outside() -> None:
    assert "user namespace: one of its own" in refusal(
        in_user_namespace(65536), pod("criu-4.2/root")
    )


@pytest.mark.parametrize(
    ("process", "argument"),
    [
        ({"apparmorProfile": "cri-default"}, "apparmor:cri-default"),
        (
            {"selinuxLabel": "system_u:system_r:c_t:s0:c1,c2"},
            "selinux:system_u:system_r:c_t:s0:c1,c2",
        ),
        ({"apparmorProfile": "unconfined"}, None),
        ({"apparmorProfile": "", "selinuxLabel": ""}, None),
        ({}, None),
    ],
)
def test_the_profile_of_a_restored_container_is_the_live_pods(
    process: dict[str, str], argument: str | None
) -> None:
    assert privilege.lsm_profile({"process": process}) == argument


@pytest.mark.parametrize(
    ("process", "lsm_type"), [({"apparmorProfile": "p"}, 2), ({"selinuxLabel": "a:b:c:s0"}, 1)]
)
def test_a_thread_that_was_confined_by_nothing_would_stay_so_and_is_refused(
    process: dict[str, str], lsm_type: int
) -> None:
    dump = read("criu-4.2/root")
    live = pod("criu-4.2/root", **process)
    dump.inventory.lsmtype = lsm_type
    for core in dump.cores.values():
        if core.HasField("thread_core"):
            core.thread_core.creds.lsm_profile = b"old"
    privilege.check(dump, live)
    dump.cores[7].thread_core.creds.ClearField("lsm_profile")
    assert "thread 7 (worker-0): lsm_profile: none; the pod allows " in refusal(dump, live)
    dump.cores[7].thread_core.creds.lsm_profile = b"old"
    dump.inventory.lsmtype = 0
    assert "task 1 (python3): lsm_profile: none" in refusal(dump, live)


def test_policies_that_criu_would_load_into_the_kernel_are_refused() -> None:
    apparmor = criu.apparmor_entry(namespaces=[criu.aa_namespace(name=b"ns1")])
    dump = read("criu-4.2/root")._replace(apparmor=apparmor)
    assert "apparmor.img: policies for the namespace ns1;" in refusal(dump, pod("criu-4.2/root"))


def raw_socket() -> criu.file_entry:
    file = criu.file_entry(type=4, id=7)
    file.isk.MergeFrom(
        criu.inet_sk_entry(id=7, ino=1, family=2, type=3, proto=1, state=7, src_port=0, dst_port=0)
    )
    return file


@pytest.mark.parametrize(
    ("file", "what", "capability"),
    [
        (criu.file_entry(type=10, id=7), "packet socket", "CAP_NET_RAW"),
        (raw_socket(), "raw socket", "CAP_NET_RAW"),
        (criu.file_entry(type=12, id=7), "fanotify group", "CAP_SYS_ADMIN"),
        (criu.file_entry(type=15, id=7), "tun device", "CAP_NET_ADMIN"),
        (criu.file_entry(type=19, id=7), "BPF map", "CAP_BPF"),
    ],
)
def test_a_file_that_takes_a_capability_to_open_is_refused_without_it(
    file: criu.file_entry, what: str, capability: str
) -> None:
    dump = read("criu-4.2/user")
    dump = dump._replace(files=(*dump.files, file))
    assert refusal(dump, pod("criu-4.2/user")).startswith(
        f"file 7: a {what}; the pod allows none without {capability}; "
    )
    privilege.check(read("criu-4.2/privileged")._replace(files=(file,)), pod("criu-4.2/privileged"))


@pytest.mark.parametrize("name", [b"../../etc/x", b"a/../b", b".."])
def test_a_file_whose_name_leads_upwards_is_refused_to_anyone(name: bytes) -> None:
    reg = criu.reg_file_entry(id=7, flags=0, pos=0, name=name)
    dump = read("criu-4.2/privileged")
    dump = dump._replace(files=(criu.file_entry(type=1, id=7, reg=reg),))
    assert "expected no '..' in it" in refusal(dump, pod("criu-4.2/privileged"))


def test_open_files_in_images_of_the_old_kinds_are_refused_unread() -> None:
    dump = read("criu-4.2/user")
    dump = dump._replace(names=tuple(name for name in dump.names if name != "files.img"), files=())
    assert "files.img is missing" in refusal(dump, pod("criu-4.2/user"))


@pytest.mark.parametrize(
    "node",
    [("./sda", Device("b", 8, 0)), ("./mem", Device("c", 1, 1)), ("./null", Device("b", 1, 3))],
)
def test_a_device_node_that_the_pod_has_not_is_refused(node: tuple[str, Device]) -> None:
    dump = read("criu-4.2/user")
    dump = dump._replace(devices=(*dump.devices, node))
    assert refusal(dump, pod("criu-4.2/user")).startswith(f"device node {node[0]}: ")


def test_a_device_that_the_checkpointed_pod_had_is_refused_by_one_without_it() -> None:
    live = pod("criu-4.2/user")
    del live.spec["linux"]["devices"]
    assert "device node ./fuse: c 10:229 is not in the pod's config.json" in refusal(
        read("criu-4.2/user"), live
    )


def test_an_unbuffered_device_is_a_character_device_and_a_fifo_none() -> None:
    given = [{"type": "u", "path": "/dev/u", "major": 9, "minor": 1}, {"type": "p", "path": "/p"}]
    extra = privilege.devices({"linux": {"devices": given}}) - privilege.devices({"linux": {}})
    assert extra == {Device("c", 9, 1)}
