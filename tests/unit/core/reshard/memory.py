"""What ranks hold in memory, element by element as the number of the update that made it, and where the protocol lets them stop.

An element that a broken collective may have torn is simply not there. A world is broken at a random moment of a step (while
nobody is past its commit, or while everybody is prepared and some are past it) or, later, in the middle of a reshard. Then some
workers die, and those left say what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hypothesis import strategies as st

from orchestrator.core.plan.layout import Interval, Intervals, merge
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan
from orchestrator.core.reshard.recovery import Commit, Held, Resume
from tests.unit.core.reshard.random_plans import Model, plans

Memory = dict[str, dict[int, int]]  # state tensor -> element -> the update that made it


def commit_of(step: int) -> Commit:
    """The one commit record that a step has; every third step is skipped."""
    return Commit(step, 2.0 + step, 1.0, 0.5, skipped=step % 3 == 0, usual_loss=2.0)


def made_by(step: int) -> int:
    """The step whose update made the state that is there after `step`."""
    return step - 1 if step and commit_of(step).skipped else step


def points(of: Iterable[Interval]) -> set[int]:
    """The elements of the intervals."""
    return {x for i in of for x in range(i.start, i.stop)}


def spans(of: Iterable[int]) -> Intervals:
    """The intervals of the elements."""
    return merge(Interval(x, x + 1) for x in of)


@dataclass
class Survivor:
    """One worker's memory, and what it says of it."""

    held: Held
    memory: Memory

    def roll_forward(self, resume: Resume) -> None:
        """Apply the committed step that it is prepared for; its params elsewhere stay what they were."""
        if self.held.applied_step == resume.step:
            return
        assert resume.commit is not None
        assert resume.commit.step == resume.step
        assert (self.held.applied_step, self.held.prepared_step) == (resume.step - 1, resume.step), "it cannot apply that step"
        for x, version in self.memory[OPTIMIZER].items():
            assert version == made_by(resume.step - 1)
            self.memory[OPTIMIZER][x] = self.memory[PARAMS][x] = made_by(resume.step)


def survivor(plan: Plan, rank: int, *, applied: int, gathered: bool, prepared: bool, commit: Commit | None) -> Survivor:
    """A rank whose own regions are at step `applied`; its other params too, or torn when not `gathered`."""
    own = plan.layout(OPTIMIZER).holdings[rank].everything
    params = plan.layout(PARAMS).holdings[rank].everything
    held = Held(
        plan_epoch=plan.epoch,
        rank=rank,
        tensor=plan.axis(TENSOR),
        applied_step=applied,
        params_step=applied if gathered else -1,
        prepared_step=applied + prepared,
        optimizer=own,
        params=params,
        commit=commit,
    )
    version = made_by(applied)
    return Survivor(
        held,
        {OPTIMIZER: dict.fromkeys(points(own), version), PARAMS: dict.fromkeys(points(params if gathered else own), version)},
    )


@dataclass
class World:
    """Who is left of a broken epoch, what the supervisor was told, and the newest step that any of these knows of."""

    model: Model
    survivors: list[Survivor]
    known: Commit | None
    newest: int

    @property
    def recoverable(self) -> bool:
        """Whether the survivors together hold every element of the optimizer state."""
        return len({x for s in self.survivors for x in s.memory[OPTIMIZER]}) == self.model.numel


@st.composite
def worlds(draw: st.DrawFn, model: Model) -> World:
    """Any plan, broken anywhere in a step, with any workers dead and any report lost."""
    plan = draw(plans(model))
    step = draw(st.integers(1, 5))  # the step under way when it broke
    before = commit_of(step - 1) if step > 1 else None
    if draw(st.booleans()):  # nobody is past the commit; some have the reduced gradient
        everybody = [
            survivor(
                plan,
                r,
                applied=step - 1,
                gathered=True,
                prepared=draw(st.booleans()),
                commit=draw(st.sampled_from([before, None])),
            )
            for r in range(plan.size)
        ]
        known = draw(st.sampled_from([None, before]))
    else:
        everybody = _committing(draw, plan, step, before)
        known = draw(st.sampled_from([None, before, commit_of(step)]))
    dead = draw(st.one_of(st.sets(st.integers(0, plan.size - 1), max_size=2), st.sets(st.integers(0, plan.size - 1))))
    alive = [s for r, s in enumerate(everybody) if r not in dead]
    told = [s.held.commit.step for s in alive if s.held.commit is not None]
    return World(model, alive, known, max([known.step if known else 0, step - 1, *told]))


