"""How a rank comes by its state at the start of an epoch: from the seed, out of other ranks' memory, or from a
checkpoint.

Transfers follow the one global list of the Resume, so sender and receiver agree without talking. Data goes straight
between the flat vectors, a bounded number of bytes at a time, and each piece's sum travels after it: a flipped bit
stops the run and names the ranks. What a rank held before stays untouched until every rank has all it needs; only
then is the new layout the one that counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from orchestrator.core.plan.layout import Interval
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.core.reshard.recovery import Resume, Source, Transfer
from orchestrator.engine.checkpoint_read import load_checkpoint
from orchestrator.engine.control import Control
from orchestrator.engine.describe import build_seeded
from orchestrator.engine.digest import word_sum
from orchestrator.engine.groups.base import EpochGroup, GroupBroken
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.optim import ShardedOptimizer, lr_at
from orchestrator.engine.rank_state import Body, FatalCheck, RankState, user_code

PIECE_NUMEL = 1 << 21  # 8 MiB of fp32
WINDOW_BYTES = 64 << 20  # over all ranks; two windows are under way at a time
_HEADER_TAG, _DATA_TAG, _SUM_TAG = 1, 2, 3

View = Callable[[int, int], Tensor]
Scalars = dict[str, dict[str, Any]]


def restore(body: Body, *, plan: Plan, rank: int, group: EpochGroup, resume: Resume, control: Control) -> None:
    """Make `body.rank` the state of `rank` at `resume.step`. Raises GroupBroken, FatalCheck, UserError, BadCheckpoint."""
    control.phase("restoring", resume.step)
    if resume.source is Source.INIT:
        _from_seed(body, plan=plan, rank=rank)
    elif resume.source is Source.CHECKPOINT:
        _from_checkpoint(body, plan=plan, rank=rank, resume=resume)
    else:
        _from_memory(body, plan=plan, rank=rank, group=group, resume=resume, control=control)
    assert body.rank is not None
    body.state.restore_buffers()


def roll_forward(body: Body, resume: Resume) -> None:
    """Apply the committed step that this rank is prepared for but has not applied."""
    state, commit = body.rank, resume.commit
    if state is None or commit is None or commit.step != resume.step or state.applied_step == resume.step:
        return
    if state.applied_step != resume.step - 1 or state.prepared_step != resume.step:
        return  # it cannot; then it is listed as fresh
    settings, steps = body.job.train.optimizer, body.job.train.steps
    body.pristine = False
    with user_code():
        state.optimizer.update(
            body.reduced,
            lr=lr_at(resume.step, settings=settings, steps=steps),
            scale=commit.scale,
            micro_batches=body.job.train.micro_batches,
        )
    state.applied_step = resume.step
    state.params_step = resume.step if state.plan.zero_stage == 0 else -1
    state.commit = commit


def new_optimizer(body: Body, *, plan: Plan, rank: int) -> ShardedOptimizer:
    """For the regions that `plan` gives to `rank`, with no state yet."""
    with user_code():
        return ShardedOptimizer(
            task=body.task,
            settings=body.job.train.optimizer,
            state=body.state,
            keys=body.keys,
            intervals=plan.layout(OPTIMIZER).holdings[rank].everything,
            store=body.moments,
        )


def _from_seed(body: Body, *, plan: Plan, rank: int) -> None:
    body.fresh()
    if not body.pristine:
        with user_code():
            seeded = FlatState(build_seeded(body.task, seed=body.job.train.seed).to(body.device))
        body.state.rebind(seeded.flat)
        body.pristine = True
    body.rank = RankState(plan, rank, new_optimizer(body, plan=plan, rank=rank), 0, 0, 0, None)


def _from_checkpoint(body: Body, *, plan: Plan, rank: int, resume: Resume) -> None:
    body.fresh()
    body.pristine = False
    optimizer = new_optimizer(body, plan=plan, rank=rank)
    load_checkpoint(resume.checkpoint_uri, state=body.state, optimizer=optimizer, step=resume.step)
    body.rank = RankState(plan, rank, optimizer, resume.step, resume.step, resume.step, None, resume.step)


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
    wanted = plan.layout(OPTIMIZER).holdings[rank].everything
    if old is not None and old.optimizer.regions.intervals == wanted:
        optimizer = old.optimizer
    else:
        optimizer = new_optimizer(body, plan=plan, rank=rank)
        if old is not None:
            optimizer.keep_from(old.optimizer)
    receives_params = any(t.dst == rank and t.tensor == PARAMS for t in resume.transfers)
    if receives_params:
        body.pristine = False
        if old is not None:
            old.params_step = -1
    try:
        received = _move(
            group,
            resume.transfers if resume.step > 0 else tuple(t for t in resume.transfers if t.tensor == PARAMS),
            sources=_views(body.state, old.optimizer if old is not None else None),
            targets=_views(body.state, optimizer),
            scalars=old.optimizer.scalars() if old is not None else {},
            control=control,
        )
        if optimizer is not (old.optimizer if old is not None else None) and resume.step > 0:
            kept = old.optimizer.scalars() if old is not None else {}
            optimizer.install({**received, **kept})
        if old is None:  # what was received is held from here on, should the agreement break
            body.rank = RankState(plan, rank, optimizer, resume.step, resume.step, resume.step, resume.commit, -1)
        with control.comm():  # everybody has everything when this returns: what only the old layout needed may go
            done = _agree_on_done(group, old.done_step if old is not None else None, resume.step, body.device)
    except GroupBroken:
        if receives_params:
            body.drop_flat()
        raise
    commit = resume.commit if resume.commit is not None else (old.commit if old is not None else None)
    if old is not None and old.optimizer is not optimizer:
        body.moments.give(old.optimizer.buffers.values())
    body.rank = RankState(plan, rank, optimizer, resume.step, resume.step, resume.step, commit, done)


def _agree_on_done(group: EpochGroup, done_step: int | None, step: int, device: torch.device) -> int:
    """`step` if every survivor has the digest, evaluation and checkpoint of that step behind it, else -1; a barrier too."""
    fresh = torch.iinfo(torch.int64).max
    told = torch.empty(group.size, dtype=torch.int64, device=device)
    group.all_gather_into(told, torch.tensor([fresh if done_step is None else done_step], dtype=torch.int64, device=device))
    return step if int(told.min()) >= step else -1


def _views(state: FlatState, optimizer: ShardedOptimizer | None) -> dict[str, list[View]]:
    views: dict[str, list[View]] = {PARAMS: [lambda lo, hi: state.flat[lo:hi]]}
    if optimizer is not None:
        views[OPTIMIZER] = [partial(optimizer.regions.view, b) for _, b in sorted(optimizer.buffers.items())]
    return views


@dataclass(frozen=True, slots=True)
class _Piece:
    tensor: str
    src: int
    dst: int
    start: int
    stop: int


def _cut(transfers: Sequence[Transfer]) -> list[_Piece]:
    return [
        _Piece(t.tensor, t.src, t.dst, lo, min(t.stop, lo + PIECE_NUMEL))
        for t in transfers
        for lo in range(t.start, t.stop, PIECE_NUMEL)
    ]


def _windows(pieces: Sequence[_Piece], moments: int) -> list[list[_Piece]]:
    """The same cut on every rank, as the list is the same."""
    out: list[list[_Piece]] = []
    room = 0
    for piece in pieces:
        cost = 4 * (piece.stop - piece.start) * (moments if piece.tensor == OPTIMIZER else 1)
        if not out or room < cost:
            out.append([])
            room = WINDOW_BYTES
        out[-1].append(piece)
        room -= cost
    return out


def _move(
    group: EpochGroup,
    transfers: Sequence[Transfer],
    *,
    sources: Mapping[str, Sequence[View]],
    targets: Mapping[str, Sequence[View]],
    scalars: Scalars,
    control: Control,
) -> Scalars:
    """Carry out the transfers; returns the optimizer's scalars that came with them."""
    rank = group.rank
    pieces = _cut(transfers)
    device = targets[PARAMS][0](0, 1).device
    sums_out: dict[int, list[int]] = {}
    sums_in: dict[int, list[int]] = {}
    with control.comm():
        received = _exchange_scalars(group, pieces, scalars, device)
        pending = None
        for window in _windows(pieces, len(targets.get(OPTIMIZER, ()))):
            sends = [(v(p.start, p.stop), p.dst) for p in window if p.src == rank for v in sources[p.tensor]]
            recvs = [(v(p.start, p.stop), p.src) for p in window if p.dst == rank for v in targets[p.tensor]]
            handle = group.exchange(sends, recvs, tag=_DATA_TAG)
            for tensor, dst in sends:  # while they travel
                sums_out.setdefault(dst, []).append(word_sum(tensor))
            if pending is not None:
                _finish(pending, sums_in)
                control.advance()
            pending = (handle, recvs)
        if pending is not None:
            _finish(pending, sums_in)
        _compare(group, pieces, sums_out, sums_in, device)
    return received


