"""Inputs that the fuzzer found to reach different code, decoded once more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import decoders


@pytest.mark.parametrize("name", decoders.DECODERS)
def test_every_seed_is_decoded_or_refused_in_one_line(name: str) -> None:
    seeds = sorted((decoders.SEEDS / name).iterdir())
    assert seeds
    for seed in seeds:
        decoders.decode(name, seed.read_bytes())


@pytest.mark.parametrize("name", decoders.DECODERS)
@given(data=st.binary(max_size=4096))
def test_any_bytes_are_decoded_or_refused_in_one_line(name: str, data: bytes) -> None:
    decoders.decode(name, data)
