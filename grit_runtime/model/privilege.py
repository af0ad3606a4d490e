"""Checking that a dump asks for no more than the live pod may have. Pure; the first excess refuses.

CRIU runs as root and gives a task what its image says: credentials, namespaces, cgroups, mounts,
sockets. An image is untrusted, so all of it is compared with the live config.json. A thread may
have what the pod's own process could have reached, not what a root pod could.

Spec: checkpoint-restore/criu criu/cr-restore.c rst_prep_creds_args and check_core, criu/pie/
restorer.c restore_creds, criu/pstree.c get_clone_mask@2cf8f13; linux security/commoncap.c
cap_bprm_creds_from_file; opencontainers/runtime-spec config.md, config-linux.md@v1.2.0.
"""

from __future__ import annotations

from typing import Any

from grit_runtime.errors import PrivilegeError
from grit_runtime.model import (
    cgroup_check,
    mount_check,
    namespaces,
    nvidia_nodes,
    socket_options,
    task_facts,
)
from grit_runtime.model.dump import ALIVE, DEAD, STOPPED, Device, DumpedThread
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from grit_runtime.model.dump import Dump
    from grit_runtime.model.live_pod import LivePod
    from grit_runtime.model.task_facts import ProcessFacts
    from grit_runtime.proto import criu_pb2 as criu

# In the order of linux include/uapi/linux/capability.h.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

_REMEDY = "restore into a pod with the securityContext of the checkpointed one"

_IOPRIO_CLASS_SHIFT, _IOPRIO_CLASS_RT = 13, 1  # include/uapi/linux/ioprio.h
_KEEP_CAPS = 1 << 4  # the one securebit that needs no CAP_SETPCAP
# include/uapi/linux/sched.h; the flag, which CRIU keeps among the policies, makes none harmless.
_REALTIME = {1: "SCHED_FIFO", 2: "SCHED_RR", 6: "SCHED_DEADLINE"}
_ORDINARY = frozenset({0, 3, 5, 7})  # SCHED_OTHER, _BATCH, _IDLE, _EXT
_RESET_ON_FORK = 0x40000000
_SOCK_RAW = 3
_MADE_ANEW = frozenset({1, 2})  # GHOST and PROCFS of remap-file-path.proto
_INETSK = 4
_FILE_NEEDS = {  # fd_types of fdinfo.proto, by what opening one takes
    10: ("packet socket", "CAP_NET_RAW"),
    12: ("fanotify group", "CAP_SYS_ADMIN"),
    15: ("tun device", "CAP_NET_ADMIN"),
    19: ("BPF map", "CAP_BPF"),
}
_LSM_TYPES = {"selinux": 1, "apparmor": 2}


# null, zero, full, random, urandom, tty and ptmx: runc gives them to every container.
_DEFAULT_DEVICES = frozenset(
    Device("c", major, minor)
    for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))
)


class Allowed(NamedTuple):
    """What the pod's own process may hold; capability sets are bit masks.

    *held* are its capabilities after exec, *reach* those it can gain through files on its disk.
    """

    bounding: int
    held: int
    reach: int
    uid: int
    gid: int
    groups: frozenset[int]
    no_new_privs: bool


def check(dump: Dump, live: LivePod) -> None:
    """PrivilegeError, which names task, field, value and what the pod allows, at any excess."""
    allowed = _allowed(live.spec)
    is_admin = _has(allowed.reach, "CAP_SYS_ADMIN")
    threads = list(_threads(dump))
    for thread in threads:
        _check_credentials(thread, allowed)
        _check_lsm(thread, dump, live.spec)
    profile = live.spec["linux"].get("seccomp")
    if profile is not None:
        from grit_runtime.model import seccomp  # many pods have no profile

        seccomp.check(threads, dump.seccomp, profile)
    _check_namespaces(dump, live, is_admin=is_admin)
    _check_policies(dump)
    _check_files(dump, allowed)
    _check_remaps(dump)
    check_devices(dump.devices, live.spec)
    cgroup_check.check(dump.cgroup, own_set=dump.inventory.root_cg_set)
    mount_check.check(dump.mounts, live.spec, live.mounts, live.exposed, is_admin=is_admin)


