"""Announcements, as they are written and read back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.model import arrival
from grit_runtime.model.arrival import Arrival

WHOLE = Arrival(
    checkpoint="/mnt/grit-agent/default/nightly",
    manifest_sha256="0" * 64,
    source="peer node-b",
    size_bytes=43 << 30,
    arrived_bytes=13 << 30,
    begun="2026-05-01T00:00:00Z",
    ready="",
    is_whole=False,
    failed="",
)
TEXTS = st.text(st.characters(exclude_categories=("C", "Z")))
SIZES = st.integers(0, (1 << 63) - 1)
ARRIVALS = st.builds(
    WHOLE._replace, checkpoint=TEXTS, source=TEXTS, ready=TEXTS, failed=TEXTS,
    is_whole=st.booleans(),
    size_bytes=SIZES, arrived_bytes=SIZES, manifest_sha256=st.sampled_from(["", "a1" * 32]),
)  # fmt: skip


@given(one=ARRIVALS)
def test_an_announcement_is_read_back_as_it_was_written(one: Arrival) -> None:
    assert arrival.parse(arrival.dump(one)) == one


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size_bytes": True}, "size_bytes: not int: True"),
        ({"arrived_bytes": -1}, "arrived_bytes: not int: -1"),
        ({"size_bytes": 1 << 63}, "size_bytes: not int"),
        ({"source": None}, "source: not str"),
        ({"failed": "two\nlines"}, "failed: not str"),
        ({"manifest_sha256": "0" * 63}, "manifest_sha256: '000"),
        ({"begun": "yesterday"}, "begun: 'yesterday'"),
        ({"begun": "2026-13-01T00:00:00Z"}, "begun: month must be"),
        ({"later": 1}, "expected the fields checkpoint, manifest_sha256"),
    ],
)
def test_what_is_no_announcement_is_refused(change: dict[str, object], reason: str) -> None:
    data = json.dumps(WHOLE._asdict() | change).encode()
    with pytest.raises(FailedPreconditionError, match=reason):
        arrival.parse(data)


def test_progress_is_in_a_unit_that_shows_it() -> None:
    assert arrival.progress(WHOLE) == "13.0 of 43.0 GiB"
    small = WHOLE._replace(size_bytes=12 << 20, arrived_bytes=3 << 19)
    assert arrival.progress(small) == "1.5 of 12.0 MiB"
