"""What containerd is configured to tell the shim about the OCI runtime.

CRI hands the table ``[...runtimes.NAME.options]`` on as TOML text; ctr and other clients send the
message that the Go shim takes, or, those of 1.7, an older one that says the same. Spec: containerd
v2.1.9 api/types/runc/options/oci.proto, internal/cri/config/config.go (getRuntimeOptionsType),
v1.7.9 task_opts.go, pkg/cri/opts/task.go.
"""

from __future__ import annotations

from typing import Any

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.proto import runc_options_pb2, runtimeoptions_pb2
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire.well_known import type_name, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf import any_pb2
    from google.protobuf.message import Message

DEFAULT_PROGRAM = "grit-runtime"
DEFAULT_ROOT = "/run/containerd/runc"


class RuntimeOptions(NamedTuple):
    """The options of one container, under the names that config.toml has for them."""

    binary_name: str = DEFAULT_PROGRAM
    root: str = DEFAULT_ROOT
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    criu_image_path: str = ""
    criu_work_path: str = ""

    def argv(self, namespace: str, log_path: str, *command: str) -> list[str]:
        """A command line of the runtime for containers of *namespace*."""
        log = ("--log", log_path, "--log-format", "json")
        systemd = ["--systemd-cgroup"] * self.systemd_cgroup
        return [self.binary_name, "--root", f"{self.root}/{namespace}", *log, *systemd, *command]

    @property
    def create_flags(self) -> list[str]:
        return ["--no-pivot"] * self.no_pivot_root + ["--no-new-keyring"] * self.no_new_keyring

    @property
    def restore_flags(self) -> list[str]:
        return ["--no-pivot"] * self.no_pivot_root


def decode(message: any_pb2.Any) -> RuntimeOptions:
    """The options in an Any, which may be empty; InvalidArgumentError for what cannot be meant."""
    if type_name(message) == runtimeoptions_pb2.Options.DESCRIPTOR.full_name:
        return _from_toml(unpack(message, runtimeoptions_pb2.Options))
    if type_name(message) == "containerd.linux.runc.CreateOptions":
        from grit_runtime.proto import linux_runc_pb2  # most shims never see any

        return _chosen(_fields(unpack(message, linux_runc_pb2.CreateOptions)))
    return _chosen(_fields(unpack(message, runc_options_pb2.Options)))


def decode_checkpoint(message: any_pb2.Any) -> runc_options_pb2.CheckpointOptions:
    """What a client allows in a dump; InvalidArgumentError for a message of another kind."""
    if type_name(message) == "containerd.linux.runc.CheckpointOptions":
        from grit_runtime.proto import linux_runc_pb2  # the same

        older = unpack(message, linux_runc_pb2.CheckpointOptions)
        return runc_options_pb2.CheckpointOptions(**_fields(older))
    return unpack(message, runc_options_pb2.CheckpointOptions)


def _fields(message: Message) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def _from_toml(options: runtimeoptions_pb2.Options) -> RuntimeOptions:
    import tomllib  # most shims never see any

    if options.config_path:
        raise InvalidArgumentError(
            f"runtime options name the file {options.config_path}; put its keys into the table "
            "options of the runtime in containerd's configuration instead of ConfigPath"
        )
    try:
        table = tomllib.loads(options.config_body.decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise InvalidArgumentError(f"runtime options: {error}") from None
    return _chosen({_SPELLED.get(key, key): value for key, value in table.items()})


def _chosen(given: Mapping[str, object]) -> RuntimeOptions:
    """The options that are set; what another runtime would take is left out."""
    defaults = RuntimeOptions()
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if name not in RuntimeOptions._fields or not value:
            continue
        if type(value) is not type(getattr(defaults, name)):
            raise InvalidArgumentError(
                f"runtime option {name} is {value!r}, expected "
                f"{type(getattr(defaults, name)).__name__}"
            )
        chosen[name] = value
    return RuntimeOptions(**chosen)


# config.toml has the names of the Go struct's fields.
_SPELLED = {
    "".join(word.capitalize() for word in name.split("_")): name for name in RuntimeOptions._fields
}
