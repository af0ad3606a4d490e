"""What installs grit in a cluster names what the code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from grit_runtime.config import Config
from grit_runtime.manager import api, interruptions, last_checkpoints, names, pods, rules
from grit_runtime.manager.crds import KINDS, Kind, crds

KUBERNETES = Path(__file__).parents[2] / "runtime-config/kubernetes"
OLDER = KUBERNETES.with_name("kubernetes-older")
SAMPLES = sorted((KUBERNETES / "samples").iterdir())


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def kustomization(directory: Path) -> dict[str, Any]:
    (found,) = documents(directory / "kustomization.yaml")
    return found


OBJECTS = {
    (found["kind"], found["metadata"]["name"]): found
    for file in kustomization(KUBERNETES)["resources"]
    for found in documents(KUBERNETES / file)
}
DEPLOYMENT = OBJECTS["Deployment", names.MANAGER]["spec"]["template"]["spec"]
WEBHOOKS = {
    webhook["name"]: webhook
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
    for webhook in OBJECTS[kind, names.MANAGER]["webhooks"]
}
PLURALS = [kind.plural for kind in KINDS]


def ports(container: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def test_each_file_is_installed() -> None:
    files = {*KUBERNETES.glob("*.yaml"), *(KUBERNETES / "crds").iterdir()}
    listed = {KUBERNETES / name for name in kustomization(KUBERNETES)["resources"]}
    assert listed == files - {KUBERNETES / "kustomization.yaml"}


def test_all_is_in_one_namespace_and_named_once() -> None:
    found = [
        one
        for file in kustomization(KUBERNETES)["resources"]
        for one in documents(KUBERNETES / file)
    ]
    for one in found:
        assert one["metadata"].get("namespace", names.NAMESPACE) == names.NAMESPACE
    keys = [
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found
    ]
    assert len(set(keys)) == len(keys)
    assert ("Namespace", names.NAMESPACE) in OBJECTS


def test_the_manager_serves_where_its_service_and_probes_look() -> None:
    (container,) = DEPLOYMENT["containers"]
    assert ports(container) == {"webhooks": names.WEBHOOK_PORT, "metrics": names.METRICS_PORT}
    service = OBJECTS["Service", names.MANAGER]["spec"]
    labels = OBJECTS["Deployment", names.MANAGER]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in service["ports"]} == ports(container).keys()
    assert {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("readiness", "liveness")} == {
        "metrics"
    }
    assert container["args"] == ["manager"]


def test_the_manager_has_no_rights_on_its_node() -> None:
    (container,) = DEPLOYMENT["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert DEPLOYMENT["securityContext"]["runAsNonRoot"]
    assert not any("hostPath" in volume for volume in DEPLOYMENT["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & DEPLOYMENT.keys()


def test_the_manager_s_token_for_agents_is_for_nobody_else() -> None:
    (volume,) = DEPLOYMENT["volumes"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == names.AGENT
    (mount,) = DEPLOYMENT["containers"][0]["volumeMounts"]
    token = f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
    assert token == names.AGENT_TOKEN_PATH


def test_agents_listen_where_their_configuration_says() -> None:
    (agent,) = OBJECTS["DaemonSet", names.AGENT]["spec"]["template"]["spec"]["containers"]
    assert ports(agent) == {
        "peers": Config().agent_port,
        "api": names.AGENT_API_PORT,
        "metrics": Config().agent_metrics,
    }
    assert Config().agent_api_port == names.AGENT_API_PORT


def test_who_may_connect_is_who_has_to() -> None:
    opened = {
        (name, port["port"], tuple(str(peer) for peer in rule.get("from", ["anybody"])))
        for name in (names.MANAGER, names.AGENT)
        for rule in OBJECTS["NetworkPolicy", name]["spec"]["ingress"]
        for port in rule["ports"]
    }
    of = "{'podSelector': {'matchLabels': {'app.kubernetes.io/name': '%s'}}}"
    assert opened == {
        (names.MANAGER, names.WEBHOOK_PORT, ("anybody",)),
        (names.MANAGER, names.METRICS_PORT, ("{'namespaceSelector': {}}",)),
        (names.AGENT, Config().agent_port, (of % names.AGENT,)),
        (names.AGENT, names.AGENT_API_PORT, (of % names.MANAGER,)),
        (names.AGENT, Config().agent_metrics, ("{'namespaceSelector': {}}",)),
    }


def test_webhooks_lead_to_the_manager_s_paths() -> None:
    paths = {name: webhook["clientConfig"]["service"] for name, webhook in WEBHOOKS.items()}
    assert {name: service.pop("path") for name, service in paths.items()} == {
        "pods.grit.dev": names.POD_PATH,
        "objects.grit.dev": names.OBJECT_PATH,
        "changes.grit.dev": names.OBJECT_PATH,
        "evictions.grit.dev": names.EVICTION_PATH,
        "deletions.grit.dev": names.DELETION_PATH,
        "jobs.grit.dev": names.JOB_PATH,
    }
    for service in paths.values():
        assert service == {"name": names.MANAGER, "namespace": names.NAMESPACE}


def test_a_dead_manager_stops_no_pod_and_no_deletion() -> None:
    for name, webhook in WEBHOOKS.items():
        operations = [operation for rule in webhook["rules"] for operation in rule["operations"]]
        assert name == "deletions.grit.dev" or "DELETE" not in operations
        assert "*" not in operations
        assert webhook["timeoutSeconds"] <= 5
        assert webhook["failurePolicy"] == ("Fail" if name == "objects.grit.dev" else "Ignore")
    (rule,) = WEBHOOKS["objects.grit.dev"]["rules"]
    assert (rule["operations"], rule["apiGroups"]) == (["CREATE"], [api.GROUP])
    assert sorted(rule["resources"]) == sorted(PLURALS)


def test_the_answer_that_a_pod_may_not_go_comes_in_time() -> None:
    for name in ("evictions.grit.dev", "deletions.grit.dev", "jobs.grit.dev"):
        assert WEBHOOKS[name]["timeoutSeconds"] > last_checkpoints._ANSWER_S


def test_servers_with_conditions_ask_about_the_scheduler_s_deletions_alone() -> None:
    by_user, of_class = WEBHOOKS["deletions.grit.dev"]["matchConditions"]
    assert f'username == "{interruptions.SCHEDULER}"' in by_user["expression"]
    assert f'runtimeClassName == "{pods.RUNTIME_CLASS}"' in of_class["expression"]


def test_webhooks_are_not_asked_about_the_cluster_s_own_pods() -> None:
    for name in WEBHOOKS.keys() - {"objects.grit.dev", "changes.grit.dev"}:
        by_name, opt_out = WEBHOOKS[name]["namespaceSelector"]["matchExpressions"]
        assert {"kube-system", names.NAMESPACE} <= set(by_name["values"])
        assert (opt_out["key"], opt_out["values"]) == ("manager.grit.dev/pods", ["ignore"])


def test_roles_name_what_there_is() -> None:
    rules_ = OBJECTS["ClusterRole", names.MANAGER]["rules"]
    ours = {
        plural
        for rule in rules_
        if rule["apiGroups"] == [api.GROUP]
        for plural in rule["resources"]
    }
    owners = ("checkpoints", "restores", "migrations")
    assert ours == {
        *PLURALS,
        *(f"{plural}/status" for plural in PLURALS),
        *(f"{plural}/finalizers" for plural in owners),  # which block their owners' deletion
    }
    assert not any("*" in rule["verbs"] + rule["resources"] for rule in rules_)
    named = {name for rule in rules_ for name in rule.get("resourceNames", ())}
    assert named == {names.SIGNER, names.MANAGER}
    role = OBJECTS["Role", names.MANAGER]["rules"]
    assert {name for rule in role for name in rule.get("resourceNames", ())} == {
        names.MANAGER,
        names.CERTIFICATES,
        names.CA_CONFIG_MAP,
    }
    for name in ("grit-view", "grit-edit"):
        (rule,) = OBJECTS["ClusterRole", name]["rules"]
        assert sorted(rule["resources"]) == sorted(PLURALS)


def test_older_servers_get_all_but_what_they_refuse() -> None:
    overlay = kustomization(OLDER)
    assert overlay["bases"] == ["../kubernetes"]
    for patch in overlay["patchesJson6902"]:
        target = OBJECTS[patch["target"]["kind"], patch["target"]["name"]]
        version = f"{patch['target']['group']}/{patch['target']['version']}"
        assert target["apiVersion"] == version
        for step in yaml.safe_load((OLDER / patch["path"]).read_text()):
            *parents, last = step["path"][1:].split("/")
            at: Any = target
            for word in parents:
                at = at[int(word) if word.isdigit() else word]
            assert (last in at) == (step["op"] == "remove")  # nothing to take away, or lost
    patched = [patch["target"]["name"] for patch in overlay["patchesJson6902"]]
    assert {f"{plural}.{api.GROUP}" for plural in PLURALS} <= set(patched)


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.stem)
def test_samples_mean_something(file: Path) -> None:
    records = {kind.record.__name__: kind.record for kind in KINDS}
    for sample in documents(file):
        if sample["kind"] in records:
            assert sample["apiVersion"] == api.API_VERSION
            assert rules.refusals(api.read(records[sample["kind"]], sample).spec) == []
        else:
            assert sample["kind"] in {"PersistentVolume", "PersistentVolumeClaim"}


def documented(heading: str, columns: int) -> list[tuple[str, ...]]:
    """The rows of the table below *heading* in the document, of so many columns."""
    text = (KUBERNETES.parents[1] / "docs/kubernetes.md").read_text().partition(heading)[2]
    lines = text[text.index("|") :].partition("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.split("|")[1 : columns + 1]) for line in lines]


def given(kind: str, name: str) -> list[tuple[str, str]]:
    """What a role gives, as the document says it."""
    return [
        (
            ", ".join(rule["verbs"]),
            ", ".join(rule["resources"])
            + "".join(f" ({name})" for name in rule.get("resourceNames", ())),
        )
        for rule in OBJECTS[kind, name]["rules"]
    ]


def test_each_right_is_documented_with_its_reason() -> None:
    everywhere = documented("The manager has these, in all namespaces", 3)
    assert [row[:2] for row in everywhere] == given("ClusterRole", names.MANAGER)
    in_its_own = documented("and these in `grit-system`", 3)
    assert [row[:2] for row in in_its_own] == given("Role", names.MANAGER)
    assert all(row[2] for row in everywhere + in_its_own)


def test_each_field_of_a_spec_is_documented() -> None:
    for kind in KINDS:
        table = documented(f"## {kind.record.__name__}\n", 1)
        named = {word for row in table for word in row[0].replace("`", "").split(", ")}
        spec = version(kind)["schema"]["openAPIV3Schema"]["properties"]["spec"]
        assert named == set(spec["properties"])


def version(kind: Kind) -> dict[str, Any]:
    found: dict[str, Any] = crds()[kind.plural]["spec"]["versions"][0]
    return found
