"""Sums of the canonical tree: counted as the engine's own accumulator has them."""

from __future__ import annotations

import pytest

from orchestrator.core.planner.cost.sums import streamed_sums, tree_sums
from orchestrator.engine.accumulate import GradAccumulator
from orchestrator.engine.buffers import BufferPool
from orchestrator.engine.tree import Folder, all_segments


class Counting(BufferPool):
    """How many buffers are out, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.out = self.most = 0

    def take(self, numel: int, dtype: object = None) -> object:  # type: ignore[override]
        self.out += 1
        self.most = max(self.most, self.out)
        return super().take(numel)

    def give(self, tensor: object) -> None:
        self.out -= 1
        super().give(tensor)  # type: ignore[arg-type]


@pytest.mark.parametrize("total", [1, 2, 3, 6, 7, 8, 13, 16, 24, 33])
@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_buffers_and_partial_sums_are_the_accumulators(total: int, replicas: int) -> None:
    runs = tuple((total * r // replicas, total * (r + 1) // replicas) for r in range(replicas))
    most, left = 1, 1
    for lo, hi in runs:
        pool = Counting()
        sums = GradAccumulator(1, total=total, lo=lo, hi=hi, pool=pool, join_leaves=True)
        for _ in range(lo, hi):
            sums.begin()
            sums.commit()
        most, left = max(most, pool.most), max(left, len(sums.partials()))
    assert tree_sums(runs, total) == (most, left)
    assert left == max(1, max(map(len, all_segments(total, replicas))))


@pytest.mark.parametrize(("total", "replicas"), [(8, 2), (7, 2), (13, 3), (16, 16), (24, 4), (5, 1)])
def test_streamed_sums_are_the_folders_between_rounds(total: int, replicas: int) -> None:
    folder: Folder[int] = Folder(total, lambda a, b: a + b)
    alive, most = 0, 0
    for index in range(total):
        alive += 1 - folder.push((index, index + 1), 1)
        if (index + 1) % replicas == 0 or index + 1 == total:
            most = max(most, alive)
    assert streamed_sums(total, replicas) >= most
    assert streamed_sums(total, replicas) <= max(most, total.bit_count())
