"""What failures leave of the time: the best checkpoint interval, and the share of wall time that goes into steps that count.

Most losses are mended from memory: what they cost is detection, forming groups, moving the state of the lost node's ranks and the
rest of a step. Only where all holders of some part are lost within one recovery does the run go back to a checkpoint; the
interval between checkpoints follows from the rate of those losses alone (Young 1974, Daly 2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Losses:
    """Rates per second of wall time, seconds lost each time; for those that a checkpoint mends without the steps done again."""

    mended_per_s: float
    mended_s: float
    lost_per_s: float
    lost_s: float


def checkpoint_interval_s(checkpoint_s: float, lost_per_s: float) -> float:
    """Seconds of work between checkpoints that waste least; infinite where nothing is ever lost.

    Daly, A higher order estimate of the optimum checkpoint interval, FGCS 22 (2006), equation 37; its first term is Young's.
    """
    if lost_per_s <= 0.0:
        return math.inf
    mean = 1.0 / lost_per_s
    if checkpoint_s >= 2.0 * mean:
        return mean
    x = checkpoint_s / (2.0 * mean)
    return math.sqrt(2.0 * checkpoint_s * mean) * (1.0 + math.sqrt(x) / 3.0 + x / 9.0) - checkpoint_s


def checkpoint_every(checkpoint_s: float, lost_per_s: float, step_s: float) -> int:
    """The interval in steps, 1 or more; 0: never worth it."""
    interval = checkpoint_interval_s(checkpoint_s, lost_per_s)
    return 0 if math.isinf(interval) else max(1, round(interval / step_s))


def goodput(losses: Losses, *, checkpoint_s: float, interval_s: float) -> float:
    """Share of wall time in steps that count; failures come at random while the run works. `interval_s` infinite: no checkpoints.

    To a second of work come its share of checkpoints, and losses with what they cost; one that a checkpoint mends throws away
    half an interval on average (Daly 2006, section 2).
    """
    extra = losses.mended_per_s * losses.mended_s
    if math.isinf(interval_s):
        return 1.0 / (1.0 + extra + losses.lost_per_s * losses.lost_s)
    checkpoints = checkpoint_s / interval_s
    again = losses.lost_s + (interval_s + checkpoint_s) / 2.0
    return 1.0 / (1.0 + extra + checkpoints + losses.lost_per_s * again)


def all_lost_per_s(*, node_per_s: float, nodes: int, holders: int, window_s: float) -> float:
    """How often all `holders` nodes of some part are lost, each while the one before is being replaced.

    Nodes fail independently; each of the first losses is followed, within the window, by that of the nodes that hold the same.
    """
    following = -math.expm1(-node_per_s * window_s)
    return node_per_s * nodes * math.prod([following] * (holders - 1))
