"""Files without a name, as this process has them."""

from __future__ import annotations

import mmap
import os

from grit_runtime.tasks import deleted_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_open_or_mapped_is_found_and_whether_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as writable, path.open("rb") as readable:
        inode = os.fstat(readable.fileno()).st_ino
        shared = mmap.mmap(writable.fileno(), 4096)
        path.unlink()
        found = [file for file in deleted_files.used([os.getpid()]) if file.inode == inode]
        assert sorted(file.is_written for file in found) == [False, True]
        assert {file.name for file in found} == {str(path)}
        writable.close()
        readable.close()
        (mapped,) = (file for file in deleted_files.used([os.getpid()]) if file.inode == inode)
        assert mapped.is_written
        shared.close()
    assert inode not in {file.inode for file in deleted_files.used([os.getpid()])}
