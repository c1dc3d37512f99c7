"""`make bench-plan-scale`: how long the planner takes, and how much memory, for a very large model on very many devices.

260 B parameters (48 blocks of 12288 with 196608 in the middle, as in ERNIE 3.0 Titan) on 10,000 devices in 1,250 nodes, on
512 devices of two kinds, on 8,192 devices among uniform plans only, and again after one node is lost. Wall seconds of one
process, the best of some runs; the memory is that of a process of its own. How the time grows is fitted from 64 to 16,384
devices.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.harness import figures, say
from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.transformer import Blocks, Transformer, transformer_costs
from orchestrator.core.planner.cost.programs import MEGATRON
from orchestrator.core.planner.search.choose import choose
from orchestrator.core.planner.strategy import Choice, Parent, Problem, Reliability, Space

DEVICES = 10_000
BATCH = 4096  # sequences of 512 tokens
SIZES = (64, 256, 1024, 4096, 16_384)
BARS = {
    "seconds": 10.0,
    "peak_gib": 2.0,
    "hetero_seconds": 1.0,
    "uniform_seconds": 0.1,
    "replan_seconds": 1.0,
    "growth_exponent": 2.0,
}

FAST = DeviceType("fast", "cuda", flops=200e12, bandwidth=1.3e12, memory_bytes=76 << 30)
SLOW = DeviceType("slow", "cuda", flops=100e12, bandwidth=0.7e12, memory_bytes=60 << 30)
INSIDE, NETWORK = Link(200e9, 5e-6), Link(25e9, 10e-6)
RELIABILITY = Reliability(detect_s=10.0, restart_s=30.0, checkpoint_s=5.0, load_s=300.0)


def titan() -> ModelCosts:
    """48 blocks of 5.4 B parameters each."""
    blocks = Blocks(name="block", layers=48, hidden=12288, heads=192, ffn=196608)
    return transformer_costs(Transformer(name="titan", blocks=blocks, vocabulary=46_080, sequence=512))


def cluster(devices: int, kinds: Sequence[DeviceType] = (FAST,)) -> Resources:
    """Nodes of eight, racks of thirty-two nodes; of several kinds as many of each."""
    nodes = [
        NodeResources(
            node_id=f"node{n:05}",
            device=kinds[n * len(kinds) // (devices // 8)].name,
            devices=8,
            rack=f"rack{n // 32:03}",
            inside=INSIDE,
            network=NETWORK,
            network_total=4 * NETWORK.bandwidth,
            failures_per_hour=1e-4,
        )
        for n in range(devices // 8)
    ]
    return Resources(f"{devices} devices", tuple(kinds), tuple(nodes), uplink=Link(25e9, 15e-6), uplink_total=64 * 25e9)


def problem(devices: int, *, kinds: Sequence[DeviceType] = (FAST,), space: Space | None = None) -> Problem:
    """The model on so many devices."""
    space = space or Space(units=(1, 2, 4))
    return Problem(titan(), cluster(devices, kinds), MEGATRON, BATCH, space, RELIABILITY)


@dataclass(frozen=True, slots=True)
class Timed:
    """A choice, and the wall and CPU seconds of the quickest of some runs."""

    choice: Choice
    seconds: float
    cpu_s: float


def timed(make: Callable[[], Choice], runs: int) -> Timed:
    """Run it some times."""
    found: list[Timed] = []
    for _ in range(runs):
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        choice = make()
        found.append(Timed(choice, time.perf_counter() - wall, time.process_time() - cpu))
    return min(found, key=lambda t: t.seconds)


def lose_node(asked: Problem, choice: Choice) -> tuple[Problem, Parent]:
    """The same problem without the node of the last rank, and the plan that ran until then."""
    lost = asked.resources.node_of[choice.best.strategy.devices[-1]]
    nodes = tuple(replace(n, healthy=k != lost) for k, n in enumerate(asked.resources.nodes))
    devices = tuple(-1 if asked.resources.node_of[d] == lost else d for d in choice.best.strategy.devices)
    parent = Parent(replace(choice.best.strategy, devices=devices), steps_left=10_000, move_bandwidth=10e9)
    return replace(asked, resources=replace(asked.resources, nodes=nodes)), parent


def peak_gib() -> float:
    """Of a process that makes the large plan and nothing else."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_peak, args=(theirs,))
    child.start()
    found = ours.recv()
    child.join()
    assert isinstance(found, float)
    return found


def _peak(pipe: multiprocessing.connection.Connection) -> None:
    choose(problem(DEVICES))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20))


def exponent(seconds: dict[int, float]) -> float:
    """Slope of log seconds over log devices, by least squares."""
    xs, ys = [math.log(n) for n in seconds], [math.log(s) for s in seconds.values()]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args(argv).runs
    uniform = Space(units=(1, 2, 4), uneven=False)
    large, mixed, flat = problem(DEVICES), problem(512, kinds=(FAST, SLOW)), problem(8192, space=uniform)
    cases = {
        "seconds": timed(lambda: choose(large), runs),
        "hetero_seconds": timed(lambda: choose(mixed), runs),
        "uniform_seconds": timed(lambda: choose(flat), runs),
    }
    less, parent = lose_node(large, cases["seconds"].choice)
    cases["replan_seconds"] = timed(lambda: choose(less, parent), runs)
    say(f"{'case':16} {'wall':>8} {'CPU':>8} {'weighed':>8}  chosen")
    for name, t in cases.items():
        say(f"{name:16} {t.seconds:7.2f}s {t.cpu_s:7.2f}s {t.choice.weighed:8}  {t.choice.reason}")
    grown: dict[int, float] = {}
    for n in SIZES:
        asked = problem(n)
        t = timed(lambda asked=asked: choose(asked), 1)  # type: ignore[misc]
        grown[n] = t.seconds
        say(f"{n:9} devices {t.seconds:7.2f}s {t.cpu_s:7.2f}s {t.choice.weighed:8}  {t.choice.reason}")
    found = {name: round(t.seconds, 3) for name, t in cases.items()}
    found |= {"peak_gib": round(peak_gib(), 3), "growth_exponent": round(exponent(grown), 3)}
    figures("plan-scale", **{name: found[name] for name in BARS})
    return 0 if all(found[name] <= bar for name, bar in BARS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
