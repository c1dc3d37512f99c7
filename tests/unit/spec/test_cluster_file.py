"""Cluster files become Resources, or an error that says where, what and how to put it right.

Every bad file of `bad_clusters/` is refused with exactly the text beside it. After a deliberate change of a message, look at the
difference and write the new text: `SPEC_GOLDEN=write pytest tests/unit/spec/test_cluster_file.py`.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.cluster.known import DEVICES, LINKS
from orchestrator.core.cluster.resources import DeviceType, Level, Link, NodeResources, Resources
from orchestrator.spec.cluster_file import DEVICES_MAX, MACHINES_MAX, load_cluster, load_cluster_text, render
from orchestrator.spec.document import read
from orchestrator.spec.errors import SpecError

ROOT = Path(__file__).parents[3]
BAD = Path(__file__).parent / "bad_clusters"
NAMES = sorted(path.stem for path in BAD.glob("*.yaml"))
EXAMPLES = sorted(ROOT.glob("examples/clusters/*.yaml"))
GROUP = "{device: a100-80g, devices: 8, inside: nvlink3, network: hdr}"


def cluster_of(*groups: str, more: str = "") -> Resources:
    return load_cluster_text("name: a\n" + more + "nodes:\n" + "".join(f"  - {group}\n" for group in groups))


# --------------------------------------------------------------------------------------------------------------------- bad


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 15
    assert {path.stem for path in BAD.glob("*.txt")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_message_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(SpecError) as caught:
        load_cluster(f"{name}.yaml")
    golden = BAD / f"{name}.txt"
    if os.environ.get("SPEC_GOLDEN") == "write":
        golden.write_text(caught.value.render() + "\n", encoding="utf-8")
    assert caught.value.render() + "\n" == golden.read_text(encoding="utf-8")
    lines = (BAD / f"{name}.yaml").read_text(encoding="utf-8").split("\n")
    for problem in caught.value.problems:
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no such file\n    fix: take one of examples/clusters"):
        load_cluster(tmp_path / "cluster.yaml")
    with pytest.raises(SpecError, match="is a folder, not a cluster file"):
        load_cluster(tmp_path)


# -------------------------------------------------------------------------------------------------------------------- good


def test_a_group_in_one_line() -> None:
    node = NodeResources(
        node_id="node-0",
        device="a100-80g",
        devices=8,
        rack="",
        inside=LINKS["nvlink3"],
        network=LINKS["hdr"],
        network_total=LINKS["hdr"].bandwidth,
    )
    assert cluster_of(GROUP) == Resources("a", types=(DEVICES["a100-80g"],), nodes=(node,))


def test_every_key_is_heard() -> None:
    own = "{name: mine, kind: gaudi, flops: 90 TFLOP/s, bandwidth: 900 GB/s, memory: 32 GiB, half_flops: 9 GFLOP}"
    other = "{name: a100-80g, kind: cuda, flops: 1 TFLOP/s, bandwidth: 1 GB/s, memory: 1 GiB}"
    network = "{like: hdr, latency: 7 us, total: 100 GB/s}"
    links = f"inside: {{bandwidth: 1 GB/s, latency: 1 ms}}, network: {network}"
    rest = "rack: left, pace: 2, failures_per_hour: 0.5, healthy: false"
    got = cluster_of(
        f"{{name: odd, count: 2, device: mine, devices: 4, {links}, {rest}}}",
        more=f"devices:\n  - {own}\n  - {other}\nuplink: {{like: edr, bandwidth: 80 Gbit/s, total: 1 TB/s}}\n",
    )
    assert got.types == (DeviceType("mine", "gaudi", 90e12, 900e9, 32 << 30, 9e9),)
    assert got.nodes == tuple(
        NodeResources(
            node_id=f"odd-{i}",
            device="mine",
            devices=4,
            rack="left",
            inside=Link(1e9, 1e-3),
            network=Link(20e9, 7e-6),
            network_total=100e9,
            pace=2.0,
            failures_per_hour=0.5,
            healthy=False,
        )
        for i in range(2)
    )
    assert got.uplink == Link(10e9, LINKS["edr"].latency_s)
    assert got.uplink_total == 1e12


def test_a_description_of_ones_own_wins_over_a_known_device() -> None:
    own = "devices:\n  - {name: a100-80g, kind: cuda, flops: 1 TFLOP/s, bandwidth: 1 GB/s, memory: 1 GiB}\n"
    assert cluster_of(GROUP, more=own).types[0].flops == 1e12


def test_racks_are_counted_over_the_groups() -> None:
    racked = GROUP.replace("}", ", count: 5, nodes_per_rack: 2}")
    got = cluster_of(racked, racked, GROUP)
    racks = [n.rack for n in got.nodes]
    assert [len(set(racks[:5])), len(set(racks[5:10])), len(set(racks))] == [3, 3, 7]
    assert racks[0] == racks[1] != racks[2] == racks[3] != racks[4] != racks[5]
    assert got.level(0, 8) == Level.RACK
    assert got.level(0, 16) == got.level(0, 87) == Level.ACROSS
    assert [n.node_id for n in got.nodes] == [f"node-{k}" for k in range(11)]


def test_groups_of_one_name_are_counted_on() -> None:
    named = GROUP.replace("}", ", name: gpu, count: 2}")
    assert [n.node_id for n in cluster_of(named, GROUP, named).nodes] == ["gpu-0", "gpu-1", "node-0", "gpu-2", "gpu-3"]


def test_mean_time_between_failures_is_a_rate() -> None:
    assert cluster_of(GROUP.replace("}", ", mtbf: 50 h}")).nodes[0].failures_per_hour == 0.02


def test_the_largest_clusters_load() -> None:
    assert (
        len(cluster_of(GROUP.replace("devices: 8", "devices: 6").replace("}", f", count: {MACHINES_MAX}}}")).nodes)
        == MACHINES_MAX
    )
    assert cluster_of(GROUP.replace("devices: 8", "devices: 64").replace("}", ", count: 1024}")).size == DEVICES_MAX


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_load_and_the_schema_accepts_them(path: Path) -> None:
    got = load_cluster(path)
    assert got.nodes
    assert {n.device for n in got.nodes} == set(got.by_name)
    schema().validate(read(path.read_text(encoding="utf-8"), file=path.name).root)


def test_the_examples_are_as_large_as_they_say() -> None:
    sizes = {path.stem: load_cluster(path).size for path in EXAMPLES}
    assert (sizes["1250x8"], sizes["a100-48x8"], sizes["ascend-910"], sizes["laptop"]) == (10_000, 384, 1568, 2)


# ------------------------------------------------------------------------------------------------------------ schema, fuzz


def schema() -> Any:
    jsonschema = importlib.import_module("jsonschema")  # comes with Ray; ships no types
    jsonschema.Draft202012Validator.check_schema(json.loads(render()))
    return jsonschema.Draft202012Validator(json.loads(render()))


def test_the_file_in_docs_is_current() -> None:
    assert (ROOT / "docs/cluster.schema.json").read_text(encoding="utf-8") == render()


@pytest.mark.parametrize("name", ["01-unknown-key", "03-missing", "05-unknown-link", "06-units", "08-out-of-bounds"])
def test_the_schema_refuses_what_it_can_see(name: str) -> None:
    assert not schema().is_valid(read((BAD / f"{name}.yaml").read_text(encoding="utf-8"), file=name).root)


TREE: dict[str, Any] = {
    "name": "a",
    "devices": [{"name": "mine", "kind": "cpu", "flops": "1 GFLOP/s", "bandwidth": "1 GB/s", "memory": "1 GiB"}],
    "nodes": [{"count": 2, "device": "mine", "devices": 2, "inside": "pcie4", "network": {"like": "hdr"}, "mtbf": "1 h"}],
    "uplink": {"bandwidth": "1 GB/s", "latency": "1 ms"},
}
KEYS = [
    "name",
    "devices",
    "nodes",
    "uplink",
    "count",
    "device",
    "inside",
    "network",
    "like",
    "bandwidth",
    "total",
    "rack",
    "mtbf",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["hdr", "1 GB/s", "5 us", "mine"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=2 * settings().max_examples)
@given(st.sampled_from([(), ("devices", 0), ("nodes", 0), ("nodes", 0, "network"), ("uplink",)]), st.sampled_from(KEYS), VALUES)
def test_whatever_a_file_holds_the_answer_is_a_cluster_or_a_refusal(
    place: tuple[str | int, ...], key: str, value: object
) -> None:
    tree = json.loads(json.dumps(TREE))
    section = tree
    for part in place:
        section = section[part]
    section[key] = value
    try:
        got = load_cluster_text(json.dumps(tree))
    except SpecError as refused:
        refused.render().encode()
        return
    assert got.size >= 1
