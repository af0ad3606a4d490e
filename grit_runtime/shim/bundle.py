"""What the shim leaves in a container's bundle for the `delete` that comes when it has died."""

from __future__ import annotations

import json
import os

from grit_runtime.model.runtime_options import RuntimeOptions

_NAME = "options.json"


def write_options(bundle_dir: str, options: RuntimeOptions) -> None:
    path = f"{bundle_dir}/{_NAME}"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(options._asdict(), file)
    os.replace(f"{path}.new", path)


def read_options(bundle_dir: str) -> RuntimeOptions:
    """The options that the container was created with; the defaults if it never was."""
    try:
        with open(f"{bundle_dir}/{_NAME}", encoding="utf-8") as file:
            return RuntimeOptions(**json.load(file))
    except FileNotFoundError:
        return RuntimeOptions()
