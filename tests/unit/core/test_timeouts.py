"""The ladder of time-outs nests for every promise that a job may make."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.core.timeouts import derive, ladder

TEN_MINUTES_MS = 600_000


@given(st.integers(500, TEN_MINUTES_MS))
@example(500)
@example(4_000)
@example(TEN_MINUTES_MS)
def test_the_ladder_nests(detect_within_ms: int) -> None:
    t = derive(detect_within_ms)
    assert 0 < t.tick_ms < t.heartbeat_ms <= t.reconnect_ms <= t.probe_ms < t.suspect_ms < t.lost_ms < detect_within_ms
    assert t.form_ms < t.measure_ms < t.prove_ms
    assert t.lost_ms < t.form_ms < t.prove_ms < t.leave_ms < t.spawn_ms <= t.first_step_ms < t.orphan_ms < t.collective_ms
    assert 5 * t.heartbeat_ms <= t.suspect_ms, "a few late heartbeats make nobody suspect"
    assert t.suspect_ms + t.probe_ms < t.lost_ms, "a probe is answered before the verdict"
    assert t.lost_ms + 2 * t.tick_ms + t.heartbeat_ms <= detect_within_ms, "the verdict comes within what was promised"


@given(st.integers(500, TEN_MINUTES_MS), st.integers(1, 60_000))
def test_a_longer_promise_shortens_nothing(detect_within_ms: int, more_ms: int) -> None:
    shorter, longer = ladder(derive(detect_within_ms)), ladder(derive(detect_within_ms + more_ms))
    assert all(a[1] <= b[1] for a, b in zip(shorter, longer, strict=True))


def test_the_ladder_reads_from_the_shortest_to_the_longest() -> None:
    rungs = ladder(derive(4_000))
    assert rungs[:2] == (("tick_ms", 50), ("heartbeat_ms", 100))
    assert rungs[-1] == ("collective_ms", 600_000)
    assert all(a[1] <= b[1] for a, b in pairwise(rungs))


def test_half_a_second_is_the_least() -> None:
    with pytest.raises(ValueError, match="at least 500 ms, not 499 ms"):
        derive(499)
