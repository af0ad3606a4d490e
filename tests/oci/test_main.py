"""The wrapper as a program: what reaches runc, and what does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grit_runtime.host import journal
from grit_runtime.oci import command_line
from grit_runtime.pod import held_pods
from integration.node import node

REPO = Path(__file__).parents[2]


@pytest.fixture
def wrapper(tmp_path: Path) -> list[str]:
    """A launcher whose runc writes down how it was called and ends with 3."""
    runc = tmp_path / "runc"
    runc.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f'json.dump(sys.argv[1:], open("{tmp_path}/argv.json", "w"))\nsys.exit(3)\n'
    )
    runc.chmod(0o755)
    launcher = tmp_path / "grit-runtime"
    paths = {"python": sys.executable, "packages": str(REPO), "runc": str(runc)}
    launcher.write_text(node.launcher("grit-runtime", **paths))
    launcher.chmod(0o755)
    return [str(launcher)]


def call(wrapper: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*wrapper, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["state", "abc"],
        ["--root", "/r", "--log", "/l", "--log-format", "json", "kill", "--all", "abc", "9"],
        ["--systemd-cgroup", "exec", "--process", "p.json", "--detach", "abc"],
        ["--version"],
        [],
        ["start", "abc"],
        ["delete", "--force", "abc"],
        ["run", "--bundle", "create", "abc"],
        ["exec", "abc", "create"],
        ["exec", "abc", "sh", "-c", 'echo "a  b" $HOME *', ""],
    ],
    ids=" ".join,
)
def test_a_call_that_concerns_no_restore_reaches_runc_word_for_word(
    wrapper: list[str], tmp_path: Path, arguments: list[str]
) -> None:
    done = call(wrapper, *arguments)
    assert json.loads((tmp_path / "argv.json").read_text()) == arguments
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_creating_an_ordinary_container_reaches_runc(wrapper: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"annotations": {"a": "b"}}))
    arguments = ["--root", "/r", "create", "--bundle", str(tmp_path), "--pid-file", "p", "abc"]
    assert call(wrapper, *arguments).returncode == 3
    assert json.loads((tmp_path / "argv.json").read_text()) == arguments


@pytest.mark.parametrize("form", [["--bundle", "{}"], ["-b", "{}"], ["--bundle={}"]], ids=" ".join)
def test_an_order_that_cannot_be_followed_is_told_as_runc_tells_its_errors(
    wrapper: list[str], tmp_path: Path, form: list[str]
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"annotations": {"grit.dev/restore-nonsense": "x"}})
    )
    log = tmp_path / "log.json"
    bundle = [word.format(tmp_path) for word in form]
    done = call(wrapper, "--log", str(log), "--log-format", "json", "create", *bundle, "abc")
    assert done.returncode == 1
    entry = json.loads(log.read_text())
    assert entry["level"] == "error"
    assert "grit.dev/restore-nonsense is unknown" in entry["msg"]
    assert done.stderr == entry["msg"] + "\n"
    assert not (tmp_path / "argv.json").exists()


def test_a_runc_that_is_not_there_is_named(wrapper: list[str], tmp_path: Path) -> None:
    (tmp_path / "runc").unlink()
    for command in ("state", "create"):
        done = call(wrapper, command, "abc")
        assert done.returncode != 0
        assert f"{tmp_path}/runc: " in done.stderr


@pytest.mark.parametrize(
    ("words", "named", "operands"),
    [
        (["--bundle", "b", "--no-pivot", "id"], {"bundle": "b", "no-pivot": ""}, ["id"]),
        (["-b=b", "-pid-file=p", "id"], {"b": "b", "pid-file": "p"}, ["id"]),
        (["--preserve-fds", "3", "--", "-id"], {"preserve-fds": "3", "": ""}, ["-id"]),
        (["id", "--force"], {}, ["id", "--force"]),
        ([], {}, []),
        (["--bundle"], {"bundle": ""}, []),
    ],
)
def test_runcs_option_forms_are_read(
    words: list[str], named: dict[str, str], operands: list[str]
) -> None:
    assert command_line.options(words) == (named, operands)


def test_the_launcher_looks_where_the_engine_writes() -> None:
    launcher = node.launcher("grit-runtime")
    assert f"\npods={journal.PODS_DIR}\n" in launcher
    assert f'"$pods"/*/{journal.CHECKPOINT}; do' in launcher
    assert f"\nheld={held_pods.DIR}\n" in launcher
