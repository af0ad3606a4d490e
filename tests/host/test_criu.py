from pathlib import Path

import pytest

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.host import criu

NOISE = (
    "(00.004959) Error (criu/tun.c:85): tun: Unable to create tun: No such file or directory\n"
    "(00.028937) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n"
    "(00.035687) Error (criu/cgroup.c:2055): cg: cgroupd: recv req error: No such file\n"
)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            NOISE
            + "(00.02)  1: Error (criu/mount.c:25): mnt: No mapping for 421:(null) mountpoint\n"
            "(00.03) Error (criu/cr-restore.c:1): Restoring FAILED.\n",
            "criu/mount.c:25: mnt: No mapping for 421:(null) mountpoint",
        ),
        (
            NOISE + "(00.02)  1: No pagemap-1.img image\n(00.03) done\n",
            "(00.02)  1: No pagemap-1.img image",
        ),
        (NOISE, None),
        ("", None),
    ],
    ids=["error", "missing image", "noise", "empty"],
)
def test_the_cause_is_found_in_the_log(tmp_path: Path, log: str, line: str | None) -> None:
    path = tmp_path / "restore.log"
    path.write_text(log)
    assert criu.decisive_line(str(path)) == line


def test_a_restore_that_gave_up_says_so(tmp_path: Path) -> None:
    path = tmp_path / "restore.log"
    assert not criu.has_given_up(str(path))
    path.write_text("(00.1) Error (criu/files-reg.c:2): File x has bad build-ID\n")
    assert not criu.has_given_up(str(path))
    with path.open("a") as file:
        file.write("(00.2) Error (criu/cr-restore.c:3): Restoring FAILED.\n")
    assert criu.has_given_up(str(path))


def test_no_log_has_no_decisive_line(tmp_path: Path) -> None:
    assert criu.decisive_line(str(tmp_path / "none")) is None


def test_a_configuration_file_is_private_and_one_option_a_line(tmp_path: Path) -> None:
    path = tmp_path / "criu.conf"
    criu.write_config(str(path), ["tcp-close", "external mnt[/a]:/b"])
    assert path.read_text() == "tcp-close\nexternal mnt[/a]:/b\n"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", ["a\nb", "external mnt[/a]:/b#c"])
def test_what_the_format_cannot_carry_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot stand in a CRIU configuration file"):
        criu.write_config(str(tmp_path / "criu.conf"), [line])


def test_versions_are_compared_as_numbers() -> None:
    assert criu.parse_version("4.10") > criu.parse_version("4.2.1")
