"""Pipeline schedules: every one can be executed, keeps its promises about order and memory, and is the one in the literature."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from orchestrator.core.plan.pipeline import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Act,
    Simulation,
    actions,
    sends_max,
    simulate,
)
from orchestrator.core.plan.plan import PipelineSchedule

if TYPE_CHECKING:
    from torch.distributed.pipelining.schedules import _Action

ONE, INTERLEAVED, ZERO = PipelineSchedule.ONE_F_ONE_B, PipelineSchedule.INTERLEAVED, PipelineSchedule.ZERO_BUBBLE


def orders(schedule: PipelineSchedule, pipeline: int, stages: int, micro_batches: int) -> list[tuple[Act, ...]]:
    return [
        actions(schedule, pipeline=pipeline, stages=stages, rank=rank, micro_batches=micro_batches) for rank in range(pipeline)
    ]


def run(schedule: PipelineSchedule, pipeline: int, stages: int, micro_batches: int) -> Simulation:
    return simulate(orders(schedule, pipeline, stages, micro_batches), stages=stages, sends_max=sends_max(pipeline))


def counts(pipeline: int) -> list[int]:
    """Of micro-batches: few, and on either side of once and twice as many as there are ranks; up to 16."""
    return sorted({1, 2, 3, *(k * pipeline + d for k in (1, 2) for d in (-1, 0, 1))} & set(range(1, 17)))


@pytest.mark.parametrize("pipeline", range(1, 9))
@pytest.mark.parametrize("schedule", list(PipelineSchedule))
def test_every_schedule_ends_and_does_everything_in_order(schedule: PipelineSchedule, pipeline: int) -> None:
    for local, micro_batches in product((1, 2, 3), [0, *counts(pipeline)]):
        stages = pipeline * local
        lists = orders(schedule, pipeline, stages, micro_batches)
        bounded = simulate(lists, stages=stages, sends_max=sends_max(pipeline))
        assert bounded == simulate(lists, stages=stages, sends_max=10**6), "the limit on sends costs nothing"
        kinds = [FORWARD, INPUT, WEIGHT] if schedule is ZERO and pipeline > 1 else [FORWARD, BACKWARD]
        for rank, order in enumerate(lists):
            assert len(order) == len(kinds) * local * micro_batches
            for stage in range(rank, stages, pipeline):
                for kind in kinds:
                    assert [a.index for a in order if (a.kind, a.stage) == (kind, stage)] == list(range(micro_batches))


@pytest.mark.parametrize("pipeline", range(1, 9))
def test_bubble_and_memory(pipeline: int) -> None:
    for micro_batches in counts(pipeline):
        plain, halves = (run(schedule, pipeline, pipeline, micro_batches) for schedule in (ONE, ZERO))
        assert plain.makespan == 3 * (micro_batches + pipeline - 1), "(p - 1)(F + B) of bubble on every rank"
        assert plain.live_max == tuple(min(micro_batches, pipeline - rank) for rank in range(pipeline))
        assert halves.bubble <= plain.bubble
        assert max(halves.live_max) <= max(plain.live_max)
        if micro_batches >= 2 * pipeline:
            assert halves.makespan == 3 * micro_batches + pipeline - 1, "(p - 1)(F + B - 2W), section 2.3"
        for local in (2, 3):
            several = [run(schedule, pipeline, pipeline * local, micro_batches) for schedule in (INTERLEAVED, ZERO)]
            assert several[1].bubble <= several[0].bubble
            if micro_batches % pipeline == 0:  # a stage is then a local-th part of what it was
                assert several[0].bubble <= plain.bubble
                assert several[0].makespan == 3 * (micro_batches * local + pipeline - 1), "arXiv 2104.04473 section 2.2"


def as_acts(order: list[_Action | None] | None) -> tuple[Act, ...]:
    from torch.distributed.pipelining.schedules import _ComputationType  # seconds, which collecting tests need not take

    kinds = {_ComputationType.FORWARD: FORWARD, _ComputationType.FULL_BACKWARD: BACKWARD}
    assert order is not None
    acts = [a for a in order if a is not None and a.computation_type in kinds]
    return tuple(Act(kinds[a.computation_type], a.stage_index, a.microbatch_index or 0) for a in acts)


class _Place:
    """What torch's schedules ask of a stage when they only make their lists."""

    def __init__(self, stage: int, pipeline: int, stages: int) -> None:
        self.stage_index, self.num_stages = stage, stages
        self.group_rank, self.group_size = stage % pipeline, pipeline
        self.is_first, self.is_last = stage == 0, stage == stages - 1
        self.has_backward = True
        self.stage_index_to_group_rank = {s: s % pipeline for s in range(stages)}
        self.submod = None


