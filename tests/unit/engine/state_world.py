"""A small layered model with everything that can be in a state, plans for it, and what each rank of a plan holds of it."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.core.graph.space import graph_view
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.layout import Interval, Intervals
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan
from orchestrator.core.planner.planner import first_plan
from orchestrator.engine.entries import Kind
from orchestrator.engine.extents import Extents
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.optim import Scalars
from orchestrator.testkit.jobs import make_job

KEYS = ("exp_avg", "exp_avg_sq")
CUTS = {"up.weight": 0, "up.bias": 0, "down.weight": 1}

PLANS: dict[str, dict[str, Any]] = {
    "serial": {"data": 1},
    "zero0": {"data": 3, "zero_stage": 0},
    "zero1": {"data": 3, "zero_stage": 1, "copies": 1},
    "zero3": {"data": 4, "zero_stage": 3, "copies": 1},
    "groups": {"data": 4, "zero_stage": 2, "shard": 2},
    "pipeline": {"data": 2, "pipeline": 3, "layers_per_stage": (2, 1, 2), "zero_stage": 1},
    "interleaved": {"data": 1, "pipeline": 2, "stages_per_rank": 2, "copies": 1},
    "tensor2": {"data": 1, "tensor": 2},
    "tensor3": {"data": 2, "tensor": 3, "zero_stage": 1},
    "all": {"data": 2, "tensor": 2, "pipeline": 2, "zero_stage": 3, "copies": 1},
}


class Part(nn.Module):
    """One layer: a wide middle that tensor parallelism cuts, unevenly by 3; some have more."""

    def __init__(self, width: int, middle: int, *, extra: str = "") -> None:
        super().__init__()
        self.up = nn.Linear(width, middle)
        self.down = nn.Linear(middle, width)
        if extra == "norm":
            self.norm = nn.BatchNorm1d(width)
            self.register_buffer("table", torch.arange(5))
        if extra == "conv":
            self.conv = nn.Conv2d(7, 5, (3, 4))
            self.scale = nn.Parameter(torch.ones(()))
            self.nothing = nn.Parameter(torch.empty(0, 4))
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)


class Layered(nn.Module):
    """Five layers; the last one's weight is that of the first under another name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Linear(97, 61, bias=False)
        self.a = Part(61, 100, extra="norm")
        self.b = Part(61, 50, extra="conv")
        self.c = Part(61, 131)
        self.head = nn.Linear(97, 61)
        self.head.weight = self.embed.weight

    def layers(self) -> list[tuple[str, nn.Module]]:
        """In forward order."""
        return [(name, getattr(self, name)) for name in ("embed", "a", "b", "c", "head")]


def cut_dim(layer: str, name: str) -> int:
    """As a task's tensor_plan would have it."""
    return next((dim for end, dim in CUTS.items() if name.endswith(end)), -1)


def new_state(*, degree: int = 1, coordinate: int = 0) -> FlatState:
    """The model laid out, at a tensor coordinate."""
    model = Layered()
    state = FlatState(model, model.layers(), cut_dim=cut_dim)
    if degree > 1:
        state.place(degree=degree, coordinate=coordinate, wrapping=None)
    return state


def graph() -> GraphView:
    """What planners see of it."""
    state = new_state()
    return graph_view(state.shapes, layer_names=state.layer_names, fingerprint="f")


def job_of(name: str, **more: Any) -> Job:
    """A job that asks for the plan of this name."""
    return make_job(name="tiny", **PLANS[name], **more)


def plan_of(name: str, *, epoch: int = 1) -> Plan:
    """A valid plan, each rank on a node of its own."""
    job = job_of(name)
    workers = [(f"w{n}", f"n{n}") for n in range(job.parallel.ranks)]
    plan = first_plan(job=job, graph=graph(), workers=workers, epoch=epoch)
    assert lint(plan) == ()
    return plan


def values_of(state: FlatState, seed: int) -> dict[str, Tensor]:
    """Random values of every uncut tensor; small whole numbers for counters, nothing for twins."""
    draw = torch.Generator().manual_seed(seed)
    counters = state.counters
    return {
        s.name: torch.tensor(7.0 + seed).view(s.shape) if s.name in counters else torch.randn(s.shape, generator=draw)
        for s in state.shapes
        if not s.twin
    }


def whole_vector(state: FlatState, seed: int, *, params_only: bool = False) -> Tensor:
    """The vector, in the state's space, of those values; a tensor's twin and every coordinate's copy have the same."""
    values = values_of(state, seed)
    out = torch.zeros(state.space.numel)
    for e in state.entries:
        if params_only and e.kind is not Kind.PARAM:
            continue
        value = values[e.twin or e.name]
        if e.cut_dim >= 0:
            value = value.narrow(e.cut_dim, e.offset, e.shape[e.cut_dim])
        out[e.start : e.stop] = value.reshape(-1)
    return out


def cut_up(vector: Tensor, intervals: Intervals, seed: int) -> Extents:
    """What one holds of a vector, in memory that is cut at random multiples of 16."""
    out = Extents(vector.dtype)
    draw = random.Random(seed)
    for i in intervals:
        lo = i.start
        while lo < i.stop:
            hi = min(i.stop, lo + 16 * draw.randint(1, 400))
            out.add(Interval(lo, hi), vector[lo:hi].clone())
            lo = hi
    return out


def scalars_of(state: FlatState, held: Intervals) -> Scalars:
    """As an AdamW would have it after seven steps."""
    step = {"dtype": "float32", "shape": [], "value": 7.0, "device": "cpu"}
    touched = [e for e in state.entries if e.kind is Kind.PARAM and any(i.start < e.stop and e.start < i.stop for i in held)]
    return {e.twin or e.name: {"step": step} for e in touched if e.start < e.stop}


class Rank:
    """A rank's state under a plan: of vectors 1 (params), 2 and 3 (moments), or blank."""

    def __init__(self, plan: Plan, rank: int, *, blank: bool = False) -> None:
        degree = plan.axis(TENSOR)
        self.plan, self.rank = plan, rank
        self.state = new_state(degree=degree, coordinate=plan.coordinates(rank)[2])
        self.vectors = [whole_vector(self.state, 1), *(whole_vector(self.state, s, params_only=True) for s in (2, 3))]
        holdings = [plan.layout(n).holdings[rank].everything for n in (PARAMS, OPTIMIZER, OPTIMIZER)]
        filled = [torch.full_like(v, 9.0) if blank else v for v in self.vectors]
        parts = [cut_up(v, h, rank) for v, h in zip(filled, holdings, strict=True)]
        self.params, self.moments = parts[0], dict(zip(KEYS, parts[1:], strict=True))
        self.scalars = scalars_of(self.state, holdings[1])
        self.state.adopt(self.params, ())

    def check(self) -> None:
        """What is held is what the vectors say, to the bit."""
        for extents, vector in zip((self.params, *self.moments.values()), self.vectors, strict=True):
            for i, tensor in extents:
                assert torch.equal(tensor, vector[i.start : i.stop]), (self.rank, i)
