"""`make bench-schedule`: how long it takes to plan the reshard of a very large model, and how much memory, without a cluster.

260 B parameters on 1,024 ranks of which eight, one node, are drained: once sharded over data-parallel ranks alone (ZeRO-3, 1,024
-> 1,016), once as a mesh of 16 pipeline x 8 data x 8 tensor ranks that loses a replica (ZeRO-1, 1,024 -> 896). There are no
copies, so those who leave send what they own before they go. The clock runs over what a supervisor does between the last word of
the old epoch and the first of the new one: the new plan with its layouts, and the schedule with all of its checks.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness import figures, say
from orchestrator.core.graph.space import space_of
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.layout import subtract, total
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan, Seat
from orchestrator.core.planner.planner import first_plan, replan
from orchestrator.core.reshard.recovery import Held, Resume, resolve
from orchestrator.testkit.jobs import make_graph, make_job

PARAMETERS = 260_000_000_000
LAYERS = 96
BLOCK = 1 << 20  # elements: a rank of 1,024 has about 242 blocks, which 1,016 ranks can share out evenly
SLOTS = 8  # ranks of a node
SECONDS_MAX = 5.0
PEAK_GIB_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Case:
    """One change of shape. Axes are pipeline, data, tensor."""

    name: str
    job: Job
    data: int  # replicas of the new plan


@dataclass(frozen=True, slots=True)
class Measured:
    """What one case took, and what came of it."""

    plan_s: float
    resolve_s: float
    moved: int  # elements, moments of the optimizer counted once
    minimum: int
    resume: Resume

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.plan_s + self.resolve_s


def cases() -> tuple[Case, ...]:
    """The two of the story."""
    flat = make_job(data=1024, zero_stage=3, micro_batches=1024, slots_per_node=SLOTS)
    mesh = make_job(data=8, pipeline=16, tensor=8, zero_stage=1, micro_batches=1024, slots_per_node=SLOTS)
    return Case("data", flat, 1016), Case("mesh", mesh, 7)


def measure(case: Case, graph: GraphView) -> Measured:
    """Make the first plan (not measured: it is the past), drain its last node, and plan what follows."""
    job = case.job
    workers = [(f"w{r:04}", f"node{r // SLOTS:03}") for r in range(job.parallel.ranks)]
    old = first_plan(job=job, graph=graph, workers=workers, epoch=1)
    held = {s.worker_id: all_of(old, s.rank, step=1000) for s in old.seats}
    stay = workers[:-SLOTS]
    began = time.perf_counter()
    new = replan(
        parent=old,
        job=job,
        graph=graph,
        workers=stay,
        held=held,
        epoch=2,
        pipeline=job.parallel.pipeline,
        data=case.data,
        reason=f"{workers[-1][1]} is drained",
    )
    planned = time.perf_counter()
    seated = {s.worker_id for s in new.seats}
    leaving = [
        Seat(new.size + k, worker_id, node_id) for k, (worker_id, node_id) in enumerate(w for w in workers if w[0] not in seated)
    ]
    by_rank = {s.rank: held[s.worker_id] for s in (*new.seats, *leaving)}
    resume = resolve(new=new, held=by_rank, known=None, leaving=leaving)
    done = time.perf_counter()
    moved = sum(t.numel for t in resume.transfers)
    return Measured(planned - began, done - planned, moved, least(new, by_rank), resume)


def all_of(plan: Plan, rank: int, *, step: int) -> Held:
    """A rank that has finished a step."""
    optimizer, params = (plan.layout(name).holdings[rank].everything for name in (OPTIMIZER, PARAMS))
    return Held(plan.epoch, rank, plan.axis(TENSOR), step, step, step, optimizer, params, None)


def least(new: Plan, held: dict[int, Held]) -> int:
    """Elements that each rank of the new plan needs and does not hold, counted apart from what made the schedule."""
    out = 0
    for rank in range(new.size):
        out += total(subtract(new.layout(PARAMS).holdings[rank].everything, held[rank].params))
        out += total(subtract(new.layout(OPTIMIZER).holdings[rank].everything, held[rank].optimizer))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The bench; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="bench.schedule", description=__doc__)
    parser.parse_args(argv)
    graph = make_graph(*[PARAMETERS // LAYERS] * LAYERS, block=BLOCK)
    found: dict[str, Measured] = {}
    for case in cases():
        m = found[case.name] = measure(case, graph)
        p = case.job.parallel
        numel = space_of(graph, p.tensor).numel
        say(
            f"{case.name}: {p.pipeline} x {p.data} x {p.tensor} -> {p.pipeline} x {case.data} x {p.tensor} ranks: "
            f"plan {m.plan_s:.2f} s, schedule {m.resolve_s:.2f} s; {m.moved / numel:.3f} of a state vector moves in "
            f"{len(m.resume.transfers)} transfers and {m.resume.transfers[-1].round + 1} rounds, "
            f"predicted {m.resume.predicted_ms / 1000:.1f} s"
        )
    seconds = max(m.seconds for m in found.values())
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    over = max(m.moved / m.minimum for m in found.values())
    figures(
        "schedule",
        seconds=round(seconds, 2),
        peak_gib=round(peak_gib, 3),
        bytes_over_minimum=round(over, 4),
        **{f"{name}_plan_s": round(m.plan_s, 2) for name, m in found.items()},
        **{f"{name}_schedule_s": round(m.resolve_s, 2) for name, m in found.items()},
        **{f"{name}_predicted_ms": m.resume.predicted_ms for name, m in found.items()},
        **{f"{name}_rounds": m.resume.transfers[-1].round + 1 for name, m in found.items()},
    )
    return 0 if seconds <= SECONDS_MAX and peak_gib <= PEAK_GIB_MAX and over == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
