"""What no single field can tell: the defaults that depend on other fields, and the combinations that cannot work.

A rule names the fields it reads, so that a file with one broken field still hears about everything else that is wrong
with it: a rule is skipped only where something it reads is itself refused. The first field that the file really holds
gets the blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orchestrator.spec.document import Path
from orchestrator.spec.model import JobSpec

WARMUP_STEPS_DEFAULT_MAX = 100

MICRO_BATCHES: Path = ("train", "micro_batches")
STEPS: Path = ("train", "steps")
WARMUP: Path = ("train", "optimizer", "warmup_steps")
DATA: Path = ("parallel", "data")
ZERO: Path = ("parallel", "zero")
COPIES: Path = ("parallel", "copies")
NODES: Path = ("cluster", "nodes")
SLOTS: Path = ("cluster", "slots_per_node")


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A combination that cannot work. `blame`: the fields that could be changed, the likeliest first."""

    blame: tuple[Path, ...]
    message: str
    fix: str


def data_ranks(spec: JobSpec) -> int:
    """Ranks along the data axis; every slot of the cluster unless the file says otherwise."""
    if spec.parallel.data is not None:
        return spec.parallel.data
    return spec.cluster.nodes * spec.cluster.slots_per_node


def copies(spec: JobSpec) -> int:
    """Holders of a sharded region beside its owner; one wherever it could live on another node."""
    if spec.parallel.copies is not None:
        return spec.parallel.copies
    return int(spec.parallel.zero >= 1 and spec.cluster.nodes > 1 and data_ranks(spec) > 1)


def warmup_steps(spec: JobSpec) -> int:
    """Steps of linear warm-up; a tenth of the run, at most WARMUP_STEPS_DEFAULT_MAX."""
    if spec.train.optimizer.warmup_steps is not None:
        return spec.train.optimizer.warmup_steps
    return min(spec.train.steps // 10, WARMUP_STEPS_DEFAULT_MAX)


def violations(spec: JobSpec, *, broken: Callable[[Path], bool] = lambda path: False) -> list[Violation]:
    """Everything that cannot work, leaving out the rules that read a field for which `broken` is true."""
    return [violation for reads, rule in _RULES if not any(broken(path) for path in reads) for violation in rule(spec)]


def _ranks_fit(spec: JobSpec) -> Iterator[Violation]:
    cluster, data = spec.cluster, data_ranks(spec)
    slots = cluster.nodes * cluster.slots_per_node
    if data > slots:
        yield Violation(
            blame=(DATA, NODES, SLOTS),
            message=f"{data} data ranks do not fit into {slots} slots"
            f" (cluster.nodes {cluster.nodes} x cluster.slots_per_node {cluster.slots_per_node})",
            fix=f"lower parallel.data to {slots} or less, or raise cluster.nodes",
        )


def _ranks_have_work(spec: JobSpec) -> Iterator[Violation]:
    data, micro_batches = data_ranks(spec), spec.train.micro_batches
    if micro_batches < data:
        yield Violation(
            blame=(MICRO_BATCHES, DATA, NODES, SLOTS),
            message=f"{micro_batches} micro-batches leave some of {data} data ranks without work",
            fix=f"raise train.micro_batches to {data} or more, or lower parallel.data",
        )


def _copies_need_shards(spec: JobSpec) -> Iterator[Violation]:
    if spec.parallel.copies and spec.parallel.zero == 0:
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
    elif data_ranks(spec) < 2:
        yield Violation(
            blame=(COPIES, DATA),
            message="a copy is held by another rank, and parallel.data is 1",
            fix="raise parallel.data to 2 or more, or set parallel.copies to 0",
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
    ((DATA, NODES, SLOTS), _ranks_fit),
    ((MICRO_BATCHES, DATA, NODES, SLOTS), _ranks_have_work),
    ((COPIES, ZERO), _copies_need_shards),
    ((COPIES, DATA, NODES, SLOTS), _copies_need_room),
    ((WARMUP, STEPS), _warmup_ends),
)
