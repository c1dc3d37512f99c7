"""Writing durable checkpoints while training goes on.

The training thread copies this rank's part aside (a memory copy) and a background thread writes it as DCP would have:
what goes where follows from the plan, so no process group is needed. Rank 0 waits for every rank's part, writes DCP's
metadata from what they say, and commits. At most one checkpoint is under way; one whose epoch ends first is given up.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from orchestrator.core.job import Job
from orchestrator.core.plan.layout import Interval, intersect
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.engine.checkpoint_files import (
    COMMIT,
    FORMAT,
    METADATA,
    BadCheckpoint,
    FileEntry,
    Manifest,
    Place,
    final_name,
    newest_good,
    prune,
    temp_name,
    verify,
)
from orchestrator.engine.checkpoint_read import MODEL, OPTIM
from orchestrator.engine.model_state import FlatState, Kind
from orchestrator.engine.optim import ShardedOptimizer

__all__ = ["BadCheckpoint", "CheckpointWriter", "Outcome", "newest_good", "verify"]

log = logging.getLogger(__name__)

PARTS_WAIT_S = 300.0  # rank 0's patience with the other ranks' parts
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one checkpoint."""

    step: int
    uri: str
    ok: bool
    detail: str
    committed: bool  # by this rank (rank 0 alone commits)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A box of one tensor, as this rank writes it."""

    fqn: str
    offsets: tuple[int, ...]
    size: tuple[int, ...]  # of the whole tensor
    data: Tensor


@dataclass(frozen=True, slots=True)
class _Assignment:
    """One checkpoint, as seen by one rank."""

    step: int
    epoch: int
    rank: int
    ranks: int
    digest: str
    token: str  # of plan and state: equal on all ranks, and never that of another run of this job
    pieces: tuple[_Piece, ...]
    aliases: Mapping[str, str]  # state-dict name -> the name that its tensor is stored under
    scalar_forms: Mapping[str, Mapping[str, Any]]


class _Source:
    """Stands in for DCP's save planner: hands out the staged tensors."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._data = {(p.fqn, p.offsets): p.data for p in pieces}

    def resolve_data(self, item: WriteItem) -> Tensor:
        """The tensor of one item."""
        return self._data[item.index.fqn, tuple(item.index.offset or ())]


class CheckpointWriter:
    """One per worker. `start` and `finish` from the training thread."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._thread: threading.Thread | None = None
        self._cancel = threading.Event()
        self._staging: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._lock = threading.Lock()
        self._outcomes: list[Outcome] = []

    @property
    def busy(self) -> bool:
        """Whether one is under way."""
        return self._thread is not None and self._thread.is_alive()

    def outcomes(self) -> list[Outcome]:
        """What ended since the last call."""
        with self._lock:
            out, self._outcomes = self._outcomes, []
        return out

    def start(self, *, plan: Plan, rank: int, step: int, digest: str, state: FlatState, optimizer: ShardedOptimizer) -> None:
        """Copy this rank's part aside and write it in the background. Raises RuntimeError while another is under way."""
        if self.busy:
            raise RuntimeError("a checkpoint is under way")
        state.restore_buffers()
        pieces, forms = _collect(plan=plan, rank=rank, step=step, state=state, optimizer=optimizer)
        assignment = _Assignment(
            step=step,
            epoch=plan.epoch,
            rank=rank,
            ranks=plan.size,
            digest=digest,
            token=hashlib.sha256(f"{plan!r}{digest}".encode()).hexdigest()[:12],
            pieces=self._stage_all(pieces),
            aliases=_aliases(state),
            scalar_forms=forms,
        )
        self._cancel = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(assignment, self._cancel), name=f"checkpoint-{step}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether none is under way any more."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.busy

    def cancel(self) -> None:
        """Give up the one under way (its epoch has ended); returns at once."""
        self._cancel.set()
        if self.busy:
            self._staging = {}  # the thread may still read the old copies
            self._thread = None

    def _stage_all(self, pieces: Sequence[_Piece]) -> tuple[_Piece, ...]:
        """Copies, in the memory of the last time where that fits; what an older layout left is freed."""
        wanted = {(p.fqn, p.offsets) for p in pieces}
        self._staging = {k: v for k, v in self._staging.items() if k in wanted}
        return tuple(self._stage(p) for p in pieces)

    def _stage(self, piece: _Piece) -> _Piece:
        key = (piece.fqn, piece.offsets)
        copy = self._staging.get(key)
        if copy is None or copy.shape != piece.data.shape or copy.dtype != piece.data.dtype:
            copy = self._staging[key] = torch.empty(piece.data.shape, dtype=piece.data.dtype)
        copy.copy_(piece.data.detach())
        return _Piece(piece.fqn, piece.offsets, piece.size, copy)

    # ------------------------------------------------------------------------------------------- the background thread

    def _run(self, work: _Assignment, cancel: threading.Event) -> None:
        uri = self._job.checkpoint.uri
        try:
            root = Place(uri)
            final = final_name(work.step, work.epoch, work.token, local=root.local)
            uri = f"{root.uri}/{final}"
            place = root.child(temp_name(work.step, work.epoch, work.token) if root.local else final)
            _write_part(place, work)
            if work.rank == 0:
                results = _await_parts(place, work, cancel)
                _commit(root, place, final, work, results, job=self._job.name)
                _prune(root, final, work, job=self._job)
            outcome = Outcome(work.step, uri, True, "", committed=work.rank == 0)
        except Exception as error:  # reported; the run goes on without this checkpoint
            outcome = Outcome(work.step, uri, False, f"{type(error).__name__}: {error}", committed=False)
        with self._lock:
            self._outcomes.append(outcome)


