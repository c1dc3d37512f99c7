"""What a storm's seed draws, and that the verdict sees what it is there to see."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench.storm_plan import KINDS, STEPS, draw_storm
from bench.storm_strikes import Harm, Weather
from bench.storm_verdict import NOTICE_S, Truth, Truths, Verdict, judge, overlooked, shown_as_well
from orchestrator.core.supervisor.events import DigestReported, RankFinished, StepCommitted, WorkerHello
from orchestrator.core.supervisor.state import CheckpointRef, JobPhase, Outcome, State, WorkerPhase
from orchestrator.runtime.ports import Record
from orchestrator.runtime.status_types import JobStatus
from tests.world.facts import Facts


def test_a_seed_draws_the_same_storm_and_thirty_have_every_kind() -> None:
    storms = [draw_storm(seed) for seed in range(30)]
    assert storms == [draw_storm(seed) for seed in range(30)]
    drawn = {s.kind for storm in storms for s in storm.strikes} | ({"corrupt"} if any(s.flips for s in storms) else set())
    assert drawn == set(KINDS)
    assert {s.shape for s in storms} == {"DP", "ZeRO-1", "ZeRO-3", "pipeline x data"}
    assert any(s.occasion != "step" for storm in storms for s in storm.strikes), "some strike in the middle of a recovery"
    assert all(storm.job(Path("/checkpoints")).train.steps == STEPS for storm in storms)


# ---- the verdict, of a run of two steps


def step(number: int, loss: float) -> StepCommitted:
    """A commit."""
    return StepCommitted(0, "j/w0", 1, number, loss, 1.0, 1.0, 0.1, 1.0, 1, False, loss)


def told(*, losses: tuple[float, ...] = (2.0, 1.0), final: str = "bb", outcome: Outcome = Outcome.COMPLETED) -> Facts:
    """A journal that ends, with what its ranks told."""
    events: list[Any] = [step(n, loss) for n, loss in enumerate(losses, start=1)]
    if outcome is Outcome.COMPLETED:
        events += [DigestReported(0, "j/w0", 1, 2, final), RankFinished(0, "j/w0", 1, 2, final)]
    records = [Record(n, 0, 0.0, e, (), "", "running", 1, e.step) for n, e in enumerate(events)]
    phase = JobPhase.SUCCEEDED if outcome is Outcome.COMPLETED else JobPhase.FAILED
    return Facts(records, State(job(), phase=phase, outcome=outcome, last_word="" if phase is JobPhase.SUCCEEDED else "gone"))


def job() -> Any:
    """Without checkpoints."""
    found = draw_storm(15)
    assert not found.checkpoints
    return found.job(Path("/nowhere"))


async def verdict_of(run: Facts) -> Verdict:
    """What is said of it beside a calm run with losses 2 and 1 and digests aa and bb."""

    async def of(skips: tuple[int, ...]) -> Truth:
        return Truth({1: 2.0, 2: 1.0}, {1: "aa", 2: "bb"})

    async def get(name: str) -> Any:
        assert run.state is not None
        return SimpleNamespace(phase=run.state.phase, outcome=run.state.outcome)

    system = SimpleNamespace(supervisor=SimpleNamespace(service=SimpleNamespace(get=get)))
    weather = Weather(draw_storm(15), job(), cast(Any, system), Path("/nowhere"))
    verdict = Verdict()
    await judge(weather, verdict, run, cast(Truths, SimpleNamespace(of=of)))
    return verdict


async def test_a_run_as_if_nothing_had_happened_has_survived() -> None:
    verdict = await verdict_of(told())
    assert verdict.survived
    assert not verdict.troubles


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (told(final="cc"), "the final digest is cc, not bb"),
        (told(losses=(2.0, 1.0000001)), "losses of steps [2] differ"),
        (told(losses=(2.0,)), "steps [2] were never committed"),
    ],
    ids=["digest", "loss", "step"],
)
async def test_other_bits_are_seen(run: Facts, word: str) -> None:
    verdict = await verdict_of(run)
    assert not verdict.survived
    assert any(word in w for w in verdict.digest)


async def test_a_failure_is_not_survived_but_wrong_only_where_it_could_have_gone_on_or_says_nothing() -> None:
    run = told(losses=(2.0,), outcome=Outcome.UNRECOVERABLE)
    verdict = await verdict_of(run)
    assert not verdict.survived
    assert not verdict.troubles
    assert run.state is not None
    silent = replace(run, state=replace(run.state, last_word=" "))
    assert "without a last word" in (await verdict_of(silent)).status[0]
    beside = replace(run, state=replace(run.state, checkpoint=CheckpointRef(1, "/x", "")))
    assert "beside the checkpoint of step 1" in (await verdict_of(beside)).status[0]


@pytest.mark.parametrize(
    ("phase", "suspect", "ago_s", "wrong"),
    [
        (WorkerPhase.MEMBER, "", NOTICE_S + 1, True),
        (WorkerPhase.MEMBER, "", NOTICE_S - 3, False),
        (WorkerPhase.MEMBER, "silent for 2000 ms", NOTICE_S + 1, False),
        (WorkerPhase.REQUESTED, "", NOTICE_S + 1, False),
        (WorkerPhase.LOST, "", NOTICE_S + 1, False),
    ],
    ids=["for too long", "not for long", "suspect", "on its way", "lost"],
)
def test_a_dead_worker_that_is_shown_as_well_is_seen(phase: WorkerPhase, suspect: str, ago_s: float, wrong: bool) -> None:
    weather = Weather(draw_storm(15), job(), cast(Any, None), Path("/nowhere"))
    weather.harmed["j/w1"] = Harm("j/w1", time.monotonic() - ago_s, "killed")
    row = SimpleNamespace(worker_id="j/w1", phase=phase, suspect=suspect)
    status = cast(JobStatus, SimpleNamespace(phase=JobPhase.RUNNING, workers=(row,)))
    assert bool(shown_as_well(status, weather, limit_s=NOTICE_S)) == wrong


def test_who_was_harmed_long_before_the_end_and_never_given_up_is_seen() -> None:
    weather = Weather(draw_storm(15), job(), cast(Any, None), Path("/nowhere"))
    weather.harmed = {"j/w1": Harm("j/w1", -NOTICE_S - 1, "killed"), "j/w2": Harm("j/w2", -1.0, "killed")}
    run = told()
    hellos = [WorkerHello(0, f"j/w{n}", "node", 1, "", cast(Any, None), 0, False, None, None) for n in (1, 2)]
    came = [Record(0, 0, 0.0, hello, (), "", "waiting", 0, 0) for hello in hellos]
    weather.harmed["j/w3"] = replace(weather.harmed["j/w1"], worker_id="j/w3")  # never came
    assert overlooked(weather, Facts([*came, *run.records], run.state)) == ["j/w1, killed, was never declared lost"]
