"""One hex digest of params and optimizer state, the same for every layout, and proof that copies are equal.

Each holder sums each block of what it holds as 64-bit words (wrapping), each owner adds a CRC; the sums are gathered,
copies are held against the owner's, and the owners' are folded in block order. A flipped bit in one copy stops the
run and names tensor, block and ranks, instead of surfacing days later in the loss.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from orchestrator.core.plan.layout import Intervals
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.engine.groups.base import EpochGroup
from orchestrator.engine.optim import Regions

_NAMED_MAX = 4

View = Callable[[int, int], Tensor]  # (start, stop) of the flat vector -> those elements of one state tensor


class CopiesDiffer(Exception):
    """Two ranks hold different bits of what must be equal."""


def word_sum(values: Tensor) -> int:
    """Sum of a 1-D tensor's bytes as 64-bit words, wrapping (int64). Its bytes must be a multiple of 8, and so aligned."""
    return int(values.detach().view(torch.uint8).view(torch.int64).sum())


def _block_sums(values: Tensor, block: int) -> Tensor:
    """int64 [n / block] word sums of whole blocks of [n] elements."""
    words = values.detach().view(torch.uint8).view(-1, block * values.element_size()).view(torch.int64)
    return words.sum(dim=1)


def _block_crcs(values: Tensor, block: int) -> list[int]:
    """CRC-32 of each block's bytes."""
    data = values.detach().cpu().view(torch.uint8).numpy().data
    step = block * values.element_size()
    return [zlib.crc32(data[at : at + step]) for at in range(0, len(data), step)]


class Digester:
    """Digests the state of one plan; every rank of the group calls it with its own part."""

    def __init__(self, *, plan: Plan, group: EpochGroup, keys: Sequence[str]) -> None:
        self._plan, self._group = plan, group
        self._keys = tuple(keys)  # of the optimizer's elementwise tensors, sorted; equal on all ranks
        self._numel = plan.layout(PARAMS).numel
        self._blocks = self._numel // plan.block

    def compute(self, *, step: int, flat: Tensor, regions: Regions, moments: Mapping[str, Tensor]) -> str:
        """Hex digest after `step`. `flat` is fp32 [padded_numel], `moments` compact over `regions`.

        Raises CopiesDiffer, GroupBroken.
        """
        width = len(self._keys) + 1
        table = torch.zeros(2, width, self._blocks, dtype=torch.int64)  # [word sum | CRC, tensor, block]
        self._fill(table, 0, PARAMS, lambda lo, hi: flat[lo:hi])
        for row, key in enumerate(self._keys, start=1):
            self._fill(table, row, OPTIMIZER, partial(regions.view, moments[key]))
        gathered = torch.empty(self._group.size * table.numel(), dtype=torch.int64, device=flat.device)
        self._group.all_gather_into(gathered, table.view(-1).to(flat.device))
        tables = gathered.cpu().view(self._group.size, 2, width, self._blocks)
        return self._fold(step, tables)

    def _fill(self, table: Tensor, row: int, layout: str, view: View) -> None:
        holding = self._plan.layout(layout).holdings[self._group.rank]
        for i in holding.everything:
            lo, hi = i.start // self._plan.block, i.stop // self._plan.block
            table[0, row, lo:hi] = _block_sums(view(i.start, i.stop), self._plan.block).cpu()
        for i in holding.primary:
            lo, hi = i.start // self._plan.block, i.stop // self._plan.block
            crcs = _block_crcs(view(i.start, i.stop), self._plan.block)
            table[1, row, lo:hi] = torch.tensor(crcs, dtype=torch.int64)

    def _fold(self, step: int, tables: Tensor) -> str:
        digest = hashlib.sha256(f"{step}:{self._numel}:{self._plan.block}".encode())
        for row, name in enumerate((PARAMS, *self._keys)):
            holdings = self._plan.layout(PARAMS if row == 0 else OPTIMIZER).holdings
            owned = torch.zeros(2, self._blocks, dtype=torch.int64)
            owner = torch.zeros(self._blocks, dtype=torch.int64)
            for rank, holding in enumerate(holdings):
                for lo, hi in self._spans(holding.primary):
                    owned[:, lo:hi] = tables[rank, :, row, lo:hi]
                    owner[lo:hi] = rank
            for rank, holding in enumerate(holdings):
                for lo, hi in self._spans(holding.everything):
                    differ = tables[rank, 0, row, lo:hi] != owned[0, lo:hi]
                    if bool(differ.any()):
                        blocks = (differ.nonzero().view(-1) + lo).tolist()
                        raise CopiesDiffer(self._words(step, name, rank, blocks, owner))
            digest.update(name.encode() + owned.numpy().tobytes())
        return digest.hexdigest()

    def _spans(self, intervals: Intervals) -> list[tuple[int, int]]:
        return [(i.start // self._plan.block, i.stop // self._plan.block) for i in intervals]

    def _words(self, step: int, name: str, rank: int, blocks: Sequence[int], owner: Tensor) -> str:
        shown = ", ".join(
            f"block {b} (elements [{b * self._plan.block}, {(b + 1) * self._plan.block})) against its owner, rank {int(owner[b])}"
            for b in blocks[:_NAMED_MAX]
        )
        more = f" and {len(blocks) - _NAMED_MAX} more" if len(blocks) > _NAMED_MAX else ""
        return f"after step {step} rank {rank} holds other bits of {name} than the rank that owns them: {shown}{more}"
