"""model.yaml -> ModelCosts: a model that is not here, so that a plan for it can be made before anybody writes it.

It is either a transformer by its dimensions, whose costs follow from published formulas, or a plain list of layers with their
costs. Errors look like those of a job file: place, path, nearest key and a fix.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from orchestrator.core.graph.costs import LayerCost, ModelCosts, Timing
from orchestrator.core.graph.transformer import Attention, Blocks, Transformer, transformer_costs
from orchestrator.spec.document import Path
from orchestrator.spec.errors import SpecError, quoted
from orchestrator.spec.explain import problem_at
from orchestrator.spec.model import LAYERS_MAX
from orchestrator.spec.reading import parse_as, text_of
from orchestrator.spec.schema_export import render_model
from orchestrator.spec.section import Section
from orchestrator.spec.values import JobName

WIDTH_MAX = 10_000_000
TOKENS_MAX = 100_000_000
PARAMS_MAX = 10**15
FLOPS_MAX = 1e24
BYTES_MAX = 1e18
KINDS_MAX = 1_000
TIMINGS_MAX = 64
NEAR_MAX = 1_000  # numbers of heads tried for one that fits

Width = Annotated[int, Field(ge=1, le=WIDTH_MAX)]
Bytes = Annotated[float, Field(ge=0, le=BYTES_MAX)]
Flops = Annotated[float, Field(ge=0, le=FLOPS_MAX)]
Milliseconds = Annotated[float, Field(gt=0, le=1e9)]


class BlocksSpec(Section):
    """Equal transformer blocks."""

    layers: int = Field(ge=1, le=LAYERS_MAX, description="Number of blocks.")
    hidden: Width = Field(description="Width of the residual stream; a multiple of heads.")
    heads: Width = Field(description="Attention heads.")
    ffn: Width | None = Field(default=None, description="Inner width of the feed-forward part. Absent: four times hidden.")
    kv_heads: Width | None = Field(default=None, description="Heads of keys and values; divides heads. Absent: as many as heads.")
    gated: bool = Field(default=False, description="Three matrices in the feed-forward part (SwiGLU), not two.")
    bias: bool = Field(default=True, description="Biases in matrices and norms.")


class FurtherSpec(BlocksSpec):
    """Blocks that read the output of the main ones through a projection, and end in a head of their own."""

    name: JobName = Field(description="What its layers are called.")
    cut: bool = Field(default=True, description="false: too small to cut; every tensor rank computes all of it.")


class TransformerSpec(BlocksSpec):
    """A transformer by its dimensions."""

    vocabulary: Width = Field(description="Rows of the embedding, padding included.")
    sequence: Width = Field(description="Tokens in one sequence, which is the unit of a micro-batch.")
    positions: bool = Field(default=True, description="A learned vector for each position.")
    tied: bool = Field(default=True, description="The head multiplies by the embedding's matrix.")
    dropout: bool = Field(default=True, description="Dropout in attention and after each part; its masks are kept.")
    attention: Attention = Field(
        default=Attention.MATERIALISED,
        description="materialised: scores are kept. recomputed: scores alone are computed again. flash: never in memory.",
    )
    sequence_parallel: bool = Field(
        default=False, description="Tensor ranks also split norms and dropout, along the sequence: all kept activations are cut."
    )
    activation_bytes: int = Field(default=2, ge=1, le=8, description="Of one element: 2 for bf16 and fp16, 4 for fp32.")
    further: tuple[FurtherSpec, ...] = Field(
        default=(), max_length=KINDS_MAX, description="Further modules after the main blocks, such as task modules."
    )


class TimingSpec(Section):
    """Measured seconds of a layer, tensor degree 1, for one unit."""

    device: JobName = Field(description="A device type of the cluster file.")
    forward_ms: Milliseconds = Field(description="Milliseconds of the forward pass.")
    backward_ms: Milliseconds = Field(description="Milliseconds of the backward pass, without recomputation.")


class LayerSpec(Section):
    """So many equal layers. Costs are of one layer and one unit."""

    name: JobName = Field(description="What they are called.")
    count: int = Field(default=1, ge=1, le=LAYERS_MAX, description="How many stand one after the other.")
    params: int = Field(ge=0, le=PARAMS_MAX, description="Trainable elements.")
    buffers: int = Field(default=0, ge=0, le=PARAMS_MAX, description="Elements that are not trained.")
    flops: Flops = Field(description="FLOPs of the forward pass; a multiply-add is two.")
    backward_flops: Flops | None = Field(default=None, description="FLOPs of the backward pass. Absent: twice flops.")
    moved_bytes: Bytes = Field(default=0.0, description="Memory traffic of elementwise work in the forward pass.")
    kept_bytes: Bytes = Field(description="Activations kept from forward to backward pass, the layer's input included.")
    work_bytes: Bytes | None = Field(
        default=None, description="The most that lives at once beyond what is kept. Absent: twice output_bytes."
    )
    output_bytes: Bytes = Field(description="What goes on to the next layer.")
    cut: float = Field(default=0.0, ge=0, le=1, description="Share of parameters, FLOPs and kept bytes that tensor ranks divide.")
    reduced_bytes: Bytes = Field(
        default=0.0, description="Activations all-reduced over tensor ranks in the forward pass, and as many in the backward."
    )
    timings: tuple[TimingSpec, ...] = Field(default=(), max_length=TIMINGS_MAX, description="What was measured, by device type.")


class ModelFile(Section):
    """A model: a transformer, or layers."""

    name: JobName = Field(description="What the model is called.")
    transformer: TransformerSpec | None = Field(default=None, description="Dimensions of a transformer. Excludes layers.")
    layers: Annotated[tuple[LayerSpec, ...], Field(max_length=KINDS_MAX, json_schema_extra={"minItems": 1})] | None = Field(
        default=None, description="Layers in forward order, with their costs. Excludes transformer."
    )
    samples_per_unit: float = Field(
        default=1.0, gt=0, le=TOKENS_MAX, description="Tokens, images, ... in one unit of listed layers, for throughput figures."
    )
    tensor_max: int = Field(default=1, ge=1, le=65_536, description="Highest tensor degree that divides listed layers.")


def load_model(path: str | os.PathLike[str]) -> ModelCosts:
    """Read a model file. Raises SpecError with all problems, nothing else."""
    file = os.fspath(path)
    absent = "name a model file, such as one of examples/models, or write one by docs/model.schema.json"
    return model_of(text_of(file, kind="model", absent=absent), file=file)


def model_of(text: str, *, file: str = "<text>") -> ModelCosts:
    """Read a model from text. `file` only names it in messages. Raises SpecError with all problems, nothing else."""
    made, document = parse_as(ModelFile, text, file=file)
    found = _contradictions(made)
    problems = [problem_at(path, document, message=told, fix=fix, of_key=True) for path, told, fix in found]
    if problems:
        raise SpecError(problems)
    if made.transformer is not None:
        return transformer_costs(_transformer(made.name, made.transformer))
    assert made.layers is not None, "one of the two is there"
    return ModelCosts(
        name=made.name,
        kinds=tuple(_layer(layer) for layer in made.layers),
        order=tuple(k for k, layer in enumerate(made.layers) for _ in range(layer.count)),
        samples_per_unit=made.samples_per_unit,
        tensor_max=made.tensor_max,
        splits=True,
    )


def render() -> str:
    """The JSON Schema of model.yaml as text."""
    return render_model(ModelFile, title="model.yaml")


def _contradictions(made: ModelFile) -> Iterator[tuple[Path, str, str]]:
    """What one field alone cannot tell: (path, message, fix)."""
    if (made.transformer is None) == (made.layers is None):
        both = made.layers is not None
        yield (
            ("layers",),
            "a model is a transformer or layers, not both" if both else "neither transformer nor layers",
            ("remove one of the two" if both else 'add "transformer:" with its dimensions, or "layers:" with their costs'),
        )
    if made.transformer is not None:
        for key in ("samples_per_unit", "tensor_max"):
            if key in made.model_fields_set:
                yield (key,), "follows from the dimensions of a transformer", "remove it"
        total = made.transformer.layers + sum(module.layers for module in made.transformer.further)
        if total > LAYERS_MAX:
            yield ("transformer", "further"), f"{total} blocks in all are too many", f"keep it within {LAYERS_MAX}"
        yield from _blocks_contradictions(("transformer",), made.transformer)
        for index, module in enumerate(made.transformer.further):
            yield from _blocks_contradictions(("transformer", "further", index), module)
        if made.transformer.further and made.transformer.tied:
            yield ("transformer", "tied"), "further modules have heads of their own, which are not tied", "write tied: false"
    if made.layers is not None:
        total = sum(layer.count for layer in made.layers)
        if not total:
            yield ("layers",), "holds no layer", "list at least one"
        elif not any(layer.flops for layer in made.layers):
            yield ("layers",), "no layer computes anything", "write flops of at least one that are above 0"
        if total > LAYERS_MAX:
            yield ("layers",), f"{total} layers are too many", f"fold them into at most {LAYERS_MAX}"
        for index, layer in enumerate(made.layers):
            if layer.cut and made.tensor_max == 1:
                yield ("layers", index, "cut"), "tensor_max is 1, so nothing is cut", "write the tensor_max of the model"
            devices = [timing.device for timing in layer.timings]
            for n, device in enumerate(devices):
                if device in devices[:n]:
                    path = ("layers", index, "timings", n, "device")
                    yield path, f"{quoted(device)} has a timing already", "keep one timing for each type of device"


def _blocks_contradictions(path: Path, spec: BlocksSpec) -> Iterator[tuple[Path, str, str]]:
    if spec.hidden % spec.heads:
        below = range(spec.heads, max(0, spec.heads - NEAR_MAX), -1)
        near = next((d for d in below if spec.hidden % d == 0), math.gcd(spec.hidden, spec.heads))
        yield (*path, "heads"), f"{spec.heads} heads do not divide a hidden size of {spec.hidden}", f"write {near}, for instance"
    if spec.kv_heads is not None and spec.heads % spec.kv_heads:
        yield (*path, "kv_heads"), f"{spec.kv_heads} does not divide {spec.heads} heads", "write a divisor of heads"


def _blocks(spec: BlocksSpec, *, name: str, cut: bool) -> Blocks:
    return Blocks(
        name=name,
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        ffn=spec.ffn or 0,
        kv_heads=spec.kv_heads or 0,
        gated=spec.gated,
        bias=spec.bias,
        cut=cut,
    )


def _transformer(name: str, spec: TransformerSpec) -> Transformer:
    return Transformer(
        name=name,
        blocks=_blocks(spec, name="block", cut=True),
        vocabulary=spec.vocabulary,
        sequence=spec.sequence,
        further=tuple(_blocks(m, name=m.name, cut=m.cut) for m in spec.further),
        positions=spec.positions,
        tied=spec.tied,
        dropout=spec.dropout,
        attention=spec.attention,
        sequence_parallel=spec.sequence_parallel,
        activation_bytes=spec.activation_bytes,
    )


def _layer(spec: LayerSpec) -> LayerCost:
    backward = 2 * spec.flops if spec.backward_flops is None else spec.backward_flops
    return LayerCost(
        name=spec.name,
        params=spec.params,
        cut_params=round(spec.params * spec.cut),
        buffers=spec.buffers,
        forward_flops=spec.flops,
        cut_forward_flops=spec.flops * spec.cut,
        backward_flops=backward,
        cut_backward_flops=backward * spec.cut,
        moved_bytes=spec.moved_bytes,
        kept_bytes=spec.kept_bytes,
        cut_kept_bytes=spec.kept_bytes * spec.cut,
        work_bytes=2 * spec.output_bytes if spec.work_bytes is None else spec.work_bytes,
        boundary_bytes=spec.output_bytes,
        reduced_bytes=spec.reduced_bytes,
        timings=tuple(Timing(t.device, t.forward_ms / 1e3, t.backward_ms / 1e3) for t in spec.timings),
    )


if __name__ == "__main__":
    sys.stdout.write(render())
