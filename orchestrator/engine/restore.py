"""How a rank comes by its state at the start of an epoch: from the seed, out of other ranks' memory, or from a checkpoint.

What a rank held before stays untouched until every rank has all it needs; what both plans give it stays where it lies. Transfers
follow the one global list of the Resume (transfer.py carries them out and verifies every piece). A rank that breaks out of a
reshard after all has arrived, but before it knows that everybody is that far, holds both: what it had and what it got.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orchestrator.core.graph.space import runs
from orchestrator.core.plan.layout import Interval, Intervals, intersect, merge, subtract
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan
from orchestrator.core.reshard.recovery import Commit, Resume, Source, Transfer
from orchestrator.engine.checkpoint_read import load_checkpoint
from orchestrator.engine.control import Control
from orchestrator.engine.describe import build_seeded, lay_out_task
from orchestrator.engine.extents import Extents
from orchestrator.engine.groups.base import EpochGroup, GroupBroken
from orchestrator.engine.optim import Scalars, ShardedOptimizer, lr_at
from orchestrator.engine.rank_state import Body, FatalCheck, RankState, user_code
from orchestrator.engine.transfer import MoveReport, TransferCorrupt, move

_HEADER_TAG = 1


def restore(body: Body, *, plan: Plan, rank: int, group: EpochGroup, resume: Resume, control: Control) -> None:
    """Make `body.rank` the state of `rank` at `resume.step`. Raises GroupBroken, FatalCheck, UserError, BadCheckpoint."""
    control.phase("restoring", resume.step)
    if resume.source is Source.INIT:
        _from_seed(body, plan=plan, rank=rank)
    elif resume.source is Source.CHECKPOINT:
        _from_checkpoint(body, plan=plan, rank=rank, resume=resume)
    else:
        _from_memory(body, plan=plan, rank=rank, group=group, resume=resume, control=control)
    body.state.restore_all_buffers(body.bound_layers)


def roll_forward(body: Body, resume: Resume) -> None:
    """Apply the committed step that this rank is prepared for but has not applied."""
    state, commit = body.rank, resume.commit
    if state is None or commit is None or commit.step != resume.step or state.applied_step == resume.step:
        return
    if state.applied_step != resume.step - 1 or state.prepared_step != resume.step or state.optimizer is None:
        return  # it cannot; then it is listed as fresh
    apply_commit(body, state, commit)


def apply_commit(body: Body, state: RankState, commit: Commit) -> None:
    """The update of a committed step, on what this rank holds; nothing can interrupt it but the end of the process."""
    assert state.optimizer is not None
    if not commit.skipped:
        train = body.job.train
        with user_code():
            state.optimizer.update(
                body.reduced(state.holds),
                lr=lr_at(commit.step, settings=train.optimizer, steps=train.steps),
                scale=commit.scale,
                micro_batches=train.micro_batches,
            )
    state.applied_step = commit.step
    needs_others = bool(subtract(body.state.params.intervals, state.holds))
    if not needs_others or (commit.skipped and state.params_step == commit.step - 1):
        state.params_step = commit.step
    else:
        state.params_step = -1
    state.commit = commit


def new_optimizer(body: Body, holds: Intervals, moments: Mapping[str, Extents], scalars: Scalars | None) -> ShardedOptimizer:
    """Over these regions and this memory; without scalars it has no state yet."""
    with user_code():
        return ShardedOptimizer(
            task=body.task,
            settings=body.job.train.optimizer,
            state=body.state,
            intervals=holds,
            moments=moments,
            scalars=scalars,
        )


def _holds(plan: Plan, rank: int) -> Intervals:
    return plan.layout(OPTIMIZER).holdings[rank].everything


def _place(body: Body, plan: Plan, rank: int) -> None:
    """Take the plan's tensor coordinate; the state may be that of the seed afterwards, in the uncut model's vector."""
    degree, coordinate = plan.axis(TENSOR), plan.coordinates(rank)[2]
    body.as_coordinate(degree=degree, coordinate=coordinate)


# ------------------------------------------------------------------------------------------------ from seed and checkpoint


def _from_seed(body: Body, *, plan: Plan, rank: int) -> None:
    body.fresh()
    _place(body, plan, rank)
    if body.pristine:
        serial, whole = body.state.params, plan.axis(TENSOR) == 1
    else:
        with user_code():
            module = build_seeded(body.task, seed=body.job.train.seed).to(body.device)
            serial, whole = lay_out_task(body.task, module).params, False
    body.place_tensor()
    target = body.target_params(plan, rank, serial if whole else Extents(torch.float32, body.device))
    if not whole:
        _copy_runs(target, serial, _serial_runs(body, target.intervals))
    body.adopt(target, body.layers_of(plan, rank))
    body.pristine = False
    holds = _holds(plan, rank)
    moments = body.new_moments(holds)
    body.rank = RankState(plan, rank, holds, moments, new_optimizer(body, holds, moments, None), {}, 0, 0, 0, None, -1)


def _serial_runs(body: Body, wanted: Intervals) -> list[tuple[int, int, int]]:
    """(start here, start in the uncut vector, elements) of what is wanted."""
    if body.state.degree == 1:
        return [(i.start, i.start, i.numel) for i in wanted]
    out = []
    for start, serial, numel in runs(body.graph, body.state.degree):
        for i in intersect((Interval(start, start + numel),), wanted):
            out.append((i.start, serial + i.start - start, i.numel))
    return out


def _copy_runs(target: Extents, source: Extents, found: Sequence[tuple[int, int, int]]) -> None:
    """Elements from [b, b + n) of source to [a, a + n) of target, for each (a, b, n)."""
    for a, b, n in found:
        for lo, hi, view in source.pieces(b, b + n):
            for x, y, out in target.pieces(a + lo - b, a + hi - b):
                out.copy_(view[x - a - lo + b : y - a - lo + b])


def _from_checkpoint(body: Body, *, plan: Plan, rank: int, resume: Resume) -> None:
    body.fresh()
    _place(body, plan, rank)
    body.pristine = False
    body.place_tensor()
    have = body.state.params if body.state.degree == 1 else Extents(torch.float32, body.device)
    target = body.target_params(plan, rank, have)
    body.adopt(target, body.layers_of(plan, rank))
    holds = _holds(plan, rank)
    moments = body.new_moments(holds)
    loaded = load_checkpoint(resume.checkpoint_uri, state=body.state, params=target, moments=moments, step=resume.step)
    optimizer = new_optimizer(body, holds, moments, loaded.scalars or None)
    step = resume.step
    commit = Commit(step, 0.0, 0.0, 1.0, False, loaded.usual_loss) if step > 0 else None
    body.rank = RankState(plan, rank, holds, moments, optimizer, {}, step, step, step, commit, step)


# ------------------------------------------------------------------------------------------------------------ from memory


def _from_memory(body: Body, *, plan: Plan, rank: int, group: EpochGroup, resume: Resume, control: Control) -> None:
    if rank in resume.fresh or body.rank is None:
        body.fresh()
    else:
        roll_forward(body, resume)
    old = body.rank
    if old is None and rank not in resume.fresh:
        raise FatalCheck(f"rank {rank} of epoch {plan.epoch} is expected to hold state at step {resume.step} and has none")
    if old is not None and old.applied_step != resume.step:
        raise FatalCheck(f"rank {rank} holds step {old.applied_step}, epoch {plan.epoch} resumes at {resume.step}")
    had = _Had(body, old)
    respaced = had.degree != plan.axis(TENSOR)
    built_before = body.state
    _place(body, plan, rank)
    body.place_tensor()
    keep = Extents(torch.float32, body.device) if respaced else had.params
    target = body.target_params(plan, rank, keep)
    holds = _holds(plan, rank)
    kept = {} if respaced or old is None else had.moments
    kept_holds: Intervals = () if respaced else had.holds
    fresh_memory = body.new_moments(subtract(holds, kept_holds), zero=resume.step == 0)  # else all of it is received
    moments = {key: kept[key].merged_with(e) if key in kept else e for key, e in fresh_memory.items()}
    incoming = merge(Interval(t.start, t.stop) for t in resume.transfers if t.dst == rank and t.tensor == PARAMS)
    body.pristine = False
    torn = intersect(had.params.intervals, incoming) if not respaced else ()  # stale params, received over in place
    try:
        transfers = resume.transfers if resume.step > 0 else tuple(t for t in resume.transfers if t.tensor == PARAMS)
        with control.comm():
            told = _exchange_scalars(group, transfers, had.scalars, body.device)
        keys = [key for key, _ in body.keys.elementwise]
        report = move(
            group,
            transfers,
            rank=rank,
            nodes=[s.node_id for s in plan.seats],
            sources={PARAMS: [had.params], OPTIMIZER: [had.moments[k] for k in keys if k in had.moments]},
            targets={PARAMS: [target], OPTIMIZER: [moments[k] for k in keys]},
            control=control,
        )
        _tell(report, rank)
    except TransferCorrupt as error:
        raise FatalCheck(str(error)) from error
    except GroupBroken:
        if body.state is built_before:
            body.renew(torn)
        else:  # the new module has no state yet, and the old one is gone
            body.adopt(Extents(torch.float32, body.device), ())
            if old is not None:
                had.goes_on_in(old)
        raise
    scalars = {**told, **had.scalars} if resume.step > 0 else {}
    commit = resume.commit if resume.commit is not None else (old.commit if old is not None else None)
    left_params = None if respaced or old is None else had.current()
    if left_params is not None:
        left_params.drop(target.intervals)
    body.adopt(target, body.layers_of(plan, rank))
    union = merge(holds + kept_holds)
    step, done = resume.step, old.done_step if old is not None else None
    body.rank = RankState(
        plan, rank, union, moments, None, scalars, step, step, step, commit, -1 if done is None else done, left_params
    )
    control.phase("agreeing")
    with control.comm():  # everybody has everything when this returns: what only the old layout needed may go
        done = _agree_on_done(group, done, step, body.device)
    for extents in moments.values():
        for tensor in extents.drop(subtract(union, holds)):
            body.pages.give(tensor)
    optimizer = new_optimizer(body, holds, moments, scalars or None)
    body.rank = RankState(plan, rank, holds, moments, optimizer, {}, step, step, step, commit, done)


class _Had:
    """What this worker holds before a reshard, as far as it is the state of the step that the epoch resumes at."""

    def __init__(self, body: Body, old: RankState | None) -> None:
        left = old.left_params if old is not None else None
        # Without a rank the params are memory only: nothing in it is sent.
        self.params = body.state.params if left is None else body.state.params.merged_with(left)
        self.degree = old.tensor if old is not None else body.state.degree
        self.moments: dict[str, Extents] = old.moments if old is not None else {}
        self.holds: Intervals = old.holds if old is not None else ()
        self.scalars: Scalars = old.latest_scalars() if old is not None else {}
        # What a broken gather has left behind is of the step before, but for what this rank has updated itself.
        self._torn = old is not None and old.params_step != old.applied_step

    def current(self) -> Extents:
        """Those of the params that are of this step, in the same memory."""
        out = self.params.merged_with(Extents(self.params.dtype, self.params.device))
        if self._torn:
            out.drop(subtract(out.intervals, self.holds))
        return out

    def goes_on_in(self, old: RankState) -> None:
        """The module that it was the state of is gone; it is still there to be moved."""
        old.left_params, old.params_step = self.current(), old.applied_step
        old.optimizer, old.scalars = None, self.scalars


def _tell(report: MoveReport, rank: int) -> None:
    """In the worker's log."""
    if report.bytes_received or report.bytes_sent:
        mib = 1 << 20
        print(
            f"rank {rank}: state moved in {report.seconds * 1e3:.0f} ms: {report.bytes_received / mib:.1f} MiB received "
            f"({report.received_local / mib:.1f} out of local memory), {report.bytes_sent / mib:.1f} MiB sent, "
            f"{report.refetched} part(s) fetched again, peak extra memory {report.peak_extra_bytes / mib:.1f} MiB",
            file=sys.stderr,
        )


