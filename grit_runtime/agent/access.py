"""Who may call the agent from the cluster: users that the API server knows, as its RBAC has it.

A caller shows a token for the audience grit-agent. What it needs is a verb on checkpoints of the
group kaito.sh. Spec: authentication.k8s.io/v1 TokenReview, authorization.k8s.io/v1
SubjectAccessReview.
"""

from __future__ import annotations

import hashlib
import time
from threading import Lock

from grit_runtime.errors import PermissionDeniedError, UnauthenticatedError
from grit_runtime.proto import agent_pb2
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from grit_runtime.agent.job import Job
    from grit_runtime.agent.kubernetes import ApiServer

AUDIENCE = "grit-agent"
GROUP, RESOURCE = "kaito.sh", "checkpoints"

_KEPT_S = 10.0
_MAX_KEPT = 4096
_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"

_VERBS = {"Checkpoint": "create", "Prepare": "restore", "Push": "create"} | dict.fromkeys(
    ("Resume", "Cancel", "Remove"), "delete"
)


class Needed(NamedTuple):
    """What a caller has to be allowed."""

    verb: str
    namespace: str  # empty: in all
    name: str = ""  # empty: any


def needed(method: str, request: object, jobs: list[Job]) -> Needed:
    """What the call needs.

    A store is a place of the node's or the node's account: who names one needs the verb in all
    namespaces. So does who asks for what is not of one checkpoint or pod.
    """
    namespace, name, url = "", "", ""
    match request:
        case agent_pb2.CheckpointRequest(target=target, push=url):
            namespace = target.partition("/")[0]
        case agent_pb2.PushRequest(namespace=namespace, target=url):
            pass
        case (
            agent_pb2.PrepareRequest(namespace=namespace, name=name, source=url)
            | agent_pb2.RemoveRequest(namespace=namespace, name=name, store=url)
        ):
            pass
        case agent_pb2.ResumeRequest(target=target):
            namespace = target.partition("/")[0]
        case agent_pb2.CheckpointRef(namespace=namespace, name=name):
            pass
        case agent_pb2.JobRequest(id=id_):
            for job in jobs:
                if job.id == id_:
                    namespace, name = job.namespace, job.name
        case _:
            pass
    if url and not url.startswith("peer://"):
        namespace = name = ""
    return Needed(_VERBS.get(method, "get"), namespace, name)


class Access:
    """The API server's answers, each good for 10 s. From any thread."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self._lock = Lock()
        self._kept: dict[tuple[object, ...], tuple[float, Any]] = {}

    def require(self, token: str, wanted: Needed) -> None:
        """UnauthenticatedError or PermissionDeniedError unless the token's owner may do that."""
        if not token:
            raise UnauthenticatedError(
                "no token: expected metadata 'authorization: Bearer TOKEN', of a ServiceAccount, "
                f"for the audience {AUDIENCE}"
            )
        digest = hashlib.sha256(token.encode()).hexdigest()
        user = self._answer((digest,), lambda: self._user(token))
        if user is None:
            raise UnauthenticatedError(
                f"the API server does not know the token for the audience {AUDIENCE}; make a new "
                "one for that audience"
            )
        if not self._answer((digest, wanted), lambda: self._may(user, wanted)):
            which = f"{RESOURCE}.{GROUP}{f' {wanted.name}' if wanted.name else ''}"
            where = f"namespace {wanted.namespace}" if wanted.namespace else "all namespaces"
            raise PermissionDeniedError(
                f"user {user['username']} may not {wanted.verb} {which} in {where}; a role has to "
                "allow it"
            )

    def _answer(self, key: tuple[object, ...], ask: Callable[[], Any]) -> Any:
        now_s = time.monotonic()
        with self._lock:
            kept = self._kept.get(key)
        if kept and kept[0] > now_s:
            return kept[1]
        answer = ask()
        with self._lock:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[key] = now_s + _KEPT_S, answer
        return answer

    def _user(self, token: str) -> dict[str, Any] | None:
        spec = {"token": token, "audiences": [AUDIENCE]}
        status = self._review(_REVIEWS, "authentication.k8s.io/v1", "TokenReview", spec)
        # A server that knows nothing of audiences says nothing of them.
        if not status.get("authenticated") or AUDIENCE not in status.get("audiences", ()):
            return None
        user: dict[str, Any] = status["user"]
        return user

    def _may(self, user: dict[str, Any], wanted: Needed) -> bool:
        attributes = {"group": GROUP, "resource": RESOURCE, **wanted._asdict()}
        spec = {
            "user": user["username"],
            "uid": user.get("uid", ""),
            "groups": user.get("groups", []),
            "extra": user.get("extra", {}),
            "resourceAttributes": attributes,
        }
        api_version = "authorization.k8s.io/v1"
        status = self._review(_ACCESS_REVIEWS, api_version, "SubjectAccessReview", spec)
        return status.get("allowed") is True

    def _review(self, path: str, api_version: str, kind: str, spec: dict[str, Any]) -> Any:
        body = {"apiVersion": api_version, "kind": kind, "spec": spec}
        return self._api.post(path, body).get("status", {})
