"""The node's configuration, /etc/grit/config.toml. Without that file it is all defaults."""

from __future__ import annotations

from grit_runtime import log
from grit_runtime.errors import ConfigurationError
from grit_runtime.startup import named
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATH = "/etc/grit/config.toml"


class Config(NamedTuple):
    checkpoint_root: str = "/mnt/grit-agent"
    containerd_address: str = "/run/containerd/containerd.sock"
    runc_root: str = "/run/containerd/runc/k8s.io"
    runc: str = ""  # if not on PATH or where it usually is; grit-runtime's launcher has its own
    criu: str = ""  # if not on PATH or where it usually is
    driver_dir: str = ""  # of libcuda.so.1 and libnvidia-ml.so.1, if not where they usually are
    signing_key: str = ""  # PEM file; checkpoints are signed with it
    trusted_keys: str = ""  # PEM file; only checkpoints signed by one of its keys are restored
    agent_dir: str = "/etc/grit/agent"  # the CA of all agents, this node's certificate and key
    agent_port: int = 9465  # where other nodes' agents read this node's checkpoints
    agent_api_port: int = 9466  # of the agent's API, for callers in the cluster; 0: none
    agent_jobs: int = 2  # that move data at a time
    agent_quota_bytes: int = 0  # for the checkpoints that the agent has brought; 0: no limit
    agent_metrics: int = 9464  # the port of metrics and /healthz on 127.0.0.1; 0: none
    store_key: str = ""  # a file's key, that what goes into a store is encrypted with
    huge_pages: bool = True  # turn them on node-wide while GPU memory is moved: a third faster
    log_json: bool = False  # lines of the log are JSON, not logfmt
    # For a checkpoint on its way. kubelet gives up a call after 120 s, and the restore comes after.
    restore_wait_s: float = 75


def load(path: str = PATH) -> Config:
    """The configuration in *path*, in whose format this process logs from now on.

    ConfigurationError for an unknown key or a wrong value.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  tomllib is imported only if there is a file
    except FileNotFoundError:
        return Config()
    import tomllib

    with file:
        try:
            table = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{path}: not TOML: {error}") from None
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"{path}: not UTF-8, as TOML has to be: {error}; save it as UTF-8"
            ) from None
    for key, value in table.items():
        if key not in Config._fields:
            raise ConfigurationError(f"{path}: unknown key {key}{_nearest(key)}")
        expected = _wanting(value, named.types(Config)[key])
        if expected:
            raise ConfigurationError(f"{path}: {key} is {value!r}, expected {expected}")
    loaded = Config(**table)
    if loaded.log_json:
        log.as_json()
    return loaded


def _wanting(value: Any, kind: type) -> str:
    """What was expected instead of *value* for a key of this kind; "" if it is right."""
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is int:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return "" if is_number and 0 <= value < 1 << 63 else "a number, 0 or more"
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if is_number and 0 < value < float("inf") else "a positive number"
    return "" if isinstance(value, str) and value.startswith("/") else "an absolute path"


def _nearest(key: str) -> str:
    import difflib  # only a bad file needs it

    near = difflib.get_close_matches(key, Config._fields, n=1)
    return f", did you mean {near[0]}" if near else f"; known keys: {', '.join(Config._fields)}"
