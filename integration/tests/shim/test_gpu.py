"""GPU memory that moves, and faults of a restore, under grit's own shim."""

from __future__ import annotations

import pytest

from integration.tests.gpu import test_gpu

pytestmark = pytest.mark.usefixtures("fresh_nodes", "shim_handler")

# What the tests ask for by name.
carried, gpus, source = test_gpu.carried, test_gpu.gpus, test_gpu.source

for test in (
    test_gpu.test_memory_goes_on_in_a_new_pod_on_the_card_of_another_node,
    test_gpu.test_a_frozen_source_can_be_deleted,
    test_gpu.test_a_restore_that_fails_leaves_nothing,
    test_gpu.test_a_restore_that_failed_can_be_tried_again,
):
    globals()[test.__name__] = test
del test
