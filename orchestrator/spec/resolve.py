"""JobSpec -> Job: every absent value gets its meaning, every relative path its folder, every duration its
milliseconds.

After this nothing in the system asks what a missing key means. The only thing taken from outside the file is the
folder the file lies in (and the user's home for a path that starts with ~).
"""

from __future__ import annotations

import json
import os

from orchestrator.core.job import (
    CheckpointSettings,
    ClusterSettings,
    Job,
    OptimizerSettings,
    ParallelSettings,
    PlannerSettings,
    ResilienceSettings,
    TaskRef,
    TrainSettings,
)
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.strategy import Space
from orchestrator.spec import rules
from orchestrator.spec.model import EVERY_AUTO, CheckpointSpec, JobSpec, OptimizerSpec, TaskSpec, TrainSpec
from orchestrator.spec.policies import policies
from orchestrator.spec.values import duration_ms, is_url

NO_CHECKPOINTS = CheckpointSettings(uri="", every=0, keep=1)
EVERY_FIRST = 50  # steps between checkpoints until the planner has chosen


def resolve(spec: JobSpec, *, base_dir: str) -> Job:
    """The complete job. `base_dir` is the folder of the job file; it is made absolute.

    Raises ValueError where fields contradict each other: check `rules.violations` first to say where.
    """
    wrong = rules.violations(spec)
    if wrong:
        raise ValueError("; ".join(violation.message for violation in wrong))
    folder = os.path.abspath(base_dir)
    parallel, cluster, resilience = spec.parallel, spec.cluster, spec.resilience
    return Job(
        name=spec.name,
        task=_task(spec.task, folder),
        train=_train(spec.train, _optimizer(spec.train.optimizer, warmup_steps=rules.warmup_steps(spec))),
        parallel=ParallelSettings(
            data=rules.data_ranks(spec),
            zero_stage=parallel.zero,
            shard=rules.shard(spec),
            copies=rules.copies(spec),
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            stages_per_rank=parallel.stages_per_rank,
            layers_per_stage=parallel.layers_per_stage,
            schedule=rules.schedule(spec),
            recompute=parallel.recompute,
            shares=parallel.shares,
        ),
        planner=_planner(spec),
        cluster=ClusterSettings(
            nodes=cluster.nodes,
            spares=cluster.spares,
            slots_per_node=cluster.slots_per_node,
            device=cluster.device,
        ),
        checkpoint=NO_CHECKPOINTS if spec.checkpoint is None else _checkpoint(spec.checkpoint, folder),
        resilience=ResilienceSettings(
            detect_within_ms=duration_ms(resilience.detect_within),
            failure_budget=resilience.failures,
            budget_refill_steps=resilience.refill_after_steps,
            slow_factor=resilience.slow_factor,
            policies=policies(rules.actions(spec)),
            ranks_min=resilience.min_ranks,
            grow_after_steps=resilience.grow_after_steps,
            on_bad_step=resilience.on_bad_step,
            loss_spike_factor=resilience.loss_spike_factor,
        ),
    )


def _task(task: TaskSpec, folder: str) -> TaskRef:
    options = json.dumps(task.options, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return TaskRef(target=task.target, options_json=options, base_dir=folder)


def _train(train: TrainSpec, optimizer: OptimizerSettings) -> TrainSettings:
    return TrainSettings(
        steps=train.steps,
        seed=train.seed,
        micro_batches=train.micro_batches,
        consistency=train.consistency,
        precision=train.precision,
        optimizer=optimizer,
        digest_every=train.digest_every,
        eval_every=train.eval_every,
        eval_micro_batches=train.eval_micro_batches,
    )


def _optimizer(optimizer: OptimizerSpec, *, warmup_steps: int) -> OptimizerSettings:
    return OptimizerSettings(
        lr=optimizer.lr,
        beta1=optimizer.betas[0],
        beta2=optimizer.betas[1],
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        warmup_steps=warmup_steps,
        min_lr_ratio=optimizer.min_lr_ratio,
        clip_grad_norm=optimizer.clip_grad_norm,
    )


def _checkpoint(checkpoint: CheckpointSpec, folder: str) -> CheckpointSettings:
    uri = checkpoint.uri
    if not is_url(uri):
        uri = os.path.normpath(os.path.join(folder, os.path.expanduser(uri)))
    every = EVERY_FIRST if checkpoint.every == EVERY_AUTO else checkpoint.every
    return CheckpointSettings(uri=uri, every=every, keep=checkpoint.keep)


def _planner(spec: JobSpec) -> PlannerSettings:
    p, free = spec.parallel, Space()
    if not rules.auto(spec):
        return PlannerSettings(auto=False, space=free, checkpoint=False)

    def given(name: str) -> bool:
        return name in p.model_fields_set

    return PlannerSettings(
        auto=True,
        space=Space(
            tensors=(p.tensor,) if given("tensor") else (),
            pipelines=(p.pipeline,) if given("pipeline") else (),
            datas=(p.data,) if p.data is not None else (),
            zeros=(p.zero,) if given("zero") else free.zeros,
            schedules=(p.schedule,) if p.schedule is not None else tuple(PipelineSchedule),
            recompute=p.recompute if given("recompute") else free.recompute,
            copies=(p.copies,) if p.copies is not None else (1,),  # where it helps and there is another node
            ranks_min=spec.resilience.min_ranks,
            ranks_max=rules.slots(spec),
        ),
        checkpoint=spec.checkpoint is not None and spec.checkpoint.every == EVERY_AUTO,
    )
