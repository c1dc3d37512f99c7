"""Where the time went, in numbers that a person can check by hand."""

from __future__ import annotations

import asyncio

from orchestrator.core.supervisor.commands import Command, KillWorker, LeaveEpoch
from orchestrator.core.supervisor.events import StepCommitted, SupervisorRestarted
from orchestrator.runtime.ledger import Cause, Ledger
from orchestrator.runtime.ports import Record
from tests.unit.runtime.world import STEP_MS, LoopClock, MemoryJournal, World, job, virtually


class Book:
    """Writes records with the phase after them."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def at(self, at_ms: int, phase: str, step: int, *commands: Command) -> None:
        event = SupervisorRestarted(at_ms)
        self.records.append(Record(len(self.records) + 1, at_ms, at_ms / 1000, event, commands, "", phase, 1, step))


def lost(ledger: Ledger) -> dict[str, int]:
    return {cause.value: ms for cause, ms in ledger.account().lost_ms if ms}


def started() -> Book:
    """1.5 s of start, then a step each 100 ms: 1 at 1500, 2 at 1600, 3 at 1700."""
    book = Book()
    book.at(0, "waiting", 0)
    book.at(1_000, "forming", 0)
    book.at(1_400, "running", 0)
    for n in (1, 2, 3):
        book.at(1_400 + 100 * n, "running", n)
    return book


def test_before_the_first_step_there_is_no_goodput() -> None:
    ledger = Ledger.of(started().records[:3])
    account = ledger.account()
    assert (account.startup_ms, account.steps) == (1_400, 0)
    assert account.goodput is None
    assert account.ettr is None


def test_undisturbed_steps_are_productive() -> None:
    account = Ledger.of(started().records).account()
    assert (account.startup_ms, account.productive_ms, account.steps, account.open_ms) == (1_500, 200, 3, 0)
    assert account.goodput == 1.0
    assert account.ettr == 200 / 1_700


def test_an_interrupted_step_counts_for_as_long_as_a_step_usually_takes() -> None:
    book = started()
    book.at(1_950, "fencing", 3)  # 250 ms into the step, 200 of them unnoticed
    book.at(1_980, "waiting", 3)
    book.at(2_480, "forming", 3)
    book.at(2_560, "running", 3)
    book.at(2_610, "running", 4)
    ledger = Ledger.of(book.records)
    assert lost(ledger) == {"fencing": 30, "waiting": 500, "forming": 80, "interrupted": 200}
    assert ledger.account().productive_ms == 200 + 100
    assert ledger.account().goodput == 300 / (300 + 810)


def test_a_planned_change_is_a_cause_of_its_own() -> None:
    book = started()
    book.at(1_750, "running", 3, LeaveEpoch("j/w0", 1))
    book.at(1_800, "running", 4)
    book.at(1_805, "fencing", 4)
    book.at(1_815, "forming", 4)
    book.at(1_840, "running", 4)
    book.at(1_960, "running", 5)
    book.at(2_060, "running", 6)
    ledger = Ledger.of(book.records)
    assert lost(ledger) == {"planned": 10 + 25 + 25}, "leaving, forming, and what the step took longer than usual"
    assert ledger.account().productive_ms == 500


def test_a_planned_change_that_becomes_a_failure_is_booked_as_one() -> None:
    book = started()
    book.at(1_750, "running", 3, LeaveEpoch("j/w0", 1))
    book.at(1_800, "running", 4)
    book.at(1_805, "fencing", 4)
    book.at(1_810, "fencing", 4, KillWorker("j/w1", "gone"))
    book.at(1_815, "forming", 4)
    book.at(1_840, "running", 4)
    book.at(1_940, "running", 5)
    assert lost(Ledger.of(book.records)) == {"fencing": 10, "forming": 25, "interrupted": 5}


def test_steps_that_are_done_again_are_lost_time() -> None:
    book = started()
    book.at(1_710, "fencing", 3)
    book.at(1_720, "forming", 1)  # back to the checkpoint of step 1
    book.at(1_730, "running", 1)
    book.at(1_830, "running", 2)
    book.at(1_930, "running", 3)
    book.at(2_030, "running", 4)
    ledger = Ledger.of(book.records)
    assert lost(ledger) == {"fencing": 10, "forming": 10, "redone": 210}
    assert ledger.account().steps == 4
    assert ledger.account().productive_ms == 200 + 100


def test_time_after_the_end_is_not_counted_and_open_time_is_shown() -> None:
    book = started()
    book.at(1_740, "running", 3)
    assert Ledger.of(book.records).account().open_ms == 40
    book.at(1_750, "succeeded", 3)
    book.at(99_000, "succeeded", 3)
    account = Ledger.of(book.records).account()
    assert account.open_ms == 50
    assert account.productive_ms == 200


def test_every_millisecond_of_a_real_run_is_booked_exactly_once() -> None:
    world, journal = World(job()), MemoryJournal()

    async def main() -> None:
        running = asyncio.create_task(world.start(journal, LoopClock()).run())
        await world.until(lambda s: s.committed_step >= 10)
        world.rank(1).die(kill=True)
        await running

    virtually(main)
    account = Ledger.of(journal.written).account()
    booked = account.startup_ms + account.productive_ms + sum(ms for _, ms in account.lost_ms) + account.open_ms
    assert booked == journal.written[-1].at_ms - journal.written[0].at_ms
    assert account.steps == 30
    commits = [r.at_ms for r in journal.written if isinstance(r.event, StepCommitted)]
    assert abs(account.productive_ms - 29 * STEP_MS) <= STEP_MS
    assert sum(ms for _, ms in account.lost_ms) == commits[-1] - commits[0] - account.productive_ms
    assert [c for c, _ in account.lost_ms] == list(Cause)
