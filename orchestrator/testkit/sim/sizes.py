"""What must hold of a job that shrinks and grows: never too small, not to and fro, and in the end at full strength again, and on
two machines where copies are wanted, once that can be.

It counts for itself what the core decides by: how many steps lie between changes of size, and for how many steps there have
been workers for all ranks and nothing in the way of using them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.job import FailureClass
from orchestrator.core.supervisor.state import ChangeKind, JobPhase, State, WorkerPhase

if TYPE_CHECKING:
    from orchestrator.testkit.sim.world import World

SLACK = 3  # steps, beside the pause before growth, that a growth may take to begin
HANDOVERS_MAX = 3  # one after the other


class Sizes:
    """Of one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.shrunk = self.grown = 0
        self._sized_step = 0
        self._asked = False  # somebody changed what full strength is, since the last change of size
        self._could_grow = 0  # steps in a row
        self._could_part = 0  # steps in a row
        self._handovers = 0  # in a row

    def asked(self) -> None:
        """Somebody scaled the job."""
        self._asked = True
        self._could_grow = 0

    def new_epoch(self, before: State, state: State) -> None:
        """A plan follows another one, or is the first."""
        say, plan, old = self.world.violation, state.plan, before.plan
        assert plan is not None
        least, step = state.job.resilience.ranks_min, state.committed_step
        if plan.size < least:
            say(f"epoch {plan.epoch} has {plan.size} ranks, and fewer than {least} must never train")
        if plan.size > state.goal.ranks and (old is None or plan.size > old.size) and not _hands_over(before):
            say(f"epoch {plan.epoch} has {plan.size} ranks, full strength is {state.goal.ranks}")
        handed = before.change is not None and before.change.kind is ChangeKind.HANDOVER
        self._handovers = self._handovers + 1 if handed else 0
        if self._handovers > HANDOVERS_MAX:
            say(f"epoch {plan.epoch} hands over again and again, and nobody goes")
        self._could_grow = 0
        if step < self._sized_step:
            self._sized_step = step
        if old is None or plan.size == old.size:
            return
        if plan.size < old.size:
            self.shrunk += 1
        elif before.continued:
            self.grown += 1  # it begins anew
        elif not _hands_over(before):
            self.grown += 1
            if state.recoveries[-1].failure is not FailureClass.PLANNED:
                say(f"epoch {old.epoch} broke, and epoch {plan.epoch} has more ranks")
            elif step - self._sized_step < state.job.resilience.grow_after_steps and not self._asked:
                say(f"epoch {plan.epoch} grows at step {step}, the size changed at step {self._sized_step}")
        self._sized_step = step
        self._asked = False

    def stepped(self, state: State) -> None:
        """A step was committed."""
        if state.planned:
            return  # whether more ranks are better is for the planner to say
        self._on_one_machine(state)
        missing = state.goal.ranks - state.plan.size if state.plan is not None else 0
        if missing <= 0 or len(_spares(state)) < missing or state.phase is not JobPhase.RUNNING or _in_the_way(state):
            self._could_grow = 0
            return
        self._could_grow += 1
        patience = state.grow_pause + state.job.resilience.grow_after_steps + SLACK
        if self._could_grow > patience and state.committed_step < state.job.train.steps:
            self.world.violation(f"there are workers for all ranks since {self._could_grow} steps, and the job does not grow")
            self._could_grow = 0

    def _on_one_machine(self, state: State) -> None:
        """A job at full strength that wants copies and is all on one machine goes to a second one when a spare is there."""
        plan, world = state.plan, self.world
        here = world.machines_of(plan) if plan is not None else set()
        spares = {world.node(state.workers[i].node_id).machine for i in _spares(state)}
        alone = (
            plan is not None
            and plan.size >= max(2, state.goal.ranks)
            and state.goal.copies
            and len(here) == 1
            and bool(spares - here)
        )
        if not alone or state.phase is not JobPhase.RUNNING or _in_the_way(state):
            self._could_part = 0
            return
        self._could_part += 1
        patience = state.grow_pause + 2 * state.job.resilience.grow_after_steps + SLACK
        if self._could_part > patience and state.committed_step < state.job.train.steps:
            world.violation(f"all ranks are on one machine since {self._could_part} steps, and a spare is on another")
            self._could_part = 0


def _hands_over(before: State) -> bool:
    return before.change is not None and before.change.kind in (ChangeKind.HANDOVER, ChangeKind.MOVE)


def _spares(state: State) -> list[str]:
    usable = {n.node_id for n in state.cluster.healthy()} if state.cluster else set()
    return [
        w.worker_id
        for w in state.workers.values()
        if w.phase is WorkerPhase.SPARE
        and w.connected
        and not w.suspect
        and not w.unwanted
        and w.node_id in usable
        and w.node_id not in state.drained
    ]


def _in_the_way(state: State) -> bool:
    """A change is under way, or somebody has to go first."""
    members = [w for w in state.workers.values() if w.phase is WorkerPhase.MEMBER]
    return state.change is not None or bool(state.finished) or any(w.unwanted or w.node_id in state.drained for w in members)
