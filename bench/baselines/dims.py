"""The size of the model that every measured system trains, as one value that travels on command lines.

It is stdlib only, because the driver that kills and measures must run under any Python, without torch. The defaults
give 12.6 M parameters and a step of about 0.3 s for 4 ranks of one thread each on 2 cores.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Model and batch. `batch` is sequences per rank and micro-batch; `seq` is tokens per sequence."""

    vocab: int = 256
    seq: int = 64
    width: int = 384
    heads: int = 6
    layers: int = 7
    batch: int = 1
    micro_batches_per_rank: int = 1
    data_seed: int = 1234

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    def as_flags(self) -> list[str]:
        """The command line flags from which `dims_from` builds an equal value."""
        return [part for key, value in asdict(self).items() for part in (f"--{key.replace('_', '-')}", str(value))]


def add_dims_flags(parser: argparse.ArgumentParser) -> None:
    """Adds one integer flag per field of `Dims`."""
    group = parser.add_argument_group("model and batch")
    for field in fields(Dims):
        group.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)


def dims_from(args: argparse.Namespace) -> Dims:
    """Builds `Dims` from parsed flags; raises ValueError for an impossible size."""
    return Dims(**{field.name: getattr(args, field.name) for field in fields(Dims)})