@pytest.mark.parametrize(("pipeline", "micro_batches"), [(2, 2), (4, 4), (4, 7), (8, 16)])
def test_1f1b_is_the_list_that_torch_makes(pipeline: int, micro_batches: int) -> None:
    from torch.distributed.pipelining import Schedule1F1B

    theirs = Schedule1F1B(_Place(0, pipeline, pipeline), micro_batches)._get_pipeline_order()  # type: ignore[arg-type]
    assert theirs is not None
    *ours, last = orders(ONE, pipeline, pipeline, micro_batches)
    for rank, order in enumerate(ours):
        assert order == as_acts(theirs[rank])
    # torch 2.13 numbers the last rank's forward passes from 1 on in this list, though it runs them from 0 on
    assert last == tuple(Act(a.kind, a.stage, a.index - (a.kind == FORWARD)) for a in as_acts(theirs[pipeline - 1]))


@pytest.mark.parametrize(("pipeline", "local", "micro_batches"), [(2, 2, 4), (2, 3, 8), (4, 2, 8), (4, 3, 12), (4, 2, 10)])
def test_interleaved_is_the_list_that_torch_makes(pipeline: int, local: int, micro_batches: int) -> None:
    from torch.distributed.pipelining import ScheduleInterleaved1F1B

    stages = pipeline * local
    for rank, order in enumerate(orders(INTERLEAVED, pipeline, stages, micro_batches)):
        places = [_Place(s, pipeline, stages) for s in range(rank, stages, pipeline)]
        theirs = ScheduleInterleaved1F1B(places, micro_batches).pipeline_order[rank]  # type: ignore[arg-type]
        assert order == as_acts(theirs)


def test_one_rank_alternates() -> None:
    order = actions(ONE, pipeline=1, stages=1, rank=0, micro_batches=2)
    assert order == (Act(FORWARD, 0, 0), Act(BACKWARD, 0, 0), Act(FORWARD, 0, 1), Act(BACKWARD, 0, 1))


def test_a_rank_fills_its_bubbles_with_weights() -> None:
    order = actions(ZERO, pipeline=2, stages=2, rank=1, micro_batches=3)
    assert [(a.kind[0], a.index) for a in order] == [
        ("f", 0), ("i", 0), ("f", 1), ("i", 1), ("w", 0), ("f", 2), ("i", 2), ("w", 1), ("w", 2),
    ]  # fmt: skip


def test_lists_that_wait_for_one_another_are_found() -> None:
    first, second = orders(ONE, 2, 2, 2)
    with pytest.raises(ValueError, match=r"never ends: rank 0 at .*'backward'.*rank 1 at .*'forward', stage=1, index=1"):
        simulate([(first[2], *first[:2], *first[3:]), (second[2], *second[:2], second[3])], stages=2, sends_max=4)
    with pytest.raises(ValueError, match="never ends"):  # a rank may not even send one result ahead
        simulate(orders(INTERLEAVED, 4, 8, 8), stages=8, sends_max=0)


@pytest.mark.parametrize(("pipeline", "stages", "rank"), [(2, 3, 0), (2, 2, 2), (2, 2, -1)])
def test_stages_must_fit_the_ranks(pipeline: int, stages: int, rank: int) -> None:
    with pytest.raises(ValueError, match="evenly"):
        actions(ONE, pipeline=pipeline, stages=stages, rank=rank, micro_batches=1)
