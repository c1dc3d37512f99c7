"""Writing durable checkpoints while training goes on.

The training thread copies this rank's part aside (a memory copy) and a background thread writes it as DCP would have:
what goes where follows from the plan, so no process group is needed. Rank 0 waits for every rank's part, writes DCP's
metadata from what they say, and commits, unless a newer epoch has begun to write. A rank that cannot write its part says so in
a file of its own. At most one checkpoint is under way; one whose epoch ends first, or that fails, leaves nothing behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.words import describe
from orchestrator.core.timeouts import derive
from orchestrator.engine.checkpoint_fence import Fence
from orchestrator.engine.checkpoint_files import (
    COMMIT,
    FORMAT,
    METADATA,
    BadCheckpoint,
    FileEntry,
    Manifest,
    Place,
    StoredTensor,
    final_name,
    newest_good,
    prune,
    sweep,
    temp_name,
    verify,
)
from orchestrator.engine.checkpoint_parts import MODEL, Piece, aliases, collect, stored_tensors
from orchestrator.engine.extents import Extents
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.optim import Scalars

__all__ = ["BadCheckpoint", "CheckpointWriter", "Outcome", "newest_good", "verify"]

log = logging.getLogger(__name__)

PARTS_WAIT_S = 300.0  # rank 0's patience with the other ranks' parts
FAILED_WAIT_S = 10.0  # and with those who still write when one part has failed, before it removes everything
_POLL_S = 0.02
_PERMISSION_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one checkpoint."""

    step: int
    uri: str
    ok: bool
    detail: str
    committed: bool  # by this rank (rank 0 alone commits)


@dataclass(frozen=True, slots=True)
class _About:
    """What the manifest says of the state."""

    plan: str
    tensor: int
    block: int
    layers: tuple[str, ...]
    tensors: tuple[StoredTensor, ...]
    moments: Mapping[str, str]
    usual_loss: float


@dataclass(frozen=True, slots=True)
class _Assignment:
    """One checkpoint, as seen by one rank."""

    step: int
    epoch: int
    rank: int
    ranks: int
    digest: str
    token: str  # of plan and state: equal on all ranks, and never that of another run of this job
    pieces: tuple[Piece, ...]
    aliases: Mapping[str, str]  # state-dict name -> the name that its tensor is stored under
    scalars: Scalars
    about: _About


