"""Goodput: the formulas against a run simulated second by second of failures, with a fixed seed."""

from __future__ import annotations

import math
import random

import pytest

from orchestrator.core.planner.cost.goodput import Losses, all_lost_per_s, checkpoint_every, checkpoint_interval_s, goodput


def simulated(losses: Losses, *, checkpoint_s: float, interval_s: float, work_s: float, seed: int) -> float:
    """Share of wall time that is work which counts; failures strike while the run works or writes a checkpoint."""
    rng = random.Random(seed)
    wall, done, saved = 0.0, 0.0, 0.0
    rate = losses.mended_per_s + losses.lost_per_s
    while done < work_s:
        left = interval_s - (done - saved) + checkpoint_s  # to the end of the next checkpoint
        strikes = rng.expovariate(rate)
        if strikes >= left:
            wall, done = wall + left, done + left - checkpoint_s
            saved = done
            continue
        wall, done = wall + strikes, min(done + strikes, saved + interval_s)
        if rng.random() * rate < losses.mended_per_s:
            wall += losses.mended_s
        else:
            wall, done = wall + losses.lost_s, saved
    return done / wall


@pytest.mark.parametrize(
    ("losses", "checkpoint_s"),
    [
        (Losses(1e-4, 30.0, 1e-5, 120.0), 20.0),
        (Losses(1e-3, 60.0, 1e-6, 300.0), 30.0),
        (Losses(1e-5, 10.0, 1e-4, 60.0), 10.0),
    ],
)
def test_it_is_what_a_simulated_run_gets(losses: Losses, checkpoint_s: float) -> None:
    interval = checkpoint_interval_s(checkpoint_s, losses.lost_per_s)
    got = simulated(losses, checkpoint_s=checkpoint_s, interval_s=interval, work_s=2e8, seed=11)
    assert goodput(losses, checkpoint_s=checkpoint_s, interval_s=interval) == pytest.approx(got, abs=0.004)


def test_no_other_interval_is_better() -> None:
    losses = Losses(1e-4, 30.0, 1e-5, 120.0)
    best = checkpoint_interval_s(20.0, losses.lost_per_s)
    shares = {f: goodput(losses, checkpoint_s=20.0, interval_s=f * best) for f in (0.5, 0.8, 1.0, 1.25, 2.0)}
    assert max(shares, key=lambda f: shares[f]) == 1.0
    assert best == pytest.approx(math.sqrt(2 * 20.0 / 1e-5), rel=0.02)  # Young's


def test_what_is_never_lost_needs_no_checkpoint() -> None:
    assert checkpoint_every(10.0, 0.0, 1.0) == 0
    assert goodput(Losses(0.0, 10.0, 0.0, 10.0), checkpoint_s=10.0, interval_s=math.inf) == 1.0
    assert checkpoint_every(10.0, 1e-4, 1e6) == 1


def test_checkpoints_that_take_longer_than_a_run_lasts_are_a_failure_apart() -> None:
    assert checkpoint_interval_s(1e5, 1e-4) == 1e4


def test_several_holders_are_rarely_lost_together() -> None:
    one = all_lost_per_s(node_per_s=1e-6, nodes=100, holders=1, window_s=60.0)
    two = all_lost_per_s(node_per_s=1e-6, nodes=100, holders=2, window_s=60.0)
    assert one == pytest.approx(1e-4)
    assert two == pytest.approx(1e-4 * 6e-5, rel=1e-3)


def test_two_holders_are_lost_as_often_as_in_a_simulated_pair() -> None:
    rng, rate, window, pairs_lost, until = random.Random(3), 1e-3, 50.0, 0, 2e7
    clock = 0.0
    while clock < until:  # one of two fails; within the window the other
        clock += rng.expovariate(2 * rate)
        pairs_lost += rng.expovariate(rate) < window
    assert all_lost_per_s(node_per_s=rate, nodes=2, holders=2, window_s=window) == pytest.approx(pairs_lost / until, rel=0.05)
