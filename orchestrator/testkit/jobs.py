"""Jobs and graphs for tests, simulations and benchmarks: complete, small and sane, with only what matters spelt out.

`make_job(data=3, zero_stage=1, steps=20)` names any field of any section of a Job by itself; no two sections share a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from orchestrator.core.cluster.measured import DeviceMeasure, WorkerMeasure
from orchestrator.core.graph.costs import LayerCost, ModelCosts
from orchestrator.core.graph.space import Shape, graph_view, lay_out
from orchestrator.core.graph.view import GraphView, LayerView, TensorView
from orchestrator.core.job import (
    BadStep,
    CheckpointSettings,
    ClusterSettings,
    Consistency,
    DeviceKind,
    Job,
    OptimizerSettings,
    ParallelSettings,
    PlannerSettings,
    Precision,
    ResilienceSettings,
    TaskRef,
    TrainSettings,
)
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.strategy import Space
from orchestrator.spec.policies import policies

_DEFAULT = Job(
    name="j",
    task=TaskRef(target="gpt", options_json="{}", base_dir="/"),
    train=TrainSettings(
        steps=20,
        seed=1,
        micro_batches=8,
        consistency=Consistency.EXACT,
        precision=Precision.FP32,
        optimizer=OptimizerSettings(
            lr=1e-3,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            warmup_steps=2,
            min_lr_ratio=0.1,
            clip_grad_norm=1.0,
        ),
        digest_every=0,
        eval_every=0,
        eval_micro_batches=1,
    ),
    parallel=ParallelSettings(
        data=2,
        zero_stage=0,
        shard=0,
        copies=0,
        tensor=1,
        pipeline=1,
        stages_per_rank=1,
        layers_per_stage=(),
        schedule=PipelineSchedule.ONE_F_ONE_B,
        recompute=(False,),
        shares=(),
    ),
    planner=PlannerSettings(auto=False, space=Space(), checkpoint=False),
    cluster=ClusterSettings(nodes=2, spares=0, slots_per_node=1, device=DeviceKind.CPU),
    checkpoint=CheckpointSettings(uri="", every=0, keep=1),
    resilience=ResilienceSettings(
        detect_within_ms=4000,
        failure_budget=5,
        budget_refill_steps=50,
        slow_factor=2.0,
        policies=policies(),
        ranks_min=1,
        grow_after_steps=10,
        on_bad_step=BadStep.FAIL,
        loss_spike_factor=0.0,
    ),
)
FLOPS = 1e11
_SECTIONS = ("task", "parallel", "planner", "cluster", "checkpoint", "resilience")


def make_job(**overrides: Any) -> Job:
    """A job of two data-parallel ranks, 20 steps of 8 micro-batches, no checkpoints, default policies, but for `overrides`.

    A key is a field of Job (`checkpoint=CheckpointSettings(...)`), of a section or of the optimizer (`data=4`, `lr=0.01`).
    Without `nodes` there are as many nodes (of `slots_per_node`) as the ranks need. Raises TypeError for an unknown key.
    """
    job = _DEFAULT
    left = dict(overrides)

    def take(value: Any, skip: Sequence[str] = ()) -> dict[str, Any]:
        return {f.name: left.pop(f.name) for f in fields(value) if f.name in left and f.name not in skip}

    job = replace(job, **take(job))
    for name in _SECTIONS:
        section = getattr(job, name)
        job = replace(job, **{name: replace(section, **take(section))})
    optimizer = replace(job.train.optimizer, **take(job.train.optimizer))
    job = replace(job, train=replace(job.train, **{"optimizer": optimizer, **take(job.train)}))
    if left:
        raise TypeError(f"a job has no {', '.join(sorted(left))}")
    if "nodes" not in overrides and "cluster" not in overrides:
        nodes = -(-job.parallel.ranks // job.cluster.slots_per_node)
        job = replace(job, cluster=replace(job.cluster, nodes=nodes))
    return job


def make_costs(graph: GraphView, *, unit_s: float = 0.01, bandwidth: float = 1e9) -> ModelCosts:
    """Costs for a graph: one micro-batch takes a device of `make_measure` about `unit_s`, by layer as its parameters.

    What goes from layer to layer is what `bandwidth` moves in a tenth of that.
    """
    kinds = []
    for layer in graph.layers:
        share = (layer.stop - layer.start) / graph.padded_numel
        flops = share * unit_s * FLOPS
        kinds.append(
            LayerCost(
                name=layer.name,
                params=layer.stop - layer.start,
                cut_params=layer.stop - layer.start,
                buffers=0,
                forward_flops=flops / 3,
                cut_forward_flops=flops / 3,
                backward_flops=2 * flops / 3,
                cut_backward_flops=2 * flops / 3,
                moved_bytes=0.0,
                kept_bytes=4096.0,
                cut_kept_bytes=0.0,
                work_bytes=4096.0,
                boundary_bytes=bandwidth * unit_s / 10 / len(graph.layers),
                reduced_bytes=0.0,
            )
        )
    return ModelCosts(
        name="made",
        kinds=tuple(kinds),
        order=tuple(range(len(kinds))),
        samples_per_unit=1.0,
        tensor_max=1,
        splits=len(kinds) > 1,
    )


def make_measure(*, slowness: float = 1.0) -> WorkerMeasure:
    """What a worker on an unremarkable CPU measures; its links are not measured."""
    return WorkerMeasure(DeviceMeasure("cpu", "made", FLOPS / slowness, 1e10, 1 << 30, 0.0))


def make_graph(*layers: int, block: int = 0) -> GraphView:
    """The graph of a model with one parameter of so many elements per layer (two of 4096 without any).

    `block` elements per block; 0: as a real model of that size would have.
    """
    numels = layers or (4096, 4096)
    shapes = [Shape(f"layer{i}.w", (n,), trainable=True, layer=i, cut_dim=0, twin="") for i, n in enumerate(numels)]
    names = [f"layer{i}" for i in range(len(numels))]
    if not block:
        return graph_view(shapes, layer_names=names, fingerprint="f")
    space = lay_out(shapes, layers=len(names), block=block, degree=1)
    return GraphView(
        tensors=tuple(
            TensorView(s.name, s.shape, p.start, p.stop, s.trainable, s.layer, s.cut_dim, s.twin)
            for s, p in zip(shapes, space.places, strict=True)
        ),
        layers=tuple(LayerView(n, i.start, i.stop) for n, i in zip(names, space.layers, strict=True)),
        numel=sum(numels),
        padded_numel=space.section,
        block=block,
        fingerprint="f",
    )