class _Source:
    """Stands in for DCP's save planner: hands out the staged tensors."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._data = {(p.fqn, p.offsets): p.data for p in pieces}

    def resolve_data(self, item: WriteItem) -> Tensor:
        """The tensor of one item."""
        return self._data[item.index.fqn, tuple(item.index.offset or ())]


class _Staging:
    """Memory for the copies: that of the last time where it fits; what an older layout left is freed."""

    def __init__(self) -> None:
        self._old: dict[tuple[str, int, int], Tensor] = {}
        self._new: dict[tuple[str, int, int], Tensor] = {}

    def take(self, name: str, start: int, numel: int, dtype: torch.dtype) -> Tensor:
        """[numel] for the elements of a tensor from `start` on."""
        key = (name, start, numel)
        found = self._old.get(key)
        if found is None or found.dtype is not dtype:
            found = torch.empty(numel, dtype=dtype)
        self._new[key] = found
        return found

    def turn(self) -> None:
        """All of a checkpoint has been taken."""
        self._old, self._new = self._new, {}


def always() -> bool:
    """For a writer that nobody supervises."""
    return True


class CheckpointWriter:
    """One per worker. `start` and `finish` from the training thread.

    `may_commit` tells whether a supervisor is within reach. A rank that is cut off together with all that it needs trains on,
    which does no harm; what it writes down would.
    """

    def __init__(self, job: Job, *, may_commit: Callable[[], bool] = always) -> None:
        self._job = job
        self._may_commit = may_commit
        self._fence = Fence(job.checkpoint.uri, job.name) if job.checkpoint.uri else None
        self._thread: threading.Thread | None = None
        self._cancel = threading.Event()
        self._staging = _Staging()
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

    def start(
        self,
        *,
        plan: Plan,
        rank: int,
        step: int,
        digest: str,
        state: FlatState,
        moments: Mapping[str, Extents],
        scalars: Scalars,
        usual_loss: float = 0.0,
    ) -> None:
        """Copy this rank's part aside and write it in the background.

        `scalars` are those of the optimizer (empty while it has no state), `digest` is of the plan's vector after `step`. Raises
        RuntimeError while another is under way, KeyError when the rank does not hold its primary regions.
        """
        if self.busy:
            raise RuntimeError("a checkpoint is under way")
        pieces, kept = collect(
            plan=plan, rank=rank, step=step, state=state, moments=moments, scalars=scalars, stage=self._staging.take
        )
        self._staging.turn()
        assignment = _Assignment(
            step=step,
            epoch=plan.epoch,
            rank=rank,
            ranks=plan.size,
            digest=digest,
            token=hashlib.sha256(f"{plan!r}{digest}".encode()).hexdigest()[:12],
            pieces=tuple(pieces),
            aliases=aliases(state),
            scalars=kept,
            about=_About(
                plan=describe(plan),
                tensor=state.degree,
                block=state.block,
                layers=state.layer_names,
                tensors=stored_tensors(state),
                moments={key: _name_of(extents.dtype) for key, extents in moments.items()},
                usual_loss=usual_loss,
            ),
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
            self._staging = _Staging()  # the thread may still read the old copies
            self._thread = None

    # ------------------------------------------------------------------------------------------- the background thread

    def _run(self, work: _Assignment, cancel: threading.Event) -> None:
        uri = self._job.checkpoint.uri
        try:
            root = Place(uri)
            final = final_name(work.step, work.epoch, work.token, local=root.local)
            uri = f"{root.uri}/{final}"
            place = root.child(temp_name(work.step, work.epoch, work.token) if root.local else final)
            if work.rank == 0:
                self._lead(root, place, final, work, cancel)
            else:
                _write_part(place, work)
            outcome = Outcome(work.step, uri, True, work.digest, committed=work.rank == 0)
        except Exception as error:  # reported; the run goes on without this checkpoint
            outcome = Outcome(work.step, uri, False, f"{type(error).__name__}: {error}", committed=False)
        with self._lock:
            self._outcomes.append(outcome)

    def _lead(self, root: Place, place: Place, final: str, work: _Assignment, cancel: threading.Event) -> None:
        """Rank 0's share: its own part, everybody's metadata, the commit; if anything fails, nothing is left."""
        assert self._fence is not None
        self._fence.claim(root, work.epoch)
        try:
            sweep(root, step=work.step, epoch=work.epoch, but=place.uri.rsplit("/", 1)[-1])
        except OSError as error:
            log.warning("unfinished checkpoints in %s could not be removed: %s", root.uri, error)
        try:
            try:
                _write_part(place, work)
                results = _await_parts(place, work, cancel)
            except Exception:
                _linger(place, work, cancel)
                raise
            self._await_permission(work, cancel)
            _finish(place, work, results, job=self._job.name)
            self._fence.check(root)
            if root.local:
                _rename(root, place, final, work, job=self._job.name)
        except Exception:
            try:
                place.remove()
            except OSError as error:
                log.warning("the unfinished checkpoint %s could not be removed: %s", place.uri, error)
            raise
        try:
            prune(root.uri, job=self._job.name, keep=self._job.checkpoint.keep, step=work.step, epoch=work.epoch, committed=final)
        except OSError as error:  # what cannot be removed does not make the one that was just committed a failed one
            log.warning("old checkpoints in %s could not be removed: %s", root.uri, error)

    def _await_permission(self, work: _Assignment, cancel: threading.Event) -> None:
        """Wait for a supervisor that is just being restarted, but not long: the next checkpoint waits for this one."""
        deadline = time.monotonic() + derive(self._job.resilience.detect_within_ms).form_ms / 1000
        while not self._may_commit():
            if cancel.is_set() or time.monotonic() > deadline:
                raise BadCheckpoint(f"given up: no supervisor was within reach to commit step {work.step} under")
            cancel.wait(_PERMISSION_POLL_S)
        if cancel.is_set():
            raise BadCheckpoint(f"given up: epoch {work.epoch} ended before step {work.step} was committed")


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _done_name(rank: int) -> str:
    return f"part-{rank:05d}.json"


def _failed_name(rank: int) -> str:
    return f"part-{rank:05d}.failed"


def _write_part(place: Place, work: _Assignment) -> None:
    """This rank's files and what they are; if that fails, a file that says why."""
    place.make()
    try:
        place.write_text(_done_name(work.rank), json.dumps(_write_files(place, work)))
    except Exception as error:
        if place.full and not isinstance(error, OSError):  # torch's writer says something else
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place.path)
        _tell_failure(place, work, f"{type(error).__name__}: {error}")
        raise error


def _tell_failure(place: Place, work: _Assignment, why: str) -> None:
    """Whoever waits for this part need not wait for long: a full disk takes at least an empty file."""
    try:  # first of all make room
        place.remove_files(f"__{work.rank}_")
        place.write_text(_failed_name(work.rank), why)
    except OSError:
        try:
            place.write_text(_failed_name(work.rank), "")
        except OSError as error:
            log.warning("rank 0 could not be told that this part of %s failed (%s): %s", place.uri, why, error)


