"""Plans of more ranks than this machine has cores: layers that sleep instead of computing, links that are throttled.

Four machines of network namespaces, one rank on each, no core of its own: a layer's seconds are slept, forward and backward, and
what is left to compute is small. The links carry far less than the loopback, so that what is measured is what the model says of
pipelines, collectives and their overlap rather than of cores. It needs root, for namespaces.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import say
from bench.plan_accuracy_models import Case, Model
from bench.plan_accuracy_results import Outcome, measure, merged, predict, summary, table
from bench.plan_accuracy_world import LinkSpeed, Place, Speed, link_speed, profile, speeds
from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.engine.costs import trace
from orchestrator.engine.task import Task, stable_seed
from tests.netlab.lab import Lab, cannot, missing_tools

MBIT = 400.0
RANKS = 4
MEMORY_BYTES = 4 << 30


class _Sleep(torch.autograd.Function):
    """Passes on what it gets, late in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        """Once."""
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Twice as late."""
        time.sleep(2 * ctx.seconds)
        return gradients[0], None


class Late(nn.Module):
    """[batch, width] -> the same."""

    def __init__(self, width: int, seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        """A layer that takes its time."""
        out: Tensor = _Sleep.apply(self.linear(x), self.seconds)  # type: ignore[no-untyped-call]
        return out


class Paced(Task):
    """Eight layers, every third of which takes twice as long."""

    width: int = 512
    batch_size: int = 48
    layer_ms: float = 8.0

    def build_model(self) -> nn.Module:
        """Of equal parameters."""
        seconds = self.layer_ms / 1e3
        return nn.ModuleList([Late(self.width, seconds * (2 if n % 3 == 2 else 1)) for n in range(8)])

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        """late0 to late7."""
        assert isinstance(model, nn.ModuleList)
        return [(f"late{n}", m) for n, m in enumerate(model)]

    def inputs(self, batch: Any) -> Tensor:
        """All of it."""
        x: Tensor = batch
        return x

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        """Mean square error."""
        return F.mse_loss(output, batch)

    def batch(self, *, seed: int, step: int, micro_batch: int) -> Tensor:
        """Drawn numbers."""
        generator = torch.Generator().manual_seed(stable_seed(seed, step, micro_batch))
        return torch.randn(self.batch_size, self.width, generator=generator)

    def eval_batch(self, *, seed: int, index: int) -> Tensor:
        """The same, held out."""
        return self.batch(seed=seed, step=-1, micro_batch=index)

    @property
    def tokens_per_micro_batch(self) -> int:
        """Rows."""
        return self.batch_size


PACED = Model("paced", "bench.plan_accuracy_wide:Paced")
_INTERLEAVED = PipelineSchedule.INTERLEAVED
_PLANS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("data 4", {"data": 4}),
    ("data 3", {"data": 3}),
    ("data 4, ZeRO-1", {"data": 4, "zero_stage": 1}),
    ("data 4, ZeRO-1 with copies", {"data": 4, "zero_stage": 1, "copies": 1}),
    ("data 4, ZeRO-3", {"data": 4, "zero_stage": 3}),
    ("pipeline 4", {"pipeline": 4}),
    ("pipeline 4, cut 1 + 2 + 2 + 3", {"pipeline": 4, "layers_per_stage": (1, 2, 2, 3)}),
    ("pipeline 3", {"pipeline": 3}),
    ("pipeline 2 x data 2", {"pipeline": 2, "data": 2}),
    (
        "pipeline 2 x 2 stages x data 2",
        {"pipeline": 2, "data": 2, "stages_per_rank": 2, "schedule": PipelineSchedule.INTERLEAVED},
    ),
)


def machines(link: LinkSpeed, speed: Speed, places: Sequence[Place]) -> Resources:
    """One device on each of the machines."""
    wire = Link(link.bandwidth, link.latency_s)
    core = DeviceType("sleeper", "cpu", speed.flops, speed.bandwidth, MEMORY_BYTES, speed.half_flops)
    nodes = tuple(NodeResources(p.netns, core.name, 1, "", wire, wire, link.bandwidth) for p in places)
    return Resources("namespaces", (core,), nodes)


def wide(*, rounds: int, detail: bool, base: int) -> dict[str, float]:
    """Predicts, runs and shows them; figures whose names begin with `wide_`. None, and a word of why, where it cannot.

    `base`: bytes that a process has without a model.
    """
    why = cannot() or missing_tools()
    if why:
        say(f"no wide plans: {why}")
        return {}
    with tempfile.TemporaryDirectory(prefix="accuracy-") as folder, Lab(nodes=RANKS, root=Path(folder), private="own") as lab:
        for n in range(RANKS):
            lab.throttle(n, MBIT)
        places = [Place(lab.node(n).namespace, lab.node(n).address) for n in range(RANKS)]
        link, speed = link_speed(places), speeds(places[:1])[0]
        say(f"probe, throttled link: {link.bandwidth / 1e6:.1f} MB/s each way at once, {link.latency_s * 1e6:.0f} us")
        resources = machines(link, speed, places)
        job = PACED.job()
        costs = merged(profile(job, trace(job, say=say), places=places, device="sleeper", limit_s=2.0), statistics.fmean)
        outcomes = []
        for words, fields in _PLANS:
            case = Case(PACED, words, {"micro_batches": 8, **fields})
            outcomes.append(Outcome(case, predict(case, costs, resources, places)))
        for _ in range(rounds):
            for outcome in outcomes:
                measure(outcome, places, base)
    print("wide plans: layers that sleep, throttled links; their memory is too small to judge")
    print(table(outcomes, detail=detail))
    found = summary(outcomes)
    return {f"wide_{key}": found[key] for key in ("step_error_median", "step_error_p90", "rank_correlation", "plans")}
