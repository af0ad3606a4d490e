"""The names that are made for a dump's deleted files, and taken away again."""

from __future__ import annotations

from grit_runtime.dump import link_remaps
from grit_runtime.model.checkpoint_steps import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_made_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("link_remap.7", "below/link_remap.8", "kept"):
        (tmp_path / name).touch()
    links = [
        Link(str(tmp_path), "link_remap.7"),
        Link(str(tmp_path), "below/link_remap.8"),
        Link(str(tmp_path), "link_remap.9"),  # recorded, and killed before it was made
        Link(f"{tmp_path}/unmounted", "link_remap.9"),
    ]
    for _ in range(2):
        link_remaps.drop(links)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", "kept"]


def test_nothing_is_removed_through_a_link_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link_remap.7").touch()
    (tmp_path / "root/tmp").symlink_to(tmp_path)
    link_remaps.drop([Link(f"{tmp_path}/root", "tmp/link_remap.7")])
    assert (tmp_path / "link_remap.7").exists()
