"""Adapting open files of a dump that CRIU could not open in another pod. Pure.

kubelet keeps the files of a projected volume, a service account's token among them, in a directory
named by the time, and containerd and kubelet write the pod's hosts, hostname and resolv.conf
themselves. The new pod's files are the right ones, whatever their names and lengths.

A periodic timer that had expired, and was not read since, has no time left in the image. CRIU would
set that value, which disarms the timer; it gets one whole interval instead.

A TCP socket whose connection is over still has the other end's address. CRIU would take it for
connected, and look for a stream that it has not dumped.

CRIU takes a unix socket whose file was renamed for one without a file, and would remove the file
that it binds.

CRIU writes the name of a process's directory, opened or worked in, with a slash and stray bytes of
memory at its end.

Spec: kubernetes pkg/volume/util/atomic_writer.go newTimestampDir; linux fs/timerfd.c timerfd_show;
checkpoint-restore/criu criu/files-reg.c validate_file and check_path_remap, criu/pie/restorer.c
timerfd_arm, criu/sk-inet.c tcp_connection@2cf8f13.
"""

from __future__ import annotations

import re
import stat

from grit_runtime.model.paths import nearest_mount
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from grit_runtime.model.task_facts import RenamedSocket

_WRITTEN_FOR_EACH_POD = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"})
_STAMPED = re.compile(r"\.\.\d{4}(?:_\d\d){5}\.\d+")
_TCP, _CLOSE = 6, 7  # IPPROTO_TCP, and TCP_CLOSE of include/net/tcp_states.h
_DIRECTORIES_OF_TASK = frozenset({"attr", "fd", "fdinfo", "map_files", "net", "ns", "task"})
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME: CRIU adds the time it is, so that none left is in the past


def is_stamped(name: str) -> bool:
    """Whether kubelet gives a directory of files such a name."""
    return _STAMPED.fullmatch(name) is not None


def adapt_open_files(
    file: criu.file_entry,
    stamped: Mapping[str, str],
    procs: Container[str],
    renamed: Mapping[str, RenamedSocket],
) -> criu.file_entry | None:
    """The entry as CRIU can take it, or None if it can already.

    *stamped* are the live directories of files by the place of their volume, *procs* the places of
    proc(5), *renamed* unix sockets by the names they were bound to. An entry that lost its length
    is not compared with the new file.
    """
    changed = criu.file_entry()
    changed.CopyFrom(file)
    if file.HasField("reg"):
        _fit_name(changed.reg, stamped)
        _fit_directory_of_task(changed.reg, procs)
    elif file.HasField("isk"):
        _fit_socket(changed.isk)
    elif file.HasField("usk"):
        _fit_unix_socket(changed.usk, renamed)
    elif file.HasField("tfd"):
        _fit_timer(changed.tfd)
    return None if changed == file else changed


def _fit_name(file: criu.reg_file_entry, stamped: Mapping[str, str]) -> None:
    path = text(file.name)
    place = nearest_mount(path, stamped)
    if path in _WRITTEN_FOR_EACH_POD:
        file.ClearField("size")
    elif place in stamped:
        directory, slash, below = path.removeprefix(f"{place}/").partition("/")
        if is_stamped(directory):
            name = f"{place}/{stamped[place]}{slash}{below}"
            file.name = name.encode("utf-8", "surrogateescape")
            file.ClearField("size")


def _fit_directory_of_task(file: criu.reg_file_entry, procs: Container[str]) -> None:
    path = text(file.name)
    place = nearest_mount(path, procs)
    if place in procs and stat.S_ISDIR(file.mode):
        number, _, below = path.removeprefix(f"{place}/").partition("/")
        if number.isdecimal() and below.partition("/")[0] not in _DIRECTORIES_OF_TASK:
            file.name = f"{place}/{number}".encode()


def _fit_socket(socket: criu.inet_sk_entry) -> None:
    if socket.proto == _TCP and socket.state == _CLOSE:
        socket.dst_port = 0


def _fit_unix_socket(entry: criu.unix_sk_entry, renamed: Mapping[str, RenamedSocket]) -> None:
    """Make CRIU keep the file that it binds, which is renamed later."""
    file = renamed.get(text(entry.name.rstrip(b"\0"))) if entry.deleted else None
    if file is not None:
        entry.ClearField("deleted")
        entry.file_perms.mode = stat.S_IFSOCK | file.mode
        entry.file_perms.uid, entry.file_perms.gid = file.uid, file.gid


def _fit_timer(timer: criu.timerfd_entry) -> None:
    is_armed = timer.vsec or timer.vnsec or timer.settime_flags & _ABSOLUTE
    if timer.ticks and not is_armed:
        timer.vsec, timer.vnsec = timer.isec, timer.insec
