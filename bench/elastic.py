"""`make bench-elastic`: how long training stands still when it goes on with one rank less, and when it grows back.

The product on an embedded Ray cluster of as many nodes as ranks, with no spare. A node drawn from a seed is lost (SIGKILL to its
raylet and all its workers, from outside): the job shrinks by one rank, and what counts is the time from the kill to the end of
the next step on all ranks that are left, by the workers' own step log. Then a node is added and the job grows back by itself:
what counts is the time from the commit of the last step before to the end of the first step after, less one usual step.
Several rounds on one job; its digests must be those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.baselines import steps
from bench.baselines.dims import Dims, add_dims_flags, dims_from
from bench.bench_task import bench_job
from bench.harness import figures, say
from bench.recovery import undisturbed
from bench.watch import JobWatch, digests_of, equal_digests
from orchestrator.adapters.files.home import Home
from orchestrator.adapters.ray.local_cluster import LocalCluster
from orchestrator.apps.wiring import LOCAL, start_local
from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import StepCommitted
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.runtime.ports import Record

STEPS_MAX = 1_000_000  # nobody gets there: the disturbed job is cancelled
GROW_AFTER_STEPS = 2
SETTLE_STEPS = 4 * GROW_AFTER_STEPS + 2  # after a growth: longer than the span in which a shrink counts as flapping
LAYOUTS = {"zero1": (1, 1), "dp": (0, 0), "zero3": (3, 1)}  # name: ZeRO stage, peer copies


def step_ends(lines: Iterable[steps.Line], *, workers: int, after_s: float = 0.0) -> dict[int, float]:
    """Step -> the time in seconds at which the last of so many workers was done with it."""
    return steps.completions([replace(line, rank=line.worker) for line in lines], ranks=workers, after_s=after_s)


@dataclass(frozen=True, slots=True)
class Shrink:
    """A node was lost. Times are CLOCK_MONOTONIC seconds, as in the journal and the step log."""

    rank: int
    killed_s: float
    end_s: float  # the next new step is done on every rank that is left
    step_s: float  # median step time just before, at full strength
    records: tuple[Record, ...]  # from the kill on

    @property
    def took_s(self) -> float:
        """Kill to the end of the next step."""
        return self.end_s - self.killed_s

    @property
    def over_bar(self) -> float:
        """Over 2 step times + 1 s."""
        return self.took_s / (2 * self.step_s + 1.0)

    def milestones(self) -> dict[str, float]:
        """Seconds since the kill."""
        found = _milestones(self.records, since_s=self.killed_s)
        return {**found, "step done": self.took_s}


@dataclass(frozen=True, slots=True)
class Growth:
    """A node came back."""

    committed_s: float  # the last step before, as the journal has it
    end_s: float  # the first step after is done on every rank
    step_s: float  # median step time just after, at full strength
    records: tuple[Record, ...]  # from that commit on

    @property
    def pause_s(self) -> float:
        """Longer than one usual step by so much."""
        return self.end_s - self.committed_s - self.step_s

    @property
    def over_bar(self) -> float:
        """Over 1 step time + 0.5 s."""
        return self.pause_s / (self.step_s + 0.5)

    def milestones(self) -> dict[str, float]:
        """Seconds since the commit."""
        found = _milestones(self.records, since_s=self.committed_s)
        return {**found, "step done": self.end_s - self.committed_s}


@dataclass(slots=True)
class Breath:
    """The rounds of one layout."""

    name: str
    shrinks: list[Shrink] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    steps_lost: int = 0
    survivors_restarted: int = 0


def _milestones(records: Sequence[Record], *, since_s: float) -> dict[str, float]:
    """When the journal has each part of a change of size: all have left, the next epoch is planned, every rank has its state."""
    found: dict[str, float] = {}
    for r in records:
        at_s = r.at_ms / 1e3 - since_s
        if r.phase == JobPhase.FENCING:
            found.setdefault("leaving", at_s)
        if any(isinstance(c, RunEpoch) for c in r.commands):
            found.setdefault("planned", at_s)
        if "planned" in found and r.phase == JobPhase.RUNNING:
            found.setdefault("ready", at_s)
        if "ready" in found and isinstance(r.event, StepCommitted):
            found.setdefault("committed", at_s)
    return found


def growth_of(records: Sequence[Record], *, ranks: int) -> tuple[int, float, tuple[Record, ...]] | None:
    """(last step before, its commit in seconds, records from there on) of the first growth to so many ranks; None: not yet."""
    commits: dict[int, tuple[int, Record]] = {}
    for n, r in enumerate(records):
        if isinstance(r.event, StepCommitted):
            commits.setdefault(r.event.step, (n, r))
        if any(isinstance(c, RunEpoch) and c.plan.size == ranks for c in r.commands):
            at, commit = commits[r.committed_step]
            return r.committed_step, commit.at_ms / 1e3, tuple(records[at:])
    return None


# ------------------------------------------------------------------------------------------------------ one disturbed run


class Breather:
    """Takes a node away and gives one back, round after round."""

    def __init__(
        self, watch: JobWatch, rng: random.Random, *, kill_node: Callable[[str], object], add_node: Callable[[], object]
    ) -> None:
        self._watch, self._rng, self._kill_node, self._add_node = watch, rng, kill_node, add_node
        self._ranks = watch.job.parallel.ranks

    def run(self, name: str, *, rounds: int) -> Breath:
        """The whole story of one layout. Raises BenchFailed."""
        breath, watch = Breath(name), self._watch
        watch.client.submit(watch.job, yaml_text="")
        for n in range(rounds):
            down = self._shrink()
            breath.shrinks.append(down)
            say(f"{name} round {n}, shrink: {down.took_s:.2f} s = {down.over_bar:.2f} of the bar; {_told(down)}")
            up = self._grow()
            breath.growths.append(up)
            say(f"{name} round {n}, growth: {up.pause_s:.2f} s = {up.over_bar:.2f} of the bar; {_told(up)}")
            for late in (down, up):
                if late.over_bar > 1:
                    since_s = late.records[0].at_ms / 1e3
                    say("\n".join(f"  {r.at_ms / 1e3 - since_s:7.3f} s  {r.reason}" for r in late.records if r.reason))
        run = watch.end_after_digest(who="bench-elastic")
        breath.digests = digests_of(run.records)
        breath.steps_lost, breath.survivors_restarted = run.steps_lost, run.survivors_restarted
        return breath

    def _settled(self, workers: int, count: int) -> dict[int, float]:
        """So many whole steps from now on."""
        since_s = time.monotonic()

        def settled() -> dict[int, float] | None:
            done = step_ends(self._watch.lines(), workers=workers, after_s=since_s)
            return done if len(done) > count else None

        found: dict[int, float] = self._watch.wait(f"{count} steps of {workers} ranks", settled)
        return found

    def _shrink(self) -> Shrink:
        watch = self._watch
        done = self._settled(self._ranks, SETTLE_STEPS)
        step_s = statistics.median(steps.step_times(done))
        time.sleep(self._rng.random() * step_s)
        victim = self._rng.choice(watch.members())
        seq = watch.last_seq()
        killed_s = time.monotonic()
        self._kill_node(victim.node_id)

        def next_step() -> tuple[int, float] | None:
            lines = [replace(line, rank=line.worker) for line in watch.lines()]
            return steps.first_new_step(lines, ranks=self._ranks - 1, killed_s=killed_s)

        _, end_s = watch.wait("a new step after a node was lost", next_step)
        return Shrink(victim.rank, killed_s, end_s, step_s, watch.records(after_seq=seq))

    def _grow(self) -> Growth:
        watch = self._watch
        self._settled(self._ranks - 1, GROW_AFTER_STEPS)
        seq = watch.last_seq()
        self._add_node()
        found = watch.wait("the growth", lambda: growth_of(watch.records(after_seq=seq), ranks=self._ranks), look_s=0.5)
        last, committed_s, records = found
        done = self._settled(self._ranks, SETTLE_STEPS)
        step_s = statistics.median(steps.step_times(done))
        end_s = step_ends(watch.lines(), workers=self._ranks, after_s=committed_s)[last + 1]
        return Growth(committed_s, end_s, step_s, watch.records(after_seq=records[0].seq))


def _told(change: Shrink | Growth) -> str:
    parts = ", ".join(f"{name} {s * 1e3:.0f}" for name, s in change.milestones().items())
    return f"step {change.step_s * 1e3:.0f} ms; ms: {parts}"


# ----------------------------------------------------------------------------------------------------------------- report


def table(breaths: Sequence[Breath]) -> str:
    """Medians, for people."""
    names = ("leaving", "planned", "ready", "committed", "step done")
    lines = [f"{'layout':8} {'change':8} {'n':>3} {'step':>8} " + " ".join(f"{n:>11}" for n in names) + f" {'over bar':>9}"]
    for breath in breaths:
        changes: tuple[tuple[str, Sequence[Shrink | Growth]], ...] = (("shrink", breath.shrinks), ("growth", breath.growths))
        for what, found in changes:
            told = [c.milestones() for c in found]
            cells = " ".join(_cell([t[n] for t in told if n in t]) for n in names)
            step_ms = statistics.median(c.step_s for c in found) * 1e3
            over = statistics.median(c.over_bar for c in found)
            lines.append(f"{breath.name:8} {what:8} {len(found):3} {step_ms:5.0f} ms {cells} {over:9.2f}")
    return "\n".join(lines)


def _cell(values_s: Sequence[float]) -> str:
    return f"{statistics.median(values_s) * 1e3:8.0f} ms" if values_s else f"{'-':>11}"


def numbers(breaths: Sequence[Breath], equal: dict[str, bool]) -> dict[str, float | int]:
    """The figures of the last line; the first layout is the one of the claim."""
    out: dict[str, float | int] = {}
    for n, breath in enumerate(breaths):
        prefix = f"{breath.name}_" if n else ""
        out[f"{prefix}shrink_over_bar"] = round(statistics.median(s.over_bar for s in breath.shrinks), 3)
        out[f"{prefix}shrink_s"] = round(statistics.median(s.took_s for s in breath.shrinks), 3)
        out[f"{prefix}grow_over_bar"] = round(statistics.median(g.over_bar for g in breath.growths), 3)
        out[f"{prefix}grow_s"] = round(statistics.median(g.pause_s for g in breath.growths), 3)
        out[f"{prefix}step_s"] = round(statistics.median(s.step_s for s in breath.shrinks), 3)
    out["rounds"] = min(len(b.growths) for b in breaths)
    out["steps_lost"] = sum(b.steps_lost for b in breaths)
    out["survivors_restarted"] = sum(b.survivors_restarted for b in breaths)
    out["digest_equal"] = int(bool(equal) and all(equal.values()))
    return out


def elastic_job(name: str, dims: Dims, *, ranks: int, step_log: str) -> Job:
    """The bench's job without spares, that grows back soon."""
    zero_stage, copies = LAYOUTS[name]
    job = bench_job(
        f"elastic-{name}",
        dims,
        ranks=ranks,
        steps=STEPS_MAX,
        zero_stage=zero_stage,
        copies=copies,
        step_log=step_log,
        failure_budget=10,
    )
    return replace(job, resilience=replace(job.resilience, grow_after_steps=GROW_AFTER_STEPS))


