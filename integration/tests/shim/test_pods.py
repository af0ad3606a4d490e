"""What reaches the shim of the tests of pods and of their migration, under grit's own."""

from __future__ import annotations

import pytest

from integration.tests.migrate import test_migrate, test_node

pytestmark = pytest.mark.usefixtures("fresh_nodes", "shim_handler")

for test in (
    test_node.test_exec_sees_what_kubelet_gave_the_container,
    test_node.test_failed_exec_has_its_exit_code_and_both_streams,
    test_node.test_ended_container_tells_its_exit_code_and_starts_again_in_the_same_sandbox,
    test_node.test_sandbox_without_containers_can_be_removed,
    test_node.test_containers_go_on_while_containerd_restarts,
    test_node.test_pods_of_two_nodes_reach_each_other,
    test_migrate.test_the_count_goes_on_in_a_new_pod_on_another_node,
    test_migrate.test_the_new_pod_keeps_its_own_hostname_and_ipc_limits,
    test_migrate.test_a_frozen_source_holds_its_count_until_it_is_resumed,
    test_migrate.test_a_frozen_pod_can_be_deleted,
    test_migrate.test_stopping_a_pod_that_kubelet_restarts_must_be_meant,
    test_migrate.test_a_container_that_ends_after_its_restore_starts_cold,
    test_migrate.test_the_rw_layer_arrives_as_it_was,
    test_migrate.test_an_ordinary_pod_is_not_touched,
):
    globals()[test.__name__] = test
del test
