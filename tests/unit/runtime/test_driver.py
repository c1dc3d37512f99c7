"""The driver with hand-made fakes in virtual time: it writes before it acts, survives failures, and stops loudly when it must."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from orchestrator.core.codec import to_json
from orchestrator.core.job import FailureClass
from orchestrator.core.supervisor.commands import EndJob, FenceEpoch, KillWorker, LeaveEpoch, SpawnWorker
from orchestrator.core.supervisor.events import (
    CancelRequested,
    DrainRequested,
    FaultRequested,
    SpawnFailed,
    StepCommitted,
    SupervisorRestarted,
    Tick,
    WorkerDisconnected,
    WorkerGone,
)
from orchestrator.core.supervisor.machine import step
from orchestrator.core.supervisor.state import JobPhase, Outcome, WorkerPhase
from orchestrator.runtime import driver as driver_module
from orchestrator.runtime.driver import DriverStopped, JournalFailed, SupervisorBug
from orchestrator.runtime.ledger import Cause, Ledger
from orchestrator.runtime.ports import Record
from orchestrator.runtime.replay import ReplayMismatch, replay, verify_replay
from tests.unit.runtime.world import FakeWorker, LoopClock, MemoryJournal, World, job, virtually


def run_whole(world: World, journal: MemoryJournal) -> None:
    """Drive a job to its end without a failure."""

    async def main() -> None:
        await world.start(journal, LoopClock()).run()

    virtually(main)


def test_a_job_without_failures_succeeds_and_releases_everything() -> None:
    world, journal = World(job()), MemoryJournal()
    run_whole(world, journal)
    state = world.driver.state
    assert (state.phase, state.outcome, state.committed_step) == (JobPhase.SUCCEEDED, Outcome.COMPLETED, 30)
    assert world.closed
    assert not any(w.alive for w in world.workers.values())
    assert world.killed == []  # told to end, not killed
    assert isinstance(journal.written[-1].commands[-1], EndJob)


def test_a_duplicate_report_that_changes_nothing_is_not_written_down() -> None:
    world, journal = World(job()), MemoryJournal()
    run_whole(world, journal)
    steps = [r.event.step for r in journal.written if isinstance(r.event, StepCommitted)]
    assert steps == list(range(1, 31))  # two ranks reported each


def test_ticks_that_decide_nothing_are_not_written_down() -> None:
    world, journal = World(job()), MemoryJournal()
    run_whole(world, journal)
    assert not [r for r in journal.written if isinstance(r.event, Tick) and not r.reason]
    assert world.telemetry.ticks > 20
    assert world.telemetry.decisions == len(journal.written)


def test_records_are_numbered_without_gaps_in_time_order_and_durable_where_they_command() -> None:
    world, journal = World(job()), MemoryJournal()
    run_whole(world, journal)
    assert [r.seq for r in journal.written] == list(range(1, len(journal.written) + 1))
    assert [r.at_ms for r in journal.written] == sorted(r.at_ms for r in journal.written)
    assert journal.durable == [r.seq for r in journal.written if r.commands]


def test_a_command_is_in_the_journal_before_it_is_carried_out() -> None:
    world, journal = World(job()), MemoryJournal()
    commanded: list[bool] = []
    spawn = world.spawn

    async def watched(command: SpawnWorker) -> None:
        commanded.append(any(command in r.commands for r in journal.written))
        await spawn(command)

    world.spawn = watched  # type: ignore[method-assign]
    run_whole(world, journal)
    assert commanded == [True, True, True]


def killing(world: World, journal: MemoryJournal, *, at_step: int, rank: int) -> None:
    """Drive a job to its end, killing the worker of a rank once a step is committed; the others break out a moment later."""

    async def main() -> None:
        driver = world.start(journal, LoopClock())
        running = asyncio.create_task(driver.run())
        await world.until(lambda s: s.committed_step >= at_step)
        victim = world.rank(rank)
        victim.die(kill=True)
        await running

    virtually(main)


def test_a_killed_worker_is_probed_and_swapped_and_no_step_is_lost() -> None:
    world, journal = World(job()), MemoryJournal()
    killing(world, journal, at_step=10, rank=1)
    state = world.driver.state
    assert state.phase is JobPhase.SUCCEEDED
    assert (state.steps_lost, state.survivors_restarted, state.epoch) == (0, 0, 2)
    (recovery,) = state.recoveries
    assert recovery.failure is FailureClass.WORKER_EXITED
    assert recovery.began_ms <= recovery.fenced_ms <= recovery.planned_ms <= recovery.ready_ms <= recovery.stepped_ms
    gone = [r.event for r in journal.written if isinstance(r.event, WorkerGone)]
    assert [g.evidence for g in gone] == ["its port refuses connections: the process has ended"]
    assert list(world.refused_ids) == [gone[0].worker_id]
    survivor = world.workers["j/w0"]
    assert survivor.epoch == 2  # it kept its process


def test_a_drained_node_is_left_after_a_whole_step_and_costs_nothing() -> None:
    world, journal = World(job()), MemoryJournal()
    gone: list[str] = []

    async def main() -> None:
        driver = world.start(journal, LoopClock())
        running = asyncio.create_task(driver.run())
        await world.until(lambda s: s.committed_step >= 10)
        members = [world.rank(0).worker_id, world.rank(1).worker_id]
        gone.append(members[1])
        answer = await driver.ask(DrainRequested(0, world.rank(1).node_id, "me", "maintenance"))
        assert answer.record is not None
        assert [c.worker_id for c in answer.record.commands if isinstance(c, LeaveEpoch)] == members
        await running

    virtually(main)
    state = world.driver.state
    assert (state.phase, state.steps_lost, state.epoch, state.budget) == (JobPhase.SUCCEEDED, 0, 2, 5)
    (recovery,) = state.recoveries
    assert (recovery.failure, recovery.lost) == (FailureClass.PLANNED, ())
    assert state.plan is not None
    assert state.plan.seat_of(gone[0]) is None
    assert not [r for r in journal.written if any(isinstance(c, FenceEpoch) for c in r.commands)]
    assert dict(Ledger.of(journal.written).account().lost_ms)[Cause.PLANNED] > 0
    assert verify_replay(journal) == ()


def test_a_stopped_worker_is_lost_within_the_limit_and_a_late_hello_is_refused() -> None:
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        driver = world.start(journal, LoopClock())
        running = asyncio.create_task(driver.run())
        await world.until(lambda s: s.committed_step >= 5)
        zombie = world.rank(0)
        began = LoopClock().now_ms()
        zombie.stopped = True
        await world.until(lambda s: s.workers[zombie.worker_id].phase is WorkerPhase.LOST)
        assert LoopClock().now_ms() - began <= 4000
        assert not driver.welcome(zombie.worker_id).accepted
        assert "fenced" in driver.welcome(zombie.worker_id).why
        await running

    virtually(main)
    assert world.driver.state.phase is JobPhase.SUCCEEDED
    assert world.driver.state.recoveries[0].failure is FailureClass.WORKER_HUNG


def test_a_supervisor_that_was_stopped_itself_blames_nobody() -> None:
    world, journal = World(job()), MemoryJournal()

    class Leaping(LoopClock):
        leap_ms = 0

        def now_ms(self) -> int:
            return super().now_ms() + self.leap_ms

    clock = Leaping()

    async def main() -> None:
        running = asyncio.create_task(world.start(journal, clock).run())
        await world.until(lambda s: s.committed_step >= 5)
        clock.leap_ms = 30_000  # it slept for half a minute: no beat was read in it
        await running

    virtually(main)
    assert world.driver.state.phase is JobPhase.SUCCEEDED
    assert world.driver.state.recoveries == ()


def test_a_broken_stream_alone_is_no_failure() -> None:
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        running = asyncio.create_task(world.start(journal, LoopClock()).run())
        await world.until(lambda s: s.committed_step >= 5)
        worker = world.rank(0)
        worker.connected = False
        world.driver.sink(WorkerDisconnected(0, worker.worker_id, "reset"))
        await asyncio.sleep(1.0)
        worker.connect()
        await running

    virtually(main)
    assert world.driver.state.recoveries == ()
    assert world.driver.state.epoch == 1


def test_a_spawn_that_raises_becomes_an_event_and_another_is_asked_for() -> None:
    world, journal = World(job()), MemoryJournal()
    world.spawn_errors["j/w1"] = RuntimeError("no room")
    run_whole(world, journal)
    assert world.driver.state.phase is JobPhase.SUCCEEDED
    (failed,) = [r.event for r in journal.written if isinstance(r.event, SpawnFailed)]
    assert (failed.worker_id, failed.why) == ("j/w1", "RuntimeError: no room")
    assert sorted(world.workers) == ["j/w0", "j/w2", "j/w3"]


def test_a_disk_without_room_stops_the_driver_and_leaves_the_workers_alone() -> None:
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        driver = world.start(journal, LoopClock())
        running = asyncio.create_task(driver.run())
        await world.until(lambda s: s.committed_step >= 5)
        journal.fail_at = len(journal.written) + 1
        with pytest.raises(JournalFailed, match=r"No space left.*the workers train on"):
            await running
        assert driver.seq == len(journal.written)
        steps = [w.step for w in world.workers.values() if w.running]
        await asyncio.sleep(1)
        assert all(w.step > s for w, s in zip((w for w in world.workers.values() if w.running), steps, strict=True))
        with pytest.raises(DriverStopped):
            await driver.ask(CancelRequested(0, "me"))

    virtually(main)
    assert not world.closed
    assert world.killed == []


def test_nothing_is_done_about_a_decision_that_could_not_be_written() -> None:
    world, journal = World(job()), MemoryJournal()
    journal.fail_at = 1  # the first look at the cluster, which commands three spawns

    async def main() -> None:
        with pytest.raises(JournalFailed):
            await world.start(journal, LoopClock()).run()

    virtually(main)
    assert world.workers == {}


def test_a_bug_in_the_core_stops_the_driver_with_the_story_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    world, journal = World(job()), MemoryJournal()

    def buggy(state: Any, event: Any) -> Any:
        if isinstance(event, StepCommitted) and event.step == 17:
            raise AssertionError("no such thing")
        return step(state, event)

    monkeypatch.setattr("orchestrator.runtime.driver.step", buggy)

    async def main() -> None:
        with pytest.raises(SupervisorBug) as caught:
            await world.start(journal, LoopClock()).run()
        text = str(caught.value)
        assert "AssertionError('no such thing')" in text
        assert "StepCommitted" in text
        assert f"#{len(journal.written)} " in text
        assert text.count("\n  #") == 20
        assert world.driver.state.committed_step == 16

    virtually(main)
    assert not world.closed


def test_telemetry_that_breaks_influences_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world, journal = World(job()), MemoryJournal()

    def broken(*_: object) -> None:
        raise ValueError("bad gauge")

    monkeypatch.setattr(world.telemetry, "decided", broken)
    monkeypatch.setattr(world.telemetry, "ticked", broken)
    run_whole(world, journal)
    assert world.driver.state.phase is JobPhase.SUCCEEDED


def test_ask_returns_the_record_of_its_decision() -> None:
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        driver = world.start(journal, LoopClock())
        running = asyncio.create_task(driver.run())
        await world.until(lambda s: s.phase is JobPhase.RUNNING)
        record = (await driver.ask(CancelRequested(0, "me"))).record
        assert record is not None
        assert record.phase == "cancelled"
        assert record in journal.written
        await running

    virtually(main)
    assert world.driver.state.outcome is Outcome.CANCELLED
    assert world.closed


def test_whoever_asked_for_what_the_core_fails_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world, journal = World(job()), MemoryJournal()

    def buggy(state: Any, event: Any) -> Any:
        if isinstance(event, CancelRequested):
            raise AssertionError("no such thing")
        return step(state, event)

    monkeypatch.setattr("orchestrator.runtime.driver.step", buggy)

    async def main() -> None:
        driver = world.start(journal, LoopClock())
        running = asyncio.create_task(driver.run())
        await world.until(lambda s: s.phase is JobPhase.RUNNING)
        with pytest.raises(DriverStopped):
            await driver.ask(CancelRequested(0, "me"))
        with pytest.raises(SupervisorBug):
            await running

    virtually(main)


def test_changed_wakes_at_the_next_record_and_at_the_end() -> None:
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        driver = world.start(journal, LoopClock())
        running = asyncio.create_task(driver.run())
        seen = 0
        while not driver.state.phase.terminal:
            await driver.changed(seen)
            assert driver.seq > seen or driver.state.phase.terminal
            seen = driver.seq
        await driver.changed(seen + 100)
        await running

    virtually(main)


def test_the_same_run_twice_writes_the_same_journal() -> None:
    texts = []
    for _ in range(2):
        world, journal = World(job()), MemoryJournal()
        killing(world, journal, at_step=10, rank=1)
        texts.append(json.dumps([to_json(r) for r in journal.written]))
    assert texts[0] == texts[1]


# ---- replay and resume


def test_a_replay_makes_every_decision_again() -> None:
    world, journal = World(job()), MemoryJournal()
    killing(world, journal, at_step=10, rank=1)
    assert verify_replay(journal) == ()
    past = replay(journal)
    assert past.state == world.driver.state
    assert past.seq == world.driver.seq


def test_a_replay_notices_another_command_reason_phase_and_gap() -> None:
    world, journal = World(job()), MemoryJournal()
    run_whole(world, journal)
    good = list(journal.written)
    first = good[0]

    def with_first(**changes: Any) -> tuple[str, ...]:
        fields = {f: getattr(first, f) for f in first.__dataclass_fields__}
        journal.written = [Record(**{**fields, **changes}), *good[1:]]
        return verify_replay(journal)

    assert "commanded" in with_first(commands=(KillWorker("j/w0", "x"),))[0]
    assert "because" in with_first(reason="for fun")[0]
    assert "led to" in with_first(committed_step=9)[0]
    journal.written = [good[0], *good[2:]]
    assert "follows" in verify_replay(journal)[0]


def test_a_journal_that_disagrees_is_not_taken_over() -> None:
    world, journal = World(job()), MemoryJournal()
    run_whole(world, journal)
    fields = {f: getattr(journal.written[2], f) for f in journal.written[2].__dataclass_fields__}
    journal.written[2] = Record(**{**fields, "reason": "another"})
    with pytest.raises(ReplayMismatch, match="must not take the job over"):
        virtually_resume(world, journal)


def virtually_resume(world: World, journal: MemoryJournal) -> None:
    async def main() -> None:
        world.start(journal, LoopClock())

    virtually(main)


@pytest.mark.parametrize("snapshot_every", [500, 7])
def test_a_new_supervisor_adopts_the_workers_and_no_epoch_is_lost(snapshot_every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "SNAPSHOT_EVERY", snapshot_every)
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        running = asyncio.create_task(world.start(journal, LoopClock()).run())
        await world.until(lambda s: s.committed_step >= 10)
        await stop(running, world)
        steps = world.workers["j/w0"].step
        await asyncio.sleep(0.5)
        assert world.workers["j/w0"].step > steps  # they train on
        driver = world.start(journal, LoopClock())
        assert (driver.state.committed_step, driver.state.epoch) == (10, 1)
        running = asyncio.create_task(driver.run())
        for worker in list(world.workers.values()):
            worker.connect()
        await running

    virtually(main)
    assert world.driver.state.phase is JobPhase.SUCCEEDED
    assert world.driver.state.epoch == 1
    assert sorted(world.adopted) == ["j/w0", "j/w1", "j/w2"]
    assert sum(isinstance(r.event, SupervisorRestarted) for r in journal.written) == 1
    assert verify_replay(journal) == ()


def test_a_worker_that_died_while_the_supervisor_was_away_is_swapped_afterwards() -> None:
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        running = asyncio.create_task(world.start(journal, LoopClock()).run())
        await world.until(lambda s: s.committed_step >= 10)
        victim = world.rank(1)
        await stop(running, world)
        victim.die(kill=True)
        running = asyncio.create_task(world.start(journal, LoopClock()).run())
        for worker in list(world.workers.values()):
            if worker.alive:
                worker.connect()
        await running

    virtually(main)
    assert world.driver.state.phase is JobPhase.SUCCEEDED
    assert (world.driver.state.epoch, world.driver.state.steps_lost) == (2, 0)


def test_cluster_views_of_a_new_fleet_count_on_from_the_old_ones() -> None:
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        running = asyncio.create_task(world.start(journal, LoopClock()).run())
        await world.until(lambda s: s.committed_step >= 3)
        before = world.driver.state.cluster
        await stop(running, world)
        world.nodes.append("n9")  # joined while nobody watched; the new fleet's first view is its number 1 again
        running = asyncio.create_task(world.start(journal, LoopClock()).run())
        for worker in list(world.workers.values()):
            worker.connect()
        await world.until(lambda s: s.cluster is not None and s.cluster.node("n9") is not None)
        after = world.driver.state.cluster
        assert before is not None
        assert after is not None
        assert after.generation > before.generation
        await running

    virtually(main)


def test_time_in_the_journal_goes_on_after_a_reboot() -> None:
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        running = asyncio.create_task(world.start(journal, LoopClock(start_ms=90_000_000)).run())
        await world.until(lambda s: s.committed_step >= 3)
        await stop(running, world)
        running = asyncio.create_task(world.start(journal, LoopClock(start_ms=50)).run())
        for worker in list(world.workers.values()):
            worker.connect()
        await running

    virtually(main)
    times = [r.at_ms for r in journal.written]
    assert times == sorted(times)
    assert times[-1] < 90_000_000 + 60_000


async def stop(running: asyncio.Task[Any], world: World) -> None:
    """The supervisor process dies: its driver and every stream with it."""
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for worker in world.workers.values():
        worker.connected = False
    assert not world.closed


def test_fault_requests_of_unknown_ranks_are_written_down_and_touch_nobody() -> None:
    from orchestrator.core.supervisor.events import Fault

    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        driver = world.start(journal, LoopClock())
        running = asyncio.create_task(driver.run())
        await world.until(lambda s: s.phase is JobPhase.RUNNING)
        answer = await driver.ask(FaultRequested(0, Fault("hang", 99, "", 0, 0, 0), "me"))
        assert answer.record is not None
        assert answer.record.commands == ()
        assert not answer.acted
        await running

    virtually(main)
    assert world.driver.state.phase is JobPhase.SUCCEEDED


def test_fake_workers_are_what_the_world_says() -> None:
    """The fakes themselves: a dead peer stops the others' steps, as a collective would."""
    world = World(job())
    world.workers["j/w0"] = worker = FakeWorker(world, "j/w0", "n0")
    worker.epoch = 3
    assert not world.broken(3)
    worker.alive = False
    assert world.broken(3)
