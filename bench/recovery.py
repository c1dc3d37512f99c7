"""`make bench-recovery`: from `kill -9` of a worker to the end of the next completed step, ours beside torchrun and torchft.

Ours is the product on an embedded Ray cluster of several nodes. A worker drawn from a seed is killed from outside at a drawn
moment; the workers' step log, with the same rules as for the peers (bench/baselines/steps.py), says when the next step was whole,
and the journal says where the time went. Both layouts are compared with one undisturbed run, digest by digest: exact mode
promises the same bits for both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.baselines import steps
from bench.baselines.dims import Dims, add_dims_flags, dims_from
from bench.bench_task import bench_job
from bench.harness import figures, run_job, say
from bench.watch import BenchFailed, JobWatch, digests_of, equal_digests
from orchestrator.adapters.files.home import Home
from orchestrator.adapters.ray.local_cluster import LocalCluster
from orchestrator.apps.wiring import LOCAL, start_local
from orchestrator.core.supervisor.commands import FenceEpoch, RunEpoch
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.runtime.ports import Record

ROOT = Path(__file__).resolve().parent.parent
SETTLE_STEPS = 4  # whole steps at full strength before a kill
STEPS_MAX = 1_000_000  # nobody gets there: the disturbed jobs are cancelled
LAYOUTS = (("dp", 0, 0), ("zero1", 1, 1))  # name, ZeRO stage, peer copies


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill and what followed. Times are CLOCK_MONOTONIC seconds, as in the journal and the step log."""

    what: str  # worker | node
    rank: int
    killed_s: float
    end_s: float  # the next new step is whole on every rank
    step_s: float  # median undisturbed step time just before
    records: tuple[Record, ...]  # from the kill on

    @property
    def took_s(self) -> float:
        """Kill to the end of the next completed step."""
        return self.end_s - self.killed_s

    @property
    def over_bar(self) -> float:
        """Over 1.5 step times + 0.3 s."""
        return self.took_s / (1.5 * self.step_s + 0.3)

    def story(self) -> str:
        """Why, in the supervisor's words."""
        return "\n".join(f"  {r.at_ms / 1e3 - self.killed_s:7.3f} s  {r.reason}" for r in self.records if r.reason)

    def milestones(self) -> dict[str, float]:
        """Seconds since the kill at which the journal has each milestone of the recovery."""
        found: dict[str, float] = {}
        resumed_at = 0
        for r in self.records:
            at_s = r.at_ms / 1e3 - self.killed_s
            if any(isinstance(c, FenceEpoch) for c in r.commands):
                found.setdefault("detected", at_s)
            if any(isinstance(c, RunEpoch) for c in r.commands):
                found.setdefault("planned", at_s)
                resumed_at = r.committed_step
            if "planned" in found and r.phase == JobPhase.RUNNING:
                found.setdefault("ready", at_s)
            if "planned" in found and r.committed_step > resumed_at:
                found.setdefault("committed", at_s)
        found["step whole"] = self.took_s
        return found


@dataclass(slots=True)
class Storm:
    """A disturbed run of one layout."""

    name: str
    kills: list[Kill] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    steps_lost: int = 0
    survivors_restarted: int = 0
    last_step: int = 0  # the newest one with a digest

    def of(self, what: str) -> list[Kill]:
        """Only workers, or only nodes."""
        return [k for k in self.kills if k.what == what]


# ------------------------------------------------------------------------------------------------------ one disturbed run


