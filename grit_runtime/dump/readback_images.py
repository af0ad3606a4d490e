"""The images of a dump that only reading back needs."""

from __future__ import annotations

import socket

from grit_runtime.dump import images
from grit_runtime.model.restored_check import Images
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.dump import Dump

_PEER_ENDED = frozenset({8, 9, 11})  # CLOSE_WAIT, LAST_ACK, CLOSING: include/net/tcp_states.h


def read(images_fd: int, dump: Dump) -> Images:
    """What comparing the restored tasks with the dump needs besides the images of `images.read`."""
    descriptors, spaces = {}, {}
    for task in dump.tasks:
        if task.pid in dump.ids:
            name = f"fdinfo-{dump.ids[task.pid].files_id}.img"
            if name in dump.names:
                entries = criu_image.entries(images.load(images_fd, name), criu.fdinfo_entry)
                descriptors[task.pid] = entries
        name = f"mm-{task.pid}.img"
        if name in dump.names:
            spaces[task.pid] = criu_image.entry(images.load(images_fd, name), criu.mm_entry)
    windows = {
        file.isk.ino: images.stream(images_fd, name).snd_wnd
        for file in dump.files
        if file.isk.proto == socket.IPPROTO_TCP and file.isk.state in _PEER_ENDED
        for name in [f"tcp-stream-{file.isk.ino:x}.img"]
        if name in dump.names
    }
    return Images(descriptors, spaces, windows)
