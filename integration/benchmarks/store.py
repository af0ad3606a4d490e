"""Checkpoints into stores and back: grit beside cp, rclone and a plain copy over a network.

Both sides read what is in the page cache, as a checkpoint that has just been taken is, and end
when all is on the disk. A push leaves its packs there alone: before a pull they are read once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from integration.benchmarks.comparison import Bench, Row, ratio_row, timed
from integration.stores import link, rclone
from integration.stores.commands import Commands
from tests.store import made
from tests.store.made import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Work = Callable[[], object]

PAIRS = 3
FILES = 4
SIZE_MIB = 4096
LINK_MIB = 1024
LARGE_BYTES, LARGE_MIB = 20 << 30, 2048
CHANGED_PERCENT = 1
AS_FAST = 1 / 0.9
RCLONE_LIMIT = 1 / 1.2
TWICE_AS_FAST = 1 / 2
NAME = "default/bench"
STORE, COPIED = f"s3://{rclone.BUCKET}/store", f":s3:{rclone.BUCKET}/store"
COPY = f":s3:{rclone.BUCKET}/copy"
PEAK_MIB = 300
PLAIN_COPY = Path(link.__file__).with_name("plain_copy.py")


def noise(size_mib: int) -> Iterator[bytes]:
    """What no compression makes smaller."""
    return (os.urandom(MIB) for _ in range(size_mib))


def dump(size_mib: int) -> Iterator[bytes]:
    """Like memory: half of it zeros, in runs of 64 KiB, and half text, of Python's library.

    It begins anywhere, so that no file has a chunk of another.
    """
    run = 64 << 10
    library = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    at = random.randrange(len(library) - run)  # noqa: S311  it is no secret
    for _ in range(size_mib):
        parts = []
        for _ in range(MIB // run // 2):
            at = (at + run) % (len(library) - run)
            parts += [library[at : at + run], bytes(run)]
        yield b"".join(parts)


@contextmanager
def disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="bench-store-") as directory:
        yield Path(directory)


def checkpoint(root: Path, content: Callable[[int], Iterator[bytes]], size_mib: int) -> Path:
    directory = root / NAME / "main"
    directory.mkdir(parents=True)
    for number in range(FILES):
        with (directory / f"pages-{number}.img").open("wb") as file:
            file.writelines(content(size_mib // FILES))
    made.seal(directory.parent, "bench")
    os.sync()
    return directory.parent


def paired(
    ours: Work, theirs: Work, *targets: Path, clean: Work = lambda: None
) -> tuple[float, float]:
    """Median seconds of both, which take turns; their *targets* are removed before each."""
    seconds: dict[Work, list[float]] = {ours: [], theirs: []}
    for at in range(PAIRS):
        for work in (ours, theirs) if at % 2 else (theirs, ours):
            for target in targets:
                shutil.rmtree(target, ignore_errors=True)
            clean()
            os.sync()
            seconds[work].append(timed(work))
    mine, other = map(statistics.median, seconds.values())
    return mine, other


def synced(work: Work) -> Work:
    """*work*, and all disks when it has ended: of the server's files too."""

    def done() -> None:
        work()
        os.sync()

    return done


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)
    subprocess.run(["sync", "--file-system", target], check=True)


def unsynced(source: Path, target: Path) -> float:
    """Seconds of cp alone, which leaves all in memory: the bound of what is on the disk at last."""
    shutil.rmtree(target, ignore_errors=True)
    return timed(lambda: subprocess.run(["cp", "-r", source, target], check=True))


def push_beside_copy(
    content: Callable[[int], Iterator[bytes]], limit: float
) -> Callable[[Bench, str], Row]:
    def row(_bench: Bench, name: str) -> Row:
        with disk() as root:
            path = checkpoint(root / "a", content, SIZE_MIB)
            grit = Commands(root / "a")
            push = ["push", NAME, str(root / "store")]
            times = paired(
                lambda: grit.run(*push),
                lambda: copy(path, root / "copy"),
                root / "store",
                root / "copy",
            )
            bound = unsynced(path, root / "copy")
        return ratio_row(name, *times, limit)._replace(bound=bound)

    return row


def pull(_bench: Bench, name: str) -> Row:
    with disk() as root:
        path = checkpoint(root / "a", noise, SIZE_MIB)
        Commands(root / "a").run("push", NAME, str(root / "store"))
        subprocess.run(["tar", "-C", root / "store", "-cf", "/dev/zero", "."], check=True)
        grit = Commands(root / "b")
        times = paired(
            lambda: grit.run("pull", NAME, str(root / "store")),
            lambda: copy(path, root / "copy"),
            root / "b",
            root / "copy",
        )
        bound = unsynced(path, root / "copy")
    return ratio_row(name, *times, AS_FAST)._replace(bound=bound)