def main() -> int:
    """Exit status 0 when both changes are within their bars and nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="per layout, each a shrink and a growth")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=None, help="of victims and moments; drawn and printed when absent")
    parser.add_argument("--layout", choices=list(LAYOUTS), action="append", help="zero1 unless given; may be repeated")
    add_dims_flags(parser)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    dims = dims_from(args)
    seed = secrets.randbelow(1_000_000) if args.seed is None else args.seed
    say(f"seed {seed} (repeat with: make bench-elastic ARGS='--seed {seed}')")
    with tempfile.TemporaryDirectory(prefix="bench-elastic-") as folder:
        breaths = [
            _breathe(name, dims, ranks=args.ranks, rounds=args.rounds, seed=seed, folder=Path(folder) / name)
            for name in args.layout or ["zero1"]
        ]
        say("---- the same job undisturbed")
        until = max(max(b.digests) for b in breaths)
        calm = undisturbed(dims, ranks=args.ranks, steps_total=until, folder=Path(folder) / "calm")
    equal = {b.name: equal_digests(calm, b.digests, until=max(b.digests)) for b in breaths}
    print(table(breaths))
    found = numbers(breaths, equal)
    figures("elastic", seed=seed, **found)
    within = all(statistics.median(c.over_bar for c in found) <= 1 for b in breaths for found in (b.shrinks, b.growths))
    return 0 if within and not found["steps_lost"] and not found["survivors_restarted"] and found["digest_equal"] else 1


def _breathe(name: str, dims: Dims, *, ranks: int, rounds: int, seed: int, folder: Path) -> Breath:
    say(f"---- {name}: {rounds} times down to {ranks - 1} ranks and back to {ranks}")
    folder.mkdir()
    log = folder / "steps.jsonl"
    job = elastic_job(name, dims, ranks=ranks, step_log=str(log))
    with start_local(job, home=folder / "home", on_progress=say) as session:
        cluster = LocalCluster(nodes=ranks, slots_per_node=1, run_dir=Home(folder / "home").cluster(LOCAL))
        breather = Breather(
            JobWatch(session.client, job, log),
            random.Random(f"{seed}-{name}"),
            kill_node=cluster.kill_node,
            add_node=cluster.add_node,
        )
        return breather.run(name, rounds=rounds)


if __name__ == "__main__":
    sys.exit(main())
