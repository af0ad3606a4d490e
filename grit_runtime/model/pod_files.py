"""Open files of a dump that CRIU could not open in another pod as they are written. Pure.

kubelet keeps the files of a projected volume, a service account's token among them, in a directory
named by the time, and containerd and kubelet write the pod's hosts, hostname and resolv.conf
themselves. The new pod's are the right ones, under whatever name and of whatever length.

A periodic timer that had expired, and was not read since, has no time left in the image. CRIU would
set it to that, which disarms it; the new pod's next expiry is one whole interval away.

Spec: kubernetes pkg/volume/util/atomic_writer.go newTimestampDir; linux fs/timerfd.c timerfd_show;
checkpoint-restore/criu criu/files-reg.c validate_file, criu/pie/restorer.c timerfd_arm@2cf8f13.
"""

from __future__ import annotations

import re

from grit_runtime.model.paths import above
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_WRITTEN_FOR_EACH_POD = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"})
_STAMPED = re.compile(r"\.\.\d{4}(?:_\d\d){5}\.\d+")
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME: CRIU adds the time it is, so that none left is in the past


def is_stamped(name: str) -> bool:
    """Whether kubelet gives a directory of files such a name."""
    return _STAMPED.fullmatch(name) is not None


def fitted(file: criu.file_entry, stamped: Mapping[str, str]) -> criu.file_entry | None:
    """The entry as CRIU can take it, or None if it can already.

    *stamped* are the live directories of files by the place of their volume. An entry that lost
    its length is not held against the new file's.
    """
    changed = criu.file_entry()
    changed.CopyFrom(file)
    if file.HasField("reg"):
        _fit_name(changed.reg, stamped)
    elif file.HasField("tfd"):
        _fit_timer(changed.tfd)
    return None if changed == file else changed


def _fit_name(file: criu.reg_file_entry, stamped: Mapping[str, str]) -> None:
    path = text(file.name)
    place = above(path, stamped)
    if path in _WRITTEN_FOR_EACH_POD:
        file.ClearField("size")
    elif place in stamped:
        directory, slash, below = path.removeprefix(f"{place}/").partition("/")
        if is_stamped(directory):
            name = f"{place}/{stamped[place]}{slash}{below}"
            file.name = name.encode("utf-8", "surrogateescape")
            file.ClearField("size")


def _fit_timer(timer: criu.timerfd_entry) -> None:
    is_armed = timer.vsec or timer.vnsec or timer.settime_flags & _ABSOLUTE
    if timer.ticks and not is_armed:
        timer.vsec, timer.vnsec = timer.isec, timer.insec
