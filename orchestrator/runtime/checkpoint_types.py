"""What people are told about durable checkpoints: what lies in a place, whether it is undamaged, what was exported from it.

Frozen values that the engine's checkpoint tools make, the control API carries and the CLI shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ExportType(StrEnum):
    """Type of the floating-point tensors of an exported model."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """One checkpoint, as far as its commit marker and the sizes of its files tell. What is not known is 0 or empty."""

    step: int
    uri: str
    complete: bool  # its commit marker is there, and every file that it names has its size
    trouble: str  # why it is not complete
    job: str
    digest: str
    size_bytes: int  # of all its files
    files: int
    epoch: int  # of the plan that wrote it
    ranks: int
    plan: str  # that plan in words


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedFile:
    """A file of a checkpoint that is not as it was committed."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointVerdict:
    """What came of reading every byte of a checkpoint."""

    info: CheckpointInfo
    damaged: tuple[DamagedFile, ...]
    digest: str  # computed anew from what is stored; "" when the files did not allow it
    trouble: str  # what is wrong, in one sentence; "": nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A model file that was written."""

    path: str
    job: str
    step: int
    digest: str  # of the state that it was taken from
    tensors: int
    size_bytes: int
    dtype: ExportType
