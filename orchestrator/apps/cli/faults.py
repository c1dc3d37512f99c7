"""Chaos from the command line: faults addressed by kind, step and rank, handed to the supervisor when they can find their target.

A fault goes to the worker that holds its rank, so it is handed in once there is one, and again when that rank has moved to
another worker before its step came. A fault whose step has been reached is never repeated, or it would strike for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.apps.cli.base import CliError, Code, milliseconds
from orchestrator.core.supervisor.events import FAULT_KINDS, Fault
from orchestrator.core.supervisor.state import JobPhase, WorkerPhase

if TYPE_CHECKING:
    from orchestrator.core.job import Job
    from orchestrator.runtime.status_types import JobStatus

_PLANNED = re.compile(r"(?P<kind>[a-z-]+)@(?P<step>[0-9]{1,10})(:(?P<rank>[0-9]{1,6})(:(?P<amount>[0-9.]+[a-z]+))?)?")


def parse(text: str, job: Job) -> Fault:
    """`KIND@STEP[:RANK[:AMOUNT]]` -> a fault in the middle of the rank's own micro-batches. Raises CliError."""
    match = _PLANNED.fullmatch(text)
    if not match:
        raise CliError(f"--chaos {text!r}: write KIND@STEP[:RANK[:AMOUNT]], such as kill-node@30 or slow@10:2:300ms", Code.INPUT)
    kind, step = match["kind"], int(match["step"])
    ranks = job.parallel.ranks
    rank = int(match["rank"]) if match["rank"] else ranks - 1
    if kind not in FAULT_KINDS:
        raise CliError(f"--chaos {text!r}: {kind!r} is no fault; known: {', '.join(FAULT_KINDS)}", Code.INPUT)
    if not 1 <= step <= job.train.steps:
        raise CliError(f"--chaos {text!r}: step {step} is not among the job's steps 1 to {job.train.steps}", Code.INPUT)
    if rank >= ranks:
        raise CliError(f"--chaos {text!r}: there is no rank {rank}; the job has ranks 0 to {ranks - 1}", Code.INPUT)
    amount = milliseconds(match["amount"], option=f"--chaos {text!r}") if match["amount"] else 0
    if kind == "slow" and not amount:
        raise CliError(f"--chaos {text!r}: slow needs an amount per micro-batch, such as slow@{step}:{rank}:300ms", Code.INPUT)
    replica = rank // job.parallel.tensor % job.parallel.data
    own = job.train.micro_batches // job.parallel.data + (replica < job.train.micro_batches % job.parallel.data)  # within one
    return Fault(kind=kind, rank=rank, node_id="", at_step=step, micro_batch=own // 2, amount_ms=amount)


@dataclass(slots=True)
class _Waiting:
    fault: Fault
    given_to: str = ""  # worker id


class Schedule:
    """Decides when which fault is handed in; it does no I/O."""

    def __init__(self, faults: list[Fault]) -> None:
        self._waiting = [_Waiting(f) for f in faults]

    def due(self, status: JobStatus) -> tuple[list[Fault], list[str]]:
        """Faults to hand in now, and complaints about faults that came too late."""
        give: list[Fault] = []
        late: list[str] = []
        seats = {w.rank: w.worker_id for w in status.workers if w.phase is WorkerPhase.MEMBER and w.rank >= 0}
        for item in list(self._waiting):
            fault = item.fault
            if status.step >= fault.at_step:
                self._waiting.remove(item)
                if not item.given_to:
                    late.append(f"chaos {fault.kind}@{fault.at_step}: the step was over before the fault could be handed in")
                continue
            worker = seats.get(fault.rank)
            if worker is None or status.phase not in (JobPhase.FORMING, JobPhase.RUNNING) or worker == item.given_to:
                continue
            if item.given_to and status.step + 1 >= fault.at_step:  # it has struck
                self._waiting.remove(item)
                continue
            item.given_to = worker
            give.append(fault)
        return give, late
