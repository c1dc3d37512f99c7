"""Asking workers to measure themselves, where the planner chooses.

Workers without a rank are asked, all that are ready at once, so that they measure their links together and share their nodes as
they will in training. Nobody is waited for longer than the ladder of time-outs says: who has not answered by then is planned with
as if it were like the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.supervisor.commands import Colleague, MeasureWorker
from orchestrator.core.supervisor.events import WorkerMeasured
from orchestrator.core.supervisor.staff import available
from orchestrator.core.supervisor.state import Worker, WorkerPhase
from orchestrator.core.supervisor.turn import Turn
from orchestrator.core.timeouts import derive


def measure(turn: Turn, workers: Sequence[Worker]) -> bool:
    """Ask those of the workers without a rank that were not asked; whether everybody has answered or had time enough."""
    idle = [w for w in workers if w.phase is WorkerPhase.SPARE]
    fresh = [w for w in idle if w.measure is None and w.asked_ms < 0]
    if fresh:
        number = turn.state.measurings + 1
        turn.set(measurings=number)
        colleagues = tuple(Colleague(w.worker_id, w.node_id, w.endpoint) for w in fresh)
        for w in fresh:
            turn.worker(w.worker_id, asked_ms=turn.at_ms)
            turn.do(MeasureWorker(w.worker_id, turn.state.epoch, number, colleagues))
        turn.say(f"{len(fresh)} worker(s) are asked to measure their devices, their links and the model")
        return False
    limit_ms = derive(turn.state.job.resilience.detect_within_ms).measure_ms
    return all(w.measure is not None or turn.at_ms - w.asked_ms >= limit_ms for w in idle)


def measure_spares(turn: Turn) -> None:
    """Those that came while the job runs, before they are planned with."""
    if turn.state.planned:
        measure(turn, [turn.state.workers[i] for i, _ in available(turn)])


def measured(turn: Turn, event: WorkerMeasured) -> None:
    """Keep what a worker measured; a node that is measured again has its pace from that."""
    worker = turn.state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive or worker.measure == event.measure:
        return
    same = turn.state.costs is not None and event.costs.order == turn.state.costs.order
    turn.worker(worker.worker_id, measure=event.measure, costs=event.costs if same else None, pace=1.0)
    device = event.measure.device
    gflops, gbs = device.flops / 1e9, device.bandwidth / 1e9
    other = "" if same else "; what it says of the model is left out: it found other kinds of layers than the first worker did"
    turn.say(f"{turn.name(worker)} measured its {device.model or device.kind}: {gflops:.3g} GFLOP/s, {gbs:.3g} GB/s{other}")
