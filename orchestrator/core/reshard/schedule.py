"""A schedule of a reshard: which region goes from whom to whom, in rounds, with nothing left to choose.

Every rank receives what it needs and lacks, once, from one sender: the fewest bytes that do it. In a round nobody sends or
receives more than a bound, so the memory that is in flight is bounded too, and within it the busiest ranks come first, so that
their links are never idle. A schedule that would leave a rank without a region, or make one send what it has not, cannot be made.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.core.plan.layout import Interval, merge, subtract
from orchestrator.core.reshard.regions import Region, Regions, lacking

ELEMENT_BYTES = 4  # fp32
ROUND_BYTES = 64 << 20
FINDINGS_MAX = 5


@dataclass(frozen=True, slots=True)
class Transfer:
    """One region of one state tensor from one rank's memory to another's; ranks are those of the new plan."""

    tensor: str  # PARAMS or OPTIMIZER (then every elementwise tensor of the optimizer travels)
    src: int
    dst: int  # equal to src only when the tensor degree changes: a copy from the rank's old vector to its new one
    start: int  # in the new plan's vector
    stop: int
    src_start: int  # where `start` lies in the sender's vector: another place only when the tensor degree changes
    round: int  # rounds are carried out one after the other, the transfers of one round together
    others: tuple[int, ...]  # further ranks that hold the region (at src_start too), for when what `src` sends arrives changed

    @property
    def numel(self) -> int:
        """Elements of (each) vector that travel."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Links:
    """What predictions are made with. Rates as measured on one machine (gloo, shared memory); the latencies are assumed."""

    inside_bytes_per_s: float = 5e9  # that one rank sends, or receives, from ranks of its own node
    across_bytes_per_s: float = 4e9  # that all ranks of a node together send to, or receive from, other nodes
    inside_latency_ms: float = 0.1  # of a round
    across_latency_ms: float = 1.0

    def __post_init__(self) -> None:
        if min(self.inside_bytes_per_s, self.across_bytes_per_s) <= 0:
            raise ValueError("links need a rate above 0")


DEFAULT_LINKS = Links()


@dataclass(frozen=True, slots=True)
class Party:
    """One rank that takes part, by state tensor: what it needs in the end and what it has now (each element once)."""

    rank: int
    node_id: str
    needs: Mapping[str, Regions]
    has: Mapping[str, Regions]
    stays: bool  # its vector is the new plan's: what it has where it needs it does not move

    def lacks(self, tensor: str) -> Regions:
        """What must be written into its vector."""
        needs = self.needs.get(tensor, ())
        return lacking(needs, self.has.get(tensor, ())) if self.stays else needs


