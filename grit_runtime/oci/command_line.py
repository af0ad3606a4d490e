"""Parsing runc's command line into command, options and operands, and executing runc with it.

Most calls that are parsed here are passed on to runc and must be fast, so only os and sys are
imported. Source: opencontainers/runc main.go, create.go@v1.3.6.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# runc's options that take a value: those before the command, and those after it.
_GLOBAL_VALUES = frozenset(("log", "log-format", "root", "criu", "rootless"))
_COMMAND_VALUES = frozenset(
    (
        "b", "bundle", "console-socket", "pidfd-socket", "pid-file", "preserve-fds",
        "image-path", "work-path", "parent-path", "status-fd", "page-server",
        "manage-cgroups-mode", "empty-ns", "lsm-profile", "lsm-mount-context",
    )
)  # fmt: skip


def command_index(argv: list[str]) -> int:
    """Index of the command in *argv*, which begins with the program; len(argv) if there is none."""
    return _options_end(argv, 1, _GLOBAL_VALUES)


def options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options (by name, without dashes; "" for flags) and the operands of a runc command.

    All of runc's spellings are read: one dash or two, the value after ``=`` or as the next word.
    """
    end = _options_end(arguments, 0, _COMMAND_VALUES)
    return _named(arguments[:end], _COMMAND_VALUES), arguments[end:]


def global_options(argv: list[str], end: int) -> dict[str, str]:
    """runc's global options in argv[1:end]."""
    return _named(argv[1:end], _GLOBAL_VALUES)


def exec_runc(runc: str, argv: list[str]) -> "NoReturn":
    """Replace this process by runc, with the caller's arguments unchanged."""
    try:
        os.execv(runc, argv)  # noqa: S606  no shell is wanted
    except OSError as error:
        sys.stderr.write(f"grit-runtime: cannot run {runc}: {error.strerror}; install runc there\n")
        sys.exit(1)


def _options_end(words: list[str], at: int, with_value: frozenset[str]) -> int:
    """Index of the first operand, or of the first word after ``--``."""
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
