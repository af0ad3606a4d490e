import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import ImageError
from grit_runtime.model import manifest as manifests
from grit_runtime.model import task_facts
from grit_runtime.model.losses import Loss
from grit_runtime.model.memory_range import MemoryRange

SCHEMA = Path(manifests.__file__).with_name("manifest.schema.json")

FACTS = task_facts.ProcessFacts(
    pid=1,
    core_dump_filter=0x7F,
    write_execute=1,
    threads=(task_facts.usual_thread(7)._replace(cpus=(2, 3)),),
    owners=(task_facts.Owner(1, 1000, 1000, 0o600),),
    sockets=(
        task_facts.SocketFacts(
            5,
            (task_facts.SocketOption(6, 18, "39300000"),),
            (task_facts.Membership("239.0.0.1", "eth0", 0, ()),),
            (1, 0, 0),
        ),
    ),
    guards=(MemoryRange(4096, 8192),),
    seals=(MemoryRange(8192, 16384),),
    renamed=(
        task_facts.RenamedSocket("/run/s.1", ("/run/s",), is_kept=False, uid=0, gid=0, mode=0o700),
    ),
)
MANIFEST = manifests.Manifest(
    version=manifests.VERSION,
    name="nightly",
    created="2026-11-22T06:00:00Z",
    pod=manifests.Pod("shop", "cart-7", "uid-7", "sandbox-7"),
    captured=("shm", "emptydir:data"),
    containers=(
        manifests.Container(
            name="app",
            id="c0ffee",
            state="running",
            exit_code=None,
            image="registry.local/app:1",
            image_digest="sha256:aa",
            processes=3,
            mounts=(manifests.Mount("/etc/hosts", "/etc/hosts"),),
            gpus=(manifests.Gpu("GPU-1", "NVIDIA H100", 80 << 30),),
            cuda=(manifests.CudaProcess(1, (manifests.DeviceMemory("GPU-1", 1 << 30),)),),
            uncaptured=(),
            facts=(FACTS,),
            memory=(manifests.Memory(1, 4096, 1 << 30, 1 << 29),),
        ),
    ),
    files=(manifests.File("app/checkpoint/pstree.img", 40, "sha256:bb"),),
    node=manifests.Node("6.18", "x86_64", ("avx2", "sse2"), "4.2.1", "1.3.6", "2.1.9", "580.159"),
    options=manifests.Options(file_locks=True),
    timeline=(manifests.Phase("dump", 0.25, "app", 4096), manifests.Phase("thaw", 1.0, None, None)),
    warnings=(Loss("KeysLost", "app", 4711, "has keys"),),
)


def changed(path: str, value: Any) -> bytes:
    """The manifest as JSON with the field at *path* (dots and numbers) replaced."""
    whole = manifests.plain(MANIFEST)
    at: Any = whole
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        at = at[part]
    at[last] = value
    return json.dumps(whole).encode()


def test_what_was_written_is_read_back() -> None:
    assert manifests.parse(manifests.dump(MANIFEST)) == MANIFEST


def test_a_manifest_of_the_first_version_is_read_and_keeps_its_version() -> None:
    whole = manifests.plain(MANIFEST)
    del whole["warnings"], whole["containers"][0]["facts"], whole["containers"][0]["memory"]
    whole["version"] = 1
    whole["options"]["ghost_limit_bytes"] = 1 << 40
    expected = MANIFEST._replace(
        version=1,
        warnings=(),
        containers=(MANIFEST.containers[0]._replace(facts=(), memory=()),),
    )
    assert manifests.parse(json.dumps(whole).encode()) == expected


def test_the_schema_in_the_repository_is_the_formats() -> None:
    assert json.loads(SCHEMA.read_text()) == manifests.schema()


def test_a_manifest_fits_the_schema() -> None:
    jsonschema.validate(json.loads(manifests.dump(MANIFEST)), json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("version", 0, "version is 0, this grit reads 1 to 4"),
        ("version", 5, "version is 5, this grit reads up to 4; upgrade grit on this node"),
        ("version", True, "expected int"),
        ("name", 7, "name: expected str, is 7"),
        ("files.0.size_bytes", -1, r"files\[0\]: size_bytes: expected int, is -1"),
        ("files.0.size_bytes", True, "size_bytes: expected int"),
        ("files.0.size_bytes", 1 << 63, "size_bytes: expected int"),
        ("files", {}, "files: expected a list"),
        ("pod", [], "pod: expected an object"),
        ("pod.extra", "x", "pod: unknown field 'extra'"),
        ("containers.0.exit_code", "0", "exit_code: expected int"),
        ("timeline.0.seconds", "fast", "seconds: expected float"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(path: str, value: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        manifests.parse(changed(path, value))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'"x"', b"null"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"manifest\.json"):
        manifests.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(json_values, st.sampled_from([*manifests.Manifest._fields, "pod.uid", "files.0.path"]))
def test_any_value_in_any_field_gives_a_manifest_or_our_error(value: Any, path: str) -> None:
    try:
        assert isinstance(manifests.parse(changed(path, value)), manifests.Manifest)
    except ImageError as error:
        assert "\n" not in str(error)