def push_s3(_bench: Bench, name: str) -> Row:
    """Into an S3 server's bucket, and `rclone copy` into it."""
    with disk() as root, rclone.serving(root / "s3") as server:
        path = checkpoint(root / "a", dump, SIZE_MIB)
        grit = Commands(root / "a", server.environment)
        times = paired(
            synced(lambda: grit.run("push", NAME, STORE)),
            synced(lambda: rclone.copy(server, str(path), COPY)),
            clean=lambda: rclone.purge(server, COPIED, COPY),
        )
    return ratio_row(name, *times, RCLONE_LIMIT)


def pull_s3(_bench: Bench, name: str) -> Row:
    """From there, verified; and `rclone copy`, which is not."""
    with disk() as root, rclone.serving(root / "s3") as server:
        path = checkpoint(root / "a", dump, SIZE_MIB)
        Commands(root / "a", server.environment).run("push", NAME, STORE)
        rclone.copy(server, str(path), COPY)
        grit = Commands(root / "b", server.environment)
        times = paired(
            lambda: grit.run("pull", NAME, STORE),
            synced(lambda: rclone.copy(server, COPY, str(root / "copy"))),
            root / "b",
            root / "copy",
        )
    return ratio_row(name, *times, RCLONE_LIMIT)


def again(_bench: Bench, name: str) -> Row:
    """MiB sent by a second push, beside what has changed."""
    with disk() as root:
        path = checkpoint(root / "a", noise, LINK_MIB)
        grit = Commands(root / "a")
        grit.run("push", NAME, str(root / "store"))
        changed = max(1, LINK_MIB // 4 * CHANGED_PERCENT // 100)
        with (path / "main/pages-0.img").open("r+b") as file:
            for number in range(changed):
                file.seek(number * 16 * MIB)
                file.write(os.urandom(4 * MIB))
        made.seal(path, "bench")
        told = json.loads(grit.run("push", NAME, str(root / "store"), "--json"))
    return ratio_row(name, told["sent_bytes"] / MIB, changed * 4, 1.3, unit="MiB")


def far(_bench: Bench, name: str) -> Row:
    """A push over 1 Gbit/s, and ten workers that copy a stream a file."""
    with disk() as root, link.joined() as ends:
        path = checkpoint(root / "a", dump, LINK_MIB)
        with rclone.serving(root / "s3", f"{link.FAR}:0", enter=ends.far) as server:
            grit = Commands(root / "a", server.environment, ends.near)
            times = paired(
                synced(lambda: grit.run("push", NAME, STORE)),
                lambda: copied_far(ends, path, root / "copy"),
                root / "copy",
                clean=lambda: rclone.purge(server, COPIED, enter=ends.near),
            )
    bound = LINK_MIB / link.MIB_PER_S
    return ratio_row(name, *times, TWICE_AS_FAST)._replace(bound=bound)


def copied_far(ends: link.Link, source: Path, target: Path) -> None:
    python = (sys.executable, str(PLAIN_COPY))
    with subprocess.Popen(
        [*ends.far, *python, "receive", str(target), link.FAR], stdout=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stdout is not None
        port = receiver.stdout.readline().strip()
        subprocess.run([*ends.near, *python, "send", str(source), link.FAR, port], check=True)


def memory(way: str) -> Callable[[Bench, str], Row]:
    """The most memory that 20 GiB take, 1.5 GiB of them no holes; packs are whole in it for S3."""

    def row(_bench: Bench, name: str) -> Row:
        with disk() as root, rclone.serving(root / "s3") as server:
            path = checkpoint(root / "a", noise, LARGE_MIB)
            os.truncate(path / "main/pages-0.img", LARGE_BYTES)
            made.seal(path, "bench")
            peak = Commands(root / "a", server.environment).peak_mib("push", NAME, STORE)
            if way == "pull":
                peak = Commands(root / "b", server.environment).peak_mib("pull", NAME, STORE)
        return Row(name, peak, PEAK_MIB, peak / PEAK_MIB, 1.0, None, "MiB")

    return row


ROWS: dict[str, Callable[[Bench, str], Row]] = {
    "store.push": push_beside_copy(noise, AS_FAST),
    "store.push_dump": push_beside_copy(dump, 1 / 2.5),
    "store.pull": pull,
    "store.push_s3": push_s3,
    "store.pull_s3": pull_s3,
    "store.push_again": again,
    "store.push_far": far,
    "store.push_memory": memory("push"),
    "store.pull_memory": memory("pull"),
}
