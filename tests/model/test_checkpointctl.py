"""What container engines' metadata says of the container in an archive."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import ImageError
from grit_runtime.model import checkpointctl


def spec(**annotations: str) -> bytes:
    keys = {
        "containerd": "io.kubernetes.cri.container-name",
        "crio": "io.kubernetes.cri-o.Metadata",
        "podman": "io.container.manager",
    }
    return json.dumps({"annotations": {keys[k]: v for k, v in annotations.items()}}).encode()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (spec(containerd="counter"), "counter"),
        (spec(crio='{"name": "counter", "attempt": 1}'), "counter"),
        (spec(podman="libpod"), None),
        (b'{"annotations": null}', None),
        (b"{}", None),
    ],
)
def test_each_engine_keeps_the_containers_name_in_its_own_place(
    data: bytes, name: str | None
) -> None:
    assert checkpointctl.container_name(data) == name


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b'{"annotations": [1]}', spec(crio="{}"), spec(crio="["), b"[" * 100_000),
        *(spec(crio='{"name": "../main"}'), spec(crio='{"name": ""}'), spec(crio='{"name": "A"}')),
    ],
)
def test_what_is_no_spec_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^spec\.dump: "):
        checkpointctl.container_name(data)


def test_deleted_files_are_named_from_the_root() -> None:
    assert checkpointctl.deleted_files(b'["/etc/passwd", "tmp/x"]') == [b"etc/passwd", b"tmp/x"]


@given(st.binary())
def test_any_bytes_are_deleted_files_or_refused(data: bytes) -> None:
    try:
        checkpointctl.deleted_files(data)
    except ImageError as error:
        assert "\n" not in str(error)