class Chaser:
    """Kills workers and nodes of a running job and waits until it is whole again."""

    def __init__(self, watch: JobWatch, rng: random.Random, kill_node: Callable[[str], object]) -> None:
        self._watch, self._rng, self._kill_node = watch, rng, kill_node
        self._ranks = watch.job.parallel.ranks

    def run(self, name: str, *, kills: int, node_kills: int) -> Storm:
        """The whole story of one layout. Raises BenchFailed."""
        storm, watch = Storm(name), self._watch
        watch.client.submit(watch.job, yaml_text="")
        spares = watch.job.cluster.spares
        for n in range(kills + node_kills):
            what = "worker" if n < kills else "node"
            watch.wait_for_spares(spares if what == "worker" else spares - (n - kills))
            storm.kills.append(self._kill(what))
            k = storm.kills[-1]
            parts = ", ".join(f"{name} {s * 1e3:.0f}" for name, s in k.milestones().items())
            say(f"{name} {what} kill {n}: {k.took_s:.2f} s = {k.over_bar:.2f} of the bar, step {k.step_s:.2f} s; ms: {parts}")
            if k.over_bar > 1:
                say(k.story())
        run = watch.end_after_digest(who="bench-recovery")
        storm.digests = digests_of(run.records)
        storm.last_step = max(storm.digests)
        storm.steps_lost = run.steps_lost
        storm.survivors_restarted = run.survivors_restarted
        return storm

    def _kill(self, what: str) -> Kill:
        watch, since = self._watch, time.monotonic()
        done = watch.wait("settled steps", lambda: d if len(d := self._whole(since)) > SETTLE_STEPS else None)
        newest, step_s = max(done), statistics.median(steps.step_times(done))
        done = watch.wait("one more step", lambda: d if max(d := self._whole(since)) > newest else None)
        time.sleep(max(0.0, done[max(done)] + self._rng.random() * step_s - time.monotonic()))
        victim = self._rng.choice(watch.members())
        seq = watch.last_seq()
        killed_s = time.monotonic()
        if what == "node":
            self._kill_node(victim.node_id)
        else:
            os.kill(victim.pid, signal.SIGKILL)
        _, end_s = watch.wait(
            f"a new step after a {what} was killed",
            lambda: steps.first_new_step(watch.lines(), ranks=self._ranks, killed_s=killed_s),
        )
        return Kill(what, victim.rank, killed_s, end_s, step_s, watch.records(after_seq=seq))

    def _whole(self, since_s: float) -> dict[int, float]:
        return steps.completions(self._watch.lines(), ranks=self._ranks, after_s=since_s)


# -------------------------------------------------------------------------------------------------------------- the peers


def measure_peer(system: str, dims: Dims, *, ranks: int, kills: int, seed: int) -> dict[str, Any]:
    """What bench.baselines.measure prints; `available` False where the peer cannot be installed here."""
    command = [sys.executable, "-m", "bench.baselines.measure", f"--system={system}", f"--ranks={ranks}"]
    command += [f"--kills={kills}", f"--seed={seed}", "--json", *dims.as_flags()]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            out, _ = process.communicate(timeout=1800)
        except BaseException:
            process.terminate()  # it ends what it started
            raise
    if process.returncode != 0:
        return {"available": False, "why": f"bench.baselines.measure ended with status {process.returncode}"}
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


# ----------------------------------------------------------------------------------------------------------------- report


def table(storms: Sequence[Storm], peers: dict[str, dict[str, Any]]) -> str:
    """Medians, for people."""
    names = ("detected", "planned", "ready", "committed", "step whole")
    lines = [f"{'system':10} {'killed':7} {'n':>3} {'step':>8} " + " ".join(f"{n:>11}" for n in names) + f" {'over bar':>9}"]
    for storm in storms:
        for what in ("worker", "node"):
            kills = storm.of(what)
            if kills:
                found = [k.milestones() for k in kills]
                cells = " ".join(_cell([f[n] for f in found if n in f]) for n in names)
                step_ms = statistics.median(k.step_s for k in kills) * 1e3
                over = statistics.median(k.over_bar for k in kills)
                lines.append(f"{storm.name:10} {what:7} {len(kills):3} {step_ms:5.0f} ms {cells} {over:9.2f}")
    for name, found_peer in peers.items():
        if found_peer.get("median_s") is not None:
            times = found_peer["times_s"]
            head = f"{name:10} {'worker':7} {len(times):3} {found_peer['median_step_s'] * 1e3:5.0f} ms"
            lines.append(f"{head} {'':47} {found_peer['median_s'] * 1e3:8.0f} ms   steps redone {found_peer['steps_redone']}")
        else:
            lines.append(f"{name:10} not measured: {found_peer.get('why') or found_peer.get('failures')}")
    return "\n".join(lines)


def _cell(values_s: Sequence[float]) -> str:
    """A median in milliseconds; a step that was past its commit when its rank was killed has no other commit."""
    return f"{statistics.median(values_s) * 1e3:8.0f} ms" if values_s else f"{'-':>11}"


