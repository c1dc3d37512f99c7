"""The transition table is the specification: the code makes every transition in it and no other, and the docs show it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.graph.view import GraphView
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor import table
from orchestrator.core.supervisor.diagram import render
from orchestrator.core.supervisor.machine import initial
from orchestrator.core.supervisor.state import JobPhase, State, Worker, WorkerPhase
from orchestrator.core.supervisor.turn import InvalidTransition, Turn
from orchestrator.spec.policies import policies
from tests.scenarios.story import DEEP, GRAPH, WAIT, Story, cluster, make_job

DOCS = Path(__file__).parents[4] / "docs" / "state-machine.md"


def test_the_docs_are_drawn_from_the_table() -> None:
    assert DOCS.read_text(encoding="utf-8") == render()


def test_what_is_over_stays_over() -> None:
    assert not [pair for pair in table.JOB if pair[0].terminal]
    assert not [pair for pair in table.WORKER if not pair[0].alive]


def job_in(phase: JobPhase) -> State:
    """A state that is nothing but in that phase."""
    return State(job=make_job(), phase=phase, workers={"j/w0": Worker("j/w0", "n0", WorkerPhase.REQUESTED, 0)})


@pytest.mark.parametrize(("old", "new"), list(product(JobPhase, JobPhase)))
def test_the_job_moves_by_the_table(old: JobPhase, new: JobPhase) -> None:
    turn = Turn(job_in(old), 7)
    turn.say("a first thing")
    turn.say("a second thing")
    if (old, new) in table.JOB:
        turn.to_phase(new)
        assert (turn.state.phase, turn.state.phase_since_ms) == (new, 7)
    else:
        with pytest.raises(InvalidTransition, match=f"^job {old} -> {new}; so far: a first thing; a second thing$"):
            turn.to_phase(new)
        assert turn.state == job_in(old)


@pytest.mark.parametrize(("old", "new"), [p for p in product(WorkerPhase, WorkerPhase) if p[0] is not p[1]])
def test_a_worker_moves_by_the_table(old: WorkerPhase, new: WorkerPhase) -> None:
    state = State(job=make_job(), workers={"j/w0": Worker("j/w0", "n0", old, 0)})
    turn = Turn(state, 7)
    if (old, new) in table.WORKER:
        worker = turn.worker("j/w0", new, pid=3)
        assert worker == turn.state.workers["j/w0"]
        assert (worker.phase, worker.since_ms, worker.pid) == (new, 7, 3)
    else:
        with pytest.raises(InvalidTransition, match=f"^worker j/w0 {old} -> {new}; so far: nothing$"):
            turn.worker("j/w0", new)
        assert turn.state == state


def test_staying_in_a_phase_is_no_transition() -> None:
    turn = Turn(job_in(JobPhase.WAITING), 7)
    worker = turn.worker("j/w0", WorkerPhase.REQUESTED, pid=3)
    assert (worker.since_ms, worker.pid) == (0, 3)


class Tale(Story):
    """A story of four ranks, one spare and five nodes that can be brought into any phase."""

    def __init__(self, graph: GraphView = GRAPH, **kw: Any) -> None:
        super().__init__(make_job(**{"policies": WAIT} | kw), graph=graph)

    def up_to(self, phase: JobPhase) -> Tale:
        """Go on until the job is in that phase."""
        if phase is JobPhase.WAITING:
            self.tell(ev.ClusterChanged(0, cluster(1, 5)))
            return self
        self.launch(5)
        if phase is not JobPhase.FORMING:
            self.ready()
            self.commit(1)
        if phase is JobPhase.FENCING:
            self.gone("j/w2")
        assert self.state.phase is phase
        return self

    def task_fails(self) -> None:
        """The task raises on rank 0."""
        self.tell(ev.TaskFailed(0, "j/w0", self.state.epoch, 2, False, "Traceback\nValueError"))


def _recover() -> Tale:
    """The groups break while they form; then a member is lost, and there is a spare for it."""
    s = Tale().up_to(JobPhase.FORMING)
    s.leave("j/w0", s.held(0, at=0), fenced=False)
    s.leave_all(0)
    s.ready()
    s.commit(1)
    s.gone("j/w2")
    s.leave_all(1)
    assert s.state.phase is JobPhase.FORMING
    return s


def _left_and_lost() -> Tale:
    """One that had left is lost, then the spare, then what was asked for in their place."""
    s = Tale().up_to(JobPhase.FENCING)
    s.leave("j/w0", s.held(0, at=1))
    s.gone("j/w0", "j/w4", "j/w5")
    s.leave_all(1)
    assert s.state.phase is JobPhase.WAITING
    return s


def _finish() -> Tale:
    s = Tale().up_to(JobPhase.RUNNING)
    for seat in s.plan.seats:
        s.tell(ev.RankFinished(0, seat.worker_id, 1, 20, "d"))
    return s


def _shrink() -> Tale:
    """A replica of a pipeline goes on; the survivor of the other becomes a spare."""
    s = Tale(data=2, pipeline=2, zero=0, spares=0, graph=DEEP, policies=policies())
    s.launch(4)
    s.ready()
    s.tell(ev.ClusterChanged(0, cluster(2, 4, dead=(3,))))
    s.leave_all(0)
    assert s.plan.size == 2
    s.ready()
    return s


def _hopeless_while_waiting() -> Tale:
    """Both holders of a shard are lost and there is no checkpoint: it is known when the last seat can be filled."""
    s = Tale().up_to(JobPhase.FENCING)
    s.gone("j/w1")
    s.leave_all(1)
    assert s.state.phase is JobPhase.WAITING
    for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]:
        s.hello(w.worker_id)
    return s


def _fail_in(phase: JobPhase) -> Tale:
    s = Tale().up_to(phase)
    s.task_fails()
    return s


def _cancel_in(phase: JobPhase) -> Tale:
    s = Tale().up_to(phase)
    if phase is JobPhase.FENCING:
        s.leave("j/w0", s.held(0, at=1))
    s.tell(ev.CancelRequested(0, "me"))
    return s


def test_stories_make_every_transition_of_the_table_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[object, object]] = set()
    to_phase, worker = Turn.to_phase, Turn.worker

    def note_job(turn: Turn, phase: JobPhase) -> None:
        seen.add((turn.state.phase, phase))
        to_phase(turn, phase)

    def note_worker(turn: Turn, worker_id: str, phase: WorkerPhase | None = None, **changes: Any) -> Worker:
        old = turn.state.workers[worker_id].phase
        if phase is not None and phase is not old:
            seen.add((old, phase))
        return worker(turn, worker_id, phase, **changes)

    monkeypatch.setattr(Turn, "to_phase", note_job)
    monkeypatch.setattr(Turn, "worker", note_worker)
    _recover()
    _left_and_lost()
    _finish()
    _hopeless_while_waiting()
    _shrink()
    for phase in (p for p in JobPhase if not p.terminal):
        _cancel_in(phase)
        if phase is not JobPhase.WAITING:
            _fail_in(phase)
    assert seen == {*table.JOB, *table.WORKER}


def test_a_state_begins_with_a_full_budget_and_no_workers() -> None:
    state = initial(make_job(budget=4), checkpoint=None, now_ms=9)
    assert (state.phase, state.phase_since_ms, state.budget, state.epoch, state.workers) == (JobPhase.WAITING, 9, 4, 0, {})
