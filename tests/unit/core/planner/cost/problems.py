"""Random small problems and strategies for the cost model's tests, reproducible by their seed."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.graph.costs import LayerCost, ModelCosts, Timing
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.programs import DEEPSPEED, MEGATRON, OURS
from orchestrator.core.planner.strategy import Problem, Reliability, Space, Strategy


def layer(name: str = "block", **changes: object) -> LayerCost:
    """A block of a million parameters, half of everything cut by tensor parallelism."""
    base = LayerCost(
        name=name,
        params=1_000_000,
        cut_params=500_000,
        buffers=0,
        forward_flops=2e9,
        cut_forward_flops=1e9,
        backward_flops=4e9,
        cut_backward_flops=2e9,
        moved_bytes=0.0,
        kept_bytes=8e6,
        cut_kept_bytes=4e6,
        work_bytes=2e6,
        boundary_bytes=1e6,
        reduced_bytes=2e6,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def model(*kinds: LayerCost, order: tuple[int, ...] = ()) -> ModelCosts:
    """A model of these layers; without an order each of them once."""
    return ModelCosts("model", kinds, order or tuple(range(len(kinds))), 1.0, tensor_max=8, splits=True)


def cluster(nodes: int, devices: int, *, network: float = 1e9, pace: float = 1.0, flops: float = 1e12) -> Resources:
    """Equal nodes in one rack; a node's network is that of one device."""
    kind = DeviceType("a", "cpu", flops=flops, bandwidth=1e10, memory_bytes=8 << 30)
    inside, link = Link(1e10, 1e-6), Link(network, 1e-5)
    made = [NodeResources(f"n{k}", "a", devices, "", inside, link, network, pace, failures_per_hour=0.01) for k in range(nodes)]
    return Resources("cluster", (kind,), tuple(made))


RELIABILITY = Reliability(detect_s=2.0, restart_s=5.0, checkpoint_s=10.0, load_s=60.0)


def problem(costs: ModelCosts, resources: Resources, *, batch: int = 8, program: str = "ours") -> Problem:
    """With rates and costs of failures that are not small."""
    programs = {p.name: p for p in (OURS, MEGATRON, DEEPSPEED)}
    return Problem(costs, resources, programs[program], batch, Space(), RELIABILITY)


def strategy(**changes: object) -> Strategy:
    """One rank with one stage of one layer and one micro-batch, unless changed; devices are numbered from 0."""
    base: dict[str, object] = {"data": 1, "tensors": (1,), "cuts": (1,), "schedule": PipelineSchedule.ONE_F_ONE_B, "units": 1}
    base |= {"micro_batches": 1, "zero": 0, "shard": 1, "copies": 0} | changes
    base.setdefault("recompute", tuple(False for _ in base["cuts"]))  # type: ignore[attr-defined]
    base.setdefault("devices", tuple(range(base["data"] * sum(base["tensors"]))))  # type: ignore[call-overload]
    return Strategy(**base)  # type: ignore[arg-type]


def random_problem(rng: random.Random) -> Problem:
    """Unlike layers on unlike devices in racks."""
    kinds = []
    for k in range(rng.randint(1, 4)):
        forward, params = rng.uniform(0.0, 4e9), rng.randint(1000, 4_000_000)
        cut = rng.choice([0.0, 0.5, 1.0])
        kept = rng.uniform(1e5, 1e7)
        timings = (Timing("b", rng.uniform(1e-3, 4e-3), rng.uniform(2e-3, 8e-3)),) if rng.random() < 0.3 else ()
        kinds.append(
            layer(
                f"kind {k}",
                params=params,
                cut_params=int(cut * params),
                buffers=rng.choice([0, 100]),
                forward_flops=forward,
                cut_forward_flops=cut * forward,
                backward_flops=2 * forward,
                cut_backward_flops=2 * cut * forward,
                moved_bytes=rng.choice([0.0, rng.uniform(1e6, 1e8)]),
                kept_bytes=kept,
                cut_kept_bytes=cut * kept,
                work_bytes=rng.uniform(1e5, 1e7),
                boundary_bytes=rng.uniform(1e4, 1e7),
                reduced_bytes=rng.choice([0.0, rng.uniform(1e4, 1e7)]) if cut else 0.0,
                timings=timings,
            )
        )
    order = tuple(rng.randrange(len(kinds)) for _ in range(rng.randint(1, 12)))
    types = (
        DeviceType("a", "cpu", 1e12, 2e10, 4 << 30, half_flops=rng.choice([0.0, 1e9])),
        DeviceType("b", "cpu", 3e12, 8e10, 8 << 30),
    )
    nodes = []
    for k in range(rng.randint(1, 6)):
        network = rng.choice([1e8, 1e9, 1e10])
        nodes.append(
            NodeResources(
                node_id=f"n{k}",
                device=rng.choice("aab"),
                devices=rng.randint(1, 4),
                rack=rng.choice("xy"),
                inside=Link(rng.choice([1e10, 1e11]), 1e-6),
                network=Link(network, rng.choice([1e-5, 1e-4])),
                network_total=network * rng.choice([1, 2]),
                pace=rng.choice([1.0, 1.0, 1.5]),
                failures_per_hour=rng.choice([0.0, 0.01, 1.0]),
            )
        )
    up = rng.choice([None, Link(1e8, 1e-4)])
    resources = Resources("random", types, tuple(nodes), up, rng.choice([0.0, 2e8]))
    costs = ModelCosts("random", tuple(kinds), order, 1.0, tensor_max=4, splits=True)
    return problem(costs, resources, batch=rng.choice([2, 3, 8, 24]), program=rng.choice(["ours", "megatron", "deepspeed"]))


def random_strategy(rng: random.Random, p: Problem) -> Strategy:
    """Any that the problem's model and devices allow."""
    devices, layers = p.resources.size, len(p.costs.order)
    while True:
        tensor, data, pipeline = rng.choice([1, 1, 2, 4]), rng.randint(1, 4), rng.randint(1, 4)
        schedule = rng.choice(list(PipelineSchedule))
        local = rng.randint(2, 3) if schedule is PipelineSchedule.INTERLEAVED and pipeline > 1 else 1
        units = 1 if p.batch % 2 else rng.choice([1, 2])
        m = p.batch // units
        if tensor * data * pipeline <= devices and pipeline * local <= layers and data <= m:
            break
    stages = pipeline * local
    edges = [0, *sorted(rng.sample(range(1, layers), stages - 1)), layers]
    zero = rng.randint(0, 3)
    shard = rng.choice([s for s in range(1, data + 1) if data % s == 0]) if zero else 1
    shares: tuple[int, ...] = ()
    if zero < 2 and data > 1 and rng.random() < 0.3:
        points = [0, *sorted(rng.sample(range(1, m), data - 1)), m] if m > data else [*range(data), m]
        shares = tuple(b - a for a, b in pairwise(points))
    return Strategy(
        data=data,
        tensors=(tensor,) * pipeline,
        cuts=tuple(b - a for a, b in pairwise(edges)),
        schedule=schedule,
        units=units,
        micro_batches=m,
        zero=zero,
        shard=shard,
        copies=rng.randint(0, 1),
        recompute=tuple(rng.random() < 0.3 for _ in range(stages)),
        devices=tuple(rng.sample(range(devices), tensor * data * pipeline)),
        shares=shares,
    )
