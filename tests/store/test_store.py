"""Checkpoints into a store in a directory, and back."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime.errors import (
    AlreadyExistsError,
    DamagedError,
    DigestError,
    NoStoreError,
    NotFoundError,
    StoreBusyError,
    TamperedError,
    WrongKeyError,
)
from grit_runtime.files import checkpoint_dir
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.store import backend, catalog, collect, locks
from grit_runtime.store.keys import FileKey
from grit_runtime.store.packs import read_contents
from grit_runtime.store.pull import Pulled, bring, stored
from grit_runtime.store.push import Pushed, begin, push
from grit_runtime.store.records import Unlocked
from tests.store import made

if TYPE_CHECKING:
    from pathlib import Path

    from grit_runtime.store.backend import Backend


@pytest.fixture
def store(tmp_path: Path) -> Backend:
    return backend.open_store(str(tmp_path / "store"), make=True)


@pytest.fixture
def key(tmp_path: Path) -> FileKey:
    (tmp_path / "key").write_text("ab" * 32)
    return FileKey(str(tmp_path / "key"))


def pushed(store: Backend, path: Path, key: FileKey | None = None) -> Pushed:
    return push(str(path), store, key, made.ignore)


def pulled(store: Backend, root: Path, name: str, key: FileKey | None = None) -> Pulled:
    entry = catalog.find(store, made.ROOT, name)
    with stored(store, entry, key) as source:
        return bring(source, entry, str(root), made.ignore)


def packs(store: Backend) -> list[str]:
    return sorted(pack.name for pack in store.listed("packs/"))


@given(
    sizes=st.lists(
        st.one_of(
            st.integers(0, 3 * 4096),
            st.sampled_from([4 * made.MIB, 16 * made.MIB, 16 * made.MIB + 1, 20 * made.MIB]),
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 3),
    kinds=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=25, deadline=None)
def test_what_is_pulled_is_what_was_pushed(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    seed: int,
    kinds: tuple[bool, bool],
) -> None:
    tmp_path = tmp_path_factory.mktemp("moved")
    is_text, is_encrypted = kinds
    key = None
    if is_encrypted:
        (tmp_path / "key").write_bytes(os.urandom(32))
        key = FileKey(str(tmp_path / "key"))
    files = {
        f"main/{'checkpoint/parent' if at % 2 else 'checkpoint'}/pages-{at}.img": (
            made.text(size) if is_text else made.noise(size, seed)
        )
        for at, size in enumerate(sizes)
    }
    path = made.checkpoint(tmp_path / "a", "one", dict(files))
    store = backend.open_store(str(tmp_path / "store"), make=True)
    pushed(store, path, key)
    pulled(store, tmp_path / "b", "one", key)
    assert made.content(tmp_path / "b" / made.ROOT / "one") == made.content(path)


def test_nothing_of_a_store_is_open_once_it_is_done_with(tmp_path: Path) -> None:
    """A volume that is open could not be unmounted, and an agent lives long."""
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(made.MIB)})

    def there_and_back() -> None:
        store = backend.open_store(str(tmp_path / "store"), make=True)
        pushed(store, path)
        pulled(store, tmp_path / "b", "one")

    there_and_back()
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert [place for place in opened if place.startswith(str(tmp_path / "store"))] == []


def test_a_sparse_file_comes_back_sparse_and_the_same(store: Backend, tmp_path: Path) -> None:
    pieces = [(5 * made.MIB, b"a"), (40 * made.MIB - 1, b"b")]
    path = made.checkpoint(
        tmp_path / "a", "one", {"main/sparse": pieces}, size_bytes={"main/sparse": 1 << 30}
    )
    assert pushed(store, path).sent_bytes < made.MIB
    pulled(store, tmp_path / "b", "one")
    back = tmp_path / "b" / made.ROOT / "one" / "main/sparse"
    assert back.stat().st_size == 1 << 30
    assert back.stat().st_blocks * 512 < 20 * made.MIB
    with back.open("rb") as file:
        for offset, data in pieces:
            file.seek(offset)
            assert file.read(1) == data


def test_text_is_compressed_and_zeros_are_not_sent(store: Backend, tmp_path: Path) -> None:
    files: dict[str, bytes | list[tuple[int, bytes]]] = {
        "main/text": made.text(20 * made.MIB),
        "main/zeros": bytes(20 * made.MIB),
    }
    assert pushed(store, made.checkpoint(tmp_path / "a", "one", files)).sent_bytes < 4 * made.MIB


def test_a_second_checkpoint_sends_what_has_changed(store: Backend, tmp_path: Path) -> None:
    data = made.noise(64 * made.MIB)
    pushed(store, made.checkpoint(tmp_path / "a", "one", {"main/pages": data}))
    changed = data[: 8 * made.MIB] + made.noise(4 * made.MIB, seed=2) + data[12 * made.MIB :]
    second = pushed(store, made.checkpoint(tmp_path / "a", "two", {"main/pages": changed}))
    assert second.sent_bytes < 1.3 * 4 * made.MIB
    assert second.reused_bytes == 60 * made.MIB
    pulled(store, tmp_path / "b", "two")
    assert (tmp_path / "b" / made.ROOT / "two/main/pages").read_bytes() == changed


def test_a_push_of_what_is_there_sends_nothing(store: Backend, tmp_path: Path) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(5 * made.MIB)})
    pushed(store, path)
    assert pushed(store, path) == Pushed(
        catalog.find(store, made.ROOT, "one")._replace(written_s=0.0),
        5 * made.MIB,
        0,
        0,
        was_there=True,
    )


def test_a_damaged_checkpoint_is_not_pushed(store: Backend, tmp_path: Path) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(20 * made.MIB)})
    with (path / "main/pages").open("r+b") as file:
        file.seek(9 * made.MIB)
        file.write(b"damage")
    with pytest.raises(DigestError, match="main/pages is damaged"):
        pushed(store, path)
    assert catalog.entries(store) == []


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_checkpoint_that_goes_while_it_is_pushed_is_not_in_the_store(
    store: Backend, tmp_path: Path, how: str
) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": b"all of it"})

    def gone(*_: int) -> None:
        shutil.rmtree(path)
        if how == "replaced":
            made.checkpoint(tmp_path / "a", "one", {"main/pages": b"another"})

    with pytest.raises(NotFoundError, match="went while it was pushed"):
        push(str(path), store, None, gone)
    assert catalog.entries(store) == []


def test_a_flipped_bit_in_a_pack_is_called_damage(store: Backend, tmp_path: Path) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(20 * made.MIB)})
    pushed(store, path)
    _flip(tmp_path / "store" / packs(store)[0], 5000)
    with pytest.raises(DamagedError, match=r"packs/.* at byte \d+, for main/pages: .*checksum"):
        pulled(store, tmp_path / "b", "one")
    assert not (tmp_path / "b" / made.ROOT / "one").exists()


@pytest.mark.parametrize("is_encrypted", [True, False])
@pytest.mark.parametrize("damage", ["a bit", "cut", "removed"])
def test_what_is_damaged_in_a_store_is_right_when_it_is_pushed_again(
    store: Backend, tmp_path: Path, key: FileKey, damage: str, *, is_encrypted: bool
) -> None:
    own_key = key if is_encrypted else None
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(5 * made.MIB)})
    pushed(store, path, own_key)
    pushed(store, made.checkpoint(tmp_path / "a", "two", made.content(path)), own_key)
    pack = tmp_path / "store" / packs(store)[0]
    if damage == "a bit":
        _flip(pack, 5000)
    elif damage == "cut":
        os.truncate(pack, pack.stat().st_size // 2)
    else:
        pack.unlink()
    with pytest.raises(DamagedError):
        pulled(store, tmp_path / "b", "one", own_key)
    for name in ("one", "two"):
        assert not pushed(store, tmp_path / "a" / made.ROOT / name, own_key).was_there
        assert pushed(store, tmp_path / "a" / made.ROOT / name, own_key).was_there
        pulled(store, tmp_path / "b", name, own_key)
    assert made.content(tmp_path / "b") == made.content(tmp_path / "a")
    collect.collect(store, Unlocked(own_key), collect.Kept())
    assert not pack.exists()
    assert store.listed("damaged/") == []


def test_what_was_found_damaged_is_sent_again_after_its_removal_too(
    store: Backend, tmp_path: Path
) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(5 * made.MIB)})
    pushed(store, path)
    pushed(store, made.checkpoint(tmp_path / "a", "two", made.content(path)))
    _flip(tmp_path / "store" / packs(store)[0], 5000)
    with pytest.raises(DamagedError):
        pulled(store, tmp_path / "b", "one")
    entry = catalog.find(store, made.ROOT, "one")
    collect.collect(store, Unlocked(None), collect.Kept(), entries=[entry])
    pushed(store, path)
    pulled(store, tmp_path / "b", "one")


def test_an_index_that_is_damaged_is_right_when_it_is_pushed_again(
    store: Backend, tmp_path: Path
) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(5 * made.MIB)})
    index = tmp_path / "store" / pushed(store, path).entry.object_name
    _flip(index, index.stat().st_size // 2)
    assert pushed(store, path).reused_bytes == 5 * made.MIB
    pulled(store, tmp_path / "b", "one")


def test_a_checkpoint_that_is_damaged_here_is_replaced_by_itself(
    store: Backend, tmp_path: Path
) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(5 * made.MIB)})
    pushed(store, path)
    entry = catalog.find(store, made.ROOT, "one")

    def again() -> Pulled:
        with stored(store, entry, None) as source:
            return bring(source, entry, str(tmp_path / "b"), made.ignore, replace=True)

    assert not again().was_here
    assert again().was_here
    _flip(tmp_path / "b" / made.ROOT / "one/main/pages", 5000)
    assert not again().was_here
    assert made.content(tmp_path / "b") == made.content(tmp_path / "a")


def test_a_pull_goes_on_where_another_was_interrupted(store: Backend, tmp_path: Path) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(64 * made.MIB)})
    pushed(store, path)
    broken = tmp_path / "store" / packs(store)[0]
    whole = broken.read_bytes()
    _flip(broken, 5000)
    with pytest.raises(DamagedError):
        pulled(store, tmp_path / "b", "one")
    broken.write_bytes(whole)
    rest = pulled(store, tmp_path / "b", "one")
    assert 0 < rest.received_bytes < 64 * made.MIB
    assert made.content(tmp_path / "b" / made.ROOT / "one") == made.content(path)
    assert [entry.name for entry in (tmp_path / "b" / made.ROOT).iterdir()] == ["one"]


def test_a_push_goes_on_with_every_whole_pack_of_another(store: Backend, tmp_path: Path) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(320 * made.MIB)})
    left = 300 * made.MIB

    def stop_late(done_bytes: int, _moved_bytes: int) -> None:
        nonlocal left
        left -= done_bytes
        if left < 0:
            raise InterruptedError("stop")

    with pytest.raises(InterruptedError):
        push(str(path), store, None, stop_late)
    whole = store.listed("packs/")
    assert len(whole) > 1
    chunks = sum(len(read_contents(store, pack, None)) for pack in whole)
    assert pushed(store, path).reused_bytes == chunks * 4 * made.MIB
    pulled(store, tmp_path / "b", "one")
    assert made.content(tmp_path / "b" / made.ROOT / "one") == made.content(path)


def test_a_wrong_key_a_forged_pack_and_damage_are_told_apart(
    store: Backend, tmp_path: Path, key: FileKey
) -> None:
    data = made.noise(20 * made.MIB)
    pushed(store, made.checkpoint(tmp_path / "a", "one", {"main/pages": data}), key)
    with pytest.raises(WrongKeyError, match="name the file that has it"):
        pulled(store, tmp_path / "b", "one")
    (tmp_path / "other").write_bytes(os.urandom(32))
    with pytest.raises(WrongKeyError, match=f"encrypted with key {key.id}"):
        pulled(store, tmp_path / "b", "one", FileKey(str(tmp_path / "other")))
    pack = tmp_path / "store" / packs(store)[0]
    whole = pack.read_bytes()
    _flip(pack, 5000)
    with pytest.raises(DamagedError):
        pulled(store, tmp_path / "b", "one", key)
    pack.write_bytes(_forged(whole))
    with pytest.raises(TamperedError, match="not encrypted with the checkpoint's key"):
        pulled(store, tmp_path / "b", "one", key)
    pack.write_bytes(whole)
    pulled(store, tmp_path / "b", "one", key)
    assert data[:64] not in whole


def test_another_checkpoint_of_the_name_is_not_replaced_unasked(
    store: Backend, tmp_path: Path
) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": b"first"})
    pushed(store, path)
    pulled(store, tmp_path / "b", "one")
    (path / "main/pages").write_bytes(b"second")
    made.seal(path, "one")
    pushed(store, path)
    with pytest.raises(AlreadyExistsError, match="another checkpoint"):
        pulled(store, tmp_path / "b", "one")
    entry = catalog.find(store, made.ROOT, "one")
    with stored(store, entry, None) as source:
        bring(source, entry, str(tmp_path / "b"), made.ignore, replace=True)
    assert (tmp_path / "b" / made.ROOT / "one/main/pages").read_bytes() == b"second"


@pytest.mark.parametrize("there", ["nothing", "another"])
def test_a_checkpoint_that_got_the_name_during_a_pull_stays(
    store: Backend, tmp_path: Path, there: str
) -> None:
    pushed(store, made.checkpoint(tmp_path / "a", "one", {"main/pages": b"from the store"}))
    if there == "another":
        made.checkpoint(tmp_path / "b", "one", {"main/pages": b"an older one"})
    place = tmp_path / "b" / made.ROOT / "one"

    def sealed_meanwhile(*_: int) -> None:
        if place.exists():
            place.rename(tmp_path / "old")
        made.checkpoint(tmp_path / "b", "one", {"main/pages": b"the only copy"})

    entry = catalog.find(store, made.ROOT, "one")
    taken = pytest.raises(AlreadyExistsError, match="was made while")
    with stored(store, entry, None) as source, taken:
        bring(source, entry, str(tmp_path / "b"), sealed_meanwhile, replace=there == "another")
    assert (place / "main/pages").read_bytes() == b"the only copy"
    with stored(store, entry, None) as source:
        again = bring(source, entry, str(tmp_path / "b"), made.ignore, replace=True)
    assert again.received_bytes == 0
    assert (place / "main/pages").read_bytes() == b"from the store"


def test_of_each_pod_the_newest_are_kept(store: Backend, tmp_path: Path) -> None:
    for number in range(4):
        data = made.noise(5 * made.MIB, seed=number)
        pushed(store, made.checkpoint(tmp_path / "a", f"c{number}", {"main/pages": data}))
    before = packs(store)
    listed = collect.collect(store, Unlocked(None), collect.Kept(newest=2), dry_run=True)
    assert packs(store) == before
    gone = collect.collect(store, Unlocked(None), collect.Kept(newest=2))
    assert gone == listed
    assert sorted(entry.name for entry in gone.entries) == ["c0", "c1"]
    assert sorted(entry.name for entry in catalog.entries(store)) == ["c2", "c3"]
    assert len(packs(store)) < len(before)
    pulled(store, tmp_path / "b", "c2")


def test_what_another_checkpoint_refers_to_stays(store: Backend, tmp_path: Path) -> None:
    data = made.noise(20 * made.MIB)
    pushed(store, made.checkpoint(tmp_path / "a", "one", {"main/pages": data}))
    pushed(store, made.checkpoint(tmp_path / "a", "two", {"main/same": data}))
    entry = catalog.find(store, made.ROOT, "one")
    collect.collect(store, Unlocked(None), collect.Kept(), entries=[entry])
    with pytest.raises(NotFoundError, match="grit ls"):
        catalog.find(store, made.ROOT, "one")
    pulled(store, tmp_path / "b", "two")


def test_nothing_is_removed_while_somebody_reads(store: Backend) -> None:
    reading = locks.shared(store, "pull of default/one")
    busy = pytest.raises(StoreBusyError, match="in use: pull of default/one on node")
    with reading, busy:
        collect.collect(store, Unlocked(None), collect.Kept())
    collect.collect(store, Unlocked(None), collect.Kept())
    assert store.listed("locks/") == []


def test_a_directory_with_anything_else_in_it_does_not_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(NoStoreError, match="neither a store nor empty"):
        backend.open_store(str(tmp_path), make=True)
    with pytest.raises(NoStoreError, match="is not a store"):
        backend.open_store(str(tmp_path))
    with pytest.raises(NoStoreError, match="is no directory"):
        backend.open_store(str(tmp_path / "none"))


def test_what_was_sent_before_the_seal_is_not_sent_again(
    store: Backend, tmp_path: Path, key: FileKey
) -> None:
    data = made.noise(40 * made.MIB)
    path = made.checkpoint(tmp_path / "a", "one", {"main/memory": data, "main/rest": b"rest"})
    with closing_fd(os.open(path, os.O_RDONLY)) as dir_fd:
        files = checkpoint_dir.read_manifest(dir_fd, "one").manifest.files
    memory = [file for file in files if file.path == "main/memory"]
    begun = begin(str(path), memory, store, key)
    rest = push(str(path), store, key, made.ignore, begun=begun)
    assert rest.sent_bytes < 4096
    pulled(store, tmp_path / "b", "one", key)
    assert (tmp_path / "b" / made.ROOT / "one/main/memory").read_bytes() == data
    assert [name for name in packs(store) if name.endswith("/key")] == []


def test_what_no_push_refers_to_is_collected(store: Backend, tmp_path: Path) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/memory": made.noise(20 * made.MIB)})
    with closing_fd(os.open(path, os.O_RDONLY)) as dir_fd:
        files = checkpoint_dir.read_manifest(dir_fd, "one").manifest.files
    begin(str(path), files, store, None)
    assert packs(store)
    collect.collect(store, Unlocked(None), collect.Kept())
    assert packs(store) == []
    assert pushed(store, path).sent_bytes > 20 * made.MIB


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def _forged(pack: bytes) -> bytes:
    """The pack with another first record, whose checksum is right."""
    from blake3 import blake3

    from grit_runtime.wire import pack as wire

    head = wire.parse_header(pack)
    body = bytearray(pack[wire.HEADER_BYTES : wire.HEADER_BYTES + head.size_bytes])
    body[100] ^= 1
    checksum = blake3(bytes(body)).digest()[: wire.CHECKSUM_BYTES]
    rest = pack[wire.HEADER_BYTES + head.size_bytes :]
    return wire.header(head._replace(checksum=checksum)) + bytes(body) + rest
