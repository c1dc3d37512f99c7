"""The manifests: every folder builds, the real API server takes all that it gives, and it gives no more access than it should.

Server-side dry run goes through decoding, defaulting and validation of the real API server; its answer must hold every field that
was sent, as a dropped one is a misspelt one.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from orchestrator.adapters.kube import names
from tests.kube import foreign
from tests.kube.control_plane import ControlPlane
from tests.kube.kubectl import KubectlError
from tests.kube.kustomized import EXAMPLES, FOLDERS, MANIFESTS, ROOT, Manifest, named, objects, of_kind, text
from tests.kube.manifest_checks import as_list, dry_run, missing, selects
from tests.kube.pod_security import violations

BASE, NAMESPACE = "manifests/base", "manifests/namespace"
OVERLAYS = [folder for folder in FOLDERS if folder.startswith("manifests/overlays/")]
JOBS = sorted(EXAMPLES.glob("job*.yaml"))
DIGEST = re.compile(r"[a-z0-9][a-z0-9./:_-]*@sha256:[0-9a-f]{64}")
ALL = [(folder, manifest) for folder in FOLDERS for manifest in objects(folder)]


@pytest.fixture(scope="module")
def ready(plane: ControlPlane) -> ControlPlane:
    """The API server with what a dry run needs to exist: namespaces, our CRD, and the kinds of others."""
    plane.kubectl("apply", "--server-side", "-f", "-", input=text("manifests/crd"))
    plane.kubectl("apply", "--server-side", "-f", "-", input=as_list(foreign.KUEUE))
    spaces = [manifest for _, manifest in ALL if manifest["kind"] == "Namespace"]
    plane.kubectl("apply", "--server-side", "-f", "-", input=as_list(spaces))
    kinds = [f"{names.PLURAL}.{names.GROUP}", *(definition["metadata"]["name"] for definition in foreign.KUEUE)]
    foreign.until_served(plane, kinds)
    return plane


# ------------------------------------------------------------------------------------------------------------ they build


def test_the_folders_that_the_readme_promises_are_there() -> None:
    assert {BASE, NAMESPACE, "manifests/crd"} <= set(FOLDERS)
    assert {folder.rpartition("/")[2] for folder in OVERLAYS} == {"kuberay", "kueue", "volcano", "gpu"}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_no_overlay_is_empty(folder: str) -> None:
    below = NAMESPACE if folder.endswith("/kueue") else BASE
    given, plain = objects(folder), objects(below)
    assert {named(m) for m in plain} < {named(m) for m in given}


def test_the_install_takes_all_components_and_keeps_its_image(tmp_path: Path) -> None:
    for place in (MANIFESTS, EXAMPLES):
        shutil.copytree(place, tmp_path / place.relative_to(ROOT))
    install = tmp_path / "examples/kubernetes/install"
    file = install / "kustomization.yaml"
    file.write_text(
        re.sub("^# (components:|  - )", r"\1", file.read_text(), flags=re.M).replace(
            "newName: orchestrator", "newName: r.example/o"
        )
    )
    given = objects(str(install))
    assert {named(m) for m in given} == {
        named(m) for folder in OVERLAYS if not folder.endswith("/kueue") for m in objects(folder)
    }
    (deployment,) = of_kind(given, "Deployment")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"].startswith("r.example/o@sha256:")


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_object_is_given_twice(folder: str) -> None:
    found = [named(manifest) for manifest in objects(folder)]
    assert len(found) == len(set(found))


# ------------------------------------------------------------------------------------- the real API server takes them


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_api_server_takes_every_object_whole(ready: ControlPlane, folder: str) -> None:
    sent = objects(folder)
    got = {named(manifest): manifest for manifest in dry_run(ready, sent)}
    assert len(got) == len(sent)
    for manifest in sent:
        assert missing(manifest, got[named(manifest)]) == [], named(manifest)


def test_a_misspelt_field_is_refused(ready: ControlPlane) -> None:
    """Else what is dry-run here would prove nothing about its fields."""
    queue = {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "LocalQueue",
        "metadata": {"name": "q", "namespace": "training"},
        "spec": {"clusterQueues": "training"},
    }
    with pytest.raises(KubectlError, match="clusterQueues"):
        dry_run(ready, [queue])


def test_a_field_that_came_back_otherwise_is_noticed() -> None:
    sent = {"spec": {"replicas": 1, "list": [{"a": 1}], "empty": {}}}
    assert missing(sent, {"spec": {"replicas": 1, "list": [{"a": 1, "default": 2}]}}) == []
    assert missing(sent, {"spec": {"replicas": 2, "list": [{}]}}) == [
        ".spec.replicas: sent 1, got 2",
        ".spec.list[0].a: sent 1, got None",
    ]


@pytest.mark.parametrize("path", JOBS, ids=[path.stem for path in JOBS])
def test_the_api_server_takes_the_example_jobs_whole(ready: ControlPlane, path: Path) -> None:
    job = yaml.safe_load(path.read_text())
    [got] = dry_run(ready, [job])
    assert missing(job, got) == []


# ------------------------------------------------------------------------------------------------------------------ pods


def pod_templates() -> list[tuple[str, Manifest]]:
    found = [
        (f"{folder}: {named(manifest)}", manifest["spec"]["template"])
        for folder, manifest in ALL
        if "template" in manifest.get("spec", {}) and manifest["kind"] != "CustomResourceDefinition"
    ]
    assert found
    return found


@pytest.mark.parametrize(("where", "template"), pod_templates(), ids=[where for where, _ in pod_templates()])
def test_pods_of_the_manifests_pass_restricted_and_our_own_rules(where: str, template: Manifest) -> None:
    assert violations(template["metadata"], template["spec"]) == []
    spec = template["spec"]
    assert spec["serviceAccountName"] != "default"
    for container in spec["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert DIGEST.fullmatch(container["image"]), container["image"]


def test_namespaces_enforce_the_restricted_profile() -> None:
    spaces = of_kind([manifest for _, manifest in ALL], "Namespace")
    assert {m["metadata"]["name"] for m in spaces} == {names.SYSTEM_NAMESPACE, "training", "team-a"}
    for manifest in spaces:
        assert manifest["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_one_operator_at_a_time() -> None:
    [operator] = of_kind(objects(BASE), "Deployment")
    assert operator["metadata"]["name"] == names.OPERATOR
    assert operator["spec"]["replicas"] == 1
    assert operator["spec"]["strategy"] == {"type": "Recreate"}


def test_every_image_of_the_examples_is_pinned_by_digest_and_names_no_registry() -> None:
    images = [line.split()[1] for path in EXAMPLES.rglob("*.yaml") for line in path.read_text().splitlines() if "image:" in line]
    assert len(images) >= len(JOBS)
    for image in images:
        assert DIGEST.fullmatch(image), image
        assert "." not in image.partition("@")[0]


# ---------------------------------------------------------------------------------------------------------------- access


def rules(*kinds: str) -> list[tuple[str, Manifest]]:
    """(role, rule) of all roles in all folders."""
    return [(m["metadata"]["name"], rule) for _, m in ALL if m["kind"] in kinds for rule in m["rules"]]


ROLES = ("Role", "ClusterRole")


def test_no_role_has_wildcards_or_verbs_that_give_more_rights() -> None:
    assert rules(*ROLES)
    for role, rule in rules(*ROLES):
        words = [*rule.get("apiGroups", []), *rule.get("resources", []), *rule["verbs"], *rule.get("nonResourceURLs", [])]
        assert not [word for word in words if "*" in word], role
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), role
        assert not {"pods/exec", "pods/attach", "pods/ephemeralcontainers", "serviceaccounts/token"} & set(rule["resources"]), (
            role
        )
        assert "rbac.authorization.k8s.io" not in rule["apiGroups"], role


def test_nobody_may_read_secrets() -> None:
    """The operator makes the tokens of jobs, and then cannot look at them; the kubelet lays them into the pods."""
    verbs = {(role, verb) for role, rule in rules(*ROLES) if "secrets" in rule["resources"] for verb in rule["verbs"]}
    assert {role for role, _ in verbs} == {names.OPERATOR}
    assert not {verb for _, verb in verbs} & {"get", "list", "watch"}


def test_roles_are_bound_to_our_accounts_only_and_all_of_them_exist() -> None:
    for folder in FOLDERS:
        manifests = objects(folder)
        accounts = {(m["metadata"]["namespace"], m["metadata"]["name"]) for m in of_kind(manifests, "ServiceAccount")}
        for binding in of_kind(manifests, "RoleBinding", "ClusterRoleBinding"):
            for subject in binding["subjects"]:
                assert subject["kind"] == "ServiceAccount", folder
                assert (subject["namespace"], subject["name"]) in accounts, f"{folder}: {named(binding)}"
                assert subject["name"] != names.WORKER_ACCOUNT, "workers run user code: they may do nothing"


def test_bindings_name_roles_that_exist() -> None:
    roles = {(m["kind"], m["metadata"]["name"]) for _, m in ALL if m["kind"] in ROLES}
    for _, binding in ALL:
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in roles


def test_accounts_mount_no_token_by_themselves() -> None:
    for _, account in ALL:
        if account["kind"] == "ServiceAccount":
            assert account["automountServiceAccountToken"] is False


def test_two_namespaces_do_not_fight_over_one_binding() -> None:
    bindings = [
        {named(m) for m in of_kind(objects(folder), "ClusterRoleBinding")}
        for folder in (NAMESPACE, "examples/kubernetes/team-namespace")
    ]
    assert all(bindings)
    assert not bindings[0] & bindings[1]


def test_the_base_asks_for_nothing_of_kuberay_kueue_or_volcano() -> None:
    given = {group for m in of_kind(objects(BASE), *ROLES) for rule in m["rules"] for group in rule["apiGroups"]}
    assert not {group for group in given if "ray.io" in group or "kueue" in group or "volcano" in group}


def test_roles_of_users_reach_the_clusters_own_view_and_edit() -> None:
    labels = {m["metadata"]["name"]: m["metadata"]["labels"] for m in of_kind(objects(BASE), "ClusterRole")}
    assert labels["orchestrator-trainingjobs-view"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert labels["orchestrator-trainingjobs-edit"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    status = [rule for role, rule in rules("ClusterRole") if "trainingjobs/status" in rule["resources"] and "users" in role]
    assert not status, "only operator and agent write the status"


# --------------------------------------------------------------------------------------------------------------- network


def test_pods_of_jobs_are_reached_from_pods_of_jobs_in_their_namespace_only() -> None:
    [policy] = of_kind(objects(NAMESPACE), "NetworkPolicy")
    spec = policy["spec"]
    of_a_job = {names.LABEL_JOB: "gpt", names.LABEL_ROLE: names.HEAD}
    assert policy["metadata"]["namespace"] == "training"
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert selects(spec["podSelector"], of_a_job)
    [entry] = spec["ingress"]
    assert entry.keys() == {"from"}
    for peer in entry["from"]:
        assert peer.keys() == {"podSelector"}, "a peer without namespaceSelector is in the policy's own namespace"
        assert selects(peer["podSelector"], of_a_job)
        assert not selects(peer["podSelector"], {"app": "somebody else"})


@pytest.mark.parametrize("folder", [BASE, NAMESPACE])
def test_what_leaves_for_anywhere_is_dns_and_tls_only(folder: str) -> None:
    """Port 80, where the clouds' metadata services hand out credentials, is not among them."""
    [policy] = of_kind(objects(folder), "NetworkPolicy")
    anywhere = [port for entry in policy["spec"]["egress"] if "to" not in entry for port in entry["ports"]]
    assert {(port["protocol"], port["port"]) for port in anywhere} == {("UDP", 53), ("TCP", 53), ("TCP", 443), ("TCP", 6443)}


