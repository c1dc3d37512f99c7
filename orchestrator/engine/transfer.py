"""Carrying out the transfers of a Resume: from the senders' extents straight into the receivers', and proof that it worked.

All ranks follow the one list, cut into the same pieces and windows, so nobody asks for anything; two windows are under way at a
time. Between processes of one node the receiver pulls out of the sender's memory (local_memory.py); else data goes over the
group. Both ends sum every part. What arrived changed is fetched again from another holder, and only when none is left that
delivers the right bits does the move fail, on every rank alike. Sources are never written to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.core.reshard.recovery import Transfer
from orchestrator.engine.checksum import BLOCK_BYTES, Summing, sums, words_of
from orchestrator.engine.control import Control
from orchestrator.engine.extents import Extents
from orchestrator.engine.groups.base import EpochGroup, GroupBroken, Handle
from orchestrator.engine.local_memory import BEACON_WORDS, Beacon, PeerGone, PeerMemory, readable
from orchestrator.engine.transfer_cut import Part, Piece, RunTable, cut_parts, pack_runs, unpack_runs, windows

_TABLE_TAG, _DATA_TAG, _SUM_TAG, _AGAIN_TAG = 1, 2, 3, 4
_AGAIN_MAX = 8  # parts that a rank has fetched again at a time: what other holders stage is bounded by it

State = Mapping[str, Sequence[Extents]]  # by tensor kind; PARAMS has one, OPTIMIZER one per elementwise tensor, by sorted key


class TransferCorrupt(Exception):
    """No holder of a region could deliver it unchanged. Raised on every rank of the group, with the same words."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What has just arrived, for `corrupt`."""

    tensor: str
    key: int  # which of the kind's tensors
    src: int
    dst: int
    start: int
    stop: int
    attempt: int  # 0: as the transfer says; then from the other holders


Corrupt = Callable[[Arrival, Tensor], None]


class _Wrong(NamedTuple):
    """A part that arrived changed; as a row of integers it is gathered."""

    transfer: int
    key: int
    start: int
    stop: int
    attempt: int  # of the holders to ask, which one is next


@dataclass(slots=True)
class MoveReport:
    """What one rank's part of a move was. Bytes are of state, without the sums and tables that go with it."""

    sent_network: int = 0
    sent_local: int = 0
    received_network: int = 0
    received_local: int = 0
    copied: int = 0  # from one place to another of the same rank
    refetched: int = 0  # parts that arrived changed here and were fetched again
    peak_extra_bytes: int = 0  # memory beyond sources and targets, at most
    seconds: float = 0.0

    @property
    def bytes_sent(self) -> int:
        """To other ranks."""
        return self.sent_network + self.sent_local

    @property
    def bytes_received(self) -> int:
        """From other ranks."""
        return self.received_network + self.received_local


def move(
    group: EpochGroup,
    transfers: Sequence[Transfer],
    *,
    rank: int,
    nodes: Sequence[str],
    sources: State,
    targets: State,
    control: Control,
    local: bool = True,
    corrupt: Corrupt | None = None,
) -> MoveReport:
    """Carry out `transfers` (by round; the same list on every rank); returns when every rank has all that it was to get.

    `rank` is the caller's, in the plan and in the group; `nodes` are the node ids by rank, of those who only send too. A rank needs in `sources` what it sends and in `targets` what it receives. `local` False
    keeps to the group. `corrupt` is for tests: it may change what has arrived before that is summed.
    Raises GroupBroken: then the targets are undefined, may still be written to and must be thrown away. Raises TransferCorrupt,
    KeyError for what a rank should have and has not.
    """
    if rank != group.rank:
        raise ValueError(f"rank {rank} of the plan is rank {group.rank} of the group")
    began = time.monotonic()
    beacon = Beacon()
    with control.comm(), readable():
        try:
            mover = _Mover(group, transfers, nodes, sources, targets, control, local, corrupt, beacon)
            mover.agree()
            mover.carry()
            mover.verify()
        finally:
            beacon.close()  # whoever would still read is broken too
    mover.report.seconds = time.monotonic() - began
    return mover.report


