"""Recovery, carried out on memories whose elements know which step made them: nothing committed is lost, nothing moves twice."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.core.planner.planner import PlanError, swap_plan
from orchestrator.core.reshard.recovery import Commit, Held, Resume, Source, Unrecoverable, resolve
from tests.unit.core.reshard.memory import Memory, World, commit_of, execute, keep_only_own, memory, points, worlds
from tests.unit.core.strategies import make_plan


def swapped(draw: st.DataObject, world: World) -> Plan:
    """The next plan: the dead ranks' seats go to new workers, on old or new nodes."""
    dead = [r for r in range(world.plan.size) if r not in world.memories]
    places = {r: (f"e{world.plan.epoch}r{r}", draw.draw(st.sampled_from("abcdxy"))) for r in dead}
    try:
        return swap_plan(world.plan, epoch=world.plan.epoch + 1, replacements=places, reason="swap")
    except PlanError:  # all on one node now, and there are copies to keep: to nodes of their own, then
        places = {r: (worker_id, f"x{r}") for r, (worker_id, _) in places.items()}
        return swap_plan(world.plan, epoch=world.plan.epoch + 1, replacements=places, reason="swap")


def assert_complete(new: Plan, at: int, memories: dict[int, Memory]) -> None:
    """Everybody holds all params and its regions of optimizer state at that step."""
    for rank, m in memories.items():
        assert set(m.params) == {at}, f"params of rank {rank}"
        assert set(m.optimizer) >= points(new.layout(OPTIMIZER).holdings[rank].everything), f"regions of rank {rank}"
        assert set(m.optimizer.values()) <= {at}


def assert_balanced(plans: dict[int, Plan], new: Plan, resume: Resume, before: dict[int, Memory]) -> None:
    """Each region comes from whoever, of all that have it, had sent least until then."""
    load = dict.fromkeys((r for r in before if r not in resume.fresh), 0)
    for t in resume.transfers:
        able = [r for r in load if _has(before[r], plans, t.tensor, resume.step, range(t.start, t.stop))]
        assert t.src in able
        assert load[t.src] == min(load[r] for r in able), f"{t} of {resume.transfers}"
        load[t.src] += t.stop - t.start
    if new.zero_stage == 0 and load and resume.transfers:  # everybody has everything
        assert max(load.values()) - min(load.values()) <= max(t.stop - t.start for t in resume.transfers)


def _has(m: Memory, plans: dict[int, Plan], tensor: str, step: int, elements: range) -> bool:
    if tensor == PARAMS and m.held.params_step == step:
        return True
    own = points(plans[m.held.plan_epoch].layout(OPTIMIZER).holdings[m.held.rank].everything)
    return own.issuperset(elements)


@settings(max_examples=300)
@given(worlds(), st.data())
def test_survivors_go_on_from_the_newest_known_step(world: World, data: st.DataObject) -> None:
    new, before = swapped(data, world), copy.deepcopy(world.memories)
    plans = {world.plan.epoch: world.plan}
    if not world.recoverable:
        with pytest.raises(Unrecoverable, match=r"no live holder|no survivor holds"):
            resolve(plans=plans, new=new, held=world.held(), known=world.known)
        return
    resume = resolve(plans=plans, new=new, held=world.held(), known=world.known)
    assert (resume.source, resume.step) == (Source.MEMORY, world.newest)
    assert resume.commit in (None, commit_of(resume.step))
    assert set(range(new.size)) - set(resume.fresh) == set(world.memories), "no survivor starts anew"
    memories = execute(new, resume, world.memories)
    assert_complete(new, resume.step, memories)
    assert_balanced(plans, new, resume, before)
    assert resume.elements_moved == sum(t.stop - t.start for t in resume.transfers)
    assert resolve(plans=plans, new=new, held=dict(reversed(world.held().items())), known=world.known) == resume


@settings(max_examples=200)
@given(worlds(), st.data())
def test_a_recovery_that_breaks_is_recovered_from(world: World, data: st.DataObject) -> None:
    """Ranks are lost while state moves: some have the new layout, some still the old one, some nothing yet."""
    if not world.recoverable:
        return  # the test above has it
    second = swapped(data, world)
    plans = {world.plan.epoch: world.plan, second.epoch: second}
    resume = resolve(plans=plans, new=second, held=world.held(), known=world.known)
    survivors = copy.deepcopy(world.memories)
    restored = execute(second, resume, survivors)
    keep_only_own(second, restored)
    everybody = data.draw(st.booleans(), label="everybody has all it needs")
    memories: dict[int, Memory] = {}
    for rank in sorted(data.draw(st.sets(st.integers(0, second.size - 1)), label="alive")):
        done = everybody and data.draw(st.booleans(), label=f"rank {rank} knows that everybody has")
        if done:
            memories[rank] = restored[rank]
        elif rank in world.memories:
            memories[rank] = _interrupted(world, second, resume, rank, begun=everybody or data.draw(st.booleans()))
    known = resume.commit or world.known  # the supervisor remembers what it resumed by
    broken = World(second, memories, known, resume.step)
    third = swapped(data, broken)
    plans[third.epoch] = third
    if not broken.recoverable:
        with pytest.raises(Unrecoverable):
            resolve(plans=plans, new=third, held=broken.held(), known=broken.known)
        return
    again = resolve(plans=plans, new=third, held=broken.held(), known=broken.known)
    assert again.step == resume.step, "nothing was committed since, and nothing is lost"
    before = copy.deepcopy(memories)
    after = execute(third, again, memories)
    assert_complete(third, again.step, after)
    assert_balanced(plans, third, again, before)


