"""From (job, workers, graph, parent) to a Plan: data parallel and ZeRO-1 today.

The search over more axes comes with its own issue; this planner already gives what every plan needs: seats spread over nodes,
a layout of each state tensor aligned to blocks, peer copies in another failure domain, and words that say why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.layout import Holding, Interval, Intervals, StateLayout, subtract
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, MeshAxis, Plan, Seat


class PlanError(ValueError):
    """No plan exists for these workers; the message says what is missing."""


def first_plan(*, job: Job, graph: GraphView, workers: Sequence[tuple[str, str]], epoch: int) -> Plan:
    """A plan for a job that has none yet.

    `workers` are (worker_id, node_id) pairs that are ready. Raises PlanError when there are too few, or when peer copies are
    asked for and all of them sit on one node.
    """
    n = job.parallel.data
    if len(workers) < n:
        raise PlanError(f"{n} ranks need {n} workers, {len(workers)} are ready")
    seats = tuple(
        Seat(rank=r, worker_id=w, node_id=node) for r, (w, node) in enumerate(_spread(sorted(workers, key=_by_node), n))
    )
    if job.parallel.copies and len({s.node_id for s in seats}) < 2:
        raise PlanError("peer copies need workers on at least two nodes, and all ready workers share one")
    layouts = make_layouts(
        numel=graph.padded_numel,
        block=graph.block,
        nodes=[s.node_id for s in seats],
        zero_stage=job.parallel.zero_stage,
        copies=job.parallel.copies,
    )
    what = "data parallel" if job.parallel.zero_stage == 0 else "data parallel with sharded optimizer state (ZeRO-1)"
    copies = " and a copy of each shard on another node" if job.parallel.copies else ""
    return Plan(
        job=job.name,
        epoch=epoch,
        parent=0,
        mesh=(MeshAxis("data", n),),
        zero_stage=job.parallel.zero_stage,
        copies=job.parallel.copies,
        micro_batches=job.train.micro_batches,
        block=graph.block,
        seats=seats,
        layouts=layouts,
        reason=f"first plan: {what} over {n} ranks on {len({s.node_id for s in seats})} nodes{copies}, as the job asks",
    )


def swap_plan(parent: Plan, *, epoch: int, replacements: Mapping[int, tuple[str, str]], reason: str) -> Plan:
    """The parent's plan with some ranks given to other workers; layouts follow when a seat's node changes.

    `replacements` maps rank -> (worker_id, node_id). The primary regions stay where they are; only peer copies may move, when
    a replacement sits on the node of its shard's copy.
    """
    seats = tuple(
        replace(s, worker_id=replacements[s.rank][0], node_id=replacements[s.rank][1]) if s.rank in replacements else s
        for s in parent.seats
    )
    layouts = make_layouts(
        numel=parent.layout(PARAMS).numel,
        block=parent.block,
        nodes=[s.node_id for s in seats],
        zero_stage=parent.zero_stage,
        copies=parent.copies,
    )
    return replace(parent, epoch=epoch, parent=parent.epoch, seats=seats, layouts=layouts, reason=reason)


def make_layouts(*, numel: int, block: int, nodes: Sequence[str], zero_stage: int, copies: int) -> tuple[StateLayout, ...]:
    """Layouts of params (replicated) and optimizer state (replicated, or sharded with peer copies) over len(nodes) ranks."""
    n = len(nodes)
    whole: Intervals = (Interval(0, numel),)
    primary = shard_intervals(numel=numel, block=block, size=n)
    params = StateLayout(PARAMS, numel, tuple(Holding(p, subtract(whole, p)) for p in primary))
    if zero_stage == 0:
        return params, StateLayout(OPTIMIZER, numel, params.holdings)
    extra: list[Intervals] = [() for _ in range(n)]
    if copies:
        for rank, buddy in enumerate(buddies(nodes)):
            extra[buddy] = tuple(sorted(extra[buddy] + primary[rank]))
    return params, StateLayout(OPTIMIZER, numel, tuple(Holding(p, e) for p, e in zip(primary, extra, strict=True)))


def shard_intervals(*, numel: int, block: int, size: int) -> tuple[Intervals, ...]:
    """Contiguous regions of whole blocks, equal but for the last ones; a rank may own nothing when blocks are few."""
    blocks = -(-numel // block)
    per_rank = -(-blocks // size)
    out: list[Intervals] = []
    for r in range(size):
        lo, hi = min(r * per_rank * block, numel), min((r + 1) * per_rank * block, numel)
        out.append((Interval(lo, hi),) if lo < hi else ())
    return tuple(out)


def buddies(nodes: Sequence[str]) -> tuple[int, ...]:
    """For each rank the rank that keeps its copy: the next one on another node, evenly spread.

    Raises PlanError when every rank is on one node.
    """
    n = len(nodes)
    load = [0] * n
    out: list[int] = []
    for rank in range(n):
        others = [(rank + d) % n for d in range(1, n) if nodes[(rank + d) % n] != nodes[rank]]
        if not others:
            raise PlanError(f"rank {rank} has no peer on another node than {nodes[rank]} to keep its copy")
        chosen = min(others, key=lambda r: (load[r], (r - rank) % n))
        load[chosen] += 1
        out.append(chosen)
    return tuple(out)


def _by_node(worker: tuple[str, str]) -> tuple[str, str]:
    return worker[1], worker[0]


def _spread(workers: Sequence[tuple[str, str]], n: int) -> list[tuple[str, str]]:
    """n workers, one node after the other, so that neighbouring ranks sit on different nodes where that is possible."""
    by_node: dict[str, list[tuple[str, str]]] = {}
    for w in workers:
        by_node.setdefault(w[1], []).append(w)
    out: list[tuple[str, str]] = []
    while len(out) < n:
        for node in sorted(by_node):
            if by_node[node]:
                out.append(by_node[node].pop(0))
    return out[:n]
