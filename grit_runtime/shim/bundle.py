"""Files that the shim keeps in a container's bundle for `delete` after the shim has died."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from grit_runtime.model.runtime_options import RuntimeOptions

_NAME = "options.json"


def write_options(bundle_dir: str, options: RuntimeOptions) -> None:
    path = f"{bundle_dir}/{_NAME}"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(options._asdict(), file)
    os.replace(f"{path}.new", path)


def read_options(bundle_dir: str) -> RuntimeOptions | None:
    """The options that the container was created with; None before that and once it is deleted."""
    with suppress(FileNotFoundError), open(f"{bundle_dir}/{_NAME}", encoding="utf-8") as file:
        return RuntimeOptions(**json.load(file))
    return None


def forget_options(bundle_dir: str) -> None:
    """Remove the options of a deleted container."""
    os.unlink(f"{bundle_dir}/{_NAME}")


def write_address(bundle_dir: str, address: str) -> None:
    with open(f"{bundle_dir}/address", "w", encoding="ascii") as file:
        file.write(address)


def read_address(bundle_dir: str) -> str | None:
    """The address of the container's shim; None if none was ever started for it."""
    with suppress(FileNotFoundError), open(f"{bundle_dir}/address", encoding="ascii") as file:
        return file.read()
    return None
