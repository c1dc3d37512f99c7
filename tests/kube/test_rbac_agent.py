"""The agent's rights are the least set: with all it is refused nothing, and without any one of them something named breaks.

One job with a real supervisor is followed by several agents at once, each in a namespace of its own: one with the rights of the
manifests, the others with one right less. What they asked for is read in the API server's own record, its audit log.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest

from orchestrator.adapters.kube import names
from orchestrator.spec.training_job import from_training_job
from tests.kube.agents import Agent, Objects, until
from tests.kube.control_plane import ControlPlane
from tests.kube.rights import Account, Grants, Record, Right, existing_account, granted_to, installed, make_account, role
from tests.world.facts import at_step
from tests.world.jobs import ROOT, document
from tests.world.machines import Machines
from tests.world.processes import System

pytestmark = pytest.mark.timeout(1800)  # all of them follow the job before the first test

JOB: Final = "j"
NODE: Final = "rbac-agent"
BASE: Final = Grants(
    cluster=role("manifests/base", "ClusterRole", names.AGENT), namespaced=role("manifests/namespace", "Role", names.AGENT)
)
SIGN: Final = "FrequentKubeletRestart"  # a condition of a node that an agent speaks of and does nothing about


@dataclass(slots=True)
class Follower:
    """One agent, and what came of it."""

    objects: Objects
    account: Account
    agent: Agent
    record: Record
    status: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def said(self) -> str:
        """The agent's own words."""
        return self.agent.said


def follows(what: str, one: Follower) -> bool:
    """Whether an agent may hear of it all the time; an API server that is slow for a moment breaks no promise."""
    return not re.search(f"(following|cannot follow) {what}: .* may not ", one.said)


# What an agent is for. Each is true of a Follower with all rights.
PROMISES: Final[dict[str, Callable[[Follower], bool]]] = {
    "the end of the job is in the status": lambda f: f.status.get("phase") == "Cancelled",
    "decisions are told as events": lambda f: bool(f.events) and f.events[-1]["reason"] == "JobCancelled",
    "the job is followed": lambda f: follows("job", f),
    "pods are followed": lambda f: follows("pods", f),
    "nodes are followed": lambda f: follows("nodes", f),
    "a sign of a node is heeded": lambda f: "its kubelet restarts again and again" in f.said,
}
BREAKS: Final[dict[Right, str]] = {
    Right(names.GROUP, "trainingjobs", "list"): "the end of the job is in the status",
    Right(names.GROUP, "trainingjobs", "watch"): "the job is followed",
    Right(names.GROUP, "trainingjobs/status", "patch"): "the end of the job is in the status",
    Right("", "pods", "list"): "a sign of a node is heeded",
    Right("", "pods", "watch"): "pods are followed",
    Right("", "nodes", "list"): "a sign of a node is heeded",
    Right("", "nodes", "watch"): "nodes are followed",
    Right("", "events", "create"): "decisions are told as events",
}


def follower(plane: ControlPlane, root: Path, grants: Grants, *, supervisor: str) -> Follower:
    """A namespace with the job, a pod of it and an agent's account; the agent is not started yet."""
    objects = Objects(plane, plane.namespace("rbac-agent"))
    objects.submit(asked())
    objects.pod(JOB, ordinal=0, node=NODE, address="127.0.0.1")
    account = make_account(plane, namespace=objects.namespace, name=names.AGENT, grants=grants)
    agent = Agent(
        plane,
        root=root / objects.namespace,
        job=JOB,
        namespace=objects.namespace,
        supervisor=supervisor,
        token="t" * 43,
        kubeconfig=account.kubeconfig,
    )
    return Follower(objects, account, agent, Record(log=plane.audit_log, user=account.user))


def asked() -> dict[str, Any]:
    """A job that goes on until it is told to end."""
    return document(JOB, nodes=2, spares=0, steps=100_000, pace_ms=20, detect_within="10s")


def has_met_it(one: Follower, right: Right | None) -> bool:
    """Whether an agent has come as far as it can: everything is seen and told, or it was refused what it lacks."""
    used = one.record.read_again()
    if right is not None:
        return right in one.record.denied
    at_once = {right for right in BASE.rights if right.verb != "watch"}  # a watch is recorded when it ends
    return PROMISES["a sign of a node is heeded"](one) and used >= at_once


@pytest.fixture(scope="module")
def followers(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Right | None, Follower]]:
    """By the right that each lacks; None lacks nothing. All of them have seen the same job from its beginning to its end."""
    root = tmp_path_factory.mktemp("rbac-agent")
    shared = Objects(plane, "default")
    shared.install()
    shared.node(NODE, conditions={SIGN: "True"})
    yield asyncio.run(story(plane, root))
    shared.clear_nodes()


