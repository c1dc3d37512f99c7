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
from orchestrator.engine.transfer_cut import Part, Piece, RunTable, bundles, cut_parts, pack_runs, unpack_runs, windows

AGAIN_MAX = 64  # parts that a rank has fetched again at a time, and
AGAIN_NUMEL = 8 << 20  # their elements (or one part): what other holders stage is bounded by it

_TABLE_TAG, _DATA_TAG, _SUM_TAG, _AGAIN_TAG = 1, 2, 3, 4
_HEAD = 512  # integers that a peer is told at once

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


@dataclass(frozen=True, slots=True)
class _Pending:
    """A window under way."""

    handle: Handle | None
    sent: list[tuple[list[Part], Tensor]]
    posted: list[tuple[list[Part], Tensor]]


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

    `rank` is the caller's, in the plan and in the group; `nodes` are the node ids by rank, of those who only send too. A rank
    needs in `sources` what it sends and in `targets` what it receives. `local` False keeps to the group. `corrupt` is for tests:
    it may change what has arrived before that is summed.
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
        self._verdicts: dict[int, Tensor] = {}  # by receiver of my node: 1 if it pulls
        self._verdicts_due: Handle | None = None
        self._sums_out: dict[int, list[Tensor]] = {}  # by receiver, in the order of the bundles
        self._sums_in: dict[int, list[tuple[list[Part], Tensor]]] = {}
        self._staged = 0  # bytes of the bundles under way
        self.report = MoveReport()

    # -------------------------------------------------------------------------------------------------- before it starts

    def agree(self) -> None:
        """Tell each peer where my memory is cut, and each sender of this node whether I can pull from it."""
        mine = [n for n, t in enumerate(self._transfers) if self._rank in (t.src, t.dst)]
        peers = sorted({r for n in mine for r in (self._transfers[n].src, self._transfers[n].dst)} - {self._rank})
        to: dict[int, list[int]] = {p: [] for p in peers}
        frm: dict[int, list[int]] = {p: [] for p in peers}
        for n in mine:
            t = self._transfers[n]
            if t.src == self._rank:
                self._source_runs[n] = RunTable.of(self._sources[t.tensor], t.src_start, t.src_start + t.stop - t.start)
            if t.dst == self._rank:
                self._target_runs[n] = RunTable.of(self._targets[t.tensor], t.start, t.stop)
            if t.src != t.dst:
                (to[t.dst] if t.src == self._rank else frm[t.src]).append(n)
        beacon = self._beacon.words if self._may_pull else [0] * BEACON_WORDS
        told = self._swap(
            {
                p: [
                    *beacon,
                    *pack_runs(self._source_runs[n] for n in to[p]),
                    *pack_runs(self._target_runs[n] for n in frm[p]),
                ]
                for p in peers
            }
        )
        near = [p for p in peers if self._nodes[p] == self._nodes[self._rank]]
        for p, words in told.items():
            memory, rest = PeerMemory(words[:BEACON_WORDS]), iter(words[BEACON_WORDS:])
            self._source_runs.update(zip(frm[p], unpack_runs(rest, len(frm[p])), strict=True))
            self._target_runs.update(zip(to[p], unpack_runs(rest, len(to[p])), strict=True))
            if frm[p] and self._may_pull and p in near and memory.reachable():
                self._pulls_from[p] = memory
        self._verdicts = {p: self._integers([0]) for p in near if to[p]}
        answers = [(self._integers([int(p in self._pulls_from)]), p) for p in near if frm[p]]
        self._verdicts_due = self._group.exchange(answers, [(v, p) for p, v in self._verdicts.items()], tag=_TABLE_TAG)

    def _swap(self, words: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
        """Lists of integers with each peer, who has one for me; short ones take one message."""
        head = {p: self._integers([len(w), *w[:_HEAD], *[0] * (_HEAD - len(w))]) for p, w in words.items()}
        heads = {p: torch.empty_like(t) for p, t in head.items()}
        self._group.exchange([(t, p) for p, t in head.items()], [(t, p) for p, t in heads.items()], tag=_TABLE_TAG).wait()
        told = {p: t.tolist() for p, t in heads.items()}
        rest = {p: self._integers([0] * (t[0] - _HEAD)) for p, t in told.items() if t[0] > _HEAD}
        more = [(self._integers(w[_HEAD:]), p) for p, w in words.items() if len(w) > _HEAD]
        if more or rest:
            self._group.exchange(more, [(t, p) for p, t in rest.items()], tag=_TABLE_TAG).wait()
        return {p: t[1 : 1 + min(t[0], _HEAD)] + (rest[p].tolist() if p in rest else []) for p, t in told.items()}

    def _integers(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _await_verdicts(self) -> None:
        if self._verdicts_due is not None:
            self._verdicts_due.wait()
            self._verdicts_due = None

    def _is_pulled_by(self, dst: int) -> bool:
        if dst not in self._verdicts:  # on another node
            return False
        self._await_verdicts()
        return bool(self._verdicts[dst])

    # --------------------------------------------------------------------------------------------------------- the moving

    def carry(self) -> None:
        """All windows, two of them under way."""
        pending: _Pending | None = None
        for window in windows(self._transfers):
            self._control.check()
            sent, posted = [], []
            sends: list[tuple[Tensor, int]] = []
            mine = bundles(part for piece in window for part in self._parts(piece))
            for parts in mine:
                src, dst = parts[0].src, parts[0].dst
                if src == self._rank != dst:
                    sent.append((parts, self._gather(parts)))
                    if not self._is_pulled_by(dst):
                        sends.append((sent[-1][1], dst))
                elif src != self._rank and src not in self._pulls_from:
                    posted.append((parts, self._room(parts)))
            recvs = [(tensor, parts[0].src) for parts, tensor in posted]
            handle = self._group.exchange(sends, recvs, tag=_DATA_TAG) if sends or recvs else None
            for parts in mine:  # while they travel
                if parts[0].src == parts[0].dst:
                    self._copy(parts)
                elif parts[0].src in self._pulls_from:
                    self._pull(parts)
            for parts, tensor in sent:
                self._sums_out.setdefault(parts[0].dst, []).append(self._sums(tensor))
            self._control.advance()
            if pending is not None:
                self._finish(pending)
            pending = _Pending(handle, sent, posted)
        if pending is not None:
            self._finish(pending)
        self._await_verdicts()

    def _parts(self, piece: Piece) -> Iterator[Part]:
        """Of a piece that concerns this rank."""
        t = self._transfers[piece.transfer]
        if self._rank not in (t.src, t.dst):
            return iter(())
        return cut_parts(piece, t, self._source_runs[piece.transfer], self._target_runs[piece.transfer])

    def _source(self, part: Part) -> Tensor:
        return self._sources[part.tensor][part.key].view(part.src_start, part.src_start + part.numel)

    def _target(self, part: Part) -> Tensor:
        return self._targets[part.tensor][part.key].view(part.start, part.stop)

    def _gather(self, parts: Sequence[Part]) -> Tensor:
        if len(parts) == 1:
            return self._source(parts[0])
        return self._stage(torch.cat([self._source(part) for part in parts]))

    def _room(self, parts: Sequence[Part]) -> Tensor:
        if len(parts) == 1:
            return self._target(parts[0])
        like = self._targets[parts[0].tensor][parts[0].key]
        return self._stage(torch.empty(sum(part.numel for part in parts), dtype=like.dtype, device=like.device))

    def _stage(self, tensor: Tensor) -> Tensor:
        self._staged += tensor.nbytes
        self.report.peak_extra_bytes = max(self.report.peak_extra_bytes, self._staged)
        return tensor

    def _copy(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self._target(part).copy_(self._source(part))
            self.report.copied += part.nbytes

    def _pull(self, parts: list[Part]) -> None:
        self._control.check()
        src, room = parts[0].src, self._room(parts)
        summing: Summing | None = None
        try:
            if len(parts) > 1:
                self._pulls_from[src].pull([(part.address, part.nbytes) for part in parts], room)
            else:
                words, raw = words_of(room), room.view(torch.uint8)
                summing = Summing(words) if words.data_ptr() == room.data_ptr() else None  # else the place does not suit words
                for at in range(0, len(raw), BLOCK_BYTES):
                    block = raw[at : at + BLOCK_BYTES]
                    self._pulls_from[src].pull([(parts[0].address + at, len(block))], block)
                    if summing is not None:
                        summing.advance((at + len(block)) // 8)  # while it is in the cache
        except PeerGone as error:
            raise GroupBroken(f"pulling from rank {src}: {error}", src if error.dead else None) from error
        self.report.received_local += room.nbytes
        self._arrived(parts, room, summing)

    def _finish(self, pending: _Pending) -> None:
        if pending.handle is not None:
            pending.handle.wait()
        for parts, tensor in pending.sent:
            if self._is_pulled_by(parts[0].dst):
                self.report.sent_local += tensor.nbytes
            else:
                self.report.sent_network += tensor.nbytes
            self._staged -= tensor.nbytes if len(parts) > 1 else 0
        for parts, tensor in pending.posted:
            self.report.received_network += tensor.nbytes
            self._arrived(parts, tensor, None)

    def _arrived(self, parts: list[Part], room: Tensor, summing: Summing | None) -> None:
        """Take what has arrived to where it belongs, and its sums."""
        if self._corrupt is not None:
            for part, tensor in zip(parts, room.split([p.numel for p in parts]), strict=True):
                self._corrupt(Arrival(part.tensor, part.key, part.src, part.dst, part.start, part.stop, 0), tensor)
            summing = None
        found = summing.result() if summing is not None else self._sums(room)
        if len(parts) > 1:
            torch._foreach_copy_([self._target(p) for p in parts], list(room.split([p.numel for p in parts])))
            self._staged -= room.nbytes
        self._sums_in.setdefault(parts[0].src, []).append((parts, found))

    def _sums(self, tensor: Tensor) -> Tensor:
        words = words_of(tensor)
        if words.data_ptr() != tensor.data_ptr():
            self.report.peak_extra_bytes = max(self.report.peak_extra_bytes, self._staged + words.nbytes)
        return Summing(words).result()

    # ---------------------------------------------------------------------------------------------------- and the proving

    def verify(self) -> None:
        """Hold what arrived against what was sent; fetch again what is wrong until nothing is, on any rank."""
        if self._all_is_right():
            return
        told = {src: self._new_sums(len(found)) for src, found in sorted(self._sums_in.items())}
        sent = [(torch.stack(found).view(-1), dst) for dst, found in sorted(self._sums_out.items())]
        self._group.exchange(sent, [(t, src) for src, t in told.items()], tag=_SUM_TAG).wait()
        wrong: list[_Wrong] = []
        for src, expected in told.items():
            found = torch.stack([s for _, s in self._sums_in[src]])
            differ = (found != expected.view(-1, 2)).any(1).nonzero().view(-1).tolist()
            parts = [part for at in differ for part in self._sums_in[src][at][0]]
            wrong += [_Wrong(p.transfer, p.key, p.start, p.stop, 0) for p in parts]
        self.report.refetched = len(wrong)
        while True:  # bounded: each round takes a holder away from a part that is wrong
            self._control.check()
            lot = _first_lot(wrong)
            rows = self._gather_wrong(lot)
            if not rows:
                return
            self._give_up_on([row for dst, row in rows if row.attempt >= len(self._holders(row, dst))])
            wrong = wrong[len(lot) :] + self._fetch_again(rows)
            self._control.advance()

    def _all_is_right(self) -> bool:
        """One exchange for everybody: a sum of the sums of all that went from each rank to each other, as both have them.

        When it returns nobody reads another's memory any more.
        """
        size = self._group.size
        mine = torch.zeros(2, size, dtype=torch.int64, device=self._device)
        for dst, out in self._sums_out.items():
            mine[0, dst] = _one_sum(out)
        for src, into in self._sums_in.items():
            mine[1, src] = _one_sum([found for _, found in into])
        table = torch.empty(2 * size * size, dtype=torch.int64, device=self._device)
        self._group.all_gather_into(table, mine.view(-1))
        sent, arrived = table.view(size, 2, size).unbind(1)
        return torch.equal(sent, arrived.t())

    def _new_sums(self, parts: int) -> Tensor:
        return torch.empty(2 * parts, dtype=torch.int64, device=self._device)

    def _gather_wrong(self, wrong: Sequence[_Wrong]) -> list[tuple[int, _Wrong]]:
        """(receiver, row) of every rank's; equal on all of them."""
        size = self._group.size
        counts = torch.empty(size, dtype=torch.int64, device=self._device)
        own = self._integers([len(wrong)])
        self._group.all_gather_into(counts, own)
        most = int(counts.max())
        if most == 0:
            return []
        mine = torch.zeros(most, len(_Wrong._fields), dtype=torch.int64)
        for at, row in enumerate(wrong):
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


def _one_sum(found: Sequence[Tensor]) -> Tensor:
    """A word whose every change in one of the sums changes it: their weights are odd."""
    both = sums(torch.stack(list(found)).view(-1))
    return both[0] + 2 * both[1]


def _first_lot(wrong: Sequence[_Wrong]) -> Sequence[_Wrong]:
    numel = 0
    for at, row in enumerate(wrong[:AGAIN_MAX]):
        numel += row.stop - row.start
        if at and numel > AGAIN_NUMEL:
            return wrong[:at]
    return wrong[:AGAIN_MAX]
