"""The planner at work for the supervisor: what there is becomes a problem, its answer a plan, and every plan a prediction.

Where the job leaves its plan to the planner, the first plan, the plan after a loss that no spare makes up for, and the plan for
workers that came, slowed or recovered are chosen from what the workers measured. What keeps every seat or follows a rule (a swap,
a drain) is not chosen, but predicted all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.core.cluster.machines import elsewhere, homes
from orchestrator.core.cluster.measured import failure_rates, resources_from, type_name
from orchestrator.core.cluster.resources import Resources
from orchestrator.core.job import Job
from orchestrator.core.plan.plan import TENSOR, Plan, Seat
from orchestrator.core.planner.auto import job_for, merged, problem_of, strategy_of
from orchestrator.core.planner.cost.estimate import estimate
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.search.choose import choose
from orchestrator.core.planner.seating import seats_from
from orchestrator.core.planner.strategy import Choice, Option, Parent, Problem
from orchestrator.core.supervisor.commands import ExpectEpoch
from orchestrator.core.supervisor.handover import missing
from orchestrator.core.supervisor.turn import Turn

GAIN_MIN = 0.95  # a plan that takes more than this share of the present one's time is not worth leaving an epoch for
MS_PER_HOUR = 3_600_000

Workers = Sequence[tuple[str, str]]  # (worker_id, node_id)


@dataclass(frozen=True, slots=True)
class Pick:
    """What the planner answered, ready to be made a plan of."""

    choice: Choice
    job: Job  # cut as the choice says
    seats: tuple[Seat, ...]
    layers: tuple[int, ...]

    @property
    def words(self) -> str:
        """Why, and what is expected of it."""
        interval = f"; a checkpoint every {self.job.checkpoint.every} steps" if self.job.planner.checkpoint else ""
        return f"chosen by the planner: {self.choice.reason}{interval}"


def pick(turn: Turn, workers: Workers, *, like: Plan | None, ranks_max: int = 0) -> Pick:
    """The best plan for these workers; after `like`, which runs or ran, moving state counts. Raises PlanError: there is none.

    `ranks_max`: no more than that, beside what the job says; 0: as the job says.
    """
    first, order = _pick(turn, workers, like=like, ranks_max=ranks_max)
    picked = first
    while _loses_all(turn, picked, order):
        order = _spread(order, max(1, len(picked.seats) - 1))
        try:
            picked, order = _pick(turn, order, like=like, ranks_min=2, ranks_max=ranks_max)
        except PlanError:
            return first  # the job allows no plan on two machines
    return picked


def _loses_all(turn: Turn, picked: Pick, workers: Workers) -> bool:
    """Whether all state sits on one machine (or node) although the job wants it twice and there is another one."""
    wanted = 1 in turn.state.job.planner.space.copies
    return wanted and bool(elsewhere((s.node_id for s in picked.seats), (node for _, node in workers)))


def _pick(turn: Turn, workers: Workers, *, like: Plan | None, ranks_max: int, ranks_min: int = 1) -> tuple[Pick, Workers]:
    state = turn.state
    if not known(turn, workers):
        raise PlanError(f"none of {len(workers)} workers has measured itself")
    order, resources = _resources(turn, workers)
    problem = _problem(turn, resources)
    space = replace(problem.space, ranks_min=max(ranks_min, problem.space.ranks_min))
    if ranks_max:
        space = replace(space, ranks_max=min(ranks_max, space.ranks_max or ranks_max))
    parent = None
    if like is not None:
        strategy = strategy_of(like, _devices(like, order))
        left = state.job.train.steps - state.committed_step
        bandwidth = min(n.network.bandwidth for n in resources.nodes)
        parent = Parent(strategy=strategy, steps_left=max(1, left), move_bandwidth=bandwidth)
        space = replace(space, tensors=(like.axis(TENSOR),))  # it orders the sums
    choice = choose(replace(problem, space=space), parent)
    best = choice.best
    picked = Pick(
        choice=choice,
        job=job_for(state.job, best.strategy, best.estimate),
        seats=seats_from(best.strategy, resources, order),
        layers=best.strategy.cuts,
    )
    return picked, order


def _spread(workers: Workers, at_most: int) -> list[tuple[str, str]]:
    """The first `at_most` workers of each machine; of each node, where all are on one machine."""
    kept: dict[str, list[tuple[str, str]]] = {}
    for worker, home in zip(workers, homes([node for _, node in workers]), strict=True):
        kept.setdefault(home, []).append(worker)
    return [w for of in kept.values() for w in of[:at_most]]


def take(turn: Turn, picked: Pick) -> None:
    """From now on the job is cut like this, until something else is chosen."""
    turn.set(chosen=picked.job, choice=picked.choice)
    turn.choice = picked.choice


def expect(turn: Turn, plan: Plan) -> None:
    """Note what a plan that is about to run is expected to do, where the planner knows the model and the workers."""
    state = turn.state
    workers = [(s.worker_id, s.node_id) for s in plan.seats]
    if not state.job.planner.auto or state.costs is None or not known(turn, workers):
        turn.set(predicted=None)
        return
    option = _present(turn, plan, workers)
    turn.set(predicted=option)
    turn.do(ExpectEpoch(plan.epoch, option, turn.choice))


def better(turn: Turn, workers: Workers) -> str:
    """Why another plan for these workers is worth a planned change; empty when it is not. For a job whose epoch runs."""
    state, plan = turn.state, turn.plan()
    members = [(s.worker_id, s.node_id) for s in plan.seats]
    picked: Pick | None = None
    for among in (workers, members):  # a spare must not take the place of the only holder of some state
        try:
            picked = pick(turn, among, like=plan)
        except PlanError as error:
            turn.say(f"the planner finds no plan for {len(among)} workers: {error}")
            return ""
        seated = {s.worker_id for s in picked.seats}
        if not missing(plan, [s.rank for s in plan.seats if s.worker_id not in seated]):
            break
    else:
        return ""
    best = picked.choice.best
    now = _present(turn, plan, workers)
    left = max(1, state.job.train.steps - state.committed_step)
    gain = left * (now.estimate.effective_s - best.estimate.effective_s) - best.move_s
    if gain <= 0 or best.estimate.effective_s > GAIN_MIN * now.estimate.effective_s:
        return ""
    return f"{now.estimate.step_s * 1000:.3g} ms a step become {best.estimate.step_s * 1000:.3g} ms: {picked.choice.reason}"


def known(turn: Turn, workers: Workers) -> bool:
    """Whether at least one of them has measured itself: then the planner can be asked."""
    return any(turn.state.workers[i].measure for i, _ in workers)


def weighing(turn: Turn, workers: Workers) -> tuple[str, ...]:
    """What a choice for these workers depends on, in short: the same again needs no second look."""
    told = [turn.state.workers[i] for i, _ in workers]
    return tuple(sorted(f"{w.worker_id} {w.pace:.2g} {w.measure is not None}" for w in told))


def _present(turn: Turn, plan: Plan, workers: Workers) -> Option:
    order, resources = _resources(turn, workers)
    strategy = strategy_of(plan, _devices(plan, order))
    return Option(strategy, estimate(_problem(turn, resources), strategy))


def _devices(plan: Plan, order: Workers) -> list[int]:
    numbers = {worker_id: n for n, (worker_id, _) in enumerate(order)}
    return [numbers.get(s.worker_id, -1) for s in plan.seats]


def _problem(turn: Turn, resources: Resources) -> Problem:
    state = turn.state
    known = [w.costs for w in state.workers.values() if w.costs is not None]
    assert state.costs is not None, "workers said hello with the model's costs"
    return problem_of(state.job, costs=merged(known or [state.costs]), resources=resources)


def _resources(turn: Turn, workers: Workers) -> tuple[Workers, Resources]:
    """The workers node by node, and the devices that they are, numbered alike."""
    state = turn.state
    assert state.cluster is not None
    order = sorted(workers, key=lambda w: (w[1], w[0]))
    told = {i: state.workers[i] for i, _ in order}
    measured = {i: w.measure for i, w in told.items() if w.measure is not None}
    kinds = {node: type_name(m.device.kind, m.device.model) for i, node in order if (m := measured.get(i)) is not None}
    usual = next(iter(kinds.values()))
    kinds |= {node: usual for _, node in order if node not in kinds}  # a node that nobody measured fails as often as others
    hours = max(0, turn.at_ms - state.began_ms) / MS_PER_HOUR
    losses: dict[str, int] = {}
    for worker_id in (i for r in state.recoveries for i in r.lost):
        if worker_id in state.workers:
            node = state.workers[worker_id].node_id
            losses[node] = losses.get(node, 0) + 1
    resources = resources_from(
        state.cluster,
        order,
        measured,
        pace={i: w.pace for i, w in told.items()},
        failures_per_hour=failure_rates(kinds, losses=losses, hours=dict.fromkeys(kinds, hours)),
    )
    return order, resources
