"""How a stage's layers get their parameters and where their gradients go, for each way of keeping the state.

`Resident`: parameters stay (ZeRO-0 and 1), each micro-batch's gradient is added to the rank's partial sums, which are reduced at
the end of the step. `Streaming` (ZeRO-2 and 3): the replicas compute micro-batches in rounds; as soon as a layer's gradient of a
round is there, its parts travel to their owners, who add them in the canonical order and keep their own part only. Under ZeRO-3
the parameters of a layer are gathered from their owners before it runs and given up after it.

The layered runner calls enter and leave around every use of a layer and open and done around a micro-batch's gradients, in the
same order on all replicas.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orchestrator.core.plan.layout import Holding, Interval, intersect, subtract
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.engine.control import Control
from orchestrator.engine.extents import Extents
from orchestrator.engine.groups.base import EpochGroup, Handle
from orchestrator.engine.groups.part import Part
from orchestrator.engine.model_state import Changes
from orchestrator.engine.optim import Reduced
from orchestrator.engine.rank_state import Body, StepWork
from orchestrator.engine.tree import Folder

_STREAM_TAG = 6
_GATHER_TAG = 7
_ADDING = ("backward", "weight")  # uses of a layer after which its gradient is complete
_RUNNING = ("forward", "recompute", "eval")


class Resident:
    """Parameters are views of the state's extents."""

    by_layer = False

    def __init__(self, body: Body, *, plan: Plan, rank: int) -> None:
        self._body, self._plan = body, plan
        self._layers = {s: range(plan.stages[s].first, plan.stages[s].last) for s in plan.stages_of(rank)}
        self._changes: dict[tuple[int, int], Changes] = {}
        self._work: StepWork | None = None

    def begin(self, work: StepWork) -> None:
        """Gradients go into this from here on."""
        self._work = work
        self._changes.clear()

    def enter(self, layer: int, index: int, kind: str) -> None:
        """Parameters are here always; buffers begin with the step's values."""
        if kind in _RUNNING and self._body.state.has_buffers:
            bounds = self._body.state.bounds(layer)
            self._body.state.restore_buffers(layer, self._body.state.params.view(bounds.start, bounds.stop))

    def leave(self, layer: int, index: int, kind: str) -> None:
        """What the forward pass did to the buffers waits for the gradient."""
        if kind == "forward" and self._body.state.has_buffers:
            bounds = self._body.state.bounds(layer)
            values = self._body.state.params.view(bounds.start, bounds.stop)
            self._changes[layer, index] = self._body.state.buffer_changes(layer, values)

    def open(self, stage: int, index: int) -> None:
        """Gradients of this micro-batch are added to the right partial sum."""
        assert self._work is not None
        number, buffer = self._work.sums[stage].begin()
        assert number == self._work.mine[index], f"micro-batch {number} is next, not {self._work.mine[index]}"
        self._body.state.bind_grads(self._layers[stage], self._start(stage), buffer)

    def done(self, stage: int, index: int) -> None:
        """The micro-batch is complete here."""
        assert self._work is not None
        state = self._body.state
        state.check_grads(self._layers[stage])
        buffer = self._work.sums[stage].current()
        for layer in self._layers[stage]:
            _add(self._changes.pop((layer, index), []), buffer, self._start(stage))
        self._work.sums[stage].commit()

    def _start(self, stage: int) -> int:
        return self._body.state.bounds(self._layers[stage].start).start


