"""Where durable checkpoints live and which of them can be trusted.

A checkpoint is a directory in torch's DCP format with one more file, COMMIT.json, written last: it names step, digest
and every file with size and CRC. On a local file system the directory is written under another name and renamed when
it is complete; elsewhere the name carries the epoch and COMMIT.json alone makes it count. What has no such file, or
does not match it, is never resumed from.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import asdict, dataclass
from typing import Any

from fsspec.core import url_to_fs

from orchestrator.core.supervisor.state import CheckpointRef

COMMIT = "COMMIT.json"
METADATA = ".metadata"
FORMAT = 2
_NAME = re.compile(r"step-(\d{8})(?:-e\d+(?:-[0-9a-f]+)?)?")
_TEMP = re.compile(r"\.tmp-step-(\d{8})-e(\d+)(?:-[0-9a-z]+)?")
_CHUNK_BYTES = 16 << 20
_ROOM_BYTES_MIN = 1 << 20


class BadCheckpoint(Exception):
    """This checkpoint is incomplete, damaged or of another job; the message says which."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a checkpoint."""

    bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the model, in the order of the flat vector: what laying it out needs. Fields as in core.graph.space.Shape."""

    name: str
    shape: tuple[int, ...]
    kind: str  # entries.Kind
    layer: int
    cut_dim: int
    twin: str
    initial: int  # of a counter

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StoredTensor:
        """Raises KeyError, TypeError."""
        return cls(**{**data, "shape": tuple(data["shape"])})


@dataclass(frozen=True, slots=True)
class Manifest:
    """What COMMIT.json says. With it and the files the state can be laid out and its digest computed anew, without the model."""

    format: int
    job: str
    step: int
    digest: str  # of the flat vector of tensor degree `tensor`
    epoch: int
    ranks: int
    plan: str  # the writers', in words
    tensor: int
    block: int
    layers: tuple[str, ...]
    tensors: tuple[StoredTensor, ...]
    moments: dict[str, str]  # dtype of the optimizer's elementwise tensors, by key
    scalars: dict[str, dict[str, dict[str, Any]]]  # its scalars, by parameter and key; empty while it has no state
    usual_loss: float  # as in core.reshard.recovery.Commit
    files: dict[str, FileEntry]

    def to_text(self) -> str:
        """As stored."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Manifest:
        """Raises BadCheckpoint."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise BadCheckpoint(f"format {data['format']}, this version reads {FORMAT}")
            files = {n: FileEntry(**f) for n, f in data["files"].items()}
            tensors = tuple(StoredTensor.from_json(t) for t in data["tensors"])
            return cls(**{**data, "files": files, "tensors": tensors, "layers": tuple(data["layers"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"{COMMIT} cannot be read: {error!r}") from error


class Place:
    """One directory (local path or fsspec URL) with the few operations that checkpoints need. Raises OSError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.fs, self.path = url_to_fs(self.uri)
        self.path = self.path.rstrip("/")
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.fs.invalidate_cache()

    def names(self) -> list[str]:
        """Names of what is in it, sorted; empty when it does not exist."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.path, detail=False)
        except FileNotFoundError:
            return []
        return sorted({p.rstrip("/").rsplit("/", 1)[-1] for p in found})

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it, by name; empty when it does not exist."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.path, detail=True)
        except FileNotFoundError:
            return {}
        return {f["name"].rstrip("/").rsplit("/", 1)[-1]: int(f["size"] or 0) for f in found if f["type"] == "file"}

    def child(self, name: str) -> Place:
        """A directory in it."""
        return Place(f"{self.uri}/{name}")

    @property
    def full(self) -> bool:
        """Whether the file system has no room to speak of (local ones; of others nobody knows)."""
        if not self.local:
            return False
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize < _ROOM_BYTES_MIN

    def make(self) -> None:
        """Create the directory."""
        self.fs.makedirs(self.path, exist_ok=True)

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists(f"{self.path}/{name}"))

    def read_text(self, name: str) -> str:
        """A small file's text."""
        with self.fs.open(f"{self.path}/{name}", "rb") as stream:
            return str(stream.read().decode())

    def write_text(self, name: str, text: str) -> None:
        """Atomically where the file system can: a reader sees all of it or nothing."""
        if not self.local:
            with self.fs.open(f"{self.path}/{name}", "wb") as stream:
                stream.write(text.encode())
            return
        temp = f"{self.path}/{name}.part"
        with open(temp, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, f"{self.path}/{name}")

    def sync(self) -> None:
        """Make what was created or renamed in it durable (local file systems)."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def entry(self, name: str) -> FileEntry:
        """Size and CRC of a file, read whole."""
        crc, size = 0, 0
        with self.fs.open(f"{self.path}/{name}", "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        return FileEntry(size, crc)

    def remove(self) -> None:
        """The directory and all in it; fine when it is gone."""
        try:
            self.fs.rm(self.path, recursive=True)
        except FileNotFoundError:
            return

    def remove_files(self, prefix: str) -> None:
        """The files in it whose names begin so."""
        for name in self.names():
            if name.startswith(prefix):
                self.fs.rm(f"{self.path}/{name}")


def temp_name(step: int, epoch: int, token: str = "") -> str:
    """Name of an unfinished checkpoint; hidden, and never used by another epoch.

    `token` tells apart what runs of the same job leave behind: each counts its epochs from 1.
    """
    return f".tmp-step-{step:08d}-e{epoch}" + (f"-{token}" if token else "")


def final_name(step: int, epoch: int, token: str, *, local: bool) -> str:
    """Name of a finished one (written in place where the file system cannot rename)."""
    return f"step-{step:08d}" if local else f"step-{step:08d}-e{epoch}-{token}"


def read_manifest(uri: str) -> Manifest:
    """The commit marker of one checkpoint. Raises BadCheckpoint when there is none or it cannot be read."""
    place = Place(uri)
    if not place.exists(COMMIT):
        raise BadCheckpoint(f"it has no {COMMIT}: it was never completed")
    return Manifest.from_text(place.read_text(COMMIT))


def verify(uri: str) -> Manifest:
    """Read every file of a checkpoint and compare with its manifest. Raises BadCheckpoint, OSError."""
    manifest = read_manifest(uri)
    place = Place(uri)
    for name, expected in sorted(manifest.files.items()):
        if not place.exists(name):
            raise BadCheckpoint(f"file {name} is missing")
        found = place.entry(name)
        if found != expected:
            what = "size" if found.bytes != expected.bytes else "content"
            raise BadCheckpoint(f"file {name} has another {what} than when it was committed")
    return manifest


def list_steps(uri: str) -> list[tuple[int, str]]:
    """(step, URI) of everything that looks like a finished checkpoint, newest first."""
    place = Place(uri)
    found = [(int(m.group(1)), f"{place.uri}/{n}") for n in place.names() if (m := _NAME.fullmatch(n))]
    return sorted(found, reverse=True)


def list_unfinished(uri: str) -> list[tuple[int, str]]:
    """(step, URI) of what is being written, or was left by an attempt that failed; on a local file system only."""
    place = Place(uri)
    return [(int(m.group(1)), f"{place.uri}/{n}") for n in place.names() if (m := _TEMP.fullmatch(n))]


def newest_good(uri: str, job: str, skipped: list[str] | None = None) -> CheckpointRef | None:
    """The newest checkpoint of this job that is complete and undamaged, or None.

    Why newer ones were passed over is appended to `skipped`. Reads all of each candidate's files. Raises OSError when the
    place itself cannot be read.
    """
    for step, candidate in list_steps(uri):
        try:
            manifest = verify(candidate)
            if manifest.job != job:
                raise BadCheckpoint(f"it belongs to job {manifest.job!r}")
            if manifest.step != step:
                raise BadCheckpoint(f"its name says step {step}, its manifest {manifest.step}")
        except (BadCheckpoint, OSError) as error:
            if skipped is not None:
                skipped.append(f"{candidate}: {error}")
            continue
        return CheckpointRef(step=step, uri=candidate, digest=manifest.digest)
    return None


def prune(uri: str, *, job: str, keep: int, step: int, epoch: int, committed: str) -> None:
    """After `committed` (a name) of `step` counts: keep it and the newest before it, `keep` in all. Raises OSError.

    Only what has a commit marker of this job counts as kept. What is newer than `step`, or belongs to another job, is left
    alone; what older attempts left unfinished goes.
    """
    place = Place(uri)
    good: list[tuple[int, bool, int, str]] = []
    unfinished: list[tuple[int, str]] = []
    for found, candidate in list_steps(uri):
        if found > step:
            continue  # damaged, or we would have gone on from it: not a reason to remove what is known to be good
        try:
            manifest = read_manifest(candidate)
        except BadCheckpoint:
            unfinished.append((found, candidate))
            continue
        if manifest.job == job:
            good.append((found, candidate.endswith(f"/{committed}"), manifest.epoch, candidate))
    good.sort(reverse=True)
    kept = good[: max(1, keep)]
    for *_, old in good[max(1, keep) :]:
        Place(old).remove()
    for found, old in unfinished:
        if kept and found < kept[-1][0]:
            Place(old).remove()
    sweep(place, step=step, epoch=epoch)


def sweep(place: Place, *, step: int, epoch: int, but: str = "") -> None:
    """Remove what older epochs, or this one up to `step`, left unfinished, except the one named `but`. Raises OSError."""
    for name in place.names():
        match = _TEMP.fullmatch(name)
        if match is None or name == but:
            continue
        its_step, its_epoch = int(match.group(1)), int(match.group(2))
        if its_epoch < epoch or (its_epoch == epoch and its_step <= step):
            place.child(name).remove()
