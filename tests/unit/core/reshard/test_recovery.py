"""Recovery, carried out on memories whose elements know which update made them: nothing is lost, nothing moves twice."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.plan.layout import Interval, Intervals
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, MeshAxis, PipelineSchedule, Plan, Seat, Stage
from orchestrator.core.reshard.recovery import Commit, Held, Resume, Source, Unrecoverable, resolve
from tests.unit.core.reshard.memory import (
    Memory,
    Survivor,
    World,
    commit_of,
    execute,
    made_by,
    missing,
    points,
    seated,
    spans,
    survivor,
    worlds,
)
from tests.unit.core.reshard.random_plans import Model, models, plans, with_layouts


def resolved(new: Plan, there: dict[int, Survivor], known: Commit | None) -> Resume:
    """What the supervisor would do: those numbered from new.size on leave."""
    leaving = tuple(Seat(rank, f"gone{rank}", "a") for rank in sorted(there) if rank >= new.size)
    held = {rank: s.held for rank, s in there.items()}
    resume = resolve(new=new, held=held, known=known, leaving=leaving)
    again = resolve(new=new, held=dict(reversed(held.items())), known=known, leaving=leaving)
    assert again == resume, "the order in which survivors are listed means nothing"
    return resume


def assert_complete(new: Plan, step: int, memories: dict[int, Memory]) -> None:
    """Everybody has its params and its regions of optimizer state at that step."""
    for rank in range(new.size):
        memory = memories[rank]
        for tensor in (PARAMS, OPTIMIZER):
            need = points(new.layout(tensor).holdings[rank].everything)
            assert {memory[tensor].get(x) for x in need} <= {made_by(step)}, f"{tensor} of rank {rank}"


def assert_least(new: Plan, resume: Resume, there: dict[int, Survivor]) -> None:
    """What moves is what is missing, once; `there` has rolled forward."""
    lacks = missing(new, resume, there)
    assert sum(t.stop - t.start for t in resume.transfers) == sum(
        len(xs) for of_rank in lacks.values() for xs in of_rank.values()
    )


@settings(max_examples=3 * settings().max_examples // 2, deadline=None)
@given(st.data())
def test_survivors_go_on_from_the_newest_known_step(data: st.DataObject) -> None:
    world = data.draw(models.flatmap(worlds))
    new = data.draw(plans(world.model, epoch=2))
    there = seated(data, world, new)
    if not world.recoverable:
        with pytest.raises(Unrecoverable, match=r"no live holder|no survivor holds"):
            resolved(new, there, world.known)
        return
    resume = resolved(new, there, world.known)
    assert (resume.source, resume.step) == (Source.MEMORY, world.newest)
    assert resume.commit in (None, commit_of(resume.step))
    assert set(range(new.size)) - set(resume.fresh) == {r for r in there if r < new.size}, "no survivor starts anew"
    memories = execute(new, resume, there)
    assert_complete(new, resume.step, memories)
    assert_least(new, resume, there)


@settings(max_examples=3 * settings().max_examples // 2, deadline=None)
@given(st.data())
def test_a_reshard_that_breaks_is_recovered_from(data: st.DataObject) -> None:
    """Workers are lost while state moves: what the others had and what they have received by then both count."""
    world = data.draw(models.flatmap(worlds))
    second = data.draw(plans(world.model, epoch=2))
    there = seated(data, world, second)
    if not world.recoverable:
        return  # the test above has it
    resume = resolved(second, there, world.known)
    done = data.draw(st.integers(0, len(resume.transfers)), label="transfers before it broke")
    arrived = execute(second, resume, there, transfers=done)
    dead = data.draw(st.sets(st.sampled_from(sorted(arrived)), max_size=3), label="dead")
    left = [s for r in sorted(arrived.keys() - dead) for s in _left(data, second, resume, r, arrived[r], fresh=r not in there)]
    broken = World(world.model, left, resume.commit or world.known, resume.step)
    third = data.draw(plans(world.model, epoch=3))
    there = seated(data, broken, third)
    if not broken.recoverable:
        with pytest.raises(Unrecoverable):
            resolved(third, there, broken.known)
        return
    again = resolved(third, there, broken.known)
    assert again.step == resume.step, "nothing was committed since, and nothing is lost"
    memories = execute(third, again, there)
    assert_complete(third, again.step, memories)
    assert_least(third, again, there)


def _left(data: st.DataObject, plan: Plan, resume: Resume, rank: int, arrived: Memory, *, fresh: bool) -> list[Survivor]:
    """What a member of a reshard says that was broken: all that it has, which for a new worker may be nothing at all."""
    memory = copy.deepcopy(arrived)
    memory[OPTIMIZER] = {
        x: v for x, v in memory[OPTIMIZER].items() if x in memory[PARAMS]
    }  # a moment without its param is no use
    if not memory[OPTIMIZER] and (fresh or rank in resume.fresh):
        return []
    gathered = data.draw(st.booleans(), label=f"rank {rank} tells what params it has")
    if not gathered:
        memory[PARAMS] = {x: v for x, v in memory[PARAMS].items() if x in memory[OPTIMIZER]}
    held = Held(
        plan_epoch=plan.epoch,
        rank=rank,
        tensor=plan.axis("tensor"),
        applied_step=resume.step,
        params_step=resume.step if gathered else -1,
        prepared_step=resume.step,
        optimizer=spans(memory[OPTIMIZER]),
        params=spans(memory[PARAMS]),
        commit=resume.commit,
    )
    return [Survivor(held, memory)]


# ------------------------------------------------------------------------------------------------------ hand-made cases

MODEL = Model(block=2, layers=4, tensor=1)


def ranges(*pairs: tuple[int, int]) -> Intervals:
    """Intervals from pairs of (start, stop)."""
    return tuple(Interval(a, b) for a, b in pairs)


def plan_of(
    owned: list[Intervals], copies: list[Intervals] | None = None, *, zero_stage: int = 1, epoch: int = 1, nodes: str = "abcd"
) -> Plan:
    """Replicas with these owners."""
    n = len(owned)
    shell = Plan(
        job="j",
        epoch=epoch,
        parent=epoch - 1,
        mesh=(MeshAxis("pipeline", 1), MeshAxis("data", n), MeshAxis("tensor", 1)),
        zero_stage=zero_stage,
        shard=n,
        copies=int(copies is not None),
        micro_batches=n,
        shares=(),
        block=MODEL.block,
        section=MODEL.section,
        stages=(Stage(0, MODEL.layers, 0, MODEL.section),),
        schedule=PipelineSchedule.ONE_F_ONE_B,
        recompute=(False,),
        checkpoint_every=0,
        seats=tuple(Seat(r, f"e{epoch}w{r}", nodes[r]) for r in range(n)),
        layouts=(),
        reason="test",
    )
    return with_layouts(shell, owned, copies or [() for _ in owned])


QUARTERS = [ranges((0, 2)), ranges((2, 4)), ranges((4, 6)), ranges((6, 8))]
FOUR = plan_of(QUARTERS, [QUARTERS[3], *QUARTERS[:3]])  # rank r + 1 keeps the copy of rank r
TWO = plan_of([ranges((0, 4)), ranges((4, 8))], zero_stage=0)


def at(plan: Plan, rank: int, step: int, *, commit: Commit | None = None, prepared: bool = False, torn: bool = False) -> Held:
    """A rank that has applied `step`, and has gathered its params unless they are torn."""
    return survivor(plan, rank, applied=step, gathered=not torn, prepared=prepared, commit=commit).held


def moves(resume: Resume) -> list[tuple[str, int, int, int, int]]:
    """The transfers, without their rounds."""
    return [(t.tensor, t.src, t.dst, t.start, t.stop) for t in resume.transfers]


def test_nobody_left() -> None:
    with pytest.raises(Unrecoverable, match=r"^no survivor holds any state$"):
        resolve(new=FOUR, held={}, known=commit_of(4))


def test_a_shard_whose_both_holders_died_is_named() -> None:
    held = {r: at(FOUR, r, 4) for r in (0, 3)}  # rank 1's region has its copy on rank 2
    with pytest.raises(Unrecoverable, match=r"optimizer \[2, 4\) of rank 1 at step 4 has no live holder"):
        resolve(new=FOUR, held=held, known=None)


def test_the_prepared_follow_one_survivor_past_the_commit() -> None:
    held = {0: at(FOUR, 0, 5, commit=commit_of(5)), **{r: at(FOUR, r, 4, prepared=True) for r in (1, 3)}}
    resume = resolve(new=FOUR, held=held, known=None)
    assert (resume.step, resume.commit, resume.fresh) == (5, commit_of(5), (2,))


def test_the_prepared_follow_what_only_the_supervisor_was_told() -> None:
    held = {r: at(FOUR, r, 4, prepared=True) for r in (0, 1, 3)}
    assert resolve(new=FOUR, held=held, known=commit_of(5)).step == 5
    resume = resolve(new=FOUR, held=held, known=None)
    assert (resume.step, resume.commit) == (4, None)


def test_who_is_not_prepared_cannot_follow_and_receives() -> None:
    held = {0: at(TWO, 0, 5, commit=commit_of(5)), 1: at(TWO, 1, 4)}
    resume = resolve(new=TWO, held=held, known=None)
    assert (resume.step, resume.fresh) == (5, (1,))
    assert moves(resume) == [(PARAMS, 0, 1, 0, 8), (OPTIMIZER, 0, 1, 0, 8)]


def test_a_step_that_changed_nothing_leaves_gathered_params_as_they_are() -> None:
    held = {r: at(FOUR, r, 2, prepared=True, commit=commit_of(2)) for r in range(4)}
    resume = resolve(new=FOUR, held=held, known=commit_of(3))
    assert (resume.step, resume.commit, resume.transfers) == (3, commit_of(3), ())


def test_torn_params_come_from_those_who_made_them() -> None:
    held = {r: at(FOUR, r, 4, torn=r != 2) for r in range(4)}
    resume = resolve(new=FOUR, held=held, known=None)
    assert {t.tensor for t in resume.transfers} == {PARAMS}
    assert {r: spans(x for t in resume.transfers if t.dst == r for x in range(t.start, t.stop)) for r in range(4)} == {
        0: ranges((2, 6)),  # it made [0, 2) and, for its copy, [6, 8)
        1: ranges((4, 8)),
        2: (),
        3: ranges((0, 4)),
    }


def test_when_nobody_is_lost_nothing_moves() -> None:
    resume = resolve(new=FOUR, held={r: at(FOUR, r, 4) for r in range(4)}, known=None, skip_steps=[7])
    assert (resume.step, resume.transfers, resume.fresh) == (4, (), ())
    assert (resume.predicted_ms, resume.skip_steps) == (0, (7,))


def test_one_of_four_leaves_and_a_quarter_moves() -> None:
    three = plan_of([ranges((0, 2), (6, 8)), ranges((2, 4)), ranges((4, 6))], epoch=2)
    resume = resolve(new=three, held={r: at(plan_of(QUARTERS), r, 4) for r in range(4)}, known=None, leaving=[Seat(3, "w", "d")])
    assert moves(resume) == [(OPTIMIZER, 3, 0, 6, 8)]
    assert resume.fresh == ()


def test_with_zero_3_params_move_with_their_owner() -> None:
    four, three = plan_of(QUARTERS, zero_stage=3), plan_of([*QUARTERS[:2], ranges((4, 8))], zero_stage=3, epoch=2)
    resume = resolve(new=three, held={r: at(four, r, 4) for r in range(4)}, known=None, leaving=[Seat(3, "w", "d")])
    assert moves(resume) == [(PARAMS, 3, 2, 6, 8), (OPTIMIZER, 3, 2, 6, 8)]


def test_two_die_in_one_reshard_with_regions_half_moved() -> None:
    """4 -> 3 because rank 1 died: its region goes to rank 0 from its copy on rank 2. Then ranks 2 and 3 die in the middle of it.

    Rank 0 has received [2, 4) by then, and rank 1 of the new plan, who was rank 3 before, nothing yet: together they have it all
    only because what rank 0 received counts.
    """
    halves = plan_of([ranges((0, 4)), ranges((4, 8))], zero_stage=3, epoch=3)
    first = Held(2, 0, 1, 4, 4, 4, ranges((0, 4), (6, 8)), ranges((0, 4), (6, 8)), commit_of(4))  # old, copy, and received
    last = Held(2, 2, 1, 4, 4, 4, ranges((4, 8)), ranges((4, 8)), commit_of(4))
    resume = resolve(new=halves, held={0: first, 1: last}, known=None)
    assert (resume.step, resume.transfers) == (4, ()), "everything is there already"
    without = replace(first, optimizer=ranges((0, 2), (6, 8)), params=ranges((0, 2), (6, 8)))
    with pytest.raises(Unrecoverable, match=r"params \[2, 4\) of rank 0 at step 4 has no live holder"):
        resolve(new=halves, held={0: without, 1: last}, known=None)


def test_regions_moved_between_survivors_have_a_holder_at_both_ends_until_both_let_go() -> None:
    """Ranks 0 and 1 change places in a re-cut; it breaks half-way, and a third worker takes rank 1's place."""
    swap = plan_of([ranges((4, 8)), ranges((0, 4))], zero_stage=3, epoch=2)
    zero = Held(2, 0, 1, 4, 4, 4, ranges((0, 8)), ranges((0, 8)), None)  # its own, and all of what it was to get
    resume = resolve(new=swap, held={0: zero}, known=None)
    assert moves(resume) == [(PARAMS, 0, 1, 0, 4), (OPTIMIZER, 0, 1, 0, 4)]


def test_numbers_without_a_seat_are_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="rank 4 holds state and has no seat"):
        resolve(new=FOUR, held={4: at(FOUR, 0, 4)}, known=None)
    with pytest.raises(ValueError, match="numbered from 4 on"):
        resolve(new=FOUR, held={0: at(FOUR, 0, 4)}, known=None, leaving=[Seat(5, "w", "d")])


def test_another_tensor_degree_needs_the_graph() -> None:
    with pytest.raises(ValueError, match=r"degrees \[1, 2\] cannot be moved without the graph"):
        resolve(new=FOUR, held={0: replace(at(FOUR, 0, 4), tensor=2)}, known=None)