def _collect(
    *, plan: Plan, rank: int, step: int, state: FlatState, optimizer: ShardedOptimizer
) -> tuple[list[_Piece], dict[str, dict[str, Any]]]:
    """This rank's share: whole params that begin in its primary region, its optimizer regions, and their scalars."""
    owned_params = plan.layout(PARAMS).holdings[rank].primary
    owned_state = plan.layout(OPTIMIZER).holdings[rank].primary
    buffers = dict(state.module.named_buffers())
    pieces: list[_Piece] = []
    forms: dict[str, dict[str, Any]] = {}
    scalars = optimizer.scalars() if step > 0 else {}
    for e in state.entries:
        if _owns(owned_params, e.start):
            data = buffers[e.name] if e.kind is Kind.COUNTER else state.flat[e.start : e.stop].view(e.shape)
            pieces.append(_Piece(f"{MODEL}.{e.name}", (0,) * len(e.shape), tuple(e.shape), data))
        if e.kind is not Kind.PARAM or step == 0 or e.start == e.stop:
            continue
        for i in intersect(owned_state, (Interval(e.start, e.stop),)):
            for key, buffer in optimizer.buffers.items():
                view = optimizer.regions.view(buffer, i.start, i.stop)
                fqn = f"{OPTIM}.{e.name}.{key}"
                pieces.append(_Piece(fqn, (i.start - e.start,), (e.stop - e.start,), view))
        if _owns(owned_state, e.start):
            for key, kept in scalars.get(e.name, {}).items():
                forms[key] = {k: v for k, v in kept.items() if k != "value"}
                dtype = getattr(torch, kept["dtype"]) if kept["dtype"] else None
                pieces.append(_Piece(f"{OPTIM}.{e.name}.{key}", (), (), torch.tensor(kept["value"], dtype=dtype)))
    if rank == 0:
        pieces += _constants(state)
    return pieces, forms


def _owns(intervals: Sequence[Interval], at: int) -> bool:
    return any(i.start <= at < i.stop for i in intervals)


def _constants(state: FlatState) -> list[_Piece]:
    """Frozen params and constant buffers: no state of ours, but a reader of the checkpoint wants them."""
    known = {e.name for e in state.entries} | set(_aliases(state))
    return [
        _Piece(f"{MODEL}.{name}", (0,) * value.dim(), tuple(value.shape), value)
        for name, value in state.module.state_dict().items()
        if name not in known and isinstance(value, Tensor)
    ]


def _aliases(state: FlatState) -> dict[str, str]:
    """Names under which a tied tensor appears a second time in the state dict."""
    first: dict[int, str] = {}
    out: dict[str, str] = {}
    for name, value in state.module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and first.setdefault(id(value), name) != name:
            out[name] = first[id(value)]
    return out


def _result_name(rank: int) -> str:
    return f"part-{rank:05d}.json"


def _write_part(place: Place, work: _Assignment) -> None:
    place.make()
    items = [
        WriteItem(
            index=MetadataIndex(p.fqn, torch.Size(p.offsets)),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(torch.Size(p.offsets), p.data.shape),
                properties=TensorProperties(dtype=p.data.dtype),
                size=torch.Size(p.size),
            ),
        )
        for p in work.pieces
    ]
    writer = FsspecWriter(place.uri, sync_files=place.local)
    plan = SavePlan(items, storage_data=_StoragePrefix(f"__{work.rank}_"))
    written = writer.write_data(plan, _Source(work.pieces)).wait() if items else []  # type: ignore[arg-type]
    by_index = {(w.index.fqn, tuple(w.index.offset or ())): w.storage_data for w in written}
    chunks = [
        {
            "fqn": p.fqn,
            "offsets": list(p.offsets),
            "sizes": list(p.data.shape),
            "size": list(p.size),
            "dtype": str(p.data.dtype).removeprefix("torch."),
            "file": by_index[p.fqn, p.offsets].relative_path,
            "offset": by_index[p.fqn, p.offsets].offset,
            "length": by_index[p.fqn, p.offsets].length,
        }
        for p in work.pieces
    ]
    entries = {n: place.entry(n) for n in sorted({c["file"] for c in chunks})}
    files = {n: {"bytes": f.bytes, "crc32": f.crc32} for n, f in entries.items()}
    result = {"epoch": work.epoch, "chunks": chunks, "files": files, "scalar_forms": work.scalar_forms}
    place.write_text(_result_name(work.rank), json.dumps(result))