def check_facts(facts: Iterable[ProcessFacts], spec: dict[str, Any]) -> None:
    """PrivilegeError for facts to be restored that a process could not set itself in the pod."""
    facts = tuple(facts)
    task_facts.check(facts)
    reach = _allowed(spec).reach
    for process in facts:
        where = f"process {process.pid}"
        for thread in process.threads:
            is_realtime = thread.io_priority >> _IOPRIO_CLASS_SHIFT == _IOPRIO_CLASS_RT
            if is_realtime and not (_has(reach, "CAP_SYS_NICE") or _has(reach, "CAP_SYS_ADMIN")):
                _refuse(where, "a real-time I/O priority", "none without CAP_SYS_NICE")
        for one in process.sockets:
            for option in one.options:
                needed = socket_options.needs(option.level, option.name, option.value)
                if needed and not _has(reach, needed):
                    what = f"option {option.level}/{option.name} of socket {one.fd}"
                    _refuse(where, what, f"it with {needed} only")


def lsm_profile(spec: dict[str, Any]) -> str | None:
    """What `runc restore --lsm-profile` takes, for the pod's own profile; None if it has none."""
    process = spec["process"]
    apparmor, selinux = process.get("apparmorProfile", ""), process.get("selinuxLabel", "")
    if apparmor and apparmor != "unconfined":
        return f"apparmor:{apparmor}"
    return f"selinux:{selinux}" if selinux else None


def devices(spec: dict[str, Any]) -> frozenset[Device]:
    """The device nodes of the container: config.json's, and those that runc makes in all."""
    given = spec["linux"].get("devices") or ()
    return _DEFAULT_DEVICES | {
        Device("c" if d["type"] == "u" else d["type"], d["major"], d["minor"])
        for d in given
        if d["type"] != "p"
    }


def check_devices(nodes: Iterable[tuple[str, Device]], spec: dict[str, Any]) -> None:
    """PrivilegeError unless every node, given with its name, is one of the pod's."""
    allowed = devices(spec)
    for name, device in nodes:
        # The restore replaces the old pod's NVIDIA nodes by the new one's; until then the new pod's
        # device cgroup forbids opening them.
        if device not in allowed and not nvidia_nodes.is_named_as_one(name):
            raise PrivilegeError(
                f"device node {name}: {device.type} {device.major}:{device.minor} is not in the "
                "pod's config.json; give the pod the device, or leave it out of the checkpoint"
            )


def _threads(dump: Dump) -> Iterable[DumpedThread]:
    """Every thread that will run. A zombie is only a pid and an exit code; it runs nothing."""
    for task in dump.tasks:
        leader = dump.cores[task.pid]
        where = f"task {task.pid} ({_shown(leader.tc.comm)})"
        if not leader.HasField("tc"):
            raise PrivilegeError(f"task {task.pid}: its core image has no state; expected one")
        if leader.tc.task_state == DEAD:
            continue
        if leader.tc.task_state not in {ALIVE, STOPPED}:
            raise PrivilegeError(
                f"{where}: state {leader.tc.task_state}, expected running, stopped or dead"
            )
        if task.threads[:1] != [task.pid]:
            raise PrivilegeError(f"{where}: expected it to be the first of its threads")
        yield DumpedThread(where, leader, leader)
        for tid in task.threads[1:]:
            core = dump.cores[tid]
            comm = _shown(core.thread_core.comm)
            yield DumpedThread(f"{where}, thread {tid} ({comm})", core, leader)


def _allowed(spec: dict[str, Any]) -> Allowed:
    process = spec["process"]
    user = process["user"]
    sets = process.get("capabilities") or {}
    bounding = _mask(sets.get("bounding"))
    no_new_privs = bool(process.get("noNewPrivileges"))
    # exec leaves another user than root only the ambient set, whatever config.json says besides.
    held = _mask(sets.get("permitted" if user["uid"] == 0 else "ambient")) & bounding
    return Allowed(
        bounding=bounding,
        held=held,
        reach=held if no_new_privs else bounding,
        uid=user["uid"],
        gid=user["gid"],
        groups=frozenset({user["gid"], *(user.get("additionalGids") or ())}),
        no_new_privs=no_new_privs,
    )


