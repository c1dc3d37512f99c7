"""Looking at durable checkpoints from outside a run: list what lies in a place, verify one to the last byte, export its model.

Nothing here needs the task, a process group or the job's file: a checkpoint's manifest says how its state is laid out. What is
wrong with a checkpoint is an answer of `verify`; everywhere else it is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.engine.checkpoint_files import (
    COMMIT,
    BadCheckpoint,
    Manifest,
    Place,
    list_steps,
    list_unfinished,
    read_manifest,
)
from orchestrator.engine.checkpoint_read import load_model, stored_digest
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, DamagedFile, ExportedModel, ExportType
from orchestrator.runtime.control import NotFoundError, NotPossibleError

_DTYPES = {ExportType.FP32: torch.float32, ExportType.BF16: torch.bfloat16, ExportType.FP16: torch.float16}


class Tools:
    """Implements runtime.ports.CheckpointTools. Has no state."""

    def list(self, uri: str) -> tuple[CheckpointInfo, ...]:
        """Every checkpoint at the place (or the one that `uri` is), complete or not, newest first. Raises OSError."""
        place = Place(uri)
        if place.exists(COMMIT):
            return (_info(place.uri, step=0),)
        found = [_info(one, step=step) for step, one in list_steps(uri)]
        under_way = [_info(one, step=step) for step, one in list_unfinished(uri)]
        return tuple(sorted(found + under_way, key=lambda c: (-c.step, not c.complete, c.uri)))

    def verify(self, uri: str, *, step: int | None) -> CheckpointVerdict:
        """Read every byte and compute the digest anew. Raises NotFoundError, OSError when the place cannot be read."""
        info = self._choose(uri, step=step, complete=False)
        try:
            manifest = read_manifest(info.uri)
        except BadCheckpoint as error:
            return CheckpointVerdict(info=info, damaged=(), digest="", trouble=str(error))
        damaged = _damaged(Place(info.uri), manifest)
        if damaged:
            trouble = f"{len(damaged)} of {len(manifest.files)} files are not what was committed"
            return CheckpointVerdict(info=info, damaged=damaged, digest="", trouble=trouble)
        try:
            digest = stored_digest(info.uri)
        except BadCheckpoint as error:
            return CheckpointVerdict(info=info, damaged=(), digest="", trouble=f"the files are as committed, but {error}")
        trouble = "" if digest == manifest.digest else f"the state has digest {digest}, the manifest says {manifest.digest}"
        return CheckpointVerdict(info=info, damaged=(), digest=digest, trouble=trouble)

    def export(self, uri: str, *, step: int | None, path: str, dtype: ExportType) -> ExportedModel:
        """Write the model to a safetensors file that appears in one instant; the whole model is in memory meanwhile.

        Tensors have their names in state_dict(), tied ones once: the metadata's `tied` maps their other names to these. Every
        file is checked as it is read. Raises NotFoundError, NotPossibleError, OSError.
        """
        info = self._choose(uri, step=step, complete=True)
        try:
            manifest = read_manifest(info.uri)
            loaded, tied = load_model(info.uri)
        except BadCheckpoint as error:
            raise NotPossibleError(f"{info.uri} cannot be exported: {error}") from error
        tensors = {name: _cast(name, tensor, dtype) for name, tensor in loaded.items()}
        metadata = {
            "format": "pt",
            "job": manifest.job,
            "step": str(manifest.step),
            "digest": manifest.digest,
            "dtype": dtype.value,
            "tied": json.dumps(tied, sort_keys=True),
        }
        size = _write(Path(path), tensors, metadata)
        return ExportedModel(
            path=path,
            job=manifest.job,
            step=manifest.step,
            digest=manifest.digest,
            tensors=len(tensors),
            size_bytes=size,
            dtype=dtype,
        )

    def _choose(self, uri: str, *, step: int | None, complete: bool) -> CheckpointInfo:
        """The newest (complete) one, or that of `step`. Raises NotFoundError, NotPossibleError, OSError."""
        found = self.list(uri)
        fitting = [c for c in found if step in (None, c.step)]
        if not fitting:
            known = ", ".join(dict.fromkeys(str(c.step) for c in found)) or "none"
            what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise NotFoundError(f"there is {what} at {uri}; there are: {known}")
        if not complete:
            return min(fitting, key=lambda c: (_under_way(c), -c.step, not c.complete))
        good = [c for c in fitting if c.complete]
        if not good:
            raise NotPossibleError(f"{fitting[0].uri} is not complete: {fitting[0].trouble}")
        return good[0]


def _under_way(info: CheckpointInfo) -> bool:
    return info.uri.rsplit("/", 1)[-1].startswith(".")


def _info(uri: str, *, step: int) -> CheckpointInfo:
    """What marker and sizes tell; `step` is the name's, and counts when the marker tells none."""
    place = Place(uri)
    sizes = place.sizes()
    manifest: Manifest | None = None
    try:
        manifest = read_manifest(uri)
        trouble = _missing(manifest, sizes)
    except BadCheckpoint as error:
        trouble = str(error)
    return CheckpointInfo(
        step=manifest.step if manifest else step,
        uri=place.uri,
        complete=not trouble,
        trouble=trouble,
        job=manifest.job if manifest else "",
        digest=manifest.digest if manifest else "",
        size_bytes=sum(sizes.values()),
        files=len(sizes),
        epoch=manifest.epoch if manifest else 0,
        ranks=manifest.ranks if manifest else 0,
        plan=f"epoch {manifest.epoch}: {manifest.plan}" if manifest else "",
    )


def _missing(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    wrong = [n for n, f in sorted(manifest.files.items()) if sizes.get(n) != f.bytes]
    return f"{', '.join(wrong[:3])}{' and others' if wrong[3:] else ''} missing or of another size" if wrong else ""


def _damaged(place: Place, manifest: Manifest) -> tuple[DamagedFile, ...]:
    out = []
    for name, expected in sorted(manifest.files.items()):
        try:
            found = place.entry(name)
        except FileNotFoundError:
            out.append(DamagedFile(name=name, why="it is missing"))
            continue
        except OSError as error:
            out.append(DamagedFile(name=name, why=f"it cannot be read: {error}"))
            continue
        if found.bytes != expected.bytes:
            out.append(DamagedFile(name=name, why=f"it has {found.bytes} bytes, {expected.bytes} were committed"))
        elif found != expected:
            out.append(DamagedFile(name=name, why="its content has changed (another CRC-32)"))
    return tuple(out)


def _cast(name: str, tensor: Tensor, dtype: ExportType) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.contiguous()
    out = tensor.to(_DTYPES[dtype]).contiguous()
    if dtype is ExportType.FP16 and bool((out.isinf() & tensor.isfinite()).any()):
        raise NotPossibleError(f"{name} has values beyond what fp16 can hold; export as bf16 or fp32")
    return out


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Its size. Raises OSError; then nothing is left, and an older file is as it was."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            save_file(dict(tensors), part, dict(metadata))
        except SafetensorError as error:  # how it wraps what the disk says
            raise OSError(f"{path} cannot be written: {error}") from error
        with part.open("rb") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return size
