"""The simulator's journal keeps the promises of the port, and loses in a crash exactly what it may lose."""

from __future__ import annotations

import pytest

from orchestrator.core.supervisor.state import State
from orchestrator.runtime.ports import Record
from orchestrator.testkit.fakes.journal import MemoryJournal
from tests.conformance import test_journal_port as port
from tests.conformance.test_journal_port import (  # the suite itself, run here with the fixture below
    JOB,
    MakeJournal,
    run,  # noqa: F401
    test_a_new_journal_knows_its_job_and_nothing_else,  # noqa: F401
    test_a_snapshot_shortens_the_replay_and_leads_to_the_same_state,  # noqa: F401
    test_it_goes_on_after_it_was_opened_again,  # noqa: F401
    test_it_is_created_once,  # noqa: F401
    test_records_come_back_equal_and_in_order,  # noqa: F401
    test_records_come_in_pages,  # noqa: F401
)


@pytest.fixture
def make() -> MakeJournal:
    journal = MemoryJournal()
    return lambda: journal


def test_a_crash_loses_nothing_up_to_the_newest_durable_record(run: tuple[State, list[Record]]) -> None:  # noqa: F811
    first, records = run
    journal = MemoryJournal()
    port.written(journal, run)
    durable = max(r.seq for r in records if r.commands)
    cut = next(n for n, r in enumerate(records) if n > 2 and not r.commands and not records[n + 1].commands)
    short = MemoryJournal()
    short.create(JOB)
    short.snapshot(0, first)
    for record in records[: cut + 2]:
        short.append(record, durable=bool(record.commands))
    assert journal.durable_seq == durable
    assert short.crash(1) == 1
    assert short.load()[2][-1] == records[cut]
    assert short.crash(10_000) == cut + 1 - short.durable_seq
    assert short.load()[2][-1].seq == short.durable_seq
    assert short.crash(10_000) == 0
