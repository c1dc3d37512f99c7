"""The ladder of time-outs, all derived from one setting.

Users of other systems spend days on time-outs that must nest and do not. Here `detect_within` is the one promise (a dead or
stuck worker is declared lost within it) and every other limit is a fixed multiple, so that they nest by construction; `doctor`
prints the ladder.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

DETECT_WITHIN_MS = 4_000  # the default of the setting, for limits of what serves several jobs or knows none yet


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in milliseconds, from the shortest to the longest."""

    tick_ms: int  # how often the supervisor looks at its clocks
    heartbeat_ms: int  # how often a worker reports
    reconnect_ms: int  # pause between a worker's attempts to reach the supervisor
    probe_ms: int  # one active probe of a worker's port
    suspect_ms: int  # silence after which a worker is shown as unreachable; nothing is done yet
    lost_ms: int  # silence (or a standstill inside the user's code) after which a worker is declared lost
    form_ms: int  # forming the process groups of an epoch
    measure_ms: int  # from asking an idle worker to measure itself until it counts as unmeasured
    prove_ms: int  # from the start of an epoch until every rank has its state
    leave_ms: int  # from asking an epoch's ranks to leave at the end of the step until they are told to leave at once
    spawn_ms: int  # from asking for a worker until it says hello
    first_step_ms: int  # a standstill in a phase that was never timed before (compilation, first touch, slow data)
    orphan_ms: int  # a worker that is in no epoch and hears of no supervisor ends itself
    collective_ms: int  # the communication library's own limit, a backstop: supervision aborts groups long before


def derive(detect_within_ms: int) -> Timeouts:
    """All limits for one `detect_within` (milliseconds, at least 500)."""
    if detect_within_ms < 500:
        raise ValueError(f"detect_within must be at least 500 ms, not {detect_within_ms} ms")
    d = detect_within_ms
    return Timeouts(
        tick_ms=max(10, d // 80),
        heartbeat_ms=max(20, d // 40),
        reconnect_ms=max(20, d // 40),
        probe_ms=max(50, d // 16),
        suspect_ms=d // 2,
        lost_ms=d * 7 // 8,
        form_ms=d * 2,
        measure_ms=d * 5,
        prove_ms=d * 15,
        leave_ms=d * 20,
        spawn_ms=d * 30,
        first_step_ms=d * 30,
        orphan_ms=d * 75,
        collective_ms=d * 150,
    )


def ladder(timeouts: Timeouts) -> tuple[tuple[str, int], ...]:
    """(name, milliseconds) pairs in the declared order, for people."""
    return tuple((f.name, getattr(timeouts, f.name)) for f in fields(timeouts))
