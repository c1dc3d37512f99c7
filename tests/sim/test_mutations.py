"""The simulator can fail: each bug that is planted here must be found within a number of seeds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.job import FailureClass, Job
from orchestrator.core.plan import lint
from orchestrator.core.plan.plan import Plan, Seat
from orchestrator.core.planner import layouts
from orchestrator.core.planner.shape import shape_for
from orchestrator.core.reshard.recovery import Held, Resume, resolve
from orchestrator.core.supervisor import candidates, changes, choice, epochs, machine, memory, reports
from orchestrator.core.supervisor.commands import Command, EndJob, KillWorker
from orchestrator.core.supervisor.events import EpochReady, NodeGone, Observation
from orchestrator.core.supervisor.state import JobPhase, State, Worker
from orchestrator.core.supervisor.turn import Turn
from orchestrator.runtime import driver, observe
from orchestrator.runtime.carrier import Carrier
from orchestrator.runtime.ports import Record
from orchestrator.testkit.sim import scenario
from orchestrator.testkit.sim.run import simulate
from orchestrator.testkit.sim.scenario import Kind

SEEDS = 300
CLEAN = 10
ALL = tuple(Kind)
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("orchestrator")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def commits_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """Survivors at different steps, and nobody rolls forward."""

    def deaf(*, held: dict[int, Held], known: Any, **rest: Any) -> Resume:
        return resolve(held={r: replace(h, commit=None) for r, h in held.items()}, known=None, **rest)

    patch.setattr(memory, "resolve", deaf)


def a_transfer_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The last region of the schedule stays where it is."""

    def forgetful(**known: Any) -> Resume:
        resume = resolve(**known)
        return replace(resume, transfers=resume.transfers[:-1])

    patch.setattr(memory, "resolve", forgetful)


def old_ids_are_not_fenced(patch: pytest.MonkeyPatch) -> None:
    """A worker that was declared lost is let in again."""
    real = Carrier.carry_out

    def carry_out(self: Carrier, command: Command) -> None:
        if isinstance(command, KillWorker):
            self._enqueue(f"fleet {command.worker_id}", lambda: self._kill(command))
        else:
            real(self, command)

    patch.setattr(Carrier, "carry_out", carry_out)
    patch.setattr(driver, "refusal", lambda _state, _worker_id: "")


def the_next_epoch_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    """The next epoch starts while members are still inside the broken one."""
    real = machine._advance

    def advance(turn: Turn) -> None:
        if turn.state.phase is JobPhase.FENCING:
            choice.next_epoch(turn)
        else:
            real(turn)

    patch.setattr(machine, "_advance", advance)


def commands_go_out_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """Act, then write down."""
    real = driver.Driver._write

    def write(self: driver.Driver, record: Record, state: State) -> None:
        for command in record.commands:
            if not isinstance(command, EndJob):
                self._carrier.carry_out(command)
        real(self, record, state)

    patch.setattr(driver.Driver, "_write", write)


def records_are_not_durable(patch: pytest.MonkeyPatch) -> None:
    """Commands go out while their record may still be lost."""

    def write(self: driver.Driver, record: Record, _state: State) -> None:
        self._journal.append(record, durable=False)

    patch.setattr(driver.Driver, "_write", write)


def the_first_ready_rank_speaks_for_all(patch: pytest.MonkeyPatch) -> None:
    """The status says running while ranks are still getting their state."""
    real = reports.ready

    def ready(turn: Turn, event: EpochReady) -> None:
        real(turn, event)
        if turn.state.phase is JobPhase.FORMING and event.epoch == turn.state.epoch:
            epochs.running(turn)

    patch.setattr(reports, "ready", ready)


def a_pause_of_the_supervisor_counts_as_silence(patch: pytest.MonkeyPatch) -> None:
    """Time in which nobody listened is held against the workers."""
    real = observe.Observer.tick

    def tick(self: observe.Observer, worker_ids: Sequence[str], dt_ms: int) -> tuple[Observation, ...]:
        patch.setattr(self, "_tick_ms", 10**9)
        return real(self, worker_ids, dt_ms)

    patch.setattr(observe.Observer, "tick", tick)


def a_decision_depends_on_more_than_its_event(patch: pytest.MonkeyPatch) -> None:
    """What the core decides is not in the journal alone, so a replay decides otherwise."""
    calls = [0]

    def counting(state: State, event: Any) -> Any:
        calls[0] += 1
        decision = machine.step(state, event)
        return replace(decision, reason=f"{decision.reason} ({calls[0]})") if decision.reason else decision

    patch.setattr(driver, "step", counting)


def torn_params_are_believed(patch: pytest.MonkeyPatch) -> None:
    """A survivor that broke in the middle of a gather counts as if its params were complete."""

    def trusting(*, held: dict[int, Held], **rest: Any) -> Resume:
        return resolve(held={r: replace(h, params_step=h.applied_step) for r, h in held.items()}, **rest)

    patch.setattr(memory, "resolve", trusting)


def a_shrink_forgets_a_region(patch: pytest.MonkeyPatch) -> None:
    """The first survivors go on, whatever the others hold."""
    patch.setattr(candidates, "cover", lambda _turn, workers, count: list(workers)[:count])
    patch.setattr(candidates, "in_memory", lambda _turn, _plan: True)


def a_job_shrinks_below_its_minimum(patch: pytest.MonkeyPatch) -> None:
    """Any number of ranks will do."""

    def careless(job: Job, graph: Any, workers: int) -> tuple[int, int] | None:
        return shape_for(replace(job, resilience=replace(job.resilience, ranks_min=1)), graph, workers)

    patch.setattr(candidates, "shape_for", careless)


