"""The programs of Kubernetes 1.20 and etcd, from Debian bookworm: the newest Kubernetes of which
Debian has the whole source. Compiled once, cached by recipe.

usage: python -m integration.kubernetes.programs
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from integration.node import cache, rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

COMPILED = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")

_SUITE = "bookworm"
_PACKAGES = (
    "dpkg-dev",
    "etcd-server",
    "gcc",
    "golang-1.19-go",
    "golang-github-modern-go-reflect2-dev",
    "libc6-dev",
    "make",
    "rsync",
)
_KIND = "kubernetes"
_COMPILE = Path(__file__).with_name("compile.sh")
_RECIPE = "\n".join([_COMPILE.read_text(), _SUITE, *_PACKAGES, *COMPILED]).encode()


def is_built() -> bool:
    """Whether an earlier run has left them."""
    return cache.path_of(_KIND, _RECIPE).exists()


def use() -> AbstractContextManager[Path]:
    """The directory that has them, built now, in minutes, if no earlier run left it."""
    return cache.use(_KIND, _RECIPE, _build)


def _build(directory: Path) -> None:
    root = directory / "root"
    _bootstrap(root)
    shutil.copy(_COMPILE, root / "root")
    argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    argv += [f"--mount-proc={root}/proc", "chroot", str(root)]
    subprocess.run([*argv, f"/root/{_COMPILE.name}", "/root", *COMPILED], check=True)
    for program in COMPILED:
        (root / "root" / program).rename(directory / program)
    (root / "usr/bin/etcd").rename(directory / "etcd")
    shutil.rmtree(root)


def _bootstrap(root: Path) -> None:
    """What compiling needs, and the source package in /root."""
    place = f"[signed-by={rootfs.KEYRING}] {rootfs.mirror()} {_SUITE} main"
    fetch = "apt-get -qq -o APT::Sandbox::User=root source --download-only kubernetes"
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"]
    argv += [f"--include={','.join(_PACKAGES)}"]
    argv += [f'--customize-hook=cd "$1/root" && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG {fetch}']
    subprocess.run([*argv, _SUITE, root, f"deb {place}", f"deb-src {place}"], check=True)


if __name__ == "__main__":
    with use() as path:
        print(path)