def _check_credentials(thread: DumpedThread, allowed: Allowed) -> None:
    # Without credentials in the image CRIU leaves the thread its own: root with all capabilities.
    if not thread.core.thread_core.HasField("creds"):
        raise PrivilegeError(
            f"{thread.where}: its core image has no credentials; expected a dump of CRIU 2.0 or "
            "later, take the checkpoint again"
        )
    creds = thread.core.thread_core.creds
    _check_capabilities(thread.where, creds, allowed)
    _check_ids(thread.where, creds, allowed)
    if allowed.no_new_privs and not creds.no_new_privs:
        _refuse(thread.where, "no_new_privs 0", "1 (allowPrivilegeEscalation: false)")
    if creds.secbits & ~_KEEP_CAPS and not _has(allowed.held, "CAP_SETPCAP"):
        _refuse(thread.where, f"secbits {creds.secbits:#x}", "0 without CAP_SETPCAP")
    nice = thread.core.thread_core.sched_nice
    if nice < 0 and not _has(allowed.reach, "CAP_SYS_NICE"):
        _refuse(thread.where, f"sched_nice {nice}", "0 or more without CAP_SYS_NICE")
    policy = thread.core.thread_core.sched_policy & ~_RESET_ON_FORK
    if policy not in _ORDINARY and not _has(allowed.reach, "CAP_SYS_NICE"):
        _refuse(
            thread.where,
            f"sched_policy {_REALTIME.get(policy, policy)}",
            "no real-time policy without CAP_SYS_NICE",
        )


def _check_capabilities(where: str, creds: criu.creds_entry, allowed: Allowed) -> None:
    for field, words, limit in (
        ("cap_prm", creds.cap_prm, allowed.reach),
        ("cap_eff", creds.cap_eff, allowed.reach),
        ("cap_amb", creds.cap_amb, allowed.reach),
        ("cap_inh", creds.cap_inh, allowed.bounding),
        ("cap_bnd", creds.cap_bnd, allowed.bounding),
    ):
        held = sum(word << (32 * index) for index, word in enumerate(words))
        if held & ~limit:
            _refuse(where, f"{field} {_names(held & ~limit)}", _names(limit) or "no capabilities")


def _check_ids(where: str, creds: criu.creds_entry, allowed: Allowed) -> None:
    if not _has(allowed.held, "CAP_SETUID"):
        for field in ("uid", "euid", "suid", "fsuid"):
            value = getattr(creds, field)
            if value != allowed.uid:
                _refuse(where, f"{field} {value}", str(allowed.uid))
    if not _has(allowed.held, "CAP_SETGID"):
        for field in ("gid", "egid", "sgid", "fsgid"):
            value = getattr(creds, field)
            if value != allowed.gid:
                _refuse(where, f"{field} {value}", str(allowed.gid))
        beyond = [group for group in creds.groups if group not in allowed.groups]
        if beyond:
            _refuse(where, f"groups {beyond}", str(sorted(allowed.groups)))


def _check_lsm(thread: DumpedThread, dump: Dump, spec: dict[str, Any]) -> None:
    """CRIU confines a restored thread, even under --lsm-profile, only if the dumped one was."""
    demanded = lsm_profile(spec)
    if demanded is None:
        return
    kind = demanded.partition(":")[0]
    is_confined = bool(thread.core.thread_core.creds.lsm_profile)
    if dump.inventory.lsmtype != _LSM_TYPES[kind] or not is_confined:
        _refuse(thread.where, "lsm_profile: none", f"{demanded} only")


