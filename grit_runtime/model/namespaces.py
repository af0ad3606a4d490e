"""The kinds of namespace that a container may have, as each source calls them."""

from __future__ import annotations

# By their names in config.json: those in /proc/PID/ns, and fields of CRIU's task_kobj_ids_entry.
KINDS = {
    "pid": ("pid", "pid_ns_id"),
    "network": ("net", "net_ns_id"),
    "ipc": ("ipc", "ipc_ns_id"),
    "uts": ("uts", "uts_ns_id"),
    "mount": ("mnt", "mnt_ns_id"),
    "user": ("user", "user_ns_id"),
    "cgroup": ("cgroup", "cgroup_ns_id"),
}
IN_PROC = tuple(name for name, _ in KINDS.values())
