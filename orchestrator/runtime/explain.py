"""Tells the story of one decision: what was known, what was decided and why, what was done, and what came of it.

Everything comes from the journal, so that the answer for a failure of last week is the same as at the time.
"""

from __future__ import annotations

import datetime

from orchestrator.core.supervisor.commands import Command
from orchestrator.runtime.control import Explanation, NotFoundError
from orchestrator.runtime.ports import Journal, Record
from orchestrator.runtime.replay import tell

BEFORE = 3  # reasoned records told of what led to it
AFTER = 6  # and of what came of it
_LOOK_BACK = 200
_LOOK_AHEAD = 200


def explain(journal: Journal, *, seq: int) -> Explanation:
    """The story of record `seq`. Raises NotFoundError when there is no such record."""
    around = journal.records(after=max(0, seq - 1 - _LOOK_BACK), limit=_LOOK_BACK + 1 + _LOOK_AHEAD)
    record = next((r for r in around if r.seq == seq), None)
    if record is None:
        raise NotFoundError(f"the journal has no record {seq}")
    before = [r for r in around if r.seq < seq and r.reason][-BEFORE:]
    after = [r for r in around if r.seq > seq and r.reason][:AFTER]
    lines = [
        f"decision {seq} at {_clock(record)}, step {record.committed_step}, epoch {record.epoch}",
        *_section("what led to it", [_line(r, record) for r in before]),
        *_section("what was learned", [tell(record.event)]),
        *_section("what was decided, and why", record.reason.split("; ") if record.reason else ["noted, nothing to do"]),
        *_section("what was done", [_command(c) for c in record.commands] or ["nothing"]),
        f"the job then was {record.phase}",
        *_section("what came of it", [_line(r, record) for r in after] or ["nothing yet"]),
    ]
    return Explanation(record, tuple(lines))


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in lines)] if lines else []


def _line(record: Record, origin: Record) -> str:
    return f"#{record.seq} {record.at_ms - origin.at_ms:+d} ms: {record.reason}"


def _command(command: Command) -> str:
    who = getattr(command, "worker_id", "")
    why = getattr(command, "why", "")
    return type(command).__name__ + (f" {who}" if who else "") + (f": {why}" if why else "")


def _clock(record: Record) -> str:
    return datetime.datetime.fromtimestamp(record.wall_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
