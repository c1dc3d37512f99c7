"""What the ranks report: that they left, got ready, committed, saved, finished, failed, or found something wrong.

The same report may come from several ranks, twice, or late; the first counts, and what is of an older epoch changes nothing.
"""

from __future__ import annotations

from orchestrator.core.job import Action, FailureClass
from orchestrator.core.reshard.recovery import Commit, Held
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.changes import depart
from orchestrator.core.supervisor.epochs import end, fence, lose, running, stepped
from orchestrator.core.supervisor.state import CheckpointRef, JobPhase, Outcome, Worker, WorkerPhase
from orchestrator.core.supervisor.turn import Turn

SKIPS_MAX = 1000  # steps to skip that are remembered, the newest


def current(turn: Turn, worker_id: str, epoch: int) -> Worker | None:
    """The worker when it is a member speaking of the current epoch."""
    worker = turn.state.workers.get(worker_id)
    if worker is None or worker.phase is not WorkerPhase.MEMBER or epoch != turn.state.epoch:
        return None
    return worker


def _seated(turn: Turn, worker_id: str, epoch: int) -> Worker | None:
    """The same, also when it has left that epoch since."""
    worker = turn.state.workers.get(worker_id)
    if worker is None or epoch != turn.state.epoch:
        return None
    return worker if worker.phase in (WorkerPhase.MEMBER, WorkerPhase.LEFT) else None


def left(turn: Turn, event: ev.LeftEpoch) -> None:
    """A member is out of the epoch."""
    worker = current(turn, event.worker_id, event.epoch)
    if worker is not None:
        leave(turn, worker, event.held, f"epoch {event.epoch}: {event.detail}", fenced=event.fenced)


def leave(turn: Turn, worker: Worker, held: Held | None, detail: str, *, fenced: bool) -> None:
    """It left because it was fenced, because it was asked to, or because its groups broke; the last is a failure."""
    state = turn.state
    wished = state.change is not None and held is not None and held.params_step == held.applied_step and not fenced
    how = "was told to leave" if fenced else "left, as it was asked to," if wished else "broke out of"
    why = f"it {how} {detail}"
    turn.worker(worker.worker_id, WorkerPhase.LEFT, held=held, left_epoch=state.epoch)
    at = f"holds step {held.applied_step}" if held is not None else "holds no state"
    turn.say(f"{turn.name(worker)} {at}: {why}")
    fencing = state.phase in (JobPhase.FENCING, JobPhase.WAITING)
    if wished and state.phase is JobPhase.RUNNING:
        depart(turn)
    elif not wished and not (fenced and fencing):
        fence(turn, FailureClass.COLLECTIVE_BROKEN, f"{turn.name(worker)} left: {why}")


def ready(turn: Turn, event: ev.EpochReady) -> None:
    """A member has its state."""
    worker = current(turn, event.worker_id, event.epoch)
    if worker is None or worker.ready_epoch == event.epoch:
        return
    turn.worker(worker.worker_id, ready_epoch=event.epoch)
    if turn.state.phase is JobPhase.FORMING and all(w.ready_epoch == turn.state.epoch for w in turn.seated()):
        running(turn)


def step_committed(turn: Turn, event: ev.StepCommitted) -> None:
    """A step is done."""
    state = turn.state
    worker = state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive or event.step <= state.committed_step or event.epoch > state.epoch:
        return
    if event.epoch < state.epoch and state.resume is not None and event.step > state.resume.step:
        return  # said again after a break, of steps that were lost since: this epoch began before them
    if state.cold and state.phase in (JobPhase.FENCING, JobPhase.WAITING):
        return  # of a past that is given up
    if event.step != state.committed_step + 1:
        turn.say(f"steps {state.committed_step + 1} to {event.step - 1} were committed while nobody was told")
    if state.phase is JobPhase.FORMING and event.epoch == state.epoch:
        running(turn)
    budget, budget_step = state.budget, state.budget_step
    refill = state.job.resilience.budget_refill_steps
    if budget < state.job.resilience.failure_budget and event.step - budget_step >= refill:
        budget, budget_step = budget + 1, event.step
        turn.say(f"{refill} steps without a failure: budget {budget} of {state.job.resilience.failure_budget}")
    if event.skipped:
        turn.say(
            f"step {event.step} (loss {event.loss:.4g}, gradient norm {event.grad_norm:.4g}) was skipped: no update was applied"
        )
    turn.set(
        committed_step=event.step,
        commit=Commit(event.step, event.loss, event.grad_norm, event.scale, event.skipped, event.usual_loss),
        loss=event.loss,
        budget=budget,
        budget_step=budget_step,
        skipped=turn.state.skipped + event.skipped,
        continued=False,
    )
    stepped(turn)


def evaluated(turn: Turn, event: ev.EvalReported) -> None:
    """A held-out loss."""
    if event.step > turn.state.eval_step:
        turn.set(eval_step=event.step, eval_loss=event.loss)
        turn.say(f"held-out loss {event.loss:.4f} after step {event.step}")


def digest(turn: Turn, event: ev.DigestReported) -> None:
    """A digest of the whole state: equal on all ranks, or something is badly wrong."""
    worker = current(turn, event.worker_id, event.epoch)
    if worker is None or event.step < turn.state.digest_step:
        return
    digests = dict(turn.state.digests) if event.step == turn.state.digest_step else {}
    digests[event.worker_id] = event.digest
    turn.set(digests=digests, digest_step=event.step)
    if len(set(digests.values())) > 1:
        told = ", ".join(f"{w}: {d[:12]}" for w, d in sorted(digests.items()))
        why = f"the ranks' digests of step {event.step} differ, so at least one holds corrupt state: {told}"
        end(turn, JobPhase.FAILED, Outcome.CORRUPT_STATE, why)
    elif len(digests) == turn.plan().size:
        turn.say(f"digest of step {event.step} is equal on all {len(digests)} ranks: {event.digest[:12]}")


