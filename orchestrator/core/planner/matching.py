"""Two classics of assignment, in integers and deterministic: who takes what so that the most stays in place.

`Flow` is Dinic's maximum flow (blocks of state to the ranks that may keep them); `assign` the Hungarian method (workers to
places), in the form with potentials that takes O(rows^2 x columns).
"""

from __future__ import annotations

from collections.abc import Sequence


class Flow:
    """A network that flow is pushed through; edges may be added, and the flow grown further, at any time."""

    def __init__(self, nodes: int) -> None:
        self._out: list[list[int]] = [[] for _ in range(nodes)]
        self._to: list[int] = []
        self._left: list[int] = []

    def edge(self, tail: int, head: int, capacity: int) -> int:
        """A new edge; its number."""
        number = len(self._to)
        self._out[tail].append(number)
        self._out[head].append(number + 1)
        self._to += [head, tail]
        self._left += [capacity, 0]
        return number

    def flow(self, edge: int) -> int:
        """What runs over an edge."""
        return self._left[edge + 1]

    def room(self, edge: int) -> int:
        """What more may run over it."""
        return self._left[edge]

    def push(self, edges: Sequence[int], amount: int) -> None:
        """Send `amount` along a path that has the room."""
        for e in edges:
            self._left[e] -= amount
            self._left[e ^ 1] += amount

    def grow(self, source: int, sink: int) -> None:
        """As much flow as can be (Dinic 1970): shortest paths first, until there is none."""
        while True:
            level = self._levels(source, sink)
            if level[sink] < 0:
                return
            turn = [0] * len(self._out)
            path: list[int] = []
            at = source
            while True:
                if at == sink:
                    self.push(path, min(self._left[e] for e in path))
                    path, at = [], source
                while turn[at] < len(self._out[at]):
                    e = self._out[at][turn[at]]
                    if self._left[e] and level[self._to[e]] == level[at] + 1:
                        path.append(e)
                        at = self._to[e]
                        break
                    turn[at] += 1
                else:
                    if not path:
                        break
                    at = self._to[path.pop() ^ 1]
                    turn[at] += 1

    def _levels(self, source: int, sink: int) -> list[int]:
        level = [-1] * len(self._out)
        level[source] = 0
        wave = [source]
        while wave and level[sink] < 0:
            following = []
            for at in wave:
                for e in self._out[at]:
                    head = self._to[e]
                    if self._left[e] and level[head] < 0:
                        level[head] = level[at] + 1
                        following.append(head)
            wave = following
        return level


def assign(value: Sequence[Sequence[int]]) -> list[int]:
    """For each row its column, -1 for none, so that the sum of the values is the most (Kuhn 1955, Munkres 1957).

    Every row gets a column while there are columns; rows and columns are used once. Values are not negative.
    """
    rows = len(value)
    if not rows:
        return []
    columns = max(rows, len(value[0]))
    cost = [[-v for v in row] + [0] * (columns - len(row)) for row in value]
    of_row, of_column = [0] * (rows + 1), [0] * (columns + 1)  # potentials
    taken = [0] * (columns + 1)  # the row (from 1) that has a column; column 0 stands for the row being placed
    for row in range(1, rows + 1):
        taken[0] = row
        column = 0
        slack: list[int | None] = [None] * (columns + 1)
        came = [0] * (columns + 1)
        done = [False] * (columns + 1)
        while taken[column]:
            done[column] = True
            here = taken[column]
            least: int | None = None
            following = 0
            for c in range(1, columns + 1):
                if done[c]:
                    continue
                reduced = cost[here - 1][c - 1] - of_row[here] - of_column[c]
                known = slack[c]
                if known is None or reduced < known:
                    slack[c] = known = reduced
                    came[c] = column
                if least is None or known < least:
                    least, following = known, c
            assert least is not None, "there are as many columns as rows"
            for c in range(columns + 1):
                known = slack[c]
                if done[c]:
                    of_row[taken[c]] += least
                    of_column[c] -= least
                elif known is not None:
                    slack[c] = known - least
            column = following
        while column:
            taken[column] = taken[came[column]]
            column = came[column]
    out = [-1] * rows
    for c in range(1, len(value[0]) + 1):
        if taken[c]:
            out[taken[c] - 1] = c - 1
    return out
