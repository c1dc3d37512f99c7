"""Some ranks of a group that exchange tensors among themselves, with numbers of their own.

Replicas of one pipeline stage reduce gradients and gather params point to point, which needs no group of the library's: forming
fewer groups makes recovery faster. The library's own collectives are asked of real groups only.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from orchestrator.engine.groups.base import EpochGroup, Handle


class Part:
    """Members `ranks` of `group`, numbered 0..size-1 in the order given; the caller is one of them."""

    def __init__(self, group: EpochGroup, ranks: Sequence[int]) -> None:
        if len(set(ranks)) != len(ranks) or group.rank not in ranks:
            raise ValueError(f"rank {group.rank} is no member of {list(ranks)}")
        self.group = group
        self.ranks = tuple(ranks)
        self.rank = self.ranks.index(group.rank)
        self.size = len(self.ranks)

    @property
    def whole(self) -> EpochGroup | None:
        """The group itself when every rank of it is a member, in order."""
        return self.group if self.ranks == tuple(range(self.group.size)) else None

    def exchange(self, sends: Sequence[tuple[Tensor, int]], recvs: Sequence[tuple[Tensor, int]], *, tag: int = 0) -> Handle:
        """As EpochGroup.exchange, peers by their numbers here."""
        return self.group.exchange(
            [(t, self.ranks[peer]) for t, peer in sends], [(t, self.ranks[peer]) for t, peer in recvs], tag=tag
        )
