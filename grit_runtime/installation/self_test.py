"""A container, checkpointed and restored through the node's containerd as pods are by the handler.

It is run by ctr, in a namespace of containerd's own: kubelet would end a pod that it does not know.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager, suppress

from grit_runtime.errors import CommandError
from grit_runtime.host import process
from grit_runtime.installation import wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.installation.containerd import Daemon
    from grit_runtime.installation.wanted import Wanted

_NAMESPACE = "grit-self-test"
_IMAGE, _SAVED = "localhost/grit-self-test:1", "localhost/grit-self-test-saved:1"
_SOURCE, _TARGET = "grit-self-test", "grit-self-test-restored"
# Its layer has only places: the programs are the node's own.
_PLACES = ("bin", "dev", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_COUNT = """
import os, time
for count in range(1 << 30):
    with open("/count.new", "w") as file:
        file.write(str(count))
    os.rename("/count.new", "/count")
    time.sleep(0.02)
"""
_ENOUGH = 5
_DEADLINE_S = 30


def run(daemon: Daemon, wants: Wanted) -> float:
    """How many seconds it took. CommandError says what does not work.

    Nothing of it is left on the node. Blocks for seconds.
    """
    ctr = _Ctr(daemon)
    begun = time.monotonic()
    with _image(ctr):
        with _gone(ctr, _SOURCE):
            ctr.run("run", "--detach", *_runtime(wants), *_mounts(), _IMAGE, _SOURCE, *_program())
            counted = _wait_for(ctr, _SOURCE, _ENOUGH)
            ctr.run("container", "checkpoint", "--task", "--rw", "--image", _SOURCE, _SAVED)
        with _gone(ctr, _TARGET):
            try:
                ctr.run("container", "restore", "--live", "--rw", _TARGET, _SAVED)
            finally:
                _remove_unpacked(daemon)
            _wait_for(ctr, _TARGET, counted + 1)
    return time.monotonic() - begun


class _Ctr:
    """The ctr of a containerd's own release."""

    def __init__(self, daemon: Daemon) -> None:
        where = (f"--address={daemon.address}", f"--namespace={_NAMESPACE}")
        self._argv = [daemon.find("ctr"), *where]

    def run(self, *words: str) -> str:
        argv = [*self._argv, *words]
        try:
            return process.run(argv, token=process.new_token()).decode()
        except CommandError as error:
            raise CommandError(f"the self-test failed: {error}") from None

    def tell(self, *words: str) -> None:
        """Run what may have nothing to do."""
        with suppress(CommandError):
            self.run(*words)


def _runtime(wants: Wanted) -> list[str]:
    if "runtime_path" in wants.handler:
        return ["--runtime", wanted.SHIM]
    return ["--runc-binary", wanted.RUNTIME]


def _mounts() -> list[str]:
    """The node's programs, and what Python has where it lies elsewhere."""
    places = dict.fromkeys(["/usr", os.path.realpath(sys.base_prefix)])
    return [
        word
        for place in places
        if place == "/usr" or not place.startswith("/usr/")
        for word in ("--mount", f"type=bind,src={place},dst={place},options=rbind:ro")
    ]


def _program() -> list[str]:
    return [os.path.realpath(sys.executable), "-ISEB", "-c", _COUNT, _SOURCE]


def _wait_for(ctr: _Ctr, name: str, count: int) -> int:
    """What the container counts to, once that is *count*."""
    listed = ctr.run("task", "list")
    found = re.search(rf"^{name}\s+(\d+)\s+RUNNING", listed, flags=re.MULTILINE)
    if not found:
        raise CommandError(f"the self-test failed: its container {name} does not run")
    end = time.monotonic() + _DEADLINE_S
    while time.monotonic() < end:
        with suppress(FileNotFoundError), open(f"/proc/{found[1]}/root/count", "rb") as file:
            reached = int(file.read())
            if reached >= count:
                return reached
        time.sleep(0.01)
    raise CommandError(f"the self-test failed: its container {name} runs, but does not count")


def _remove_unpacked(daemon: Daemon) -> None:
    """Remove what containerd has unpacked of the checkpoint, and leaves where it is.

    The directory has a name by chance; that it is ours is told by its images of memory, which have
    the arguments of our program. Anybody may put a directory there: one is looked into if nobody
    but root can have put anything into it.
    """
    for directory in glob.glob(f"{glob.escape(daemon.temporary_dir)}/ctrd-checkpoint*"):
        found = os.lstat(directory)
        if found.st_uid or found.st_mode != stat.S_IFDIR | 0o700:
            continue
        with suppress(FileNotFoundError), open(f"{directory}/pages-1.img", "rb") as file:
            if _SOURCE.encode() in file.read():
                shutil.rmtree(directory)


@contextmanager
def _gone(ctr: _Ctr, name: str) -> Iterator[None]:
    """Have the container gone before and after the block."""
    words = (("task", "delete", "--force", name), ("container", "delete", name))
    for one in words:
        ctr.tell(*one)
    try:
        yield
    finally:
        for one in words:
            ctr.tell(*one)


@contextmanager
def _image(ctr: _Ctr) -> Iterator[None]:
    """Have an image of empty directories for as long as the block lasts."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        _write_image(file.name)
        ctr.run("image", "import", file.name)
    try:
        yield
    finally:
        ctr.tell("image", "delete", "--sync", _IMAGE, _SAVED)
        ctr.tell("namespace", "delete", _NAMESPACE)
        for directory in ("/run/containerd/runc", "/run/containerd/io.containerd.runtime.v2.task"):
            with suppress(OSError):
                os.rmdir(f"{directory}/{_NAMESPACE}")


def _write_image(path: str) -> None:
    layer = _layer()
    digest = hashlib.sha256(layer).hexdigest()
    settings = {
        "architecture": _ARCHITECTURES[os.uname().machine],
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    index = [{"Config": "config.json", "RepoTags": [_IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("manifest.json", json.dumps(index).encode()),
            ("config.json", json.dumps(settings).encode()),
            ("layer.tar", layer),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _layer() -> bytes:
    """The node's top directories, empty, and its links among them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in _PLACES:
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            if os.path.islink(f"/{name}"):
                member.type, member.linkname = tarfile.SYMTYPE, os.readlink(f"/{name}")
            tar.addfile(member)
    return buffer.getvalue()
