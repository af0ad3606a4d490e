"""What `runc restore` expects of a dump, and CRIU's own command line does not give it. Pure.

runc leaves the network and a shared PID namespace to CRIU as descriptors under names of its own. It
lists what the first process had as standard streams in descriptors.json: the n-th text that speaks
of a pipe is the name under which CRIU gets runc's descriptor n. With more than three texts the
images could so reach descriptors that are not the container's: CRIU's own socket, a namespace. It
also leaves each task the OOM score of the dump, where a start would give it the pod's.

Spec: opencontainers/runc libcontainer/criu_linux.go criuNsToKey and Restore@v1.3.6;
checkpoint-restore/criu criu/files.c inherit_fd_lookup_id, criu/pipes.c@2cf8f13.
"""

from __future__ import annotations

import json

from grit_runtime.errors import FailedPreconditionError, ImageError
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire.criu_image import Image, entry, with_entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

DESCRIPTORS = "descriptors.json"

_STREAMS = 3
_PIPE = 2  # fd_types of fdinfo.proto
_NET_KEY, _PID_KEY = b"extRootNetNS", b"extRootPidNS"


def descriptors(fds: Sequence[criu.fdinfo_entry], files: Sequence[criu.file_entry]) -> bytes:
    """descriptors.json for a first process that has *fds*; what is no pipe needs no name."""
    pipes = {file.id: file.pipe.pipe_id for file in files if file.type == _PIPE}
    names = [""] * _STREAMS
    for fd in fds:
        if fd.fd < _STREAMS and fd.type == _PIPE and fd.id in pipes:
            names[fd.fd] = f"pipe:[{pipes[fd.id]}]"
    return json.dumps(names).encode()


def check_descriptors(data: bytes) -> None:
    """ImageError unless *data* names the standard streams and no descriptor beyond them."""
    try:
        names = json.loads(data)
    except (ValueError, RecursionError):
        names = None
    are_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not are_texts or len(names) > _STREAMS:
        raise ImageError(f"{DESCRIPTORS}: expected a list of at most {_STREAMS} texts")


def with_network_key(image: Image) -> Image:
    """The netns *image* with runc's name for the namespace; the same if it has that.

    FailedPreconditionError for a namespace that was dumped itself and not left to the runtime.
    """
    namespace = entry(image, criu.netns_entry)
    if not namespace.ext_key:
        raise FailedPreconditionError(
            f"image {image.name}: the dump brings a network of its own, with links and addresses, "
            "but a pod has the network that it is given; dump with "
            f"--external net[INODE]:{_NET_KEY.decode()}"
        )
    return _with_key(image, namespace, _NET_KEY)


def with_pid_key(image: Image) -> Image:
    """The pidns *image* with runc's name for the namespace; the same if it has that."""
    return _with_key(image, entry(image, criu.pidns_entry), _PID_KEY)


def cores_with_oom_score(
    tasks: Iterable[criu.pstree_entry], cores: Mapping[int, criu.core_entry], spec: dict[str, Any]
) -> Iterator[tuple[int, criu.core_entry]]:
    """The core images of tasks that the kernel would rather spare than the pod's QoS class says.

    By pid, with the pod's score. A task may have raised its own; lowering it takes a capability.
    """
    floor = spec["process"].get("oomScoreAdj")
    for task in tasks if floor is not None else ():
        core = cores[task.pid]
        if core.tc.HasField("oom_score_adj") and core.tc.oom_score_adj < floor:
            core.tc.oom_score_adj = floor
            yield task.pid, core


def _with_key(image: Image, namespace: criu.netns_entry | criu.pidns_entry, key: bytes) -> Image:
    if namespace.ext_key == key:
        return image
    namespace.ext_key = key
    return with_entry(image, 0, namespace)
