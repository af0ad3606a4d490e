"""What runc's restore wants and CRIU alone does not write, on a dump that CRIU made alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import FailedPreconditionError, ImageError
from grit_runtime.model import fit_to_runc
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Image

DIRECT = Path(__file__).parent.parent / "goldens/criu-4.2/direct"


def golden(name: str) -> Image:
    return criu_image.parse((DIRECT / name).read_bytes(), name=name)


def image(name: str, entry: criu.netns_entry | criu.pidns_entry) -> Image:
    return Image(name, criu_image.kind_of(name).magics, (entry.SerializeToString(),))


def test_the_pipes_among_the_standard_streams_are_named_as_criu_names_them() -> None:
    fds = criu_image.entries(golden("fdinfo-2.img"), criu.fdinfo_entry)
    files = criu_image.entries(golden("files.img"), criu.file_entry)
    pipes = [file.pipe.pipe_id for file in files if file.type == 2]
    named = json.loads(fit_to_runc.descriptors(fds, files))
    assert named == ["", *(f"pipe:[{pipe}]" for pipe in pipes)]


def test_a_pipe_that_is_no_standard_stream_is_not_named() -> None:
    fds = [criu.fdinfo_entry(id=1, flags=0, type=2, fd=3)]
    files = [criu.file_entry(type=2, id=1, pipe=criu.pipe_entry(id=1, pipe_id=7, flags=0))]
    assert json.loads(fit_to_runc.descriptors(fds, files)) == ["", "", ""]


@pytest.mark.parametrize(
    "data",
    [
        b'["a", "b", "pipe:[1]", "pipe:[2]"]',
        b'{"a": "b"}',
        b"[1, 2, 3]",
        b"[null]",
        b"",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_descriptors_beyond_the_standard_streams_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^descriptors\.json: expected a list of at most 3"):
        fit_to_runc.check_descriptors(data)


@given(st.lists(st.text(), max_size=3))
def test_three_texts_are_descriptors(names: list[str]) -> None:
    fit_to_runc.check_descriptors(json.dumps(names).encode())


@given(st.binary())
def test_any_bytes_are_descriptors_or_refused(data: bytes) -> None:
    try:
        fit_to_runc.check_descriptors(data)
    except ImageError:
        return
    assert len(json.loads(data)) <= 3


def test_a_network_left_to_the_runtime_gets_runcs_name() -> None:
    new = fit_to_runc.with_network_key(golden("netns-10.img"))
    assert criu_image.entry(new, criu.netns_entry).ext_key == b"extRootNetNS"
    assert fit_to_runc.with_network_key(new) is new


def test_a_network_of_the_dumps_own_is_refused_with_how_to_dump() -> None:
    with pytest.raises(FailedPreconditionError, match=r"netns-10\.img.*--external net\[INODE\]"):
        fit_to_runc.with_network_key(image("netns-10.img", criu.netns_entry()))


def test_a_shared_pid_namespace_gets_runcs_name() -> None:
    new = fit_to_runc.with_pid_key(image("pidns-9.img", criu.pidns_entry(ext_key=b"pod")))
    assert criu_image.entry(new, criu.pidns_entry).ext_key == b"extRootPidNS"
    assert fit_to_runc.with_pid_key(new) is new


@pytest.mark.parametrize(
    ("score", "floor", "becomes"),
    [(-999, 1000, 1000), (0, 1000, 1000), (1000, 1000, None), (1000, -997, None), (5, None, None)],
)
def test_a_task_is_spared_no_more_than_the_pods_class_says(
    score: int, floor: int | None, becomes: int | None
) -> None:
    core = criu_image.entry(golden("core-1.img"), criu.core_entry)
    core.tc.oom_score_adj = score
    task = criu.pstree_entry(pid=1, ppid=0, pgid=1, sid=1)
    process = {} if floor is None else {"oomScoreAdj": floor}
    changed = dict(fit_to_runc.cores_with_oom_score([task], {1: core}, {"process": process}))
    assert {pid: core.tc.oom_score_adj for pid, core in changed.items()} == (
        {} if becomes is None else {1: becomes}
    )
