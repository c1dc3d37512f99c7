"""Workers take the seats that a strategy chose by device, or it is said why they can not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.plan.plan import PipelineSchedule, Seat
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.seating import seats_from
from orchestrator.core.planner.strategy import Strategy

NODES = tuple(NodeResources(f"n{i}", "d", 2, "", Link(100.0, 0.0), Link(1.0, 0.0), 10.0) for i in range(2))
TWO = Resources("c", (DeviceType("d", "cpu", 1.0, 1.0, 1),), NODES)
WORKERS = [("w0", "n0"), ("w1", "n1"), ("w2", "n0"), ("w3", "n1")]


def strategy(*devices: int) -> Strategy:
    """Data parallel over these devices."""
    n = len(devices)
    return Strategy(n, (1,), (1,), PipelineSchedule.ONE_F_ONE_B, 1, n, 0, 1, 0, (False,), devices)


def test_each_rank_gets_the_worker_of_its_device() -> None:
    assert seats_from(strategy(2, 0, 3, 1), TWO, WORKERS) == (
        Seat(0, "w1", "n1"),
        Seat(1, "w0", "n0"),
        Seat(2, "w3", "n1"),
        Seat(3, "w2", "n0"),
    )


def test_workers_may_be_left_over_and_a_device_names_one_of_several() -> None:
    assert seats_from(strategy(1, 3), TWO, WORKERS) == (Seat(0, "w2", "n0"), Seat(1, "w3", "n1"))


@pytest.mark.parametrize(
    ("devices", "workers", "words"),
    [
        ((0, 1), WORKERS[:2], "rank 1 is to run on device 2 of n0, which has 1 workers ready"),
        ((0, 3), [("w0", "n0")], "rank 1 is to run on device 2 of n1, which has 0 workers ready"),
        ((0, 0), WORKERS, "ranks 0 and 1 share device 0"),
        ((0, -1), WORKERS, "rank 1 has no device: its device is lost"),
        ((4,), WORKERS, "there is no device 4"),
        ((0,), [("w0", "n0"), ("w0", "n1")], "worker w0 is named twice"),
    ],
)
def test_what_does_not_match_is_said_in_words(devices: tuple[int, ...], workers: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        seats_from(strategy(*devices), TWO, workers)


def test_nobody_is_seated_on_a_node_that_is_not_healthy() -> None:
    sick = replace(TWO, nodes=(NODES[0], replace(NODES[1], healthy=False)))
    assert seats_from(strategy(0, 1), sick, WORKERS) == (Seat(0, "w0", "n0"), Seat(1, "w2", "n0"))
    with pytest.raises(PlanError, match="rank 1 is to run on n1, which is not healthy"):
        seats_from(strategy(0, 2), sick, WORKERS)


def test_a_strategy_without_devices_seats_nobody() -> None:
    with pytest.raises(PlanError, match="2 ranks need a device each, 0 are chosen"):
        seats_from(replace(strategy(0, 1), devices=()), TWO, WORKERS)
