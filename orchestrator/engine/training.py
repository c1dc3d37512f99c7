"""One optimizer step at a time, in two phases, so that a failure at any moment loses nothing.

Compute own micro-batches; *reduce* until everything needed for the update is here (prepared); *commit* by one small
exchange that a rank enters only when prepared; then update with no help from anybody. Whoever leaves the exchange
knows that everybody was prepared: see core/reshard/recovery.py for what follows from that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from orchestrator.core.job import Consistency, Precision
from orchestrator.core.plan.layout import Interval, Intervals, intersect, subtract
from orchestrator.core.plan.plan import OPTIMIZER, Plan
from orchestrator.core.reshard.recovery import Commit
from orchestrator.core.supervisor.events import StepCommitted
from orchestrator.engine.accumulate import GradAccumulator
from orchestrator.engine.control import Control
from orchestrator.engine.faults import FaultBox
from orchestrator.engine.groups.base import EpochGroup, GroupBroken
from orchestrator.engine.optim import clip_scale, lr_at
from orchestrator.engine.rank_state import Body, FatalCheck, RankState, StepWork, user_code
from orchestrator.engine.reduce import (
    Ownership,
    all_reduce_exact,
    all_reduce_fast,
    block_sums,
    reduce_scatter_exact,
    reduce_scatter_fast,
)
from orchestrator.engine.task import TaskError, seed_drawing, seed_everything
from orchestrator.runtime.ports import Report

_COPY_TAG = 4
_PARAMS_TAG = 5
_NAMED_MAX = 8


class Trainer:
    """Runs steps of one epoch. `body.rank` holds the state of the step before."""

    def __init__(
        self, body: Body, *, plan: Plan, group: EpochGroup, control: Control, faults: FaultBox, report: Report, worker: str
    ) -> None:
        self._body, self._plan, self._group = body, plan, group
        self._control, self._faults, self._report, self._worker = control, faults, report, worker
        self._train = body.job.train
        self._exact = self._train.consistency is Consistency.EXACT
        self._mine = plan.micro_batch_range(group.rank)
        layout = plan.layout(OPTIMIZER)
        self._primary = layout.holdings[group.rank].primary
        self._ownership = Ownership.of([[(i.start, i.stop) for i in h.primary] for h in layout.holdings])
        mine = layout.holdings[group.rank]
        others = [(r, h) for r, h in enumerate(layout.holdings) if plan.zero_stage and r != group.rank]
        self._copies_out = [(i, dst) for dst, h in others for i in intersect(mine.primary, h.extra)]
        self._copies_in = [(i, src) for src, h in others for i in intersect(h.primary, mine.extra)]
        # Who keeps a copy has made the same update from the same gradient: its params need not travel.
        self._params_out = [(i, dst) for dst, h in others for i in subtract(mine.primary, h.extra)]
        self._params_in = [(i, src) for src, h in others for i in subtract(h.primary, mine.extra)]
        params: Intervals = (Interval(0, body.state.param_numel),)
        self._normed = [intersect(h.primary, params) for h in layout.holdings]
        self._ended = time.monotonic()

    def run(self, step: int) -> None:
        """Step `step` from micro-batches to the updated params on every rank. Raises GroupBroken, UserError, FatalCheck."""
        state = self._rank_state()
        assert state.applied_step == step - 1 == state.params_step, "the state of the step before"
        work = self._compute(step)
        self._control.check()
        self._control.phase("reduce", step)
        state.prepared_step = state.applied_step  # what an earlier epoch had reduced is written over
        with self._control.comm():
            self._reduce(work)
        state.prepared_step = step
        self._control.phase("commit")
        with self._control.comm():
            commit = self._commit(step, work)
        state.commit = commit
        self._tell(commit)
        self._control.phase("update")
        self._update(state, commit)
        if self._plan.zero_stage and self._group.size > 1:
            self._control.phase("gather")
            with self._control.comm():
                self._gather()
        state.params_step = step

    def _rank_state(self) -> RankState:
        assert self._body.rank is not None
        return self._body.rank

    # -------------------------------------------------------------------------------------------------------- compute

    def _compute(self, step: int) -> StepWork:
        work = self._work_for(step)
        while not work.sums.done:
            self._control.check()
            self._control.phase("batch", step)
            own = work.sums.next_index - self._mine.start
            began = time.monotonic()
            with user_code():
                self._faults.strike(step=step, micro_batch=own)
            self._faults.drag()
            self._micro_batch(work)
            self._control.computed(time.monotonic() - began)
        with user_code():
            self._faults.strike(step=step, micro_batch=len(self._mine))
        return work

    def _work_for(self, step: int) -> StepWork:
        """What is there already of this step, or a new beginning."""
        body, work = self._body, self._body.work
        if work is not None and (work.step, work.mine, work.lineage) == (step, self._mine, body.lineage):
            return work
        if work is not None:
            sums = work.sums
            sums.reset(self._mine.start, self._mine.stop)
        else:
            sums = GradAccumulator(
                body.state.padded_numel,
                total=self._train.micro_batches,
                lo=self._mine.start,
                hi=self._mine.stop,
                pool=body.pool,
                exact=self._exact,
                join_leaves=body.adds_once,
            )
        body.work = StepWork(step, self._mine, body.lineage, sums, {})
        return body.work

    def _micro_batch(self, work: StepWork) -> None:
        body, seed = self._body, self._train.seed
        index, grads = work.sums.begin()
        scale = 1.0 / self._train.micro_batches
        body.state.restore_buffers()
        body.bind_grads(grads)
        with user_code():
            seed_drawing(seed=seed, step=work.step, micro_batch=index)
            batch = body.to_device(body.task.batch(seed=seed, step=work.step, micro_batch=index))
            self._control.phase("forward")
            seed_everything(seed=seed, step=work.step, micro_batch=index)
            with autocast(body):
                loss = body.task.loss(body.module, batch)
            if loss.numel() != 1:
                raise TaskError(f"loss() must return a scalar tensor, not one of shape {list(loss.shape)}")
            (loss * scale).backward()
            body.state.check_grads()
            body.state.capture_buffers(grads, 1.0)  # unscaled: adding a product would round it only now and then
        work.losses[index] = float(loss.detach())
        work.sums.commit()

    # --------------------------------------------------------------------------------------------------------- reduce

    def _reduce(self, work: StepWork) -> None:
        body, partials, total = self._body, work.sums.partials(), self._train.micro_batches
        reduced = body.reduced
        try:
            if not self._plan.zero_stage:
                if self._exact:
                    all_reduce_exact(self._group, self._ownership, partials, reduced, total=total, pool=body.pool)
                else:
                    all_reduce_fast(self._group, self._ownership, partials, reduced, pool=body.pool)
                return
            region = _region(reduced, self._primary)
            if self._exact:
                reduce_scatter_exact(self._group, self._ownership, partials, total=total, pool=body.pool, out=region)
            else:
                reduce_scatter_fast(self._group, self._ownership, partials, pool=body.pool, out=region)
            _put_back(region, reduced, self._primary)
            self._group.exchange(
                [(reduced[i.start : i.stop], dst) for i, dst in self._copies_out],
                [(reduced[i.start : i.stop], src) for i, src in self._copies_in],
                tag=_COPY_TAG,
            ).wait()
        except GroupBroken:
            body.drop_reduced()
            raise

    # --------------------------------------------------------------------------------------------------------- commit

    def _commit(self, step: int, work: StepWork) -> Commit:
        """Everybody's losses and sums of squares, folded in one order by everybody."""
        plan, block = self._plan, self._plan.block
        runs = [plan.micro_batch_range(r) for r in range(plan.size)]
        sums = self._norm_sums(block)
        counts = [sum(-(-i.numel // block) for i in mine) if self._exact else 1 for mine in self._normed]
        losses_max, sums_max = max(len(r) for r in runs), max(counts)
        told = torch.zeros(losses_max + sums_max, dtype=torch.float64)
        told[: len(self._mine)] = torch.tensor([work.losses[m] for m in self._mine], dtype=torch.float64)
        told[losses_max : losses_max + sums.numel()] = sums.cpu()
        told = told.to(self._body.device)
        everybody = torch.empty(plan.size * told.numel(), dtype=torch.float64, device=told.device)
        self._group.all_gather_into(everybody, told)
        rows = everybody.cpu().view(plan.size, -1)
        losses = [x for row, run in zip(rows, runs, strict=True) for x in row[: len(run)].tolist()]
        squares = [x for row, n in zip(rows, counts, strict=True) for x in row[losses_max : losses_max + n].tolist()]
        self._check_finite(step, losses, squares)
        norm = math.sqrt(math.fsum(squares))  # fsum rounds once, so its order does not matter
        scale = clip_scale(norm, limit=self._train.optimizer.clip_grad_norm)
        return Commit(step=step, loss=math.fsum(losses) / len(losses), grad_norm=norm, scale=scale)

    def _norm_sums(self, block: int) -> Tensor:
        """float64 sums of squares of my primary region: of each block (exact), or one (fast)."""
        reduced, mine = self._body.reduced, self._normed[self._group.rank]
        if self._exact:
            sums = [block_sums(reduced[i.start : i.stop], block) for i in mine]
            return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64)
        total = torch.zeros(1, dtype=torch.float64, device=reduced.device)
        for i in mine:
            total += torch.linalg.vector_norm(reduced[i.start : i.stop]).double().square()
        return total

    def _check_finite(self, step: int, losses: Sequence[float], squares: Sequence[float]) -> None:
        bad = [m for m, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad:
            shown = ", ".join(f"{m} ({losses[m]})" for m in bad[:_NAMED_MAX])
            more = f" and {len(bad) - _NAMED_MAX} more" if len(bad) > _NAMED_MAX else ""
            raise FatalCheck(
                f"step {step}: the loss is not finite in micro-batches {shown}{more}; the step was not applied. "
                "Lower the learning rate, lengthen the warm-up or clip gradients, and look at these batches"
            )
        if not all(map(math.isfinite, squares)):
            raise FatalCheck(
                f"step {step}: every loss is finite but the gradient is not; the step was not applied. "
                "Lower the learning rate or look for a division by zero in the backward pass"
            )

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
            )
        )
        self._ended = now

    # --------------------------------------------------------------------------------------------------------- update

    def _update(self, state: RankState, commit: Commit) -> None:
        """Apply the step to the regions held here; nothing can interrupt it but the end of the process."""
        self._body.pristine = False
        lr = lr_at(commit.step, settings=self._train.optimizer, steps=self._train.steps)
        with user_code():
            state.optimizer.update(self._body.reduced, lr=lr, scale=commit.scale, micro_batches=self._train.micro_batches)
        state.applied_step = commit.step
        state.params_step = -1 if self._plan.zero_stage and self._plan.size > 1 else commit.step

    def _gather(self) -> None:
        """The owners' updated params. In place: whoever is broken in here goes on with a copy of the vector."""
        flat = self._body.state.flat
        try:
            self._group.exchange(
                [(flat[i.start : i.stop], dst) for i, dst in self._params_out],
                [(flat[i.start : i.stop], src) for i, src in self._params_in],
                tag=_PARAMS_TAG,
            ).wait()
        except GroupBroken:
            self._body.drop_flat()
            raise


def autocast(body: Body) -> AbstractContextManager[object]:
    """bf16 arithmetic where the job asks for it."""
    if body.job.train.precision is Precision.BF16:
        return torch.autocast(device_type=body.device.type, dtype=torch.bfloat16)
    return nullcontext()


def _region(vector: Tensor, intervals: Intervals) -> Tensor:
    """The intervals one after the other: a view when there is one, else a copy."""
    if len(intervals) == 1:
        return vector[intervals[0].start : intervals[0].stop]
    return torch.cat([vector[i.start : i.stop] for i in intervals]) if intervals else vector[:0]


def _put_back(region: Tensor, vector: Tensor, intervals: Intervals) -> None:
    """The inverse of _region."""
    if len(intervals) < 2:
        return
    for i, part in zip(intervals, region.split([i.numel for i in intervals]), strict=True):
        vector[i.start : i.stop] = part
