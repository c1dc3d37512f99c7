"""Reading the parts of a checkpoint that one rank needs, whatever plan wrote it.

A rank wants stretches of its flat vector; each is a few boxes of whole tensors, and DCP's own arithmetic finds the stored boxes
that overlap. A stored box is loaded once, whatever is wanted of it. The digest in the manifest is compared by the caller, once
all ranks have their part, where the vector is the same; a state that goes to another tensor degree has another vector, so there
each file is checked as it is read.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from orchestrator.core.graph.space import Shape, lay_out
from orchestrator.core.plan.layout import Interval, Intervals, intersect, merge, subtract
from orchestrator.core.plan.plan import PARAMS
from orchestrator.engine.checkpoint_files import BadCheckpoint, Manifest, Place, read_manifest
from orchestrator.engine.checkpoint_parts import MODEL, OPTIM, boxes_of
from orchestrator.engine.digest import Fold, fill
from orchestrator.engine.entries import Entry, Kind, entries_of
from orchestrator.engine.extents import Extents
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.optim import Scalars

DIGEST_NUMEL = 16 << 20  # elements that `stored_digest` has in memory at a time


@dataclass(frozen=True, slots=True)
class Loaded:
    """What comes with the tensors."""

    scalars: Scalars  # of the parameters that `moments` overlap (without moments, of all); empty: the optimizer had no state yet
    usual_loss: float
    manifest: Manifest  # its digest is of the vector of tensor degree `manifest.tensor`


class _Reader:
    """One checkpoint: collects what is wanted, then reads it. Raises BadCheckpoint, OSError."""

    def __init__(self, uri: str, *, check: Manifest | None) -> None:
        self._place = Place(uri)
        self._check = check
        self._metadata = _metadata_of(uri)
        self._wanted: dict[str, dict[MetadataIndex, list[tuple[ReadItem, Tensor]]]] = {}  # by file
        self._after: list[Callable[[], None]] = []

    def want(self, fqn: str, target: Tensor, offsets: tuple[int, ...]) -> None:
        """Read into `target` the box of its shape at `offsets` of the stored tensor."""
        stored = self._metadata.state_dict_metadata.get(fqn)
        if not isinstance(stored, TensorStorageMetadata):
            raise BadCheckpoint(f"it has no tensor {fqn}")
        if len(stored.size) != len(offsets) or any(o + n > s for o, n, s in zip(offsets, target.shape, stored.size, strict=True)):
            raise BadCheckpoint(f"{fqn} has shape {list(stored.size)}, the model needs {list(target.shape)} at {list(offsets)}")
        box = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=target.shape)
        items = create_read_items_for_chunk_list(fqn, stored, [box])
        covered = sum(item.lengths.numel() for item in items)
        if covered != target.numel():
            raise BadCheckpoint(f"{fqn} is stored in part only: {covered} of {target.numel()} elements at {list(offsets)}")
        for item in items:
            where = self._metadata.storage_data[item.storage_index]
            self._wanted.setdefault(where.relative_path, {}).setdefault(item.storage_index, []).append((item, target))

    def want_whole(self, fqn: str) -> Tensor:
        """Read all of a stored tensor, into what is returned."""
        stored = self._metadata.state_dict_metadata[fqn]
        if not isinstance(stored, TensorStorageMetadata):
            raise BadCheckpoint(f"{fqn} is no tensor")
        target = torch.empty(stored.size, dtype=stored.properties.dtype)
        self.want(fqn, target, (0,) * len(stored.size))
        return target

    def places(self, prefix: str) -> dict[str, tuple[tuple[str, int], ...]]:
        """Tensors whose names begin with `prefix.`, without it -> (file, offset) of each of their boxes."""
        out: dict[str, list[tuple[str, int]]] = {}
        for index, where in self._metadata.storage_data.items():
            if index.fqn.startswith(f"{prefix}."):
                out.setdefault(index.fqn.removeprefix(f"{prefix}."), []).append((where.relative_path, where.offset))
        return {name: tuple(sorted(boxes)) for name, boxes in out.items()}

    def want_range(self, fqn: str, entry: Entry, lo: int, target: Tensor) -> None:
        """Read into `target` [n] elements [lo, lo + n) of the vector, which lie inside the entry."""
        for offsets, sizes, a, b in boxes_of(entry, lo, lo + target.numel()):
            self.want(fqn, target[a:b].view(sizes), offsets)

    def want_counter(self, fqn: str, entry: Entry, initial: Tensor, target: Tensor) -> None:
        """A counter's element of the vector is how far it has moved from its initial value."""
        stored = torch.zeros(entry.whole, dtype=torch.int64)
        self.want(fqn, stored, (0,) * len(entry.whole))

        def fill_in() -> None:
            target.copy_((stored - initial.cpu().to(torch.int64)).view(1))

        self._after.append(fill_in)

    def read(self) -> None:
        """Read all that is wanted."""
        with torch.no_grad():
            for name, boxes in sorted(self._wanted.items()):
                self._read_file(name, boxes)
            for fill_in in self._after:
                fill_in()
        self._wanted, self._after = {}, []

    def _read_file(self, name: str, boxes: Mapping[MetadataIndex, list[tuple[ReadItem, Tensor]]]) -> None:
        if self._check is not None and self._place.entry(name) != self._check.files.get(name):
            raise BadCheckpoint(f"file {name} has another content than when it was committed")
        with self._place.fs.open(f"{self._place.path}/{name}", "rb") as stream:
            for index in sorted(boxes, key=lambda i: self._metadata.storage_data[i].offset):
                where = self._metadata.storage_data[index]
                stream.seek(where.offset)
                try:
                    stored = torch.load(io.BytesIO(stream.read(where.length)), map_location="cpu", weights_only=True)
                    for item, target in boxes[index]:
                        wanted = _narrow(stored, item.storage_offsets, item.lengths)
                        _narrow(target, item.dest_offsets, item.lengths).copy_(wanted)
                except OSError:
                    raise
                except Exception as error:  # unpickling damaged bytes raises anything
                    raise BadCheckpoint(f"file {name} cannot be read: {type(error).__name__}: {error}") from error


