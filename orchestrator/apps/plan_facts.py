"""What `orchestrator plan` tells, as values: text, page and picture are made of these and show the same.

A Preview joins the question (Problem), what would run (Option) and what a search takes (Choice). Nothing here knows about
terminals, HTML or SVG; words for quantities are those of the status.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from orchestrator.apps.cli.render import count, duration, size
from orchestrator.apps.report_facts import numbers
from orchestrator.core.cluster.resources import Link, NodeResources, Resources
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.plan import PipelineSchedule, Plan
from orchestrator.core.planner.strategy import Choice, Estimate, Memory, Option, Problem, Strategy

NODES_NAMED_MAX = 3  # in a line of words
MEMORY_PARTS = ("weights", "gradients", "optimizer", "copies", "activations", "work", "buffers", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A plan that was asked for, and everything that is told of it."""

    name: str  # of the job, or of the model where there is no job
    problem: Problem
    fixed: bool  # the job's axes are fixed: `shown` is what they say; else it is the choice
    shown: Option  # what would run
    choice: Choice | None  # what a search takes; None: it finds nothing, and `no_choice` says why
    no_choice: str = ""
    plan: Plan | None = None  # of a job; None where a described model or too large a cluster leaves nobody to seat
    graph: GraphView | None = None
    findings: tuple[str, ...] = ()  # of the Plan's lint

    @property
    def runners_up(self) -> tuple[Option, ...]:
        """Other plans, best first, what is shown left out."""
        if self.choice is None:
            return ()
        every = (self.choice.best, *self.choice.runners_up) if self.fixed else self.choice.runners_up
        return tuple(o for o in every if o.strategy != self.shown.strategy)


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of the pipeline."""

    stage: int
    pipe: int  # pipeline rank
    layers: str  # their numbers
    kinds: str  # folded: "1 x embedding, 12 x block"
    ranks: str
    devices: str
    recompute: bool
    params: int  # trainable elements of the stage, before tensor parallelism cuts them
    share: float  # of the model's compute, by time where it was measured


@dataclass(frozen=True, slots=True)
class Block:
    """Equal layers in a row: the folded graph view. Costs are of one layer and one unit."""

    first: int
    layers: int
    kind: int  # index into ModelCosts.kinds


def seconds(value: float) -> str:
    """12 us, 3.4 ms, 1.2 s, 2:13:20."""
    if value < 1e-3:
        return f"{value * 1e6:.3g} us"
    return f"{value * 1e3:.3g} ms" if value < 1 else duration(value)


def percent(share: float) -> str:
    """A share as a percentage; small ones keep a digit."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def rate(bytes_per_s: float) -> str:
    """Bytes per second: 25 GB/s."""
    return f"{size(bytes_per_s)}/s"


def plural(number: int, word: str, ending: str = "s") -> str:
    """1 node, 2 nodes."""
    return f"{number:,} {word}{'' if number == 1 else ending}"


def shape(strategy: Strategy) -> str:
    """The axes of a strategy: `pipeline 4 x data 2 x tensor 8`; `one rank` where there are none."""
    tensors = sorted(set(strategy.tensors))
    tensor = str(tensors[0]) if len(tensors) == 1 else f"{tensors[0]} to {tensors[-1]}"
    axes = (("pipeline", strategy.pipeline, str(strategy.pipeline)), ("data", strategy.data, str(strategy.data)))
    words = [f"{name} {told}" for name, number, told in (*axes, ("tensor", strategy.tensor, tensor)) if number > 1]
    return " x ".join(words) or "one rank"


def details(strategy: Strategy) -> str:
    """Everything else of a strategy but its devices, in words."""
    words = []
    if strategy.data > 1:
        group = f" in groups of {strategy.shard}" if strategy.zero and strategy.shard < strategy.data else ""
        words.append(f"ZeRO-{strategy.zero}{group}")
    if strategy.pipeline > 1:
        interleaved = strategy.schedule is PipelineSchedule.INTERLEAVED
        words.append(f"{strategy.schedule}" + (f" with {strategy.stages_per_rank} stages on each rank" if interleaved else ""))
        if len(set(strategy.cuts)) > 1 and len(strategy.cuts) <= 16:
            words.append(f"layers per stage {','.join(map(str, strategy.cuts))}")
    units = f" of {strategy.units} units" if strategy.units > 1 else ""
    words.append(f"{plural(strategy.micro_batches, 'micro-batch', 'es')}{units}")
    if strategy.shares and len(set(strategy.shares)) > 1 and len(strategy.shares) <= 16:
        words.append(f"shared out {','.join(map(str, strategy.shares))}")
    redone = [s for s, again in enumerate(strategy.recompute) if again]
    if redone:
        words.append("recomputation" + ("" if len(redone) == len(strategy.cuts) else f" in stages {numbers(redone)}"))
    if strategy.copies:
        words.append("a copy of each shard on another node")
    return ", ".join(words)


