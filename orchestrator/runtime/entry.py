"""One job as the service holds it: its driver, journal, books and logs, and what a person may mean by a node or worker of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from orchestrator.core.cluster.view import NodeView
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import Event
from orchestrator.runtime.books import Books
from orchestrator.runtime.control import BadRequestError, NotFoundError, NotPossibleError
from orchestrator.runtime.driver import Answer, Driver, DriverStopped
from orchestrator.runtime.logs import WorkerLogs
from orchestrator.runtime.ports import Journal

CLUSTER_FILE = "cluster"  # in the folder of a job: the name of the cluster whose supervisor it belongs to
PAST_FOLDER = ".past"  # beside the jobs: the folders of earlier runs, numbered


def put_past(folder: Path) -> Path:
    """Move the folder of a job out of the way, in one instant; returns where it is now."""
    past = folder.parent / PAST_FOLDER
    past.mkdir(mode=0o700, exist_ok=True)
    number = 1 + sum(1 for p in past.iterdir() if p.name.rpartition(".")[0] == folder.name)
    return folder.rename(past / f"{folder.name}.{number}")


class OwnedJournal(Journal, Protocol):
    """A journal that this process owns until it closes it."""

    @property
    def exists(self) -> bool:
        """Whether a job was ever started in it."""
        ...

    def close(self) -> None:
        """Give it up."""
        ...


class Entry:
    """One job. It is made on the event loop that its driver runs on."""

    def __init__(self, job: Job, journal: OwnedJournal, driver: Driver, books: Books, logs: WorkerLogs) -> None:
        self.job = job
        self.journal = journal
        self.driver = driver
        self.books = books
        self.reading = asyncio.create_task(books.catch_up(), name=f"books of {job.name}")
        self.logs = logs
        self.task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None

    @property
    def over(self) -> bool:
        """No more records will come."""
        return self.driver.state.phase.terminal or self.error is not None or (self.task is not None and self.task.done())

    async def ask(self, event: Event) -> Answer:
        """Have a request decided on. Raises NotPossibleError when the driver ends first."""
        try:
            return await self.driver.ask(event)
        except DriverStopped as error:
            raise NotPossibleError(str(error)) from error


def node_of(entry: Entry, node_id: str) -> NodeView:
    """A node by its id or the unambiguous beginning of it."""
    view = entry.driver.state.cluster
    nodes = [n for n in view.nodes if n.node_id.startswith(node_id)] if view and node_id else []
    exact = [n for n in nodes if n.node_id == node_id]
    if len(exact or nodes) == 1:
        return (exact or nodes)[0]
    known = ", ".join(n.node_id[:12] for n in view.nodes) if view and view.nodes else "none"
    if nodes:
        raise BadRequestError(f"{node_id} is the beginning of {len(nodes)} nodes' ids; there are {known}")
    raise NotFoundError(f"there is no node {node_id}; there are {known}")


def worker_of(entry: Entry, *, worker_id: str, rank: int | None) -> str:
    """The id of a living worker that is meant: by its id (`w3` is enough) or by the rank that it has now."""
    state = entry.driver.state
    name = entry.job.name
    if bool(worker_id) == (rank is not None):
        raise BadRequestError("name either a worker or a rank: one of the two")
    if rank is not None:
        if state.plan is None:
            raise NotPossibleError(f"job {name} has no ranks yet")
        if not 0 <= rank < state.plan.size:
            raise NotFoundError(f"there is no rank {rank}; job {name} has ranks 0 to {state.plan.size - 1}")
        return state.plan.seats[rank].worker_id
    full = worker_id if "/" in worker_id else f"{name}/{worker_id}"
    worker = state.workers.get(full)
    if worker is None or not worker.phase.alive:
        known = ", ".join(w.worker_id for w in state.workers.values() if w.phase.alive) or "none"
        gone = f" any more ({worker.phase}: {worker.cause})" if worker is not None else ""
        raise NotFoundError(f"there is no worker {worker_id}{gone}; there are {known}")
    return full