def _narrow(tensor: Tensor, offsets: Iterable[int], lengths: Iterable[int]) -> Tensor:
    for dim, (start, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, start, length)
    return tensor


def _metadata_of(uri: str) -> Metadata:
    try:
        return FsspecReader(uri).read_metadata()
    except OSError:
        raise
    except Exception as error:
        raise BadCheckpoint(f"its metadata cannot be read: {type(error).__name__}: {error}") from error


def load_checkpoint(uri: str, *, state: FlatState, params: Extents, moments: Mapping[str, Extents], step: int) -> Loaded:
    """Fill all that `params` and `moments` hold, any intervals of the vector that `state` has been placed in.

    Padding becomes zero. The modules' buffers are as before until the caller restores them. Raises BadCheckpoint, OSError.
    """
    manifest = read_manifest(uri)
    if manifest.step != step:
        raise BadCheckpoint(f"{uri} is of step {manifest.step}, not {step}")
    dtypes = {key: str(extents.dtype).removeprefix("torch.") for key, extents in moments.items()}
    if step > 0 and dtypes != manifest.moments:
        raise BadCheckpoint(f"its optimizer kept {manifest.moments}, this one keeps {dtypes}")
    reader = _Reader(uri, check=manifest if manifest.tensor != state.degree else None)
    counters = state.counters
    _want_params(reader, state.entries, counters, params)
    for key, extents in moments.items():
        _want_moment(reader, state.entries if step > 0 else (), key, extents)
    reader.read()
    held: Intervals = merge(i for extents in moments.values() for i in extents.intervals)
    scalars = _scalars(manifest, state, held if moments else None) if step > 0 else {}
    return Loaded(scalars, manifest.usual_loss, manifest)


def _want_params(reader: _Reader, entries: Iterable[Entry], counters: Mapping[str, Tensor], params: Extents) -> None:
    known = [e for e in entries if e.start < e.stop]
    for i in subtract(params.intervals, [Interval(e.start, e.stop) for e in known]):
        for _, _, view in params.pieces(i.start, i.stop):
            view.zero_()
    for e, lo, hi in _overlaps(known, params):
        fqn = f"{MODEL}.{e.twin or e.name}"
        for at, stop, view in params.pieces(lo, hi):
            if e.kind is Kind.COUNTER:
                reader.want_counter(fqn, e, counters[e.name], view[: stop - at])
            else:
                reader.want_range(fqn, e, at, view)


