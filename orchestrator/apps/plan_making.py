"""Makes the Preview of a job or of a described model: what would run, what it is predicted to do, and what a search would take.

A job that fixes its axes is shown as it would run, beside the search's choice for the same job with free axes. Everything here
decides nothing by itself: the plan is the planner's, the estimate the cost model's.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.apps.plan_facts import Preview
from orchestrator.apps.plan_svg import ROWS_MAX
from orchestrator.core.cluster.resources import Resources
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.lint import lint
from orchestrator.core.planner.auto import job_for, problem_of, reliability, strategy_of
from orchestrator.core.planner.cost.estimate import Costing, estimate
from orchestrator.core.planner.cost.timeline import Timed, trace
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.planner import first_plan
from orchestrator.core.planner.search.choose import choose
from orchestrator.core.planner.seating import seats_from
from orchestrator.core.planner.seats import Worker
from orchestrator.core.planner.strategy import Choice, Option, Problem, Program, Space

ACTS_MAX = 1500  # in the picture of one step, about
SEATS_MAX = 512  # ranks; a larger job is shown without a Plan, whose layouts would take long to make
UNITS_MAX = 64  # of a micro-batch, that are tried for a described model
RUNNERS = 5  # plans beside the best
DETECT_S = 5.0  # until a failure is noticed, of a model without a job


def preview_job(
    job: Job,
    *,
    graph: GraphView | None,
    costs: ModelCosts,
    resources: Resources,
    every_device: bool = False,
    runners: int = RUNNERS,
) -> Preview:
    """A job's plan on some resources. Without a graph (a described model in place of the task's) nobody is seated.

    `every_device`: the resources take the place of the job's cluster section, which limits the planner's choice otherwise.
    `runners`: how many runners-up at most. Raises PlanError when the job's fixed axes do not fit the model or the resources, or
    when nothing can be chosen for it.
    """
    free = problem_of(replace(job, planner=replace(job.planner, auto=True)), costs=costs, resources=resources)
    if every_device:
        free = replace(free, space=replace(free.space, ranks_max=0))
    if job.planner.auto:
        chosen = choose(free, runners=runners)
        preview = Preview(name=job.name, problem=free, fixed=False, shown=chosen.best, choice=chosen)
    else:
        problem = problem_of(job, costs=costs, resources=resources)
        found, why = _tried(free, runners)
        shown = _fixed(job, graph, problem)
        preview = Preview(name=job.name, problem=problem, fixed=True, shown=shown, choice=found, no_choice=why)
    if graph is None:
        return replace(preview, unseated="the model is only described")
    return _seated(preview, job, graph)


def preview_model(costs: ModelCosts, resources: Resources, *, batch: int, program: Program, runners: int = RUNNERS) -> Preview:
    """The best plan of a described model with `batch` units in a step, and so many runners-up at most. Raises PlanError."""
    space = Space(units=tuple(u for u in (1 << n for n in range(UNITS_MAX.bit_length())) if batch % u == 0 and u <= UNITS_MAX))
    failing = reliability(params=costs.params, ranks=resources.size, detect_s=DETECT_S)
    problem = Problem(costs, resources, program, batch, space, failing)
    found = choose(problem, runners=runners)
    return Preview(name=costs.name, problem=problem, fixed=False, shown=found.best, choice=found)


def spans_of(preview: Preview) -> tuple[tuple[Timed, ...], int]:
    """One step of the slowest replica in time, and how many of its micro-batches that shows; nothing of one pipeline rank."""
    strategy = preview.shown.strategy
    if strategy.pipeline == 1:
        return (), 0
    rows = min(strategy.pipeline, ROWS_MAX)
    most = max(strategy.pipeline, min(2 * strategy.pipeline, ACTS_MAX // (2 * rows)))
    drawn = min(most, *(strategy.share(r) for r in range(strategy.data)))
    times = Costing(preview.problem).stage_times(strategy)
    return trace(strategy.schedule, times, pipeline=strategy.pipeline, micro_batches=drawn), drawn


def _tried(problem: Problem, runners: int) -> tuple[Choice | None, str]:
    try:
        return choose(problem, runners=runners), ""
    except PlanError as error:
        return None, str(error)


def _fixed(job: Job, graph: GraphView | None, problem: Problem) -> Option:
    """What a job runs whose axes are fixed."""
    if graph is None or job.parallel.ranks > SEATS_MAX:
        return choose(problem).best
    plan = first_plan(job=job, graph=graph, workers=_workers(job, problem.resources)[:SEATS_MAX], epoch=1)
    strategy = strategy_of(plan, [_device(s.worker_id) for s in plan.seats])
    return Option(strategy, estimate(problem, strategy))


def _seated(preview: Preview, job: Job, graph: GraphView) -> Preview:
    """With the Plan that the workers would be told, linted."""
    shown, resources = preview.shown, preview.problem.resources
    if shown.strategy.ranks > SEATS_MAX:
        return replace(preview, unseated=f"more than {SEATS_MAX} ranks")
    workers = _workers(job, resources)
    cut = job if preview.fixed else job_for(job, shown.strategy, shown.estimate)
    seats = seats_from(shown.strategy, resources, workers)
    why = "as the job asks" if preview.fixed or preview.choice is None else preview.choice.reason
    plan = first_plan(job=cut, graph=graph, workers=workers, epoch=1, seats=seats, why=why)
    return replace(preview, plan=plan, graph=graph, findings=lint(plan))


def _workers(job: Job, resources: Resources) -> list[Worker]:
    """A made-up worker for each healthy device; its id ends in the number of the device."""
    return [
        (f"{job.name}/w{device}", resources.nodes[n].node_id)
        for device, n in enumerate(resources.node_of)
        if resources.nodes[n].healthy
    ]


def _device(worker_id: str) -> int:
    return int(worker_id.rpartition("/w")[2])
