"""NVIDIA cards for nodes without any: the libraries of fake-gpu/, device nodes, /proc/driver."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from integration.pods.pod_spec import HostPath, VolumeMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from integration.node.node import Node

SOURCE_DIR = Path(__file__).with_name("fake-gpu")
CARDS_DIR = Path("/var/lib/fake-gpu")
PROC_DRIVER = "/proc/driver"
LIBRARY_DIR = Path(f"/usr/lib/{platform.machine()}-linux-gnu")
LIBCUDA = LIBRARY_DIR / "libcuda.so.1"
LIBNVIDIA_ML = LIBRARY_DIR / "libnvidia-ml.so.1"
LIBRARIES = {LIBCUDA.name: "libcuda.c", LIBNVIDIA_ML.name: "libnvidia-ml.c"}

# Memory devices that anybody may open, for want of nodes that only a GPU has: major 1, and as
# minor null, zero, random or urandom for a card, full for the rest.
MAJOR = 1
CARD_MINORS = (3, 5, 8, 9)
OTHER_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm")
OTHER_MINOR = 7

DRIVER = "580.159.03 13000"
CONTEXT_BYTES = 1 << 20  # what libcuda.c takes of a card for each process

VOLUMES = (HostPath("cards", str(CARDS_DIR)), HostPath("libcuda", str(LIBCUDA)))
MOUNTS = (
    VolumeMount("cards", str(CARDS_DIR)),
    VolumeMount("libcuda", str(LIBCUDA), readonly=True),
)

INFORMATION = """\
Model: \t\t {name}
IRQ:   \t\t 11
GPU UUID: \t {uuid}
Video BIOS: \t 96.00.89.00.01
Bus Type: \t PCIe
DMA Size: \t 52 bits
DMA Mask: \t 0xfffffffffffff
Bus Location: \t {bus_id}
Device Minor: \t {minor}
GPU Excluded:\t No
"""


class Card(NamedTuple):
    """A card of a node; *minor* is one of CARD_MINORS, no *mig* is a card that does not know it."""

    uuid: str
    minor: int
    total_bytes: int = 64 << 20
    name: str = "NVIDIA H100 80GB HBM3"
    mig: bool | None = None

    @property
    def node(self) -> str:
        """Its device node."""
        return f"/dev/nvidia{self.minor}"

    @property
    def bus_id(self) -> str:
        """Its place on the bus."""
        return f"0000:00:{self.minor:02x}.0"

    def description(self) -> str:
        """What the libraries read of it."""
        lines = [f"minor {self.minor}", f"total {self.total_bytes}", f"name {self.name}"]
        if self.mig is not None:
            lines.append(f"mig {self.mig:d}")
        return "".join(f"{line}\n" for line in lines)


def new_card(minor: int, **properties: object) -> Card:
    """A card with a UUID of its own."""
    return Card(f"GPU-{uuid.uuid4()}", minor)._replace(**properties)  # type: ignore[arg-type]


def device_paths(cards: Sequence[Card]) -> tuple[str, ...]:
    """The nodes that a container with these cards is given."""
    return (*OTHER_NODES, *(card.node for card in cards))


def build(directory: Path, *, definitions: Sequence[str] = ()) -> None:
    """Compile both libraries into *directory*."""
    for library, source in LIBRARIES.items():
        options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
        options += ["-fvisibility=hidden", f"-Wl,-soname,{library}"]
        options += [f"-D{definition}" for definition in definitions]
        sources = [SOURCE_DIR / source, SOURCE_DIR / "cards.c"]
        subprocess.run(["gcc", *options, "-o", directory / library, *sources], check=True)


def lay_out(directory: Path, cards: Sequence[Card], *, driver: str = DRIVER) -> None:
    """Make *directory* hold the cards, free, as the libraries find them."""
    (directory / "driver").write_text(driver)
    (directory / "callers").mkdir()
    for card in cards:
        (directory / card.uuid / "memory").mkdir(parents=True)
        (directory / card.uuid / "card").write_text(card.description())
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


@contextmanager
def installed(node: Node, cards: Sequence[Card], *, driver: str = DRIVER) -> Iterator[None]:
    """Let *node* have *cards*, and both libraries, until the end of the context."""
    with ExitStack() as stack:
        build(node.path(LIBRARY_DIR))
        for library in LIBRARIES:
            stack.callback(node.path(LIBRARY_DIR / library).unlink)
        for directory in (str(CARDS_DIR), PROC_DRIVER):
            node.path(Path(directory)).mkdir(exist_ok=True)
            node.run(["mount", "-t", "tmpfs", "tmpfs", directory])
            stack.callback(node.run, ["umount", "--lazy", directory])
        lay_out(node.path(CARDS_DIR), cards, driver=driver)
        # The setting of huge pages is the kernel's, which all nodes share.
        config = node.path(Path("/etc/grit/config.toml"))
        config.parent.mkdir(exist_ok=True)
        config.write_text("huge_pages = false\n")
        stack.callback(config.unlink)
        for card in cards:
            _describe(node, card)
            _make_node(node, card.node, card.minor, stack)
        for path in OTHER_NODES:
            _make_node(node, path, OTHER_MINOR, stack)
        yield


@contextmanager
def faults(cards_dir: Path, *lines: str) -> Iterator[Callable[[], None]]:
    """Script what goes wrong, as cards.h says, until the end of the context or the call of what is
    yielded."""
    path = cards_dir / "faults"
    path.write_text("".join(f"{line}\n" for line in lines))

    def lift() -> None:
        path.unlink(missing_ok=True)

    try:
        yield lift
    finally:
        lift()


@contextmanager
def paced(cards_dir: Path, ms: int) -> Iterator[None]:
    """Let a checkpoint take *ms* milliseconds for each 4 MiB, until the end of the context."""
    path = cards_dir / "pace"
    path.write_text(str(ms))
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def changed(cards_dir: Path, card: Card, **properties: object) -> Iterator[None]:
    """Let the card have other properties until the end of the context."""
    path = cards_dir / card.uuid / "card"
    path.write_text(card._replace(**properties).description())  # type: ignore[arg-type]
    try:
        yield
    finally:
        path.write_text(card.description())


def used_bytes(cards_dir: Path, card: Card) -> int:
    """How much of the card living processes hold."""
    pieces = (cards_dir / card.uuid / "memory").iterdir()
    return sum(path.stat().st_size for path in pieces if _is_held(path))


def _is_held(piece: Path) -> bool:
    fd = os.open(piece, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _describe(node: Node, card: Card) -> None:
    directory = node.path(Path(PROC_DRIVER)) / "nvidia/gpus" / card.bus_id
    directory.mkdir(parents=True)
    text = INFORMATION.format(name=card.name, uuid=card.uuid, bus_id=card.bus_id, minor=card.minor)
    (directory / "information").write_text(text)


def _make_node(node: Node, path: str, minor: int, stack: ExitStack) -> None:
    node.run(["mknod", "-m", "0666", path, "c", str(MAJOR), str(minor)])
    stack.callback(node.path(Path(path)).unlink)