def _want_moment(reader: _Reader, entries: Iterable[Entry], key: str, extents: Extents) -> None:
    known = [e for e in entries if e.kind is Kind.PARAM and e.start < e.stop]
    for i in subtract(extents.intervals, [Interval(e.start, e.stop) for e in known]):
        for _, _, view in extents.pieces(i.start, i.stop):
            view.zero_()
    for e, lo, hi in _overlaps(known, extents):
        for at, _, view in extents.pieces(lo, hi):
            reader.want_range(f"{OPTIM}.{e.twin or e.name}.{key}", e, at, view)


def _overlaps(entries: Iterable[Entry], extents: Extents) -> Iterable[tuple[Entry, int, int]]:
    held = extents.intervals
    for e in entries:
        for i in intersect((Interval(e.start, e.stop),), held):
            yield e, i.start, i.stop


def _scalars(manifest: Manifest, state: FlatState, held: Intervals | None) -> Scalars:
    out: Scalars = {}
    if not manifest.scalars:
        return out
    for e in state.entries:
        name = e.twin or e.name
        if e.kind is not Kind.PARAM or e.start == e.stop or name in out:
            continue
        if held is not None and not intersect((Interval(e.start, e.stop),), held):
            continue
        found = manifest.scalars.get(name)
        if found is None:
            raise BadCheckpoint(f"it has no optimizer state of {name}")
        out[name] = found
    return out


def load_model(uri: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(every tensor of the model's state_dict(), tied ones under one of their names; their other names -> that one).

    Each file is checked as it is read. Raises BadCheckpoint, OSError.
    """
    manifest = read_manifest(uri)
    reader = _Reader(uri, check=manifest)
    stored = {t.name for t in manifest.tensors if not t.twin}
    names: dict[object, str] = {}  # where a tensor is stored -> its name
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, where in sorted(reader.places(MODEL).items(), key=lambda item: (item[0] not in stored, item[0])):
        first = names.setdefault(where, name)
        if first != name:
            tied[name] = first
        else:
            tensors[name] = reader.want_whole(f"{MODEL}.{name}")
    reader.read()
    return tensors, tied


def stored_digest(uri: str) -> str:
    """The digest of the state as it is stored, laid out as its manifest says; equal to the manifest's where nothing is wrong.

    Needs neither the model nor much memory. Raises BadCheckpoint, OSError.
    """
    manifest = read_manifest(uri)
    kinds = {t.name: Kind(t.kind) for t in manifest.tensors}
    shapes = [Shape(t.name, t.shape, kinds[t.name] is Kind.PARAM, t.layer, t.cut_dim, t.twin) for t in manifest.tensors]
    space = lay_out(shapes, layers=len(manifest.layers), block=manifest.block, degree=manifest.tensor)
    entries = entries_of(shapes, kinds, space)
    counters = {t.name: torch.tensor(t.initial) for t in manifest.tensors if kinds[t.name] is Kind.COUNTER}
    reader = _Reader(uri, check=None)
    fold = Fold(step=manifest.step, numel=space.numel, block=space.block)
    rows = [(PARAMS, torch.float32), *((key, getattr(torch, dtype)) for key, dtype in sorted(manifest.moments.items()))]
    per = max(1, DIGEST_NUMEL // space.block) * space.block
    for name, dtype in rows:
        table = torch.zeros(2, space.numel // space.block, dtype=torch.int64)
        for lo in range(0, space.numel, per):
            here = Interval(lo, min(space.numel, lo + per))
            part = Extents(dtype)
            part.add(here, torch.empty(here.numel, dtype=dtype))
            if name == PARAMS:
                _want_params(reader, entries, counters, part)
            else:
                _want_moment(reader, entries if manifest.step > 0 else (), name, part)
            reader.read()
            fill(table, part, (here,), space.block)
        fold.add(name, table)
    return fold.hex()
