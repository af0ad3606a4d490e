"""The house itself: style, types, layers, generated code, and what may lie at the top."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grit_runtime.version import VERSION
from integration.requirements import do_without

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = Path(__file__).parent.parent
PACKAGE = REPO / "grit_runtime"
PROTO_DIR = PACKAGE / "proto"

TOP_LEVEL = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "build",  # what integration/gpu/build makes; git ignores it
    "docs",
    "grit_runtime",
    "integration",
    "packaging",
    "pyproject.toml",
    "runtime-config",
    "tests",
}

# Top to bottom: a part imports from itself and from the lines below its own.
LAYERS = (
    {"cli"},
    {"bug_report"},
    {"doctor", "explain"},
    {"shim", "oci", "agent", "manager", "installation"},
    {"runc_level"},
    {"checkpoint"},
    {"restore"},
    {"nvidia"},
    {"dump"},
    {"tasks"},
    {"pod"},
    {"store"},
    {"files"},
    {"host"},
    {"model"},
    {"wire"},
    {"proto"},
    {"config"},
    {"log"},
    {"paths"},
    {"certificates"},
    {"version"},
    {"reasons"},
    {"errors"},
    {"startup"},
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

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50
TABLES = {Path("grit_runtime/model/syscall_numbers.py")}

MODULES = sorted(
    path.relative_to(REPO) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"
)
PROTOS = sorted(path.name for path in PROTO_DIR.glob("*.proto"))
SCRIPTS = sorted(
    path.relative_to(REPO)
    for directory in (".ci", "integration", "grit_runtime/installation/files", "packaging")
    for path in (REPO / directory).rglob("*")
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
        do_without("shellcheck", "no shellcheck; integration/test brings it")
    run("shellcheck", "--external-sources", script)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down_the_layers(module: Path) -> None:
    part = module.with_suffix("").parts[1]
    for name in imports(parsed(module)):
        package, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        if package == "grit_runtime" and imported != part:
            assert layer_of(imported) > layer_of(part), f"{part} may not import {name}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {".".join(module.with_suffix("").parts): module for module in MODULES}
    below = {
        name: (with_packages(parsed(module)) & names.keys()) - {name}
        for name, module in names.items()
    }
    list(graphlib.TopologicalSorter(below).static_order())  # CycleError names the circle


def with_packages(tree: ast.AST) -> set[str]:
    """What *tree* imports, and the modules that it imports something of."""
    found = set(imports(tree))
    return found | {name.rpartition(".")[0] for name in found}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_is_read_in_one_sitting(module: Path) -> None:
    if module in TABLES or module.name.endswith("_pb2.py"):
        return
    text = (REPO / module).read_text()
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, node.name


# What it has is a format, which others read.
API = "grit_runtime/manager/api.py:"

# What vulture takes for dead, since whoever uses it is none of ours.
USED_BY_OTHERS = {
    "a command of click's, or what it calls": {
        *("compat", "doctor", "explain", "format_commands", "list_", "ls", "manager", "migrate"),
        "rm",
    },
    "a field of a message or a structure, which is sent or passed to the kernel": {
        *("domainname", "failcnt", "max_usage", "network_lock_method"),
        *("orig_rax", "rip", "swap_limit", "swap_max_usage", "swap_usage"),
        "usage_limit",
    },
    "read by http.server": {"address_family", "do_GET", "log_message"},
    "a method of asyncio.Protocol": {
        *("connection_lost", "connection_made", "data_received", "eof_received"),
        *("pause_writing", "resume_writing"),
    },
    "one of gRPC's status codes, which are listed whole": {
        *("ABORTED", "DATA_LOSS", "OUT_OF_RANGE"),
    },
    "made into a file by CONTRIBUTING.md's command": {"crds"},
    "a field of tarfile's": {"linkname"},
    "a setting of kopf's": {
        *("client_timeout", "diffbase_storage", "disabled", "finalizer", "progress_storage"),
        *("reporting_component", "server_timeout", "ultimate_exiting_timeout"),
    },
    "called by kopf": {"build"},
    "read by tarfile": {"linkname"},
    "keeps a task alive": {"_sending"},
}


def test_no_code_is_dead() -> None:
    words = ["--min-confidence=60", "--exclude=*_pb2.py,*_pb2.pyi"]
    argv = [sys.executable, "-m", "vulture", *words, str(PACKAGE)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if API not in line]
    found = {line.split("'")[1]: line for line in lines}
    known = {name for names in USED_BY_OTHERS.values() for name in names}
    assert [line for name, line in found.items() if name not in known] == []
    assert known - found.keys() == set()


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
    names = set()
    for module in ("main", "command_line"):
        body = parsed(Path(f"grit_runtime/oci/{module}.py")).body
        at_start = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        names |= {name for node in at_start for name in imports(node)}
    ours = {name for name in names if name.startswith("grit_runtime.oci.command_line.")}
    assert names - ours <= {"os", "sys"}


# What loads them takes the time of a whole restore's checks.
LATE = {
    "grit_runtime.restore.stages": "it is loaded while digests are compared",
    "grit_runtime.tasks.readback": "what is needed when runc has ended is loaded while it works",
    "google.protobuf.internal.python_message": "protobuf decodes in C",
    "annotationlib": "typing.NamedTuple needs it, and ours do not",
    "ipaddress": "many dumps have no socket",
    "socket": "the same",
    "concurrent.futures": "few checkpoints are worth threads",
    "subprocess": "process.spawn does it",
    "shutil": "it brings all compressors",
    "platform": "os.uname tells",
    "grit_runtime.nvidia.cuda_processes": "a pod without GPUs does not pay for it",
    "grit_runtime.tasks.landlock": "the checkpoint asks for it",
    "grit_runtime.model.checkpoint_steps": "its journals are the checkpoint's",
    "grit_runtime.pod.volumes": "most checkpoints have none",
    "logging": "log is enough",
    "dataclasses": "they are made by running code",
}


@pytest.mark.parametrize(
    ("loaded", "late"),
    [
        (
            "restore.restore",
            LATE.keys() - {"google.protobuf.internal.python_message"} | {"google"},
        ),
        ("restore.stages", LATE.keys() - {"grit_runtime.restore.stages"}),
        ("tasks.readback", LATE.keys() - {"grit_runtime.tasks.readback", "ipaddress", "socket"}),
    ],
)
def test_a_restore_loads_late_what_it_does_not_need_at_once(loaded: str, late: set[str]) -> None:
    code = f"""
