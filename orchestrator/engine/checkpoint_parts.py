"""What of a checkpoint one rank writes: boxes of whole tensors, whatever the plan.

A rank owns stretches of the flat vector; a checkpoint has tensors under their own names and in their own shapes. A stretch of a
tensor's elements (in row-major order) is at most 2 * ndim - 1 boxes, and a box of a tensor coordinate's part is a box of the
whole tensor. What every tensor coordinate has whole, coordinate 0 writes. A twin is its first tensor under another name: only
the first is stored, optimizer state included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.core.plan.layout import Interval, Intervals, intersect
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.engine.checkpoint_files import StoredTensor
from orchestrator.engine.entries import Entry, Kind
from orchestrator.engine.extents import Extents
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.optim import Scalars

MODEL = "model"
OPTIM = "optim"
STRETCH_NUMEL_MAX = 16 << 20  # a reader loads a stored box whole, however little of it it wants

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets, sizes
Stage = Callable[[str, int, int, torch.dtype], Tensor]  # (name, first element, elements, dtype) -> memory to copy into


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of one tensor, as this rank writes it."""

    fqn: str
    offsets: tuple[int, ...]
    size: tuple[int, ...]  # of the whole tensor
    data: Tensor


def boxes(shape: Sequence[int], lo: int, hi: int) -> Iterator[Box]:
    """Elements [lo, hi) of a row-major tensor as boxes, in order; each is contiguous in memory."""
    if lo >= hi:
        return
    if not shape:
        yield (), ()
        return
    rest = tuple(shape[1:])
    inner = math.prod(rest)
    first, last = lo // inner, hi // inner
    head, tail = lo % inner, hi % inner
    if first == last:
        yield from _in_row(first, boxes(rest, head, tail))
        return
    if head:
        yield from _in_row(first, boxes(rest, head, inner))
        first += 1
    if first < last:
        yield (first, *(0,) * len(rest)), (last - first, *rest)
    yield from _in_row(last, boxes(rest, 0, tail))


def _in_row(row: int, inside: Iterator[Box]) -> Iterator[Box]:
    for offsets, sizes in inside:
        yield (row, *offsets), (1, *sizes)


def boxes_of(entry: Entry, lo: int, hi: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int, int]]:
    """[lo, hi) of the vector, inside the entry: (offsets in the whole tensor, sizes, start, stop), the latter from `lo` on."""
    at = 0
    for offsets, sizes in boxes(entry.shape, lo - entry.start, hi - entry.start):
        if entry.cut_dim >= 0:
            moved = list(offsets)
            moved[entry.cut_dim] += entry.offset
            offsets = tuple(moved)
        numel = math.prod(sizes)
        yield offsets, sizes, at, at + numel
        at += numel


def collect(
    *, plan: Plan, rank: int, step: int, state: FlatState, moments: Mapping[str, Extents], scalars: Scalars, stage: Stage
) -> tuple[list[Piece], Scalars]:
    """Copies of this rank's share (in memory from `stage`), and the scalars of the parameters that begin in it.

    Raises KeyError when the rank does not hold what the plan makes it owner of.
    """
    owned_params = plan.layout(PARAMS).holdings[rank].primary
    owned_state = plan.layout(OPTIMIZER).holdings[rank].primary
    initial = state.counters
    pieces: list[Piece] = []
    kept: Scalars = {}
    for e in state.entries:
        if e.twin or (e.cut_dim < 0 and e.coordinate > 0):
            continue
        for lo, hi in _stretches(e, owned_params):
            copied = _copy(state.params, lo, hi, stage(f"{MODEL}.{e.name}", lo, hi - lo, torch.float32))
            if e.kind is Kind.COUNTER:
                copied = initial[e.name].cpu().view(1) + copied.round().to(initial[e.name].dtype)
            pieces += _pieces(f"{MODEL}.{e.name}", e, lo, hi, copied)
        if e.kind is not Kind.PARAM or step == 0:
            continue
        if any(i.start <= e.start < i.stop for i in owned_state) and e.coordinate == 0 and e.name in scalars:
            kept[e.name] = scalars[e.name]
        for lo, hi in _stretches(e, owned_state):
            for key, extents in moments.items():
                fqn = f"{OPTIM}.{e.name}.{key}"
                pieces += _pieces(fqn, e, lo, hi, _copy(extents, lo, hi, stage(fqn, lo, hi - lo, extents.dtype)))
    pieces += [p for name, values in kept.items() for p in _scalar_pieces(name, values)]
    if rank == 0:
        pieces += _constants(state)
    return pieces, kept


def _stretches(entry: Entry, owned: Intervals) -> Iterator[tuple[int, int]]:
    if entry.start == entry.stop:
        return
    for i in intersect((Interval(entry.start, entry.stop),), owned):
        for lo in range(i.start, i.stop, STRETCH_NUMEL_MAX):
            yield lo, min(i.stop, lo + STRETCH_NUMEL_MAX)


def _copy(extents: Extents, start: int, stop: int, memory: Tensor) -> Tensor:
    for lo, hi, view in extents.pieces(start, stop):
        memory[lo - start : hi - start].copy_(view.detach())
    return memory


def _pieces(fqn: str, entry: Entry, lo: int, hi: int, values: Tensor) -> list[Piece]:
    whole = tuple(entry.whole)
    return [Piece(fqn, o, whole, values[a:b].view(sizes)) for o, sizes, a, b in boxes_of(entry, lo, hi)]


def _scalar_pieces(name: str, values: Mapping[str, Mapping[str, object]]) -> list[Piece]:
    """For other readers: ours takes scalars from the manifest. What is no number (None) is there alone."""
    out = []
    for key, form in values.items():
        dtype = getattr(torch, str(form["dtype"])) if form["dtype"] else None
        if isinstance(form["value"], bool | int | float):
            out.append(Piece(f"{OPTIM}.{name}.{key}", (), (), torch.tensor(form["value"], dtype=dtype)))
    return out


def _constants(state: FlatState) -> list[Piece]:
    """Frozen params, constant buffers, tensors of no elements: no state of ours, but a reader of the checkpoint wants them."""
    known = {e.name for e in state.entries if e.whole.numel()} | set(aliases(state))
    empty = {e.name: e.whole for e in state.entries if not e.whole.numel()}  # a parameter that is released forgets its shape
    values = {n: v for n, v in state.module.state_dict().items() if n not in known and isinstance(v, Tensor)}
    copies = {n: torch.empty(empty[n]) if n in empty else v.detach().cpu().clone() for n, v in values.items()}
    return [Piece(f"{MODEL}.{n}", (0,) * v.dim(), tuple(v.shape), v) for n, v in copies.items()]


def aliases(state: FlatState) -> dict[str, str]:
    """Names under which a stored tensor appears in the state dict once more: tied weights, inside a layer or across layers."""
    tensors = {n: v for n, v in state.module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    stored = {s.name: s.twin or s.name for s in state.shapes}
    first: dict[int, str] = {id(tensors[name]): to for name, to in stored.items() if name in tensors}
    out = {}
    for name, value in tensors.items():
        to = first.setdefault(id(value), name)
        if to != name:
            out[name] = to
    return out


def stored_tensors(state: FlatState) -> tuple[StoredTensor, ...]:
    """For the manifest."""
    initial = {name: int(value) for name, value in state.counters.items()}
    kinds = {e.name: e.kind for e in state.entries}
    return tuple(
        StoredTensor(s.name, s.shape, kinds[s.name].value, s.layer, s.cut_dim, s.twin, initial.get(s.name, 0))
        for s in state.shapes
    )