def _check_namespaces(dump: Dump, live: LivePod, *, is_admin: bool) -> None:
    """CRIU makes a namespace only where the image's number differs from that of CRIU's own."""
    own = dump.inventory.root_ids
    init = dump.ids[_init(dump).pid]
    given = {ns["type"]: ns.get("path") for ns in live.spec["linux"].get("namespaces") or ()}
    for kind, (_, field) in namespaces.KINDS.items():
        is_private = getattr(init, field) != getattr(own, field)
        if kind in given and kind not in live.node_namespaces and not is_private:
            _refuse(f"{kind} namespace", "the node's own", "one apart from it")
        if kind == "user" and kind not in given and is_private:
            _refuse("user namespace", "one of its own", "the node's own (hostUsers: true)")
        for pid, ids in dump.ids.items():
            if getattr(ids, field) != getattr(init, field) and (kind == "user" or not is_admin):
                _refuse(f"task {pid}", f"a {kind} namespace of its own", "that of the first task")
    if "user" in given and not given["user"]:
        _check_id_maps(dump.userns, live.spec["linux"])


def _check_id_maps(userns: criu.userns_entry | None, linux: dict[str, Any]) -> None:
    for name, extents in (
        ("uidMappings", userns.uid_map if userns else ()),
        ("gidMappings", userns.gid_map if userns else ()),
    ):
        dumped = [(e.first, e.lower_first, e.count) for e in extents]
        wanted = [(m["containerID"], m["hostID"], m["size"]) for m in linux.get(name) or ()]
        if dumped != wanted:
            _refuse("user namespace", f"{name} {dumped}", str(wanted))


def _check_policies(dump: Dump) -> None:
    # CRIU would load these into the kernel. It dumps them only of a container that stacks its own.
    if dump.apparmor is not None and dump.apparmor.namespaces:
        name = _shown(dump.apparmor.namespaces[0].name)
        _refuse("apparmor.img", f"policies for the namespace {name}", "none from a checkpoint")


def _check_files(dump: Dump, allowed: Allowed) -> None:
    if "files.img" not in dump.names:  # CRIU would read the old images, one for each kind
        raise PrivilegeError("files.img is missing; expected a dump of CRIU 3.3 or later")
    for file in dump.files:
        if ".." in text(file.reg.name).split("/"):
            raise PrivilegeError(f"file {file.id}: {text(file.reg.name)!r}, expected no '..' in it")
        kind, capability = _FILE_NEEDS.get(file.type, ("", ""))
        if file.type == _INETSK and file.isk.type == _SOCK_RAW:
            kind, capability = "raw socket", "CAP_NET_RAW"
        if kind and not _has(allowed.reach, capability):
            _refuse(f"file {file.id}", f"a {kind}", f"none without {capability}")


def _check_remaps(dump: Dump) -> None:
    """Refuse other names of deleted files than CRIU's own, since CRIU removes these names."""
    names = {file.id: text(file.reg.name) for file in dump.files if file.HasField("reg")}
    for remap in dump.remaps:
        name = names.get(remap.remap_id, "")
        if remap.remap_type not in _MADE_ANEW and not name.endswith(
            f"/link_remap.{remap.remap_id}"
        ):
            raise PrivilegeError(
                f"file {remap.orig_id}: deleted, to be found as {name!r}, which the restore would "
                f"remove; expected a file called link_remap.{remap.remap_id}"
            )


def _init(dump: Dump) -> criu.pstree_entry:
    roots = [task for task in dump.tasks if task.ppid == 0]
    if len(roots) != 1 or roots[0].pid not in dump.ids:
        raise PrivilegeError(
            f"image pstree.img: {len(roots)} tasks without a parent, expected one with an ids image"
        )
    return roots[0]


def _refuse(where: str, found: str, allowed: str) -> None:
    raise PrivilegeError(f"{where}: {found}; the pod allows {allowed}; {_REMEDY}")


def _mask(names: Iterable[str] | None) -> int:
    # A name that is newer than this table grants nothing: no dump can be shown to need it.
    return sum(1 << CAPABILITIES.index(name) for name in set(names or ()) & set(CAPABILITIES))


def _has(mask: int, name: str) -> bool:
    return bool(mask >> CAPABILITIES.index(name) & 1)


def _names(mask: int) -> str:
    known = [name for name in CAPABILITIES if _has(mask, name)]
    unknown = mask >> len(CAPABILITIES)
    return ", ".join([*known, *([f"unknown {unknown << len(CAPABILITIES):#x}"] if unknown else [])])


def _shown(name: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in name.decode("utf-8", "replace"))
