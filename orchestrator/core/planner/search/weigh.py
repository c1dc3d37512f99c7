"""The scale of a search: what a strategy is worth, what was weighed so far, and how much weighing is left.

A strategy that does not fit, or whose copies would lie with what they are copies of, is worth infinity. Effort is counted and
not timed, so that one problem has one answer on every machine; a unit is about what the estimate of a small strategy takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from orchestrator.core.planner.cost.estimate import Costing
from orchestrator.core.planner.cost.move import move
from orchestrator.core.planner.strategy import Estimate, Option, Parent, Problem, Strategy

INFINITE = math.inf


class Scale:
    """Weighs strategies of one problem, and remembers the best."""

    def __init__(self, problem: Problem, parent: Parent | None, effort: float) -> None:
        self.problem, self.parent = problem, parent
        self.costing = Costing(problem)
        self.effort = effort  # left
        self.best: Option | None = None
        self.least = INFINITE  # the value of the best
        self.options: dict[Strategy, Option] = {}
        self.bounded = 0  # strategies that a bound disposed of

    def floor(self, effective_s: float) -> float:
        """What a strategy is worth at least if a step takes it at least so long."""
        return effective_s * self.parent.steps_left if self.parent is not None else effective_s

    def value(self, option: Option) -> float:
        """What is minimised: seconds per step that counts, or with a parent those of the move and of all steps that are left."""
        if not option.estimate.fits or self._bare(option.strategy):
            return INFINITE
        return option.move_s + self.floor(option.estimate.effective_s)

    def _bare(self, strategy: Strategy) -> bool:
        """Whether copies have no other node to lie on."""
        node_of = self.problem.resources.node_of
        first = node_of[strategy.devices[0]]
        return strategy.copies > 0 and all(node_of[d] == first for d in strategy.devices)

    def weigh(self, strategy: Strategy) -> Option:
        """The strategy's option, at the cost of some effort unless it was weighed before."""
        known = self.options.get(strategy)
        if known is not None:
            return known
        self.effort -= effort_of(strategy)
        estimate = self.costing.estimate(strategy)
        option = Option(strategy, estimate)
        if self.value(option) < self.least:
            option = self.moved(option)
        self.options[strategy] = option
        value = self.value(option)
        if value < self.least:
            self.best, self.least = option, value
        return option

    def moved(self, option: Option) -> Option:
        """The option with what it takes to get there from the parent; `weigh` leaves that out where it does not matter."""
        if self.parent is None:
            return option
        found = move(self.problem, self.parent, option.strategy, self.costing.tables)
        return replace(option, move_s=found.seconds, moved_bytes=found.total_bytes)

    def settle(self, strategy: Strategy) -> Option:
        """The best option among this strategy and those that recompute more: only stages of ranks that lack memory recompute.

        To recompute more never makes a step shorter, so that of several choices those with the fewest stages are tried first.
        """
        option = self.weigh(strategy)
        if True not in self.problem.space.recompute or option.estimate.fits or all(strategy.recompute):
            return option
        short = _short(option.estimate)
        whole = tuple(r or s % strategy.pipeline in short for s, r in enumerate(strategy.recompute))
        full = self.weigh(replace(strategy, recompute=whole))
        if strategy.stages_per_rank == 1 or not full.estimate.fits:
            return full
        return min((full, *self._fewer(strategy, full, short)), key=self.value)

    def _fewer(self, strategy: Strategy, full: Option, short: Sequence[int]) -> list[Option]:
        """Options where each rank that lacks memory recomputes as few of its stages as it can."""
        found: list[Option] = []
        again = list(full.strategy.recompute)
        for pipe in short:
            own = range(pipe, len(strategy.cuts), strategy.pipeline)
            for count in range(1, len(own)):
                trials = []
                for chosen in combinations(own, count):
                    trial = list(again)
                    for s in own:
                        trial[s] = s in chosen or strategy.recompute[s]
                    trials.append(self.weigh(replace(strategy, recompute=tuple(trial))))
                best = min(trials, key=self.value)
                if best.estimate.fits:
                    again = list(best.strategy.recompute)
                    found.append(best)
                    break
        return found


def effort_of(strategy: Strategy) -> float:
    """Units of effort that an estimate of this size takes, about."""
    acts = len(strategy.cuts) * min(strategy.micro_batches // strategy.data, 8 * strategy.pipeline)
    return 1.0 + strategy.ranks / 64 + acts / 256


def _short(estimate: Estimate) -> list[int]:
    """Pipeline ranks that lack memory."""
    return [pipe for pipe, m in enumerate(estimate.memory) if m.total > m.limit]
