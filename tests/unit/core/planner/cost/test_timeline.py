"""Timelines: bubbles known from papers, and waves against the lists of acts run one by one."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from orchestrator.core.plan.pipeline import actions
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.timeline import StageTimes, ends, live, trace

ONE, INTERLEAVED, ZERO = PipelineSchedule.ONE_F_ONE_B, PipelineSchedule.INTERLEAVED, PipelineSchedule.ZERO_BUBBLE


def equal(stages: int, forward: float, backward: float) -> StageTimes:
    return StageTimes((forward,) * stages, (backward,) * stages)


@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 8), (8, 64), (5, 13), (16, 4096)])
def test_the_bubble_of_1f1b_is_p_minus_1_over_m(p: int, m: int) -> None:
    """Narayanan et al., arXiv 2104.04473, section 2.2.1."""
    assert max(ends(ONE, equal(p, 1.0, 2.0), pipeline=p, micro_batches=m)) == pytest.approx((m + p - 1) * 3.0)


@pytest.mark.parametrize(("p", "v", "m"), [(2, 2, 4), (4, 2, 8), (4, 3, 64), (8, 4, 4096)])
def test_several_stages_per_rank_divide_it(p: int, v: int, m: int) -> None:
    """Section 2.2.2: (p - 1) / (v m)."""
    times = equal(p * v, 1.0 / v, 2.0 / v)
    assert max(ends(INTERLEAVED, times, pipeline=p, micro_batches=m)) == pytest.approx(m * 3.0 + (p - 1) * 3.0 / v)


@pytest.mark.parametrize(("p", "m"), [(2, 8), (4, 8), (8, 64)])
def test_halves_leave_a_third_of_it(p: int, m: int) -> None:
    """ZB-H1, arXiv 2401.10241, section 2.3: (p - 1) (forward + input - weight)."""
    times = StageTimes((1.0,) * p, (1.0,) * p, (1.0,) * p)
    assert max(ends(ZERO, times, pipeline=p, micro_batches=m)) == pytest.approx(m * 3.0 + (p - 1) * 1.0)


def test_a_slow_stage_sets_the_pace() -> None:
    times = StageTimes((1.0, 1.0, 5.0, 1.0), (1.0, 1.0, 5.0, 1.0))
    assert max(ends(ONE, times, pipeline=4, micro_batches=1000)) == pytest.approx(
        1000 * 10.0 + 4.0
    )  # two others before, two after


def test_waves_and_skipped_rounds_end_as_the_lists_of_acts_do() -> None:
    rng = random.Random(4)
    for _ in range(100):
        schedule, p = rng.choice(list(PipelineSchedule)), rng.choice([2, 3, 4, 7])
        stages = p * (rng.choice([2, 3]) if schedule is INTERLEAVED else 1)
        m = rng.choice([p * rng.randint(1, 20), rng.randint(1, 60)])
        low = rng.choice([0.0, 1.0])  # 1: all stages alike

        def draw(about: float, n: int = stages, low: float = low) -> tuple[float, ...]:
            return tuple(about * rng.uniform(low, 1.0) for _ in range(n))

        times = StageTimes(draw(1.0), draw(2.0), draw(1.0) if schedule is ZERO else ())
        clocks = [0.0] * p
        for timed in trace(schedule, times, pipeline=p, micro_batches=m):
            clocks[timed.rank] = timed.end_s
        assert ends(schedule, times, pipeline=p, micro_batches=m) == pytest.approx(clocks, rel=1e-9), (schedule, p, m, times)


def test_rounds_are_skipped_exactly_however_many_there_are() -> None:
    rng = random.Random(7)
    times = StageTimes(tuple(rng.uniform(1, 2) for _ in range(6)), tuple(rng.uniform(2, 3) for _ in range(6)))
    clocks = [0.0] * 6
    for timed in trace(ONE, times, pipeline=6, micro_batches=1001):
        clocks[timed.rank] = timed.end_s
    assert ends(ONE, times, pipeline=6, micro_batches=1001) == pytest.approx(clocks, rel=1e-9)


def test_the_trace_is_the_lists_of_acts_with_nothing_at_the_same_time_on_a_rank() -> None:
    spans = trace(ONE, equal(3, 1.0, 2.0), pipeline=3, micro_batches=5)
    for rank in range(3):
        mine = [t for t in spans if t.rank == rank]
        assert tuple(t.act for t in mine) == actions(ONE, pipeline=3, stages=3, rank=rank, micro_batches=5)
        assert all(a.end_s <= b.start_s for a, b in pairwise(mine))


@pytest.mark.parametrize("schedule", list(PipelineSchedule))
def test_activations_in_flight_are_those_of_the_lists_of_acts(schedule: PipelineSchedule) -> None:
    for p, v, m in [(1, 1, 4), (2, 1, 1), (2, 1, 9), (4, 1, 3), (4, 1, 30), (2, 2, 10), (4, 3, 40), (4, 2, 13), (3, 2, 12)]:
        if (v > 1) != (schedule is INTERLEAVED):
            continue
        for rank, sets in enumerate(live(schedule, p, p * v, m)):
            counts, weights = [0] * v, [1.0 + 0.37 * c for c in range(v)]
            most = 0.0
            for act in actions(schedule, pipeline=p, stages=p * v, rank=rank, micro_batches=m):
                counts[act.stage // p] += {"forward": 1, "backward": -1, "weight": -1}.get(act.kind, 0)
                most = max(most, sum(a * b for a, b in zip(counts, weights, strict=True)))
            assert max(sum(a * b for a, b in zip(s, weights, strict=True)) for s in sets) == pytest.approx(most)


def test_one_rank_does_everything_in_turn() -> None:
    assert ends(ONE, StageTimes((1.0,), (2.0,)), pipeline=1, micro_batches=5) == (15.0,)


def test_stages_that_do_not_lie_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="do not lie evenly"):
        ends(INTERLEAVED, equal(5, 1.0, 1.0), pipeline=2, micro_batches=3)
