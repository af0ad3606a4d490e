"""Tests of pods, of their migration and of GPU faults once more, under grit's own shim."""

from __future__ import annotations

import pytest

from integration import test_gpu, test_migrate, test_node

# What the tests of test_gpu ask for by name.
carried, gpus, source = test_gpu.carried, test_gpu.gpus, test_gpu.source

pytestmark = pytest.mark.usefixtures("fresh_nodes", "shim_handler")

POD_TESTS = (
    test_node.test_exec_sees_what_kubelet_gave_the_container,
    test_node.test_failed_exec_has_its_exit_code_and_both_streams,
    test_node.test_ended_container_tells_its_exit_code_and_starts_again_in_the_same_sandbox,
    test_node.test_sandbox_without_containers_can_be_removed,
    test_node.test_containers_go_on_while_containerd_restarts,
    test_node.test_pods_of_two_nodes_reach_each_other,
)
GPU_TESTS = (
    test_gpu.test_memory_goes_on_in_a_new_pod_on_the_card_of_another_node,
    test_gpu.test_a_frozen_source_can_be_deleted,
    test_gpu.test_a_killed_grit_is_undone_by_its_supervisor,
    test_gpu.test_a_restore_that_fails_leaves_nothing,
    test_gpu.test_a_restore_that_failed_can_be_tried_again,
)
MIGRATE_TESTS = (test for name, test in vars(test_migrate).items() if name.startswith("test_"))

for test in (*POD_TESTS, *MIGRATE_TESTS, *GPU_TESTS):
    globals()[test.__name__] = test
del test
