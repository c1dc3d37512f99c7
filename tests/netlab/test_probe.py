"""The probe of links on machines of their own: a throttled link is measured as it is, and only its own machine counts as slow."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from orchestrator.core.cluster.measured import DeviceMeasure, WorkerMeasure, resources_from
from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import DeviceKind
from tests.netlab.lab import Lab
from tests.unit.engine.probe_world import LIMIT_S, ROOT, Order

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

MBIT = 24.0  # a megabyte takes a third of a second: long beside what a busy machine makes of a wake-up
SECONDS = 60.0


def test_a_throttled_machine(root: Path) -> None:
    nodes = ["a", "b", "c"]
    with Lab(nodes=len(nodes), root=root / "probe-lab") as lab:
        lab.throttle(2, MBIT)
        folder = root / "probe"
        folder.mkdir()
        orders = [Order(str(folder), k, lab.node(k).address, nodes, seconds=SECONDS) for k in range(len(nodes))]
        with (root / "probe.log").open("wb") as log:
            for k, order in enumerate(orders):
                lab.node(k).start(order.argv(), env={"PATH": os.environ["PATH"]}, output=log, cwd=ROOT)
        until = time.monotonic() + LIMIT_S
        while not all((folder / f"{k}.json").exists() for k in range(len(nodes))):
            assert time.monotonic() < until, (root / "probe.log").read_text()
            time.sleep(0.05)
    measured = {f"w{order.me}": WorkerMeasure(DeviceMeasure("cpu", "x", 1e9, 1e9, 1, 0.0), order.result()) for order in orders}
    links = [link for measure in measured.values() for link in measure.links]
    assert [link.problem for link in links] == [""] * 3, links
    rate = MBIT * 1e6 / 8
    for link in links:
        if "w2" in link.senders + link.receivers:
            assert 0.85 * rate < link.bandwidth < 1.15 * rate, links
    view = ClusterView(1, tuple(NodeView(n, "", DeviceKind.CPU, 1, 1, True) for n in nodes))
    a, b, c = resources_from(view, [(f"w{k}", n) for k, n in enumerate(nodes)], measured).nodes
    assert a.network.bandwidth == b.network.bandwidth > 2 * c.network.bandwidth
    assert 0.85 * rate < c.network.bandwidth < 1.15 * rate
