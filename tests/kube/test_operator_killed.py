"""Jobs are made, run, lose a pod, end and are deleted while their operator is killed twenty times, at moments drawn from a seed.

A moment is a number of changes that an operator has asked the API server for since the last kill, read from the server's own
audit log, so a kill falls between any two of its actions on a slow machine as on a fast one. The log may show the last changes
of the killed one only after the kill: then the next is killed early, but never before its first word. Whatever the moment, the
operator after it must find its way from what is there. Every change of every pod is watched meanwhile.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.access import Options, connect
from orchestrator.adapters.kube.follow import Changed, Listed, Removed, follow
from orchestrator.adapters.kube.observed import PodFacts, pod_facts
from orchestrator.adapters.kube.resources import PODS, SECRETS
from tests.kube.control_plane import ControlPlane
from tests.kube.operators import Operator, Yard
from tests.kube.rights import Account, Grants, Right, make_account

pytestmark = pytest.mark.timeout(1800)

KILLS: Final = 20
SEED: Final = 20
CHANGES_MAX: Final = 8  # between two kills; a life of a job takes about forty
ENDS: Final = ("Succeeded", "Failed", "Cancelled")
FIRST_WORD: Final = "looking after"
CHANGING: Final = ("create", "patch", "update", "delete")
ASIDE: Final = ("leases", "events")


def test_an_operator_that_is_killed_twenty_times_leaves_no_orphan_no_twin_and_the_right_status(
    plane: ControlPlane, kube_root: Path, figure: Callable[[str, float], None]
) -> None:
    root = kube_root / "killed"
    root.mkdir()
    with Yard(plane) as yard:
        account = make_account(plane, namespace=yard.namespace, name="anything", grants=Grants(cluster=[Right("*", "*", "*")]))
        operator = Operator(plane, root=root, namespace=yard.namespace, kubeconfig=account.kubeconfig)
        with operator, Twins(plane, yard.namespace) as twins, Killer(operator, plane.audit_log, account) as killer:
            lives = 0
            while killer.kills < KILLS or not lives:
                live(yard, f"j{lives}", end=ENDS[lives % len(ENDS)])
                lives += 1
                assert killer.trouble is None, killer.trouble
            live(yard, f"j{lives}", end="Succeeded")  # one more, in peace
            lives += 1
        assert killer.trouble is None, killer.trouble
        assert killer.kills == KILLS
        assert operator.said.count(FIRST_WORD) == KILLS + 1, operator.said
        assert "Traceback" not in operator.said, operator.said
        assert twins.found == [], f"seed {SEED}, kills after {killer.moments} changes: {twins.found}\n{operator.said}"
        assert twins.changes > 10 * lives  # it has seen them
        for name in (f"j{n}" for n in range(lives)):
            assert yard.left(name) == [], operator.said
    figure("operator_kills", KILLS)


def live(yard: Yard, name: str, *, end: str) -> None:
    """One job from its making to its last trace, and what must be true on the way."""
    yard.submit(name)
    yard.until(lambda: yard.condition(name, "PodsReady"), "True/Ready", what=f"all pods of {name} are ready")
    assert len(yard.live(name)) == 4
    tokens = yard.api.get(SECRETS, names.token_secret(name), namespace=yard.namespace)
    yard.agent_says(name, "Running")
    worker = next(pod.name for pod in yard.pods(name) if pod.live and pod.role == names.WORKER)
    yard.hands.fail(worker)
    yard.until(
        lambda: (yard.condition(name, "PodsReady"), worker in [pod.name for pod in yard.pods(name)]),
        ("True/Ready", False),
        what=f"{worker} is replaced",
    )
    assert len(yard.live(name)) == 4
    assert yard.api.get(SECRETS, names.token_secret(name), namespace=yard.namespace) == tokens
    assert yard.phase(name) == "Running/Running"
    yard.agent_says(name, end, Succeeded=str(end == "Succeeded"))
    kept = [f"PersistentVolumeClaim/{names.head_claim(name)}", f"Secret/{names.token_secret(name)}"]
    yard.until(lambda: yard.left(name), kept, what=f"only the volume and the tokens of {name} are left")
    yard.until(lambda: yard.condition(name, "PodsReady"), "False/Finished")
    assert yard.phase(name) == f"{end}/{end}"
    assert "completionTime" in yard.status(name)
    yard.delete(name)
    yard.until(lambda: yard.job(name), None, what=f"{name} is gone")


class Killer(threading.Thread):
    """Kills the operator and starts it again, KILLS times. Use as a context."""

    def __init__(self, operator: Operator, audit_log: Path, account: Account) -> None:
        super().__init__(name="killer", daemon=True)
        self._operator = operator
        self._audit_log = audit_log
        self._user = account.user
        self._over = threading.Event()
        self.moments: list[int] = []
        self.kills = 0
        self.trouble: BaseException | None = None

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(60)

    def run(self) -> None:
        """Until it has done so."""
        drawn = random.Random(SEED)
        changes = self._changes()
        try:
            while self.kills < KILLS and not self._over.is_set():
                moment = drawn.randint(1, CHANGES_MAX)
                for _ in range(moment):
                    next(changes)
                self.moments.append(moment)
                self._until_it_speaks()
                self._operator.kill()
                self._operator.start()
                self.kills += 1
        except BaseException as error:
            self.trouble = error
            raise

    def _until_it_speaks(self) -> None:
        while self._operator.said.count(FIRST_WORD) <= self.kills:
            assert self._operator.lives, f"it ended by itself:\n{self._operator.said}"
            if self._over.wait(0.01):
                raise InterruptedError("the test is over")
        assert self._operator.lives, f"it ended by itself:\n{self._operator.said}"

    def _changes(self) -> Iterator[str]:
        """Each change of a job that the operator asks for, as it is answered."""
        with self._audit_log.open("rb") as log:
            log.seek(0, 2)
            rest = b""
            while not self._over.is_set():
                *lines, rest = (rest + log.read()).split(b"\n")
                for line in lines:
                    entry: dict[str, Any] = json.loads(line)
                    about = entry.get("objectRef") or {}
                    ours = entry["user"]["username"] == self._user and entry["verb"] in CHANGING
                    if ours and about.get("resource") not in ASIDE:
                        yield f"{entry['verb']} {about.get('resource')} {about.get('name')}"
                time.sleep(0.002)
            raise InterruptedError("the test is over")


class Twins(threading.Thread):
    """Watches every change of every pod for two that live in the same place. Use as a context."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        super().__init__(name="twins", daemon=True)
        self._access = connect(Options(kubeconfig=str(plane.kubeconfig)))
        self._path = PODS.path(namespace=namespace)
        self._over = threading.Event()
        self._pods: dict[str, PodFacts] = {}
        self._job: dict[str, str] = {}
        self.found: list[str] = []
        self.changes = 0

    def __enter__(self) -> Twins:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def run(self) -> None:
        """Until the end."""
        for news in follow(self._access, self._path, query={"labelSelector": names.LABEL_JOB}, stop=self._over):
            match news:
                case Listed(objects):
                    self._pods.clear()
                    for pod in objects:
                        self._note(dict(pod))
                case Changed(pod):
                    self._note(dict(pod))
                case Removed(pod):
                    self._pods.pop(pod["metadata"]["uid"], None)

    def _note(self, pod: dict[str, Any]) -> None:
        self.changes += 1
        facts = pod_facts(pod)
        self._pods[facts.uid] = facts
        self._job[facts.uid] = pod["metadata"]["labels"][names.LABEL_JOB]
        place = (self._job[facts.uid], facts.role, facts.ordinal)
        there = [p.name for p in self._pods.values() if p.live and (self._job[p.uid], p.role, p.ordinal) == place]
        if len(there) > 1:
            self.found.append(f"{place}: {there}")
