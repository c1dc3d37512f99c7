"""`logs -f --on kubernetes` through a real API server and kubelets: every line once, whatever breaks in between.

A pod stands in for a job's head: its container `agent` prints lines as the agent does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.kube import names
from tests.kube.agents import until
from tests.kube.cli import Place, installed
from tests.kube.site import Site

pytestmark = pytest.mark.timeout(300)

LINES = 60
SPEAK = f"""
import itertools, sys, time
print("agent: INFO the job is adopted", file=sys.stderr, flush=True)
for n in itertools.count():
    print(f"[rank {{n % 2}} gpt/w{{n % 2}}] line {{n}}", flush=True)
    time.sleep(0.02 if n < {LINES} else 0.5)
"""


def head(site: Site, number: int) -> dict[str, Any]:
    """A head pod that speaks."""
    labels = {names.LABEL_JOB: "gpt", names.LABEL_ROLE: names.HEAD, names.LABEL_INCARNATION: str(number)}
    agent = {
        "name": names.AGENT_CONTAINER,
        "image": site.image,
        "command": ["python", "-c", SPEAK],
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
    }
    secure = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [agent], "securityContext": secure, "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"gpt-head-{number}", "labels": labels}, "spec": spec}


def numbers(text: str) -> list[int]:
    """Of the lines, in their order."""
    return [int(line.rpartition(" ")[2]) for line in text.splitlines()]


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
        ranked = place.cli("logs", "gpt", "--rank", "1")
        assert ranked.exit_code == 0, ranked.output
        assert {n % 2 for n in numbers(ranked.stdout)} == {1}
        kubectl("delete", "pod", "gpt-head-1", "--wait=true")
        kubectl("create", "-f", "-", input=json.dumps(head(site, 2)))  # speaks of everything again, from the beginning
        seen = numbers(lines.out)[-1]
        lines.until(f"line {max(seen, LINES) + 10}\n")
        place.agent_says("gpt", phase="Succeeded", reason="Completed")
        kubectl("delete", "pod", "gpt-head-2", "--wait=true")
        assert lines.end() == 0
    told = numbers(lines.out)
    assert told == list(range(len(told)))
    over = place.cli("logs", "gpt")
    assert over.exit_code == 3
    assert "the pods of a job go when it is over" in over.stderr
    until(lambda: kubectl("get", "pods", "-o", "name"), lambda left: not left, what="no pod is left")