def _await_parts(place: Place, work: _Assignment, cancel: threading.Event) -> list[dict[str, Any]]:
    deadline = time.monotonic() + PARTS_WAIT_S
    missing = list(range(work.ranks))
    while missing:
        missing = [r for r in missing if not place.exists(_result_name(r))]
        if cancel.is_set():
            raise BadCheckpoint(f"given up: epoch {work.epoch} ended before ranks {missing} had written their parts")
        if missing and time.monotonic() > deadline:
            raise BadCheckpoint(
                f"the parts of ranks {missing} did not appear in {place.uri} within {PARTS_WAIT_S:.0f} s; "
                "does every node see this path?"
            )
        if missing:
            cancel.wait(_POLL_S)
    return [json.loads(place.read_text(_result_name(r))) for r in range(work.ranks)]


def _commit(root: Place, place: Place, final: str, work: _Assignment, results: Sequence[Mapping[str, Any]], *, job: str) -> None:
    writer = FsspecWriter(place.uri, sync_files=place.local)
    writer.finish(*_metadata(results, work.aliases))
    files = {n: FileEntry(**f) for r in results for n, f in r["files"].items()}
    files[METADATA] = place.entry(METADATA)
    forms = {k: v for r in results for k, v in r["scalar_forms"].items()}
    manifest = Manifest(FORMAT, job, work.step, work.digest, work.epoch, work.ranks, files, forms)
    place.write_text(COMMIT, manifest.to_text())
    if not root.local:
        return
    place.sync()
    aside = None
    if final in root.names():
        if _is_this_one(f"{root.uri}/{final}", work, job=job):  # an earlier epoch committed this very state: keep that one
            place.remove()
            return
        aside = root.child(temp_name(work.step, work.epoch, f"{work.token}old"))
        os.rename(f"{root.path}/{final}", aside.path)
    os.rename(place.path, f"{root.path}/{final}")  # fails if a newer epoch has swept our directory away
    root.sync()
    if aside is not None:
        aside.remove()


def _is_this_one(uri: str, work: _Assignment, *, job: str) -> bool:
    """Whether there is a whole checkpoint of this state already. Raises BadCheckpoint when it is another job's."""
    try:
        found = verify(uri)
    except (BadCheckpoint, OSError):
        return False
    if found.job != job:
        raise BadCheckpoint(f"{uri} belongs to job {found.job!r}; give each job a checkpoint.uri of its own")
    return found.digest == work.digest


def _prune(root: Place, final: str, work: _Assignment, *, job: Job) -> None:
    """Make room. What cannot be removed does not make the checkpoint that was just committed a failed one."""
    try:
        prune(root.uri, job=job.name, keep=job.checkpoint.keep, step=work.step, epoch=work.epoch, committed=final)
    except OSError as error:
        log.warning("old checkpoints in %s could not be removed: %s", root.uri, error)


def _metadata(results: Sequence[Mapping[str, Any]], aliases: Mapping[str, str]) -> tuple[Metadata, list[list[WriteResult]]]:
    """DCP's metadata and where everything lies, from what every rank says that it wrote."""
    tensors: dict[str, TensorStorageMetadata] = {}
    storage: list[WriteResult] = []
    also: dict[str, list[str]] = {}
    for alias, name in aliases.items():
        also.setdefault(f"{MODEL}.{name}", []).append(f"{MODEL}.{alias}")
    for chunk in sorted((c for r in results for c in r["chunks"]), key=lambda c: (c["fqn"], c["offsets"])):
        for fqn in (chunk["fqn"], *also.get(chunk["fqn"], [])):
            dtype = getattr(torch, chunk["dtype"])
            stored = tensors.setdefault(fqn, TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(chunk["size"]), []))
            offsets = torch.Size(chunk["offsets"])
            where = _StorageInfo(chunk["file"], chunk["offset"], chunk["length"])
            storage.append(WriteResult(MetadataIndex(fqn, offsets, len(stored.chunks)), chunk["length"], where))
            stored.chunks.append(ChunkStorageMetadata(offsets, torch.Size(chunk["sizes"])))
    nested = {fqn: tuple(fqn.split(".", 1)) for fqn in tensors}
    return Metadata(state_dict_metadata=dict(tensors), planner_data=nested), [storage]
