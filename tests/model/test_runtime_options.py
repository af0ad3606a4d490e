"""The runtime's options in the forms in which containerd hands them on."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.model import runtime_options
from grit_runtime.model.runtime_options import RuntimeOptions
from grit_runtime.proto import linux_runc_pb2, runc_options_pb2, runtimeoptions_pb2, task_pb2
from grit_runtime.wire.well_known import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "binary_name": PATHS,
        "root": PATHS,
        "systemd_cgroup": st.booleans(),
        "no_pivot_root": st.booleans(),
        "no_new_keyring": st.booleans(),
        "shim_cgroup": PATHS,
        "io_uid": st.integers(0, 2**32 - 1),
        "io_gid": st.integers(0, 2**32 - 1),
        "criu_image_path": PATHS,
        "criu_work_path": PATHS,
    },
)


def expected(given: dict[str, object]) -> RuntimeOptions:
    return RuntimeOptions(**{name: value for name, value in given.items() if value})  # type: ignore[arg-type]


def from_toml(text: str) -> RuntimeOptions:
    return runtime_options.decode(pack(runtimeoptions_pb2.Options(config_body=text.encode())))


@given(OPTIONS)
def test_what_a_client_sets_is_taken_and_the_rest_is_default(given: dict[str, object]) -> None:
    message = pack(runc_options_pb2.Options(**given))  # type: ignore[arg-type]
    assert runtime_options.decode(message) == expected(given)


def test_what_an_older_client_sets_is_taken() -> None:
    options = linux_runc_pb2.CreateOptions(
        no_pivot_root=True, open_tcp=True, shim_cgroup="/s", io_uid=5, criu_image_path="/i"
    )
    assert runtime_options.decode(pack(options)) == RuntimeOptions(
        no_pivot_root=True, shim_cgroup="/s", io_uid=5, criu_image_path="/i"
    )


@pytest.mark.parametrize("proto", [runc_options_pb2, linux_runc_pb2])
def test_what_a_dump_may_have_is_taken_from_old_and_new_clients(proto: ModuleType) -> None:
    given = proto.CheckpointOptions(
        exit=True, open_tcp=True, empty_namespaces=["network"], image_path="/i", work_path="/w"
    )
    assert runtime_options.decode_checkpoint(pack(given)) == runc_options_pb2.CheckpointOptions(
        exit=True, open_tcp=True, empty_namespaces=["network"], image_path="/i", work_path="/w"
    )


def test_no_message_is_all_defaults() -> None:
    assert runtime_options.decode(Any()) == RuntimeOptions()
    assert from_toml("") == RuntimeOptions()


def test_the_table_of_containerds_configuration_is_taken() -> None:
    text = (
        'BinaryName = "/opt/runc"\nSystemdCgroup = true\nRoot = "/r"\nIoUid = 5\nShimCgroup = "/s"'
    )
    assert from_toml(text) == RuntimeOptions(
        binary_name="/opt/runc", systemd_cgroup=True, root="/r", io_uid=5, shim_cgroup="/s"
    )


def test_what_another_runtime_would_take_is_left_out() -> None:
    assert from_toml('CriuPath = "/criu"\nTypeUrl = ""\n[Nested]\na = 1') == RuntimeOptions()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("BinaryName = 5", "runtime option binary_name is 5, expected str"),
        ('SystemdCgroup = "true"', "runtime option systemd_cgroup is 'true', expected bool"),
        ("IoUid = true", "runtime option io_uid is True, expected int"),
        ("BinaryName", "runtime options: "),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        from_toml(text)


def test_a_file_of_options_is_refused_with_its_name() -> None:
    with pytest.raises(InvalidArgumentError, match=r"file /etc/options\.toml"):
        runtime_options.decode(pack(runtimeoptions_pb2.Options(config_path="/etc/options.toml")))


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"expected containerd\.runc\.v1\.Options"):
        runtime_options.decode(pack(task_pb2.StateRequest(id="x")))


@given(st.binary(max_size=100), st.sampled_from([runc_options_pb2, runtimeoptions_pb2]))
def test_bytes_of_any_kind_are_options_or_refused(data: bytes, module: object) -> None:
    kind = module.Options.DESCRIPTOR.full_name  # type: ignore[attr-defined]
    with suppress(InvalidArgumentError):
        runtime_options.decode(Any(type_url=kind, value=data))


@given(st.binary(max_size=100))
def test_text_of_any_kind_is_options_or_refused(text: bytes) -> None:
    with suppress(InvalidArgumentError):
        runtime_options.decode(pack(runtimeoptions_pb2.Options(config_body=text)))


def test_command_lines_have_the_options_in_their_places() -> None:
    options = RuntimeOptions(systemd_cgroup=True, no_pivot_root=True, no_new_keyring=True)
    argv = options.argv("k8s.io", "/b/log.json", "create", *options.create_flags, "id")
    assert argv == [
        *("grit-runtime", "--root", "/run/containerd/runc/k8s.io"),
        *("--log", "/b/log.json", "--log-format", "json", "--systemd-cgroup"),
        *("create", "--no-pivot", "--no-new-keyring", "id"),
    ]
    assert options.restore_flags == ["--no-pivot"]
