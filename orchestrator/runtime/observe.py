"""What heartbeats add up to: per worker how long it was silent, how long it stood still, and what is usual for its phase.

This is soft state: it changes ten times a second, is never journaled, and starts anew with a new supervisor. It does not know
the time: each tick says how much of it passed, capped, so that a supervisor which was itself stopped (or waited for a slow disk)
finds nobody silent for the time in which it did not listen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.supervisor.events import Observation
from orchestrator.core.timeouts import Timeouts
from orchestrator.runtime.ports import Beat

# A step has all of these (where the plan has them at all), so a step that went by proves each of them completed, seen or not.
STEP_PHASES = ("batch", "forward", "backward", "reduce", "commit", "update", "gather")
IDLE = "idle"  # waits for orders, which is no standstill
USUAL_MIN_MS = 1


@dataclass(slots=True)
class _Slot:
    """One worker. The newest beat overwrites the one before; beats are never queued."""

    beat: Beat | None = None
    heard: bool = False  # any sign of life since the last tick
    beaten: bool = False  # a beat since the last tick
    moved: bool = False  # progress moved since the last tick
    unbeaten_ms: int = 0  # time since the last beat, to be judged when the next one says whether it moved
    silence_ms: int = 0
    stalled_ms: int = 0


class Observer:
    """Collects beats and makes observations of them."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._tick_ms = timeouts.tick_ms
        self._gap_ms = 4 * max(timeouts.heartbeat_ms, timeouts.tick_ms)  # a longer gap between beats is silence
        self._slots: dict[str, _Slot] = {}
        self._usual_ms: dict[str, int] = {}  # by phase
        self._committed: tuple[int, int] | None = None  # epoch, and its first step that was heard of
        self._observed: dict[str, Observation] = {}

    def heard(self, worker_id: str) -> None:
        """A sign of life that is no beat: a hello, or a report."""
        self._slots.setdefault(worker_id, _Slot()).heard = True

    def beat(self, beat: Beat) -> None:
        """A heartbeat came."""
        slot = self._slots.setdefault(beat.worker_id, _Slot())
        before = slot.beat
        if before is None or (before.progress, before.step, before.phase) != (beat.progress, beat.step, beat.phase):
            slot.moved = True
        if before is not None and before.epoch == beat.epoch:
            self._learn(before, beat, gap_ms=min(slot.unbeaten_ms, self._gap_ms))
        slot.beat = beat
        slot.heard = slot.beaten = True

    def committed(self, *, epoch: int, step: int) -> None:
        """A step was committed: that is known also where beats come too seldom, or too late, to show a step of an epoch go by."""
        if self._committed is None or self._committed[0] != epoch:
            self._committed = (epoch, step)
        elif step > self._committed[1]:  # between two commits lies all that a step has
            self._prove_step()

    def tick(self, worker_ids: Sequence[str], dt_ms: int) -> tuple[Observation, ...]:
        """`dt_ms` passed (capped here to two ticks); observations of these workers, in order. Others are forgotten."""
        dt_ms = max(0, min(dt_ms, 2 * self._tick_ms))
        self._slots = {w: self._slots.get(w) or _Slot() for w in worker_ids}
        observations = tuple(self._observe(w, slot, dt_ms) for w, slot in self._slots.items())
        self._observed = {o.worker_id: o for o in observations}
        return observations

    def beats(self) -> tuple[Beat, ...]:
        """The newest beat of every worker that sent one, by worker id."""
        return tuple(s.beat for _, s in sorted(self._slots.items()) if s.beat is not None)

    def observed(self) -> dict[str, Observation]:
        """What the last tick saw, by worker id."""
        return dict(self._observed)

    def _observe(self, worker_id: str, slot: _Slot, dt_ms: int) -> Observation:
        slot.unbeaten_ms += dt_ms
        slot.silence_ms = 0 if slot.heard else slot.silence_ms + dt_ms
        beat = slot.beat
        if slot.beaten:  # only a worker that is heard of is known to stand still; silence is counted by itself
            waits = slot.moved or (beat is not None and beat.phase == IDLE)
            slot.stalled_ms = 0 if waits else slot.stalled_ms + min(slot.unbeaten_ms, self._gap_ms)
            slot.unbeaten_ms = 0
        slot.heard = slot.beaten = slot.moved = False
        if beat is None:
            return Observation(worker_id, slot.silence_ms, 0, 0, in_comm=False, orphaned=False, micro_batch_ms=0)
        return Observation(
            worker_id=worker_id,
            silence_ms=slot.silence_ms,
            stalled_ms=slot.stalled_ms,
            usual_ms=self._usual_ms.get(beat.phase, 0),
            in_comm=beat.in_comm,
            orphaned=beat.orphaned,
            micro_batch_ms=beat.micro_batch_ms,
        )

    def _learn(self, before: Beat, beat: Beat, *, gap_ms: int) -> None:
        """A phase that was seen and is over took at least as long as it was seen to; beats between ticks add the gap."""
        if (before.phase, before.step) != (beat.phase, beat.step):
            took_ms = max(USUAL_MIN_MS, before.phase_ms + max(0, gap_ms - beat.phase_ms))
            self._usual_ms[before.phase] = max(self._usual_ms.get(before.phase, 0), took_ms)
        if beat.step > before.step + 1:  # one whole step at least lies between the two
            self._prove_step()

    def _prove_step(self) -> None:
        for phase in STEP_PHASES:
            self._usual_ms.setdefault(phase, USUAL_MIN_MS)