class ScheduleError(AssertionError):
    """A schedule that must not be carried out: our own bug. The message names what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ReshardSchedule:
    """Transfers by round, valid for what the parties need and have. Raises ScheduleError at construction."""

    parties: tuple[Party, ...]
    transfers: tuple[Transfer, ...]
    element_bytes: Mapping[str, int]  # by state tensor: fp32, times the vectors that travel together
    bytes_per_round: int
    links: Links = DEFAULT_LINKS
    _lacks: dict[tuple[int, str], Regions] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for p in self.parties:
            for tensor in self.element_bytes:
                self._lacks[p.rank, tensor] = p.lacks(tensor)
        findings = self.validate()
        if findings:
            more = f"; and {len(findings) - FINDINGS_MAX} more" if len(findings) > FINDINGS_MAX else ""
            raise ScheduleError("; ".join(findings[:FINDINGS_MAX]) + more)

    @property
    def rounds(self) -> int:
        """How many there are."""
        return max((t.round for t in self.transfers), default=-1) + 1

    @property
    def bytes_moved(self) -> int:
        """Bytes that go from one rank to another."""
        return sum(self._bytes(t) for t in self.transfers if t.src != t.dst)

    @property
    def bytes_minimum(self) -> int:
        """Bytes that cannot but move: for each rank what it needs and has nowhere."""
        return sum(
            size * (r.stop - r.start)
            for p in self.parties
            for tensor, size in self.element_bytes.items()
            for r in lacking(_anywhere(self._lacks[p.rank, tensor]), _anywhere(p.has.get(tensor, ())))
        )

    @property
    def peak_extra_bytes(self) -> tuple[int, ...]:
        """By rank, as parties are listed: memory that the reshard takes at most, beside the state that was there before.

        What it receives (that is state afterwards) and what is in flight in its fullest round.
        """
        staging: dict[tuple[int, int], int] = {}
        extra = {p.rank: 0 for p in self.parties}
        for t in self.transfers:
            extra[t.dst] += self._bytes(t)
            if t.src != t.dst:
                for rank in (t.src, t.dst):
                    staging[rank, t.round] = staging.get((rank, t.round), 0) + self._bytes(t)
        fullest = {p.rank: 0 for p in self.parties}
        for (rank, _), size in staging.items():
            fullest[rank] = max(fullest[rank], size)
        return tuple(extra[p.rank] + fullest[p.rank] for p in self.parties)

    @property
    def predicted_ms(self) -> int:
        """Milliseconds that the rounds take, one after the other, each as long as its busiest rank or link."""
        node = {p.rank: p.node_id for p in self.parties}
        inside: dict[int, dict[tuple[str, int], int]] = {}  # round -> (way, rank) -> bytes
        across: dict[int, dict[tuple[str, str], int]] = {}  # round -> (way, node) -> bytes
        for t in self.transfers:
            if node[t.src] == node[t.dst]:
                ranks = inside.setdefault(t.round, {})
                for rank_end in (("out", t.src), ("in", t.dst)):
                    ranks[rank_end] = ranks.get(rank_end, 0) + self._bytes(t)
            else:
                nodes = across.setdefault(t.round, {})
                for node_end in (("out", node[t.src]), ("in", node[t.dst])):
                    nodes[node_end] = nodes.get(node_end, 0) + self._bytes(t)
        links, total_ms = self.links, 0.0
        for r in range(self.rounds):
            near = max(inside[r].values()) / links.inside_bytes_per_s * 1e3 + links.inside_latency_ms if r in inside else 0.0
            far = max(across[r].values()) / links.across_bytes_per_s * 1e3 + links.across_latency_ms if r in across else 0.0
            total_ms += max(near, far)
        return -int(-total_ms // 1)

    def validate(self) -> tuple[str, ...]:
        """Everything that is wrong with it; empty for a schedule that may be carried out."""
        ranks = {p.rank for p in self.parties}
        out = [
            f"{_name(t)} is not between ranks that take part, of a known state tensor, in a round"
            for t in self.transfers
            if {t.src, t.dst} - ranks or t.tensor not in self.element_bytes or t.start >= t.stop or t.round < 0
        ]
        return tuple(out) or (*self._wrong_content(), *self._wrong_delivery(), *self._over_bound())

    def _bytes(self, t: Transfer) -> int:
        return t.numel * self.element_bytes[t.tensor]

    def _wrong_content(self) -> list[str]:
        """Transfers of something that the sender does not have, or that is not what the receiver needs there."""
        out: list[str] = []
        has = {(p.rank, tensor): _Places(r) for p in self.parties for tensor, r in p.has.items()}
        needs = {(p.rank, tensor): _Places(r) for p in self.parties for tensor, r in p.needs.items()}
        nowhere = _Places(())
        for t in self.transfers:
            wanted = needs.get((t.dst, t.tensor), nowhere).common(t.start, t.numel)
            if wanted is None:
                out.append(f"{_name(t)} is not part of one region that rank {t.dst} needs")
                continue
            for rank in (t.src, *t.others):
                sent = has.get((rank, t.tensor), nowhere).common(t.src_start, t.numel)
                if sent is None:
                    out.append(f"{_name(t)}: rank {rank} does not hold [{t.src_start}, {t.src_start + t.numel})")
                elif sent != wanted:
                    out.append(f"{_name(t)}: rank {rank} holds other elements at {t.src_start}")
        return out

    def _wrong_delivery(self) -> list[str]:
        out: list[str] = []
        delivered: dict[tuple[int, str], list[Interval]] = {}
        for t in self.transfers:
            delivered.setdefault((t.dst, t.tensor), []).append(Interval(t.start, t.stop))
        for (rank, tensor), regions in self._lacks.items():
            expected = merge(Interval(r.at, r.at + r.stop - r.start) for r in regions)
            got = sorted(delivered.get((rank, tensor), ()))
            for a, b in itertools.pairwise(got):
                if b.start < a.stop:
                    out.append(f"{tensor} [{b.start}, {min(a.stop, b.stop)}) is delivered to rank {rank} twice")
            arrived = merge(got)
            if arrived != expected:
                out += [f"{tensor} {_text(i)}, which rank {rank} needs, is not delivered" for i in subtract(expected, arrived)]
                out += [f"{tensor} {_text(i)} is sent to rank {rank}, which has it" for i in subtract(arrived, expected)]
        return out

    def _over_bound(self) -> list[str]:
        load: dict[tuple[int, str, int], int] = {}
        for t in self.transfers:
            if t.src != t.dst:
                for key in ((t.round, "sends", t.src), (t.round, "receives", t.dst)):
                    load[key] = load.get(key, 0) + self._bytes(t)
        return [
            f"rank {rank} {what} {size} bytes in round {r}, more than {self.bytes_per_round}"
            for (r, what, rank), size in sorted(load.items())
            if size > self.bytes_per_round
        ]


class _Places:
    """Regions by their place in a rank's own vector."""

    def __init__(self, regions: Regions) -> None:
        self._regions = sorted(regions, key=lambda r: r.at)
        self._starts = [r.at for r in self._regions]

    def common(self, start: int, numel: int) -> int | None:
        """Where [start, start + numel) of the own vector begins in the common one; None when not all of it is in one region."""
        k = bisect_right(self._starts, start) - 1
        if k < 0:
            return None
        r = self._regions[k]
        return start - r.shift if start + numel <= r.stop + r.shift else None


def _anywhere(regions: Regions) -> Regions:
    """The same elements, whatever their place in the rank's own vector."""
    return tuple(Region(r.start, r.stop, r.start) for r in regions)


def _name(t: Transfer) -> str:
    return f"{t.tensor} [{t.start}, {t.stop}) from rank {t.src} to rank {t.dst}"


def _text(i: Interval) -> str:
    return f"[{i.start}, {i.stop})"
