"""`logs -f --on kubernetes` through a real API server and kubelets: every line once, whatever breaks in between.

A pod stands in for a job's head: its container `agent` prints lines as the agent does.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from typer.testing import Result

from orchestrator.adapters.kube import names
from tests.kube.agents import until
from tests.kube.cli import Place, installed
from tests.kube.site import Site
from tests.world.jobs import ROOT

LINES = 60
SPEAK = """
import itertools, sys, time
print("agent: INFO the job is adopted", file=sys.stderr, flush=True)
for n in itertools.count():
    print(f"[rank {n % 2} gpt/w{n % 2}] line {n}", flush=True)
    time.sleep(0.02 if n < int(sys.argv[1]) else 0.5)
"""


def head(site: Site, number: int, *, fast: int = LINES) -> dict[str, Any]:
    """A head pod that speaks: so many lines at once, then two in a second."""
    labels = {names.LABEL_JOB: "gpt", names.LABEL_ROLE: names.HEAD, names.LABEL_INCARNATION: str(number)}
    agent = {
        "name": names.AGENT_CONTAINER,
        "image": site.image,
        "command": ["python", "-c", SPEAK, str(fast)],
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
    }
    secure = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [agent], "securityContext": secure, "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"gpt-head-{number}", "labels": labels}, "spec": spec}


def numbers(text: str) -> list[int]:
    """Of the lines, in their order."""
    return [int(line.rpartition(" ")[2]) for line in text.splitlines()]


def person(place: Place, role: str) -> Path:
    """A kubeconfig of somebody who has a role of the cluster's own in the namespace."""
    kubectl = partial(place.plane.kubectl, "-n", place.namespace)
    kubectl("apply", "-f", str(ROOT / "manifests/base/user-roles.yaml"))
    kubectl("create", "serviceaccount", role)
    kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--serviceaccount={place.namespace}:{role}")
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))

    def written(token: str) -> str:
        return json.dumps({**config, "users": [{"name": user["name"], "user": {"token": token}} for user in config["users"]]})

    return place.kubeconfig_of(role, written)


def permitted(place: Place, *command: str, kubeconfig: Path) -> Result:
    """A command, once it is permitted: the roles are put together by a controller."""
    run = partial(place.cli, *command, kubeconfig=kubeconfig)
    return until(run, lambda done: " may not " not in done.stderr, what=f"{command} is permitted")


def test_every_line_is_shown_once_through_a_lost_api_server_and_another_head(site: Site, tmp_path: Path) -> None:
    installed(site)
    place = Place(site, site.namespace(), folder=tmp_path)
    place.launched("gpt")
    place.operator_says("gpt")

    def kubectl(*argv: str, input: str | None = None) -> str:
        return site.kubectl("-n", place.namespace, *argv, input=input)

    with place.started("logs", "gpt", "-f") as lines:
        lines.until("the head of job gpt is not up yet; waiting for it")
        kubectl("create", "-f", "-", input=json.dumps(head(site, 1)))
        lines.until(f"line {LINES}\n")
        site.stop_api()
        try:
            lines.until("trying again")
        finally:
            site.start_api()
        lines.until(f"line {LINES + 10}\n")
        for role in ("view", "edit"):
            theirs = person(place, role)
            for command in (("list",), ("status", "gpt"), ("events", "gpt")):
                assert permitted(place, *command, kubeconfig=theirs).exit_code == 0
            ranked = permitted(place, "logs", "gpt", "--rank", "1", kubeconfig=theirs)
            assert ranked.exit_code == 0, ranked.output
            assert {n % 2 for n in numbers(ranked.stdout)} == {1}
        kubectl("delete", "pod", "gpt-head-1", "--wait=true")
        seen = numbers(lines.out)[-1]
        kubectl("create", "-f", "-", input=json.dumps(head(site, 2, fast=seen)))  # speaks of all again, from the beginning
        lines.until(f"line {seen + 10}\n")
        place.agent_says("gpt", phase="Succeeded", reason="Completed")
        kubectl("delete", "pod", "gpt-head-2", "--wait=true")
        assert lines.end() == 0
    told = numbers(lines.out)
    assert told == list(range(len(told)))
    over = place.cli("logs", "gpt")
    assert over.exit_code == 3
    assert "the pods of a job go when it is over" in over.stderr
    until(lambda: kubectl("get", "pods", "-o", "name"), lambda left: not left, what="no pod is left")
