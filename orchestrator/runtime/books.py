"""Keeps a job's goodput ledger beside its driver: telemetry that books every decision and passes everything on.

A resumed job may have a long past; it is read from the journal in pages, in the background, so that the driver is back at once.
Until the books have caught up with the present they have no goodput to show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from orchestrator.core.supervisor.state import State
from orchestrator.runtime.ledger import Account, Ledger
from orchestrator.runtime.ports import Beat, Journal, Record, Telemetry

PAGE = 200  # records read at once; the loop is held up for as long as that takes


class Books:
    """runtime.ports.Telemetry around another one. `catch_up` is run once, at any time after the journal exists."""

    def __init__(self, inner: Telemetry, journal: Journal) -> None:
        self._inner = inner
        self._journal = journal
        self._ledger = Ledger()
        self._present = False

    def decided(self, record: Record, state: State) -> None:
        """Book it; before the books have caught up it is read from the journal in its turn."""
        if self._present:
            self._ledger.add(record)
        self._inner.decided(record, state)

    def ticked(self, state: State, beats: Iterable[Beat]) -> None:
        """Passed on."""
        self._inner.ticked(state, beats)

    async def catch_up(self) -> None:
        """Book the past."""
        after = 0
        while page := self._journal.records(after=after, limit=PAGE):
            for record in page:
                self._ledger.add(record)
            after = page[-1].seq
            await asyncio.sleep(0)
        self._present = True  # no record can come between the empty page and this line

    @property
    def account(self) -> Account | None:
        """The balance; None while the past is still being read."""
        return self._ledger.account() if self._present else None

    @property
    def goodput(self) -> float | None:
        """Of the account."""
        return self._ledger.account().goodput if self._present else None