def _write_files(place: Place, work: _Assignment) -> dict[str, Any]:
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
            "dtype": _name_of(p.data.dtype),
            "file": by_index[p.fqn, p.offsets].relative_path,
            "offset": by_index[p.fqn, p.offsets].offset,
            "length": by_index[p.fqn, p.offsets].length,
        }
        for p in work.pieces
    ]
    entries = {n: place.entry(n) for n in sorted({c["file"] for c in chunks})}
    files = {n: {"bytes": f.bytes, "crc32": f.crc32} for n, f in entries.items()}
    return {"chunks": chunks, "files": files, "scalars": work.scalars}


def _await_parts(place: Place, work: _Assignment, cancel: threading.Event) -> list[dict[str, Any]]:
    """What every rank says of its part. Raises BadCheckpoint when one failed, is missing too long, or the epoch ends."""
    deadline = time.monotonic() + PARTS_WAIT_S
    while True:
        names = set(place.names())
        failed = [r for r in range(work.ranks) if _failed_name(r) in names]
        if failed:
            why = place.read_text(_failed_name(failed[0])) or "there was no room left to say why"
            more = f" (and those of ranks {failed[1:]})" if failed[1:] else ""
            raise BadCheckpoint(f"the part of rank {failed[0]}{more} could not be written: {why}")
        missing = [r for r in range(work.ranks) if _done_name(r) not in names]
        if not missing:
            return [json.loads(place.read_text(_done_name(r))) for r in range(work.ranks)]
        if cancel.is_set():
            raise BadCheckpoint(f"given up: epoch {work.epoch} ended before ranks {missing} had written their parts")
        if time.monotonic() > deadline:
            raise BadCheckpoint(
                f"the parts of ranks {missing} did not appear in {place.uri} within {PARTS_WAIT_S:.0f} s; "
                "does every node see this path?"
            )
        cancel.wait(_POLL_S)


def _linger(place: Place, work: _Assignment, cancel: threading.Event) -> None:
    """It has failed: let the others come to their ends, so that none writes into what is about to be removed."""
    deadline = time.monotonic() + FAILED_WAIT_S
    while time.monotonic() < deadline and not cancel.is_set():
        try:
            names = set(place.names())
        except OSError:
            return
        if all(_done_name(r) in names or _failed_name(r) in names for r in range(1, work.ranks)):
            return
        cancel.wait(_POLL_S)


def _finish(place: Place, work: _Assignment, results: Sequence[Mapping[str, Any]], *, job: str) -> None:
    """Metadata and marker. Where files cannot be renamed, this is the commit."""
    writer = FsspecWriter(place.uri, sync_files=place.local)
    writer.finish(*_metadata(results, work.aliases))
    files = {n: FileEntry(**f) for r in results for n, f in r["files"].items()}
    files[METADATA] = place.entry(METADATA)
    about = work.about
    manifest = Manifest(
        format=FORMAT,
        job=job,
        step=work.step,
        digest=work.digest,
        epoch=work.epoch,
        ranks=work.ranks,
        plan=about.plan,
        tensor=about.tensor,
        block=about.block,
        layers=about.layers,
        tensors=about.tensors,
        moments=dict(about.moments),
        scalars={name: kept for r in results for name, kept in r["scalars"].items()},
        usual_loss=about.usual_loss,
        files=files,
    )
    place.write_text(COMMIT, manifest.to_text())
    if place.local:
        place.sync()


def _rename(root: Place, place: Place, final: str, work: _Assignment, *, job: str) -> None:
    """The commit on a local file system. Fails if a newer epoch has swept our directory away."""
    aside = None
    if final in root.names():
        if _is_this_one(f"{root.uri}/{final}", work, job=job):  # an earlier epoch committed this very state: keep that one
            place.remove()
            return
        aside = root.child(temp_name(work.step, work.epoch, f"{work.token}old"))
        os.rename(f"{root.path}/{final}", aside.path)
    os.rename(place.path, f"{root.path}/{final}")
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


def _metadata(results: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> tuple[Metadata, list[list[WriteResult]]]:
    """DCP's metadata and where everything lies, from what every rank says that it wrote. `names`: as _Assignment.aliases."""
    tensors: dict[str, TensorStorageMetadata] = {}
    storage: list[WriteResult] = []
    also: dict[str, list[str]] = {}
    for alias, name in names.items():
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
