"""Where the node's containerd can be told of grit's handler, found out by asking it.

A file that is merged in another way than it seems takes a node down: 2.x drops what a file of
version 2 says about CRI if one of version 3 is beside it, and 1.7 takes CRI's tables from one file
only. So each place is tried, for a containerd that only prints what it understands, and taken if it
changes nothing but the handler.
"""

from __future__ import annotations

import fnmatch
import os
import tomllib

from grit_runtime.errors import CommandError, FailedPreconditionError
from grit_runtime.installation import changes, containerd, preview
from grit_runtime.installation.changes import Block, Change, File
from grit_runtime.model import handlers
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from grit_runtime.installation.changes import Made
    from grit_runtime.installation.containerd import Daemon
    from grit_runtime.model.handlers import Base, Table

_DROP_IN = f"{handlers.NAME}.toml"
# k3s and RKE2 write config.toml from a template, of which "base" is their own.
_OF_K3S = "/agent/etc/containerd/config.toml"
_K3S_TEMPLATES = {2: "config.toml.tmpl", 3: "config-v3.toml.tmpl"}
_K3S_BASE = '{{ template "base" . }}\n'
# microk8s writes containerd.toml from a template beside it.
_OF_MICROK8S = "/args/containerd.toml"
_MICROK8S_TEMPLATE = "containerd-template.toml"
_NVIDIA_CONFIG = "/etc/nvidia-container-runtime/config.toml"


class Place(NamedTuple):
    """A change of *path* that brings the handler in, once what is made of it lies at *seen_at*."""

    path: str
    change: Change
    seen_at: str


def without(daemon: Daemon, done: Mapping[str, Made]) -> dict[str, bytes | None]:
    """The files that containerd reads, as they are once what is *done* to them is taken back."""
    found = {}
    for path, step in done.items():
        if getattr(step, "read_by", "") != changes.CONTAINERD:
            continue
        config = os.path.realpath(daemon.config)
        if not _is_template(daemon.config, path):
            found[os.path.realpath(path)] = changes.before(step)
        elif os.path.exists(config):
            found[config] = changes.without_block(config)
    return found


def bare(daemon: Daemon, done: Mapping[str, Made]) -> dict[str, Any]:
    """containerd's effective configuration without what is *done* to it."""
    return containerd.effective(daemon, without(daemon, done))


def runtime_below(daemon: Daemon, base: Base) -> str:
    """The runtime that grit hands calls on to: the one that the node's own handler calls.

    NVIDIA's is taken only where it works by CDI: what its older way mounts, runc does not know of,
    so nothing of it could be restored. FailedPreconditionError for other runtimes than runc.
    """
    name = os.path.basename(base.program) or "runc"
    is_nvidia = name.startswith("nvidia-container-runtime")
    if not is_nvidia and not name.startswith("runc"):
        raise FailedPreconditionError(
            f"containerd's handler {base.name} calls {base.program}, expected runc, which alone "
            "grit can stand before; set default_runtime_name to a handler that calls runc"
        )
    if not base.program or (is_nvidia and not _works_by_cdi()):
        return containerd.lasting(daemon.find("runc"))
    return containerd.lasting(daemon.find(base.program))


def _works_by_cdi() -> bool:
    if not os.path.exists(_NVIDIA_CONFIG):
        return False
    table = containerd.read(_NVIDIA_CONFIG).get("nvidia-container-runtime", {})
    return bool(table.get("mode") == "cdi")