async def story(plane: ControlPlane, root: Path) -> dict[Right | None, Follower]:
    """Let all of them follow one job, cancel it when each has met what it lacks, and wait for the last report."""
    lacking: list[Right | None] = [None, *BASE.rights]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(len(lacking)) as threads, ExitStack() as agents:
        async with System(root / "system", machines=Machines()) as system:
            make = partial(follower, plane, root, supervisor=system.supervisor._endpoint)
            made = await asyncio.gather(
                *(loop.run_in_executor(threads, make, BASE if r is None else BASE.without(r)) for r in lacking)
            )
            found = dict(zip(lacking, made, strict=True))
            for one in made:
                agents.enter_context(one.agent)
            sent = await asyncio.to_thread(found[None].objects.submit, asked())
            job, _, _ = from_training_job(sent, base_dir=ROOT)
            await asyncio.to_thread(
                until,
                lambda: found[None].said,
                lambda said: "is submitted" in said or "is adopted" in said,
                what="the job is submitted",
            )
            await system.until(job, at_step(1))
            await asyncio.gather(*(loop.run_in_executor(threads, meet, one, right) for right, one in found.items()))
            await system.supervisor.service.cancel(JOB, who="test")
            await system.finish(job)
            await asyncio.to_thread(
                until, lambda: found[None].objects.status(JOB), lambda s: s.get("phase") == "Cancelled", what="the last report"
            )
            await asyncio.gather(*(loop.run_in_executor(threads, conclude, one) for one in made))
            await asyncio.to_thread(
                until, found[None].record.read_again, lambda used: used >= set(BASE.rights), what="the record is whole"
            )
    return found


def meet(one: Follower, right: Right | None) -> None:
    """Wait until it has come as far as it can."""
    try:
        until(lambda: has_met_it(one, right), bool, what=f"an agent without {right}" if right else "an agent")
    except AssertionError as error:
        raise AssertionError(f"{error}\nused: {sorted(map(str, one.record.used))}\n{one.said}") from None


def conclude(one: Follower) -> None:
    """End the agent and take down what came of it."""
    assert one.agent.end(signal.SIGTERM) == 0, one.said
    one.record.read()
    one.status, one.events = one.objects.status(JOB), one.objects.events()


# ------------------------------------------------------------------------------------------------------------ the tests


def test_with_the_rights_of_the_manifests_an_agent_keeps_its_promises(followers: dict[Right | None, Follower]) -> None:
    for promise, kept in PROMISES.items():
        assert kept(followers[None]), f"{promise}: {followers[None].said}"


def test_an_agent_is_refused_nothing_and_uses_all_that_it_may(followers: dict[Right | None, Follower]) -> None:
    record = followers[None].record
    assert record.denied == []
    assert record.used == set(BASE.rights)


def test_an_agent_asks_for_the_nodes_of_its_pods_and_for_no_others(
    followers: dict[Right | None, Follower], plane: ControlPlane
) -> None:
    user = followers[None].account.user
    entries = [entry for entry in map(json.loads, plane.audit_log.read_text().splitlines()) if entry["user"]["username"] == user]
    asked = [entry["requestURI"] for entry in entries if (entry.get("objectRef") or {}).get("resource") == "nodes"]
    assert {parse_qs(urlsplit(uri).query)["fieldSelector"][0] for uri in asked} == {f"metadata.name={NODE}"}


def test_every_right_has_a_promise_that_hangs_on_it() -> None:
    assert BREAKS.keys() == set(BASE.rights)


@pytest.mark.parametrize("right", BASE.rights, ids=str)
def test_without(right: Right, followers: dict[Right | None, Follower]) -> None:
    """One right less: the API server has refused exactly that one, and a promise is broken."""
    without = followers[right]
    assert set(without.record.denied) == {right}
    assert not PROMISES[BREAKS[right]](without), without.said


# ---------------------------------------------------------------------------------------------- as they are installed


def test_installed_accounts_hold_these_rights_and_workers_none(plane: ControlPlane) -> None:
    """What the manifests really bind, as the API server tells it to each account; everybody holds what `default` holds."""
    installed(plane, "manifests/base", "manifests/namespace")
    space = "training"
    anybody, agent, worker = (
        existing_account(plane, namespace=space, name=name) for name in ("default", names.AGENT, names.WORKER_ACCOUNT)
    )
    common = granted_to(anybody, namespace=space)
    wanted = common | set(BASE.rights)
    got = until(lambda: granted_to(agent, namespace=space), lambda got: got >= wanted, what="the rights are bound")
    assert got == wanted
    assert granted_to(worker, namespace=space) == common
    assert not {right for right in common if right.group in ("", names.GROUP)}, "`default` itself may do nothing to a job"
    elsewhere = granted_to(agent, namespace="default")
    assert elsewhere == common | set(BASE.cluster), "an agent's namespace is its own; only nodes it reads everywhere"
