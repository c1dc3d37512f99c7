"""Measurements become the cluster as it is: types, ailing nodes, links by level, failure rates; gaps get what is usual."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pytest

from orchestrator.core.cluster.measured import (
    PRIOR_HOURS,
    UNMEASURED,
    DeviceMeasure,
    LinkMeasure,
    WorkerMeasure,
    failure_rates,
    resources_from,
    type_name,
)
from orchestrator.core.cluster.resources import Level, Link, Resources
from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.codec import from_json, to_json
from orchestrator.core.job import DeviceKind

FAST, SLOW = 1e9, 1e8


def device(flops: float = 50e9, *, model: str = "AMD EPYC", memory: int = 8 << 30) -> DeviceMeasure:
    return DeviceMeasure("cpu", model, flops=flops, bandwidth=flops / 5, memory_bytes=memory, half_flops=1e6)


def view(*names: str, sick: tuple[str, ...] = ()) -> ClusterView:
    return ClusterView(1, tuple(NodeView(n, "10.0.0.1", DeviceKind.CPU, 4, 1 << 34, n not in sick) for n in names))


def link(a: str, b: str, bandwidth: float = FAST, latency_s: float = 1e-4) -> LinkMeasure:
    return LinkMeasure((a,), (b,), bandwidth, latency_s)


def made(measures: Mapping[str, WorkerMeasure], **more: object) -> Resources:
    """One worker per node: worker "wa" on node "a"."""
    nodes = [w[1:] for w in measures]
    return resources_from(view(*nodes), [(w, w[1:]) for w in measures], measures, **more)  # type: ignore[arg-type]


def test_equal_nodes_are_one_type_and_none_is_slow() -> None:
    rates = {"wa": 50e9, "wb": 46e9, "wc": 52e9}
    got = made({w: WorkerMeasure(device(f)) for w, f in rates.items()})
    (kind,) = got.types
    assert (kind.name, kind.kind) == ("amd-epyc", "cpu")
    assert kind.flops == 51e9, "of the better half"
    assert kind.bandwidth == 10e9
    assert kind.half_flops == 1e6
    assert [n.pace for n in got.nodes] == [1.0, 1.0, 1.0]
    assert [n.device for n in got.nodes] == ["amd-epyc"] * 3


def test_a_node_behind_its_type_gets_a_pace() -> None:
    rates = {"wa": 50e9, "wb": 20e9, "wc": 50e9, "wd": 50e9}
    got = made({w: WorkerMeasure(device(f)) for w, f in rates.items()})
    assert [n.pace for n in got.nodes] == [1.0, 2.5, 1.0, 1.0]
    assert got.types[0].bandwidth == 10e9, "what a healthy one reaches"


def test_what_was_seen_in_training_comes_on_top_of_what_was_measured() -> None:
    rates = {"wa": 50e9, "wb": 20e9, "wc": 50e9, "wd": 50e9}
    got = made({w: WorkerMeasure(device(f)) for w, f in rates.items()}, pace={"wa": 3.0, "wb": 2.0})
    assert [n.pace for n in got.nodes] == [3.0, 5.0, 1.0, 1.0]


def test_models_are_types_and_a_rank_may_use_what_all_nodes_of_it_have() -> None:
    got = made(
        {
            "wa": WorkerMeasure(device(300e12, model="NVIDIA A100-SXM4-80GB", memory=80)),
            "wb": WorkerMeasure(device(90e12, model="Tesla V100-SXM2-32GB", memory=32)),
            "wc": WorkerMeasure(device(300e12, model="NVIDIA A100-SXM4-80GB", memory=79)),
        }
    )
    assert {t.name: (t.flops, t.memory_bytes) for t in got.types} == {
        "nvidia-a100-sxm4-80gb": (300e12, 79),
        "tesla-v100-sxm2-32gb": (90e12, 32),
    }
    assert [got.type_of(d).memory_bytes for d in range(3)] == [79, 32, 79]
    assert type_name("cuda", "???") == "cuda"


def test_devices_of_a_node_are_its_workers_and_nodes_are_in_order() -> None:
    workers = [("w1", "b"), ("w2", "a"), ("w3", "b")]
    got = resources_from(view("a", "b", "c", sick=("b",)), workers, {"w2": WorkerMeasure(device())})
    assert [(n.node_id, n.devices, n.healthy) for n in got.nodes] == [("a", 1, True), ("b", 2, False)]
    assert got.nodes[1].device == "amd-epyc", "as those that were measured"


def test_without_any_measure_there_is_no_cluster() -> None:
    with pytest.raises(ValueError, match="no worker has measured"):
        resources_from(view("a"), [("wa", "a")], {})


def test_links_by_level_and_gaps_by_what_is_usual() -> None:
    workers = [("a0", "a"), ("a1", "a"), ("b0", "b"), ("b1", "b"), ("c0", "c"), ("c1", "c")]
    measures = {
        "a0": WorkerMeasure(
            device(),
            (
                link("a0", "a1", 9e9, 1e-5),
                link("a0", "b0", 1e9, 1e-4),
                LinkMeasure(("a0", "a1"), ("b0", "b1"), 1.8e9, 1e-4),
                LinkMeasure(("a0",), ("c1",), 0.0, 0.0, problem="its time was over"),
            ),
        ),
        "b0": WorkerMeasure(device(), (link("b0", "b1", 7e9, 3e-5),)),
        "c0": WorkerMeasure(device()),
    }
    a, b, c = resources_from(view("a", "b", "c"), workers, measures).nodes
    assert (a.inside, b.inside) == (Link(9e9, 1e-5), Link(7e9, 3e-5))
    assert c.inside == Link(8e9, 2e-5), "the median"
    assert a.network == b.network == c.network == Link(1e9, 1e-4)
    assert a.network_total == b.network_total == c.network_total == 1.8e9


def test_one_slow_peer_makes_nobody_else_slow() -> None:
    pairs = [link(f"w{a}", f"w{b}", SLOW if "d" in (a, b) else FAST) for a, b in combinations("abcd", 2)]
    measures = {f"w{n}": WorkerMeasure(device(), tuple(p for p in pairs if p.senders == (f"w{n}",))) for n in "abcd"}
    got = made(measures)
    assert [n.network.bandwidth for n in got.nodes] == [FAST, FAST, FAST, SLOW]
    assert {n.rack for n in got.nodes} == {""}, "a slow adapter is no rack"


def test_racks_are_found_where_links_between_them_are_slow() -> None:
    pairs = [link(f"w{a}", f"w{b}", FAST if (a in "ac") == (b in "ac") else SLOW, 1e-3) for a, b in combinations("abcd", 2)]
    measures = {f"w{n}": WorkerMeasure(device(), tuple(p for p in pairs if p.senders == (f"w{n}",))) for n in "abcd"}
    got = made(measures)
    assert got.uplink == Link(SLOW, 1e-3)
    assert [n.network.bandwidth for n in got.nodes] == [FAST] * 4
    assert (got.level(0, 2), got.level(1, 3), got.level(0, 1)) == (Level.RACK, Level.RACK, Level.ACROSS)


def test_a_link_to_a_worker_that_has_left_is_forgotten_and_with_no_link_at_all_the_network_is_taken_for_poor() -> None:
    got = made({"wa": WorkerMeasure(device(), (link("wa", "gone"),)), "wb": WorkerMeasure(device())})
    assert [n.network for n in got.nodes] == [UNMEASURED, UNMEASURED]
    assert [n.network_total for n in got.nodes] == [UNMEASURED.bandwidth] * 2


def test_failure_rates_are_those_of_the_kind() -> None:
    kinds = {"a": "cuda", "b": "cuda", "c": "cpu"}
    rates = failure_rates(kinds, losses={"a": 3}, hours={"a": 1000.0, "b": 1000.0, "c": 10.0})
    assert rates["a"] == rates["b"] == 4 / (PRIOR_HOURS + 2000)
    assert rates["c"] == 1 / (PRIOR_HOURS + 10)
    got = made({"wa": WorkerMeasure(device()), "wc": WorkerMeasure(device())}, failures_per_hour=rates)
    assert [n.failures_per_hour for n in got.nodes] == [rates["a"], rates["c"]]


def test_a_measure_travels_and_is_journaled() -> None:
    measure = WorkerMeasure(device(), (link("a", "b"), LinkMeasure(("a",), ("c",), 0.0, 0.0, "gone")))
    assert from_json(WorkerMeasure, to_json(measure)) == measure