def _finish(pending: Any, sums: dict[int, list[int]]) -> None:
    handle, recvs = pending
    handle.wait()
    for tensor, src in recvs:
        sums.setdefault(src, []).append(word_sum(tensor))


def _exchange_scalars(group: EpochGroup, pieces: Sequence[_Piece], scalars: Scalars, device: torch.device) -> Scalars:
    """The optimizer's scalars from everyone who sends me optimizer state."""
    to = sorted({p.dst for p in pieces if p.src == group.rank and p.tensor == OPTIMIZER})
    frm = sorted({p.src for p in pieces if p.dst == group.rank and p.tensor == OPTIMIZER})
    text = torch.frombuffer(bytearray(json.dumps(scalars).encode()), dtype=torch.uint8).to(device)
    sizes = {src: torch.zeros(1, dtype=torch.int64, device=device) for src in frm}
    length = torch.tensor([text.numel()], dtype=torch.int64, device=device)
    group.exchange([(length, d) for d in to], [(t, s) for s, t in sizes.items()], tag=_HEADER_TAG).wait()
    texts = {src: torch.empty(int(size), dtype=torch.uint8, device=device) for src, size in sizes.items()}
    group.exchange([(text, d) for d in to], [(t, s) for s, t in texts.items()], tag=_HEADER_TAG).wait()
    merged: Scalars = {}
    for data in texts.values():
        merged.update(json.loads(bytes(data.cpu().numpy())))
    return merged


def _compare(
    group: EpochGroup,
    pieces: Sequence[_Piece],
    sums_out: Mapping[int, Sequence[int]],
    sums_in: Mapping[int, Sequence[int]],
    device: torch.device,
) -> None:
    told = {src: torch.zeros(len(sums), dtype=torch.int64, device=device) for src, sums in sorted(sums_in.items())}
    sends = [(torch.tensor(sums, dtype=torch.int64, device=device), dst) for dst, sums in sorted(sums_out.items())]
    group.exchange(sends, [(t, src) for src, t in told.items()], tag=_SUM_TAG).wait()
    for src, expected in told.items():
        wrong = [k for k, (a, b) in enumerate(zip(expected.tolist(), sums_in[src], strict=True)) if a != b]
        if wrong:
            regions = sorted({(p.start, p.stop) for p in pieces if p.src == src and p.dst == group.rank})
            raise FatalCheck(
                f"state that rank {src} sent to rank {group.rank} arrived changed: {len(wrong)} of {len(expected)} "
                f"pieces have another sum (regions {Interval(*regions[0])} ...)"
            )
