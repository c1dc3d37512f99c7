"""One optimizer step at a time, in two phases, so that a failure at any moment loses nothing.

Compute own micro-batches; *reduce* until everything needed for the update is here (prepared); *commit* by one small
exchange that a rank enters only when prepared; then update with no help from anybody. Whoever leaves the exchange
knows that everybody was prepared: see core/reshard/recovery.py for what follows from that. In the same exchange the ranks
agree on wishes (a checkpoint now, leaving the epoch) and on a step that is not to be applied.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from orchestrator.core.graph.space import twins
from orchestrator.core.job import BadStep, Consistency
from orchestrator.core.plan.layout import Interval, Intervals, intersect, subtract
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan
from orchestrator.core.reshard.recovery import Commit
from orchestrator.core.supervisor.events import StepCommitted
from orchestrator.engine.accumulate import GradAccumulator
from orchestrator.engine.commit import CommitExchange, Told
from orchestrator.engine.control import Control
from orchestrator.engine.faults import FaultBox
from orchestrator.engine.groups.base import EpochGroup, GroupBroken
from orchestrator.engine.groups.part import Part
from orchestrator.engine.layered import LayeredStage
from orchestrator.engine.optim import Reduced, clip_scale, lr_at
from orchestrator.engine.pipeline import PipelineRunner
from orchestrator.engine.rank_state import Body, FatalCheck, RankState, StepWork
from orchestrator.engine.reduce import (
    Ownership,
    all_reduce_exact,
    all_reduce_fast,
    reduce_scatter_exact,
    reduce_scatter_fast,
)
from orchestrator.engine.restore import apply_commit
from orchestrator.engine.weights import Resident, Streaming
from orchestrator.runtime.ports import Report

_COPY_TAG = 4
_PARAMS_TAG = 5
_TWIN_TAG = 8
_NAMED_MAX = 8
_USUAL_SHARE = 0.1  # weight of a new loss in the moving average that a spike is held against

Moves = list[tuple[Interval, int]]


class BadStepLeft(Exception):
    """The step must not be applied, and the job asks for a rollback."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(f"step {step}: {why}")
        self.step, self.why = step, why


