"""A job among the objects of a toy API server: `turn` looks, decides and does, as the operator does, without any machine.

Pods are what the operator made of them plus what the test says has happened to them; the clock stands unless it is moved.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.desired import Newest
from orchestrator.adapters.kube.events import timestamp
from orchestrator.adapters.kube.observed import pod_facts
from orchestrator.adapters.kube.resources import BUDGETS_BETA, CLAIMS, POD_GROUPS, PODS, RAY_CLUSTERS, SERVICES, Resource
from orchestrator.apps.operator.actions import (
    Apply,
    Create,
    Decision,
    Delete,
    DeleteJob,
    DropTokens,
    MakeTokens,
    Say,
    SetFinalizers,
)
from orchestrator.apps.operator.observation import Observed, Served, leads_to, read_spec, remember, remember_made
from orchestrator.apps.operator.reconcile import decide
from orchestrator.apps.operator.removal import excuse
from orchestrator.spec.training_job import training_job
from tests.world.jobs import document

Object = dict[str, Any]
BEGIN = datetime(2026, 11, 29, 9, 0, tzinfo=UTC)
SERVED = Served(budgets=BUDGETS_BETA, kuberay=False, kueue=False, volcano=False)
STORED: tuple[Resource, ...] = (PODS, CLAIMS, SERVICES, BUDGETS_BETA, POD_GROUPS, RAY_CLUSTERS)


def manifest(*, kubernetes: Object | None = None, **settings: Any) -> Object:
    """A TrainingJob `j` of two nodes and a spare."""
    import json

    asked = document("j", **{"nodes": 2, "spares": 1, **settings})
    return training_job(json.dumps({**asked, "kubernetes": {"image": "x:1", **(kubernetes or {})}}), namespace="n")


@dataclass
class Toy:
    """`turn` is one turn of the operator; `log` is all that it has done, as text."""

    obj: Object
    served: Served = SERVED
    now: datetime = BEGIN
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)  # (kind, name)
    answering: set[str] = field(default_factory=lambda: {"a", "b", "c"})
    highest: dict[tuple[str, int], Newest] = field(default_factory=dict)
    tokens: int = 0
    log: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    again_s: float | None = None
    gone: bool = False

    @classmethod
    def of(cls, *, served: Served = SERVED, **settings: Any) -> Toy:
        """With a new TrainingJob."""
        made = manifest(**settings)
        made["metadata"] |= {"uid": "u", "generation": 1, "resourceVersion": "1"}
        return cls(obj=made, served=served)

    # ---- the operator's turn

    def turn(self, times: int = 1) -> Toy:
        """Look, decide, do; as often as asked."""
        for _ in range(times):
            seen = self.seen()
            decision = decide(seen, self.now)
            self.again_s = decision.again_s
            excuse(self.highest, seen, decision.actions)
            self._do(decision)
        return self

    def seen(self) -> Observed:
        """What the operator observes."""
        for pod in map(pod_facts, self.of_kind(PODS)):
            remember(self.highest, pod)
        reading = read_spec(self.obj)
        clusters = self.of_kind(RAY_CLUSTERS)
        return Observed(
            obj=copy.deepcopy(self.obj),
            target=reading.target,
            edited=reading.edited,
            suspend=reading.suspend,
            pods=tuple(pod_facts(pod) for pod in self.of_kind(PODS)),
            highest=dict(self.highest),
            answering=frozenset(self.answering),
            claims={o["metadata"]["name"]: "deletionTimestamp" in o["metadata"] for o in self.of_kind(CLAIMS)},
            services={o["metadata"]["name"]: leads_to(o) for o in self.of_kind(SERVICES)},
            budgets={o["metadata"]["name"]: o["spec"]["minAvailable"] for o in self.of_kind(BUDGETS_BETA)},
            pod_groups={o["metadata"]["name"]: o["spec"]["minMember"] for o in self.of_kind(POD_GROUPS)},
            ray_cluster=clusters[0] if clusters else None,
            served=self.served,
        )

    def _do(self, decision: Decision) -> None:
        for action in decision.actions:
            match action:
                case SetFinalizers(finalizers):
                    self.obj["metadata"]["finalizers"] = list(finalizers)
                    self.log.append(f"finalizers {','.join(finalizers) or '-'}")
                    self.gone = not finalizers and "deletionTimestamp" in self.obj["metadata"]
                case MakeTokens():
                    self.tokens += 1
                    self.log.append("tokens")
                case DropTokens():
                    self.log.append("no tokens")
                case Create(resource, obj):
                    assert (resource.kind, action.name) not in self.objects, f"{action.name} is there already"
                    self._store(resource, obj)
                    if resource is PODS:
                        remember_made(self.highest, obj, now=self.now)
                case Apply(resource, obj):
                    self._store(resource, obj)
                case Delete():
                    self._delete(action)
                case DeleteJob():
                    self.log.append("delete job")
                    self.obj["metadata"].setdefault("deletionTimestamp", timestamp(self.now))
                case Say():
                    self.said.append(f"{action.reason}: {action.message}")
        self._end_claims()
        if decision.draft is not None:
            kept = {k: v for k, v in self.status.items() if k in self.agents}
            mine = decision.draft.content()
            theirs = [c for c in self.status.get("conditions", []) if c["type"] in self.agents_conditions]
            own = {c["type"] for c in mine["conditions"]}
            conditions = [*mine.pop("conditions"), *(c for c in theirs if c["type"] not in own)]
            if "phase" in mine:
                self.agents -= {"phase", "reason", "message"}
            self.obj["status"] = {**kept, **mine, "conditions": conditions}
            self.obj["metadata"]["managedFields"] = [
                {"manager": names.AGENT if "phase" in self.agents else names.OPERATOR, "fieldsV1": {"f:status": {"f:phase": {}}}}
            ]

    def _store(self, resource: Resource, obj: Object) -> None:
        made = copy.deepcopy(obj)
        name = made["metadata"]["name"]
        made["metadata"] |= {"uid": f"uid-{name}-{len(self.log)}", "creationTimestamp": timestamp(self.now)}
        if self.served.kueue and "kueue.x-k8s.io/queue-name" in made["metadata"]["labels"]:
            made["metadata"]["labels"]["kueue.x-k8s.io/managed"] = "true"  # Kueue's webhook
        self.objects[resource.kind, name] = made
        self.log.append(f"+{name}" if resource is PODS else f"+{resource.kind} {name}")

    def _delete(self, action: Delete) -> None:
        found = self.objects.get((action.resource.kind, action.name))
        if found is None:
            return
        assert action.uid in ("", found["metadata"]["uid"])
        self.log.append(f"-{action.name}{' by force' if action.force else ''}")
        if action.resource is PODS and found["spec"].get("nodeName") and not action.force:
            grace_s = found["spec"]["terminationGracePeriodSeconds"]
            self.asked_to_go(action.name, grace_s=grace_s)
        elif action.resource is CLAIMS and self.pods:  # Kubernetes keeps it while a pod uses it
            found["metadata"]["deletionTimestamp"] = timestamp(self.now)
        else:
            del self.objects[action.resource.kind, action.name]

    # ---- what happens

    agents: set[str] = field(default_factory=set)  # fields of the status that the agent wrote
    agents_conditions: set[str] = field(default_factory=set)

    def agent_says(self, phase: str, **conditions: str) -> None:
        """The agent writes the status; conditions by type."""
        fields = {"phase": phase, "reason": phase, "message": "said by the agent"}
        self.agents |= set(fields)
        self.agents_conditions |= set(conditions)
        others = [c for c in self.status.get("conditions", []) if c["type"] not in conditions]
        generation = self.obj["metadata"]["generation"]
        made = [
            {"type": k, "status": v, "reason": "R", "message": "m", "observedGeneration": generation}
            for k, v in conditions.items()
        ]
        self.obj["status"] = {**self.status, **fields, "conditions": [*others, *made]}
        self.obj["metadata"]["managedFields"] = [{"manager": names.AGENT, "fieldsV1": {"f:status": {"f:phase": {}}}}]

    def agent_submits(self) -> Toy:
        """The agent writes down with what spec the job is submitted."""
        self.agents.add("submitted")
        self.obj["status"] = {**self.status, "submitted": copy.deepcopy(self.obj["spec"])}
        return self

    def agent_scales(self, nodes: int, *, refused: int | None = None) -> Toy:
        """The agent says on how many nodes the supervisor trains, and on how many it will not."""
        self.agents |= {"nodes", "nodesRefused"}
        status = {key: value for key, value in self.status.items() if key != "nodesRefused"}
        self.obj["status"] = {**status, "nodes": nodes, **({} if refused is None else {"nodesRefused": refused})}
        return self

    def pods_run(self, *pods: str, node: str = "a") -> Toy:
        """These, or all that have no node yet, run on a node and are ready."""
        for name in pods or [n for n in self.pods if not self.pod(n)["spec"].get("nodeName")]:
            self.pod(name)["spec"]["nodeName"] = node
            self.pod(name)["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        return self

    def unready(self, name: str) -> None:
        """Its node says no more of it."""
        self.pod(name)["status"]["conditions"] = [{"type": "Ready", "status": "False"}]

    def fails(self, name: str, *, after_s: float = 0) -> None:
        """It ends by itself, this long after it was made."""
        self.pass_s(after_s)
        ended = {
            "name": "ray-worker",
            "state": {"terminated": {"exitCode": 4, "reason": "Error", "finishedAt": timestamp(self.now)}},
        }
        self.pod(name)["status"] = {"phase": "Failed", "containerStatuses": [ended]}

    def asked_to_go(self, name: str, *, grace_s: int = 30) -> None:
        """Its deletion begins."""
        due = timestamp(self.now + timedelta(seconds=grace_s))
        self.pod(name)["metadata"] |= {"deletionTimestamp": due, "deletionGracePeriodSeconds": grace_s}

    def winds_up(self) -> Toy:
        """A turn, then what was asked to go ends, and the same for what that was waiting for: the head goes last."""
        for _ in range(2):
            self.turn().ends()
        return self

    def ends(self, *pods: str) -> None:
        """Pods that were asked to go are gone: these, or all."""
        for name in pods or [n for n in self.pods if "deletionTimestamp" in self.pod(n)["metadata"]]:
            del self.objects["Pod", name]
        self._end_claims()

    def _end_claims(self) -> None:
        for key in [key for key, obj in self.objects.items() if key[0] == CLAIMS.kind and "deletionTimestamp" in obj["metadata"]]:
            if not self.pods:
                del self.objects[key]

    def change(self, *, nodes: int | None = None, suspend: bool | None = None, **sections: Object) -> Toy:
        """Edit the spec; of sections the keys that are given."""
        self.obj["metadata"]["generation"] += 1
        for section, keys in sections.items():
            self.obj["spec"][section] = {**self.obj["spec"].get(section, {}), **keys}
        if nodes is not None:
            self.obj["spec"]["cluster"]["nodes"] = nodes
        if suspend is not None:
            self.obj["spec"]["suspend"] = suspend
        return self

    def delete(self) -> Toy:
        """`kubectl delete`."""
        self.obj["metadata"]["deletionTimestamp"] = timestamp(self.now)
        return self

    def pass_s(self, seconds: float) -> Toy:
        """Time goes by."""
        self.now += timedelta(seconds=seconds)
        return self

    # ---- what there is

    @property
    def status(self) -> Object:
        """Of the TrainingJob."""
        return dict(self.obj.get("status") or {})

    @property
    def phase(self) -> str:
        """phase/reason."""
        return f"{self.status.get('phase')}/{self.status.get('reason')}"

    def condition(self, kind: str) -> str:
        """status/reason; empty where there is no such condition."""
        return next((f"{c['status']}/{c['reason']}" for c in self.status.get("conditions", []) if c["type"] == kind), "")

    @property
    def pods(self) -> list[str]:
        """Names, in the order they were made."""
        return [name for kind, name in self.objects if kind == "Pod"]

    @property
    def live(self) -> list[str]:
        """Names of those that are neither over nor going."""
        return [pod.name for pod in self.seen().pods if pod.live]

    def pod(self, name: str) -> Object:
        """One of them."""
        return self.objects["Pod", name]

    def of_kind(self, resource: Resource) -> list[Object]:
        """All objects of a kind."""
        return [obj for (kind, _), obj in self.objects.items() if kind == resource.kind]
