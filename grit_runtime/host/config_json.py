"""Reading and replacing a bundle's config.json. Imports nothing slow: a cold start uses it."""

from __future__ import annotations

import json
import os
from typing import Any

from grit_runtime.errors import InvalidArgumentError


def read(bundle_dir: str) -> dict[str, Any]:
    path = os.path.join(bundle_dir, "config.json")
    try:
        with open(path, "rb") as file:
            spec = json.load(file)
    except ValueError as error:
        raise InvalidArgumentError(f"{path}: not JSON: {error}") from None
    if not isinstance(spec, dict):
        raise InvalidArgumentError(f"{path}: not a JSON object, expected an OCI runtime spec")
    return spec


def write(bundle_dir: str, spec: dict[str, Any]) -> None:
    """Replace the file in one step."""
    path = f"{bundle_dir}/config.json"
    with open(f"{path}.grit", "w", encoding="utf-8") as file:
        json.dump(spec, file)
    os.replace(f"{path}.grit", path)
