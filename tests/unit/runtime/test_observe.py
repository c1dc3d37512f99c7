"""Silence and standstill, as the observer counts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.supervisor.events import Observation
from orchestrator.core.timeouts import derive
from orchestrator.runtime.observe import Observer
from orchestrator.runtime.ports import Beat

LIMITS = derive(4000)
TICK = LIMITS.tick_ms


def beat(
    *, progress: int = 0, phase: str = "forward", step: int = 1, phase_ms: int = 0, worker: str = "j/w0", epoch: int = 1
) -> Beat:
    return Beat(worker, epoch, step, phase, phase_ms, progress, False, False, 7, 100)


def tick(observer: Observer, *, dt_ms: int = TICK) -> Observation:
    (observation,) = observer.tick(["j/w0"], dt_ms)
    return observation


def test_silence_grows_with_time_and_a_beat_ends_it() -> None:
    observer = Observer(LIMITS)
    assert [tick(observer).silence_ms for _ in range(3)] == [TICK, 2 * TICK, 3 * TICK]
    observer.beat(beat())
    assert tick(observer).silence_ms == 0
    assert tick(observer).silence_ms == TICK


def test_a_hello_ends_silence_too() -> None:
    observer = Observer(LIMITS)
    tick(observer)
    observer.heard("j/w0")
    assert tick(observer).silence_ms == 0


def test_time_in_which_the_supervisor_did_not_listen_is_nobodys_silence() -> None:
    observer = Observer(LIMITS)
    observer.beat(beat())
    tick(observer)
    assert tick(observer, dt_ms=60_000).silence_ms == 2 * TICK


def test_standstill_is_counted_while_beats_come_without_progress() -> None:
    observer = Observer(LIMITS)
    seen = []
    for _ in range(5):
        observer.beat(beat(progress=3))
        seen.append(tick(observer).stalled_ms)
    assert seen == [0, TICK, 2 * TICK, 3 * TICK, 4 * TICK]
    observer.beat(beat(progress=4))
    assert tick(observer).stalled_ms == 0


def test_beats_rarer_than_ticks_count_the_time_between_them() -> None:
    observer = Observer(LIMITS)
    observer.beat(beat(progress=3))
    tick(observer)
    tick(observer)
    observer.beat(beat(progress=3))
    assert tick(observer).stalled_ms == 2 * TICK


def test_a_pause_of_the_whole_process_is_silence_and_no_standstill() -> None:
    observer = Observer(LIMITS)
    observer.beat(beat(progress=3))
    tick(observer)
    silences = [tick(observer).silence_ms for _ in range(60)]  # 3 s stopped
    assert silences[-1] == 60 * TICK
    observer.beat(beat(progress=3))  # continued: its first beat comes before its training thread got anywhere
    assert tick(observer).stalled_ms <= 4 * max(LIMITS.heartbeat_ms, TICK)


def test_a_worker_that_waits_for_orders_does_not_stand_still() -> None:
    observer = Observer(LIMITS)
    for _ in range(10):
        observer.beat(beat(phase="idle"))
        assert tick(observer).stalled_ms == 0


def test_usual_is_the_longest_that_a_phase_took_on_any_worker() -> None:
    observer = Observer(LIMITS)
    observer.beat(beat(phase="eval", phase_ms=900, worker="j/w1"))
    observer.beat(beat(phase="forward", phase_ms=0, worker="j/w1"))
    observer.beat(beat(phase="eval", phase_ms=10))
    first, second = observer.tick(["j/w0", "j/w1"], TICK)
    assert first.usual_ms == 900
    assert second.usual_ms == 0  # forward was never seen to end


def test_a_phase_that_never_ended_has_no_usual_time() -> None:
    observer = Observer(LIMITS)
    for ms in (0, 100, 5_000):
        observer.beat(beat(phase_ms=ms))
    assert tick(observer).usual_ms == 0


def test_a_step_that_went_by_unseen_proves_each_of_its_phases() -> None:
    observer = Observer(LIMITS)
    observer.beat(beat(phase="reduce", step=1))
    observer.beat(beat(phase="reduce", step=3, progress=9))
    observer.beat(beat(phase="batch", step=3, progress=10))
    assert tick(observer).usual_ms > 0


def test_two_commits_of_an_epoch_prove_each_phase_where_no_beat_has_shown_one() -> None:
    observer = Observer(LIMITS)
    observer.beat(beat(phase="idle", step=0, epoch=0))
    observer.beat(beat(step=7))
    for epoch, step, known in ((1, 5, False), (1, 5, False), (2, 6, False), (2, 7, True)):
        observer.committed(epoch=epoch, step=step)
        assert (tick(observer).usual_ms > 0) is known
    observer.beat(beat(phase="eval", step=7, progress=1))
    assert tick(observer).usual_ms == 0, "which not every step has"


def test_a_worker_that_is_no_longer_asked_about_is_forgotten() -> None:
    observer = Observer(LIMITS)
    observer.beat(beat())
    observer.tick([], TICK)
    assert observer.beats() == ()
    assert tick(observer).silence_ms == TICK


def test_beats_overwrite_one_another() -> None:
    observer = Observer(LIMITS)
    for n in range(1000):
        observer.beat(beat(progress=n))
    assert observer.beats() == (beat(progress=999),)
    assert tick(observer).micro_batch_ms == 7


@pytest.mark.parametrize("dt_ms", [-5, 0])
def test_time_never_runs_backwards(dt_ms: int) -> None:
    observer = Observer(LIMITS)
    tick(observer)
    assert tick(observer, dt_ms=dt_ms).silence_ms == TICK


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10_000)), max_size=60))
def test_silence_is_at_most_two_ticks_per_tick_since_the_last_sign_of_life(story: list[tuple[bool, int]]) -> None:
    observer, quiet = Observer(LIMITS), 0
    for heard, dt_ms in story:
        if heard:
            observer.beat(beat())
        quiet = 0 if heard else quiet + 1
        observation = tick(observer, dt_ms=dt_ms)
        assert 0 <= observation.silence_ms <= quiet * 2 * TICK
        assert observation.stalled_ms <= len(story) * 2 * TICK
