"""manifest.json: a checkpoint's content, the node that it was taken on, its timeline. Pure.

The classes are the format: `parse` and `dump` follow their fields, manifest.schema.json is made
from them. A manifest is hostile input, so every field is checked for its type and range.
"""

from __future__ import annotations

import json
import types
import typing
from typing import Any

from grit_runtime.errors import ManifestError
from grit_runtime.model.losses import Loss  # noqa: TC001  the manifest is made by types
from grit_runtime.model.task_facts import ProcessFacts  # noqa: TC001  the same
from grit_runtime.startup import named
from grit_runtime.startup.named import NamedTuple

VERSION = 4
WITH_FACTS = 2  # the first version with `facts`, which no image of CRIU holds
WITH_MEMORY = 3  # the first with `memory`; the next one has other digests
FILE_NAME = "manifest.json"
SIGNATURE_NAME = f"{FILE_NAME}.sig"


class Pod(NamedTuple):
    namespace: str
    name: str
    uid: str
    sandbox_id: str


class Mount(NamedTuple):
    """A mount that CRIU left to the runtime: its key in the images, its place in the container."""

    key: str
    destination: str


class Gpu(NamedTuple):
    uuid: str
    model: str
    memory_bytes: int


class DeviceMemory(NamedTuple):
    uuid: str
    size_bytes: int


class CudaProcess(NamedTuple):
    """A process that held GPU memory; its number is the container's, as in the images."""

    pid: int
    devices: tuple[DeviceMemory, ...]

    @property
    def size_bytes(self) -> int:
        return sum(device.size_bytes for device in self.devices)


class Memory(NamedTuple):
    """A large private mapping of a process, and how much of it grit moved.

    CRIU dumped what else was there.
    """

    pid: int  # the container's, as in the images
    start: int
    size_bytes: int
    moved_bytes: int


class Container(NamedTuple):
    name: str
    id: str
    state: str  # "running": has images; "exited": had ended before
    exit_code: int | None = None
    image: str = ""
    image_digest: str = ""
    processes: int = 0
    mounts: tuple[Mount, ...] = ()
    gpus: tuple[Gpu, ...] = ()  # all that it was given, used or not
    cuda: tuple[CudaProcess, ...] = ()
    uncaptured: tuple[str, ...] = ()  # of one that had exited: writable volumes that stay behind
    facts: tuple[ProcessFacts, ...] = ()  # what its processes have that no image holds
    memory: tuple[Memory, ...] = ()


class File(NamedTuple):
    path: str
    size_bytes: int
    digest: str


class Node(NamedTuple):
    kernel: str
    machine: str
    cpu_features: tuple[str, ...]
    criu: str
    runc: str
    containerd: str
    driver: str  # NVIDIA's; empty on a node without it


class Options(NamedTuple):
    """The dump options that the restore must repeat."""

    file_locks: bool


class Phase(NamedTuple):
    phase: str
    seconds: float
    container: str | None
    size_bytes: int | None


class Manifest(NamedTuple):
    version: int
    name: str
    created: str  # RFC 3339, UTC
    pod: Pod
    captured: tuple[str, ...]  # volumes in pod/, by the names of grit.dev/capture
    containers: tuple[Container, ...]
    files: tuple[File, ...]
    node: Node
    options: Options
    timeline: tuple[Phase, ...]
    warnings: tuple[Loss, ...]  # what is known to come back different

    @property
    def running(self) -> tuple[Container, ...]:
        """The containers that have a dump."""
        return tuple(c for c in self.containers if c.state == "running")

    @property
    def size_bytes(self) -> int:
        """Of all files, whether they have holes or not."""
        return sum(file.size_bytes for file in self.files)

    @property
    def gpu_bytes(self) -> int:
        """The memory that its processes held on GPUs."""
        return sum(process.size_bytes for c in self.containers for process in c.cuda)


def phases(timeline: list[dict[str, Any]]) -> tuple[Phase, ...]:
    """The phases of a Timeline, as the manifest keeps them."""
    return tuple(
        Phase(p["phase"], p["seconds"], p.get("container"), p.get("size_bytes")) for p in timeline
    )


