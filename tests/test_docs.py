"""The documents say what the code does."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout

import click
import pytest

from grit_runtime import errors
from grit_runtime.agent import metrics as agent_metrics
from grit_runtime.cli.main import grit
from grit_runtime.config import Config
from grit_runtime.errors import GritError
from grit_runtime.files import signature
from grit_runtime.manager import metrics as manager_metrics
from grit_runtime.manager import names
from grit_runtime.model import losses, outcomes
from grit_runtime.model.annotations import KNOWN
from grit_runtime.model.outcomes import Outcome
from grit_runtime.store.keys import FileKey
from integration import documents
from integration.benchmarks import main as benchmarks
from integration.documents import FILES, REPO, documented
from integration.gpu import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

DOCS = REPO / "docs"
README = REPO / "README.md"
README_WORDS = 1800

LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", flags=re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
KEY = re.compile(r"(?<![\w.])grit\.dev/[-\w]*")
LABEL = "grit.dev/runtime"  # of nodes
OTHER_KEYS = {"grit.dev/", "grit.dev/restore-", LABEL, names.SIGNER}
PATH = re.compile(r"(?:grit_runtime|integration|tests|runtime-config|systemd|docs)/[-\w./]*")


def rows(file: str, head: str, *, section: str = "") -> list[list[str]]:
    """The cells of the table in *file* below the row that begins with the cell *head*.

    It is the first such table, or the first after the heading *section*.
    """
    lines = iter((REPO / file).read_text().partition(section or "\n")[2].splitlines())
    for line in lines:
        if line.startswith(f"| {head} |"):
            break
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line[1:-1].split("|")])
    return found


def anchors(file: Path) -> set[str]:
    """What can stand after "#" in a link to *file*, as GitHub names its headings."""
    headings = HEADING.findall(documents.prose(file))
    return {re.sub(r"[^-\w ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> Iterator[str]:
    """Each call of grit in the documents: lines of blocks, and what stands between backticks."""
    for block in documents.blocks():
        yield from (line for line in block.commands if line.startswith("grit "))
    for file in FILES:
        yield from (code for code in CODE.findall(documents.prose(file)) if code[:5] == "grit ")


def options(command: click.Command) -> dict[str, bool]:
    """Those of *command*, and whether a value comes after them."""
    found = {
        name: isinstance(parameter, click.Option) and not parameter.is_flag
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("-")
    }
    return found | {"-h": False, "--help": False}


def test_the_readme_takes_ten_minutes() -> None:
    assert len(README.read_text().split()) <= README_WORDS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_link_leads_to_something(file: Path) -> None:
    for link in LINK.findall(documents.prose(file)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_document_is_reached_from_the_readme() -> None:
    assert [
        file.name for file in DOCS.glob("*.md") if f"docs/{file.name}" not in README.read_text()
    ] == []


def test_every_picture_is_shown() -> None:
    text = "".join(file.read_text() for file in FILES)
    assert [file.name for file in DOCS.glob("*.svg") if f"{file.name})" not in text] == []


def test_every_path_in_the_checkout_exists() -> None:
    named = {
        (file.name, path)
        for file in FILES
        for code in CODE.findall(documents.prose(file))
        for path in PATH.findall(code)
        if code.startswith(path) and not re.search(r"[*<A-Z]", code)
    }
    assert [(name, path) for name, path in sorted(named) if not (REPO / path).exists()] == []


def test_every_shell_block_is_run_or_says_why_not() -> None:
    sources = [*(REPO / "tests").rglob("*.py"), *(REPO / "integration").rglob("*.py")]
    text = "".join(path.read_text() for path in sources)
    run = set(re.findall(r'\bdocumented\("([^"]+)"\)', text))
    said = []
    for block in documents.blocks():
        if block.language == "sh":
            how, _, what = block.comment.partition(": ")
            assert how in {"run", "not run"}, block
            assert what, block
            said += [what] if how == "run" else []
    assert sorted(said) == sorted(run)


def test_commands_stand_in_blocks_of_shell() -> None:
    """Others are not looked at: code by indentation, and fences without a language."""
    shell = re.compile(r"^ *(?:\$ |sudo |grit |grit-runtime |kubectl )", flags=re.MULTILINE)
    for block in documents.blocks():
        assert block.language == "sh" or not shell.search(block.text), block
    for file in FILES:
        indented = re.findall(r"^ {4}.*$", documents.prose(file), flags=re.MULTILINE)
        assert [line for line in indented if shell.match(line)] == []


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_grit_has_every_command_and_option(line: str) -> None:
    command: click.Command = grit
    words = iter(shlex.split(re.sub(r"[\[\]]", " ", line))[1:])
    for word in words:
        if word.startswith("-"):
            if options(command)[word]:
                next(words, None)
        elif isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            assert found is not None, word
            command = found


def test_the_readme_lists_the_commands() -> None:
    assert {row[0] for row in rows("README.md", "command")} == {
        f"`grit {name}`" for name in grit.list_commands(click.Context(grit))
    }


def test_annotations_are_those_of_the_code() -> None:
    text = "\n".join(file.read_text() for file in FILES)
    assert set(KEY.findall(text)) - OTHER_KEYS == set(KNOWN)
    listed = {KEY.findall(row[0])[0] for row in rows("docs/annotations.md", "annotation")}
    assert listed == set(KNOWN)
    assert LABEL in (REPO / "runtime-config/kubernetes/runtimeclass.yaml").read_text()


def test_the_configuration_has_its_keys_and_defaults() -> None:
    for (key, shown, _), (name, default) in zip(
        rows("docs/install.md", "key"), Config._field_defaults.items(), strict=True
    ):
        assert key == f"`{name}`"
        if default != "":
            assert shown == f"`{str(default).lower()}`"
        else:
            assert "`" not in shown


def test_the_words_of_messages_are_the_code_s() -> None:
    code = "".join(path.read_text() for path in (REPO / "grit_runtime").rglob("*.py"))
    words = [row[0].strip("`") for row in rows("docs/errors.md", "words of a message")]
    assert words
    assert [text for text in words if text not in code] == []


def test_each_reason_of_an_error_is_in_the_table_of_reasons() -> None:
    documented = [cells[0].strip("`") for cells in rows("docs/errors.md", "reason")]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    reasons = {kind.reason for kind in kinds if issubclass(kind, GritError)} - {""}
    assert documented == sorted(reasons | {errors.SYSTEM_CALL, errors.INTERRUPTED})
    assert all(cells[2] for cells in rows("docs/errors.md", "reason"))


def test_each_part_of_the_architecture_exists() -> None:
    named = [part for row in rows("docs/architecture.md", "part") for part in CODE.findall(row[0])]
    assert named
    assert [part for part in named if not (REPO / "grit_runtime" / part).exists()] == []


def test_the_table_of_gpu_runs_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    results = REPO / "integration/gpu/results.json"
    monkeypatch.setattr(sys, "argv", ["table", str(results)])
    with redirect_stdout(io.StringIO()) as printed:
        table.main()
    assert f"\n{printed.getvalue()}" in (DOCS / "benchmarks.md").read_text()


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    (row,) = (
        row
        for row in rows("docs/benchmarks.md", "case")
        if [*row[:2], row[-1]] == ["tensors 8 GiB", "grit", "NVIDIA H200"]
    )
    text = " ".join(README.read_text().split())
    assert f"is checkpointed in {row[7]} and starts from its checkpoint in {row[10]}." in text


def benchmarked() -> list[list[str]]:
    """The rows of all tables of what is measured on a node without GPUs."""
    sections = (
        "### The runtime",
        "### Large heaps",
        "### The shim",
        "### Stores",
        "### Kubernetes",
        "### What an operator waits for",
    )
    return [row for part in sections for row in rows("docs/benchmarks.md", "row", section=part)]


def test_every_row_of_the_benchmark_has_a_figure() -> None:
    named = [name for row in benchmarked() for name in CODE.findall(row[0])]
    assert {name for name in named if "." in name} == set(benchmarks.ROWS)


def test_each_ratio_is_that_of_its_figures() -> None:
    for _, ours, theirs, ratio, _ in benchmarked():
        if theirs:
            quotient = float(ours.split()[0]) / float(theirs.split()[0])
            assert quotient == pytest.approx(float(ratio), rel=0.03)  # they are rounded


def test_each_loss_is_a_row_of_the_table_of_limits() -> None:
    found = re.findall(r"^\| `(\w+)` \|", (DOCS / "limits.md").read_text(), flags=re.MULTILINE)
    assert sorted(found) == sorted(losses.KINDS)


def test_each_field_of_a_record_is_in_the_table_of_records() -> None:
    text = (DOCS / "records.md").read_text()
    cells = re.findall(r"^\| (`[^|]*) \|", text, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(cells)) == list(Outcome._fields)
    for outcome in ("RESTORED", "SKIPPED", "COLD", "FAILED", "SEALED", "LOST", "HELD"):
        assert f"`{getattr(outcomes, outcome)}`" in text


@pytest.mark.parametrize(
    ("file", "made"),
    [
        ("docs/agent.md", lambda: agent_metrics.Metrics(len, int, int)),
        ("docs/kubernetes.md", manager_metrics.Metrics),
    ],
    ids=["agent", "manager"],
)
def test_each_metric_is_in_the_document(file: str, made: Callable[[], Any]) -> None:
    cells = [row[0].strip("`") for row in rows(file, "metric")]
    documented = {cell.partition("{")[0].removesuffix("_total") for cell in cells}
    assert documented == {family.name for family in made().registry.collect()}


def test_a_store_s_key_is_made_as_the_document_says(tmp_path: Path) -> None:
    (command,) = documented("store key")
    subprocess.run(command.replace("/etc/grit", str(tmp_path)), shell=True, check=True)  # noqa: S602
    assert len(FileKey(str(tmp_path / "store.key")).id) == 16


def test_a_signing_key_is_made_as_the_document_says(tmp_path: Path) -> None:
    for line in documented("signing key"):
        argv = shlex.split(line.replace("/etc/grit", str(tmp_path)))
        subprocess.run(argv, check=True, capture_output=True)
    signed = signature.sign(b"manifest", str(tmp_path / "signing.pem"))
    signature.check(b"manifest", signed, str(tmp_path / "trusted.pem"))