def _committing(draw: st.DrawFn, plan: Plan, step: int, before: Commit | None) -> list[Survivor]:
    """Everybody is prepared, and at least one rank has left the commit exchange."""
    stages = draw(
        st.lists(st.sampled_from(["waits", "left", "applied"]), min_size=plan.size, max_size=plan.size).filter(
            lambda s: set(s) != {"waits"}
        )
    )
    after = commit_of(step)
    ranks = []
    for r, stage in enumerate(stages):
        if stage == "applied":
            # The gather ends on a rank only when every owner has applied; who holds no other params has nothing to gather.
            nothing = plan.layout(PARAMS).holdings[r].everything == plan.layout(OPTIMIZER).holdings[r].everything
            gathered = nothing or after.skipped or (set(stages) == {"applied"} and draw(st.booleans()))
            ranks.append(survivor(plan, r, applied=step, gathered=gathered, prepared=False, commit=after))
        else:
            commit = after if stage == "left" else before
            ranks.append(survivor(plan, r, applied=step - 1, gathered=True, prepared=True, commit=commit))
    return ranks


def seated(data: st.DataObject, world: World, new: Plan) -> dict[int, Survivor]:
    """Each survivor at a rank of the new plan, or leaving (numbered from new.size on); other ranks are new workers."""
    ranks = data.draw(st.permutations(range(new.size + len(world.survivors))))[: len(world.survivors)]
    leaving = iter(range(new.size, new.size + len(world.survivors)))
    return {rank if rank < new.size else next(leaving): s for rank, s in zip(ranks, world.survivors, strict=True)}


def missing(new: Plan, resume: Resume, there: Mapping[int, Survivor]) -> dict[int, dict[str, set[int]]]:
    """What each rank needs and does not have at the resume's step. Call it when everybody has rolled forward."""
    out: dict[int, dict[str, set[int]]] = {}
    for rank in range(new.size):
        out[rank] = {}
        for tensor in (PARAMS, OPTIMIZER):
            has = there[rank].memory[tensor] if rank in there and rank not in resume.fresh else {}
            need = points(new.layout(tensor).holdings[rank].everything)
            out[rank][tensor] = {x for x in need if has.get(x) != made_by(resume.step)}
    return out


def execute(new: Plan, resume: Resume, there: Mapping[int, Survivor], *, transfers: int | None = None) -> dict[int, Memory]:
    """Carry out a resume, or its first transfers: returns what each member then has in its memory.

    Asserts on the way that senders, and those who could send instead, have what is at `resume.step`, that nobody is sent what it
    has, and that no round comes before the one before it.
    """
    for rank, s in there.items():
        if rank not in resume.fresh:
            s.roll_forward(resume)
    lacks = missing(new, resume, there)
    out: dict[int, Memory] = {}
    for rank in {*range(new.size), *there}:
        kept = there[rank].memory if rank in there and rank not in resume.fresh else {PARAMS: {}, OPTIMIZER: {}}
        out[rank] = {tensor: {x: v for x, v in m.items() if v == made_by(resume.step)} for tensor, m in kept.items()}
    last = 0
    for t in resume.transfers[:transfers]:
        assert last <= t.round <= last + 1
        last = t.round
        assert (t.src != t.dst, t.src_start) == (True, t.start)
        assert len({t.src, t.dst, *t.others}) == 2 + len(t.others)
        for sender in (t.src, *t.others):
            assert sender not in resume.fresh, "who holds nothing sends nothing"
            for x in range(t.start, t.stop):
                assert there[sender].memory[t.tensor].get(x) == made_by(resume.step), f"{t}: element {x} of rank {sender}"
        for x in range(t.start, t.stop):
            assert x in lacks[t.dst][t.tensor], f"{t} moves element {x} that is there already"
            lacks[t.dst][t.tensor].remove(x)
            out[t.dst][t.tensor][x] = made_by(resume.step)
    return out
