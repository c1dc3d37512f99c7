"""Reading the parts of a checkpoint that one rank needs, whatever number of ranks wrote it.

Params are read whole (every rank holds them), optimizer state only where this rank holds it; DCP's own arithmetic
finds the stored chunks that overlap. The digest in the manifest is compared by the caller, once all ranks have their
part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from orchestrator.engine.checkpoint_files import BadCheckpoint, Manifest, read_manifest
from orchestrator.engine.model_state import FlatState, Kind
from orchestrator.engine.optim import ShardedOptimizer

MODEL = "model"
OPTIM = "optim"


class _Targets:
    """Stands in for DCP's load planner: knows where each wanted chunk goes."""

    def __init__(self) -> None:
        self.items: list[ReadItem] = []
        self._tensors: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def want(self, metadata: Mapping[str, Any], fqn: str, target: Tensor, offsets: tuple[int, ...]) -> None:
        """Read into `target` the box of its shape at `offsets` of the stored tensor. Raises BadCheckpoint."""
        stored = metadata.get(fqn)
        if not isinstance(stored, TensorStorageMetadata):
            raise BadCheckpoint(f"it has no tensor {fqn}")
        if any(o + n > s for o, n, s in zip(offsets, target.shape, stored.size, strict=True)):
            raise BadCheckpoint(f"{fqn} has shape {list(stored.size)}, the model needs {list(target.shape)} at {offsets}")
        if target.numel() == 0:
            return
        chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=target.shape)
        items = create_read_items_for_chunk_list(fqn, stored, [chunk])
        covered = sum(item.lengths.numel() for item in items)
        if covered != target.numel():
            raise BadCheckpoint(f"{fqn} is stored in part only: {covered} of {target.numel()} elements at {offsets}")
        self.items += items
        self._tensors[fqn, offsets] = target

    def resolve_tensor(self, item: ReadItem) -> Tensor:
        """Where to put it."""
        out = self._tensors[item.dest_index.fqn, tuple(item.dest_index.offset or ())]
        for dim, (start, length) in enumerate(zip(item.dest_offsets, item.lengths, strict=True)):
            out = out.narrow(dim, start, length)
        return out

    def commit_tensor(self, item: ReadItem, tensor: Tensor) -> None:
        """Already in place: resolve_tensor gave views."""


def load_checkpoint(uri: str, *, state: FlatState, optimizer: ShardedOptimizer, step: int) -> Manifest:
    """Fill the params and this rank's optimizer state. Raises BadCheckpoint, OSError."""
    manifest = read_manifest(uri)
    if manifest.step != step:
        raise BadCheckpoint(f"{uri} is of step {manifest.step}, not {step}")
    reader = FsspecReader(uri)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=False)
    stored = metadata.state_dict_metadata
    targets = _Targets()
    counters: dict[str, Tensor] = {}
    for e in state.entries:
        if e.kind is Kind.COUNTER:
            target = counters[e.name] = torch.zeros(e.shape, dtype=torch.int64)
        else:
            target = state.flat[e.start : e.stop].view(e.shape)
        targets.want(stored, f"{MODEL}.{e.name}", target, (0,) * len(e.shape))
    scalars = _want_optimizer(targets, stored, manifest, state=state, optimizer=optimizer) if step > 0 else {}
    with torch.no_grad():
        reader.read_data(LoadPlan(targets.items), targets)  # type: ignore[arg-type]
    _set_counters(state, counters)
    if step > 0:
        optimizer.install(
            {
                name: {k: {**manifest.scalar_forms[k], "value": t.item()} for k, t in kept.items()}
                for name, kept in scalars.items()
            }
        )
    return manifest


def _want_optimizer(
    targets: _Targets,
    stored: Mapping[str, Any],
    manifest: Manifest,
    *,
    state: FlatState,
    optimizer: ShardedOptimizer,
) -> dict[str, dict[str, Tensor]]:
    first = {e.name: e.start for e in state.entries}
    scalars: dict[str, dict[str, Tensor]] = {}
    for shard in optimizer.shards:
        for key, buffer in optimizer.buffers.items():
            if (fqn := f"{OPTIM}.{shard.name}.{key}") in stored:
                view = optimizer.regions.view(buffer, shard.start, shard.stop)
                targets.want(stored, fqn, view, (shard.start - first[shard.name],))
        kept = scalars.setdefault(shard.name, {})
        for key in manifest.scalar_forms:
            if key not in kept and (fqn := f"{OPTIM}.{shard.name}.{key}") in stored:
                kept[key] = torch.zeros((), dtype=stored[fqn].properties.dtype)
                targets.want(stored, fqn, kept[key], ())
    return scalars


def _set_counters(state: FlatState, counters: Mapping[str, Tensor]) -> None:
    """A counter's entry is how far it has moved from what the module starts with."""
    entries = [e for e in state.entries if e.kind is Kind.COUNTER]
    for e in entries:
        state.flat[e.start : e.stop].zero_()
    state.restore_buffers()
    initial = {name: value.clone() for name, value in state.module.named_buffers()}
    for e in entries:
        state.flat[e.start : e.stop] = (counters[e.name] - initial[e.name].cpu()).reshape(-1).to(torch.float32)
    state.restore_buffers()
