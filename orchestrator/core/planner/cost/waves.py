"""The ends of a pipeline's ranks, wave by wave: the acts of core/plan/pipeline.py in an order that a plain loop can follow.

In wave n of a pipeline with one stage per rank, rank r does the forward pass of micro-batch n and the backward pass of
n - (p-1-r); where ranks have several stages, and whole rounds of micro-batches, it does its (n - r)-th forward and its (n - b)-th
backward pass, b = 2 (p-1) - r + (v-1) p. What an act needs is then from this wave or the last one, so that two lists are all that
later waves depend on. Once these have only moved on in time since a round before, so will every wave until the forward passes run
out (each act begins at the latest of some others' ends: a max-plus linear system, Baccelli, Cohen, Olsder and Quadrat 1992,
section 3.7), and rounds can be skipped.
"""

from __future__ import annotations

_SAME = 1e-12  # relative: rounding of sums


def one_stage_each(forward: list[float], backward: list[float], weight: list[float], micro_batches: int) -> list[float]:
    """End of each rank's last act, in seconds. `weight`: of the second halves of backward passes, which are put off; or empty."""
    p, m = len(forward), micro_batches
    late = weight or [0.0] * p
    clocks, ended = [0.0] * p, [0.0] * p  # of each rank; of its last backward pass
    before: list[float] = []
    wave = 0
    while wave < m + p - 1:
        if wave < m:
            ready = 0.0
            for r in range(p):
                clock = clocks[r]
                ready = clocks[r] = (ready if ready > clock else clock) + forward[r]
        for r in range(max(0, p - 1 - wave), min(p, m + p - 1 - wave)):
            clock = clocks[r]
            ready = ended[r + 1] if r + 1 < p else 0.0
            ended[r] = clock = (ready if ready > clock else clock) + backward[r]
            clocks[r] = clock + late[r] if wave - (p - 1 - r) >= r else clock
        if wave % p == p - 1 and wave < m:
            state = clocks + ended
            shift = _shift(before, state)
            if shift is not None:
                rounds = (m - 1 - wave) // p
                clocks, ended = _moved(clocks, rounds * shift), _moved(ended, rounds * shift)
                wave += rounds * p
                state = []
            before = state
        wave += 1
    return [clock + min(m, r) * late[r] for r, clock in enumerate(clocks)]


def several_each(forward: list[float], backward: list[float], pipeline: int, micro_batches: int) -> list[float]:
    """End of each rank's last act where it has several stages, and the micro-batches are a multiple of the ranks."""
    p, v = pipeline, len(forward) // pipeline
    total, turn = v * micro_batches, v * pipeline
    lag = [2 * (p - 1) - r + (v - 1) * p for r in range(p)]
    clocks, ahead, back = [0.0] * p, [0.0] * p, [0.0] * p  # of each rank; ends of its last forward and backward pass
    before: list[float] = []
    wave = 0
    while wave < total + max(lag):
        last_ahead, first_back = ahead[-1], back[0]
        for r in reversed(range(p)):
            number = wave - r
            if 0 <= number < total:
                chunk = number // p % v
                ready = ahead[r - 1] if r else (last_ahead if chunk else 0.0)
                clock = clocks[r]
                ahead[r] = clocks[r] = (ready if ready > clock else clock) + forward[chunk * p + r]
        for r in range(p):
            number = wave - lag[r]
            if 0 <= number < total:
                chunk = v - 1 - number // p % v
                ready = back[r + 1] if r + 1 < p else (first_back if chunk < v - 1 else 0.0)
                clock = clocks[r]
                back[r] = clocks[r] = (ready if ready > clock else clock) + backward[chunk * p + r]
        if wave % turn == turn - 1 and lag[0] <= wave < total:
            state = clocks + ahead + back
            shift = _shift(before, state)
            if shift is not None:
                rounds = (total - 1 - wave) // turn
                clocks, ahead, back = (_moved(x, rounds * shift) for x in (clocks, ahead, back))
                wave += rounds * turn
                state = []
            before = state
        wave += 1
    return clocks


def _shift(before: list[float], after: list[float]) -> float | None:
    """By how much all have moved, where that is the same for all."""
    if not before:
        return None
    shift = after[0] - before[0]
    margin = _SAME * after[0]
    return shift if all(abs(b - a - shift) <= margin for a, b in zip(before, after, strict=True)) else None


def _moved(times: list[float], by: float) -> list[float]:
    return [t + by for t in times]
