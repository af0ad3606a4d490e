"""Root filesystems of the throwaway nodes: built once from Debian's packages, cached by recipe."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPO = Path(__file__).parents[2]
CACHE = Path(os.environ.get("GRIT_CACHE", "/var/cache/grit-runtime"))

PACKAGES = (
    "ca-certificates",
    "catatonit",
    "containerd",
    "containernetworking-plugins",
    "criu",
    "iproute2",
    "iptables",
    "kmod",
    "procps",
    "python3",
    "runc",
    "util-linux",
)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
VENV = Path("opt/grit")

BOOTSTRAP = (
    "mmdebstrap",
    "--quiet",
    "--mode=root",
    "--variant=minbase",
    "--format=directory",
    f"--include={','.join(PACKAGES)}",
    f"--keyring={KEYRING}",
    '--aptopt=Acquire::Check-Valid-Until "false"',
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
)

# What wheels are called that run on the C library of every edition.
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")


class Edition(NamedTuple):
    """A release of Debian, for the generation of containerd, runc and CRIU that it ships."""

    suite: str
    python: str
    containerd: str


EDITIONS = {
    "forky": Edition("forky", "3.14", "2.x"),
    "trixie": Edition("trixie", "3.13", "1.7"),
}


@contextmanager
def use(edition: Edition) -> Iterator[Path]:
    """The root filesystem of *edition*, built now if no earlier run left it; it stays for as long
    as it is in use."""
    path = CACHE / f"rootfs-{edition.suite}-{_key(edition)}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / f"rootfs-{edition.suite}.lock"):
        if not path.exists():
            _remove_unused(edition)
            _build_into(path, edition)
        user = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(user, fcntl.LOCK_SH)
    try:
        yield path
    finally:
        os.close(user)


def site_packages(edition: Edition) -> Path:
    """Where the venv of *edition* keeps its modules, from the node's root."""
    return VENV / f"lib/python{edition.python}/site-packages"


def dependencies() -> list[str]:
    """What the project itself needs, as pyproject.toml says."""
    return list(_project()["dependencies"])


def part(name: str) -> list[str]:
    """What that part of it needs besides."""
    return list(_project()["optional-dependencies"][name])


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    return project


def _on_a_node() -> list[str]:
    return [*dependencies(), *part("agent"), *part("object-store")]


def _key(edition: Edition) -> str:
    recipe = [*BOOTSTRAP, *PLATFORMS, repr(edition), *_on_a_node()]
    return hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs out of what the file *path* stands for."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unused(edition: Edition) -> None:
    for path in CACHE.glob(f"rootfs-{edition.suite}-*"):
        user = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # a node of another checkout stands on it
        finally:
            os.close(user)
        shutil.rmtree(path)


def _build_into(path: Path, edition: Edition) -> None:
    building = Path(tempfile.mkdtemp(prefix=f"rootfs-{edition.suite}-building.", dir=CACHE))
    try:
        _run(*BOOTSTRAP, edition.suite, str(building), _mirror())
        _make_venv(building, edition)
        building.chmod(0o755)
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _mirror() -> str:
    """The mirror this machine's own packages come from; it has the other editions too."""
    sites = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    return next(site for site in sites.split() if site.rstrip("/").endswith("/debian"))


def _make_venv(root: Path, edition: Edition) -> None:
    # Debian's python3 has no pip of its own.
    _run("chroot", str(root), "python3", "-m", "venv", "--without-pip", f"/{VENV}")
    install(_on_a_node(), root / site_packages(edition), python=edition.python)
    _run("chroot", str(root), f"/{VENV}/bin/python", "-m", "compileall", "-q", f"/{VENV}")


def install_dependencies(target: Path, *, python: str) -> None:
    """Put what the project needs into *target*, for that version of Python."""
    install(dependencies(), target, python=python)


def install(packages: Sequence[str], target: Path, *, python: str) -> None:
    """Put *packages* into *target*, for that version of Python.

    The wheels are fetched by this machine's pip, which knows where from.
    """
    platforms = [f"--platform={name}_{platform.machine()}" for name in PLATFORMS]
    # pip would ask the markers of the Python that it runs on.
    meant = [Requirement(package) for package in packages]
    meant = [
        one for one in meant if not one.marker or one.marker.evaluate({"python_version": python})
    ]
    _run(
        *(sys.executable, "-m", "pip", "install", "-qq", "--no-compile"),
        *("--only-binary=:all:", f"--python-version={python}", *platforms),
        f"--target={target}",
        *(f"{one.name}{one.specifier}" for one in meant),
    )


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
