"""grit's handler in containerd's configuration: its tables, and what they may change. Pure.

Spec: containerd v1.7.24 pkg/cri/config/config.go, v2.1.9 internal/cri/config/config.go (Runtime).
"""

from __future__ import annotations

import json
from typing import Any

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Table = Mapping[str, Any]

NAME = "grit"
RUNTIME_TYPE = "io.containerd.runc.v2"

# What containerd's CRI is called in a file of each version.
CRI = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}

_OURS = ("runtime_type", "runtime_path", "pod_annotations", "container_annotations", "options")
_DEFAULTS: tuple[Any, ...] = ("", 0, [], {}, False, "podsandbox")
# The "/" is needed: in these patterns "*" does not stand for it, and a pattern that matches
# nothing is no error.
_ANNOTATIONS = "grit.dev/*"


class Base(NamedTuple):
    """The handler that pods get which name none: what it says holds for grit's too."""

    name: str
    table: dict[str, Any]

    @property
    def program(self) -> str:
        """The runtime that it calls; "" for the first runc on containerd's PATH."""
        return str(self.table.get("options", {}).get("BinaryName", ""))


def base(effective: Table) -> Base:
    """The node's own handler, from containerd's *effective* configuration.

    FailedPreconditionError if grit cannot stand in front of its runtime.
    """
    containerd = _containerd(effective)
    runtimes = containerd["runtimes"]
    name = containerd["default_runtime_name"]
    if name == NAME or name not in runtimes:
        name = "runc"
    if name not in runtimes:
        raise FailedPreconditionError(
            f"containerd has the handlers {', '.join(runtimes)}, but not its default, "
            f"{containerd['default_runtime_name']}, nor runc; configure one of them"
        )
    if runtimes[name]["runtime_type"] != RUNTIME_TYPE:
        raise FailedPreconditionError(
            f"containerd's handler {name} is of type {runtimes[name]['runtime_type']}, expected "
            f"{RUNTIME_TYPE}: grit needs runc; set default_runtime_name to a handler that has it"
        )
    return Base(name, runtimes[name])


def table(base: Base, *, runtime: str, shim: str) -> dict[str, Any]:
    """The handler's table: what *base* says and a pod of it would miss, with grit's programs.

    *runtime* is the path of grit-runtime; *shim* is that of grit's own shim, "" for containerd's.

    The type is the stock shim's, whose API and options grit's has: only of that type do
    containerd 2.0 to 2.2 ask what the runtime can do, and kubelet gives no pod a user namespace or
    recursive read-only mounts on a handler of which it does not know. And 1.7 starts no pod with a
    user namespace on a handler of another type that has a table of options.
    """
    kept = {
        key: value
        for key, value in base.table.items()
        if key not in _OURS and value not in _DEFAULTS
    }
    options = {
        key: value for key, value in base.table.get("options", {}).items() if value not in _DEFAULTS
    }
    return {
        "runtime_type": RUNTIME_TYPE,
        **({"runtime_path": shim} if shim else {}),
        **kept,
        **{
            key: [*base.table.get(key, []), _ANNOTATIONS]
            for key in ("pod_annotations", "container_annotations")
        },
        "options": {**options, "BinaryName": runtime},
    }


def text(version: int, handlers: Mapping[str, Table]) -> str:
    """*handlers* as tables of a file of that version, after an empty line each."""
    parts = []
    for name, table in handlers.items():
        path = f'plugins."{CRI[version]}".containerd.runtimes.{_key(name)}'
        options = table.get("options", {})
        for header, values in ((path, table), (f"{path}.options", options)):
            parts += [f"\n[{header}]"]
            parts += [
                f"{_key(key)} = {_value(value)}"
                for key, value in values.items()
                if not isinstance(value, dict)
            ]
    return "\n".join(parts) + "\n"


def explicit(base: Base) -> dict[str, Table]:
    """The handler *base* as a table of its own: 1.7 adds runc only where no handler is listed."""
    kept = {key: value for key, value in base.table.items() if value not in _DEFAULTS}
    options = {
        key: value for key, value in base.table.get("options", {}).items() if value not in _DEFAULTS
    }
    return {base.name: {**kept, "options": options}}


def version(config: Table, *, path: str) -> int:
    """The version of the configuration file at *path*; FailedPreconditionError for 1."""
    number: int = config.get("version", 1)
    if number not in CRI:
        raise FailedPreconditionError(
            f"{path} is of version {number}, expected 2 or 3; replace it by what containerd "
            "config migrate prints"
        )
    return number


def is_live(wanted: Table, live: Table) -> bool:
    """Whether a running containerd has the handler *wanted*, told by CRI under its own names."""
    told = {key.replace("_", "").lower(): value for key, value in live.items()}
    meant = {key.replace("_", ""): value for key, value in wanted.items()}
    others = [value for key, value in told.items() if key not in meant]
    return all(told.get(key) == value for key, value in meant.items()) and all(
        value is None or value in _DEFAULTS for value in others
    )


def handler(effective: Table) -> Table | None:
    """grit's handler as containerd has it, if it does."""
    found: Table | None = _containerd(effective)["runtimes"].get(NAME)
    return found


def differences(before: Table, after: Table, wanted: Table | None) -> list[str]:
    """What differs between two effective configurations but for grit's handler; and where that
    is not as *wanted* in the second (None: where it is there).

    What a file imports is no difference: all that it brings would be.
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    ours = ".".join(("plugins", CRI[after["version"]], "containerd", "runtimes", NAME, ""))
    expected = dict(_leaves({} if wanted is None else wanted, ours))
    have = {path: value for path, value in new.items() if path.startswith(ours)}
    if wanted is None:
        expected = dict.fromkeys(have)
    others = {path for path in old.keys() | new.keys() if not path.startswith(ours)}
    return [
        *(
            f"{path}: {_shown(old.get(path))} would become {_shown(new.get(path))}"
            for path in sorted(others)
            if path != "imports" and old.get(path) != new.get(path)
        ),
        *(
            f"{path}: {_shown(have.get(path))} instead of {_shown(value)}"
            for path, value in sorted(expected.items())
            if have.get(path) != value
        ),
    ]


def _containerd(effective: Table) -> Table:
    plugins = effective.get("plugins", {})
    cri = plugins.get(CRI.get(effective.get("version", 0), ""), {})
    if "containerd" not in cri:
        raise FailedPreconditionError(
            "containerd's effective configuration has no CRI; expected that of a containerd 1.7 "
            "or newer that serves kubelet"
        )
    found: Table = cri["containerd"]
    return found


def _leaves(table: Table, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values by their paths; options that are left out are as if they had these defaults."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value not in _DEFAULTS:
            yield f"{prefix}{key}", value


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)


def _value(value: object) -> str:
    """What JSON makes of texts, numbers, booleans and lists is TOML too, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    is_bare = name.isascii() and name.replace("-", "_").isidentifier()
    return name if is_bare else _value(name)
