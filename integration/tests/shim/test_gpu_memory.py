"""Staged device memory, filled into stopped tasks, under grit's own shim."""

from __future__ import annotations

import pytest

from integration.tests.gpu import test_gpu_memory

pytestmark = pytest.mark.usefixtures("fresh_nodes", "shim_handler")

# What the test asks for by name.
carried, gpus, source = test_gpu_memory.carried, test_gpu_memory.gpus, test_gpu_memory.source

test_a_restored_pod_is_checkpointed_and_restored_again = (
    test_gpu_memory.test_a_restored_pod_is_checkpointed_and_restored_again
)
