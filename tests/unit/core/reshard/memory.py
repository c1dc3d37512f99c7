"""What ranks hold in memory, element by element as the number of the step that made it, and where the protocol lets them stop.

`None` stands for what a broken collective may have left. A world is broken at a random moment of a step: while nobody is past its
commit, or while everybody is prepared and some are past it. Then some ranks die.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from orchestrator.core.plan.layout import Intervals
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.core.reshard.recovery import Commit, Held, Resume
from tests.unit.core.strategies import plans

Version = int | None


def commit_of(step: int) -> Commit:
    """The one commit record that a step has."""
    return Commit(step, 2.0 + step, 1.0, 0.5)


def points(of: Intervals) -> set[int]:
    """The elements of the intervals."""
    return {x for i in of for x in range(i.start, i.stop)}


@dataclass
class Memory:
    """One worker's memory: the version of each element of params, and of each element of optimizer state that it holds."""

    held: Held
    params: list[Version]
    optimizer: dict[int, Version]

    def roll_forward(self, resume: Resume) -> None:
        """Apply the committed step that it is prepared for; its params elsewhere become old."""
        if self.held.applied_step == resume.step:
            return
        assert resume.commit is not None
        assert resume.commit.step == resume.step
        assert (self.held.applied_step, self.held.prepared_step) == (resume.step - 1, resume.step), "it cannot apply that step"
        for x, version in self.optimizer.items():
            assert version == resume.step - 1
            self.optimizer[x] = resume.step
            self.params[x] = resume.step


@dataclass
class World:
    """The survivors of a broken epoch by rank, what the supervisor was told, and the newest step that any of these knows of."""

    plan: Plan
    memories: dict[int, Memory]
    known: Commit | None
    newest: int

    @property
    def recoverable(self) -> bool:
        """Whether the survivors together hold every element of the optimizer state."""
        everything = {x for m in self.memories.values() for x in m.optimizer}
        return len(everything) == self.plan.layout(OPTIMIZER).numel

    def held(self) -> dict[int, Held]:
        """What the survivors say."""
        return {rank: m.held for rank, m in self.memories.items()}


def memory(plan: Plan, rank: int, *, applied: int, gathered: bool, prepared: bool, commit: Commit | None) -> Memory:
    """A rank whose own regions are at step `applied`; its other params too, or half-way there when not `gathered`."""
    own = points(plan.layout(OPTIMIZER).holdings[rank].everything)
    numel = plan.layout(PARAMS).numel
    return Memory(
        Held(plan.epoch, rank, applied, applied if gathered else -1, applied + prepared, commit),
        [applied if gathered or x in own else None for x in range(numel)],
        dict.fromkeys(own, applied),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """1 to 6 ranks, replicated or sharded, broken anywhere in a step, with any ranks dead and any report lost."""
    plan = draw(plans())
    step = draw(st.integers(1, 5))  # the step under way when it broke
    before = commit_of(step - 1) if step > 1 else None
    ranks: list[Memory]
    if draw(st.booleans()):  # nobody is past the commit; some have the reduced gradient
        ranks = [
            memory(
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
        ranks = _committing(draw, plan, step, before)
        known = draw(st.sampled_from([None, before, commit_of(step)]))
    alive = draw(st.sets(st.integers(0, plan.size - 1)))
    memories = {r: ranks[r] for r in sorted(alive)}
    told = [m.held.commit.step for m in memories.values() if m.held.commit is not None]
    newest = max([known.step if known else 0, step - 1, *told])
    return World(plan, memories, known, newest)


def _committing(draw: st.DrawFn, plan: Plan, step: int, before: Commit | None) -> list[Memory]:
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
            # The gather ends on a rank only when every owner has applied; replicas have nothing to gather.
            may_end = plan.zero_stage == 0 or set(stages) == {"applied"}
            gathered = plan.zero_stage == 0 or (may_end and draw(st.booleans()))
            ranks.append(memory(plan, r, applied=step, gathered=gathered, prepared=False, commit=after))
        else:
            commit = after if stage == "left" else before
            ranks.append(memory(plan, r, applied=step - 1, gathered=True, prepared=True, commit=commit))
    return ranks


def execute(new: Plan, resume: Resume, memories: dict[int, Memory]) -> dict[int, Memory]:
    """Carry out a resume: returns what each rank of the new plan has received and kept, by rank.

    Asserts on the way that senders send what is at `resume.step` and that nobody is sent what it had.
    """
    for rank, m in memories.items():
        if rank not in resume.fresh:
            m.roll_forward(resume)
    numel = new.layout(PARAMS).numel
    out: dict[int, Memory] = {}
    for rank in range(new.size):
        kept = memories.get(rank) if rank not in resume.fresh else None
        held = Held(new.epoch, rank, resume.step, resume.step, resume.step, resume.commit)
        out[rank] = Memory(held, list(kept.params) if kept else [None] * numel, dict(kept.optimizer) if kept else {})
    for t in resume.transfers:
        assert t.src != t.dst
        assert t.src not in resume.fresh, "who holds nothing sends nothing"
        source, target = memories[t.src], out[t.dst]
        for x in range(t.start, t.stop):
            sent = source.params[x] if t.tensor == PARAMS else source.optimizer.get(x)
            assert sent == resume.step, f"{t} sends element {x} of step {sent}"
            if t.tensor == PARAMS:
                assert target.params[x] != resume.step, f"{t} moves element {x} that is there already"
                target.params[x] = sent
            else:
                assert target.optimizer.get(x) != resume.step, f"{t} moves element {x} that is there already"
                target.optimizer[x] = sent
    return out


def keep_only_own(plan: Plan, memories: dict[int, Memory]) -> None:
    """Once everybody has everything, what only the older layout needed is given up."""
    for rank, m in memories.items():
        own = points(plan.layout(OPTIMIZER).holdings[rank].everything)
        m.optimizer = {x: v for x, v in m.optimizer.items() if x in own}