class _Mover:
    """One rank's side of one move."""

    def __init__(
        self,
        group: EpochGroup,
        transfers: Sequence[Transfer],
        nodes: Sequence[str],
        sources: State,
        targets: State,
        control: Control,
        local: bool,
        corrupt: Corrupt | None,
        beacon: Beacon,
    ) -> None:
        self._group, self._rank = group, group.rank
        self._transfers, self._nodes = transfers, nodes
        self._sources, self._targets = sources, targets
        self._control, self._corrupt, self._beacon = control, corrupt, beacon
        self._device = next(e.device for table in (targets, sources) for kind in table.values() for e in kind)
        self._may_pull = local and self._device.type == "cpu"
        self._source_runs: dict[int, RunTable] = {}  # by transfer, of those that concern this rank
        self._target_runs: dict[int, RunTable] = {}
        self._pulls_from: dict[int, PeerMemory] = {}
        self._pulled_by: set[int] = set()
        self._sums_out: dict[int, list[Tensor]] = {}  # by receiver, in the order of the parts
        self._sums_in: dict[int, list[tuple[Part, Tensor]]] = {}
        self.report = MoveReport()

    # -------------------------------------------------------------------------------------------------- before it starts

    def agree(self) -> None:
        """Tell each peer where my memory is cut, and with each sender of this node whether I can pull from it."""
        mine = [n for n, t in enumerate(self._transfers) if self._rank in (t.src, t.dst)]
        for n in mine:
            t = self._transfers[n]
            if t.src == self._rank:
                spans = self._sources[t.tensor]
                self._source_runs[n] = RunTable.of(spans, t.src_start, t.src_start + t.stop - t.start)
            if t.dst == self._rank:
                self._target_runs[n] = RunTable.of(self._targets[t.tensor], t.start, t.stop)
        to = {p: [n for n in mine if self._transfers[n].dst == p] for p in self._peers(mine)}
        frm = {p: [n for n in mine if self._transfers[n].src == p] for p in to}
        told = self._swap(
            {
                p: [
                    *(self._beacon.words if self._may_pull else [0] * BEACON_WORDS),
                    *pack_runs(self._source_runs[n] for n in to[p]),
                    *pack_runs(self._target_runs[n] for n in frm[p]),
                ]
                for p in to
            }
        )
        for p, words in told.items():
            beacon, rest = words[:BEACON_WORDS], iter(words[BEACON_WORDS:])
            self._source_runs.update(zip(frm[p], unpack_runs(rest, len(frm[p])), strict=True))
            self._target_runs.update(zip(to[p], unpack_runs(rest, len(to[p])), strict=True))
            memory = PeerMemory(beacon)
            if frm[p] and self._may_pull and self._nodes[p] == self._nodes[self._rank] and memory.reachable():
                self._pulls_from[p] = memory
        verdicts = {p: torch.zeros(1, dtype=torch.int64, device=self._device) for p in to if to[p]}
        answers = [(torch.tensor([int(p in self._pulls_from)], dtype=torch.int64, device=self._device), p) for p in frm if frm[p]]
        self._group.exchange(answers, [(v, p) for p, v in verdicts.items()], tag=_TABLE_TAG).wait()
        self._pulled_by = {p for p, v in verdicts.items() if int(v)}

    def _peers(self, mine: Sequence[int]) -> list[int]:
        return sorted({p for n in mine for p in (self._transfers[n].src, self._transfers[n].dst)} - {self._rank})

    def _swap(self, words: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
        """Lists of integers with each peer, who has one for me."""
        out = {p: torch.tensor(w, dtype=torch.int64, device=self._device) for p, w in words.items()}
        sizes = {p: torch.zeros(1, dtype=torch.int64, device=self._device) for p in words}
        lengths = [(torch.tensor([t.numel()], dtype=torch.int64, device=self._device), p) for p, t in out.items()]
        self._group.exchange(lengths, [(t, p) for p, t in sizes.items()], tag=_TABLE_TAG).wait()
        told = {p: torch.empty(int(n), dtype=torch.int64, device=self._device) for p, n in sizes.items()}
        self._group.exchange([(t, p) for p, t in out.items()], [(t, p) for p, t in told.items()], tag=_TABLE_TAG).wait()
        return {p: t.tolist() for p, t in told.items()}

    # --------------------------------------------------------------------------------------------------------- the moving

    def carry(self) -> None:
        """All windows, two of them under way."""
        pending: tuple[Handle, list[Part]] | None = None
        for window in windows(self._transfers):
            self._control.check()
            parts = [part for piece in window for part in self._parts(piece)]
            outgoing = [p for p in parts if p.src == self._rank != p.dst]
            incoming = [p for p in parts if p.dst == self._rank != p.src]
            posted = [p for p in incoming if p.src not in self._pulls_from]
            sends = [(self._source(p), p.dst) for p in outgoing if p.dst not in self._pulled_by]
            recvs = [(self._target(p), p.src) for p in posted]
            handle = self._group.exchange(sends, recvs, tag=_DATA_TAG) if sends or recvs else None
            for part in parts:  # while they travel
                if part.src == part.dst:
                    self._copy(part)
                elif part.dst == self._rank and part.src in self._pulls_from:
                    self._pull(part)
            for part in outgoing:
                self._sums_out.setdefault(part.dst, []).append(self._sums(self._source(part)))
                self._count_sent(part)
            self._control.advance()
            if pending is not None:
                self._finish(*pending)
            pending = (handle, posted) if handle is not None else None
        if pending is not None:
            self._finish(*pending)

    def _parts(self, piece: Piece) -> Iterator[Part]:
        """Of a piece that concerns this rank: what is in one run of memory at both ends."""
        t = self._transfers[piece.transfer]
        if self._rank not in (t.src, t.dst):
            return iter(())
        return cut_parts(piece, t, self._source_runs[piece.transfer], self._target_runs[piece.transfer])

    def _source(self, part: Part) -> Tensor:
        return self._sources[part.tensor][part.key].view(part.src_start, part.src_start + part.numel)

    def _target(self, part: Part) -> Tensor:
        return self._targets[part.tensor][part.key].view(part.start, part.stop)

    def _copy(self, part: Part) -> None:
        target = self._target(part)
        target.copy_(self._source(part))
        self.report.copied += target.nbytes

    def _pull(self, part: Part) -> None:
        self._control.check()
        target, memory = self._target(part), self._pulls_from[part.src]
        words = words_of(target)  # may be a copy, when the place does not suit words
        summing = Summing(words) if words.data_ptr() == target.data_ptr() else None
        raw = target.view(torch.uint8)
        try:
            for at in range(0, len(raw), BLOCK_BYTES):
                block = raw[at : at + BLOCK_BYTES]
                memory.pull(part.address + at, block)
                if summing is not None:
                    summing.advance((at + len(block)) // 8)  # while it is in the cache
        except PeerGone as error:
            raise GroupBroken(f"pulling from rank {part.src}: {error}", part.src if error.dead else None) from error
        self.report.received_local += len(raw)
        self._arrived(part, target, summing.result() if summing is not None else self._sums(target))

    def _finish(self, handle: Handle, posted: Sequence[Part]) -> None:
        handle.wait()
        for part in posted:
            target = self._target(part)
            self.report.received_network += target.nbytes
            self._arrived(part, target, self._sums(target))

    def _arrived(self, part: Part, target: Tensor, found: Tensor) -> None:
        if self._corrupt is not None:
            self._corrupt(Arrival(part.tensor, part.key, part.src, part.dst, part.start, part.stop, 0), target)
            found = sums(target)
        self._sums_in.setdefault(part.src, []).append((part, found))

    def _sums(self, tensor: Tensor) -> Tensor:
        words = words_of(tensor)
        if words.data_ptr() != tensor.data_ptr():
            self.report.peak_extra_bytes = max(self.report.peak_extra_bytes, words.nbytes)
        return Summing(words).result()

    def _count_sent(self, part: Part) -> None:
        nbytes = part.numel * self._sources[part.tensor][part.key].dtype.itemsize
        if part.dst in self._pulled_by:
            self.report.sent_local += nbytes
        else:
            self.report.sent_network += nbytes

    # ---------------------------------------------------------------------------------------------------- and the proving

    def verify(self) -> None:
        """Hold what arrived against what was sent; fetch again what is wrong until nothing is, on any rank."""
        told = {src: self._new_sums(len(found)) for src, found in sorted(self._sums_in.items())}
        sent = [(torch.stack(found).view(-1), dst) for dst, found in sorted(self._sums_out.items())]
        self._group.exchange(sent, [(t, src) for src, t in told.items()], tag=_SUM_TAG).wait()
        wrong: list[_Wrong] = []
        for src, expected in told.items():
            found = torch.stack([s for _, s in self._sums_in[src]])
            differ = (found != expected.view(-1, 2)).any(1).nonzero().view(-1).tolist()
            parts = [self._sums_in[src][at][0] for at in differ]
            wrong += [_Wrong(p.transfer, p.key, p.start, p.stop, 0) for p in parts]
        self.report.refetched = len(wrong)
        while True:  # bounded: each round takes a holder away from a part that is wrong
            self._control.check()
            rows = self._gather_wrong(wrong)  # when none is wrong this also says that nobody reads my memory any more
            if not rows:
                return
            self._give_up_on([row for dst, row in rows if row.attempt >= len(self._holders(row, dst))])
            wrong = wrong[_AGAIN_MAX:] + self._fetch_again(rows)
            self._control.advance()

    def _new_sums(self, parts: int) -> Tensor:
        return torch.empty(2 * parts, dtype=torch.int64, device=self._device)

    def _gather_wrong(self, wrong: Sequence[_Wrong]) -> list[tuple[int, _Wrong]]:
        """(receiver, row) of up to _AGAIN_MAX parts of each rank; equal on all of them."""
        size = self._group.size
        counts = torch.empty(size, dtype=torch.int64, device=self._device)
        own = torch.tensor([min(len(wrong), _AGAIN_MAX)], dtype=torch.int64, device=self._device)
        self._group.all_gather_into(counts, own)
        most = int(counts.max())
        if most == 0:
            return []
        mine = torch.zeros(most, len(_Wrong._fields), dtype=torch.int64)
        for at, row in enumerate(wrong[:most]):
            mine[at] = torch.tensor(row)
        table = torch.empty(size * most * len(_Wrong._fields), dtype=torch.int64, device=self._device)
        self._group.all_gather_into(table, mine.view(-1).to(self._device))
        rows = table.cpu().view(size, most, len(_Wrong._fields)).tolist()
        return [(rank, _Wrong(*row)) for rank, n in enumerate(counts.tolist()) for row in rows[rank][:n]]

    def _holders(self, row: _Wrong, dst: int) -> list[int]:
        """Who is asked, in turn: the other holders, and then the first sender once more, as the wire may be to blame."""
        t = self._transfers[row.transfer]
        return [r for r in (*t.others, t.src) if r != dst]

    def _give_up_on(self, rows: Sequence[_Wrong]) -> None:
        if not rows:
            return
        words = []
        for n, key, start, stop, _ in rows[:4]:
            t = self._transfers[n]
            asked = ", ".join(map(str, sorted({t.src, *t.others} - {t.dst})))
            words.append(f"{t.tensor} tensor {key} [{start}, {stop}) for rank {t.dst} from rank(s) {asked}")
        more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
        raise TransferCorrupt(f"state arrived changed from every rank that holds it: {'; '.join(words)}{more}")

    def _fetch_again(self, rows: Sequence[tuple[int, _Wrong]]) -> list[_Wrong]:
        """Over the group, from the holders whose turn it is; returns what is still wrong here."""
        data: list[tuple[Tensor, int]] = []
        into: list[tuple[Tensor, int]] = []
        asked: list[tuple[_Wrong, Tensor, int]] = []
        for dst, row in rows:
            n, key, start, stop, attempt = row
            t = self._transfers[n]
            holder = self._holders(row, dst)[attempt]
            if holder == self._rank:
                at = t.src_start + start - t.start
                found = self._sources[t.tensor][key].pieces(at, at + stop - start)
                data.append((torch.cat([view for _, _, view in found]), dst))
            if dst == self._rank:
                target = self._targets[t.tensor][key].view(start, stop)
                into.append((target, holder))
                asked.append((row, target, holder))
        self.report.peak_extra_bytes = max(self.report.peak_extra_bytes, sum(t.nbytes for t, _ in data))
        self.report.sent_network += sum(t.nbytes for t, _ in data)
        self.report.received_network += sum(t.nbytes for t, _ in into)
        self._group.exchange(data, into, tag=_AGAIN_TAG).wait()
        expected = [(self._new_sums(1), holder) for _, holder in into]
        self._group.exchange([(sums(t), dst) for t, dst in data], expected, tag=_AGAIN_TAG).wait()
        still: list[_Wrong] = []
        for (row, target, holder), (told, _) in zip(asked, expected, strict=True):
            n, key, start, stop, attempt = row
            t = self._transfers[n]
            if self._corrupt is not None:
                self._corrupt(Arrival(t.tensor, key, holder, t.dst, start, stop, attempt + 1), target)
            if not torch.equal(sums(target), told):
                still.append(row._replace(attempt=attempt + 1))
        return still
