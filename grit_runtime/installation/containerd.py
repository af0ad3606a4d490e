"""The containerd that serves kubelet: which it is, and what it would make of other files."""

from __future__ import annotations

import glob
import os
import re
import socket
import tomllib
from pathlib import Path

from grit_runtime import config
from grit_runtime.errors import CommandError, FailedPreconditionError, NotFoundError
from grit_runtime.host import kubelet, process, procfs
from grit_runtime.installation import changes
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

DEFAULT_CONFIG = "/etc/containerd/config.toml"
# Where distributions have a directory for each of their own versions, and a link to the current.
_LASTING = (
    (r"^((?:/var)?/snap/microk8s)/[^/]+/", r"\1/current/"),
    (r"^(/var/lib/rancher/k3s/data)/[^/]+/", r"\1/current/"),
    (r"^(/var/lib/rancher/rke2)/data/[^/]+/bin/", r"\1/bin/"),
)


class Daemon(NamedTuple):
    """A running containerd."""

    address: str
    pid: int
    argv0: str  # what it was started as: some programs are several
    program: str
    config: str  # the path of its configuration, which need not be there
    path: str  # where it looks for programs
    temporary_dir: str
    unit: str  # of systemd; "" without one

    def find(self, name: str) -> str:
        """The program that containerd runs for *name*, or of its release."""
        directories = [*self.path.split(":"), os.path.dirname(self.program)]
        for directory in directories:
            path = os.path.join(directory, name)
            if os.path.isabs(path) and os.access(path, os.X_OK):
                return path
        raise NotFoundError(
            f"{name} is not in {':'.join(directories)}, where containerd (process {self.pid}) "
            "looks for programs; install it there"
        )


def find() -> Daemon:
    """kubelet's containerd: the process that listens at the socket that kubelet calls."""
    address = _address()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
        except OSError as error:
            raise NotFoundError(
                f"containerd does not answer at {address}: {error.strerror}; start it, or set "
                f"containerd_address in {config.PATH}"
            ) from None
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = int.from_bytes(credentials[:4], "little")
    return _of_process(pid, address)


def _address() -> str:
    """Which socket is meant: the configured one, or kubelet's, or the only one there is."""
    said = said_address()
    beside = kubelet.told()
    told = beside.endpoint if beside else ""
    if said:
        if told and told != said:
            raise FailedPreconditionError(
                f"kubelet calls the containerd at {told}, but containerd_address in {config.PATH} "
                f"is {said}; set it to kubelet's"
            )
        return said
    if told:
        return told
    there = [path for path in kubelet.SOCKETS if os.path.exists(path)]
    if len(there) > 1:
        raise FailedPreconditionError(
            f"there are several containerds, at {' and '.join(there)}, and no kubelet "
            f"says which is its; set containerd_address in {config.PATH}"
        )
    return there[0] if there else config.Config().containerd_address


def said_address() -> str:
    """What somebody has written of containerd's socket into grit's configuration, if anything."""
    config.load()  # whose errors say what is wrong with it
    own = _table(changes.without_block(config.PATH).decode(), f"{config.PATH} without grit's lines")
    return str(own.get("containerd_address", ""))


def _option(words: list[str], *names: str) -> str:
    """The value of an option, as two words or as one; "" without it."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else following
    return ""


def _of_process(pid: int, address: str) -> Daemon:
    if pid <= 1:
        raise FailedPreconditionError(
            f"{address} is held by process {pid}, not by a containerd that this process can see; "
            "run this on the node itself, outside of any container"
        )
    words = procfs.text(pid, "cmdline").split("\0")
    environment = dict(
        line.split("=", 1) for line in procfs.text(pid, "environ").split("\0") if "=" in line
    )
    # The file may have been replaced since, by an upgrade.
    program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    units = [
        part
        for line in procfs.text(pid, "cgroup").splitlines()
        for part in line.split("/")
        if part.endswith(".service")
    ]
    return Daemon(
        address=address,
        pid=pid,
        argv0=words[0],
        program=program,
        config=_option(words, "--config", "-config", "-c") or DEFAULT_CONFIG,
        path=environment.get("PATH", os.defpath),
        temporary_dir=environment.get("XDG_RUNTIME_DIR") or environment.get("TMPDIR", "/tmp"),  # noqa: S108
        unit=units[-1] if units else "",
    )


def read(path: str) -> dict[str, Any]:
    """The configuration file at *path*; FailedPreconditionError if it is not TOML."""
    try:
        return _table(Path(path).read_text("utf-8"), path)
    except UnicodeDecodeError as error:
        raise FailedPreconditionError(f"{path}: not TOML: {error}") from None


def _table(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FailedPreconditionError(f"{name}: not TOML: {error}") from None


def lasting(path: str) -> str:
    """The same file by a path that an upgrade of the distribution leaves, if there is one."""
    for versioned, current in _LASTING:
        other = re.sub(versioned, current, path)
        if os.path.realpath(other) == os.path.realpath(path):
            path = other
    return path


def effective(daemon: Daemon, staged: Mapping[str, bytes | None]) -> dict[str, Any]:
    """What the containerd makes of its configuration, with these files of other content.

    None stands for a file that is not there; no path leads through a link. Nothing is written: the
    files are laid over their directories for a containerd's eyes alone. CommandError says what it
    does not like. Blocks.
    """
    file = os.path.realpath(daemon.config)
    has_config = staged[file] is not None if file in staged else os.path.exists(file)
    # 1.7 does not dump what it would make of no file at all.
    words = ["--config", daemon.config, "config", "dump"] if has_config else ["config", "default"]
    asked = (daemon.program, [daemon.argv0, *words], dict(staged))
    argv = process.python("grit_runtime.installation.preview", asked)
    child = process.start(argv, token=process.new_token())
    # If it fails, that is the failure of the program which it has become.
    child = child._replace(argv=[daemon.program, *words])
    table = tomllib.loads(process.output(child).decode())
    directory = os.path.dirname(daemon.config)
    for name in table.get("imports", []):
        path = os.path.realpath(os.path.join(directory, name))
        # What 2.x prints ends before such an import, without an error; but it would not start.
        is_there = staged.get(path) is not None if path in staged else os.path.exists(path)
        if not is_there and not glob.has_magic(path):
            raise CommandError(f"{daemon.config} imports {path}, which is not there")
    return table
