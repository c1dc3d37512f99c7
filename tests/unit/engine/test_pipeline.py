"""Pipelines of real processes: every schedule at the bits of the plain loop; what happens around the acts, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from orchestrator.core.plan.plan import PipelineSchedule, Plan
from orchestrator.engine.control import Control
from orchestrator.engine.faults import FaultBox
from orchestrator.engine.groups import EpochGroup, GroupBroken
from orchestrator.engine.layered import LayeredStage
from orchestrator.engine.pipeline import PipelineRunner
from orchestrator.engine.rank_state import UserError
from orchestrator.engine.task import Task
from orchestrator.engine.tasks.gpt import GPT
from tests.unit.engine.forking import forked
from tests.unit.engine.groups_world import run_ranks
from tests.unit.engine.layered_task import Layered
from tests.unit.engine.layered_world import SCALE, SEED, STEP, Told, bare, build, make_plan, run_plan
from tests.unit.engine.test_layered import Noting

ONE, INTERLEAVED, ZERO = PipelineSchedule.ONE_F_ONE_B, PipelineSchedule.INTERLEAVED, PipelineSchedule.ZERO_BUBBLE


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Ragged(Layered):
    """Micro-batches of different lengths."""

    def batch(self, *, seed: int, step: int, micro_batch: int) -> Tensor:
        batch = super().batch(seed=seed, step=step, micro_batch=micro_batch)
        return batch[: 1 + micro_batch % 2, : 3 + micro_batch]


def check(told: Sequence[Told], plan: Plan, task: Task, runs: Sequence[Sequence[int]]) -> None:
    """Each replica has the losses and the gradients of the plain loop over its own micro-batches."""
    replicas = plan.axis("data")
    for replica in range(replicas):
        numbers = [n for run in runs for n in run[replica::replicas]]
        losses, grads = bare(task, numbers)
        mine = [told[r] for r in range(plan.size) if plan.coordinates(r)[1] == replica]
        found = {n: loss for t in mine for run in t.losses for n, loss in run.items()}
        assert found == dict(zip(numbers, losses, strict=True))
        assert sorted(n for t in mine for n in t.grads) == sorted(grads)
        for rank in mine:
            for name, gradient in rank.grads.items():
                assert torch.equal(gradient, grads[name]), name
        assert {n for t in mine for n in t.evaluated} == set(range(replica, 5, replicas))


@forked
@pytest.mark.parametrize(
    ("pipeline", "per_rank", "schedule", "recompute"),
    [
        (1, 1, ONE, True),
        (1, 2, INTERLEAVED, False),
        (2, 1, ONE, False),
        (2, 1, ZERO, True),
        (2, 2, INTERLEAVED, False),
        (2, 3, ZERO, False),
        (3, 1, ZERO, False),
        (3, 2, INTERLEAVED, True),
        (4, 1, ONE, False),
        (4, 1, ZERO, False),
    ],
)
def test_every_schedule_gives_the_bits_of_the_plain_loop(
    pipeline: int, per_rank: int, schedule: PipelineSchedule, recompute: bool
) -> None:
    task = Layered()
    plan = make_plan(6, pipeline=pipeline, per_rank=per_rank, schedule=schedule, recompute=recompute)
    runs = ((0, 1, 2, 3, 4), (7, 5))
    told = run_plan(task, plan, *runs)
    check(told, plan, task, runs)
    assert [bool(t.losses[0]) for t in told] == [False] * (pipeline - 1) + [True], "losses are where the last stage is"
    runner, _ = alone(task, Control(), Box())
    assert {n: loss for t in told for n, loss in t.evaluated.items()} == runner.evaluate(range(5))


@forked
def test_replicas_have_pipelines_of_their_own() -> None:
    task = GPT(layers=2, width=16, heads=2, context=16, batch_size=2, dropout=0.1)
    plan = make_plan(4, pipeline=2, data=2, schedule=ZERO)
    runs = ((0, 1, 2, 3, 4, 5),)
    check(run_plan(task, plan, *runs), plan, task, runs)


@forked
def test_every_micro_batch_may_have_a_shape_of_its_own() -> None:
    plan = make_plan(6, pipeline=2)
    runs = ((0, 3, 1, 2), (3,))
    check(run_plan(Ragged(), plan, *runs), plan, Ragged(), runs)


# ----------------------------------------------------------------------------------------------------- around the acts


class Nobody:
    """The group of a plan of one rank: it must not be touched."""


def nobody() -> EpochGroup:
    return cast(EpochGroup, Nobody())


@dataclass
class Box(FaultBox):
    struck: list[tuple[int, int]] = field(default_factory=list)
    raise_at: int = -1

    def __post_init__(self) -> None:
        super().__init__()

    def strike(self, *, step: int, micro_batch: int) -> None:
        self.struck.append((step, micro_batch))
        if micro_batch == self.raise_at:
            raise ZeroDivisionError("struck")


def alone(
    task: Task, control: Control, faults: FaultBox, weights: Noting | None = None, per_rank: int = 1
) -> tuple[PipelineRunner, list[LayeredStage]]:
    model, plan = build(task), make_plan(6, per_rank=per_rank)
    stages = {
        s: LayeredStage(task, model, seed=SEED, scale=SCALE, stage=s, first=bounds.first, last=bounds.last, weights=weights)
        for s, bounds in enumerate(plan.stages)
    }
    runner = PipelineRunner(plan=plan, rank=0, group=nobody(), stages=stages, control=control, faults=faults)
    return runner, list(stages.values())


def test_phases_faults_and_losses_as_they_happen() -> None:
    control, faults = Control(), Box()
    phases: list[tuple[str, int]] = []
    control.hook = lambda phase, step: phases.append((phase, step))
    heard: list[tuple[int, float]] = []
    runner, _ = alone(Layered(), control, faults)
    losses = runner.run(STEP, [8, 9], on_loss=lambda number, loss: heard.append((number, loss)))
    assert heard == list(losses.items())
    assert list(losses) == [8, 9]
    assert phases == [(phase, STEP) for _ in range(2) for phase in ("batch", "forward", "backward")]
    assert faults.struck == [(STEP, 0), (STEP, 1), (STEP, 2)]
    assert control.pulse().micro_batch_ms > 0


def test_a_step_goes_on_where_it_was_interrupted() -> None:
    task = Layered()
    faults = Box(raise_at=2)
    runner, stages = alone(task, Control(), faults)
    losses: dict[int, float] = {}
    with pytest.raises(UserError, match="struck"):
        runner.run(STEP, [3, 4, 5, 6], on_loss=losses.__setitem__)
    faults.raise_at = -1
    assert list(losses) == [3, 4]
    losses |= runner.run(STEP, [3, 4, 5, 6], start=2)
    assert faults.struck == [(STEP, k) for k in (0, 1, 2, 2, 3, 4)]
    wanted, grads = bare(task, [3, 4, 5, 6])
    assert losses == dict(zip([3, 4, 5, 6], wanted, strict=True))
    for name, p in stages[0]._module.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, grads[name])
    with pytest.raises(ValueError, match="whole pipeline"):
        PipelineRunner(
            plan=make_plan(6, pipeline=2), rank=1, group=nobody(), stages={1: stages[0]}, control=Control(), faults=Box()
        ).run(STEP, [1], start=1)


@pytest.mark.parametrize("per_rank", [1, 2])
def test_a_phantom_visits_the_layers_and_computes_nothing(per_rank: int) -> None:
    calls = []
    for numbers in ([1, 2, 3], [1, 2, None]):
        weights, faults = Noting(), Box()
        runner, stages = alone(Layered(), Control(), faults, weights, per_rank)
        losses = runner.run(STEP, numbers)
        runner.evaluate(numbers)
        assert list(losses) == [n for n in numbers if n is not None]
        assert faults.struck[-1] == (STEP, len(losses))
        assert not any(stage._flights for stage in stages)
        calls.append(weights.calls)
    assert calls[0] == calls[1]


def test_stages_must_be_those_of_the_plan() -> None:
    with pytest.raises(ValueError, match=r"rank 0 runs stages \(0,\), not \(1,\)"):
        PipelineRunner(plan=make_plan(6), rank=0, group=nobody(), stages={1: Any}, control=Control(), faults=Box())  # type: ignore[dict-item]


def test_a_lost_neighbour_breaks_the_step_and_nothing_stays_in_flight() -> None:
    plan, task = make_plan(6, pipeline=2), Layered()

    def work(group: EpochGroup) -> str:
        control = Control()
        stage = LayeredStage(
            task, build(task), seed=SEED, scale=SCALE, stage=group.rank, first=3 * group.rank, last=3 * group.rank + 3
        )
        runner = PipelineRunner(
            plan=plan, rank=group.rank, group=group, stages={group.rank: stage}, control=control, faults=FaultBox()
        )

        def leave(phase: str, step: int) -> None:
            if phase == "backward" and group.rank == 1:
                group.abort()

        control.hook = leave
        with pytest.raises(GroupBroken) as caught:
            runner.run(STEP, [0, 1, 2, 3])
        assert not stage._flights
        left = runner._boundaries
        assert [len(x) for x in (left._sent, left._headers, left._gradients, left._local)] == [0] * 4
        assert not control.pulse().in_comm
        return caught.value.cause

    assert "aborted" in run_ranks(2, work)[1]


def test_a_tensor_that_no_header_describes_is_refused() -> None:
    class Deep(Layered):
        def stack(self, model: Any) -> Any:
            layers = list(super().stack(model))
            return [("deep", Unfold(layers[0][1])), ("flat", Fold(layers[1][1])), *layers[2:]]

    class Unfold(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            return y.view(*[1] * 7, *y.shape)

    class Fold(Unfold):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x.view(x.shape[-3:]))
            return y

    def work(group: EpochGroup) -> str:
        task = Deep()
        stage = LayeredStage(
            task, build(task), seed=SEED, scale=SCALE, stage=group.rank, first=group.rank, last=1 + 5 * group.rank
        )
        runner = PipelineRunner(
            plan=make_plan(2, pipeline=2),
            rank=group.rank,
            group=group,
            stages={group.rank: stage},
            control=Control(),
            faults=Box(),
        )
        with pytest.raises((UserError, GroupBroken)) as caught:
            runner.run(STEP, [0])
        group.abort()
        return str(caught.value)

    assert "tensor of 10 dimensions cannot go from one pipeline stage to the next" in run_ranks(2, work)[0]
