"""Previews of plans for the tests of words, pictures and pages: small values made by hand, with numbers one can check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.apps.plan_facts import Preview
from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.graph.costs import LayerCost, ModelCosts, Timing
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.strategy import (
    Choice,
    Estimate,
    Memory,
    Option,
    Problem,
    Program,
    Rejected,
    Reliability,
    Space,
    Strategy,
    Term,
)

GIB = 1 << 30
PROGRAM = Program("ours", 4, 4, 8, 4, 4, 0.5, 1e-4, 0.0, 1e-3, 28.0, 200 << 20, 25 << 20, True, True, True, False)
RELIABILITY = Reliability(detect_s=2.0, restart_s=5.0, checkpoint_s=3.0, load_s=10.0)


def layer(name: str, params: int = 1000, *, ms: float | None = None) -> LayerCost:
    """A kind of layer; with `ms` its forward pass was measured to take that on a `cpu`, the backward pass twice."""
    timings = () if ms is None else (Timing("cpu", ms / 1e3, 2 * ms / 1e3),)
    return LayerCost(name, params, 0, 0, 2e9, 0.0, 4e9, 0.0, 1e6, 2e6, 0.0, 1e6, 5e5, 0.0, timings)


def costs(*, blocks: int = 6, measured: bool = False) -> ModelCosts:
    """An embedding, some blocks and a head."""
    kinds = (
        layer("embedding", 5000, ms=1.0 if measured else None),
        layer("block", 2000, ms=4.0 if measured else None),
        layer("head", 5000, ms=2.0 if measured else None),
    )
    return ModelCosts("tiny", kinds, (0, *[1] * blocks, 2), 64.0, 4, True)


def costs_of(graph: GraphView) -> ModelCosts:
    """Costs for a graph: its layers are alike but for their parameters; each was measured."""
    kinds = tuple(layer(view.name, view.stop - view.start, ms=4.0) for view in graph.layers)
    return ModelCosts("tiny", kinds, tuple(range(len(kinds))), 64.0, 1, len(kinds) > 1)


def resources(nodes: int = 4, devices: int = 2, *, racks: int = 1, **changes: Any) -> Resources:
    """Equal nodes n0, n1, ... dealt over racks; `changes` are fields of every node."""
    made = NodeResources("n0", "cpu", devices, "", Link(1e10, 1e-6), Link(1e9, 1e-5), 2e9)
    each = tuple(replace(made, node_id=f"n{n}", rack=f"r{n % racks}" if racks > 1 else "", **changes) for n in range(nodes))
    uplink = Link(5e8, 2e-5) if racks > 1 else None
    return Resources("lab", (DeviceType("cpu", "cpu", 1e11, 1e10, 4 * GIB),), each, uplink)


def strategy(
    *, pipeline: int = 2, data: int = 2, tensor: int = 1, layers: int = 8, micro_batches: int = 8, **changes: Any
) -> Strategy:
    """Even cuts, devices in order."""
    cuts = tuple(layers * (s + 1) // pipeline - layers * s // pipeline for s in range(pipeline))
    made = Strategy(
        data=data,
        tensors=(tensor,) * pipeline,
        cuts=cuts,
        schedule=PipelineSchedule.ONE_F_ONE_B,
        units=1,
        micro_batches=micro_batches,
        zero=1 if data > 1 else 0,
        shard=data,
        copies=0,
        recompute=(False,) * pipeline,
        devices=tuple(range(pipeline * data * tensor)),
    )
    return replace(made, **changes)


def estimate(of: Strategy, *, step_s: float = 0.1, total: float = GIB) -> Estimate:
    """Six tenths forward and backward, the rest bubble; memory is half weights, half activations."""
    memory = Memory(total / 2, 0, 0, 0, total / 2, 0, 0, 0, 4 * GIB)
    terms = (Term("forward", 0.2 * step_s), Term("backward", 0.4 * step_s), Term("bubble", 0.4 * step_s))
    return Estimate(step_s, terms, (memory,) * of.pipeline, 0.98, 500, 7.5)


def option(of: Strategy, **told: Any) -> Option:
    """A strategy with its estimate."""
    return Option(of, estimate(of, **told))


def problem(**changes: Any) -> Problem:
    """Eight micro-batches of the tiny model on the lab's cluster."""
    made = Problem(costs(), resources(), PROGRAM, 8, Space(), RELIABILITY)
    return replace(made, **changes)


def choice(best: Option, *others: Option, proven: bool = True) -> Choice:
    """A search's answer."""
    rejected = (Rejected("tensor 2", "at least 12 % slower", 40),)
    return Choice(best, others, rejected, proven, 0.95 * best.estimate.effective_s, 1234, "it is the quickest that fits")


def preview(*, fixed: bool = False, **changes: Any) -> Preview:
    """Pipeline 2 x data 2, chosen before data 4 and a pipeline of 4; fixed: not the best."""
    shown = option(strategy())
    wide = option(strategy(pipeline=1, data=4), step_s=0.08 if fixed else 0.12)
    deep = option(strategy(pipeline=4, data=1), step_s=0.2)
    found = choice(wide, deep) if fixed else choice(shown, wide, deep)
    return replace(Preview(name="tiny", problem=problem(), fixed=fixed, shown=shown, choice=found), **changes)