def growth_knows_no_pause(patch: pytest.MonkeyPatch) -> None:
    """The job grows as soon as a worker is there."""
    patch.setattr(changes, "_settled", lambda _turn: True)


def growth_is_put_off_for_ever(patch: pytest.MonkeyPatch) -> None:
    """It is never long enough since the last change."""
    patch.setattr(changes, "_settled", lambda _turn: False)


def the_heirs_get_nothing(patch: pytest.MonkeyPatch) -> None:
    """A handover in which those who stay take nothing over."""

    def lazy(plan: Plan, _going: Any) -> Plan:
        return plan

    patch.setattr(choice, "handover", lazy)


def the_accused_goes_on(patch: pytest.MonkeyPatch) -> None:
    """Who is outvoted leaves the epoch like everybody, and comes back with what it holds."""
    real = epochs.lose

    def lenient(turn: Turn, worker: Worker, failure: FailureClass, evidence: str) -> None:
        if failure is FailureClass.CORRUPT_STATE:
            epochs.fence(turn, FailureClass.COLLECTIVE_BROKEN, evidence)
        else:
            real(turn, worker, failure, evidence)

    patch.setattr(reports, "lose", lenient)


def a_planned_change_is_charged(patch: pytest.MonkeyPatch) -> None:
    """The ranks leave as they were asked to, and it counts as a failure."""
    real = epochs.fence

    def dear(turn: Turn, failure: FailureClass, why: str, **how: Any) -> None:
        turn.set(budget=turn.state.budget - 1)
        real(turn, failure, why, **how)

    patch.setattr(changes, "fence", dear)


def copies_are_laid_on_other_nodes(patch: pytest.MonkeyPatch) -> None:
    """On any other node, also one of the same machine."""

    def by_node(seats: Sequence[Seat]) -> list[str]:
        return [s.node_id for s in seats]

    for module in (layouts, lint):
        patch.setattr(module, "homes", by_node)


def who_leaves_ends_at_once(patch: pytest.MonkeyPatch) -> None:
    """The drained worker goes when the next epoch starts, with what only it and a machine that dies now hold."""
    real = epochs.start

    def start(turn: Turn, plan: Plan, resume: Resume) -> None:
        real(turn, plan, resume)
        for worker in turn.unseated():
            epochs._release(turn, worker)

    patch.setattr(choice, "start", start)


def a_node_that_is_gone_gets_workers(patch: pytest.MonkeyPatch) -> None:
    """Its workers are lost, and others are started in their place."""
    real = machine._node_gone

    def forgetful(turn: Turn, event: NodeGone) -> None:
        drained = turn.state.drained
        real(turn, event)
        turn.set(drained=drained)

    patch.setattr(machine, "_node_gone", forgetful)


def a_suspended_job_is_not_saved(patch: pytest.MonkeyPatch) -> None:
    """Its ranks leave after a step as for any planned change, and its machines go."""
    patch.setattr(changes, "saves", lambda _state: False)


@pytest.fixture(scope="module")
def clean() -> None:
    """Without any bug the same seeds, with the same jobs, find nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenario, "AUTO_SHARE", 0.0)
        failing = [seed for seed in range(CLEAN) if simulate(seed).violations]
    assert not failing, f"seeds {failing} fail without any bug"


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("plant", "says", "kinds"),
    [
        (commits_are_ignored, "its survivors hold step", [Kind.ELASTIC]),
        (a_transfer_is_forgotten, "were not sent to rank", ALL),
        (old_ids_are_not_fenced, "live on", ALL),
        (the_next_epoch_does_not_wait, "and not fenced", ALL),
        (commands_go_out_before_the_record, "acts before it is in the journal", ALL),
        (records_are_not_durable, "was not written durably", ALL),
        (the_first_ready_rank_speaks_for_all, "have no state yet", ALL),
        (a_pause_of_the_supervisor_counts_as_silence, "", [Kind.PAUSES]),
        (a_decision_depends_on_more_than_its_event, "replay: ", ALL),
        (torn_params_are_believed, "params", [Kind.ELASTIC]),
        (a_shrink_forgets_a_region, "its survivors hold step", [Kind.ELASTIC]),
        (a_job_shrinks_below_its_minimum, "must never train", ALL),
        (growth_knows_no_pause, "the size changed at step", ALL),
        (growth_is_put_off_for_ever, "the job does not grow", ALL),
        (the_heirs_get_nothing, "hands over again and again", [Kind.PLANNED]),
        (the_accused_goes_on, "is known to be wrong", [Kind.CORRUPT]),
        (a_planned_change_is_charged, "cost a step or a unit of the budget", ALL),
        (copies_are_laid_on_other_nodes, "that no other of its machines holds", ALL),
        (who_leaves_ends_at_once, "the state of step", [Kind.MACHINES]),
        (a_node_that_is_gone_gets_workers, "known to be gone", ALL),
        (a_suspended_job_is_not_saved, "is saved, and the workers there hold step", [Kind.PLANNED]),
    ],
    ids=lambda v: v.__name__ if callable(v) else None,
)
def test_a_planted_bug_is_found(plant: Plant, says: str, kinds: Sequence[Kind], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    monkeypatch.setattr(scenario, "AUTO_SHARE", 0.0)  # none of these bugs is the planner's, and choosing takes time
    for seed in (s for s in range(SEEDS) if scenario.scenario(s).kind in kinds):
        violations = simulate(seed).violations
        if any(says in v for v in violations):
            return
    pytest.fail(f"{plant.__doc__} Not found in {SEEDS} seeds.")
