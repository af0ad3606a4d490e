"""What the shim leaves in a container's bundle for the `delete` that comes when it has died."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress

from grit_runtime.model.runtime_options import RuntimeOptions

_NAME = "options.json"


def write_options(bundle_dir: str, options: RuntimeOptions) -> None:
    path = f"{bundle_dir}/{_NAME}"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(options._asdict(), file)
    os.replace(f"{path}.new", path)


def read_options(bundle_dir: str) -> RuntimeOptions | None:
    """The options that the container was created with; None if it was not, or is deleted."""
    with suppress(FileNotFoundError), open(f"{bundle_dir}/{_NAME}", encoding="utf-8") as file:
        return RuntimeOptions(**json.load(file))
    return None


def forget_options(bundle_dir: str) -> None:
    """Nothing is left of the container."""
    os.unlink(f"{bundle_dir}/{_NAME}")


def serves(path: str) -> bool:
    """Whether a shim listens at *path*."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def token(socket_path: str) -> str:
    """What all commands carry that the shim at this socket runs (host/process.py)."""
    return os.path.basename(socket_path)


def dead_socket(bundle_dir: str) -> str | None:
    """The socket of a container's shim, if none serves there any more."""
    with suppress(FileNotFoundError):
        with open(f"{bundle_dir}/address", encoding="ascii") as file:
            path = file.read().removeprefix("unix://")
        return None if serves(path) else path
    return None
