"""Slow workers: who is slow, since when, and what is done about one that stays slow.

A rank's time per micro-batch is compared with its peers', each by its share of the model where the model is cut over ranks. Slow
twice as long as it takes to find a dead worker is confirmed; then the policy's first possible action is taken, and if none is
possible yet, the same question is asked again at the next tick.
"""

from __future__ import annotations

from bisect import bisect_left

from orchestrator.core.job import Action, FailureClass
from orchestrator.core.plan.plan import PIPELINE, Plan
from orchestrator.core.planner.shape import shape_for
from orchestrator.core.supervisor.candidates import goal_job
from orchestrator.core.supervisor.changes import ask, improve
from orchestrator.core.supervisor.epochs import end
from orchestrator.core.supervisor.events import Observation
from orchestrator.core.supervisor.moving import SLOW, replacements
from orchestrator.core.supervisor.recut import recut
from orchestrator.core.supervisor.staff import available
from orchestrator.core.supervisor.state import Change, ChangeKind, JobPhase, Outcome, Worker
from orchestrator.core.supervisor.turn import Turn
from orchestrator.core.timeouts import Timeouts

FASTER = 0.8  # a worker is no longer slow at this share of the limit
CONFIRM = 2  # times detect_within without a break


def judge_pace(turn: Turn, seen: dict[str, Observation], limits: Timeouts) -> None:
    """Mark who is slow and who is so no more, and act on what is confirmed."""
    plan, members = turn.plan(), turn.members()
    paces = {w.worker_id: seen[w.worker_id].micro_batch_ms for w in members if w.worker_id in seen}
    # With two replicas nobody can say which of them is slow; with two stages the one that is holds the other up.
    if len(paces) < (3 if plan.axis(PIPELINE) == 1 else 2) or min(paces.values()) <= 0:
        return
    slowness = _slowness(turn)
    load = {s.worker_id: _load(plan, s.rank) * slowness[s.worker_id] for s in plan.seats}
    by_load = sorted(p / load[i] for i, p in paces.items())
    for w in members:
        if w.worker_id not in paces:
            continue
        mine = paces[w.worker_id]
        usual = round(_median_without(by_load, mine / load[w.worker_id]) * load[w.worker_id])
        factor = turn.state.job.resilience.slow_factor
        if w.slow_since_ms < 0 and not w.suspect and mine > factor * usual:
            told = f"slow: {mine} ms per micro-batch, its peers {usual} ms"
            turn.worker(w.worker_id, suspect=told, slow_since_ms=turn.at_ms)
            turn.say(f"{turn.name(w)} is slow, {FailureClass.WORKER_SLOW}: {mine} ms per micro-batch, its peers {usual} ms")
        elif (w.slow_since_ms >= 0 or w.pace > 1.0) and mine < FASTER * factor * usual:
            suspect = "" if w.suspect.startswith("slow") else w.suspect
            turn.worker(w.worker_id, pace=1.0, slow_since_ms=-1, slow_told=False, suspect=suspect)
            turn.say(f"{turn.name(w)} is no longer slow")
    confirm_ms = CONFIRM * turn.state.job.resilience.detect_within_ms
    for w in turn.members():
        if w.slow_since_ms >= 0 and turn.at_ms - w.slow_since_ms >= confirm_ms and not w.unwanted:
            if turn.state.phase is not JobPhase.RUNNING or turn.state.change is not None or turn.state.finished:
                return
            if w.pace == 1.0 and turn.state.planned:  # what it trains at is the best measure of it
                each = paces[w.worker_id] / load[w.worker_id]
                w = turn.worker(w.worker_id, pace=round(max(1.0, each / _median_without(by_load, each)), 2))
            _act(turn, w, paces, confirm_ms)


def _median_without(ordered: list[float], value: float) -> float:
    """The lower median of an ascending list, one `value` of it left out."""
    middle = (len(ordered) - 2) // 2
    return ordered[middle if middle < bisect_left(ordered, value) else middle + 1]


def _slowness(turn: Turn) -> dict[str, float]:
    """How much slower than the fastest rank each worker's device was measured to be: that much is no surprise."""
    measures = {s.worker_id: turn.state.workers[s.worker_id].measure for s in turn.plan().seats}
    if not turn.state.planned:
        return dict.fromkeys(measures, 1.0)
    fastest = max((m.device.flops for m in measures.values() if m is not None), default=0.0)
    return {i: fastest / m.device.flops if m is not None else 1.0 for i, m in measures.items()}


def _load(plan: Plan, rank: int) -> int:
    """How much of the model a rank computes."""
    return max(1, sum(i.numel for i in plan.section_of(rank)))


def _act(turn: Turn, worker: Worker, paces: dict[str, int], confirm_ms: int) -> None:
    state, plan = turn.state, turn.plan()
    assert state.graph is not None
    policy = f"{turn.name(worker)} has been slow for {confirm_ms / 1000:.0f} s, the policy for {FailureClass.WORKER_SLOW}"
    unwanted = f"{SLOW}, {worker.suspect.removeprefix('slow: ') or 'for long'}"
    for action in state.job.resilience.actions(FailureClass.WORKER_SLOW):
        match action:
            case Action.REPORT:
                if not worker.slow_told:
                    turn.worker(worker.worker_id, slow_told=True)
                    turn.say(f"{policy}: {action}")
                return
            case Action.SWAP:
                marked = turn.worker(worker.worker_id, unwanted=unwanted, without=False)
                if replacements(turn, [marked], turn.members()):
                    turn.say(f"{policy}: {action}")
                    return
                turn.worker(worker.worker_id, unwanted="")
            case Action.SHRINK:
                if shape_for(goal_job(state), state.graph, plan.size - 1 + len(available(turn))) is not None:
                    turn.worker(worker.worker_id, unwanted=unwanted, without=True)
                    turn.say(f"{policy}: {action}")
                    return
            case Action.RECUT if state.planned:
                change = improve(turn)
                if change is not None:
                    turn.say(f"{policy}: {action}")
                    ask(turn, change)
                    return
            case Action.RECUT:
                layers = recut(plan, state.graph, {r: paces.get(plan.seats[r].worker_id, 0) for r in range(plan.size)})
                if layers:
                    turn.say(f"{policy}: {action}")
                    cut = "-".join(str(s.last - s.first) for s in plan.stages)
                    why = f"layers move away from {turn.name(worker)}: {cut} becomes {'-'.join(map(str, layers))}"
                    ask(turn, Change(ChangeKind.RECUT, why, turn.at_ms, layers))
                    return
            case Action.FAIL:
                end(turn, JobPhase.FAILED, Outcome.UNRECOVERABLE, f"{policy}: {action}")
                return
            case Action.WAIT | Action.ROLLBACK:
                continue
