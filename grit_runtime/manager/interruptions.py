"""Pods that others take away without evicting them: last checkpoints first, where schedules say so.

- Preemption: the scheduler deletes its victims (kubernetes pkg/scheduler/framework/preemption), by
  its own user. It tries again when that is refused.
- Suspension of a Job, as Kueue does it: it sets spec.suspend, and the Job's controller deletes the
  pods. Kueue tries again (kueue pkg/controller/jobs/job/job_controller.go, Stop).
"""

from __future__ import annotations

from grit_runtime.manager import cluster as kube
from grit_runtime.manager import last_checkpoints, pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.cluster import Cluster, Object

SCHEDULER = "system:kube-scheduler"  # its user, as RBAC's default roles have it


def is_preemption(request: Object) -> bool:
    """Whether a deletion of a pod, in an AdmissionReview, is a preemption of one of grit's."""
    if request["userInfo"].get("username") != SCHEDULER:
        return False
    return bool(request["oldObject"]["spec"].get("runtimeClassName") == pods.RUNTIME_CLASS)


def is_suspension(request: Object) -> bool:
    """Whether a change of a Job, in an AdmissionReview, suspends it."""
    after, before = (request[name]["spec"].get("suspend") for name in ("object", "oldObject"))
    return bool(after) and not before


async def review_deletion(cluster: Cluster, request: Object) -> None:
    """BusyError while a pod that is preempted is checkpointed."""
    if is_preemption(request) and not request.get("dryRun"):
        going = [request["oldObject"]]
        await last_checkpoints.require(cluster, request["namespace"], going, "Preemption")


async def review_job(cluster: Cluster, request: Object) -> None:
    """BusyError while a pod of a Job that is suspended is checkpointed."""
    if not is_suspension(request) or request.get("dryRun"):
        return
    namespace, uid = request["namespace"], request["object"]["metadata"]["uid"]
    going = [
        pod
        for pod in await cluster.every(kube.PODS, namespace)
        if pods.is_of(pod, uid) and pod["spec"].get("runtimeClassName") == pods.RUNTIME_CLASS
    ]
    await last_checkpoints.require(cluster, namespace, going, "JobSuspension")