def place(
    daemon: Daemon, wanted: Table, base: Base, done: Mapping[str, Made]
) -> tuple[str, Change]:
    """The path and the change that give this containerd the handler *wanted*, and nothing else.

    *done* is what an earlier installation has changed. FailedPreconditionError names what would
    become different.
    """
    taken_back = without(daemon, done)
    before = bare(daemon, done)
    if handlers.handler(before) is not None:
        raise FailedPreconditionError(
            f"containerd at {daemon.address} has a handler {handlers.NAME} already, which grit "
            f"install has not written; remove it from {daemon.config} or what that imports"
        )
    refused = ""
    for extra in ({}, handlers.explicit(base)):
        for found in _places(daemon, before, {**extra, handlers.NAME: wanted}):
            reason = _refusal(daemon, found, before, wanted, taken_back)
            if not reason:
                return found.path, found.change
            refused = refused or f"with the handler in {found.path}, {reason}"
    raise FailedPreconditionError(
        f"containerd at {daemon.address} cannot be given the handler {handlers.NAME}: "
        f"{refused or 'no file of its configuration can be written'}"
    )


def _refusal(
    daemon: Daemon,
    found: Place,
    before: Table,
    wanted: Table,
    taken_back: Mapping[str, bytes | None],
) -> str:
    """What else than the handler the place would change; "" for nothing."""
    text = changes.content(found.seen_at, found.change)
    try:
        tomllib.loads(text.decode())
        after = containerd.effective(daemon, {**taken_back, found.seen_at: text})
    except (tomllib.TOMLDecodeError, CommandError) as error:
        return f"{error}"
    return "; ".join(handlers.differences(before, after, wanted)[:3])


def _places(daemon: Daemon, before: Table, tables: Mapping[str, Table]) -> Iterator[Place]:
    """The places to try, the best first: a file of our own, then lines in another's."""
    config = os.path.realpath(daemon.config)
    has_file = os.path.exists(config)
    own = containerd.read(config) if has_file else {"version": before["version"]}
    version = handlers.version(own, path=config)
    imports = before.get("imports", [])
    for path in _drop_ins(config, imports):
        text = f"version = {version}\n{handlers.text(version, tables)}"
        change = File(text.encode(), read_by=changes.CONTAINERD)
        yield Place(path, change, os.path.join(os.path.realpath(os.path.dirname(path)), _DROP_IN))
    template = _template(daemon.config, version)
    if template:
        stub = _K3S_BASE if daemon.config.endswith(_OF_K3S) else ""
        block = Block(handlers.text(version, tables), stub, changes.CONTAINERD)
        yield Place(template, block, config)
        return
    files = [path for path in reversed(imports) if "*" not in path and os.path.isfile(path)]
    for path in dict.fromkeys([*files, config]):
        number = containerd.read(path).get("version", 1) if has_file else version
        if number in handlers.CRI and _is_writable(path):
            stub = f"version = {version}\n"
            block = Block(handlers.text(number, tables), stub, changes.CONTAINERD)
            yield Place(os.path.realpath(path), block, os.path.realpath(path))


def _drop_ins(config: str, imports: Sequence[str]) -> Iterator[str]:
    """Files of our own that *imports* would bring in, where they can be written."""
    for pattern in imports:
        directory, name = os.path.split(os.path.join(os.path.dirname(config), pattern))
        if "*" in name and "*" not in directory and fnmatch.fnmatch(_DROP_IN, name):
            path = f"{directory}/{_DROP_IN}"
            if _is_writable(path):
                yield path


def _template(config: str, version: int) -> str:
    """What a distribution makes containerd's configuration file from; "" if nothing."""
    directory = os.path.dirname(config)
    if config.endswith(_OF_K3S):
        return _itself(f"{directory}/{_K3S_TEMPLATES[version]}")
    if config.endswith(_OF_MICROK8S):
        return _itself(f"{directory}/{_MICROK8S_TEMPLATE}")
    return ""


def _is_template(config: str, path: str) -> bool:
    names = {*_K3S_TEMPLATES.values(), _MICROK8S_TEMPLATE}
    linked = {_template(config, version) for version in _K3S_TEMPLATES}
    return os.path.basename(path) in names or path in linked


def _itself(path: str) -> str:
    """The file that a link leads to: the link would become a file, and not be one again."""
    return containerd.lasting(os.path.realpath(path))


def _is_writable(path: str) -> bool:
    """Whether there is no read-only file system in the way."""
    return os.access(preview.existing_directory(os.path.dirname(path)), os.W_OK)
