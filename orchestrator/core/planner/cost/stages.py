"""What a run of layers costs on a kind of device: seconds of its passes, elements and bytes, each in O(1) from prefix sums.

All is linear in the units of a micro-batch, but for a constant per layer: a device does work w at flops * w / (w + half_flops),
so that a layer takes (w + half_flops) / flops, and it moves its bytes at the device's bandwidth. Where a layer was measured on
the type of device, that time is taken, and tensor parallelism leaves of it what it leaves of the FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from orchestrator.core.cluster.resources import DeviceType, Resources
from orchestrator.core.graph.costs import LayerCost, ModelCosts


@dataclass(frozen=True, slots=True)
class Passes:
    """Seconds of computing one micro-batch on a healthy device: forward (again, under recomputation) and backward."""

    forward_s: float
    backward_s: float


def reductions(kind: LayerCost, stream_bytes: float) -> int:
    """All-reduces over the tensor axis in a forward pass: each is of the residual stream (its bytes; 0: unknown), or of less."""
    if not kind.reduced_bytes:
        return 0
    return max(1, round(kind.reduced_bytes / stream_bytes)) if stream_bytes else 1


class Runs:
    """Sums and maxima over runs [first, last) of layers, on one tensor coordinate of a degree."""

    def __init__(self, costs: ModelCosts, tensor: int) -> None:
        self.tensor = tensor
        self.layers = len(costs.order)

        def left(whole: float, cut: float) -> float:
            return whole - cut + cut / tensor

        def sums(of: Callable[[LayerCost], float]) -> list[float]:
            values = [of(k) for k in costs.kinds]
            return list(accumulate((values[k] for k in costs.order), initial=0.0))

        def tops(of: Callable[[LayerCost], float]) -> list[list[float]]:
            values = [of(k) for k in costs.kinds]
            return _doublings([values[k] for k in costs.order])

        self._elements = sums(lambda k: left(k.params, k.cut_params) + k.buffers)
        self._kept = sums(lambda k: left(k.kept_bytes, k.cut_kept_bytes))
        self._boundary = sums(lambda k: k.boundary_bytes)
        self._reduced = sums(lambda k: k.reduced_bytes if tensor > 1 else 0.0)
        stream = max((costs.kinds[k].boundary_bytes for k in costs.order[:-1]), default=0.0)
        self._reductions = sums(lambda k: float(reductions(k, stream)) if tensor > 1 else 0.0)
        self._most_work = tops(lambda k: k.work_bytes)
        self._most_run = tops(lambda k: left(k.kept_bytes, k.cut_kept_bytes) + k.work_bytes)
        self._distinct: dict[tuple[int, int], float] = {}
        self._most_elements = tops(lambda k: left(k.params, k.cut_params) + k.buffers)

    def elements(self, first: int, last: int) -> float:
        """Of parameters and buffers."""
        return self._elements[last] - self._elements[first]

    def kept_bytes(self, first: int, last: int, *, recompute: bool) -> float:
        """Activations of one unit between its forward and its backward pass."""
        table = self._boundary if recompute else self._kept
        return table[last] - table[first]

    def work_bytes(self, first: int, last: int, *, recompute: bool) -> float:
        """The most that lives at once beyond that while a layer runs, for one unit."""
        return _top(self._most_run if recompute else self._most_work, first, last)

    def layer_elements(self, first: int, last: int) -> float:
        """Of the largest layer."""
        return _top(self._most_elements, first, last)

    def distinct_elements(self, first: int, last: int) -> float:
        """Sum over the different sizes of layers."""
        found = self._distinct.get((first, last))
        if found is None:
            found = self._distinct[first, last] = sum(set(self._most_elements[0][first:last]))
        return found

    def boundary_bytes(self, last: int) -> float:
        """What goes on to the stage that begins at `last`, for one unit."""
        return self._boundary[last] - self._boundary[last - 1]

    def reduced(self, first: int, last: int) -> tuple[float, int]:
        """(bytes of one unit, calls) that are all-reduced over the tensor axis in the forward pass, and again in the backward."""
        return self._reduced[last] - self._reduced[first], round(self._reductions[last] - self._reductions[first])


class Speeds:
    """Seconds of runs [first, last) of layers on one type of device, with one tensor degree."""

    def __init__(self, costs: ModelCosts, device: DeviceType, tensor: int) -> None:
        lines = [_line(k, device, tensor) for k in costs.kinds]
        columns = zip(*(lines[k] for k in costs.order), strict=True)
        self._forward, self._forward_fixed, self._backward, self._backward_fixed = (
            list(accumulate(c, initial=0.0)) for c in columns
        )

    def passes(self, first: int, last: int, units: int) -> Passes:
        """Of one micro-batch of so many units."""
        f, b = self._forward, self._backward
        g, c = self._forward_fixed, self._backward_fixed
        return Passes(
            (f[last] - f[first]) * units + g[last] - g[first],
            (b[last] - b[first]) * units + c[last] - c[first],
        )

    def sums(self, units: int) -> list[tuple[float, float]]:
        """Seconds of the passes over the first n layers, n from 0 on: forward, backward."""
        columns = zip(self._forward, self._forward_fixed, self._backward, self._backward_fixed, strict=True)
        return [(f * units + g, b * units + c) for f, g, b, c in columns]


def _line(kind: LayerCost, device: DeviceType, tensor: int) -> tuple[float, float, float, float]:
    """Seconds of a layer: (forward per unit, forward fixed, backward per unit, backward fixed)."""

    def left(whole: float, cut: float) -> float:
        return 1.0 - cut / whole + cut / whole / tensor if whole else 1.0

    forward, backward = left(kind.forward_flops, kind.cut_forward_flops), left(kind.backward_flops, kind.cut_backward_flops)
    measured = kind.timing(device.name)
    if measured is not None:
        return measured.forward_s * forward, 0.0, measured.backward_s * backward, 0.0
    moved = kind.moved_bytes * left(kind.kept_bytes, kind.cut_kept_bytes) / device.bandwidth
    fixed = device.half_flops / device.flops
    return (
        kind.forward_flops * forward / device.flops + moved,
        fixed if kind.forward_flops else 0.0,
        kind.backward_flops * backward / device.flops + 2 * moved,
        fixed if kind.backward_flops else 0.0,
    )


def _doublings(values: Sequence[float]) -> list[list[float]]:
    """Row j holds the maximum of each 2**j values from an index on: a sparse table."""
    rows = [list(values)]
    width = 1
    while 2 * width <= len(values):
        last = rows[-1]
        rows.append([max(last[i], last[i + width]) for i in range(len(last) - width)])
        width *= 2
    return rows


def _top(rows: list[list[float]], first: int, last: int) -> float:
    level = (last - first).bit_length() - 1
    row = rows[level]
    return max(row[first], row[last - (1 << level)])


class Tables:
    """Runs and speeds of a model on a cluster's types of devices, made when first asked for."""

    def __init__(self, costs: ModelCosts, resources: Resources) -> None:
        self._costs, self._types = costs, resources.by_name
        self._runs: dict[int, Runs] = {}
        self._speeds: dict[tuple[str, int], Speeds] = {}

    def runs(self, tensor: int) -> Runs:
        """Elements and bytes with a tensor degree."""
        found = self._runs.get(tensor)
        if found is None:
            found = self._runs[tensor] = Runs(self._costs, tensor)
        return found

    def speeds(self, device: str, tensor: int) -> Speeds:
        """Seconds on a type of device. KeyError for one that the resources do not have."""
        found = self._speeds.get((device, tensor))
        if found is None:
            found = self._speeds[device, tensor] = Speeds(self._costs, self._types[device], tensor)
        return found
