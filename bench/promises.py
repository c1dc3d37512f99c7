"""`make promises`: failures, shrinks and growth by a script, and the bits of a run in which nothing happened.

For each layout a job of 60 steps runs twice on an embedded Ray cluster: undisturbed, and through this: a worker is killed and
swapped, a node is lost and swapped, a node is lost with no spare left (the job shrinks), a worker is killed (it shrinks again),
workers and a new node come back (it grows to full strength), the pipeline is cut anew, and a node is drained. The journals must
show that all of it happened, that no step was lost and no survivor restarted; the digests and all losses must be equal. Before
that the cost model is held against published step times (bench/published.py); `--published` does only that.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.harness import Run, figures, run_job, say
from bench.published import WITHIN_MIN, published
from orchestrator.adapters.files.home import Home
from orchestrator.adapters.grpc.client import ControlClient
from orchestrator.adapters.ray.local_cluster import LocalCluster
from orchestrator.apps.wiring import LOCAL, start_local
from orchestrator.core.job import Job, TaskRef
from orchestrator.core.supervisor.events import Fault
from orchestrator.core.supervisor.state import JobPhase, WorkerPhase
from orchestrator.runtime.status_types import JobStatus, WorkerStatus
from orchestrator.testkit.jobs import make_job

ROOT = Path(__file__).resolve().parent.parent
STEPS = 60
NODES, SPARES = 4, 1
WAIT_S = 90.0
LOOK_S = 0.02
BRISK_MS, SLOW_MS = 15, 1200  # per micro-batch: while the script acts, and while it waits for processes to come up


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to cut the job."""

    name: str
    cut: dict[str, int]
    small: tuple[int, ...]  # ranks after the node loss without a spare, and after one more worker is lost


LAYOUTS = (
    Layout("dp", {"data": 4}, (3, 2)),
    Layout("zero1", {"data": 4, "zero_stage": 1, "copies": 1}, (3, 2)),
    Layout("zero3", {"data": 4, "zero_stage": 3, "copies": 1}, (3, 2)),
    Layout("pipeline", {"data": 2, "pipeline": 2, "copies": 1}, (2, 2)),
)


class ScriptFailed(Exception):
    """Something did not happen in time; the message says what."""


def job_of(layout: Layout, pace: Path) -> Job:
    """A small GPT; growth follows soon after a shrink."""
    options = {"layers": 4, "width": 64, "heads": 4, "context": 64, "batch_size": 2, "dropout": 0.1, "pace": str(pace)}
    return make_job(
        name=layout.name,
        task=TaskRef("bench.paced_task:PacedGPT", json.dumps(options, sort_keys=True), str(ROOT)),
        steps=STEPS,
        micro_batches=8,
        digest_every=10,
        nodes=NODES,
        spares=SPARES,
        detect_within_ms=4000,
        failure_budget=20,
        grow_after_steps=2,
        **layout.cut,
    )


