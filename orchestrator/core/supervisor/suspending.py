"""A job that gives its machines back for a while, and goes on later, perhaps on others.

With a place for checkpoints one is written first; then the ranks leave after a whole step and every worker ends. What happens to
the machines after that, and whatever is found missing until the job has committed a step again, is nobody's failure and costs
nothing of the budget. It goes on from its newest durable checkpoint, at full strength; without one from the seed.
"""

from __future__ import annotations

from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.changes import ask
from orchestrator.core.supervisor.commands import ExitWorker, TakeCheckpoint
from orchestrator.core.supervisor.epochs import touch
from orchestrator.core.supervisor.staff import available
from orchestrator.core.supervisor.state import Change, ChangeKind, JobPhase, State, WorkerPhase
from orchestrator.core.supervisor.turn import Turn


def suspend(turn: Turn, event: ev.SuspendRequested) -> None:
    """Mark the job, and ask for the checkpoint that it will go on from."""
    state = turn.state
    because = f" ({event.why})" if event.why else ""
    if state.suspended:
        turn.say(f"suspend by {event.who}{because}: nothing to do")
        return
    turn.set(suspended=f"{event.who}{because}", continued=False)
    if not state.job.checkpoint.uri:
        turn.say(f"the job is to be suspended, says {event.who}{because}; it has no place for checkpoints and will begin again")
    elif not _unsaved(state):
        turn.say(f"the job is to be suspended, says {event.who}{because}: nothing was trained that is not saved")
    else:
        turn.say(f"the job is to be suspended, says {event.who}{because}: a checkpoint first")
        turn.set(checkpoint_wish=state.committed_step)
        if state.phase is JobPhase.RUNNING:
            for w in turn.members():
                turn.do(TakeCheckpoint(w.worker_id, state.epoch))


def go_on(turn: Turn, event: ev.ContinueRequested) -> None:
    """Take the mark away."""
    state = turn.state
    if not state.suspended:
        turn.say(f"continue by {event.who}: the job is not suspended")
        return
    turn.set(suspended="", continued=True, retry_spawn_ms=0, checkpoint_wish=-1)
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
        return not _back(turn)
    if not state.parked:
        return False
    if state.phase is JobPhase.RUNNING:
        if state.change is None and not state.finished:
            ask(turn, Change(ChangeKind.SUSPEND, f"the job is suspended by {state.suspended}", turn.at_ms))
        return True
    if state.phase is JobPhase.FENCING and not turn.members():
        touch(turn, fenced_ms=turn.at_ms)
        turn.to_phase(JobPhase.WAITING)
        turn.set(change=None)
    if turn.state.phase is JobPhase.WAITING:
        _park(turn)
        return True
    return False


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


def _back(turn: Turn) -> bool:
    """Whether enough workers for full strength are there again; unlike after a failure, nobody begins with fewer."""
    left = sum(1 for w in turn.seated() if w.phase is WorkerPhase.LEFT)
    return left + len(available(turn)) >= turn.state.ranks_wanted


def _unsaved(state: State) -> bool:
    saved = state.checkpoint.step if state.checkpoint else 0
    return state.plan is not None and state.committed_step > saved
