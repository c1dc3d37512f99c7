"""The status tells the truth of this moment."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from orchestrator.core.supervisor.events import Observation
from orchestrator.core.supervisor.state import Change, ChangeKind, JobPhase, State, WorkerPhase
from orchestrator.runtime.ports import Record
from orchestrator.runtime.status import job_status
from orchestrator.runtime.status_types import ChangeStatus, JobStatus
from tests.unit.runtime.world import STEP_MS, LoopClock, MemoryJournal, World, job, virtually


def status_of(world: World, journal: MemoryJournal, *, later_ms: int = 0) -> JobStatus:
    driver = world.driver
    return job_status(
        driver.state,
        recent=driver.recent,
        beats=driver.beats(),
        observed=driver.observed(),
        goodput=0.5,
        now_ms=driver.now_ms() + later_ms,
    )


def looked(look_at_step: int, *, later_ms: int = 0, end: bool = False) -> tuple[JobStatus, World, MemoryJournal]:
    """The status at a step of a run (or at its end)."""
    world, journal = World(job()), MemoryJournal()
    seen: list[JobStatus] = []

    async def main() -> None:
        running = asyncio.create_task(world.start(journal, LoopClock()).run())
        await world.until(lambda s: s.committed_step >= look_at_step)
        if end:
            await running
        seen.append(status_of(world, journal, later_ms=later_ms))
        if not end:
            running.cancel()

    virtually(main)
    return seen[0], world, journal


def test_a_running_job() -> None:
    status, _, journal = looked(10)
    assert (status.name, status.phase, status.step, status.steps, status.epoch) == ("j", JobPhase.RUNNING, 10, 30, 1)
    assert status.tokens_per_s == pytest.approx(64 * 1000 / STEP_MS)
    assert status.eta_s == pytest.approx(20 * STEP_MS / 1000)
    assert status.loss == pytest.approx(0.2)
    assert (status.budget, status.budget_max, status.recoveries, status.goodput) == (5, 5, 0, 0.5)
    assert [(w.rank, w.phase, w.connected) for w in status.workers] == [
        (0, WorkerPhase.MEMBER, True),
        (1, WorkerPhase.MEMBER, True),
        (-1, WorkerPhase.SPARE, True),
    ]
    assert {w.doing for w in status.workers} == {"forward", "idle"}
    assert [(a.name, a.size) for a in status.target] == [("pipeline", 1), ("data", 2), ("tensor", 1)]
    assert (status.shrunk, status.change, status.skipped) == (False, None, 0)
    assert [(n.node_id, n.workers) for n in status.nodes] == [("n0", 1), ("n1", 1), ("n2", 1), ("n3", 0)]
    assert status.plan is not None
    assert (status.plan.ranks, status.plan.epoch) == (2, 1)
    newest = [r for r in journal.written if r.reason][-1]
    assert status.decision is not None
    assert (status.decision.seq, status.decision.reason) == (newest.seq, newest.reason)


def test_a_rate_of_better_days_is_not_shown_while_nothing_moves() -> None:
    status, _, _ = looked(10, later_ms=10_000)
    assert status.tokens_per_s is not None
    assert status.tokens_per_s < 7
    assert status.eta_s is not None
    assert status.eta_s >= 200


def test_a_job_that_is_over_has_no_rate_and_no_eta() -> None:
    status, _, _ = looked(30, end=True)
    assert (status.phase, status.tokens_per_s, status.eta_s) == (JobPhase.SUCCEEDED, None, None)
    assert {w.doing for w in status.workers} == {""}
    assert all(w.cause for w in status.workers)


def test_while_it_recovers_the_rate_is_zero_and_the_end_unknown() -> None:
    _, world, _ = looked(10)
    recent: tuple[Record, ...] = world.driver.recent
    state: State = replace(world.driver.state, phase=JobPhase.FENCING)
    status = job_status(state, recent=recent, beats=(), observed={}, goodput=None, now_ms=0)
    assert (status.tokens_per_s, status.eta_s) == (0.0, None)


def test_silence_and_suspects_are_shown_and_the_lost_come_last() -> None:
    _, world, _ = looked(10)
    workers = dict(world.driver.state.workers)
    first = world.driver.state.plan.seats[0].worker_id if world.driver.state.plan else ""
    workers[first] = replace(workers[first], phase=WorkerPhase.LOST, cause="worker-hung: silent")
    second = next(w for w in workers if w != first)
    workers[second] = replace(workers[second], suspect="silent for 2000 ms")
    seen = {w: Observation(w, 2000, 0, 0, False, False, 0) for w in workers}
    status = job_status(replace(world.driver.state, workers=workers), recent=(), beats=(), observed=seen, goodput=None, now_ms=0)
    assert status.workers[-1].worker_id == first
    assert (status.workers[-1].cause, status.workers[-1].silence_ms) == ("worker-hung: silent", 0)
    shown = next(w for w in status.workers if w.worker_id == second)
    assert (shown.suspect, shown.silence_ms) == ("silent for 2000 ms", 2000)
    assert status.decision is None
    assert status.tokens_per_s is None


def test_trouble_of_the_supervisor_itself_is_the_last_word() -> None:
    _, world, _ = looked(3)
    state = world.driver.state
    status = job_status(state, recent=(), beats=(), observed={}, goodput=None, now_ms=0, trouble="disk full")
    assert status.last_word == "disk full"


def test_full_strength_and_what_is_done_about_it() -> None:
    _, world, _ = looked(10)
    state = world.driver.state
    bigger = replace(state, scaled=replace(state.goal, data=3), skipped=2, change=Change(ChangeKind.GROW, "a spare is ready", 0))
    shown = job_status(bigger, recent=(), beats=(), observed={}, goodput=None, now_ms=0)
    assert [(a.name, a.size) for a in shown.target] == [("pipeline", 1), ("data", 3), ("tensor", 1)]
    assert (shown.shrunk, shown.skipped) == (True, 2)
    assert shown.change == ChangeStatus(kind=ChangeKind.GROW, why="a spare is ready")
    assert shown.plan is not None
    assert (shown.plan.ranks, shown.plan.layers_per_stage) == (2, (1,))
    smaller = replace(state, scaled=replace(state.goal, data=1))
    assert not job_status(smaller, recent=(), beats=(), observed={}, goodput=None, now_ms=0).shrunk
