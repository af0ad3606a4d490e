"""grit-runtime: the OCI runtime that containerd calls. Most calls are exec'd straight into runc.

The launcher (runtime-config/grit-runtime) hands the words to runc where none can be a command of
ours; the others start here, for every pod. So this module imports nothing but os and sys, and
decides by the cheapest look that is right: `create` of a bundle whose config.json never says
``grit.dev/``, `start` and `delete` of a container that no restore has touched, and `kill` of one
that no checkpoint holds, are runc's.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

PODS_DIR = "/run/grit/pods"

CHECKPOINT_JOURNAL = "checkpoint.journal"

_OURS = ("create", "start", "delete", "kill", "checkpoint", "restore")
_DRIVER = "/proc/driver/nvidia"

# runc's options that take a value, by the place where they may stand (runc main.go, create.go).
_GLOBAL_VALUES = frozenset(("log", "log-format", "root", "criu", "rootless"))
_COMMAND_VALUES = frozenset(
    (
        "b", "bundle", "console-socket", "pidfd-socket", "pid-file", "preserve-fds",
        "image-path", "work-path", "parent-path", "status-fd", "page-server",
        "manage-cgroups-mode", "empty-ns", "lsm-profile", "lsm-mount-context",
    )
)  # fmt: skip


def main(argv: list[str], runc: str) -> "NoReturn":
    """Run *argv* as runc would; *runc* is the real program's absolute path."""
    at = _options_end(argv, 1, _GLOBAL_VALUES)
    command = argv[at] if at < len(argv) else ""
    if command in _OURS and _is_ours(command, argv[at + 1 :]):
        from grit_runtime.oci.intercept import intercept  # noqa: PLC0415  the hot path ends above

        intercept(argv, at, runc)
    exec_runc(runc, argv)


def exec_runc(runc: str, argv: list[str]) -> "NoReturn":
    """Become runc, with the caller's arguments untouched."""
    try:
        os.execv(runc, argv)  # noqa: S606  no shell is the point
    except OSError as error:
        sys.stderr.write(f"grit-runtime: cannot run {runc}: {error.strerror}; install runc there\n")
        sys.exit(1)


def options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options (by name, without dashes; "" for flags) and the operands of a runc command.

    Both of runc's spellings are read: one dash or two, the value after ``=`` or as the next word.
    """
    end = _options_end(arguments, 0, _COMMAND_VALUES)
    return _named(arguments[:end], _COMMAND_VALUES), arguments[end:]


def global_options(argv: list[str], end: int) -> dict[str, str]:
    """runc's global options in argv[1:end]."""
    return _named(argv[1:end], _GLOBAL_VALUES)


def pod_dirs_of(container_id: str) -> list[str]:
    """Where grit keeps state of this container, or of its pod if it is a sandbox."""
    found = [f"{pod}/{container_id}" for pod in _pods()]
    found.append(f"{PODS_DIR}/{container_id}")
    return [path for path in found if os.path.isdir(path)]


def journals_of(container_id: str) -> list[str]:
    """The journal of a checkpoint that has this container, if there is one."""
    journals = [f"{pod}/{CHECKPOINT_JOURNAL}" for pod in _pods()]
    return [path for path in journals if _mentions(path, container_id)]


def _pods() -> list[str]:
    try:
        return [f"{PODS_DIR}/{pod}" for pod in os.listdir(PODS_DIR)]
    except FileNotFoundError:
        return []


def _is_ours(command: str, arguments: list[str]) -> bool:
    if command in ("checkpoint", "restore"):
        return os.path.isdir(_DRIVER)
    named, operands = options(arguments)
    if command == "create":
        bundle = named.get("bundle") or named.get("b") or "."
        return _mentions(os.path.join(bundle, "config.json"), "grit.dev/")
    if command == "kill":
        return bool(operands) and bool(journals_of(operands[0]))
    return bool(operands) and bool(pod_dirs_of(operands[0]))


def _mentions(path: str, text: str) -> bool:
    try:
        with open(path, "rb") as file:
            return text.encode(errors="surrogateescape") in file.read()
    except OSError:
        return False  # of a bundle runc says what is wrong, in its own words


def _options_end(words: list[str], at: int, with_value: frozenset[str]) -> int:
    """Index of the first operand: options end there, or after ``--``."""
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        if words[at] == "--":
            return at + 1
        at += 2 if words[at].lstrip("-") in with_value else 1
    return min(at, len(words))


def _named(words: list[str], with_value: frozenset[str]) -> dict[str, str]:
    named = {}
    at = 0
    while at < len(words):
        name, equals, value = words[at].lstrip("-").partition("=")
        if not equals and name in with_value and at + 1 < len(words):
            at += 1
            value = words[at]
        named[name] = value
        at += 1
    return named
