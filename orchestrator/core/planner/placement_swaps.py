"""A good arrangement of ranks on nodes: a greedy start, then passes of moves and swaps.

In a pass every rank moves at most once, the best move first even where it makes things worse, and the best moment of the pass is
kept (Kernighan and Lin, Bell System Technical Journal 49, 1970). Many ranks are only swapped while that helps at once.
"""

from __future__ import annotations

from dataclasses import dataclass

PASS_RANKS = 64  # up to which passes look beyond a swap that helps at once
PASSES = 20  # at most
SWEEPS = 10  # over all pairs, at most, for more ranks
EPS = 1e-12  # of the cost: less is rounding


@dataclass(frozen=True, slots=True)
class Table:
    """What a placement costs, by nodes."""

    room: list[int]  # devices of each node
    links: list[list[float]]  # seconds per byte between nodes; inside a node on the diagonal
    weights: list[dict[int, float]]  # bytes by rank and rank
    apart: list[dict[int, int]]  # in how many groups that want different nodes two ranks are together
    penalty: float  # for two of them on one node: more than all traffic can cost

    def pair(self, r: int, s: int, m: int, n: int) -> float:
        """What two ranks cost on two nodes."""
        out = self.weights[r].get(s, 0.0) * self.links[m][n]
        return out + self.apart[r].get(s, 0) * self.penalty if m == n else out


def cost(table: Table, where: list[int]) -> float:
    """Of a whole arrangement: rank -> node."""
    pairs = ((r, s) for r in range(len(where)) for s in table.weights[r].keys() | table.apart[r].keys() if r < s)
    return sum(table.pair(r, s, where[r], where[s]) for r, s in pairs)


def arrange(table: Table) -> list[int]:
    """A node for every rank: the better of two starts (in order, and greedy), each improved."""
    ends = []
    for start in (_in_order(table), _greedy(table)):
        state = State(table, start)
        improve = state.passes if len(start) <= PASS_RANKS else state.sweeps
        improve()
        ends.append(state.where)
    return min(ends, key=lambda where: cost(table, where))


def _in_order(table: Table) -> list[int]:
    return [n for n, room in enumerate(table.room) for _ in range(room)][: len(table.weights)]


def _greedy(table: Table) -> list[int]:
    """The rank that is drawn most to those that are placed, where it costs least; a fresh node is filled by the roomiest."""
    ranks, nodes = range(len(table.weights)), range(len(table.room))
    free = list(table.room)
    where = [-1] * len(ranks)
    drawn = [sum(table.weights[r].values()) * 1e-9 for r in ranks]  # before all else, who has much to say
    pull = [[0.0] * len(table.room) for _ in ranks]
    for _ in ranks:
        rank = max((r for r in ranks if where[r] < 0), key=lambda r: (drawn[r], -r))
        node = min((n for n in nodes if free[n]), key=lambda n: (pull[rank][n], table.links[n][n], -free[n], n))
        where[rank] = node
        free[node] -= 1
        near = table.links[node]
        for other, weight in table.weights[rank].items():
            if where[other] < 0:
                drawn[other] += weight
                pull[other] = [p + weight * c for p, c in zip(pull[other], near, strict=True)]
        for other, count in table.apart[rank].items():
            pull[other][node] += count * table.penalty
    return where


class State:
    """An arrangement under way, with what each rank would cost on each node."""

    def __init__(self, table: Table, where: list[int]) -> None:
        self.table = table
        self.where = list(where)
        self.free = list(table.room)
        for node in where:
            self.free[node] -= 1
        self.near = [sorted(w.keys() | a.keys()) for w, a in zip(table.weights, table.apart, strict=True)]
        self.pull = [self._costs(r) for r in range(len(where))]

    def _costs(self, r: int) -> list[float]:
        """Of a rank on each node, the others staying where they are."""
        table = self.table
        there = [0.0] * len(table.room)  # bytes to those on each node
        for s, weight in table.weights[r].items():
            there[self.where[s]] += weight
        out = [sum(b * c for b, c in zip(there, row, strict=True)) for row in table.links]
        for s, count in table.apart[r].items():
            out[self.where[s]] += count * table.penalty
        return out

    def passes(self) -> None:
        """Kernighan-Lin passes until one does not help."""
        bar = EPS * cost(self.table, self.where)
        for _ in range(PASSES):
            if self._one_pass() >= -bar:
                return

    def sweeps(self) -> None:
        """Each pair in turn, swapped when that helps."""
        bar = EPS * cost(self.table, self.where)
        for _ in range(SWEEPS):
            helped = False
            for r in range(len(self.where)):
                gain, s, node = self.best(r, range(r + 1, len(self.where)))
                if gain < -bar:
                    self.do(r, s, node)
                    helped = True
            if not helped:
                return

    def _one_pass(self) -> float:
        start, total = list(self.where), 0.0
        open_ranks = list(range(len(self.where)))
        best, best_where = 0.0, start
        while open_ranks:
            gain, s, node, r = min((*self.best(r, open_ranks[i + 1 :]), r) for i, r in enumerate(open_ranks))
            if gain == float("inf"):
                break
            self.do(r, s, node)
            total += gain
            open_ranks = [k for k in open_ranks if k not in (r, s)]
            if total < best:
                best, best_where = total, list(self.where)
        for r, node in enumerate(best_where):
            self._move(r, node)
        return best

    def best(self, r: int, others: list[int] | range) -> tuple[float, int, int]:
        """(change of cost, partner or -1, node) of the best move of a rank: to a free place, or with one of the others."""
        table, m, mine = self.table, self.where[r], self.pull[r]
        found = [(mine[n] - mine[m], -1, n) for n, free in enumerate(self.free) if free and n != m]
        out = min(found, default=(float("inf"), -1, -1))
        weights, apart, links = table.weights[r], table.apart[r], table.links
        for s in others:
            n = self.where[s]
            if n == m:
                continue
            theirs = self.pull[s]
            gain = mine[n] - mine[m] + theirs[m] - theirs[n]
            if s in weights:
                gain += weights[s] * (2 * links[m][n] - links[m][m] - links[n][n])
            if s in apart:
                gain -= 2 * apart[s] * table.penalty
            if gain < out[0]:
                out = (gain, s, n)
        return out

    def do(self, r: int, s: int, node: int) -> None:
        """Move a rank to a node, and its partner (if not -1) to where it was."""
        old = self.where[r]
        self._move(r, node)
        if s >= 0:
            self._move(s, old)

    def _move(self, r: int, node: int) -> None:
        old = self.where[r]
        if old == node:
            return
        self.where[r] = node
        self.free[old] += 1
        self.free[node] -= 1
        table = self.table
        change = [b - a for a, b in zip(table.links[old], table.links[node], strict=True)]
        for s in self.near[r]:
            weight = table.weights[r].get(s, 0.0)
            row = self.pull[s] = [p + weight * c for p, c in zip(self.pull[s], change, strict=True)]
            if s in table.apart[r]:
                row[node] += table.apart[r][s] * table.penalty
                row[old] -= table.apart[r][s] * table.penalty
