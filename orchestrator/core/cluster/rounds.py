"""Who measures a link with whom, and when: in rounds, so that no machine takes part in two meetings at a time.

Two devices of each machine first; then machines in pairs, as in a round-robin tournament (the circle method), of which large
clusters play an even sample; last all devices of a machine at once, because they share its network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PAIRINGS_MAX: Final = 12  # up to as many machines meet each other once
TOGETHER_MAX: Final = 16  # senders in one meeting
ROUNDS_MAX: Final = 1 + PAIRINGS_MAX + 2


@dataclass(frozen=True, slots=True)
class Meeting:
    """The k-th sender sends to the k-th receiver, all at once. Indices of workers."""

    senders: tuple[int, ...]
    receivers: tuple[int, ...]

    @property
    def workers(self) -> tuple[int, ...]:
        """All of them; the place in it is the rank in their group."""
        return self.senders + self.receivers


Round = tuple[Meeting, ...]


def rounds(nodes: Sequence[str]) -> tuple[Round, ...]:
    """At most ROUNDS_MAX rounds for workers on these nodes, in the order of the workers; none is empty."""
    by_node: dict[str, list[int]] = {}
    for worker, node in enumerate(nodes):
        by_node.setdefault(node, []).append(worker)
    members = list(by_node.values())
    several = [m for m in members if len(m) > 1]
    made = [tuple(Meeting((m[0],), (m[1],)) for m in several)]
    for number, pairs in enumerate(_pairings(len(members))):
        made.append(tuple(Meeting((_nth(members[a], number),), (_nth(members[b], number),)) for a, b in pairs))
    made.append(tuple(_together(a, b) for a, b in zip(several[::2], several[1::2], strict=False)))
    if len(several) > 1 and len(several) % 2:
        made.append((_together(several[-1], several[0]),))
    return tuple(r for r in made if r)


def _pairings(count: int) -> list[list[tuple[int, int]]]:
    """Each pair once, in rounds in which each takes part at most once; with more than PAIRINGS_MAX rounds, a sample of them."""
    if count < 2:
        return []
    even = count + count % 2
    turns = even - 1
    played = range(turns) if turns <= PAIRINGS_MAX else [k * turns // PAIRINGS_MAX for k in range(PAIRINGS_MAX)]
    out = []
    for turn in played:
        pairs = [(turn, even - 1)] + [((turn + i) % turns, (turn - i) % turns) for i in range(1, even // 2)]
        out.append([(a, b) for a, b in pairs if max(a, b) < count])  # of an odd number one rests
    return out


def _nth(members: Sequence[int], number: int) -> int:
    """Another device in each round: each may have a network adapter of its own."""
    return members[number % len(members)]


def _together(a: Sequence[int], b: Sequence[int]) -> Meeting:
    flows = min(len(a), len(b), TOGETHER_MAX)
    return Meeting(tuple(a[:flows]), tuple(b[:flows]))