def numbers(storms: Sequence[Storm], equal: dict[str, bool], peers: dict[str, dict[str, Any]]) -> dict[str, float | int]:
    """The figures of the last line."""
    out: dict[str, float | int] = {}
    for storm in storms:
        kills = storm.of("worker")
        out[f"{storm.name}_over_bar"] = round(statistics.median(k.over_bar for k in kills), 3)
        out[f"{storm.name}_s"] = round(statistics.median(k.took_s for k in kills), 3)
        out[f"{storm.name}_worst_s"] = round(max(k.took_s for k in kills), 3)
        out[f"{storm.name}_step_s"] = round(statistics.median(k.step_s for k in kills), 3)
        if storm.of("node"):
            out[f"{storm.name}_node_s"] = round(statistics.median(k.took_s for k in storm.of("node")), 3)
    out["kills"] = sum(len(s.kills) for s in storms)
    out["steps_lost"] = sum(s.steps_lost for s in storms)
    out["survivors_restarted"] = sum(s.survivors_restarted for s in storms)
    out["digest_equal"] = int(bool(equal) and all(equal.values()))
    ours_s = statistics.median(k.took_s for s in storms for k in s.of("worker"))
    for name, found in peers.items():
        if found.get("median_s"):
            out[f"{name}_s"] = found["median_s"]
            out[f"{name}_ratio"] = round(found["median_s"] / ours_s, 2)
    return out


def main() -> int:
    """Exit status 0 when both layouts are within the bar and nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of workers, per layout")
    parser.add_argument("--node-kills", type=int, default=1, help="per layout, after those; each costs a node")
    parser.add_argument("--peer-kills", type=int, default=3, help="0: leave torchrun and torchft out")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--spares", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None, help="of victims and moments; drawn and printed when absent")
    parser.add_argument("--layout", choices=[name for name, _, _ in LAYOUTS], action="append")
    add_dims_flags(parser)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    dims = dims_from(args)
    seed = secrets.randbelow(1_000_000) if args.seed is None else args.seed
    say(f"seed {seed} (repeat with: make bench-recovery ARGS='--seed {seed}')")
    with tempfile.TemporaryDirectory(prefix="bench-recovery-") as folder:
        storms = [
            _storm(layout, dims, args=args, seed=seed, folder=Path(folder) / layout[0])
            for layout in LAYOUTS
            if not args.layout or layout[0] in args.layout
        ]
        say("---- the same job undisturbed")
        until = max(s.last_step for s in storms)
        calm = undisturbed(dims, ranks=args.ranks, steps_total=until, folder=Path(folder) / "calm")
    equal = {s.name: equal_digests(calm, s.digests, until=s.last_step) for s in storms}
    peers = {}
    for system in ("torchrun", "torchft") if args.peer_kills else ():
        say(f"---- {system}")
        peers[system] = measure_peer(system, dims, ranks=args.ranks, kills=args.peer_kills, seed=seed)
    print(table(storms, peers))
    found = numbers(storms, equal, peers)
    figures("recovery", seed=seed, **found)
    within = all(found[f"{s.name}_over_bar"] <= 1 for s in storms)
    return 0 if within and not found["steps_lost"] and found["digest_equal"] else 1


def _storm(layout: tuple[str, int, int], dims: Dims, *, args: argparse.Namespace, seed: int, folder: Path) -> Storm:
    """A cluster of its own for each layout, since node kills use it up."""
    name, zero_stage, copies = layout
    say(f"---- {name}: {args.kills} workers and {args.node_kills} node(s) killed")
    folder.mkdir()
    log = folder / "steps.jsonl"
    job = bench_job(
        f"storm-{name}",
        dims,
        ranks=args.ranks,
        steps=STEPS_MAX,
        zero_stage=zero_stage,
        copies=copies,
        spares=args.spares,
        step_log=str(log),
    )
    with start_local(job, home=folder / "home", on_progress=say) as session:
        cluster = LocalCluster(nodes=args.ranks + args.spares, slots_per_node=1, run_dir=Home(folder / "home").cluster(LOCAL))
        chaser = Chaser(JobWatch(session.client, job, log), random.Random(f"{seed}-{name}"), cluster.kill_node)
        return chaser.run(name, kills=args.kills, node_kills=args.node_kills)


def undisturbed(dims: Dims, *, ranks: int, steps_total: int, folder: Path) -> dict[int, str]:
    """Digests of a run in which nothing fails: data parallel over the same ranks, on a cluster of its own."""
    folder.mkdir()
    job = bench_job("calm", dims, ranks=ranks, steps=steps_total)
    with start_local(job, home=folder / "home", on_progress=say) as session:
        run = run_job(session.client, job)
    if run.status.phase is not JobPhase.SUCCEEDED:
        raise BenchFailed(f"the undisturbed run has {run.status.phase}: {run.status.last_word}")
    return digests_of(run.records)


if __name__ == "__main__":
    sys.exit(main())
