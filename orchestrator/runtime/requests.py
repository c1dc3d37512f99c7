"""Requests that change a running job: checked here, decided on by the core, answered with the decision's reason.

The shell refuses only what makes no sense; whether something is possible now is the core's to say. It says so by a decision
that has a reason and changes nothing, which is answered as NotPossibleError with that reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.core.supervisor.events import (
    FAULT_KINDS,
    CheckpointRequested,
    ContinueRequested,
    DrainRequested,
    Event,
    Fault,
    FaultRequested,
    NodeGone,
    ReplaceRequested,
    ScaleRequested,
    SuspendRequested,
)
from orchestrator.core.supervisor.state import State
from orchestrator.core.supervisor.wishes import scaled
from orchestrator.runtime.control import BadRequestError, Decided, NotPossibleError
from orchestrator.runtime.entry import Entry, node_of, worker_of

# Every function may raise NotFoundError, BadRequestError and NotPossibleError.


async def inject(entry: Entry, *, fault: Fault, who: str) -> None:
    """Journal a fault and hand it on, now or when an epoch runs."""
    if fault.kind not in FAULT_KINDS:
        raise BadRequestError(f"no fault is called {fault.kind!r}; there are {', '.join(FAULT_KINDS)}")
    if (fault.rank >= 0) == bool(fault.node_id):
        raise BadRequestError("a fault strikes either a rank or a node: give one of the two")
    if min(fault.at_step, fault.micro_batch, fault.amount_ms) < 0:
        raise BadRequestError("step, micro-batch and amount of a fault are not negative")
    if fault.node_id:
        fault = replace(fault, node_id=node_of(entry, fault.node_id).node_id)
    await _decided(entry, FaultRequested(0, fault, who), already=lambda s: fault in s.faults)


async def drain(entry: Entry, *, node_id: str, who: str, why: str) -> Decided:
    """Have a node emptied; one that is drained already is no error."""
    node = node_of(entry, node_id).node_id
    return await _decided(entry, DrainRequested(0, node, who, why), already=lambda s: node in s.drained)


async def node_gone(entry: Entry, *, node_id: str, who: str, evidence: str) -> Decided:
    """Have the workers of a node that will not come back replaced at once; one that nobody is on is no error."""
    if not evidence:
        raise BadRequestError("say how it is known that the node is gone: silence is no evidence")
    node = node_of(entry, node_id).node_id

    def known(state: State) -> bool:
        return node in state.drained and not state.alive_on(node)

    return await _decided(entry, NodeGone(0, node, who, evidence), already=known)


async def suspend(entry: Entry, *, who: str, why: str) -> Decided:
    """Have the job give its machines back; one that is suspended already is no error."""
    return await _decided(entry, SuspendRequested(0, who, why), already=lambda s: bool(s.suspended))


async def go_on(entry: Entry, *, who: str) -> Decided:
    """Have a suspended job go on; one that is not suspended is no error."""
    return await _decided(entry, ContinueRequested(0, who), already=lambda s: not s.suspended)


async def scale(entry: Entry, *, nodes: int, layers_per_stage: tuple[int, ...], who: str) -> Decided:
    """Have another number of nodes train, or other stages."""
    if nodes < 0 or min(layers_per_stage, default=1) < 1:
        raise BadRequestError("nodes are not negative, and every pipeline stage has at least one layer")
    if not nodes and not layers_per_stage:
        raise BadRequestError("say what is to change: the number of nodes, the layers of each stage, or both")
    return await _decided(
        entry,
        ScaleRequested(0, nodes, layers_per_stage, who),
        already=lambda s: scaled(s, nodes=nodes, layers_per_stage=layers_per_stage) == s.goal,
    )


async def replace_worker(entry: Entry, *, worker_id: str, rank: int | None, who: str) -> Decided:
    """Have a worker give its rank to a spare."""
    chosen = worker_of(entry, worker_id=worker_id, rank=rank)
    return await _decided(entry, ReplaceRequested(0, chosen, who), already=lambda s: bool(s.workers[chosen].unwanted))


async def take_checkpoint(entry: Entry, *, who: str) -> Decided:
    """Have a durable checkpoint written after the step under way, or as soon as an epoch runs."""
    return await _decided(entry, CheckpointRequested(0, who), already=lambda s: s.checkpoint_wish == s.committed_step)


async def _decided(entry: Entry, event: Event, *, already: Callable[[State], bool] = lambda _: False) -> Decided:
    """Ask; `already` says of a state that the request is fulfilled in it, so that asking again changes nothing."""
    answer = await entry.ask(event)
    record = answer.record
    if record is None or not (answer.acted or already(answer.before)):
        raise NotPossibleError(record.reason if record else f"job {entry.job.name} is over")
    return Decided(record.seq, record.reason)
