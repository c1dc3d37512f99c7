"""What `--wait` does: follow the journal after a request until what was asked for is so, and show each decision on the way.

Giving up waiting takes nothing back: the request is journaled, and the message says how to look on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.apps.cli.base import CliError, Code, say
from orchestrator.core.supervisor.state import JobPhase

if TYPE_CHECKING:
    from orchestrator.adapters.grpc.client import ControlClient
    from orchestrator.runtime.control import Decided
    from orchestrator.runtime.ports import Record
    from orchestrator.runtime.status_types import JobStatus

# "" while it is not so yet, else what is to be told; the record is None for the first look. May raise CliError.
Judge = Callable[["Record | None", "JobStatus"], str]


def wait(client: ControlClient, job: str, decided: Decided, judge: Judge) -> str:
    """Until `judge` has something to tell, and that. Raises CliError when the job ends first, or on Ctrl-C."""
    try:
        told = judge(None, client.get(job))
        if told:
            return told
        for record in client.watch_events(job, after_seq=decided.seq, follow=True):
            if record.reason:
                say(f"#{record.seq} {record.reason}")
            if not record.reason and not record.commands:
                continue  # a step like any other
            told = judge(record, client.get(job))
            if told:
                return told
        status = client.get(job)
    except KeyboardInterrupt:
        raise CliError(
            f"not waiting any longer; what was asked for goes on, see: orchestrator status {job} -w", Code.INTERRUPTED
        ) from None
    told = judge(None, status)
    if told:
        return told
    word = status.last_word.strip().splitlines()
    raise CliError(f"job {status.name} is {status.phase} before that was done{': ' + word[-1] if word else ''}", Code.INFRA)


def settled(status: JobStatus) -> bool:
    """Whether the job trains and nothing is about to change, so that whatever was asked for is in effect."""
    return status.phase is JobPhase.RUNNING and status.change is None
