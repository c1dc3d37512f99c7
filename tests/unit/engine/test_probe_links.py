"""The probe of links, between real processes: every meeting is measured, and a worker that vanishes costs its own links only."""

from __future__ import annotations

import signal
from itertools import combinations
from pathlib import Path

import pytest
import torch

from orchestrator.core.cluster.rounds import Meeting
from orchestrator.engine.groups import StoreServer
from orchestrator.engine.probe_links import measure_links
from tests.unit.engine.forking import forked
from tests.unit.engine.probe_world import HOST, measured_here


@forked
def test_all_levels_are_measured(tmp_path: Path) -> None:
    got = measured_here(tmp_path, ["a", "a", "b", "b"], seconds=90.0)
    ends = {(link.senders, link.receivers) for link in got}
    assert {(("w0",), ("w1",)), (("w2",), ("w3",)), (("w0", "w1"), ("w2", "w3"))} <= ends
    assert len(got) == len(ends) == 4
    for link in got:
        assert link.problem == ""
        assert 1e6 < link.bandwidth < 1e12
        assert 1e-6 < link.latency_s < 1.0


@forked
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_vanishes_costs_its_own_links_only(tmp_path: Path, way: signal.Signals) -> None:
    got = measured_here(tmp_path, ["a", "b", "c"], seconds=16.0, vanish={2: way})
    by_pair = {frozenset(link.senders + link.receivers): link for link in got}
    assert by_pair[frozenset({"w0", "w1"})].problem == ""
    assert by_pair[frozenset({"w0", "w1"})].bandwidth > 1e6
    led = [link for pair, link in by_pair.items() if "w2" in pair]
    assert by_pair.keys() <= {frozenset(p) for p in combinations(("w0", "w1", "w2"), 2)}
    assert led, "somebody else leads a meeting with it"
    for link in led:
        assert link.problem
        assert (link.bandwidth, link.latency_s) == (0.0, 0.0)


@forked
def test_who_is_told_to_stop_measures_nothing_and_returns(tmp_path: Path) -> None:
    assert measured_here(tmp_path, ["a", "b"], seconds=600.0, stop=True) == []


def alone(**more: object) -> str:
    """The problem of a worker whose peer is not there at all."""
    store = StoreServer(HOST)
    try:
        plan = ((Meeting((0,), (1,)),),)
        arguments: dict[str, object] = {"bind_host": HOST, "epoch": 0, "number": 1, **more}
        (link,) = measure_links(plan, me=0, workers=[("me", store.endpoint), ("you", f"{HOST}:1")], **arguments)  # type: ignore[arg-type]
    finally:
        store.close()
    assert (link.bandwidth, link.latency_s) == (0.0, 0.0)
    return link.problem


def test_who_waits_for_a_peer_is_told_to_stop() -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 5

    assert alone(seconds=600.0, stop=stop) == "its time was over"


def test_the_time_is_over() -> None:
    assert alone(seconds=0.2) == "its time was over"


def test_a_store_that_nobody_serves_is_a_problem_not_an_error() -> None:
    plan = ((Meeting((0,), (1,)),),)
    (link,) = measure_links(
        plan, me=0, workers=[("me", f"{HOST}:1"), ("you", f"{HOST}:1")], bind_host=HOST, epoch=0, number=1, seconds=5.0
    )
    assert "cannot be reached" in link.problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test misses")
def test_a_library_that_is_not_here_is_a_problem_not_an_error() -> None:
    assert "nccl" in alone(seconds=20.0, backend="nccl").lower()
