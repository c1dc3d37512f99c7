"""What no single field can tell: the defaults that depend on other fields, and the combinations that cannot work.

A rule names the fields it reads, so that a file with one broken field still hears about everything else that is wrong
with it: a rule is skipped only where something it reads is itself refused. The first field that the file really holds
gets the blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orchestrator.core.job import Action, BadStep, FailureClass
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.spec.document import Path
from orchestrator.spec.model import EVERY_AUTO, JobSpec, Planning

WARMUP_STEPS_DEFAULT_MAX = 100

MICRO_BATCHES: Path = ("train", "micro_batches")
STEPS: Path = ("train", "steps")
WARMUP: Path = ("train", "optimizer", "warmup_steps")
PLAN: Path = ("parallel", "plan")
DATA: Path = ("parallel", "data")
ZERO: Path = ("parallel", "zero")
SHARD: Path = ("parallel", "shard")
TENSOR: Path = ("parallel", "tensor")
PIPELINE: Path = ("parallel", "pipeline")
STAGES: Path = ("parallel", "stages_per_rank")
LAYERS: Path = ("parallel", "layers_per_stage")
SCHEDULE: Path = ("parallel", "schedule")
RECOMPUTE: Path = ("parallel", "recompute")
SHARES: Path = ("parallel", "shares")
COPIES: Path = ("parallel", "copies")
NODES: Path = ("cluster", "nodes")
SLOTS: Path = ("cluster", "slots_per_node")
CHECKPOINT: Path = ("checkpoint",)
EVERY: Path = ("checkpoint", "every")
POLICY: Path = ("resilience", "policy")
MIN_RANKS: Path = ("resilience", "min_ranks")
BAD_STEP: Path = ("resilience", "on_bad_step")
SPIKE: Path = ("resilience", "loss_spike_factor")
RANKS = (DATA, PIPELINE, TENSOR, NODES, SLOTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A combination that cannot work. `blame`: the fields that could be changed, the likeliest first."""

    blame: tuple[Path, ...]
    message: str
    fix: str


def auto(spec: JobSpec) -> bool:
    """Whether the planner cuts the job; what follows below is then only what to begin with."""
    return spec.parallel.plan is Planning.AUTO


