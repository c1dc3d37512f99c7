"""What a model costs: FLOPs, bytes and, where they were measured, seconds of each kind of layer.

`GraphView` says what a state consists of; this says what one *unit* (one micro-batch of the task, or one sample of a model file)
costs to compute. Equal layers are folded into one kind. All costs grow in proportion to the units of a micro-batch; those named
`cut_` are the part that tensor parallelism divides by its degree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a whole layer (tensor degree 1) takes for one unit on a healthy device of a type, measured there."""

    device: str  # DeviceType.name
    forward_s: float
    backward_s: float  # gradients of input and parameters, without recomputation


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One kind of layer. FLOPs count a multiply-add as two."""

    name: str
    params: int  # trainable elements
    cut_params: int  # of them
    buffers: int  # elements
    forward_flops: float
    cut_forward_flops: float  # of them
    backward_flops: float
    cut_backward_flops: float  # of them
    moved_bytes: float  # read and written by the forward pass; the backward pass moves twice as much
    kept_bytes: float  # activations kept from the forward to the backward pass, its input included
    cut_kept_bytes: float  # of them
    work_bytes: float  # the most that lives at once while the layer runs, beyond what is kept (gradients of activations included)
    boundary_bytes: float  # its output: what goes to the next stage, and all that is kept of a layer under recomputation
    reduced_bytes: float  # bytes of activations all-reduced over the tensor axis in the forward pass, and as many in the backward
    timings: tuple[Timing, ...] = ()

    def timing(self, device: str) -> Timing | None:
        """What was measured on this type of device, or None."""
        return next((t for t in self.timings if t.device == device), None)


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """A model as the cost model sees it."""

    name: str
    kinds: tuple[LayerCost, ...]
    order: tuple[int, ...]  # index into kinds of each layer, in forward order; as many as GraphView.layers where there is one
    samples_per_unit: float  # tokens (or images, ...) in one unit: for throughput figures only
    tensor_max: int  # the highest tensor degree that divides the model; 1: it names nothing to cut
    splits: bool  # false: one piece; no pipeline, ZeRO-3, recomputation or tensor parallelism

    @property
    def layers(self) -> tuple[LayerCost, ...]:
        """The cost of every layer, in forward order."""
        return tuple(self.kinds[k] for k in self.order)

    @property
    def params(self) -> int:
        """Trainable elements of the whole model."""
        return sum(self.kinds[k].params for k in self.order)
