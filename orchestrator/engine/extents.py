"""Where the elements of a flat vector lie in memory, so that a reshard never copies what stays.

An `Extents` maps disjoint intervals of the vector to 1-D tensors. A new plan adds tensors for what arrives and drops what it
does not need; what both plans hold keeps its place. Tensors come from `Pages` in chunks of bounded size, so that memory is
freed chunk by chunk, and freed pages are used again: on a CPU the first touch of fresh pages costs ten times a copy.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.core.plan.layout import Interval, Intervals, merge

SLAB_BYTES_MAX = 64 << 20
CHUNK_BYTES = 16 << 20  # extents are cut at multiples of this, so that slabs fit one plan as well as the next
_PAGE_BYTES = 4096


@dataclass(slots=True)
class _Chunk:
    """A tensor as it was added, and how many of its elements are still held."""

    tensor: Tensor
    live: int


@dataclass(frozen=True, slots=True)
class _Extent:
    interval: Interval
    tensor: Tensor  # a view of the chunk's
    chunk: _Chunk


class Extents:
    """Disjoint intervals of a flat vector, in order, each with a 1-D tensor of one dtype and device. Not thread-safe."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device  # with its index
        self._extents: list[_Extent] = []
        self._starts: list[int] = []

    def add(self, interval: Interval, tensor: Tensor) -> None:
        """Hold `interval` in `tensor` [interval.numel]. Raises ValueError when it overlaps or does not fit."""
        if tensor.dim() != 1 or tensor.numel() != interval.numel or not tensor.is_contiguous():
            raise ValueError(
                f"[{interval.start}, {interval.stop}) needs a dense tensor [{interval.numel}], not {list(tensor.shape)}"
            )
        if tensor.dtype is not self.dtype or tensor.device != self.device:
            raise ValueError(f"{tensor.dtype} on {tensor.device} among extents of {self.dtype} on {self.device}")
        self._insert(_Extent(interval, tensor, _Chunk(tensor, interval.numel)))

    def _insert(self, extent: _Extent) -> None:
        at = bisect.bisect_left(self._starts, extent.interval.start)
        near = [e.interval for e in self._extents[max(0, at - 1) : at + 1]]
        for i in near:
            if i.start < extent.interval.stop and extent.interval.start < i.stop:
                raise ValueError(f"{extent.interval} overlaps {i}, which is held")
        self._extents.insert(at, extent)
        self._starts.insert(at, extent.interval.start)

    # ------------------------------------------------------------------------------------------------------- reading it

    @property
    def intervals(self) -> Intervals:
        """What is held, neighbours joined."""
        return merge(e.interval for e in self._extents)

    @property
    def numel(self) -> int:
        """Elements held."""
        return sum(e.interval.numel for e in self._extents)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements held."""
        return self.numel * self.dtype.itemsize

    @property
    def resident_nbytes(self) -> int:
        """Bytes of the chunks, of which some elements may have been dropped."""
        return sum(c.tensor.nbytes for c in {id(e.chunk): e.chunk for e in self._extents}.values())

    def __iter__(self) -> Iterator[tuple[Interval, Tensor]]:
        """(interval, its tensor) in order; each lies in one chunk, and neighbours are not joined."""
        return iter([(e.interval, e.tensor) for e in self._extents])

    def __len__(self) -> int:
        return len(self._extents)

    def pieces(self, start: int, stop: int) -> list[tuple[int, int, Tensor]]:
        """[start, stop) as (start, stop, view [stop - start]) in order. Raises KeyError that names what is missing."""
        out: list[tuple[int, int, Tensor]] = []
        at, n = start, max(0, bisect.bisect_right(self._starts, start) - 1)
        while at < stop and n < len(self._extents):
            held, tensor = self._extents[n].interval, self._extents[n].tensor
            if not held.start <= at < held.stop:
                break
            hi = min(stop, held.stop)
            out.append((at, hi, tensor[at - held.start : hi - held.start]))
            at, n = hi, n + 1
        if at < stop:
            words = ", ".join(f"[{i.start}, {i.stop})" for i in self.intervals[:8])
            raise KeyError(f"[{at}, {stop}) is not all held; held: {words or 'nothing'}")
        return out

    def view(self, start: int, stop: int) -> Tensor:
        """[stop - start] view. Raises KeyError when it is not held, or not in one chunk."""
        found = self.pieces(start, stop)
        if len(found) != 1:
            raise KeyError(f"[{start}, {stop}) lies in {len(found)} chunks, cut at {[lo for lo, _, _ in found[1:]]}")
        return found[0][2]

    def covers(self, start: int, stop: int) -> bool:
        """Whether all of [start, stop) is held."""
        return any(i.start <= start and stop <= i.stop for i in self.intervals)

    # ------------------------------------------------------------------------------------------------------ changing it

    def drop(self, intervals: Intervals) -> list[Tensor]:
        """Hold them no more (what is not held is no matter); returns the tensors, as added, of which nothing is held now.

        An extent that is cut keeps a view of its chunk.
        """
        cuts = merge(intervals)
        kept: list[_Extent] = []
        freed: list[Tensor] = []
        for e in self._extents:
            left = self._without(e, cuts)
            e.chunk.live -= e.interval.numel - sum(k.interval.numel for k in left)
            if e.chunk.live == 0:
                freed.append(e.chunk.tensor)
            kept += left
        self._extents = kept
        self._starts = [e.interval.start for e in kept]
        return freed

    @staticmethod
    def _without(extent: _Extent, cuts: Intervals) -> list[_Extent]:
        whole, left = extent.interval, []
        at = whole.start
        first = max(0, bisect.bisect_right(cuts, whole.start, key=lambda c: c.start) - 1)
        for cut in cuts[first:]:
            if cut.start >= whole.stop:
                break
            if cut.start > at:
                left.append(Interval(at, cut.start))
            at = max(at, cut.stop)
        if at == whole.start and not left:
            return [extent]
        if at < whole.stop:
            left.append(Interval(at, whole.stop))
        return [_Extent(i, extent.tensor[i.start - whole.start : i.stop - whole.start], extent.chunk) for i in left]

    def merged_with(self, other: Extents) -> Extents:
        """Both, which must be disjoint; the tensors are the same, and a later drop of one does not change the other."""
        if other.dtype is not self.dtype or other.device != self.device:
            raise ValueError(f"{other.dtype} on {other.device} does not go with {self.dtype} on {self.device}")
        out = Extents(self.dtype, self.device)
        chunks: dict[int, _Chunk] = {}
        for e in (*self._extents, *other._extents):
            chunk = chunks.setdefault(id(e.chunk.tensor), _Chunk(e.chunk.tensor, 0))
            chunk.live += e.interval.numel
            out._insert(_Extent(e.interval, e.tensor, chunk))
        return out


class Pages:
    """Free slabs of touched memory of one device, whatever the dtype they are used with next. Not thread-safe.

    Slabs that took part in an operation of a broken group may still be written to: never give those back.
    """

    def __init__(self, device: torch.device | str = "cpu", *, free_bytes_max: int = 4 << 30) -> None:
        self.device = torch.empty(0, device=device).device
        self.free_bytes = 0
        self._free_bytes_max = free_bytes_max
        self._free: list[Tensor] = []  # uint8, by size

    def take(self, numel: int, dtype: torch.dtype, *, zero: bool = True) -> Tensor:
        """Zeros [numel], or anything if not `zero`. Raises ValueError for more than SLAB_BYTES_MAX."""
        slab = self._slab(numel * dtype.itemsize)
        tensor = slab[: numel * dtype.itemsize].view(dtype)
        return tensor.zero_() if zero else tensor

    def _slab(self, nbytes: int) -> Tensor:
        if not 0 < nbytes <= SLAB_BYTES_MAX:
            raise ValueError(f"a slab of {nbytes} bytes; 1 to {SLAB_BYTES_MAX} are possible")
        at = bisect.bisect_left(self._free, nbytes, key=Tensor.numel)
        if at < len(self._free) and self._free[at].numel() <= 2 * nbytes:
            slab = self._free.pop(at)
            self.free_bytes -= slab.numel()
            return slab
        return self._fresh(-(-nbytes // _PAGE_BYTES) * _PAGE_BYTES)

    def _fresh(self, nbytes: int) -> Tensor:
        if self.device.type != "cpu":
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        # Not malloc: what is freed here goes back to the system, and huge pages make the first touch cheap.
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=torch.uint8)

    def give(self, tensor: Tensor) -> None:
        """Hand back a tensor from `take` (or any view of it) that nobody uses any more; freed when the pool is full."""
        storage = tensor.untyped_storage()
        if self.free_bytes + storage.nbytes() > self._free_bytes_max:
            return
        slab = torch.empty(0, dtype=torch.uint8, device=self.device).set_(storage)
        self._free.insert(bisect.bisect_left(self._free, slab.numel(), key=Tensor.numel), slab)
        self.free_bytes += slab.numel()

    def prefault(self, numel: int, dtype: torch.dtype) -> None:
        """Touch the memory of [numel], in whole slabs of CHUNK_BYTES, as far as the pool takes it."""
        left = numel * dtype.itemsize
        while left >= CHUNK_BYTES and self.free_bytes < self._free_bytes_max:
            slab = self._fresh(CHUNK_BYTES)
            slab.zero_()
            self.give(slab)
            left -= CHUNK_BYTES

    def extents(self, intervals: Intervals, dtype: torch.dtype, *, zero: bool = True) -> Extents:
        """Memory for `intervals`, cut at multiples of CHUNK_BYTES of the vector."""
        out = Extents(dtype, self.device)
        grain = CHUNK_BYTES // dtype.itemsize
        for i in merge(intervals):
            lo = i.start
            while lo < i.stop:
                hi = min(i.stop, (lo // grain + 1) * grain)
                out.add(Interval(lo, hi), self.take(hi - lo, dtype, zero=zero))
                lo = hi
        return out

    def clear(self) -> None:
        """Free everything."""
        self._free.clear()
        self.free_bytes = 0
