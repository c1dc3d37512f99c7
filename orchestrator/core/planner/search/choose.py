"""Placeholder by F until B's search is here (B overwrites this file): even plans of one shape each, the best by estimate."""

from __future__ import annotations

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.estimate import estimate
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.strategy import Choice, Option, Parent, Problem, Strategy


def choose(problem: Problem, parent: Parent | None = None) -> Choice:
    """The best of some."""
    space, layers = problem.space, len(problem.costs.order)
    size = min(space.ranks_max or problem.resources.size, problem.resources.size)
    found: list[Option] = []
    for pipeline in space.pipelines or range(1, min(size, layers) + 1):
        for tensor in space.tensors or (1,):
            for data in space.datas or range(1, min(problem.batch, size // (pipeline * tensor)) + 1):
                for zero in space.zeros:
                    if pipeline * data * tensor > size or pipeline * data * tensor < space.ranks_min:
                        continue
                    nodes = problem.resources.node_of
                    n = pipeline * data * tensor
                    alone = len({nodes[d] for d in range(n)}) < 2
                    s = Strategy(
                        data=data,
                        tensors=(tensor,) * pipeline,
                        cuts=tuple(layers * (i + 1) // pipeline - layers * i // pipeline for i in range(pipeline)),
                        schedule=PipelineSchedule.ONE_F_ONE_B,
                        units=1,
                        micro_batches=problem.batch,
                        zero=zero if data > 1 else 0,
                        shard=data if zero and data > 1 else 1,
                        copies=0 if alone else max(space.copies),
                        recompute=(min(space.recompute),) * pipeline,
                        devices=tuple(range(n)),
                    )
                    option = Option(s, estimate(problem, s))
                    if option.estimate.fits:
                        found.append(option)
    if not found:
        raise PlanError("no plan fits")
    found.sort(key=lambda o: o.estimate.effective_s)
    return Choice(found[0], tuple(found[1:3]), (), False, found[0].estimate.effective_s, len(found), "the best of even plans")
