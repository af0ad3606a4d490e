"""The files of keys that the configuration names."""

from __future__ import annotations

from contextlib import suppress

from grit_runtime import config
from grit_runtime.doctor.finding import Finding, absent, broken, ok
from grit_runtime.errors import GritError, ImageError, one_line, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.doctor.node import Node


def keys(node: Node) -> Finding:
    """Read each as it is when it is used: a checkpoint or a restore would fail with it then."""
    named = {}
    flaws: dict[str, GritError | OSError] = {}
    for key, read in _READ.items():
        if path := getattr(node.config, key):
            named[key] = path
            try:
                read(path)
            except (GritError, OSError) as error:
                flaws[key] = error
    if not named:
        return absent("the configuration names none")
    if flaws:
        told = (f"{key}: {one_line(error).removeprefix(f'{key} ')}" for key, error in flaws.items())
        return broken(
            "; ".join(told),
            f"make what {' and '.join(flaws)} of {config.PATH} should name, or take the line out "
            "(docs/install.md)",
            reason(next(iter(flaws.values()))),
        )
    return ok(", ".join(f"{key} {path}" for key, path in named.items()))


def _sign(path: str) -> None:
    from grit_runtime.files import signature  # these two need extras, and few name a key

    signature.sign(b"", path)


def _trust(path: str) -> None:
    from grit_runtime.files import signature

    with suppress(ImageError):  # the keys were read; none of them has signed nothing
        signature.check(b"", b"", path)


def _store(path: str) -> None:
    from grit_runtime.store import records

    records.file_key(path)


_READ = {"signing_key": _sign, "trusted_keys": _trust, "store_key": _store}
