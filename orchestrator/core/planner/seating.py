"""Seats as a chosen strategy wants them: each rank on the worker of its device.

The devices of `Resources` are numbered node by node; the workers of a node stand for its devices in the order in which they are
given. `seats.choose_seats` has the rules for jobs whose split a person chose and which have no devices yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator.core.cluster.resources import Resources
from orchestrator.core.plan.plan import Seat
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.seats import Worker
from orchestrator.core.planner.strategy import Strategy


def seats_from(strategy: Strategy, resources: Resources, workers: Sequence[Worker]) -> tuple[Seat, ...]:
    """A seat for every rank. The k-th worker of a node, in the order given, runs on its k-th device; workers may be left over.

    Raises PlanError when a rank's device is lost, unhealthy or unknown, has two ranks, or has no worker.
    """
    twice = [worker_id for worker_id, count in Counter(w for w, _ in workers).items() if count > 1]
    if twice:
        raise PlanError(f"worker {twice[0]} is named twice")
    if len(strategy.devices) != strategy.ranks:
        raise PlanError(f"{strategy.ranks} ranks need a device each, {len(strategy.devices)} are chosen")
    on: dict[str, list[str]] = {}
    for worker_id, node_id in workers:
        on.setdefault(node_id, []).append(worker_id)
    first: dict[int, int] = {}  # device number of each node's first
    for device, n in enumerate(resources.node_of):
        first.setdefault(n, device)
    seats: list[Seat] = []
    taken: dict[int, int] = {}
    for rank, device in enumerate(strategy.devices):
        if not 0 <= device < resources.size:
            raise PlanError(
                f"rank {rank} has no device: {'its device is lost' if device < 0 else f'there is no device {device}'}"
            )
        if device in taken:
            raise PlanError(f"ranks {taken[device]} and {rank} share device {device}")
        taken[device] = rank
        node = resources.nodes[resources.node_of[device]]
        place = device - first[resources.node_of[device]]
        there = on.get(node.node_id, [])
        if not node.healthy:
            raise PlanError(f"rank {rank} is to run on {node.node_id}, which is not healthy")
        if place >= len(there):
            raise PlanError(
                f"rank {rank} is to run on device {place + 1} of {node.node_id}, which has {len(there)} workers ready"
            )
        seats.append(Seat(rank, there[place], node.node_id))
    return tuple(seats)
