"""What CRIU demands of files that are open by name."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.model import open_files
from grit_runtime.model.open_files import PodFile
from grit_runtime.proto import criu_pb2 as criu

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def reg(
    number: int = 7, *, mode: int = FILE, size: int | None = None, ext: bool | None = None
) -> criu.reg_file_entry:
    return criu.reg_file_entry(id=number, flags=0, pos=0, name=b"/x", mode=mode, size=size, ext=ext)


def test_what_is_made_anew_or_given_is_not_opened_by_its_name() -> None:
    files = [
        criu.file_entry(type=1, id=1, reg=reg(1)),
        criu.file_entry(type=1, id=2, reg=reg(2)),
        criu.file_entry(type=1, id=3, reg=reg(3, ext=True)),
        criu.file_entry(type=2, id=4),
    ]
    remaps = [criu.remap_file_path_entry(orig_id=2, remap_id=9, remap_type=1)]
    assert [file.id for file in open_files.by_name(files, remaps)] == [1]


def test_what_is_not_as_it_was_is_told_with_both() -> None:
    assert open_files.difference(reg(size=6), None) == "is missing, was 6 bytes long"
    assert open_files.difference(reg(mode=DIRECTORY), None) == "is missing"
    assert open_files.difference(reg(size=6), PodFile(FILE, 10)) == "is 10 bytes long, was 6"
    wrong = open_files.difference(reg(size=6), PodFile(DIRECTORY, 4096))
    assert wrong == "has mode 040755, had 0100644"
    # what is only appended to may have grown, and CRIU notes no length of it
    assert open_files.difference(reg(), PodFile(FILE, 10)) is None


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 0o7777), st.integers(0, 0o7777))
def test_nothing_is_wrong_exactly_with_an_equal_file(a: int, b: int, was: int, now: int) -> None:
    wrong = open_files.difference(
        reg(size=a, mode=stat.S_IFREG | was), PodFile(stat.S_IFREG | now, b)
    )
    assert (wrong is None) == (a == b and was == now)
