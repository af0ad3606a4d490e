"""Memory of a living process, into files and back."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grit_runtime.errors import CommandError
from grit_runtime.files import digest
from grit_runtime.model.memory_range import MemoryFile, MemoryRange
from grit_runtime.tasks import memory_copy, process_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SIZE_BYTES = (69 << 20) + 4096  # more than one piece, and parts of chunks
SMALL_BYTES = (5 << 20) + 4096

# Prints where its memory is, and its digest whenever it is asked.
HOLDER = f"""
import ctypes, hashlib, mmap, random, sys, time
memory = mmap.mmap(-1, {SIZE_BYTES}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(random.Random(1).randbytes({SIZE_BYTES}))
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
for line in sys.stdin:
    if line == "clear\\n":
        memory[:] = bytes({SIZE_BYTES})
    if line == "fill\\n":
        content = random.Random(2).randbytes({SIZE_BYTES})
        for at in range(0, {SIZE_BYTES}, 1 << 20):
            memory[at : at + (1 << 20)] = content[at : at + (1 << 20)]
            time.sleep(0.02)
        memory[5] ^= 255
    print(hashlib.sha256(memory).hexdigest(), flush=True)
"""


class Holder:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        start = int(process.stdout.readline())
        self.memory = MemoryRange(start, start + SIZE_BYTES)
        self.pid = process.pid

    def ask(self, word: str = "digest") -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@pytest.fixture
def holder() -> Iterator[Holder]:
    argv = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Holder(process)
        process.kill()


def whole(memory: MemoryRange) -> tuple[MemoryRange, ...]:
    return (memory,)


def in_two(memory: MemoryRange) -> tuple[MemoryRange, ...]:
    middle = memory.start + 4096
    return MemoryRange(memory.start, middle), MemoryRange(middle, memory.end)


def saved_digests(
    files: Sequence[MemoryFile],
    *,
    to_disk: bool = False,
    copied: Mapping[memory_copy.Place, bytes] | None = None,
) -> list[str]:
    return [file.digest for file in memory_copy.save(files, to_disk=to_disk, copied=copied)]


@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize("cut", [whole, in_two])
def test_memory_that_was_saved_can_be_given_back(
    holder: Holder,
    tmp_path: Path,
    cut: Callable[[MemoryRange], tuple[MemoryRange, ...]],
    *,
    to_disk: bool,
) -> None:
    saved = MemoryFile(holder.pid, str(tmp_path / "memory"), cut(holder.memory))
    before = holder.ask()
    digests = saved_digests([saved], to_disk=to_disk)
    assert digests == [digest_of(tmp_path / "memory", SIZE_BYTES)]
    assert holder.ask("clear") != before
    memory_copy.fill([saved])
    assert holder.ask() == before
    assert holder.ask("clear") != before
    assert memory_copy.fill([saved]) == digests
    assert holder.ask() == before


def test_each_file_has_the_digest_of_its_own_memory(holder: Holder, tmp_path: Path) -> None:
    first, second = holder.memory.start, holder.memory.start + SMALL_BYTES
    saved = [
        MemoryFile(holder.pid, str(tmp_path / "first"), (MemoryRange(first, second),)),
        MemoryFile(holder.pid, str(tmp_path / "second"), (MemoryRange(second, holder.memory.end),)),
    ]
    digests = saved_digests(saved, to_disk=False)
    assert digests == [digest_of(Path(one.path), one.size_bytes) for one in saved]
    (tmp_path / "first").write_bytes(bytes(SMALL_BYTES))
    zeros = digest_of(tmp_path / "first", SMALL_BYTES)
    assert memory_copy.fill(saved) == [zeros, digests[1]]


def test_what_changes_after_it_was_copied_is_copied_again(holder: Holder, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    saved = MemoryFile(holder.pid, str(path), (holder.memory,))
    holder.ask("clear")
    copied: dict[memory_copy.Place, bytes] = {}
    with memory_copy.Follower(lambda: [saved], copied, to_disk=False):
        before = holder.ask("fill")
    assert len(copied) > 0
    early = path.read_bytes()
    digests = saved_digests([saved], to_disk=False, copied=copied)
    whole = path.read_bytes()
    assert early[: 1 << 20] != whole[: 1 << 20]
    assert hashlib.sha256(whole).hexdigest() == before.strip()
    assert digests == [digest_of(path, SIZE_BYTES)]


def test_what_was_copied_for_another_layout_is_copied_again(holder: Holder, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    half = MemoryRange(holder.memory.start, holder.memory.start + (SIZE_BYTES >> 13 << 12))
    rest = MemoryRange(half.end, holder.memory.end)
    holder.ask("clear")
    copied: dict[memory_copy.Place, bytes] = {}
    early = [MemoryFile(holder.pid, str(path), (rest,))]
    with memory_copy.Follower(lambda: early, copied, to_disk=False):
        before = holder.ask("fill")
    saved = MemoryFile(holder.pid, str(path), (half, rest))
    digests = saved_digests([saved], to_disk=False, copied=copied)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before.strip()
    assert digests == [digest_of(path, SIZE_BYTES)]


def test_what_was_copied_for_two_layouts_in_turn_is_copied_again(
    holder: Holder, tmp_path: Path
) -> None:
    path = tmp_path / "memory"
    first, second = holder.memory.start, holder.memory.start + (1 << 20)
    rest = MemoryRange(second + 4096, holder.memory.end)
    layouts = [
        MemoryFile(holder.pid, str(path), (MemoryRange(start, start + 4096), rest))
        for start in (first, second)
    ]
    looks = 0

    def look() -> list[MemoryFile]:
        nonlocal looks
        looks += 1
        return [layouts[looks // 5 % 2]]

    copied: dict[memory_copy.Place, bytes] = {}
    with memory_copy.Follower(look, copied, to_disk=False):
        while looks < 12:
            time.sleep(0.01)
    digests = saved_digests([layouts[0]], to_disk=False, copied=copied)
    assert digests == [digest_of(path, layouts[0].size_bytes)]


def digest_of(path: Path, size_bytes: int) -> str:
    dir_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        [found] = digest.digest_tree(dir_fd, [path.name]).values()
    finally:
        os.close(dir_fd)
    assert found.size_bytes == size_bytes
    return found.digest


def test_anonymous_memory_is_found_in_its_maps(holder: Holder) -> None:
    found = process_memory.anonymous(holder.pid)
    assert any(one.start <= holder.memory.start < holder.memory.end <= one.end for one in found)
    assert process_memory.anonymous(2**22 + 1) == []


def test_a_file_is_never_written_over(holder: Holder, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        memory_copy.save([MemoryFile(holder.pid, str(path), (holder.memory,))], to_disk=False)
    assert not (tmp_path / "elsewhere").exists()


def test_what_cannot_be_copied_is_told(holder: Holder, tmp_path: Path) -> None:
    path = str(tmp_path / "memory")
    beyond = MemoryRange(0x1000, 0x1000 + SIZE_BYTES)
    with pytest.raises(OSError, match=f"process_vm_readv: .*process {holder.pid}"):
        memory_copy.save([MemoryFile(holder.pid, path, (beyond,))], to_disk=False)
    Path(path).write_bytes(b"short")
    with pytest.raises(CommandError, match="its file was cut"):
        memory_copy.fill([MemoryFile(holder.pid, path, (holder.memory,))])
    Path(path).write_bytes(bytes(SIZE_BYTES))
    with pytest.raises(ProcessLookupError):
        memory_copy.fill([MemoryFile(2**22 + 1, path, (holder.memory,))])