def _interrupted(world: World, plan: Plan, resume: Resume, rank: int, *, begun: bool) -> Memory:
    """A survivor that left while state moved: it may have rolled forward, and params that it was receiving are torn."""
    m = copy.deepcopy(world.memories[rank])
    if not begun:
        return m
    m.roll_forward(resume)
    applied = resume.step
    commit = resume.commit if m.held.applied_step != applied else m.held.commit
    receives = [t for t in resume.transfers if t.dst == rank and t.tensor == PARAMS]
    whole = all(v == applied for v in m.params) and not receives
    for t in receives:
        m.params[t.start : t.stop] = [None] * (t.stop - t.start)
    prepared = max(m.held.prepared_step, applied)
    m.held = replace(m.held, applied_step=applied, params_step=applied if whole else -1, prepared_step=prepared, commit=commit)
    assert plan.size > rank
    return m


# ------------------------------------------------------------------------------------------------------ hand-made cases

FOUR = make_plan("abcd", numel=8, block=2, zero_stage=1, copies=1)
TWO = make_plan("ab", numel=8, block=2, zero_stage=0, copies=0)


def at(plan: Plan, rank: int, step: int, *, commit: Commit | None = None, prepared: bool = False) -> Held:
    """A rank that has applied and gathered `step`."""
    return memory(plan, rank, applied=step, gathered=True, prepared=prepared, commit=commit).held


def without(plan: Plan, *dead: int) -> Plan:
    """The next plan, with the dead ranks on node x."""
    return swap_plan(plan, epoch=plan.epoch + 1, replacements={r: (f"n{r}", "x") for r in dead}, reason="")


def test_nobody_left() -> None:
    with pytest.raises(Unrecoverable, match=r"^no survivor holds any state$"):
        resolve(plans={1: FOUR}, new=without(FOUR, 0, 1, 2), held={}, known=commit_of(3))


def test_a_shard_whose_both_holders_died_is_named() -> None:
    held = {r: at(FOUR, r, 3) for r in (0, 3)}  # rank 1's region has its copy on rank 2
    with pytest.raises(Unrecoverable, match=r"optimizer \[2, 4\) of rank 1 at step 3 has no live holder"):
        resolve(plans={1: FOUR}, new=without(FOUR, 1, 2), held=held, known=None)


def test_the_prepared_follow_one_survivor_past_the_commit() -> None:
    held = {0: at(FOUR, 0, 4, commit=commit_of(4)), **{r: at(FOUR, r, 3, prepared=True) for r in (1, 3)}}
    resume = resolve(plans={1: FOUR}, new=without(FOUR, 2), held=held, known=None)
    assert (resume.step, resume.commit, resume.fresh) == (4, commit_of(4), (2,))


def test_the_prepared_follow_what_only_the_supervisor_was_told() -> None:
    held = {r: at(FOUR, r, 3, prepared=True) for r in (0, 1, 3)}
    new = without(FOUR, 2)
    assert resolve(plans={1: FOUR}, new=new, held=held, known=commit_of(4)).step == 4
    resume = resolve(plans={1: FOUR}, new=new, held=held, known=None)
    assert (resume.step, resume.commit) == (3, None)


def test_who_is_not_prepared_cannot_follow_and_receives() -> None:
    held = {0: at(TWO, 0, 4, commit=commit_of(4)), 1: at(TWO, 1, 3)}
    resume = resolve(plans={1: TWO}, new=without(TWO), held=held, known=None)
    assert (resume.step, resume.fresh) == (4, (1,))
    assert {(t.src, t.dst) for t in resume.transfers} == {(0, 1)}


def test_two_replicas_share_the_sending() -> None:
    three = make_plan("abc", numel=8, block=2, zero_stage=0, copies=0)
    resume = resolve(plans={1: three}, new=without(three, 2), held={r: at(three, r, 3) for r in (0, 1)}, known=None)
    assert [(t.tensor, t.src, t.dst, t.start, t.stop) for t in resume.transfers] == [
        (PARAMS, 0, 2, 0, 4),
        (PARAMS, 1, 2, 4, 8),
        (OPTIMIZER, 0, 2, 0, 4),
        (OPTIMIZER, 1, 2, 4, 8),
    ]


def test_when_nobody_is_lost_nothing_moves() -> None:
    resume = resolve(plans={1: FOUR}, new=without(FOUR), held={r: at(FOUR, r, 3) for r in range(4)}, known=None)
    assert (resume.step, resume.transfers, resume.fresh, resume.elements_moved) == (3, (), (), 0)
