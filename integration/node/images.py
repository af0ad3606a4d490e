"""Container images of the tests, made on the spot: a pause, a busybox and a python.

A migration needs the very same image on both nodes, so each is made once for an edition, as an
archive in OCI's layout, and imported by every node.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from integration.node import cache, rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from integration.node.rootfs import Edition

PAUSE = "localhost/pause:1"
BUSYBOX = "localhost/busybox:1"
PYTHON = "localhost/python:1"

# bookworm's, of this machine: the sleep of busybox 1.38 ends when CRIU interrupts it.
HOST_BUSYBOX = Path("/bin/busybox")
PAUSE_SOURCE = Path(__file__).with_name("pause.c")

USERS = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Blob(NamedTuple):
    """Content of an archive, and what OCI calls its media type."""

    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        """The name of the content."""
        return hashlib.sha256(self.content).hexdigest()

    def descriptor(self) -> dict[str, object]:
        """How other parts of the archive refer to it."""
        return {
            "mediaType": self.media_type,
            "digest": f"sha256:{self.digest}",
            "size": len(self.content),
        }


@contextmanager
def use(edition: Edition, root: Path) -> Iterator[list[Path]]:
    """The image archives for *edition*, whose root filesystem is *root*."""
    sources = [Path(__file__), PAUSE_SOURCE, HOST_BUSYBOX]
    recipe = root.name.encode() + b"".join(path.read_bytes() for path in sources)
    with cache.use(
        f"archives-{edition.suite}", recipe, lambda path: _build_into(path, edition, root)
    ) as directory:
        yield sorted(directory.iterdir())


def _build_into(directory: Path, edition: Edition, root: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pause = Path(scratch) / "pause"
        subprocess.run(
            ["gcc", "-static", "-Os", "-Wall", "-Werror", "-o", pause, PAUSE_SOURCE], check=True
        )
        layer = _layer([(pause, "pause")], {})
    _write_archive(directory / "pause.tar", PAUSE, layer, ["/pause"])
    files, links = _busybox()
    _write_archive(directory / "busybox.tar", BUSYBOX, _layer(files, links), ["/bin/sh"])
    files += _python(edition, root)
    links |= {"usr/bin/python3": f"python{edition.python}", "lib64": "usr/lib64"}
    links |= {"lib": "usr/lib"}
    _write_archive(directory / "python.tar", PYTHON, _layer(files, links), ["/usr/bin/python3"])


def _busybox() -> tuple[list[tuple[Path, str]], dict[str, str]]:
    """Files by their path in the image, and symbolic links by theirs."""
    listed = subprocess.run([HOST_BUSYBOX, "--list"], check=True, stdout=subprocess.PIPE, text=True)
    names = [name for name in listed.stdout.split() if name != "busybox"]
    return [(HOST_BUSYBOX, "bin/busybox")], {f"bin/{name}": "busybox" for name in names}


def _python(edition: Edition, root: Path) -> list[tuple[Path, str]]:
    """The interpreter of *root*, its library, and the shared objects that these are linked to, or
    what is installed there for the project: a pod may mount that."""
    binary = f"usr/bin/python{edition.python}"
    library = root / f"usr/lib/python{edition.python}"
    modules = [
        str(path.relative_to(root))
        for path in sorted(library.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    installed = root / rootfs.site_packages(edition)
    linked = [path for path in modules if path.endswith(".so")]
    linked += [str(path.relative_to(root)) for path in installed.rglob("*.so")]
    ldd = subprocess.run(
        ["chroot", root, "ldd", f"/{binary}", *(f"/{path}" for path in linked)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    words = {word for word in ldd.stdout.split() if word.startswith("/") and not word.endswith(":")}
    objects = {_merged(word) for word in words if not word.startswith(f"/{rootfs.VENV}")}
    return [(root / path, path) for path in sorted({binary, *modules, *objects})]


def _merged(path: str) -> str:
    """*path*, with /lib and /lib64 where they really are."""
    return path.lstrip("/") if path.startswith("/usr/") else f"usr{path}"


def _layer(files: Iterable[tuple[Path, str]], links: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("bin", "dev", "etc", "proc", "root", "sys", "var", "usr"):
            tar.addfile(_entry(name, tarfile.DIRTYPE, 0o755))
        tar.addfile(_entry("tmp", tarfile.DIRTYPE, 0o1777))
        for name, text in USERS.items():
            entry = _entry(name, tarfile.REGTYPE, 0o644)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
        for source, name in files:
            entry = _entry(name, tarfile.REGTYPE, source.stat().st_mode & 0o777)
            entry.size = source.stat().st_size
            with source.open("rb") as file:
                tar.addfile(entry, file)
        for name, target in sorted(links.items()):
            entry = _entry(name, tarfile.SYMTYPE, 0o777)
            entry.linkname = target
            tar.addfile(entry)
    return buffer.getvalue()


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    return entry


def _write_archive(path: Path, name: str, layer: bytes, command: list[str]) -> None:
    packed = Blob(
        "application/vnd.oci.image.layer.v1.tar+gzip",
        gzip.compress(layer, compresslevel=1, mtime=0),
    )
    config = Blob(
        "application/vnd.oci.image.config.v1+json",
        _json(
            {
                "architecture": ARCHITECTURES[platform.machine()],
                "os": "linux",
                "config": {"Entrypoint": command, "Env": ["PATH=/usr/bin:/bin"]},
                "rootfs": {
                    "type": "layers",
                    "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
                },
            }
        ),
    )
    manifest = Blob(
        "application/vnd.oci.image.manifest.v1+json",
        _json(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.descriptor(),
                "layers": [packed.descriptor()],
            }
        ),
    )
    named = manifest.descriptor() | {"annotations": {"io.containerd.image.name": name}}
    members = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [named]}),
        **{f"blobs/sha256/{blob.digest}": blob.content for blob in (packed, config, manifest)},
    }
    with tarfile.open(path, "w") as tar:
        for member, content in members.items():
            entry = _entry(member, tarfile.REGTYPE, 0o644)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