def for_foreign_dump(containers: list[str], files: dict[str, int]) -> Manifest:
    """The manifest for a checkpoint without one: its running containers, its files' sizes."""
    return Manifest(
        version=VERSION,
        name="",
        created="",
        pod=Pod("", "", "", ""),
        captured=(),
        containers=tuple(Container(name, id="", state="running") for name in containers),
        files=tuple(File(path, size, "") for path, size in sorted(files.items())),
        node=Node("", "", (), "", "", "", ""),
        options=Options(file_locks=True),
        timeline=(),
        warnings=(),
    )


def dump(manifest: Manifest) -> bytes:
    return json.dumps(plain(manifest), indent=1).encode() + b"\n"


def parse(data: bytes) -> Manifest:
    """The manifest in *data*; ImageError names the first field that is not what it should be."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{FILE_NAME}: not JSON: {error}; take the checkpoint again") from None
    if isinstance(value, dict):
        _upgrade(value)
    manifest: Manifest = checked(Manifest, value, FILE_NAME)
    return manifest


def schema() -> dict[str, Any]:
    """The JSON schema of a manifest."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "grit-runtime checkpoint manifest",
        **_schema(Manifest),
    }


def plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: plain(field) for name, field in value._asdict().items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def _upgrade(value: dict[str, Any]) -> None:
    """Give a manifest of an older version this version's fields; ImageError for a newer one.

    Its version is kept, because the missing values stay unknown.
    """
    version = value.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ManifestError(
            f"{FILE_NAME}: version is {version}, this grit reads up to {VERSION}; upgrade grit on "
            "this node"
        )
    if version not in range(1, VERSION + 1):
        raise ManifestError(f"{FILE_NAME}: version is {version!r}, this grit reads 1 to {VERSION}")
    lacking = [] if version in {WITH_MEMORY, VERSION} else ["memory"]
    if version == 1:
        value.setdefault("warnings", [])
        lacking.append("facts")
    containers = value.get("containers")
    for container in containers if isinstance(containers, list) else ():
        if isinstance(container, dict):
            for field in lacking:
                container.setdefault(field, [])
    options = value.get("options")
    if isinstance(options, dict):
        options.pop("ghost_limit_bytes", None)  # no restore has ever used it


def checked(wanted: Any, value: Any, where: str) -> Any:
    """*value* as *wanted*: a NamedTuple, tuple[X, ...], X | None, or a plain JSON type."""
    if hasattr(wanted, "_fields"):
        return _checked_record(wanted, value, where)
    arguments = typing.get_args(wanted)
    if isinstance(wanted, types.UnionType):
        return None if value is None else checked(arguments[0], value, where)
    if arguments:
        if not isinstance(value, list):
            raise ManifestError(f"{where}: expected a list, is {_shown(value)}")
        items = enumerate(value)
        return tuple(checked(arguments[0], item, f"{where}[{at}]") for at, item in items)
    if wanted is float and type(value) is int:
        value = float(value)
    # bool is an int to isinstance, and JSON's true is no number
    if type(value) is not wanted or (wanted is int and not 0 <= value < 1 << 63):
        raise ManifestError(f"{where}: expected {wanted.__name__}, is {_shown(value)}")
    return value


def _checked_record(wanted: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: expected an object, is {_shown(value)}")
    hints = named.types(wanted)
    for name in sorted(value.keys() ^ hints.keys()):
        raise ManifestError(
            f"{where}: {'unknown' if name in value else 'missing'} field {_shown(name)}"
        )
    fields = {name: checked(hints[name], value[name], f"{where}: {name}") for name in hints}
    return wanted(**fields)


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _schema(wanted: Any) -> dict[str, Any]:
    if hasattr(wanted, "_fields"):
        hints = named.types(wanted)
        return {
            "type": "object",
            "properties": {name: _schema(hint) for name, hint in hints.items()},
            "required": list(hints),
            "additionalProperties": False,
        }
    arguments = typing.get_args(wanted)
    if isinstance(wanted, types.UnionType):
        return {"anyOf": [_schema(arguments[0]), {"type": "null"}]}
    if arguments:
        return {"type": "array", "items": _schema(arguments[0])}
    return dict(_JSON_TYPES[wanted])


_JSON_TYPES: dict[type, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number"},
}
