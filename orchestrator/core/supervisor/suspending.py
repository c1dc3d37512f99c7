"""A job that gives its machines back for a while, and goes on later, perhaps on others; no optimizer step is lost by it.

Its ranks train to the end of a step, write a checkpoint of it where there is a place for one, and only then leave the epoch
together: no step comes after the one that is saved. When what they hold is durable every worker ends. What could not be written
is tried again with the state in memory, a few times; then the machines go all the same, and it is said what that costs. What
happens to the machines meanwhile, and whatever is found missing until the job has committed a step again, is nobody's failure
and costs nothing of the budget. It goes on at full strength: from memory if the ranks are still there, else from its newest
durable checkpoint, without one from the seed.
"""

from __future__ import annotations

from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.changes import ask
from orchestrator.core.supervisor.choice import first_epoch
from orchestrator.core.supervisor.commands import ExitWorker
from orchestrator.core.supervisor.epochs import touch
from orchestrator.core.supervisor.staff import available
from orchestrator.core.supervisor.state import SAVES_MAX, Change, ChangeKind, JobPhase, State, WorkerPhase
from orchestrator.core.supervisor.turn import Turn


def suspend(turn: Turn, event: ev.SuspendRequested) -> None:
    """Mark the job; `advance` does what follows from it."""
    state = turn.state
    because = f" ({event.why})" if event.why else ""
    if state.suspended:
        turn.say(f"suspend by {event.who}{because}: nothing to do")
        return
    turn.set(suspended=f"{event.who}{because}", continued=False, unsaved_tries=0, unsaved_why="")
    if not state.job.checkpoint.uri:
        turn.say(f"the job is to be suspended, says {event.who}{because}; it has no place for checkpoints and will begin again")
    elif turn.state.parked:
        turn.say(f"the job is to be suspended, says {event.who}{because}: nothing was trained that is not saved")
    else:
        turn.say(f"the job is to be suspended, says {event.who}{because}: its ranks stop after a step and save it first")


def go_on(turn: Turn, event: ev.ContinueRequested) -> None:
    """Take the mark away."""
    state = turn.state
    if not state.suspended:
        turn.say(f"continue by {event.who}: the job is not suspended")
        return
    turn.set(suspended="", continued=True, retry_spawn_ms=0)
    if any(w.phase in (WorkerPhase.MEMBER, WorkerPhase.LEFT) for w in turn.seated()):
        turn.say(f"the job is to go on, says {event.who}: its ranks are still there and hold its state")
        return
    turn.set(weighed=())  # the workers that come may be weighed as those before were
    if state.checkpoint is not None:
        source = f"from the checkpoint of step {state.checkpoint.step}"
    elif state.committed_step:
        source = "from step 0, since there is no durable checkpoint"
    else:
        source = "from the beginning"
    turn.say(f"the job is to go on, says {event.who}: {source} when its workers are there")


def advance(turn: Turn) -> bool:
    """Do what suspending asks for in this phase; whether nothing else is to be done."""
    state = turn.state
    if state.continued and state.phase is JobPhase.WAITING and state.plan is not None:
        if any(w.phase is WorkerPhase.LEFT for w in turn.seated()):
            return not _back(turn)
        first_epoch(turn)
        return True
    if not state.suspended:
        return False
    if state.phase is JobPhase.RUNNING:
        if state.change is None and not state.finished:
            ask(turn, Change(ChangeKind.SUSPEND, f"the job is suspended by {state.suspended}", turn.at_ms))
        return True
    if state.phase is JobPhase.FENCING and not turn.members():
        if state.change is not None and state.change.kind is ChangeKind.SUSPEND and not state.parked:
            _not_saved(turn)
        if turn.state.parked:
            touch(turn, fenced_ms=turn.at_ms)
            turn.say(f"nobody is left in epoch {state.epoch}: {_found(turn.state)}")
            turn.to_phase(JobPhase.WAITING)
            turn.set(change=None)
    if turn.state.phase is JobPhase.WAITING and turn.state.parked:
        _park(turn)
        return True
    return False


def _not_saved(turn: Turn) -> None:
    """The ranks stopped to be saved, and what they hold is not durable: they begin again with it, or that was the last time."""
    tries = turn.state.unsaved_tries + 1
    turn.set(unsaved_tries=tries)
    why = turn.state.unsaved_why or "nobody said what became of its checkpoint"
    turn.say(f"the state of step {turn.state.trained_step} could not be saved, attempt {tries} of {SAVES_MAX}: {why}")


def _park(turn: Turn) -> None:
    """Every worker ends; what was only in their memory is gone."""
    alive = [w for w in turn.state.workers.values() if w.phase.alive]
    if not alive:
        return
    why = "the job is suspended"
    turn.set(cold="the job was suspended" if turn.state.plan is not None else "")
    turn.say(f"{why}: its {len(alive)} worker(s) end, and its machines may go")
    for w in alive:
        turn.worker(w.worker_id, WorkerPhase.ENDED, held=None, cause=why)
        turn.do(ExitWorker(w.worker_id, why))


def _found(state: State) -> str:
    """What there will be to go on from."""
    lost = state.trained_step - state.saved_step
    if lost <= 0:
        return f"step {state.saved_step} is saved" if state.saved_step else "nothing was trained"
    if not state.job.checkpoint.uri:
        return f"without a checkpoint section {lost} step(s) will be trained again, from step 0"
    why = f": {state.unsaved_why}" if state.unsaved_why else ""
    return f"{lost} step(s) are in no checkpoint and will be trained again, from step {state.saved_step}{why}"


def _back(turn: Turn) -> bool:
    """Whether enough workers for full strength are there again; unlike after a failure, nobody begins with fewer."""
    left = sum(1 for w in turn.seated() if w.phase is WorkerPhase.LEFT)
    return left + len(available(turn)) >= turn.state.ranks_wanted