def against(option: Option, shown: Option) -> str:
    """How an option's steps that count compare with those of what is shown: `12 % slower`, `as quick`."""
    a, b = option.estimate.effective_s, shown.estimate.effective_s
    if not option.estimate.fits:
        return "does not fit"
    if math.inf in (a, b):
        return "as bad" if a == b else "never ends a step" if a > b else "better"
    ratio = a / b
    if abs(ratio - 1) < 0.0005:
        return "as quick"
    return f"{percent(ratio - 1)} slower" if ratio > 1 else f"{percent(1 - ratio)} quicker"


def layer_weights(problem: Problem, strategy: Strategy) -> tuple[tuple[float, ...], bool]:
    """What each layer weighs in the compute of a step: seconds where every kind was measured on the devices used, else FLOPs.

    Returns the weights by layer and whether they are seconds.
    """
    costs, resources = problem.costs, problem.resources
    device = resources.type_of(strategy.devices[0]).name
    timed = [kind.timing(device) for kind in costs.kinds]
    if all(t is not None for t in timed):
        by_kind = [t.forward_s + t.backward_s for t in timed if t is not None]
    else:
        by_kind = [kind.forward_flops + kind.backward_flops for kind in costs.kinds]
    return tuple(by_kind[k] * strategy.units for k in costs.order), all(t is not None for t in timed)


def stage_rows(preview: Preview) -> tuple[StageRow, ...]:
    """The stages in forward order."""
    strategy, costs = preview.shown.strategy, preview.problem.costs
    weights, _ = layer_weights(preview.problem, strategy)
    whole = sum(weights) or 1.0
    rows = []
    for s, (first, last) in enumerate(strategy.bounds):
        pipe = s % strategy.pipeline
        ranks = ranks_of(strategy, pipe)
        rows.append(
            StageRow(
                stage=s,
                pipe=pipe,
                layers=numbers(range(first, last)),
                kinds=kinds_words(costs, first, last),
                ranks=numbers(ranks),
                devices=devices_words(preview.problem.resources, [strategy.devices[r] for r in ranks]),
                recompute=strategy.recompute[s],
                params=sum(costs.kinds[k].params for k in costs.order[first:last]),
                share=sum(weights[first:last]) / whole,
            )
        )
    return tuple(rows)


def ranks_of(strategy: Strategy, pipe: int) -> range:
    """The ranks of one pipeline rank's block."""
    first = strategy.first_rank[pipe]
    return range(first, first + strategy.data * strategy.tensors[pipe])


def kinds_words(costs: ModelCosts, first: int, last: int) -> str:
    """Layers [first, last) folded: `embedding, 12 x block`."""
    runs = [(k, len(list(run))) for k, run in groupby(costs.order[first:last])]
    return ", ".join(f"{n} x {costs.kinds[k].name}" if n > 1 else costs.kinds[k].name for k, n in runs) or "none"


def blocks(costs: ModelCosts) -> tuple[Block, ...]:
    """The graph view: runs of equal layers."""
    out, at = [], 0
    for kind, run in groupby(costs.order):
        length = len(list(run))
        out.append(Block(at, length, kind))
        at += length
    return tuple(out)


def devices_words(resources: Resources, devices: Sequence[int]) -> str:
    """Where devices are: `n1 (8 x a100), n2 (8 x a100)`; many nodes are counted."""
    per_node: dict[int, int] = {}
    for device in devices:
        node = resources.node_of[device]
        per_node[node] = per_node.get(node, 0) + 1
    if len(per_node) <= NODES_NAMED_MAX:
        named = [(resources.nodes[n], used) for n, used in per_node.items()]
        return ", ".join(f"{node.node_id} ({used} x {node.device})" for node, used in named)
    kinds: dict[str, int] = {}
    for n, used in per_node.items():
        kinds[resources.nodes[n].device] = kinds.get(resources.nodes[n].device, 0) + used
    first, last = (resources.nodes[n].node_id for n in (min(per_node), max(per_node)))
    what = ", ".join(f"{used} x {kind}" for kind, used in kinds.items())
    return f"{plural(len(per_node), 'node')} {first} .. {last} ({what})"


