"""A reshard that breaks, after a step that broke: whatever a survivor says that it holds afterwards is so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.core.plan.layout import merge
from orchestrator.core.plan.plan import PARAMS
from orchestrator.core.supervisor.events import Fault
from tests.unit.engine.engine_world import Trap, curve, world
from tests.unit.engine.test_every_plan import layered
from tests.unit.engine.test_live_reshard import calm

pytestmark = pytest.mark.slow


def test_params_that_a_broken_gather_left_behind_do_not_come_back() -> None:
    """They are of the step before; the plan after does not need them, and a break in its reshard must not tell of them."""
    with world(layered(steps=6, data=4, zero=1, copies=1)) as w:
        w.spawn("w0", "w1")
        w.spawn("w3", traps=[Trap("gather", 3)])
        w.spawn("w2", traps=[Trap("agreeing", 3)])
        w.start("w0", "w1", "w2", "w3")
        before = w.survivors("w3")
        assert {h.params_step for h in before.values()} == {-1}
        w.reshard(before, new_job=layered(data=3, zero=3, copies=1), workers=["w0", "w1", "w2"])
        after = w.survivors("w2")
        assert w.plan is not None
        for worker, held in after.items():
            got = w.plan.layout(PARAMS).holdings[held.rank].everything
            assert held.params == merge(before[worker].optimizer + got)
        w.reshard(after, new_job=layered(data=2, zero=1), workers=["w0", "w1"])
        assert (set(w.finish()), curve(w)) == ({calm()[0]}, calm()[1])


@pytest.mark.parametrize("phase", ["restoring", "agreeing"])
@pytest.mark.parametrize(("before", "after"), [({"tensor": 2, "data": 2}, {"data": 4}), ({"data": 4}, {"tensor": 2, "data": 2})])
def test_a_break_in_a_change_of_the_tensor_degree_loses_nothing(
    phase: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """The module was built anew for another tensor coordinate; what the rank had is still there."""
    with world(layered(steps=6, **before)) as w:
        w.spawn("w0", "w1", "w2")
        w.spawn("w3", traps=[Trap(phase, step) for step in range(1, 7)])
        w.start("w0", "w1", "w2", "w3", cut_as=layered(**before))
        held = w.leave()
        w.reshard(held, new_job=layered(**after), workers=["w0", "w1", "w2", "w3"])
        left = w.survivors("w3")
        resume = w.reshard(left, new_job=layered(data=3), workers=["w0", "w1", "w2"])
        assert resume.step == next(iter(held.values())).applied_step
        assert len(set(w.finish())) == 1
        for step, (loss, norm) in calm()[1].items():
            assert list(curve(w)[step]) == pytest.approx([loss, norm], rel=1e-4)


def test_sums_of_one_stage_are_not_those_of_the_whole_model() -> None:
    """The first of two stages becomes the only one, with the same micro-batches of the same step."""
    with world(layered(steps=6, pipeline=2, copies=1)) as w:
        w.spawn("w0")
        w.spawn("w1", traps=[Trap("reduce", 3)])
        w.start("w0", "w1")
        w.reshard(w.survivors("w1"), new_job=layered(), workers=["w0"])
        assert (set(w.finish()), curve(w)) == ({calm()[0]}, calm()[1])


@pytest.mark.parametrize("micro_batch", [3, 4])
def test_a_tensor_rank_dies_in_the_middle_of_a_step(micro_batch: int) -> None:
    """Those that are left have micro-batches that the new one has not; all coordinates compute the same ones together."""
    the_job = layered(steps=4, tensor=2, copies=1)
    with world(the_job) as w:
        w.spawn("w0", "w1")
        w.start("w0", "w1")
        expected = (w.finish(), curve(w))
    with world(the_job) as w:
        w.spawn("w0", "w1", "spare")
        w.workers["w1"].send("inject", Fault("kill-worker", 1, "", 3, micro_batch, 0))
        w.start("w0", "w1")
        assert w.recover("spare").step == 2
        assert (w.finish(), curve(w)) == expected