class Streaming:
    """Gradients, and under ZeRO-3 parameters too, are where they are needed only while they are."""

    by_layer = True

    def __init__(self, body: Body, *, plan: Plan, rank: int, group: EpochGroup, control: Control) -> None:
        self._body, self._plan, self._control = body, plan, control
        self._peers = Part(group, plan.replicas(rank))
        self._gathers = plan.zero_stage >= 3
        layers = [n for s in plan.stages_of(rank) for n in range(plan.stages[s].first, plan.stages[s].last)]
        owned = [plan.layout(OPTIMIZER).holdings[r].primary for r in self._peers.ranks]
        self._bounds = {n: body.state.bounds(n) for n in layers}
        self._owners = {n: [intersect(o, (self._bounds[n],)) for o in owned] for n in layers}
        self._mine: Sequence[int | None] = ()
        self._numbers: list[Sequence[int | None]] = []
        self._folders: dict[int, Folder[Tensor]] = {}
        self._values: dict[int, Tensor] = {}
        self._open: dict[int, Tensor] = {}
        self._changes: dict[tuple[int, int], Changes] = {}
        self._pending: _Streamed | None = None
        if self._gathers:
            params = plan.layout(PARAMS).holdings
            self._sends = {n: self._outgoing(n, params, rank) for n in layers}
            self._recvs = {n: self._incoming(n, params, rank) for n in layers}

    def _outgoing(self, layer: int, params: Sequence[Holding], rank: int) -> list[tuple[Interval, int]]:
        mine = intersect(params[rank].primary, (self._bounds[layer],))
        peers = enumerate(self._peers.ranks)
        return [(i, p) for p, r in peers if r != rank for i in subtract(mine, params[r].everything)]

    def _incoming(self, layer: int, params: Sequence[Holding], rank: int) -> list[tuple[Interval, int]]:
        have = params[rank].everything
        peers = enumerate(self._peers.ranks)
        return [
            (i, p) for p, r in peers if r != rank for i in subtract(intersect(params[r].primary, (self._bounds[layer],)), have)
        ]

    # -------------------------------------------------------------------------------------------------------- the step

    def begin(self, numbers: Sequence[Sequence[int | None]], total: int) -> None:
        """A step: `numbers[peer][index]` is the micro-batch that a replica computes in a round, None when it has none."""
        self._numbers = list(numbers)
        self._mine = numbers[self._peers.rank]
        self._folders = {n: Folder(total, self._add) for n in self._bounds}
        self._changes.clear()

    def _add(self, left: Tensor, right: Tensor) -> Tensor:
        left.add_(right)
        self._body.pool.give(right)
        return left

    def enter(self, layer: int, index: int, kind: str) -> None:
        """Gather the layer's parameters if they are not here; bind a buffer for its gradients."""
        if self._gathers:
            self._gather(layer)
        if self._mine[index] is None:
            return
        if kind in _RUNNING and self._body.state.has_buffers:
            self._body.state.restore_buffers(layer, self._layer_values(layer))
        if kind in _ADDING:
            bounds = self._bounds[layer]
            buffer = self._open[layer] = self._body.pool.take(bounds.numel).zero_()
            self._body.state.bind_grads((layer,), bounds.start, buffer)

    def leave(self, layer: int, index: int, kind: str) -> None:
        """Send the gradient on its way; give up gathered parameters."""
        if self._mine[index] is not None:
            if kind == "forward" and self._body.state.has_buffers:
                self._changes[layer, index] = self._body.state.buffer_changes(layer, self._layer_values(layer))
            if kind in _ADDING:
                self._body.state.check_grads((layer,))
                _add(self._changes.pop((layer, index), []), self._open[layer], self._bounds[layer].start)
        if kind in _ADDING:
            self._stream(layer, index)
        if self._gathers and kind != "recompute":  # its backward follows at once
            self._body.state.release_layer(layer)
            self._body.pool.give(self._values.pop(layer))

    def open(self, stage: int, index: int) -> None:
        """Nothing: buffers are bound layer by layer."""

    def done(self, stage: int, index: int) -> None:
        """Nothing: gradients have gone layer by layer."""

    def finish(self, reduced: Reduced) -> None:
        """All gradients of the step: into the regions that this rank owns."""
        self._finish_pending()
        for layer, folder in self._folders.items():
            mine = self._owners[layer][self._peers.rank]
            if not mine:
                continue
            total = folder.result()
            at = 0
            for i in mine:
                reduced.view(i.start, i.stop).copy_(total[at : at + i.numel])
                at += i.numel
            self._body.pool.give(total)
        self._folders = {}

    # ----------------------------------------------------------------------------------------------------------- moving

    def _layer_values(self, layer: int) -> Tensor:
        if self._gathers:
            return self._values[layer]
        bounds = self._bounds[layer]
        return self._body.state.params.view(bounds.start, bounds.stop)

    def _gather(self, layer: int) -> None:
        if layer in self._values:
            return
        bounds = self._bounds[layer]
        values, base = self._body.pool.take(bounds.numel), bounds.start
        held = self._body.state.params
        sends = [(_whole(held, i), p) for i, p in self._sends[layer]]
        recvs = [(values[i.start - base : i.stop - base], p) for i, p in self._recvs[layer]]
        with self._control.comm():
            pending = self._peers.exchange(sends, recvs, tag=_GATHER_TAG)
            for i in intersect(held.intervals, (self._bounds[layer],)):
                for lo, hi, view in held.pieces(i.start, i.stop):
                    values[lo - base : hi - base] = view
            pending.wait()
        self._values[layer] = values
        self._body.state.bind_layer(layer, values)

    def _stream(self, layer: int, index: int) -> None:
        rank = self._peers.rank
        buffer = self._open.pop(layer, None)
        base = self._bounds[layer].start
        owners = self._owners[layer]
        sends = []
        if buffer is not None:
            for peer, mine in enumerate(owners):
                if peer != rank:
                    sends += [(buffer[i.start - base : i.stop - base], peer) for i in mine]
        mine = owners[rank]
        numel = sum(i.numel for i in mine)
        parts: dict[int, Tensor] = {}
        recvs = []
        for peer in range(self._peers.size):
            if self._numbers[peer][index] is None or not numel:
                continue
            parts[peer] = self._body.pool.take(numel)
            at = 0
            for i in mine:
                if peer == rank:
                    assert buffer is not None
                    parts[peer][at : at + i.numel] = buffer[i.start - base : i.stop - base]
                else:
                    recvs.append((parts[peer][at : at + i.numel], peer))
                at += i.numel
        with self._control.comm():
            handle = self._peers.exchange(sends, recvs, tag=_STREAM_TAG)
        self._finish_pending()
        self._pending = _Streamed(handle, layer, index, parts, buffer)

    def _finish_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        with self._control.comm():
            pending.handle.wait()
        for peer in range(self._peers.size):
            number = self._numbers[peer][pending.index]
            if number is not None and peer in pending.parts:
                self._folders[pending.layer].push((number, number + 1), pending.parts[peer])
        if pending.buffer is not None:
            self._body.pool.give(pending.buffer)


class _Streamed:
    """One layer's gradient of one round, under way."""

    def __init__(self, handle: Handle, layer: int, index: int, parts: dict[int, Tensor], buffer: Tensor | None) -> None:
        self.handle, self.layer, self.index, self.parts, self.buffer = handle, layer, index, parts, buffer


def _add(changes: Changes, buffer: Tensor, start: int) -> None:
    """Unscaled: adding a product would round it only now and then."""
    for e, change in changes:
        buffer[e.start - start : e.stop - start].view(e.shape).add_(change)


def _whole(held: Extents, interval: Interval) -> Tensor:
    """The interval in one piece: a view where memory is not cut inside it."""
    pieces = [view for _, _, view in held.pieces(interval.start, interval.stop)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
