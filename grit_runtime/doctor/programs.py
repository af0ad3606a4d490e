"""The programs that grit runs, and the one that containerd runs as grit."""

from __future__ import annotations

import os
import re

from grit_runtime import errors
from grit_runtime.doctor import node as this_node
from grit_runtime.doctor.finding import Finding, absent, broken, ok, warning
from grit_runtime.errors import CommandError
from grit_runtime.host import criu as criu_program
from grit_runtime.host import process, programs
from grit_runtime.host import runc as runc_program
from grit_runtime.host.runc import Runc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.doctor.node import Node

_OLDEST_CRIU = 4
_OLDEST_RUNC = (1, 1, 0)
_MENDED_BY = "run grit install, or correct the paths at its top: Python, grit's packages, runc"
# What has been found in runc's restores, and the version without it.
_RUNC_FLAWS = (
    ((1, 3, 7), "CVE-2026-119101: links in a root filesystem lead a restore's mounts out of it"),
)


def criu(node: Node) -> Finding:
    """Its own check of the kernel, after its version."""
    criu_program.prefer(node.config.criu)
    path = programs.find("criu", node.config.criu)
    token = process.new_token()
    version = criu_program.read_version(criu_program.start_version(token))
    shown = f"CRIU {'.'.join(map(str, version))} at {path}"
    if version.major < _OLDEST_CRIU:
        return broken(shown, "install CRIU 4.0 or newer", errors.FailedPreconditionError.reason)
    try:
        process.run(["criu", "check"], token=token)
    except CommandError as error:
        return broken(
            f"{shown}: {error}",
            "run criu check as root: it names what the kernel lacks, or what may not be done here",
            errors.CommandError.reason,
        )
    return ok(f"{shown}: its check passes")


def runc(node: Node) -> Finding:
    """Both that are used: the configuration's by grit, the launcher's by containerd."""
    paths = [programs.find("runc", node.config.runc)]
    if os.path.exists(node.launcher):
        theirs = this_node.launcher_paths(node.launcher).get("runc")
        if theirs and not os.access(theirs, os.X_OK):
            return broken(
                f"{node.launcher} calls runc at {theirs}, and there is none",
                f"install runc there, or correct the path at the top of {node.launcher}",
                errors.NotFoundError.reason,
            )
        paths += [theirs] if theirs and not os.path.samefile(theirs, paths[0]) else []
    found = [_runc(path) for path in paths]
    return next((one for one in found if one.remedy), found[0])


def _runc(path: str) -> Finding:
    tool = Runc(path, (), process.new_token())
    version = runc_program.read_version(runc_program.start_version(tool))
    numbers = tuple(map(int, re.findall(r"[0-9]+", version)[:3]))
    shown = f"runc {version} at {path}"
    if numbers < _OLDEST_RUNC:
        return broken(shown, "install runc 1.1 or newer", errors.FailedPreconditionError.reason)
    if b'"org.opencontainers.runc.checkpoint.enabled": "false"' in tool.call("features"):
        return broken(
            f"{shown} was built without checkpoints",
            "install one that was not built with the tag runc_nocriu",
            errors.FailedPreconditionError.reason,
        )
    for fixed, flaw in _RUNC_FLAWS:
        if numbers < fixed:
            return warning(
                f"{shown} is older than {'.'.join(map(str, fixed))}, which no longer has {flaw}",
                "upgrade runc, unless its packager has mended this",
            )
    return ok(shown)


def launcher(node: Node) -> Finding:
    """Have it answer a call as grit, and hand it to runc: its three paths are used by that."""
    path = node.launcher
    if node.handlers and not os.access(path, os.X_OK):
        return broken(
            f"containerd's handler calls {path}, and there is no such program",
            "run grit install",
            errors.NotFoundError.reason,
        )
    if not os.path.exists(path):
        return absent(f"no {path}, and no handler of containerd that calls one")
    theirs = this_node.launcher_paths(path).get("runc")
    if theirs and not os.access(theirs, os.X_OK):
        return absent(f"{path} calls a runc that is missing")
    if flaw := _flaw(path, ("runc", "packages", "python"), ["restore", "--help"]):
        return broken(f"{path} {flaw}", _MENDED_BY, errors.CommandError.reason)
    return ok(f"{path} reaches grit and runc")


def shim(node: Node) -> Finding:
    """Have grit's own tell its version, where a handler has it. `handler` names a missing one."""
    paths = [path for path in node.shims if os.access(path, os.X_OK)]
    if not paths:
        return absent("no handler of containerd has grit's own shim, or it is not there")
    for path in paths:
        if flaw := _flaw(path, ("packages", "python"), ["-v"]):
            return broken(f"{path} {flaw}", _MENDED_BY, errors.CommandError.reason)
    return ok(f"{', '.join(paths)} reaches grit")


def _flaw(path: str, names: tuple[str, ...], words: list[str]) -> str:
    """What is wrong with a launcher: its paths have *names*, and it prints an answer to *words*."""
    there = this_node.launcher_paths(path)
    if missing := [name for name in names if name not in there]:
        return f"is not grit's: it names no {missing[0]} at its top"
    try:
        printed = process.run([path, *words], token=process.new_token())
    except CommandError as error:
        return f"does not work: {error}"
    return "" if printed else f"prints nothing for {' '.join(words)}"