class Trainer:
    """Runs steps of one epoch. `body.rank` holds the state of the step before."""

    def __init__(
        self,
        body: Body,
        *,
        plan: Plan,
        group: EpochGroup,
        control: Control,
        faults: FaultBox,
        report: Report,
        worker: str,
        skip_steps: Sequence[int] = (),
    ) -> None:
        self._body, self._plan, self._group = body, plan, group
        self._control, self._faults, self._report, self._worker = control, faults, report, worker
        self._skip_steps = frozenset(skip_steps)
        self._train = body.job.train
        self._exact = self._train.consistency is Consistency.EXACT
        rank = group.rank
        self._mine = plan.micro_batches_of(rank)
        self._peers = Part(group, plan.replicas(rank))
        self._stages = {s: self._bounds(s) for s in plan.stages_of(rank)}
        self._primary = plan.layout(OPTIMIZER).holdings[rank].primary
        self._ownership = {s: self._ownership_of(b) for s, b in self._stages.items()}
        self._resident, self._streaming = self._weights(rank)
        weights = self._resident if self._streaming is None else self._streaming
        stages = {
            s: LayeredStage(
                body.task,
                body.module,
                stage=s,
                first=plan.stages[s].first,
                last=plan.stages[s].last,
                weights=weights,
                seed=self._train.seed,
                scale=1.0 / self._train.micro_batches,
                recompute=plan.recompute[s],
                precision=self._train.precision,
                device=body.device,
                to_device=body.to_device,
                **({"guard": body.tensor.guard} if body.tensor is not None else {}),
            )
            for s in self._stages
        }
        self._runner = PipelineRunner(
            plan=plan, rank=rank, group=group, stages=stages, control=control, faults=faults, device=body.device
        )
        self._commits = CommitExchange(plan=plan, group=group, graph=body.graph, exact=self._exact, device=body.device)
        self._plan_moves(rank)
        self._ended = time.monotonic()

    def evaluate(self, numbers: Sequence[int | None]) -> dict[int, float]:
        """Held-out loss of these micro-batches, on the ranks of the last stage. Raises GroupBroken, UserError."""
        if self._streaming is not None:
            self._streaming.begin([numbers] * self._peers.size, self._train.micro_batches)
        return self._runner.evaluate(numbers)

    # ------------------------------------------------------------------------------------------------------- preparing

    def _bounds(self, stage: int) -> Interval:
        base = self._plan.coordinates(self._group.rank)[2] * self._plan.section
        return Interval(base + self._plan.stages[stage].start, base + self._plan.stages[stage].stop)

    def _ownership_of(self, bounds: Interval) -> Ownership:
        """Who of the replicas reduces what of a stage, counted from its start."""
        holdings = self._plan.layout(OPTIMIZER).holdings
        return Ownership.of(
            [
                [(i.start - bounds.start, i.stop - bounds.start) for i in intersect(holdings[r].primary, (bounds,))]
                for r in self._peers.ranks
            ]
        )

    def _weights(self, rank: int) -> tuple[Resident, Streaming | None]:
        body, plan = self._body, self._plan
        streaming = None
        if plan.zero_stage >= 2:
            streaming = Streaming(body, plan=plan, rank=rank, group=self._group, control=self._control)
        return Resident(body, plan=plan, rank=rank), streaming

    def _plan_moves(self, rank: int) -> None:
        """What travels in each step, beside partial sums: gradients to copies and twins, new params to who lacks them."""
        plan = self._plan
        optimizer, params = plan.layout(OPTIMIZER).holdings, plan.layout(PARAMS).holdings
        mine = optimizer[rank]
        others = [r for r in range(plan.size) if r != rank]

        def by_all_reduce(r: int) -> Intervals:
            return plan.section_of(r) if plan.zero_stage == 0 and r in self._peers.ranks else ()

        self._copies_out: Moves = [
            (i, r) for r in others for i in subtract(intersect(mine.primary, optimizer[r].extra), by_all_reduce(r))
        ]
        self._copies_in: Moves = [
            (i, r) for r in others for i in subtract(intersect(optimizer[r].primary, mine.extra), by_all_reduce(r))
        ]
        # Who keeps a copy has made the same update from the same gradient: its params need not travel.
        lacks = [subtract(p.everything, o.everything) for p, o in zip(params, optimizer, strict=True)]
        self._params_out: Moves = [(i, r) for r in others for i in intersect(mine.primary, lacks[r])]
        self._params_in: Moves = [(i, r) for r in others for i in intersect(optimizer[r].primary, lacks[rank])]
        self._twins: list[tuple[Interval, Interval]] = []  # (here, there): this rank holds the first and needs the second's
        self._twins_out: Moves = []
        self._twins_in: Moves = []
        for first, second in twins(self._body.graph, plan.axis(TENSOR)):
            for here, there in ((first, second), (second, first)):
                self._plan_twin(rank, here, there)

    def _plan_twin(self, rank: int, here: Interval, there: Interval) -> None:
        holdings = self._plan.layout(OPTIMIZER).holdings
        shift = there.start - here.start
        mine = holdings[rank]
        for i in intersect(mine.everything, (here,)):
            self._twins.append((i, Interval(i.start + shift, i.stop + shift)))
        for r, h in enumerate(holdings):
            if r == rank:
                continue
            for i in intersect(mine.primary, (there,)):  # they hold `here` and need mine
                wanted = intersect(h.everything, (Interval(i.start - shift, i.stop - shift),))
                lacks = subtract(tuple(Interval(w.start + shift, w.stop + shift) for w in wanted), h.everything)
                self._twins_out += [(w, r) for w in lacks]
            for i in intersect(h.primary, (there,)):
                wanted = intersect(mine.everything, (Interval(i.start - shift, i.stop - shift),))
                lacks = subtract(tuple(Interval(w.start + shift, w.stop + shift) for w in wanted), mine.everything)
                self._twins_in += [(w, r) for w in lacks]

    # -------------------------------------------------------------------------------------------------------- the step

    def run(self, step: int) -> Told:
        """Step `step` from micro-batches to the updated params on every rank; what else the ranks agreed on.

        Raises GroupBroken, UserError, FatalCheck, BadStepLeft.
        """
        state = self._rank_state()
        assert state.applied_step == step - 1 == state.params_step, "the state of the step before"
        skipped = step in self._skip_steps
        work = StepWork(step, (), self._body.lineage, {}, {}, {}) if skipped else self._compute(step)
        self._control.check()
        reduced = self._body.reduced(state.holds)
        self._control.phase("reduce", step)
        state.prepared_step = state.applied_step  # what an earlier epoch had reduced is written over
        if not skipped:
            with self._control.comm():
                self._reduce(work, reduced)
        state.prepared_step = step
        self._control.phase("commit")
        with self._control.comm():
            told = self._commits.tell(reduced=None if skipped else reduced, losses=work.losses, wishes=self._control.wishes())
        commit = self._judge(step, told, skipped)
        state.commit = commit
        self._tell(commit)
        self._control.phase("update")
        apply_commit(self._body, state, commit)
        if self._lacking and not commit.skipped:
            self._control.phase("gather")
            with self._control.comm():
                self._gather()
            state.params_step = step
        if self._faults.flips():
            _, values = next(iter(self._body.state.params))
            values[:1].view(torch.int32).bitwise_xor_(1 << 12)
        return told

    @property
    def _lacking(self) -> bool:
        return bool(self._params_in or self._params_out)

    def _rank_state(self) -> RankState:
        assert self._body.rank is not None
        return self._body.rank

    # -------------------------------------------------------------------------------------------------------- compute

    def _compute(self, step: int) -> StepWork:
        work = self._work_for(step)

        def keep(number: int, loss: float) -> None:
            work.losses[number] = self._faults.poisoned(loss)

        if self._streaming is not None:
            numbers = self._rounds()
            self._streaming.begin(numbers, self._train.micro_batches)
            self._runner.run(step, numbers[self._peers.rank], on_loss=keep)
            return work
        self._resident.begin(work)
        start = work.sums[0].next_index - self._mine[0] if len(self._plan.stages) == 1 else 0
        self._runner.run(step, self._mine, start=start, on_loss=keep)
        return work

    def _rounds(self) -> list[list[int | None]]:
        """For each replica the micro-batch that it computes in each round; None where it has none."""
        runs = [list(self._plan.micro_batches_of(r)) for r in self._peers.ranks]
        longest = max(len(r) for r in runs)
        return [[*r, *[None] * (longest - len(r))] for r in runs]

    def _work_for(self, step: int) -> StepWork:
        """What is there already of this step, or a new beginning: who computes a micro-batch together begins together."""
        body, work, plan = self._body, self._body.work, self._plan
        keeps = len(plan.stages) == 1 and plan.axis(TENSOR) == 1 and self._streaming is None
        wanted = (step, self._mine, body.lineage, self._stages)
        if work is not None and keeps and (work.step, work.mine, work.lineage, work.stages) == wanted:
            return work
        if work is not None:
            for sums in work.sums.values():
                sums.reset()
        lo, hi = (self._mine[0], self._mine[-1] + 1) if self._mine else (0, 0)
        stages = self._stages if self._streaming is None else {}
        made = {
            s: GradAccumulator(
                bounds.numel,
                total=self._train.micro_batches,
                lo=lo,
                hi=hi,
                pool=body.pool,
                exact=self._exact,
                join_leaves=body.adds_once,
            )
            for s, bounds in stages.items()
        }
        body.work = StepWork(step, self._mine, body.lineage, stages, made, {})
        return body.work

    # --------------------------------------------------------------------------------------------------------- reduce

    def _reduce(self, work: StepWork, reduced: Reduced) -> None:
        try:
            if self._streaming is not None:
                self._streaming.finish(reduced)
            else:
                for stage, bounds in self._stages.items():
                    self._reduce_stage(work, stage, bounds, reduced)
            self._exchange(reduced, self._copies_out, reduced, self._copies_in, _COPY_TAG)
            self._add_twins(reduced)
        except GroupBroken:
            self._body.drop_reduced()
            raise

    def _reduce_stage(self, work: StepWork, stage: int, bounds: Interval, reduced: Reduced) -> None:
        body, total = self._body, self._train.micro_batches
        partials, ownership = work.sums[stage].partials(), self._ownership[stage]
        if not self._plan.zero_stage:
            whole = reduced.view(bounds.start, bounds.stop)
            if self._exact:
                all_reduce_exact(self._peers, ownership, partials, whole, total=total, pool=body.pool, shares=self._plan.shares)
            else:
                all_reduce_fast(self._peers, ownership, partials, whole, pool=body.pool)
            return
        mine = [reduced.view(i.start, i.stop) for i in intersect(self._primary, (bounds,))]
        region = mine[0] if len(mine) == 1 else body.pool.take(sum(v.numel() for v in mine))
        if self._exact:
            reduce_scatter_exact(
                self._peers, ownership, partials, total=total, pool=body.pool, out=region, shares=self._plan.shares
            )
        else:
            reduce_scatter_fast(self._peers, ownership, partials, pool=body.pool, out=region)
        if len(mine) > 1:
            for view, part in zip(mine, region.split([v.numel() for v in mine]), strict=True):
                view.copy_(part)
        if len(mine) != 1:
            body.pool.give(region)

    def _exchange(self, source: Reduced, out: Moves, target: Reduced, into: Moves, tag: int) -> None:
        self._group.exchange(
            [(source.view(i.start, i.stop), r) for i, r in out], [(target.view(i.start, i.stop), r) for i, r in into], tag=tag
        ).wait()

    def _add_twins(self, reduced: Reduced) -> None:
        """Both places of tied weights take the sum of the two gradients: first + second, on whoever holds them."""
        if not (self._twins or self._twins_out):
            return
        received = [(i, r, self._body.pool.take(i.numel)) for i, r in self._twins_in]
        self._group.exchange(
            [(reduced.view(i.start, i.stop), r) for i, r in self._twins_out], [(t, r) for _, r, t in received], tag=_TWIN_TAG
        ).wait()
        sums = []
        for here, there in self._twins:
            total = reduced.view(here.start, here.stop).clone()
            shift = there.start - here.start
            for i, values in self._raw(reduced, there, [(i, t) for i, _, t in received]):
                total[i.start - shift - here.start : i.stop - shift - here.start].add_(values)
            sums.append((here, total))
        for here, total in sums:
            reduced.view(here.start, here.stop).copy_(total)
        for _, _, values in received:
            self._body.pool.give(values)

    def _raw(self, reduced: Reduced, there: Interval, received: list[tuple[Interval, Tensor]]) -> list[tuple[Interval, Tensor]]:
        """The gradient of `there` before any sum: held here, or received."""
        out = [(i, reduced.view(i.start, i.stop)) for i in intersect(reduced.regions.intervals, (there,))]
        for i, values in received:
            out += [(j, values[j.start - i.start : j.stop - i.start]) for j in intersect((i,), (there,))]
        return out

    # --------------------------------------------------------------------------------------------------------- commit

    def _judge(self, step: int, told: Told, skipped: bool) -> Commit:
        """The same verdict on every rank, from what all have told."""
        before = self._rank_state().commit
        usual = before.usual_loss if before is not None else 0.0
        if skipped:
            return Commit(step=step, loss=usual, grad_norm=0.0, scale=0.0, skipped=True, usual_loss=usual)
        resilience = self._body.job.resilience
        why = _not_finite(told)
        finite = not why
        loss = math.fsum(told.losses.values()) / len(told.losses) if finite else math.nan
        spike = resilience.loss_spike_factor
        if finite and spike and usual > 0.0 and loss > spike * usual:
            why = f"the loss {loss:.4g} is more than {spike:g} times the usual {usual:.4g}"
        if not why:
            norm = math.sqrt(math.fsum(told.squares))  # fsum rounds once, so its order does not matter
            scale = clip_scale(norm, limit=self._train.optimizer.clip_grad_norm)
            usual = loss if usual == 0.0 else usual + _USUAL_SHARE * (loss - usual)
            return Commit(step=step, loss=loss, grad_norm=norm, scale=scale, skipped=False, usual_loss=usual)
        if resilience.on_bad_step is BadStep.SKIP:
            shown = loss if finite else usual
            return Commit(step=step, loss=shown, grad_norm=0.0, scale=0.0, skipped=True, usual_loss=usual)
        if resilience.on_bad_step is BadStep.ROLLBACK:
            raise BadStepLeft(step, why)
        raise FatalCheck(f"step {step}: {why}")

    def _tell(self, commit: Commit) -> None:
        now = time.monotonic()
        self._report(
            StepCommitted(
                at_ms=0,
                worker_id=self._worker,
                epoch=self._plan.epoch,
                step=commit.step,
                loss=commit.loss,
                grad_norm=commit.grad_norm,
                scale=commit.scale,
                lr=lr_at(commit.step, settings=self._train.optimizer, steps=self._train.steps),
                step_ms=(now - self._ended) * 1e3,
                tokens=self._body.task.tokens_per_micro_batch * self._train.micro_batches,
                skipped=commit.skipped,
                usual_loss=commit.usual_loss,
            )
        )
        self._ended = now

    # --------------------------------------------------------------------------------------------------------- gather

    def _gather(self) -> None:
        """The owners' updated params. In place: whoever is broken in here goes on with copies."""
        params = self._body.state.params  # cut at layers on both sides
        sends = [(view, r) for i, r in self._params_out for _, _, view in params.pieces(i.start, i.stop)]
        recvs = [(view, r) for i, r in self._params_in for _, _, view in params.pieces(i.start, i.stop)]
        try:
            self._group.exchange(sends, recvs, tag=_PARAMS_TAG).wait()
        except GroupBroken:
            self._body.renew(tuple(i for i, _ in self._params_in))
            raise


def _not_finite(told: Told) -> str:
    """What is not finite in a step, with what to do about it; empty when all is well."""
    bad = sorted(m for m, loss in told.losses.items() if not math.isfinite(loss))
    if bad:
        shown = ", ".join(f"{m} ({told.losses[m]})" for m in bad[:_NAMED_MAX])
        more = f" and {len(bad) - _NAMED_MAX} more" if len(bad) > _NAMED_MAX else ""
        return (
            f"the loss is not finite in micro-batches {shown}{more}; the step was not applied. "
            "Lower the learning rate, lengthen the warm-up or clip gradients, and look at these batches"
        )
    if not all(map(math.isfinite, told.squares)):
        return (
            "every loss is finite but the gradient is not; the step was not applied. "
            "Lower the learning rate or look for a division by zero in the backward pass"
        )
    return ""