def checkpointed(turn: Turn, event: ev.CheckpointReported) -> None:
    """A checkpoint is durable, or failed, or turned out to be unreadable."""
    known = turn.state.checkpoint
    worker = turn.state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive or (event.ok and known is not None and event.step <= known.step):
        return
    resume = turn.state.resume
    if event.ok:
        older = (known, *turn.state.older_checkpoints) if known is not None else ()
        kept = older[: turn.state.job.checkpoint.keep - 1]
        turn.set(checkpoint=CheckpointRef(event.step, event.uri, event.detail), older_checkpoints=kept)
        turn.say(f"checkpoint of step {event.step} is durable at {event.uri}")
    elif resume is not None and resume.checkpoint_uri == event.uri and event.epoch == turn.state.epoch:
        turn.say(f"checkpoint of step {event.step} cannot be used: {event.detail}")
        if known is not None and known.uri == event.uri:
            older = turn.state.older_checkpoints
            turn.set(checkpoint=older[0] if older else None, older_checkpoints=older[1:])
            turn.say(f"falling back to that of step {older[0].step}" if older else "there is no older one")
        return
    elif turn.state.suspended:
        turn.set(unsaved_why=event.detail)
        turn.say(f"checkpoint of step {event.step} failed: {event.detail}")
    else:
        turn.say(f"checkpoint of step {event.step} failed, training goes on: {event.detail}")
    if 0 <= turn.state.checkpoint_wish < event.step:
        turn.set(checkpoint_wish=-1)
        turn.say("that is the one that was asked for")


def task_failed(turn: Turn, event: ev.TaskFailed) -> None:
    """The user's code raised, or a check of ours refuses to go on."""
    worker = current(turn, event.worker_id, event.epoch)
    if worker is None:
        return
    outcome = Outcome.CORRUPT_STATE if event.fatal_check else Outcome.USER_ERROR
    what = "a check failed" if event.fatal_check else "the task's own code raised"
    turn.say(f"{FailureClass.CORRUPT_STATE if event.fatal_check else FailureClass.USER_ERROR}: retrying would not help")
    end(turn, JobPhase.FAILED, outcome, f"{what} on {turn.name(worker)} in step {event.step}:\n{event.traceback}")


def finished(turn: Turn, event: ev.RankFinished) -> None:
    """A rank did its last step."""
    worker = current(turn, event.worker_id, event.epoch)
    if worker is None or turn.state.phase is JobPhase.FENCING:
        return
    if turn.state.phase is JobPhase.FORMING:
        running(turn)
    finished = {**turn.state.finished, event.worker_id: event.digest}
    turn.set(finished=finished)
    if len(finished) < turn.plan().size:
        return
    digests = set(finished.values())
    if len(digests) > 1:
        end(turn, JobPhase.FAILED, Outcome.CORRUPT_STATE, f"the ranks' final digests differ: {sorted(finished.items())}")
    else:
        end(turn, JobPhase.SUCCEEDED, Outcome.COMPLETED, f"step {event.step} of {turn.state.job.train.steps} is done")


def corruption(turn: Turn, event: ev.CorruptionFound) -> None:
    """Replicas of the state differ, and the holders voted on who is wrong: the accused are lost, with all that they hold."""
    worker = _seated(turn, event.worker_id, event.epoch)
    if worker is None:
        return
    state = turn.state
    what = f"replicas of the state differ after step {event.step} ({event.detail})"
    if event.accused:
        for seat in turn.plan().seats:
            accused = turn.state.workers[seat.worker_id]
            if seat.rank in event.accused and accused.phase.alive and not turn.state.phase.terminal:
                lose(turn, accused, FailureClass.CORRUPT_STATE, f"{what}, and the majority says that rank {seat.rank} is wrong")
        return
    if state.cold:
        return  # said before, by another rank
    if Action.ROLLBACK in state.job.resilience.actions(FailureClass.CORRUPT_STATE) and state.checkpoint is not None:
        turn.say(f"{FailureClass.CORRUPT_STATE}: {what}, and there is no majority: back to the durable checkpoint")
        turn.set(cold=f"{what} and nobody knows who is wrong")
        fence(turn, FailureClass.CORRUPT_STATE, what)
        return
    instead = "there is no durable checkpoint" if state.checkpoint is None else "the policy has no rollback"
    end(turn, JobPhase.FAILED, Outcome.CORRUPT_STATE, f"{what}, nobody knows who is wrong, and {instead}")


def bad_step(turn: Turn, event: ev.BadStepFound) -> None:
    """A step that must not count: go back, and apply no update when it comes again."""
    worker = _seated(turn, event.worker_id, event.epoch)
    state = turn.state
    if worker is None or event.step in state.skip_steps or event.step <= state.committed_step:
        return
    skip = tuple(sorted((*state.skip_steps, event.step)))[-SKIPS_MAX:]
    where = "to the durable checkpoint" if state.checkpoint is not None else "by one step: there is no durable checkpoint"
    why = f"step {event.step} is bad ({event.detail})"
    turn.say(f"{FailureClass.BAD_STEP}: {why}; back {where}, and it is skipped when it comes again")
    turn.set(skip_steps=skip, cold=why if state.checkpoint is not None else state.cold)
    fence(turn, FailureClass.BAD_STEP, why)
