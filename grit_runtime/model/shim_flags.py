"""Parsing the command line of a containerd shim, as Go's flag package does."""

from __future__ import annotations

from grit_runtime.errors import InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_WITH_VALUE = ("namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket")
_FLAGS = ("debug", "info", "v", "version")


def parse(words: Sequence[str]) -> tuple[dict[str, str], str]:
    """The flags by name, and the action, "" if there is none.

    One dash or two; a value after "=" or as the next word. An action needs a namespace and an id.
    """
    flags = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        if name in _WITH_VALUE:
            if not equals and not rest:
                raise InvalidArgumentError(f"flag -{name} has no value")
            flags[name] = value if equals else rest.pop(0)
        elif name in _FLAGS:
            flags[name] = value
        else:
            raise InvalidArgumentError(f"flag -{name} is unknown")
    action = rest[0] if rest else ""
    for name in ("namespace", "id"):
        if action in ("start", "delete") and not flags.get(name):
            raise InvalidArgumentError(f"action {action} needs the flag -{name}")
    return flags, action