def data_ranks(spec: JobSpec) -> int:
    """Ranks along the data axis; as many as the slots of the cluster allow unless the file says otherwise."""
    p = spec.parallel
    if p.data is not None:
        return p.data
    data = max(1, slots(spec) // (p.pipeline * p.tensor))
    return min(data, spec.train.micro_batches) if auto(spec) else data


def ranks(spec: JobSpec) -> int:
    """Ranks at full strength."""
    return spec.parallel.pipeline * data_ranks(spec) * spec.parallel.tensor


def slots(spec: JobSpec) -> int:
    """Workers that the training nodes have room for."""
    return spec.cluster.nodes * spec.cluster.slots_per_node


def shard(spec: JobSpec) -> int:
    """Ranks that a sharded state is spread over; 0: the whole data axis."""
    return 0 if spec.parallel.shard in (None, data_ranks(spec)) else spec.parallel.shard or 0


def schedule(spec: JobSpec) -> PipelineSchedule:
    """The order of passes: interleaved where a rank has several stages, else 1F1B, unless the file says otherwise."""
    if spec.parallel.schedule is not None and not auto(spec):
        return spec.parallel.schedule
    return PipelineSchedule.INTERLEAVED if spec.parallel.stages_per_rank > 1 else PipelineSchedule.ONE_F_ONE_B


def copies(spec: JobSpec) -> int:
    """Holders of a region that no replica has, beside its owner; one wherever there is such a region and another node."""
    if spec.parallel.copies is not None:
        return spec.parallel.copies
    return int(_has_unique_state(spec) and spec.cluster.nodes > 1 and ranks(spec) > 1)


def actions(spec: JobSpec) -> dict[FailureClass, tuple[Action, ...]]:
    """What the file says about each class of failure; `default` stands for all but slow workers."""
    policy = spec.resilience.policy
    written = {
        FailureClass.WORKER_EXITED: policy.worker_exited or policy.default,
        FailureClass.NODE_LOST: policy.node_lost or policy.default,
        FailureClass.WORKER_HUNG: policy.worker_hung or policy.default,
        FailureClass.WORKER_SLOW: policy.worker_slow,
        FailureClass.CORRUPT_STATE: policy.corrupt_state or policy.default,
    }
    return {failure: chosen for failure, chosen in written.items() if chosen}


def _has_unique_state(spec: JobSpec) -> bool:
    """Whether some state can be on one rank alone: a shard, or a pipeline stage or tensor section with one replica (left)."""
    return spec.parallel.zero >= 1 or spec.parallel.pipeline * spec.parallel.tensor > 1


def warmup_steps(spec: JobSpec) -> int:
    """Steps of linear warm-up; a tenth of the run, at most WARMUP_STEPS_DEFAULT_MAX."""
    if spec.train.optimizer.warmup_steps is not None:
        return spec.train.optimizer.warmup_steps
    return min(spec.train.steps // 10, WARMUP_STEPS_DEFAULT_MAX)


def violations(spec: JobSpec, *, broken: Callable[[Path], bool] = lambda path: False) -> list[Violation]:
    """Everything that cannot work, leaving out the rules that read a field for which `broken` is true."""
    rules = [rule for reads, rule in _RULES if not any(broken(path) for path in reads)]
    skipped = _OF_GIVEN_PLANS if auto(spec) else frozenset()
    return [violation for rule in rules if rule not in skipped for violation in rule(spec)]


def _ranks_fit(spec: JobSpec) -> Iterator[Violation]:
    cluster, p, data = spec.cluster, spec.parallel, data_ranks(spec)
    room = slots(spec)
    if ranks(spec) <= room:
        return
    where = f"{room} slots (cluster.nodes {cluster.nodes} x cluster.slots_per_node {cluster.slots_per_node})"
    other = p.pipeline * p.tensor
    if other == 1:
        what, fix = f"{data} data ranks do not fit into {where}", f"lower parallel.data to {room} or less"
    else:
        factors = f"pipeline {p.pipeline} x data {data} x tensor {p.tensor}"
        what = f"{ranks(spec)} ranks ({factors}) do not fit into {where}"
        fix = f"lower parallel.data to {room // other}" if room >= other else "lower parallel.pipeline or parallel.tensor"
    blame = (DATA, PIPELINE, TENSOR, NODES, SLOTS) if room >= other else (PIPELINE, TENSOR, NODES, SLOTS)
    yield Violation(blame=blame, message=what, fix=f"{fix}, or raise cluster.nodes")


def _ranks_have_work(spec: JobSpec) -> Iterator[Violation]:
    data, micro_batches = data_ranks(spec), spec.train.micro_batches
    if micro_batches < data:
        yield Violation(
            blame=(MICRO_BATCHES, DATA, NODES, SLOTS),
            message=f"{micro_batches} micro-batches leave some of {data} data ranks without work",
            fix=f"raise train.micro_batches to {data} or more, or lower parallel.data",
        )


def _shards_divide(spec: JobSpec) -> Iterator[Violation]:
    size, data = spec.parallel.shard, data_ranks(spec)
    if size is None:
        return
    if spec.parallel.zero == 0:
        yield Violation(
            blame=(SHARD,),
            message="with parallel.zero 0 nothing is sharded",
            fix="set parallel.zero to 1, 2 or 3, or remove parallel.shard",
        )
    elif data % size:
        yield Violation(
            blame=(SHARD, DATA, NODES, SLOTS),
            message=f"shards over {size} ranks do not divide {data} data ranks",
            fix=f"set parallel.shard to a divisor of {data}, or remove it to shard over all of them",
        )


def _copies_need_shards(spec: JobSpec) -> Iterator[Violation]:
    if spec.parallel.copies and not _has_unique_state(spec):
        yield Violation(
            blame=(COPIES, ZERO),
            message="with parallel.zero 0 every rank holds everything, so there is nothing to copy",
            fix="set parallel.zero to 1, or remove parallel.copies",
        )


def _copies_need_room(spec: JobSpec) -> Iterator[Violation]:
    if not spec.parallel.copies:
        return
    if spec.cluster.nodes < 2:
        yield Violation(
            blame=(COPIES, NODES),
            message="a shard and its copy never share a node, and cluster.nodes is 1",
            fix="raise cluster.nodes to 2 or more, or set parallel.copies to 0",
        )
    elif ranks(spec) < 2:
        yield Violation(
            blame=(COPIES, DATA),
            message="a copy is held by another rank, and parallel.data is 1",
            fix="raise parallel.data to 2 or more, or set parallel.copies to 0",
        )


def _stages_fit(spec: JobSpec) -> Iterator[Violation]:
    p = spec.parallel
    count = p.pipeline * p.stages_per_rank
    if p.layers_per_stage and len(p.layers_per_stage) != count:
        stages = f"{p.pipeline} x {p.stages_per_rank} = {count} stages" if p.stages_per_rank > 1 else f"{count} stages"
        yield Violation(
            blame=(LAYERS,),
            message=f"lists {len(p.layers_per_stage)} stages, and the pipeline has {stages}",
            fix=f"write {count} numbers, or remove parallel.layers_per_stage to have the stages balanced",
        )


def _schedule_fits(spec: JobSpec) -> Iterator[Violation]:
    p = spec.parallel
    if p.pipeline == 1 and p.stages_per_rank > 1:
        yield Violation(
            blame=(STAGES,),
            message="one rank has nothing to interleave, and parallel.pipeline is 1",
            fix="raise parallel.pipeline, or remove parallel.stages_per_rank",
        )
    elif schedule(spec) is PipelineSchedule.INTERLEAVED and p.stages_per_rank == 1:
        yield Violation(
            blame=(SCHEDULE,),
            message="an interleaved pipeline has several stages on each rank, and parallel.stages_per_rank is 1",
            fix="set parallel.stages_per_rank to 2 or more, or parallel.schedule to 1f1b",
        )
    elif schedule(spec) is not PipelineSchedule.INTERLEAVED and p.stages_per_rank > 1:
        yield Violation(
            blame=(SCHEDULE, STAGES),
            message=f"{p.schedule} runs one stage on each rank, and parallel.stages_per_rank is {p.stages_per_rank}",
            fix="set parallel.schedule to interleaved, or remove parallel.stages_per_rank",
        )


def _recompute_names_stages(spec: JobSpec) -> Iterator[Violation]:
    asked, stages = spec.parallel.recompute, spec.parallel.pipeline * spec.parallel.stages_per_rank
    if len(asked) not in (1, stages):
        yield Violation(
            blame=(RECOMPUTE, PIPELINE, STAGES),
            message=f"speaks of {len(asked)} stages, and the pipeline has {stages}",
            fix=f"list {stages} of true and false, or write one of them for all stages",
        )


def _shares_are_dealt(spec: JobSpec) -> Iterator[Violation]:
    shares, data, total = spec.parallel.shares, data_ranks(spec), spec.train.micro_batches
    if not shares:
        return
    if spec.parallel.zero > 1:
        yield Violation(
            blame=(SHARES, ZERO),
            message=f"with parallel.zero {spec.parallel.zero} every data rank takes its turn in each round of micro-batches",
            fix="set parallel.zero to 0 or 1, or remove parallel.shares",
        )
    elif (len(shares), sum(shares)) != (data, total):
        yield Violation(
            blame=(SHARES, MICRO_BATCHES, DATA),
            message=f"shares of {sum(shares)} micro-batches for {len(shares)} data ranks, and there are {total} for {data}",
            fix=f"list {data} numbers that add up to {total}",
        )


def _auto_leaves_free(spec: JobSpec) -> Iterator[Violation]:
    if not auto(spec):
        return
    p = spec.parallel
    given = {SHARD: p.shard, STAGES: p.stages_per_rank > 1, LAYERS: p.layers_per_stage, SHARES: p.shares}
    given[RECOMPUTE] = len(p.recompute) > 1
    for path, value in given.items():
        if value:
            yield Violation(
                blame=(path,),
                message="with parallel.plan auto the planner chooses it",
                fix=f"remove {'.'.join(map(str, path))}, or write down the whole plan with parallel.plan given",
            )


def _interval_is_planned(spec: JobSpec) -> Iterator[Violation]:
    if spec.checkpoint is not None and spec.checkpoint.every == EVERY_AUTO and not auto(spec):
        yield Violation(
            blame=(EVERY,),
            message="the interval comes from the planner, and parallel.plan is given",
            fix="set parallel to auto, or write a number of steps",
        )


def _rollback_has_a_target(spec: JobSpec) -> Iterator[Violation]:
    if spec.checkpoint is not None:
        return
    fix = "add a checkpoint section with a uri, or"
    corrupt = spec.resilience.policy.corrupt_state or ()
    if Action.ROLLBACK in corrupt:
        yield Violation(
            blame=((*POLICY, FailureClass.CORRUPT_STATE),),
            message="rollback goes to a durable checkpoint, and the job takes none",
            fix=f"{fix} remove rollback",
        )
    if spec.resilience.on_bad_step is BadStep.ROLLBACK:
        yield Violation(
            blame=(BAD_STEP,),
            message="rollback goes to a durable checkpoint, and the job takes none",
            fix=f"{fix} set resilience.on_bad_step to skip or fail",
        )


def _layers_can_move(spec: JobSpec) -> Iterator[Violation]:
    if Action.RECUT in (spec.resilience.policy.worker_slow or ()) and spec.parallel.pipeline == 1:
        yield Violation(
            blame=((*POLICY, FailureClass.WORKER_SLOW),),
            message="recut moves layers between pipeline ranks, and parallel.pipeline is 1",
            fix="remove recut, or raise parallel.pipeline",
        )


def _minimum_is_reached(spec: JobSpec) -> Iterator[Violation]:
    least, full = spec.resilience.min_ranks, slots(spec) if auto(spec) else ranks(spec)
    if least > full:
        yield Violation(
            blame=(MIN_RANKS,),
            message=f"the job never has {least} ranks: at full strength it has {full}",
            fix=f"lower resilience.min_ranks to {full} or less",
        )


def _spike_is_one(spec: JobSpec) -> Iterator[Violation]:
    factor = spec.resilience.loss_spike_factor
    if 0 < factor <= 1:
        yield Violation(
            blame=(SPIKE,),
            message=f"a usual loss is {factor:g} times the usual one or more, so that every step would be bad",
            fix="write a factor over 1, such as 3, or 0 for none",
        )


def _warmup_ends(spec: JobSpec) -> Iterator[Violation]:
    warmup, steps = warmup_steps(spec), spec.train.steps
    if warmup > steps:
        yield Violation(
            blame=(WARMUP, STEPS),
            message=f"a warm-up of {warmup} steps does not end within the {steps} steps of the run",
            fix=f"lower train.optimizer.warmup_steps to {steps} or less, or raise train.steps",
        )


_RULES: tuple[tuple[tuple[Path, ...], Callable[[JobSpec], Iterator[Violation]]], ...] = (
    (RANKS, _ranks_fit),
    ((MICRO_BATCHES, *RANKS), _ranks_have_work),
    ((SHARD, ZERO, *RANKS), _shards_divide),
    ((COPIES, ZERO, PIPELINE, TENSOR), _copies_need_shards),
    ((COPIES, *RANKS), _copies_need_room),
    ((LAYERS, PIPELINE, STAGES), _stages_fit),
    ((SCHEDULE, PIPELINE, STAGES), _schedule_fits),
    ((RECOMPUTE, PIPELINE, STAGES), _recompute_names_stages),
    ((SHARES, ZERO, MICRO_BATCHES, *RANKS), _shares_are_dealt),
    ((PLAN, SHARD, STAGES, LAYERS, SHARES, RECOMPUTE), _auto_leaves_free),
    ((PLAN, EVERY), _interval_is_planned),
    ((CHECKPOINT, POLICY, BAD_STEP), _rollback_has_a_target),
    ((POLICY, PIPELINE), _layers_can_move),
    ((MIN_RANKS, *RANKS), _minimum_is_reached),
    ((SPIKE,), _spike_is_one),
    ((WARMUP, STEPS), _warmup_ends),
)

_OF_GIVEN_PLANS = frozenset(
    {
        _shards_divide,
        _copies_need_shards,
        _stages_fit,
        _schedule_fits,
        _recompute_names_stages,
        _shares_are_dealt,
        _layers_can_move,
    }
)
