"""A journal in memory that can lose what a crash loses.

Records are kept as the objects that they are and leave through the codec, as they would from a file. `crash` drops the newest
records that were not written durably, down to a given number of them: a `kill -9` loses none, a power cut may lose all of
those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from orchestrator.core.codec import from_json, to_json
from orchestrator.core.job import Job
from orchestrator.core.supervisor.state import State
from orchestrator.runtime.ports import Record

Written = Callable[[Record, bool], None]


class MemoryJournal:
    """runtime.ports.Journal. `before` and `after` are called around each append: they may let time pass, or raise."""

    def __init__(self, *, before: Written | None = None, after: Written | None = None) -> None:
        self._before = before
        self._after = after
        self._job: str | None = None
        self._records: list[Record] = []
        self._snapshots: list[tuple[int, str]] = []
        self.durable_seq = 0

    def create(self, job: Job) -> None:
        """Start it; raises FileExistsError when it has begun."""
        if self._job is not None:
            raise FileExistsError("this job already has a journal")
        self._job = _dump(job)

    def append(self, record: Record, *, durable: bool) -> None:
        """Add one record. Raises ValueError when it does not follow the last one."""
        if self._before is not None:
            self._before(record, durable)
        if record.seq != len(self._records) + 1:
            raise ValueError(f"record {record.seq} does not follow {len(self._records)}")
        self._records.append(record)
        if durable:
            self.durable_seq = record.seq
        if self._after is not None:
            self._after(record, durable)

    def snapshot(self, seq: int, state: State) -> None:
        """Remember a state. Raises ValueError for a record that is not there."""
        if seq > len(self._records):
            raise ValueError(f"no record {seq} to take a snapshot after")
        self._snapshots.append((seq, _dump(state)))

    def load(self) -> tuple[State | None, int, Sequence[Record]]:
        """Newest snapshot, its seq, and the records after it."""
        if not self._snapshots:
            return None, 0, self.records(limit=len(self._records))
        seq, text = self._snapshots[-1]
        state: State = from_json(State, json.loads(text))
        return state, seq, self.records(after=seq, limit=len(self._records))

    def job(self) -> Job:
        """The job; FileNotFoundError before `create`."""
        if self._job is None:
            raise FileNotFoundError("no job was started in this journal")
        job: Job = from_json(Job, json.loads(self._job))
        return job

    def records(self, *, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """At most `limit` records with seq > after, through the codec."""
        return [from_json(Record, json.loads(_dump(r))) for r in self._records[after : after + max(0, limit)]]

    def written(self) -> Sequence[Record]:
        """All records as they are, without the codec."""
        return self._records

    def whole(self) -> MemoryJournal:
        """The same journal without its later snapshots, so that a replay starts at the beginning."""
        out = MemoryJournal()
        out._job, out._records, out._snapshots = self._job, self._records, self._snapshots[:1]
        return out

    def crash(self, lose: int) -> int:
        """Lose at most `lose` of the newest records that are not durable; returns how many were lost."""
        lost = min(lose, len(self._records) - self.durable_seq)
        if lost > 0:
            del self._records[-lost:]
            self._snapshots = [(s, t) for s, t in self._snapshots if s <= len(self._records)]
        return lost


def _dump(value: object) -> str:
    return json.dumps(to_json(value), separators=(",", ":"))