class Script:
    """Does things to a running job, and waits until the job has dealt with each."""

    def __init__(self, client: ControlClient, job: Job, layout: Layout, cluster: LocalCluster, pace: Path) -> None:
        self._client, self._job, self._layout, self._cluster, self._pace = client, job, layout, cluster, pace

    def play(self) -> None:
        """From beginning to end. Raises ScriptFailed."""
        full = self._job.parallel.ranks
        first = self._layout.small[0]
        self._until("step 4 and a spare", lambda s: s.step >= 4 and _spares(s) >= 1)
        self._hit("kill-worker", 1)
        self._until("the swap of rank 1", lambda s: s.recoveries >= 1 and _runs(s, full) and _spares(s) >= 1)
        self._hit("kill-node", 2)
        self._until("the swap of a lost node", lambda s: s.recoveries >= 2 and _runs(s, full))
        self._hit("kill-node", 0)
        self._until(f"the shrink to {first} ranks", lambda s: s.recoveries >= 3 and _runs(s, first))
        self._hit("kill-worker", 0)
        self._until(f"the loss at {first} ranks", lambda s: s.recoveries >= 4 and _runs(s, 2, 3))
        say(f"{self._job.name}: a node comes back")
        self._pace_is(SLOW_MS)
        self._cluster.add_node(say)
        self._until("growth to full strength", lambda s: _runs(s, full) and not s.shrunk)
        if self._job.parallel.pipeline > 1:
            self._recut()
        self._drain()
        self._pace_is(0)

    def _hit(self, kind: str, rank: int) -> None:
        say(f"{self._job.name}: {kind} of rank {rank}")
        self._client.inject(self._job.name, fault=Fault(kind, rank, "", 0, 0, 0), who="promises")

    def _recut(self) -> None:
        status = self._client.get(self._job.name)
        assert status.plan is not None
        before = status.plan.layers_per_stage
        after = (before[0] + 1, *before[1:-1], before[-1] - 1)
        say(f"{self._job.name}: pipeline stages {before} -> {after}")
        self._client.scale(self._job.name, layers_per_stage=after, who="promises")
        self._until("the new stages", lambda s: s.plan is not None and s.plan.layers_per_stage == after and _runs(s, 4))

    def _drain(self) -> None:
        status = self._client.get(self._job.name)
        node = next(w.node_id for w in status.workers if w.rank == 3)
        say(f"{self._job.name}: drain of the node of rank 3")
        self._client.drain(self._job.name, node_id=node, who="promises")
        self._until("the drain", lambda s: s.phase is JobPhase.RUNNING and not any(w.node_id == node for w in _ranks(s)))

    def _until(self, what: str, wanted: Callable[[JobStatus], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        began = time.monotonic()
        while True:
            status = self._client.get(self._job.name)
            if wanted(status):
                self._pace_is(BRISK_MS)
                return
            if status.phase.terminal or time.monotonic() > deadline:
                seen = f"step {status.step}, {status.phase}, plan {status.plan}, {status.last_word}"
                raise ScriptFailed(f"{self._job.name}: {what} did not happen: {seen}")
            if time.monotonic() - began > 0.5:
                self._pace_is(SLOW_MS)
            time.sleep(LOOK_S)

    def _pace_is(self, ms: int) -> None:
        self._pace.write_text(str(ms))


def _ranks(status: JobStatus) -> list[WorkerStatus]:
    return [w for w in status.workers if w.phase is WorkerPhase.MEMBER]


def _spares(status: JobStatus) -> int:
    return sum(w.phase is WorkerPhase.SPARE and w.connected for w in status.workers)


def _runs(status: JobStatus, *sizes: int) -> bool:
    return status.phase is JobPhase.RUNNING and status.plan is not None and status.plan.ranks in sizes


def check(layout: Layout, calm: Run, stormy: Run) -> list[str]:
    """What of the promise does not hold; empty when all of it does."""
    out = []
    if not calm.digest or calm.digest != stormy.digest:
        out.append(f"digests differ: {calm.digest[:12]} and {stormy.digest[:12]}")
    if calm.losses != stormy.losses or len(calm.losses) != STEPS:
        out.append("losses differ")
    if stormy.steps_lost or stormy.status.survivors_restarted:
        out.append(f"{stormy.steps_lost} steps lost, {stormy.status.survivors_restarted} survivors restarted")
    sizes = [len(e) for e in stormy.epochs]
    full = calm.job.parallel.ranks
    for small in {*layout.small}:
        if small not in sizes:
            out.append(f"never trained on {small} ranks: {sizes}")
    if full not in sizes[sizes.index(min(sizes)) :]:
        out.append(f"never grew back to {full} ranks: {sizes}")
    return out


def promise(layout: Layout, home: Path) -> bool:
    """Both runs of one layout."""
    pace = home / f"{layout.name}.pace"
    pace.unlink(missing_ok=True)
    job = job_of(layout, pace)
    calm_job = replace(job, name=f"{layout.name}-calm")
    with start_local(job, home=home, on_progress=say) as session:
        say(f"---- {layout.name}: undisturbed")
        calm = run_job(session.client, calm_job)
        say(f"---- {layout.name}: by the script")
        pace.write_text(str(BRISK_MS))
        session.client.submit(job, yaml_text="")
        cluster = LocalCluster(nodes=NODES + SPARES, slots_per_node=1, run_dir=Home(home).cluster(LOCAL))
        try:
            Script(session.client, job, layout, cluster, pace).play()
        except ScriptFailed as error:
            say(str(error))
            return False
        status = [session.client.get(job.name), *session.client.watch_status(job.name)][-1]
        stormy = Run(job, status, tuple(session.client.watch_events(job.name)))
    for r in stormy.records:
        if r.reason and ("starting epoch" in r.reason):
            say(f"  step {r.committed_step}: {r.reason[:230]}")
    findings = check(layout, calm, stormy)
    for finding in findings:
        say(f"{layout.name}: {finding}")
    say(f"{layout.name}: {'kept' if not findings else 'BROKEN'}; sizes of the epochs: {[len(e) for e in stormy.epochs]}")
    return not findings


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 only when every promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", choices=[x.name for x in LAYOUTS], action="append", help="only these")
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "promises")
    parser.add_argument("--published", action="store_true", help="only the cost model against published step times")
    args = parser.parse_args(arguments)
    predicted = published()
    near = predicted["within_15"] >= WITHIN_MIN
    if args.published:
        figures("promises", **predicted)
        return 0 if near else 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.home.mkdir(parents=True, exist_ok=True)
    kept = {x.name: promise(x, args.home) for x in LAYOUTS if not args.layout or x.name in args.layout}
    figures("promises", **{f"{name}_equal": int(ok) for name, ok in kept.items()}, **predicted)
    return 0 if near and all(kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
