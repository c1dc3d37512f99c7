"""What the leaving alone hold is taken over by those who stay, evenly, and the plan stays valid."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.plan.layout import total
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.core.planner.planner import first_plan
from orchestrator.core.supervisor.handover import handover, missing
from orchestrator.testkit.jobs import make_graph, make_job

GRAPH = make_graph(9000, 5000, 3000, 12000)


def plan_of(**kw: Any) -> Plan:
    """A first plan with a node for every rank."""
    job = make_job(**kw)
    workers = [(f"j/w{i}", f"n{i}") for i in range(job.parallel.ranks)]
    return first_plan(job=job, graph=GRAPH, workers=workers, epoch=1)


@given(
    shape=st.sampled_from([(1, 4, 1), (2, 2, 1), (4, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2)]),
    zero=st.sampled_from([0, 1, 2, 3]),
    copies=st.integers(0, 1),
    data=st.data(),
)
def test_nothing_is_missing_any_more(shape: tuple[int, int, int], zero: int, copies: int, data: st.DataObject) -> None:
    pipeline, replicas, tensor = shape
    plan = plan_of(pipeline=pipeline, data=replicas, tensor=tensor, zero_stage=zero, copies=copies if zero else 0)
    going = data.draw(st.sets(st.integers(0, plan.size - 1), min_size=1, max_size=plan.size - 1))
    new = handover(plan, going)
    assert lint(new) == ()
    assert missing(new, going) == ()
    for name in (PARAMS, OPTIMIZER):
        before, after = plan.layout(name).holdings, new.layout(name).holdings
        assert [h.primary for h in after] == [h.primary for h in before], "the owners stay owners"
        assert [after[r] for r in going] == [before[r] for r in going]
    held = [sum(total(h.everything) for h in p.layout(OPTIMIZER).holdings) for p in (plan, new)]
    assert held[1] - held[0] == total(missing(plan, going)), "each region is taken over once"


def test_the_heirs_share_evenly() -> None:
    plan = plan_of(data=4, zero_stage=1, copies=0)
    new = handover(plan, [1])
    shares = [total(new.layout(OPTIMIZER).holdings[r].extra) for r in (0, 2, 3)]
    assert max(shares) - min(shares) <= 2 * plan.block


def test_somebody_must_stay() -> None:
    with pytest.raises(ValueError, match="nobody stays"):
        handover(plan_of(data=2), [0, 1])
