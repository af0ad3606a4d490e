"""The house itself: style, types, layers, generated code, and what may lie at the top."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = Path(__file__).parent.parent
PACKAGE = REPO / "grit_runtime"
PROTO_DIR = PACKAGE / "proto"

TOP_LEVEL = {
    "LICENSE",
    "README.md",
    "build",  # what integration/gpu/build makes; git ignores it
    "grit_runtime",
    "integration",
    "pyproject.toml",
    "runtime-config",
    "systemd",
    "tests",
}

# Top to bottom: a part imports from itself and from the lines below its own.
LAYERS = (
    {"cli"},
    {"shim", "oci", "agent", "manager"},
    {"plain"},
    {"checkpoint", "restore", "inspection", "rehearsal", "gpu_control"},
    {"attempts", "dumps", "holds", "preflight"},
    {"gpu", "volumes"},
    {"host"},
    {"model"},
    {"wire"},
    {"proto"},
    {"config"},
    {"log"},
    {"errors"},
)

# What would let a decision or a format touch the machine.
IMPURE = {
    "asyncio",
    "ctypes",
    "fcntl",
    "multiprocessing",
    "os",
    "select",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}

MODULES = sorted(
    path.relative_to(REPO) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"
)
PROTOS = sorted(path.name for path in PROTO_DIR.glob("*.proto"))
SCRIPTS = sorted(
    path.relative_to(REPO)
    for directory in ("integration", "integration/gpu", ".ci", "runtime-config")
    for path in (REPO / directory).iterdir()
    if path.is_file() and path.read_bytes().startswith((b"#!/bin/", b"# shellcheck shell="))
)


def run(*argv: str | Path) -> str:
    """What *argv* printed, run in the checkout; a failed test if it failed."""
    done = subprocess.run(
        argv, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def parsed(module: Path) -> ast.Module:
    """The syntax tree of *module*."""
    return ast.parse((REPO / module).read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of all that the statements of *tree* import, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(part: str) -> int:
    """The line of LAYERS that lists *part*, a module or package right below grit_runtime."""
    return next(index for index, parts in enumerate(LAYERS) if part in parts)


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache")


def test_code_is_formatted() -> None:
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "--diff")


def test_types_hold() -> None:
    run(sys.executable, "-m", "mypy", "--cache-dir=/dev/null")


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shellcheck_finds_nothing(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        if "shellcheck" in os.environ.get("GRIT_REQUIRE", "").split(","):
            pytest.fail("no shellcheck")
        pytest.skip("no shellcheck; integration/test brings it")
    run("shellcheck", "--external-sources", script)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down_the_layers(module: Path) -> None:
    part = module.with_suffix("").parts[1]
    for name in imports(parsed(module)):
        package, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        if package == "grit_runtime" and imported != part:
            assert layer_of(imported) > layer_of(part), f"{part} may not import {name}"


def test_packages_hold_nothing_but_their_modules() -> None:
    assert [path for path in PACKAGE.rglob("__init__.py") if path.read_text() != ""] == []


@pytest.mark.parametrize(
    "module", [path for path in MODULES if path.parts[1] in {"model", "wire"}], ids=str
)
def test_decisions_and_formats_import_nothing_that_touches_the_machine(module: Path) -> None:
    names = {name.partition(".")[0] for name in imports(parsed(module))}
    assert names & IMPURE == set()


def test_click_is_for_the_command_line_alone() -> None:
    users = {
        module.parts[1]
        for module in MODULES
        if any(name.startswith("click.") or name == "click" for name in imports(parsed(module)))
    }
    assert users <= {"cli"}


def test_passing_a_command_through_loads_only_os_and_sys() -> None:
    tree = parsed(Path("grit_runtime/oci/main.py"))
    at_start = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name for node in at_start for name in imports(node)}
    assert names <= {"__future__.annotations", "os", "sys"}


@pytest.mark.parametrize("proto", PROTOS)
def test_generated_code_is_what_protoc_makes(proto: str, tmp_path: Path) -> None:
    run(
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={REPO}"),
        *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", PROTO_DIR / proto),
    )
    made = sorted((tmp_path / PROTO_DIR.relative_to(REPO)).iterdir())
    assert len(made) == 2
    for path in made:
        assert (PROTO_DIR / path.name).read_text() == path.read_text()


def test_all_generated_code_has_its_proto() -> None:
    generated = {path.name.partition("_pb2.")[0] for path in PROTO_DIR.glob("*_pb2.py*")}
    assert generated == {proto.removesuffix(".proto") for proto in PROTOS}


def test_nothing_else_lies_at_the_top() -> None:
    names = {path.name for path in REPO.iterdir() if not path.name.startswith(".")}
    assert names <= TOP_LEVEL
