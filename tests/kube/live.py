"""One TrainingJob on a cluster whose pods really run, seen as a person with kubectl sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from orchestrator.adapters.kube import names
from orchestrator.spec.training_job import training_job
from tests.kube.site import Site
from tests.world.jobs import document

T = TypeVar("T")
Object = dict[str, Any]
Pods = dict[str, Object]  # by name

LIMIT_S: Final = 300.0
END_LIMIT_S: Final = 900.0
POLL_S: Final = 0.2
HURRY: Final = "hurry"
STEPS: Final = 200  # slowly, two minutes and more
PATIENT: Final = "10s"  # detect_within of jobs in which nobody falls silent: only the machine may be slow


class LiveJob:
    """`begin` makes it; the rest looks at it. Nothing here knows more than the API server says."""

    def __init__(self, site: Site, *, name: str = "gpt") -> None:
        self.site = site
        self.name = name
        self.namespace = site.namespace()

    def kubectl(self, *argv: str, input: str | None = None, check: bool = True) -> str:
        """In the job's namespace."""
        return self.site.kubectl("-n", self.namespace, *argv, input=input, check=check)

    def manifest(self, *, kubernetes: Mapping[str, Any] | None = None, **settings: Any) -> Object:
        """The TrainingJob: four ranks and a spare, one pod each, with the head beside the control plane."""
        slow = {"pace_ms": self.site.pace_ms, "hurry_host": HURRY}
        asked = document(self.name, **{"nodes": 4, "spares": 1, "zero": 1, **slow, **settings})
        place = {"image": self.site.image, "env": self.site.job_env, "head": self.site.head_placement, **(kubernetes or {})}
        return training_job(json.dumps({**asked, "kubernetes": place}), namespace=self.namespace)

    def begin(self, **settings: Any) -> None:
        """`kubectl apply`."""
        self.kubectl("apply", "-f", "-", input=json.dumps(self.manifest(**settings)))

    def hurry(self) -> None:
        """It trains slowly, so that nothing is missed; from now on it does not: pods learn the name of a Service."""
        self.kubectl("create", "service", "clusterip", HURRY, "--tcp=1")

    # ---- what kubectl says of it

    @property
    def object(self) -> Object:
        """The TrainingJob now."""
        return dict(json.loads(self.kubectl("get", "trainingjob", self.name, "-o", "json")))

    @property
    def status(self) -> Object:
        """Its status now."""
        return dict(self.object.get("status") or {})

    @property
    def conditions(self) -> dict[str, str]:
        """Type -> status."""
        return conditions(self.status)

    def pods(self, role: str = "") -> Pods:
        """Its pods, or those of one role."""
        selector = f"{names.LABEL_JOB}={self.name}" + (f",{names.LABEL_ROLE}={role}" if role else "")
        found = json.loads(self.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        return {p["metadata"]["name"]: p for p in found}

    def events(self) -> list[Object]:
        """The agent's, in the order of the journal."""
        found = json.loads(self.kubectl("get", "events", "-o", "json"))["items"]
        ours = [e for e in found if e.get("reportingComponent") == names.AGENT and e["involvedObject"]["name"] == self.name]
        return sorted(ours, key=lambda e: int(e["metadata"]["name"].rpartition(".")[2]))

    def told(self, words: str) -> str:
        """When the first thing happened of which an Event says so, as its time is written; empty where none does."""
        return next((str(e["firstTimestamp"]) for e in self.events() if words in e["message"]), "")

    def alone(self) -> str:
        """A node whose only pod of the job has a rank, all pods being ready. The scheduler gives three nodes two pods, two, one;
        where that one is the spare, a rank is first moved to it, by deleting its pod."""
        self.until(lambda: self.conditions, lambda c: c.get("PodsReady") == "True", what="all pods are ready")
        if not (found := self._alone()):
            epoch, seats = self.status["epoch"], self.status["seats"]
            self.kubectl("delete", "pod", seats[0], "--wait=false")
            self.until(lambda: self.status, lambda s: s["epoch"] > epoch and s["spares"] == 1, what="a rank moves, a spare comes")
            self.until(lambda: self.pods(), lambda pods: len(pods) == len(running(pods)), what="the pod is gone, all are ready")
            found = self._alone()
        assert found, f"no node has one rank alone\n{self.story()}"
        return found

    def _alone(self) -> str:
        on: dict[str, list[str]] = {}
        for name, pod in self.pods().items():
            if not leaving(pod):
                on.setdefault(pod["spec"]["nodeName"], []).append(name)
        seats = self.status["seats"]
        return min((node for node, pods in on.items() if len(pods) == 1 and pods[0] in seats), default="")

    def pods_on(self, node: str) -> list[str]:
        """The pods of the job there that are not on their way out."""
        return sorted(n for n, p in self.pods().items() if p["spec"].get("nodeName") == node and not leaving(p))

    # ---- waiting

    def until(self, look: Callable[[], T], wanted: Callable[[T], bool], *, what: str, limit_s: float = LIMIT_S) -> T:
        """What is seen, once it is as wanted; AssertionError with the whole story otherwise."""
        due_s = time.monotonic() + limit_s
        while not wanted(seen := look()):
            assert time.monotonic() < due_s, f"{what}: not within {limit_s} s\n{self.story()}"
            time.sleep(POLL_S)
        return seen

    def reach(self, step: int) -> Object:
        """The status once this step is committed."""
        return self.until(lambda: self.status, lambda s: s.get("step", 0) >= step, what=f"step {step}")

    def finish(self) -> Object:
        """The status at the end, which must be a good one."""
        ended = ("Succeeded", "Failed", "Cancelled")
        end = self.until(
            lambda: self.status, lambda s: s.get("phase") in ended and "completionTime" in s, what="the end", limit_s=END_LIMIT_S
        )
        assert end["phase"] == "Succeeded", self.story()
        return end

    def delete(self) -> None:
        """`kubectl delete`; nothing of it may be left."""
        self.kubectl("delete", "trainingjob", self.name, "--ignore-not-found", "--timeout=120s")
        kinds = "pods,services,secrets,persistentvolumeclaims,poddisruptionbudgets"
        left = ["get", kinds, "-l", f"{names.LABEL_JOB}={self.name}", "-o", "name"]
        self.until(lambda: self.kubectl(*left).split(), lambda found: not found, what="nothing is left")

    def story(self) -> str:
        """All that helps to see why."""
        said = [self.kubectl("get", "trainingjob", self.name, "-o", "yaml", check=False)]
        said.append(self.kubectl("get", "pods", "-o", "wide", check=False))
        said.append(self.site.kubectl("get", "nodes", check=False))
        said += [f"{e['metadata']['name']} {e['type']} {e['reason']}: {e['message']}" for e in self.events()]
        said.append(self.kubectl("get", "events", check=False))
        head = sorted(self.pods(names.HEAD))[-1:]
        for container in (names.HEAD_CONTAINER, names.AGENT_CONTAINER):
            said += [f"---- {p} {container}\n{self.kubectl('logs', p, '-c', container, '--tail=40', check=False)}" for p in head]
        said.append(f"---- operator\n{self.site.operator_log()}")
        return "\n".join(said)


def conditions(status: Object) -> dict[str, str]:
    """Type -> status."""
    return {c["type"]: c["status"] for c in status.get("conditions") or ()}


def leaving(pod: Object) -> bool:
    """Whether it is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def running(pods: Pods) -> Pods:
    """Those that are ready and stay."""
    return {
        n: p
        for n, p in pods.items()
        if not leaving(p)
        and any(c["type"] == "Ready" and c["status"] == "True" for c in p.get("status", {}).get("conditions") or ())
    }
