"""Two 64-bit sums of a tensor's bytes, cheap enough to take of everything that travels, on both ends.

The first is the sum of its 64-bit words, the second the sum of each word times its place (Fletcher's idea): a changed word
changes the first, words that changed places change the second. Integer sums wrap and do not depend on the order of adding.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_BYTES = 512 << 10  # summed twice while it is in the cache

_ROW = 1024
_WORD_BYTES = 8
_BLOCK = BLOCK_BYTES // _WORD_BYTES


class Summing:
    """The sums of `words` (int64 [n]), taken bit by bit: the tensor may be filled meanwhile, from its start."""

    def __init__(self, words: Tensor) -> None:
        self._words = words
        self._whole = words.numel() // _ROW * _ROW
        self._rows = words.new_empty(self._whole // _ROW)
        self._columns = words.new_zeros(_ROW)
        self._done = 0

    def advance(self, filled: int) -> None:
        """Take in all whole blocks of the first `filled` words."""
        while self._done < self._whole and (self._done + _BLOCK <= filled or filled >= self._whole):
            stop = min(self._whole, self._done + _BLOCK)
            table = self._words[self._done : stop].view(-1, _ROW)
            torch.sum(table, 1, out=self._rows[self._done // _ROW : stop // _ROW])
            self._columns += table.sum(0)
            self._done = stop

    def result(self) -> Tensor:
        """int64 [2], on the tensor's device."""
        self.advance(self._words.numel())
        rest = self._words[self._whole :]
        counting = torch.arange(max(_ROW, len(self._rows)), dtype=torch.int64, device=rest.device)
        plain = self._rows.sum() + rest.sum()
        placed = _ROW * (self._rows * counting[: len(self._rows)]).sum() + (self._columns * counting[:_ROW]).sum()
        placed += (rest * (counting[: len(rest)] + self._whole)).sum()
        return torch.stack((plain, placed + plain))


def sums(values: Tensor) -> Tensor:
    """int64 [2] of a dense 1-D tensor, on its device; the last word is filled up with zeros."""
    return Summing(words_of(values)).result()


def words_of(values: Tensor) -> Tensor:
    """A dense 1-D tensor's bytes as int64 words: a view where size and place allow it, else a copy filled up with zeros."""
    flat = values.detach().view(torch.uint8)
    if flat.numel() % _WORD_BYTES == 0 and flat.data_ptr() % _WORD_BYTES == 0 and flat.storage_offset() % _WORD_BYTES == 0:
        return flat.view(torch.int64)
    padded = torch.zeros(-(-flat.numel() // _WORD_BYTES), dtype=torch.int64, device=flat.device)
    padded.view(torch.uint8)[: flat.numel()] = flat
    return padded
