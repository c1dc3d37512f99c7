"""How a list of transfers is cut: into pieces and windows, the same on every rank, and pieces into parts that lie in one run of
memory at both ends, so that nothing needs to be staged, but for small parts, which are bundled.

Windows bound what travels at a time. Within a round the transfers take turns, piece by piece, so that all of its pairs of ranks
are busy; a window belongs to one round.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.core.reshard.recovery import Transfer
from orchestrator.engine.extents import Extents

PIECE_NUMEL = 2 << 20  # 8 MiB of fp32
WINDOW_NUMEL = 4 << 20  # in or out of the busiest rank; an optimizer's travels once for each of its tensors
SMALL_NUMEL = 1 << 16  # parts below this travel together: a new tensor degree cuts a matrix into one part for each row
BUNDLE_NUMEL = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice of one transfer, of all tensors of its kind."""

    transfer: int  # index in the list
    start: int  # in the new plan's vector
    stop: int


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of one tensor that is one run of memory at both ends."""

    transfer: int
    tensor: str  # kind
    key: int  # which tensor of the kind
    src: int
    dst: int
    start: int
    stop: int
    src_start: int
    address: int  # in the sender's memory
    itemsize: int  # bytes

    @property
    def numel(self) -> int:
        """Elements."""
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class Runs:
    """How one tensor's slice lies in memory."""

    ends: tuple[int, ...]  # offsets in the slice at which a run ends
    addresses: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True, slots=True)
class RunTable:
    """Of one transfer at one end, for each tensor of its kind."""

    tensors: tuple[Runs, ...]

    @classmethod
    def of(cls, extents: Sequence[Extents], start: int, stop: int) -> RunTable:
        """Raises KeyError for what is not held."""
        out = []
        for one in extents:
            found = one.pieces(start, stop)
            out.append(
                Runs(tuple(hi - start for _, hi, _ in found), tuple(v.data_ptr() for _, _, v in found), one.dtype.itemsize)
            )
        return cls(tuple(out))


def pack_runs(tables: Iterable[RunTable]) -> Iterator[int]:
    """For a message."""
    for table in tables:
        yield len(table.tensors)
        for runs in table.tensors:
            yield runs.itemsize
            yield len(runs.ends)
            yield from runs.ends
            yield from runs.addresses


def unpack_runs(words: Iterator[int], count: int) -> list[RunTable]:
    """The first `count` tables of a message; the rest stays in `words`."""
    out = []
    for _ in range(count):
        tensors = []
        for _ in range(next(words)):
            itemsize, n = next(words), next(words)
            ends, addresses = tuple(itertools.islice(words, n)), tuple(itertools.islice(words, n))
            tensors.append(Runs(ends, addresses, itemsize))
        out.append(RunTable(tuple(tensors)))
    return out


def cut_parts(piece: Piece, transfer: Transfer, source: RunTable, target: RunTable) -> Iterator[Part]:
    """The parts of a piece, in the order in which both ends go through them. Raises ValueError when the ends do not fit."""
    if [r.itemsize for r in source.tensors] != [r.itemsize for r in target.tensors]:
        raise ValueError(f"ranks {transfer.src} and {transfer.dst} keep different tensors under {transfer.tensor!r}")
    first, last = piece.start - transfer.start, piece.stop - transfer.start
    for key, (out, into) in enumerate(zip(source.tensors, target.tensors, strict=True)):
        for lo, hi in itertools.pairwise(_cuts(first, last, out.ends, into.ends)):
            run = bisect.bisect_right(out.ends, lo)
            begin = out.ends[run - 1] if run else 0
            yield Part(
                transfer=piece.transfer,
                tensor=transfer.tensor,
                key=key,
                src=transfer.src,
                dst=transfer.dst,
                start=transfer.start + lo,
                stop=transfer.start + hi,
                src_start=transfer.src_start + lo,
                address=out.addresses[run] + (lo - begin) * out.itemsize,
                itemsize=out.itemsize,
            )


def _cuts(first: int, last: int, *ends: tuple[int, ...]) -> list[int]:
    inner = {e for some in ends if len(some) > 1 for e in some[bisect.bisect_right(some, first) :] if e < last}
    return [first, *sorted(inner), last]


def bundles(parts: Iterable[Part]) -> list[list[Part]]:
    """What makes one message, with one pair of sums: a part, or many small ones of one tensor between the same two ranks.

    `parts` are those of one window; the bundles between two ranks are in the same order at both.
    """
    out: list[list[Part]] = []
    open_at: dict[tuple[int, int, str, int], tuple[int, int]] = {}  # bundle, its elements so far
    for part in parts:
        if part.numel >= SMALL_NUMEL:
            out.append([part])
            continue
        kind = (part.src, part.dst, part.tensor, part.key)
        at, numel = open_at.get(kind, (-1, BUNDLE_NUMEL))
        if numel + part.numel > BUNDLE_NUMEL:
            at, numel = len(out), 0
            out.append([])
        out[at].append(part)
        open_at[kind] = (at, numel + part.numel)
    return out


def windows(transfers: Sequence[Transfer]) -> Iterator[list[Piece]]:
    """Bounded lists of pieces that travel together, round after round; the same on every rank."""
    for _, group in itertools.groupby(enumerate(transfers), key=lambda nt: nt[1].round):
        window: list[Piece] = []
        out: dict[int, int] = {}  # rank -> elements that it sends
        into: dict[int, int] = {}
        for piece in _by_turns(list(group)):
            t, n = transfers[piece.transfer], piece.stop - piece.start
            if window and max(out.get(t.src, 0), into.get(t.dst, 0)) + n > WINDOW_NUMEL:
                yield window
                window, out, into = [], {}, {}
            window.append(piece)
            out[t.src] = out.get(t.src, 0) + n
            into[t.dst] = into.get(t.dst, 0) + n
        if window:
            yield window


def _by_turns(transfers: Sequence[tuple[int, Transfer]]) -> Iterator[Piece]:
    lo = 0
    while transfers:
        for n, t in transfers:
            yield Piece(n, t.start + lo, min(t.stop, t.start + lo + PIECE_NUMEL))
        lo += PIECE_NUMEL
        transfers = [(n, t) for n, t in transfers if t.start + lo < t.stop]
