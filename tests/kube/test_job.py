# ruff: noqa: F811  the undisturbed run is a fixture that lies elsewhere
"""A whole job in pods: applied with kubectl, run by the operator, and kept alive through what Kubernetes does to pods and nodes.

The bits of the result are held against one rank that trained alone, without Ray and without Kubernetes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from orchestrator.adapters.kube import names
from tests.chaos.conftest import Calm, calm  # noqa: F401
from tests.kube.live import LiveJob, leaving, running
from tests.kube.site import Site

pytestmark = [pytest.mark.ray, pytest.mark.timeout(480)]

Figure = Callable[[str, float], None]
STEPS: Final = 300
AWAY_S: Final = 60.0


@pytest.fixture
def job(site: Site) -> Iterator[LiveJob]:
    """A job to come, in a namespace of its own; afterwards it is gone, and nothing of it is left."""
    site.start_operator()
    made = LiveJob(site)
    yield made
    site.restore()
    made.delete()


def test_a_lost_node_is_swapped_for_the_spare_and_its_pod_replaced(job: LiveJob, site: Site, calm: Calm, figure: Figure) -> None:
    alone = calm(STEPS)
    job.begin(steps=STEPS, pace_ms=80)
    started = job.reach(20)
    assert (started["phase"], started["ranks"], started["spares"]) == ("Running", 4, 1)
    assert {k: job.conditions[k] for k in ("Accepted", "PodsReady", "HeadReady", "Training", "Degraded")} == {
        "Accepted": "True",
        "PodsReady": "True",
        "HeadReady": "True",
        "Training": "True",
        "Degraded": "False",
    }
    node = job.alone()
    before, epoch = job.pods(), job.status["epoch"]
    (lost,) = job.pods_on(node)

    site.power_off(node)
    off_s = time.monotonic()
    job.until(lambda: job.told(f"epoch {epoch + 1} runs"), bool, what="the spare is at work", limit_s=60)
    figure("swap_seconds", time.monotonic() - off_s)

    kept = {n: p["metadata"]["uid"] for n, p in before.items() if n != lost}
    now = job.pods()
    assert {n: now[n]["metadata"]["uid"] for n in kept} == kept, "the survivors' pods are the same"
    ordinal = before[lost]["metadata"]["labels"][names.LABEL_ORDINAL]
    role, incarnation = (before[lost]["metadata"]["labels"][k] for k in (names.LABEL_ROLE, names.LABEL_INCARNATION))
    heir = names.pod_name(job.name, role=role, ordinal=int(ordinal), incarnation=int(incarnation) + 1)
    job.until(lambda: running(job.pods()), lambda pods: heir in pods, what=f"{lost} is replaced by {heir}")

    end = job.finish()
    assert end["digest"] == alone.digest
    assert (end["stepsLost"], end["epoch"], end["progress"]) == (0, epoch + 1, "100%")
    assert job.conditions["Succeeded"] == "True"
    events = job.events()
    story = [e["reason"] for e in events]
    lost_at = story.index("WorkerLost")
    assert [e["type"] for e in events].index("Warning") <= lost_at
    assert story[-1] == "JobSucceeded"
    told = [e["message"] for e in events]
    first, second = (next(i for i, words in enumerate(told) if f"epoch {n} runs" in words) for n in (epoch, epoch + 1))
    assert first < lost_at < second < len(story) - 1


def test_a_drained_node_hands_its_shard_over_and_nothing_counts_as_failure(job: LiveJob, site: Site, calm: Calm) -> None:
    alone = calm(STEPS)
    job.begin(steps=STEPS)
    job.reach(20)
    node = job.alone()
    (gone,), epoch = job.pods_on(node), job.status["epoch"]
    site.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
    assert gone not in job.pods()
    assert job.status["failures"] == 0
    assert job.told(f"epoch {epoch + 1} runs"), "the shard was handed over before the pod went"

    end = job.finish()
    assert end["digest"] == alone.digest
    assert (end["stepsLost"], end["failures"]) == (0, 0)
    assert [e["message"] for e in job.events() if e["type"] == "Warning"] == []


def test_training_goes_on_while_the_api_server_is_away(job: LiveJob, site: Site, calm: Calm) -> None:
    steps = 300
    job.begin(steps=steps, pace_ms=150)
    before = job.reach(10)
    pods = {n: p["metadata"]["uid"] for n, p in job.pods().items()}
    site.stop_api()
    time.sleep(AWAY_S)  # the claim is about this long
    site.start_api()
    after = job.until(lambda: job.status, lambda s: s.get("step", 0) > before["step"], what="the status catches up")
    assert after["step"] >= before["step"] + 50, "it trained meanwhile"
    end = job.finish()
    assert end["digest"] == calm(steps).digest
    assert (end["stepsLost"], end["recoveries"], end["epoch"]) == (0, 0, 1), "nothing was restarted"
    told = [e["message"] for e in job.events()]
    assert told == [e["message"] for e in sorted(job.events(), key=lambda e: e["metadata"]["name"])]
    assert {n: p["metadata"]["uid"] for n, p in job.pods().items() if n in pods and not leaving(p)}.items() <= pods.items()


def test_workers_train_on_while_head_and_operator_are_lost(job: LiveJob, site: Site, calm: Calm) -> None:
    job.begin(steps=STEPS, pace_ms=80)
    job.reach(20)
    workers = {n: p["metadata"]["uid"] for n, p in job.pods().items() if n not in job.pods(names.HEAD)}
    ((head, before),) = job.pods(names.HEAD).items()
    site.kill_operator()
    job.kubectl("delete", "pod", head, "--grace-period=0", "--force")
    uid = before["metadata"]["uid"]
    job.until(
        lambda: [p["metadata"]["uid"] for p in running(job.pods(names.HEAD)).values()],
        lambda found: len(found) == 1 and uid not in found,
        what="a new head",
    )
    kept = {n: p["metadata"]["uid"] for n, p in job.pods().items() if n in workers}
    assert kept == workers, "no worker's pod was replaced"
    job.until(lambda: job.told("a new supervisor replayed the journal"), bool, what="a new supervisor")
    assert job.status["step"] < STEPS, "it came while they trained"
    end = job.finish()
    assert end["digest"] == calm(STEPS).digest
    assert (end["stepsLost"], end["epoch"]) == (0, 1)