def test_the_operator_is_reached_by_nobody() -> None:
    [policy] = of_kind(objects(BASE), "NetworkPolicy")
    [operator] = of_kind(objects(BASE), "Deployment")
    assert selects(policy["spec"]["podSelector"], operator["spec"]["template"]["metadata"]["labels"])
    assert not policy["spec"].get("ingress")
    assert "Ingress" in policy["spec"]["policyTypes"]


# ------------------------------------------------------------------------------------------------------------------ words


def test_every_folder_of_the_manifests_is_in_the_readme() -> None:
    readme = (MANIFESTS / "README.md").read_text()
    for folder in FOLDERS:
        if folder.startswith("manifests/"):
            assert f"`{folder.removeprefix('manifests/')}`" in readme, folder


def test_no_manifest_names_a_registry() -> None:
    for path in [*MANIFESTS.rglob("*.yaml"), *EXAMPLES.rglob("*.yaml"), ROOT / "Dockerfile"]:
        assert not re.search(r"\b(docker\.io|ghcr\.io|quay\.io|gcr\.io|nvcr\.io)\b", path.read_text()), path


def test_the_documentation_tells_every_rule_of_every_role() -> None:
    told = (ROOT / "docs/kubernetes.md").read_text()
    for name, rule in rules(*ROLES):
        words = f"{', '.join(rule['resources'])}: {' '.join(rule['verbs'])}"
        assert re.search(rf"[ ;]{re.escape(words)}( \\||;|\\.)", told), f"{name}: {words}"
