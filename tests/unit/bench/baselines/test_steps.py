"""The rules by which recoveries are measured, on hand-written step logs."""

from __future__ import annotations

import json

import pytest

from bench.baselines.steps import (
    Line,
    completions,
    first_new_step,
    median,
    newest_step,
    parse,
    step_times,
    steps_redone,
)


def done(t_s: float, rank: int, step: int, *, worker: int = -1, event: str = "step") -> Line:
    """A worker in that seat finished a step."""
    return Line(t_s=t_s, worker=rank if worker < 0 else worker, pid=100 + rank, event=event, rank=rank, step=step)


def whole(step: int, *, at: float, ranks: int = 2) -> list[Line]:
    """All seats finish a step, a tenth of a second apart, the last one at `at`."""
    return [done(at - 0.1 * (ranks - 1 - r), r, step) for r in range(ranks)]


CALM = [*whole(1, at=1.0), *whole(2, at=2.0), *whole(3, at=3.0)]


def test_parse_reads_whole_lines_and_fills_what_a_start_lacks() -> None:
    first = {"t": 1.5, "worker": 3, "pid": 7, "event": "start"}
    second = {"t": 2.5, "worker": 3, "pid": 7, "event": "step", "rank": 1, "step": 4}
    text = f"{json.dumps(first)}\n{json.dumps(second)}\n" + '{"t": 3.5, "wor'
    assert parse(text) == [
        Line(t_s=1.5, worker=3, pid=7, event="start", rank=-1, step=-1),
        Line(t_s=2.5, worker=3, pid=7, event="step", rank=1, step=4),
    ]


@pytest.mark.parametrize("text", ["", '{"t": 1'])
def test_parse_of_a_log_that_has_just_begun(text: str) -> None:
    assert parse(text) == []


def test_parse_refuses_a_whole_line_that_is_broken() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        parse('{"t": 1,}\n')


def test_a_step_is_complete_when_its_last_seat_has_finished_it() -> None:
    assert completions(CALM, ranks=2) == {1: 1.0, 2: 2.0, 3: 3.0}
    assert completions([*CALM, done(4.0, 0, 4)], ranks=2) == {1: 1.0, 2: 2.0, 3: 3.0}
    assert completions(CALM, ranks=3) == {}


def test_neither_spares_nor_other_events_fill_a_seat() -> None:
    log = [done(1.0, 0, 1), done(1.1, -1, 1, worker=9), done(1.2, 1, 1, event="start")]
    assert completions(log, ranks=2) == {}


def test_one_seat_that_writes_twice_is_one_seat_and_its_first_time_counts() -> None:
    log = [done(1.0, 0, 1), done(5.0, 0, 1, worker=7), done(1.2, 1, 1)]
    assert completions(log[:2], ranks=2) == {}
    assert completions(log, ranks=2) == {1: 1.2}


def test_completions_after_a_moment_need_every_seat_after_it() -> None:
    assert completions(CALM, ranks=2, after_s=1.9) == {3: 3.0}, "step 2 began to be written before"
    assert completions(CALM, ranks=2, after_s=1.95) == {3: 3.0}


def test_completions_come_in_the_order_of_their_steps() -> None:
    log = [*whole(5, at=1.0), *whole(2, at=2.0)]
    assert list(completions(log, ranks=2)) == [2, 5]


def test_newest_step_is_that_of_any_worker_until_then() -> None:
    log = [*CALM, done(3.5, 0, 4)]
    assert newest_step(log, until_s=3.2) == 3
    assert newest_step(log, until_s=3.5) == 4
    assert newest_step(log, until_s=0.5) == 0


def test_new_is_beyond_what_any_worker_had_finished() -> None:
    log = [*CALM, done(3.5, 0, 4)]  # rank 1 is killed at 3.6, inside step 4
    redone = whole(4, at=6.0)
    assert first_new_step([*log, *redone], ranks=2, killed_s=3.6) is None, "rank 0 had finished step 4 before"
    assert first_new_step([*log, *redone, *whole(5, at=7.0)], ranks=2, killed_s=3.6) == (5, 7.0)


def test_steps_done_again_from_a_checkpoint_are_not_new() -> None:
    log = [*CALM, *whole(1, at=5.0), *whole(2, at=6.0), *whole(3, at=7.0), *whole(4, at=8.0), *whole(5, at=9.0)]
    assert first_new_step(log, ranks=2, killed_s=3.5) == (4, 8.0)
    assert steps_redone(log, until_step=3, killed_s=3.5) == 3


def test_what_survivors_finish_without_the_victim_is_no_recovery() -> None:
    log = [*CALM, done(4.0, 0, 4), done(5.0, 0, 5)]
    assert first_new_step(log, ranks=2, killed_s=3.5) is None
    log += [done(6.0, 0, 6), done(6.5, 1, 6, worker=2)]
    assert first_new_step(log, ranks=2, killed_s=3.5) == (6, 6.5), "the first that all seats completed"


def test_a_line_written_at_the_moment_of_the_kill_was_before_it() -> None:
    log = [*CALM, done(4.0, 0, 4), done(4.0, 1, 4)]
    assert newest_step(log, until_s=4.0) == 4
    assert first_new_step(log, ranks=2, killed_s=4.0) is None
    assert first_new_step(log, ranks=2, killed_s=3.999) == (4, 4.0)


def test_redone_counts_steps_not_lines_and_only_up_to_the_kill() -> None:
    log = [*CALM, *whole(3, at=5.0), done(5.5, 0, 2), *whole(4, at=6.0), done(6.5, -1, -1, event="start")]
    assert steps_redone(log, until_step=3, killed_s=3.5) == 2
    assert steps_redone(log, until_step=0, killed_s=3.5) == 0
    assert steps_redone(CALM, until_step=3, killed_s=3.0) == 0


def test_step_times_leave_out_what_has_no_predecessor() -> None:
    assert step_times({1: 1.0, 2: 1.5, 5: 9.0, 6: 9.25}) == [0.5, 0.25]
    assert step_times({}) == []


def test_median_of_none_is_none() -> None:
    assert median([]) is None
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([1.0, 2.00005]) == 1.5