def cluster_words(resources: Resources) -> str:
    """A cluster in one line: its name, devices by type, nodes, racks and what is not healthy."""
    counted: dict[str, int] = {}
    for node in resources.nodes:
        counted[node.device] = counted.get(node.device, 0) + node.devices
    racks = {n.rack for n in resources.nodes} - {""}
    words = f"{resources.name}: " + ", ".join(f"{n:,} x {kind}" for kind, n in counted.items())
    words += f" in {plural(len(resources.nodes), 'node')}" + (f", {plural(len(racks), 'rack')}" if len(racks) > 1 else "")
    bad = [n for n in resources.nodes if not n.healthy]
    slow = [n for n in resources.nodes if n.healthy and n.pace > 1.0]
    if slow:
        words += f"; slow: {_named(slow)}"
    return words + (f"; not healthy: {_named(bad)}" if bad else "")


def levels(resources: Resources) -> tuple[tuple[str, str], ...]:
    """The links by level, (level, bandwidth and latency); where nodes differ, the range."""
    nodes = resources.nodes
    rows = []
    if any(n.devices > 1 for n in nodes):
        rows.append(("inside a node", _link(n.inside for n in nodes if n.devices > 1)))
    if len(nodes) > 1:
        shared = [n.network_total for n in nodes]
        told = f", {_range(min(shared), max(shared))} for a whole node" if any(n.devices > 1 for n in nodes) else ""
        rows.append(("between nodes", _link(n.network for n in nodes) + told))
    if resources.uplink is not None:
        whole = f", {rate(resources.uplink_total)} for a whole rack" if resources.uplink_total else ""
        rows.append(("between racks", _link([resources.uplink]) + whole))
    return tuple(rows)


def fullest(estimate: Estimate) -> tuple[int, Memory]:
    """The pipeline rank whose memory is nearest to its limit."""
    return max(enumerate(estimate.memory), key=lambda pair: pair[1].total / max(1, pair[1].limit))


def memory_parts(memory: Memory) -> tuple[tuple[str, float], ...]:
    """The parts of a rank's memory that are not nothing, in order."""
    return tuple((name, getattr(memory, name)) for name in MEMORY_PARTS if getattr(memory, name) > 0)


def proof_words(choice: Choice) -> str:
    """How many strategies were weighed, and whether the best is proven to be that."""
    if choice.proven:
        return f"{choice.weighed:,} weighed, none of the space is better under this cost model"
    best = choice.best.estimate.effective_s
    gap = percent(1 - choice.bound_s / best)
    return f"{choice.weighed:,} weighed; not proven best: a better one could save {gap} at most"


def checkpoint_words(estimate: Estimate) -> str:
    """How often a durable checkpoint pays."""
    return f"every {plural(estimate.checkpoint_every, 'step')}" if estimate.checkpoint_every else "not worth its cost"


def throughput(preview: Preview) -> str:
    """Samples a second: tokens or images, as the model counts them."""
    problem = preview.problem
    return f"{count(problem.batch * problem.costs.samples_per_unit / preview.shown.estimate.step_s)}/s"


def _named(nodes: Sequence[NodeResources]) -> str:
    told = ", ".join(n.node_id + (f" ({n.pace:.3g} x as long)" if n.pace > 1.0 else "") for n in nodes[:NODES_NAMED_MAX])
    return told + (f" and {len(nodes) - NODES_NAMED_MAX} more" if len(nodes) > NODES_NAMED_MAX else "")


def _link(links: Iterable[Link]) -> str:
    every = list(links)
    speeds = [link.bandwidth for link in every]
    return f"{_range(min(speeds), max(speeds))}, {seconds(max(link.latency_s for link in every))}"


def _range(low: float, high: float) -> str:
    return rate(low) if low == high else f"{rate(low)} to {rate(high)}"
