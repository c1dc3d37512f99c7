"""What one simulated worker holds from epoch to epoch, block by block, and what it says of it.

It follows engine/rank_state.py and engine/restore.py: nothing is thrown away between epochs; until it is known that all ranks
have what they need, a worker that went through a reshard holds what both plans give it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan
from orchestrator.core.reshard.recovery import Commit, Held
from orchestrator.testkit.sim import content


@dataclass(frozen=True, slots=True)
class Saved:
    """A whole state outside of any worker: the seed's, or a checkpoint's."""

    step: int
    params: tuple[int, ...]  # by block
    optim: tuple[int, ...]
    usual: float


class Memory:
    """Of one process. `plan` is None while it holds nothing."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.rank = -1
        self.place = (1, 0)  # tensor degree and coordinate that the module is built for
        self.applied = self.params_step = self.prepared = 0
        self.commit: Commit | None = None
        self.optim: dict[int, int] = {}
        self.params: dict[int, int] = {}  # what the plan gives
        self.left: dict[int, int] = {}  # params that only the plan before gave
        self.grad = 0  # reduced, of the blocks of `optim`
        self.done_step = -1
        self.lineage = 0
        self.flipped: set[tuple[str, int]] = set()  # (layout, block) that a fault changed: only the world knows

    def forget(self) -> None:
        """It holds nothing any more."""
        self.plan, self.commit, self.done_step = None, None, -1
        self.optim, self.params, self.left = {}, {}, {}
        self.flipped.clear()
        self.lineage += 1

    def held(self) -> Held | None:
        """For the supervisor."""
        if self.plan is None:
            return None
        return Held(
            plan_epoch=self.plan.epoch,
            rank=self.rank,
            tensor=self.plan.axis(TENSOR),
            applied_step=self.applied,
            params_step=self.params_step,
            prepared_step=self.prepared,
            optimizer=content.intervals_of(self.optim),
            params=content.intervals_of({**self.params, **self.left}),
            commit=self.commit,
        )

    def all_params(self) -> dict[int, int]:
        """Also those that only the plan before gave."""
        return {**self.left, **self.params}

    def stale(self, step: int) -> set[int]:
        """Blocks of params that it has and that are not those after `step`."""
        return set() if self.params_step == step else self.all_params().keys() - self.optim.keys()

    def apply(self, commit: Commit) -> None:
        """The update of a committed step on what it holds."""
        if not commit.skipped:
            params = self.params
            for b in self.optim:
                self.optim[b] = content.optim_after(self.optim[b], self.grad, b)
                old = params[b] if b in params else self.left[b]
                (params if b in params else self.left)[b] = content.params_after(old, self.optim[b], b)
        own = self.params.keys() <= self.optim.keys()
        whole = own or (commit.skipped and self.params_step == commit.step - 1)
        self.applied, self.commit = commit.step, commit
        self.params_step = commit.step if whole else -1

    def install(
        self, plan: Plan, rank: int, *, step: int, commit: Commit | None, optim: dict[int, int], params: dict[int, int], done: int
    ) -> None:
        """All that a plan gives to a rank, from outside."""
        self.plan, self.rank = plan, rank
        self.place = (plan.axis(TENSOR), plan.coordinates(rank)[2])
        self.applied = self.params_step = self.prepared = step
        self.commit, self.done_step = commit, done
        self.optim, self.params, self.left = optim, params, {}

    def arrived(self, plan: Plan, rank: int, *, step: int, commit: Commit | None, got: dict[tuple[str, int], int]) -> list[str]:
        """A reshard's transfers are here; what is missing. From here on it holds what both plans give."""
        had = self.all_params()
        valid = {b: v for b, v in had.items() if b not in self.stale(step)}
        optim = {**self.optim, **{b: v for (name, b), v in got.items() if name == OPTIMIZER}}
        values = {**valid, **{b: v for (name, b), v in got.items() if name == PARAMS}}
        wants = wanted(plan, rank)
        missing = [f"{OPTIMIZER} {b}" for b in wants[OPTIMIZER] if b not in optim]
        missing += [f"{PARAMS} {b}" for b in wants[PARAMS] if b not in values]
        if missing:
            return missing
        done = self.done_step
        params = {b: values[b] for b in wants[PARAMS]}
        commit = commit if commit is not None else self.commit
        self.install(plan, rank, step=step, commit=commit, optim=optim, params=params, done=done)
        self.left = {b: v for b, v in valid.items() if b not in params}
        return []

    def agreed(self, done: int) -> None:
        """Everybody has everything: what only the old plan needed may go."""
        assert self.plan is not None
        wants = wanted(self.plan, self.rank)
        self.optim = {b: self.optim[b] for b in wants[OPTIMIZER]}
        self.left = {}
        self.done_step = done
        self.flipped = {(name, b) for name, b in self.flipped if b in (self.optim if name == OPTIMIZER else self.params)}

    def outlive_module(self, place: tuple[int, int]) -> None:
        """The module was built anew for another place, and its state never came: what was held can still be moved."""
        stale = self.stale(self.applied)
        self.left = {b: v for b, v in self.all_params().items() if b not in stale}
        self.params, self.params_step, self.place = {}, self.applied, place

    def tear(self, blocks: set[int], rng: random.Random) -> None:
        """A broken operation has written into some of these params, or into none."""
        for values in (self.params, self.left):
            for b in sorted(blocks & values.keys()):
                if rng.random() < 0.5:
                    values[b] = hash((7, b, self.applied))

    def wrong(self, serial: content.Serial) -> str:
        """What of that which it holds is not what the serial run holds; what a fault changed, and nobody has seen, left out."""
        step, stale = self.applied, self.stale(self.applied)
        values = self.all_params()
        optim = [b for b, v in sorted(self.optim.items()) if v != serial.optim[step][b] and (OPTIMIZER, b) not in self.flipped]
        params = [
            b
            for b, v in sorted(values.items())
            if v != serial.params[step][b] and b not in stale and (PARAMS, b) not in self.flipped
        ]
        if not optim and not params:
            return ""
        return f"after step {step} optimizer blocks {optim} and param blocks {params} differ from the serial run"


def wanted(plan: Plan, rank: int) -> dict[str, tuple[int, ...]]:
    """Blocks by layout that a plan gives to a rank."""
    return {name: content.blocks_of(plan.layout(name).holdings[rank].everything) for name in (PARAMS, OPTIMIZER)}


def owned(plan: Plan, rank: int) -> tuple[int, ...]:
    """Blocks that a rank answers for."""
    return content.blocks_of(plan.layout(OPTIMIZER).holdings[rank].primary)


def holders(plan: Plan, name: str) -> dict[int, list[int]]:
    """block -> ranks that hold it."""
    out: dict[int, list[int]] = {}
    for rank, holding in enumerate(plan.layout(name).holdings):
        for b in content.blocks_of(holding.everything):
            out.setdefault(b, []).append(rank)
    return out
