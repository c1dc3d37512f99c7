# ruff: noqa: F811  the undisturbed run is a fixture that lies elsewhere
"""A whole job in pods: applied with kubectl, run by the operator, and kept alive through what Kubernetes does to pods and nodes.

The bits of the result are held against one rank that trained alone, without Ray and without Kubernetes. All of it is in one file,
and so in one process: two such jobs at once would fight for a small machine, and these have the clocks that people know.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from orchestrator.adapters.kube import names
from tests.chaos.conftest import Calm, calm  # noqa: F401
from tests.kube.api import now
from tests.kube.cli import Place
from tests.kube.live import PATIENT, STEPS, LiveJob, conditions, leaving, running
from tests.kube.site import Site

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

Figure = Callable[[str, float], None]
AWAY_S: Final = 60.0


@pytest.fixture
def job(site: Site) -> Iterator[LiveJob]:
    """A job to come, in a namespace of its own; afterwards it is gone, and nothing of it is left."""
    site.start_operator()
    made = LiveJob(site)
    yield made
    site.restore()
    made.delete()


def test_two_nodes_are_lost_one_after_the_other(job: LiveJob, site: Site, calm: Calm, figure: Figure) -> None:
    alone = calm(STEPS)
    job.begin(steps=STEPS)
    started = job.reach(10)
    assert (started["phase"], started["ranks"]) == ("Running", 4)
    told = job.until(lambda: job.conditions, lambda c: c.get("PodsReady") == "True", what="all pods are ready")
    wanted = {"Accepted": "True", "PodsReady": "True", "HeadReady": "True", "Training": "True", "Degraded": "False"}
    assert {k: told[k] for k in wanted} == wanted

    # The first: the only pod there has a rank, and a spare waits.
    first = job.alone()
    before, epoch = job.pods(), job.status["epoch"]
    (lost,) = job.pods_on(first)
    off_s = time.monotonic()
    site.power_off(first)
    job.until(lambda: job.told(f"epoch {epoch + 1} runs"), bool, what="the spare is at work")
    figure("swap_seconds", time.monotonic() - off_s)
    kept = {n: p["metadata"]["uid"] for n, p in before.items() if n != lost}
    after = job.pods()
    assert {n: after[n]["metadata"]["uid"] for n in kept} == kept, "the survivors' pods are the same"

    # Kubernetes gives the node up, which cannot say that its pod has ended: another pod has come meanwhile.
    labels = before[lost]["metadata"]["labels"]
    role, ordinal, incarnation = (labels[k] for k in (names.LABEL_ROLE, names.LABEL_ORDINAL, names.LABEL_INCARNATION))
    heir = names.pod_name(job.name, role=role, ordinal=int(ordinal), incarnation=int(incarnation) + 1)
    job.until(lambda: running(job.pods()), lambda pods: heir in pods, what=f"{lost} is replaced by {heir}")
    assert leaving(job.pods()[lost]), "it does not end, for nobody is there to end it"
    again = job.until(lambda: job.status, lambda s: s.get("spares") == 1, what="there is a spare again")
    assert (again["stepsLost"], again["phase"]) == (0, "Running")

    # The second: with two pods on it, more than there are spares; the operator's new pods bring the job back.
    site.power_on(first)
    second = next(n for n in site.nodes if n != first and len(job.pods_on(n)) > 1)
    site.power_off(second)
    job.until(
        lambda: job.status, lambda s: (s["phase"], conditions(s)["Degraded"]) == ("Recovering", "True"), what="ranks are missing"
    )
    job.until(lambda: job.told(f"epoch {epoch + 2} runs"), bool, what="the job trains without the second node")

    job.hurry()
    end = job.finish()
    assert end["digest"] == alone.digest
    assert (end["stepsLost"], end["ranks"], end["progress"]) == (0, 4, "100%")
    assert (job.conditions["Succeeded"], job.conditions["Failed"]) == ("True", "False")
    events = job.events()
    assert [e["reason"] for e in events][-1] == "JobSucceeded"
    assert "WorkerLost" in {e["reason"] for e in events if e["type"] == "Warning"}
    described = job.kubectl("describe", "trainingjob", job.name)
    assert f"{heir} takes the place of {lost}" in described
    assert "WorkerLost" in described
    said = [e["message"] for e in events]
    ran = [next(i for i, words in enumerate(said) if f"epoch {n} runs" in words) for n in (epoch, epoch + 1, epoch + 2)]
    bad = [i for i, e in enumerate(events) if e["type"] == "Warning"]
    assert ran == sorted(ran)
    assert all([i for i in bad if a < i < b] for a, b in itertools.pairwise(ran)), "each loss is told before its recovery"


def test_a_drained_node_hands_its_shard_over_and_nothing_counts_as_failure(
    job: LiveJob, site: Site, calm: Calm, figure: Figure
) -> None:
    alone = calm(STEPS)
    job.begin(steps=STEPS, detect_within=PATIENT)
    job.reach(10)
    node = job.alone()
    (gone,), epoch = job.pods_on(node), job.status["epoch"]
    site.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
    drained = now()
    assert gone not in job.pods()
    assert job.status["failures"] == 0
    ran = job.until(lambda: job.told(f"epoch {epoch + 1} runs"), bool, what="the shard is handed over")
    assert ran <= drained, "the shard was handed over before the pod went"

    job.hurry()
    end = job.finish()
    assert end["digest"] == alone.digest
    figure("drain_steps_lost", end["stepsLost"])
    figure("drain_failures", end["failures"])
    assert (end["stepsLost"], end["failures"]) == (0, 0)
    assert [e["message"] for e in job.events() if e["type"] == "Warning"] == []


def test_training_goes_on_while_the_api_server_is_away(job: LiveJob, site: Site, calm: Calm, figure: Figure) -> None:
    job.begin(steps=STEPS, detect_within=PATIENT)
    before = job.reach(10)
    pods = {n: p["metadata"]["uid"] for n, p in job.pods().items()}
    site.stop_api()
    time.sleep(AWAY_S)  # the claim is about this long
    back = now()
    site.start_api()
    after = job.until(lambda: job.status, lambda s: s["lastReport"] >= back, what="the status catches up")
    assert after["step"] >= before["step"] + 30, "it trained meanwhile"
    figure("api_away_seconds", AWAY_S)
    figure("api_away_steps", after["step"] - before["step"])
    assert {n: p["metadata"]["uid"] for n, p in job.pods().items() if not leaving(p)} == pods, "no pod was replaced"
    job.hurry()
    end = job.finish()
    assert end["digest"] == calm(STEPS).digest
    assert (end["stepsLost"], end["recoveries"], end["epoch"]) == (0, 0, 1), "nothing was restarted"
    assert job.events()[-1]["reason"] == "JobSucceeded"


def test_workers_train_on_while_head_and_operator_are_lost(job: LiveJob, site: Site, calm: Calm) -> None:
    job.begin(steps=STEPS, detect_within=PATIENT)
    job.reach(10)
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
    job.hurry()
    end = job.finish()
    assert end["digest"] == calm(STEPS).digest
    assert (end["stepsLost"], end["epoch"]) == (0, 1)


def test_the_command_line_alone_suffices_for_a_job_that_is_suspended(
    job: LiveJob, site: Site, calm: Calm, tmp_path: Path
) -> None:
    place = Place(site, job.namespace, folder=tmp_path)
    share = {"volumes": [{"claim": site.share(job.namespace), "path": "/checkpoints"}]}
    saved = {"checkpoint": Path("/checkpoints/gpt"), "checkpoint_every": 50}
    asked = job.manifest(steps=STEPS, detect_within=PATIENT, talk=True, kubernetes=share, **saved)
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(asked))
    with place.started("launch", str(file), "--wait") as launch, contextlib.ExitStack() as stack:
        there = ["get", "trainingjob", job.name, "-o", "name"]
        job.until(lambda: job.kubectl(*there, check=False), lambda found: "NotFound" not in found, what="the job is made")
        lines = stack.enter_context(place.started("logs", job.name, "-f"))
        job.reach(10)
        assert place.cli("suspend", job.name, "--wait").exit_code == 0
        parked = job.until(lambda: job.status, lambda s: s["phase"] == "Suspended", what="suspended")
        assert job.conditions["Checkpointed"] == job.conditions["Suspended"] == "True"
        assert parked["checkpoint"] == parked["step"], "no step was trained after the one that is saved"
        assert [p for p in job.pods().values() if not leaving(p)] == []
        assert place.cli("resume", job.name).exit_code == 0
        job.reach(parked["step"] + 20)
        shown = place.cli("status", job.name)
        assert "Running" in shown.output
        assert json.loads(place.cli("status", job.name, "--json").stdout)["step"] >= parked["step"]
        job.hurry()
        end = job.finish()
        assert launch.end() == 0, launch.talk
        assert lines.end() == 0, lines.talk
    assert (end["digest"], end["stepsLost"]) == (calm(STEPS).digest, 0)
    spoken = [line.partition("] step ")[2] for line in lines.out.splitlines() if line.startswith("[rank ")]
    assert set(map(str, range(1, STEPS + 1))) <= set(spoken), "each step is spoken of, by whichever pod had the head"
    told = place.cli("events", job.name)
    assert told.exit_code == 0
    assert "job succeeded" in told.output
    assert place.cli("down", job.name, "--wait").exit_code == 0
    assert "NotFound" in job.kubectl("get", "trainingjob", job.name, check=False)