def _agree_on_done(group: EpochGroup, done_step: int | None, step: int, device: torch.device) -> int:
    """`step` if every survivor has the digest, evaluation and checkpoint of that step behind it, else -1; a barrier too."""
    fresh = torch.iinfo(torch.int64).max
    told = torch.empty(group.size, dtype=torch.int64, device=device)
    group.all_gather_into(told, torch.tensor([fresh if done_step is None else done_step], dtype=torch.int64, device=device))
    return step if int(told.min()) >= step else -1


def _exchange_scalars(group: EpochGroup, transfers: Sequence[Transfer], scalars: Scalars, device: torch.device) -> Scalars:
    """The optimizer's scalars from everyone who sends me optimizer state."""
    to = sorted({t.dst for t in transfers if t.src == group.rank and t.tensor == OPTIMIZER and t.dst != group.rank})
    frm = sorted({t.src for t in transfers if t.dst == group.rank and t.tensor == OPTIMIZER and t.src != group.rank})
    text = torch.frombuffer(bytearray(json.dumps(scalars).encode()), dtype=torch.uint8).to(device)
    sizes = {src: torch.zeros(1, dtype=torch.int64, device=device) for src in frm}
    length = torch.tensor([text.numel()], dtype=torch.int64, device=device)
    group.exchange([(length, d) for d in to], [(t, s) for s, t in sizes.items()], tag=_HEADER_TAG).wait()
    texts = {src: torch.empty(int(size), dtype=torch.uint8, device=device) for src, size in sizes.items()}
    group.exchange([(text, d) for d in to], [(t, s) for s, t in texts.items()], tag=_HEADER_TAG).wait()
    merged: dict[str, dict[str, Any]] = {}
    for data in texts.values():
        merged.update(json.loads(bytes(data.cpu().numpy())))
    return merged
