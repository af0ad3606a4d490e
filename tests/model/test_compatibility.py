import pytest

from grit_runtime.model.compatibility import instruction_sets, refusals
from grit_runtime.model.manifest import Node

HERE = Node("6.18", "x86_64", ("avx", "avx2", "sse2"), "4.2.1", "1.3.6", "2.1.9", "580.159")


def test_the_same_node_takes_its_own_checkpoint_back() -> None:
    assert refusals(HERE, HERE) == []


@pytest.mark.parametrize("criu", ["4.2", "4.1.1", "3.19"])
def test_images_of_an_older_criu_are_taken(criu: str) -> None:
    assert refusals(HERE._replace(criu=criu), HERE) == []


@pytest.mark.parametrize("criu", ["4.2.2", "4.10", "5.0"])
def test_images_of_a_newer_criu_are_refused_with_what_to_install(criu: str) -> None:
    (reason,) = refusals(HERE._replace(criu=criu), HERE)
    assert f"install CRIU {criu} or newer" in reason


def test_instructions_that_are_missing_here_are_named() -> None:
    (reason,) = refusals(HERE._replace(cpu_features=("avx2", "avx512f", "sse2")), HERE)
    assert "CPU lacks avx512f" in reason


def test_another_architecture_is_refused() -> None:
    assert "taken on aarch64" in refusals(HERE._replace(machine="aarch64"), HERE)[0]


def test_flags_that_no_program_chooses_its_code_by_do_not_count() -> None:
    assert instruction_sets(["fpu", "sse2", "aperfmperf", "avx2"]) == ("avx2", "sse2")
