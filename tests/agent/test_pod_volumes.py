"""A pod's volume is a store where kubelet has mounted it, and nowhere else."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from grit_runtime.agent import moving, pod_volumes
from grit_runtime.config import Config
from grit_runtime.errors import ImageError, InvalidArgumentError, NoStoreError
from tests.host.test_kubelet import KUBELET, running
from tests.store import made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = KUBELET

URL = "volume://uid-1/pv-1"
NFS, CSI = "kubernetes.io~nfs/pv-1", "kubernetes.io~csi/pv-1/mount"


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Path]:
    """The directory of the pod's volumes, of a kubelet that was told another place."""
    made = tmp_path / "pods/uid-1/volumes"
    made.mkdir(parents=True)
    with running(f"--root-dir={tmp_path}"):
        yield made


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize("place", [NFS, CSI])
def test_it_is_where_its_kind_of_volume_is_mounted(volumes: Path, place: str) -> None:
    mounted = volumes / place
    mounted.mkdir(parents=True)
    (volumes / "kubernetes.io~projected/token").mkdir(parents=True)
    subprocess.run(["mount", "--bind", mounted, mounted], check=True)
    try:
        assert pod_volumes.open_store(URL, make=True).url == str(mounted)
    finally:
        subprocess.run(["umount", mounted], check=True)
    with pytest.raises(NoStoreError, match="pv-1 of pod uid-1 is not mounted on this node"):
        pod_volumes.open_store(URL)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize("left", ["its directory", "nothing"])
def test_a_push_that_has_waited_until_its_volume_was_unmounted_writes_nothing(
    volumes: Path, tmp_path: Path, left: str
) -> None:
    made.checkpoint(tmp_path / "root", "one", {"main/pages": b"state"})
    mounted = volumes / NFS
    mounted.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-", mounted], check=True)
    try:
        remote = moving.remote(URL, Config(checkpoint_root=str(tmp_path / "root")), None)
        remote.reach()
    finally:
        subprocess.run(["umount", mounted], check=True)
    if left == "nothing":
        mounted.rmdir()
    with pytest.raises(NoStoreError, match="is not mounted on this node"):
        remote.push(made.ROOT, "one", made.ignore)
    assert made.content(volumes) == {}


def test_a_pod_that_is_not_there_has_none(volumes: Path) -> None:
    volumes.rmdir()
    with pytest.raises(NoStoreError, match="is the pod running"):
        pod_volumes.open_store(URL)


def test_no_link_is_followed_to_it(volumes: Path, tmp_path: Path) -> None:
    (volumes / "kubernetes.io~nfs").mkdir()
    (volumes / "kubernetes.io~nfs/pv-1").symlink_to(tmp_path)
    with pytest.raises(ImageError, match="symbolic link"):
        pod_volumes.open_store(URL)


@pytest.mark.parametrize("url", ["volume://../../etc", "volume://uid-1/../../x", "volume://uid-1/"])
def test_a_name_that_leads_elsewhere_means_nothing(volumes: Path, url: str) -> None:
    (volumes / "kubernetes.io~nfs").mkdir()
    with pytest.raises((InvalidArgumentError, NoStoreError)):
        pod_volumes.open_store(url)
