"""A clock that continues a journal."""

from __future__ import annotations

from orchestrator.runtime.clock import ContinuedClock, SystemClock


class Fixed:
    """A clock that stands where it is put."""

    def __init__(self, now_ms: int, wall_s: float) -> None:
        self.ms, self.s = now_ms, wall_s

    def now_ms(self) -> int:
        return self.ms

    def wall_s(self) -> float:
        return self.s


def test_on_the_same_machine_nothing_is_shifted() -> None:
    assert ContinuedClock(Fixed(5_000, 103.0), last_ms=2_000, last_wall_s=100.0).now_ms() == 5_000


def test_a_wall_clock_that_was_set_by_seconds_changes_nothing() -> None:
    assert ContinuedClock(Fixed(5_000, 130.0), last_ms=2_000, last_wall_s=100.0).now_ms() == 5_000


def test_after_a_reboot_the_wall_clock_says_what_has_passed() -> None:
    clock = Fixed(10, 200.0)
    continued = ContinuedClock(clock, last_ms=9_000_000, last_wall_s=100.0)
    assert continued.now_ms() == 9_100_000
    clock.ms += 7
    assert continued.now_ms() == 9_100_007


def test_on_a_machine_that_is_up_for_longer_time_does_not_leap() -> None:
    assert ContinuedClock(Fixed(9_000_000, 101.0), last_ms=500, last_wall_s=100.0).now_ms() == 1_500


def test_time_never_runs_backwards() -> None:
    assert ContinuedClock(Fixed(1_000, 99.0), last_ms=2_000, last_wall_s=100.0).now_ms() == 2_000
    assert ContinuedClock(Fixed(1_000, 50.0), last_ms=90_000_000, last_wall_s=100.0).now_ms() == 90_000_000


def test_the_system_clock_is_monotonic() -> None:
    clock = SystemClock()
    times = [clock.now_ms() for _ in range(100)]
    assert times == sorted(times)
