"""`make bench-plan-accuracy`: the planner's predictions beside plans that are really run here.

This machine is probed and every kind of layer profiled, with one core busy and with both; from that and the traced models every
plan's step time and memory are predicted, and printed, before any of them runs. Then each runs, one process per rank and at most
as many as there are cores, a few steps at a time. The same step varies twofold on a shared machine, so all of it is done round
after round: the median timings of a layer make the prediction that counts, the low percentile of a plan's steps what it is held
against.

Memory is the highest resident set of a rank's process over those steps against the predicted total, which is what a plan must fit
into; every pipeline rank's counts. `memory_beside_error_median` is the same beside a process that trains next to nothing: the
part that grows with the model. Plans of more ranks than there are cores run apart: their layers sleep, and their links are
throttled (bench/plan_accuracy_wide.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from bench.harness import figures, say
from bench.plan_accuracy_models import GPT, Case, Model, cases
from bench.plan_accuracy_results import MIB, Outcome, measure, merged, predict, summary, table
from bench.plan_accuracy_wide import wide
from bench.plan_accuracy_world import COUNTED_FROM, LinkSpeed, Place, Speed, link_speed, profile, run, speeds
from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.graph.costs import LayerCost, ModelCosts
from orchestrator.core.planner.strategy import Estimate
from orchestrator.engine.costs import trace

BARS = "step_error_median <= 0.10, p90 <= 0.20, rank_correlation >= 0.9, memory_error_median <= 0.08, memory_under_max <= 0.03"
MEMORY_BYTES = 8 << 30


def device(name: str, found: Sequence[Speed]) -> DeviceType:
    """A core, as it is when these cores are busy."""
    return DeviceType(
        name=name,
        kind="cpu",
        flops=min(s.flops for s in found),
        bandwidth=min(s.bandwidth for s in found),
        memory_bytes=MEMORY_BYTES,
        half_flops=max(s.half_flops for s in found),
    )


def machine(busy: int, found: Sequence[Speed], link: LinkSpeed) -> Resources:
    """This machine, as plans of so many ranks see it."""
    wire = Link(link.bandwidth, link.latency_s)
    node = NodeResources("here", f"core-of-{busy}", busy, "", inside=wire, network=wire, network_total=link.bandwidth)
    return Resources("here", (device(f"core-of-{busy}", found),), (node,))


def quicker(a: Speed, b: Speed) -> Speed:
    """Of two measurements of a core what was less disturbed."""
    return Speed(max(a.flops, b.flops), min(a.half_flops, b.half_flops), max(a.bandwidth, b.bandwidth))


class Predictor:
    """Everything that is known of this machine and the models without running a plan; better known after each `learn`."""

    def __init__(self, models: Sequence[Model], places: Sequence[Place], *, profile_s: float) -> None:
        self._places, self._profile_s = places, profile_s
        self._traced = {model.name: (model.job(), trace(model.job(), say=say)) for model in models}
        self._speeds: dict[int, list[Speed]] = {}
        self._links: list[LinkSpeed] = []
        self._passes: dict[tuple[str, int], list[ModelCosts]] = {}

    def learn(self) -> None:
        """Probe and profile."""
        self._links.append(link_speed(self._places))
        for busy in (1, 2):
            found = speeds(self._places[:busy])
            self._speeds[busy] = [quicker(*pair) for pair in zip(found, self._speeds.get(busy, found), strict=True)]
            for name, (job, traced) in self._traced.items():
                measured = profile(job, traced, places=self._places[:busy], device=f"core-of-{busy}", limit_s=self._profile_s)
                self._passes.setdefault((name, busy), []).append(merged(measured, statistics.fmean))  # on so many cores at once

    @property
    def _link(self) -> LinkSpeed:
        return LinkSpeed(max(x.bandwidth for x in self._links), statistics.median(x.latency_s for x in self._links))

    def predict(self, case: Case) -> Estimate:
        """By what is known now."""
        resources = machine(case.ranks, self._speeds[case.ranks], self._link)
        return predict(case, merged(self._passes[case.model.name, case.ranks], statistics.median), resources, self._places)

    def __str__(self) -> str:
        lines = []
        for busy, found in self._speeds.items():
            shown = ", ".join(
                f"{s.flops / 1e9:.1f} GFLOP/s (half of it at {s.half_flops / 1e6:.2f} MFLOP), {s.bandwidth / 1e9:.1f} GB/s"
                for s in found
            )
            lines.append(f"probe, {busy} busy: {shown}")
        lines.append(f"probe, link: {self._link.bandwidth / 1e9:.2f} GB/s each way at once, {self._link.latency_s * 1e6:.0f} us")
        for (name, busy), passes in self._passes.items():
            lines.append(f"profile, {name}, {busy} busy: " + "; ".join(words(k) for k in merged(passes, statistics.median).kinds))
        return "\n".join(lines)


def words(kind: LayerCost) -> str:
    """A kind of layer in a few."""
    timing = kind.timings[-1]
    return f"{kind.name} {timing.forward_s * 1e3:.2f} + {timing.backward_s * 1e3:.2f} ms"


def empty_process(model: Model, places: Sequence[Place]) -> int:
    """Bytes at the peak of a rank that trains next to nothing of a model: interpreter, torch and its libraries, threads."""
    job = model.nothing.job(data=2)
    return max(r.peak_bytes for r in run(replace(job, train=replace(job.train, steps=COUNTED_FROM + 1)), places))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when every bar holds."""
    parser = argparse.ArgumentParser(prog="bench.plan_accuracy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each plan (default 3)")
    parser.add_argument("--profile-s", type=float, default=2.0, help="seconds of a profile (default 2)")
    parser.add_argument("--quick", action="store_true", help="a few plans of one model, one round")
    parser.add_argument("--only", default="", help="plans whose `model plan` has this in it")
    parser.add_argument("--detail", action="store_true", help="terms, phases and parts of memory too")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("at least one round")
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("this bench needs two cores")
    places = [Place(), Place()]
    began = time.monotonic()
    wanted = [c for c in cases(quick=arguments.quick) if arguments.only in f"{c.model.name} {c.words}"]
    models = {c.model.name: c.model for c in wanted}
    predictor = Predictor(list(models.values()), places, profile_s=arguments.profile_s)
    bases = {name: empty_process(model, places) for name, model in models.items()}
    say("a process that trains next to nothing: " + ", ".join(f"{n} {b / MIB:.0f} MiB" for n, b in bases.items()))
    rounds = 1 if arguments.quick else arguments.rounds
    outcomes: list[Outcome] = []
    for number in range(rounds):
        predictor.learn()
        if not outcomes:
            outcomes = [Outcome(c, predictor.predict(c)) for c in wanted]
            say("predicted before any runs, in ms: " + "; ".join(f"{o.name} {o.predicted.step_s * 1e3:.0f}" for o in outcomes))
        for outcome in outcomes if number % 2 == 0 else reversed(outcomes):
            measure(outcome, places, bases[outcome.case.model.name])
        say(f"round {number + 1} of {rounds} after {time.monotonic() - began:.0f} s")
    first = summary(outcomes)
    for outcome in outcomes:
        outcome.predicted = predictor.predict(outcome.case)
    say(str(predictor))
    print(table(outcomes, detail=arguments.detail))
    found = summary(outcomes)
    beside = (
        {} if arguments.quick or arguments.only else wide(rounds=min(rounds, 2), detail=arguments.detail, base=bases[GPT.name])
    )
    print(f"bars: {BARS}; {time.monotonic() - began:.0f} s")
    before = {f"{key}_of_first_predictions": first[key] for key in ("step_error_median", "step_error_p90")}
    figures("plan_accuracy", **found, **before, **beside, seconds=round(time.monotonic() - began))
    held = (
        found["step_error_median"] <= 0.10
        and found["step_error_p90"] <= 0.20
        and found["rank_correlation"] >= 0.9
        and found["memory_error_median"] <= 0.08
        and found["memory_under_max"] <= 0.03
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
