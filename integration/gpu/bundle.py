"""The bundle: what a bare machine needs to run pods under grit-runtime, in one compressed file.

Programs and the libraries they are linked to come from Debian's packages and are laid under one
prefix, with a dynamic linker of their own, so that the machine's C library does not matter.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from integration.node import cache, images, rootfs

PREFIX = Path("/opt/grit-bundle")
DEFAULT_PYTHON = "3.12"

PROGRAMS = (
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/bin/ctr",
    "/usr/sbin/criu",
    "/usr/sbin/runc",
)
IMAGES = ("pause.tar", "busybox.tar")
LOADER = "ld-linux-x86-64.so.2"
LIBC = "libc.so.6"


def main() -> None:
    """Make the bundle; an argument names another version of Python than the usual one."""
    python = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_PYTHON
    edition = rootfs.EDITIONS["forky"]
    with (
        rootfs.use(edition) as root,
        images.use(edition, root) as archives,
        tempfile.TemporaryDirectory(dir=cache.CACHE) as scratch,
    ):
        tree = Path(scratch)
        _lay_programs(root, tree)
        image_dir = tree / PREFIX.relative_to("/") / "images"
        image_dir.mkdir()
        for archive in archives:
            if archive.name in IMAGES:
                shutil.copy(archive, image_dir)
        site_packages = rootfs.VENV / f"lib/python{python}/site-packages"
        rootfs.install_dependencies(tree / site_packages, python=python)
        bundle = rootfs.REPO / f"build/gpu-bundle-{python}.tar.xz"
        _pack(tree, bundle)
    print(f"{bundle}: {bundle.stat().st_size / (1 << 20):.1f} MiB")


def _lay_programs(root: Path, tree: Path) -> None:
    bin_dir, lib_dir = (tree / PREFIX.relative_to("/") / name for name in ("bin", "lib"))
    bin_dir.mkdir(parents=True)
    lib_dir.mkdir()
    for library in _libraries(root):
        shutil.copy(root / library.lstrip("/"), lib_dir)
    for library_path in lib_dir.iterdir():
        if library_path.name not in {LOADER, LIBC}:
            _patch(library_path)
    for program in PROGRAMS:
        path = Path(shutil.copy(root / program.lstrip("/"), bin_dir))
        _patch(path, "--set-interpreter", str(PREFIX / "lib" / LOADER))


def _libraries(root: Path) -> set[str]:
    """Everything the programs are linked to, the dynamic linker too, by path on *root*."""
    ldd = _run("chroot", str(root), "ldd", *PROGRAMS)
    words = {word for word in ldd.split() if word.startswith("/") and not word.endswith(":")}
    return words - set(PROGRAMS)


def _patch(path: Path, *options: str) -> None:
    # Not RUNPATH, the default: libraries do not follow it for what they need themselves.
    _run("patchelf", *options, "--force-rpath", "--set-rpath", str(PREFIX / "lib"), str(path))


def _pack(tree: Path, archive: Path) -> None:
    archive.parent.mkdir(exist_ok=True)
    building = archive.with_suffix(".building")
    reproducible = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]
    _run("tar", "-C", str(tree), *reproducible, "-cJf", str(building), "opt")
    building.rename(archive)


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
