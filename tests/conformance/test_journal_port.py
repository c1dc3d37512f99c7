"""What every implementation of runtime.ports.Journal must do; the SQLite one and the tests' one in memory run it.

The records are those of a real run with a failure in it, made in virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.core.supervisor.state import State
from orchestrator.runtime.ports import Journal, Record
from orchestrator.runtime.replay import replay, verify_replay
from tests.unit.runtime.world import LoopClock, MemoryJournal, World, job, virtually

JOB = job()
MakeJournal = Callable[[], Journal]


@pytest.fixture(scope="module")
def run() -> tuple[State, list[Record]]:
    """The first state and all records of a run in which a worker was killed."""
    world, journal = World(JOB), MemoryJournal()

    async def main() -> None:
        running = asyncio.create_task(world.start(journal, LoopClock()).run())
        await world.until(lambda s: s.committed_step >= 10)
        world.rank(1).die(kill=True)
        await running

    virtually(main)
    assert world.driver.state.recoveries
    return journal.snapshots[0][1], journal.written


@pytest.fixture(params=["sqlite", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeJournal]:
    """Opens the same journal again on each call, after the one before was closed."""
    opened: list[SqliteJournal] = []
    memory = MemoryJournal()

    def sqlite() -> Journal:
        for journal in opened:
            journal.close()
        opened.append(SqliteJournal(tmp_path / "j"))
        return opened[-1]

    yield sqlite if request.param == "sqlite" else lambda: memory
    for journal in opened:
        journal.close()


def written(journal: Journal, run: tuple[State, list[Record]]) -> Journal:
    first, records = run
    journal.create(JOB)
    journal.snapshot(0, first)
    for record in records:
        journal.append(record, durable=bool(record.commands))
    return journal


def test_a_new_journal_knows_its_job_and_nothing_else(make: MakeJournal) -> None:
    make().create(JOB)
    journal = make()
    assert journal.job() == JOB
    assert journal.load() == (None, 0, [])
    assert list(journal.records()) == []


def test_it_is_created_once(make: MakeJournal) -> None:
    make().create(JOB)
    with pytest.raises(FileExistsError):
        make().create(JOB)


def test_records_come_back_equal_and_in_order(make: MakeJournal, run: tuple[State, list[Record]]) -> None:
    written(make(), run)
    state, seq, records = make().load()
    assert state == run[0]
    assert seq == 0
    assert list(records) == run[1]


def test_records_come_in_pages(make: MakeJournal, run: tuple[State, list[Record]]) -> None:
    journal = written(make(), run)
    assert [r.seq for r in journal.records(limit=3)] == [1, 2, 3]
    assert [r.seq for r in journal.records(after=4, limit=2)] == [5, 6]
    assert list(journal.records(after=run[1][-1].seq)) == []
    assert list(journal.records(limit=0)) == []


def test_a_snapshot_shortens_the_replay_and_leads_to_the_same_state(make: MakeJournal, run: tuple[State, list[Record]]) -> None:
    journal = written(make(), run)
    whole = replay(journal)
    assert verify_replay(journal) == ()
    assert whole.state is not None
    journal.snapshot(whole.seq, whole.state)
    state, seq, rest = make().load()
    assert (state, seq, list(rest)) == (whole.state, run[1][-1].seq, [])
    assert len(make().records(limit=10_000)) == len(run[1])  # people still see what came before it


def test_it_goes_on_after_it_was_opened_again(make: MakeJournal, run: tuple[State, list[Record]]) -> None:
    first, records = run
    journal = make()
    journal.create(JOB)
    journal.snapshot(0, first)
    for record in records:
        journal = make()
        journal.append(record, durable=record.seq % 2 == 0)
    assert list(make().load()[2]) == records
