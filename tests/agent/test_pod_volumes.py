"""A pod's volume is a store where kubelet has mounted it, and nowhere else."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from grit_runtime.agent import pod_volumes
from grit_runtime.errors import ImageError, InvalidArgumentError, NoStoreError
from tests.host.test_kubelet import KUBELET, running

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
        assert pod_volumes.directory(URL) == str(mounted)
    finally:
        subprocess.run(["umount", mounted], check=True)
    with pytest.raises(NoStoreError, match="pv-1 of pod uid-1 is not mounted on this node"):
        pod_volumes.directory(URL)


def test_a_pod_that_is_not_there_has_none(volumes: Path) -> None:
    volumes.rmdir()
    with pytest.raises(NoStoreError, match="is the pod running"):
        pod_volumes.directory(URL)


def test_no_link_is_followed_to_it(volumes: Path, tmp_path: Path) -> None:
    (volumes / "kubernetes.io~nfs").mkdir()
    (volumes / "kubernetes.io~nfs/pv-1").symlink_to(tmp_path)
    with pytest.raises(ImageError, match="symbolic link"):
        pod_volumes.directory(URL)


@pytest.mark.parametrize("url", ["volume://../../etc", "volume://uid-1/../../x", "volume://uid-1/"])
def test_a_name_that_leads_elsewhere_means_nothing(volumes: Path, url: str) -> None:
    (volumes / "kubernetes.io~nfs").mkdir()
    with pytest.raises((InvalidArgumentError, NoStoreError)):
        pod_volumes.directory(url)