import sys
import grit_runtime.oci.intercept
from grit_runtime.startup import protobuf
protobuf.leave_out_python()
import grit_runtime.{loaded}
print(*(name for name, module in sys.modules.items() if getattr(module, "__spec__", None)))
"""
    names = run(sys.executable, "-ISE", "-c", f"import sys; sys.path[:0] = {sys.path}\n{code}")
    assert late & set(names.split()) == set()


def test_a_command_loads_no_other() -> None:
    """A checkpoint's modules take longer to load than a small pull takes."""
    code = """
from grit_runtime.cli.main import grit
grit(["pull", "--help"], standalone_mode=False)
import sys
print(*sys.modules)
"""
    names = set(run(sys.executable, "-c", code).split())
    assert "grit_runtime.cli.store" in names
    assert names & {"grit_runtime.cli.checkpoint", "grit_runtime.checkpoint.take", "grpc"} == set()


def test_help_loads_no_command() -> None:
    """It would take longer to load them than to read what they say of themselves."""
    code = """
from grit_runtime.cli.main import grit
grit(["--help"], standalone_mode=False)
import sys
print(*sys.modules)
"""
    printed = run(sys.executable, "-c", code)
    assert "\n  verify      Read every byte" in printed
    names = {name for name in printed.splitlines()[-1].split() if name.startswith("grit_runtime.")}
    assert names <= {"grit_runtime.cli", "grit_runtime.cli.main", "grit_runtime.errors"}


def test_named_tuples_are_our_own() -> None:
    users = [module for module in MODULES if "typing.NamedTuple" in imports(parsed(module))]
    assert users == [Path("grit_runtime/startup/named.py")]


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


def test_what_names_the_version_names_this_one() -> None:
    manifest = (REPO / "runtime-config/kubernetes/manager.yaml").read_text()
    assert re.findall(r"image: grit-runtime:(.*)", manifest) == [VERSION]


def test_nothing_else_lies_at_the_top() -> None:
    names = {path.name for path in REPO.iterdir() if not path.name.startswith(".")}
    assert names <= TOP_LEVEL
