import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.model import compatibility
from grit_runtime.model import manifest as manifests
from grit_runtime.model.compatibility import Facts, instruction_sets, needs_of, refusals, verdict
from grit_runtime.model.manifest import CudaProcess, DeviceMemory, Gpu, Node

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


H100 = Gpu("GPU-1", "NVIDIA H100", 80 << 30)
OTHER = H100._replace(uuid="GPU-9")


def needs(*seen: Gpu) -> Facts:
    """Those of a container that was given cards *seen*, and holds memory on the first."""
    devices = tuple(DeviceMemory(gpu.uuid, 1 << 30) for gpu in seen[:1])
    manifest = manifests.for_foreign_dump(["main"], {})
    container = manifest.containers[0]._replace(
        gpus=seen, cuda=(CudaProcess(1, devices),) if seen else ()
    )
    return needs_of(manifest._replace(node=HERE, containers=(container,)))


def test_a_node_with_such_a_card_can_restore() -> None:
    there = Facts(HERE, (OTHER,))
    assert verdict(needs(H100), there) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (Facts(HERE._replace(driver=""), ()), "needs 1 GPUs, and this node has no NVIDIA driver"),
        (Facts(HERE, ()), "has no place in the new pod, which was given no GPU"),
        (Facts(HERE, (OTHER._replace(model="NVIDIA A10"),)), "give it 1 of NVIDIA H100"),
        (Facts(HERE, (OTHER._replace(memory_bytes=40 << 30),)), "NVIDIA H100, 40 GiB"),
    ],
)
def test_a_node_without_such_a_card_is_refused_with_what_it_needs(facts: Facts, words: str) -> None:
    (reason,) = verdict(needs(H100), facts)
    assert words in reason


def test_a_card_that_was_seen_and_not_used_is_needed_too() -> None:
    (reason,) = verdict(needs(H100, H100._replace(uuid="GPU-2")), Facts(HERE, (OTHER,)))
    assert "give it 2 of NVIDIA H100" in reason


def test_a_container_without_gpus_needs_no_driver() -> None:
    assert verdict(needs(), Facts(HERE._replace(driver=""), ())) == []


def test_facts_come_back_as_they_were_written() -> None:
    facts = Facts(HERE, (H100,))
    text = compatibility.dump_facts(facts)
    assert compatibility.parse_facts(text.encode(), "node.json") == facts


@given(st.binary(max_size=200))
def test_what_is_no_facts_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match=r"node\.json: not facts of a node"):
        compatibility.parse_facts(data, "node.json")
