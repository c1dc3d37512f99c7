"""From a journal back to the state: fold the decision function over the recorded events.

Replaying is also the proof that decisions are pure: each replayed decision must command what the recorded one commanded and end
in the same phase, epoch and step. A supervisor that would decide otherwise than its journal (other code, a damaged file) must not
take the job over: what it believes and what was done would differ from the first command on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.core.codec import to_json
from orchestrator.core.supervisor.machine import step
from orchestrator.core.supervisor.state import State
from orchestrator.runtime.ports import Journal, Record

STORY_LENGTH = 20
_DETAIL_CHARS = 400


class ReplayMismatch(RuntimeError):
    """The journal and this program disagree; the journal is left as it is."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a journal amounts to."""

    state: State | None  # None: the job was created and nothing happened yet
    seq: int  # of the last record
    records: Sequence[Record]  # those that were replayed
    mismatches: tuple[str, ...]


def replay(journal: Journal) -> Replay:
    """Fold `step` over the records after the newest snapshot."""
    state, seq, records = journal.load()
    if state is None:
        mismatches = ("there are records but no state to start from",) if records else ()
        return Replay(None, seq, records, mismatches)
    mismatches_: list[str] = []
    for record in records:
        if record.seq != seq + 1:
            mismatches_.append(f"record {record.seq} follows record {seq}")
        seq = record.seq
        decision = step(state, record.event)
        state = decision.state
        if _text(decision.commands) != _text(record.commands):
            mismatches_.append(f"record {seq}: commanded {_text(record.commands)}, now {_text(decision.commands)}")
        if decision.reason != record.reason:
            mismatches_.append(f"record {seq}: because {record.reason!r}, now {decision.reason!r}")
        after = (state.phase.value, state.epoch, state.committed_step)
        if after != (record.phase, record.epoch, record.committed_step):
            was = f"{record.phase}, epoch {record.epoch}, step {record.committed_step}"
            mismatches_.append(f"record {seq}: led to {was}, now to {after[0]}, epoch {after[1]}, step {after[2]}")
    return Replay(state, seq, records, tuple(mismatches_))


def verify_replay(journal: Journal) -> tuple[str, ...]:
    """Every difference between the recorded decisions and those that this program makes of the same events."""
    return replay(journal).mismatches


def story(records: Iterable[Record]) -> str:
    """The last records in words, one line each, for an error that stops the supervisor."""
    lines = []
    for r in list(records)[-STORY_LENGTH:]:
        commands = ", ".join(type(c).__name__ for c in r.commands) or "nothing"
        lines.append(f"  #{r.seq} at {r.at_ms} ms [{r.phase}, epoch {r.epoch}, step {r.committed_step}] {tell(r.event)}")
        lines.append(f"     -> {commands}: {_short(r.reason)}")
    return "\n".join(lines) or "  (nothing happened yet)"


def tell(event: object) -> str:
    """An event as text of bounded length."""
    return f"{type(event).__name__} {_short(_text(event))}"


def _text(value: object) -> str:
    return json.dumps(to_json(value), sort_keys=True)


def _short(text: str) -> str:
    return text if len(text) <= _DETAIL_CHARS else f"{text[:_DETAIL_CHARS]}..."
