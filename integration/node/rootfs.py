"""Root filesystems of the throwaway nodes: built once from Debian's packages, cached by recipe."""

from __future__ import annotations

import platform
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

from integration.node import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

REPO = Path(__file__).parents[2]

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


def use(edition: Edition) -> AbstractContextManager[Path]:
    """The root filesystem of *edition*, built now if no earlier run left it."""
    recipe = "\n".join([*BOOTSTRAP, *PLATFORMS, repr(edition), *_on_a_node()])
    return cache.use(f"rootfs-{edition.suite}", recipe.encode(), lambda path: _build(path, edition))


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


def _build(root: Path, edition: Edition) -> None:
    _run(*BOOTSTRAP, edition.suite, str(root), mirror())
    _make_venv(root, edition)


def mirror() -> str:
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
