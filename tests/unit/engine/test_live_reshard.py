"""A living run is moved from plan to plan, and from failure to failure, and ends at the bits of a run that was left alone."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.core.plan.plan import PipelineSchedule
from tests.unit.engine.engine_world import Trap, curve, undisturbed, world
from tests.unit.engine.test_every_plan import layered

pytestmark = pytest.mark.slow

WALK: list[Mapping[str, Any]] = [
    {"data": 4, "zero": 1},
    {"data": 3, "zero": 1},
    {"data": 4, "zero": 1},
    {"data": 2, "zero": 3},
    {"data": 4, "zero": 3, "copies": 1},
    {"pipeline": 2, "data": 2, "zero": 1},
    {"pipeline": 2, "data": 2, "layers_per_stage": (4, 2)},
    {"pipeline": 3, "data": 1, "copies": 1},
    {"pipeline": 2, "stages_per_rank": 2, "schedule": PipelineSchedule.INTERLEAVED, "data": 2, "zero": 2},
    {"data": 1},
    {"data": 4},
]


def test_a_walk_through_plans() -> None:
    """Shrink, grow, another ZeRO stage, other stages: nothing is lost, nothing differs."""
    the_job = layered(steps=30, batch_norm=True)
    digest, losses = undisturbed(the_job)
    with world(the_job) as w:
        names = [f"w{n}" for n in range(4)]
        w.spawn(*names)
        first = layered(**WALK[0])
        w.start(*names, cut_as=first)
        for number, cut in enumerate(WALK[1:], start=1):
            chosen = random.Random(number).sample(names, k=len(names))  # not always the same ones stay
            after = layered(**cut)
            w.change(new_job=after, workers=chosen[: after.parallel.ranks])
        assert set(w.finish()) == {digest}
        assert curve(w) == losses
        moved = [sum(t.stop - t.start for t in r.transfers) for r in w.resumes]
        assert sum(map(bool, moved)) > len(WALK) // 2, "state had to move"


@functools.cache
def calm() -> tuple[str, dict[int, tuple[float, float]]]:
    """Digest and curve of a run that is left alone."""
    return undisturbed(layered(steps=6))


BETWEEN = ("restoring", "forming")  # phases of an epoch's beginning; the first epoch begins at step 0


CUTS: dict[str, Mapping[str, Any]] = {
    "zero1": {"data": 4, "zero": 1, "copies": 1},
    "zero3": {"data": 4, "zero": 3, "copies": 1},
    "pipeline": {"pipeline": 2, "data": 2, "zero": 1, "copies": 1},
}


@pytest.mark.parametrize(
    ("name", "phase"),
    [("zero1", "gather"), *[(n, p) for n in ("zero3", "pipeline") for p in (*BETWEEN, "reduce", "commit", "update")]],
)
def test_a_rank_dies_at_any_moment(name: str, phase: str) -> None:
    """The survivors go on with fewer, at the same bits."""
    cut = CUTS[name]
    the_job = layered(steps=6, **cut)
    digest, losses = calm()
    with world(the_job) as w:
        w.spawn("w0", "w1", "w3")
        # In an epoch's first moments there is only the seed: the second epoch is the one that matters.
        w.spawn("w2", traps=[Trap(phase, step) for step in (range(1, 7) if phase in BETWEEN else (4,))])
        w.start("w0", "w1", "w2", "w3")
        if phase in BETWEEN:
            w.change(new_job=the_job, workers=["w0", "w1", "w2", "w3"])
        held = w.survivors("w2")
        smaller = dict(cut) | ({"pipeline": 1, "data": 3} if "pipeline" in cut else {"data": 3})
        w.reshard(held, new_job=layered(**smaller), workers=["w0", "w1", "w3"])
        assert set(w.finish()) == {digest}
        assert curve(w) == losses
