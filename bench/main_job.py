"""`make run`: train a real small model on real text, kill a node in mid-step, and show that nothing was lost.

The same job runs twice on one embedded cluster of 4 nodes and a spare: undisturbed, and with a node killed at a step, rank and
micro-batch that are drawn from a seed. Both must end with equal bits of parameters and optimizer state and the same losses.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.harness import Run, figures, run_job, say
from orchestrator import spec
from orchestrator.apps.cli.view import make_view
from orchestrator.apps.report import write_report
from orchestrator.apps.wiring import start_local
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import Fault

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "gpt-docs" / "job.yaml"


def draw(job: Job, seed: int) -> Fault:
    """A node to kill: whose rank, in which step, before which of its micro-batches."""
    rng = random.Random(seed)
    parallel, steps = job.parallel, job.train.steps
    rank = rng.randrange(parallel.ranks)
    replica = rank // parallel.tensor % parallel.data
    mine = job.train.micro_batches * (replica + 1) // parallel.data - job.train.micro_batches * replica // parallel.data
    return Fault("kill-node", rank, "", rng.randrange(steps // 4, 3 * steps // 4), rng.randrange(mine), 0)


def verdict(calm: Run, stormy: Run) -> dict[str, int | float | None]:
    """What the two journals prove."""
    recovery = _recovery_ms(stormy)
    return {
        "steps": calm.job.train.steps,
        "steps_lost": stormy.steps_lost,
        "survivors_restarted": stormy.survivors_restarted,
        "digest_equal": int(bool(calm.digest) and calm.digest == stormy.digest),
        "losses_equal": int(calm.losses == stormy.losses and len(calm.losses) == calm.job.train.steps),
        "recoveries": stormy.status.recoveries,
        "recovery_ms": recovery,
        "held_out_bits_per_byte": round((stormy.held_out or 0.0) / 0.6931471805599453, 4) if stormy.held_out else None,
    }


def _recovery_ms(run: Run) -> int | None:
    """From the first sign of the failure to the next committed step."""
    signs = [r for r in run.records if type(r.event).__name__ in ("WorkerDisconnected", "WorkerGone", "LeftEpoch")]
    if not signs:
        return None
    after = [r.at_ms for r in run.records if r.seq > signs[0].seq and r.committed_step > signs[0].committed_step]
    return after[0] - signs[0].at_ms if after else None


def main() -> int:
    """Exit status 0 only when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the kill; drawn and printed when absent")
    parser.add_argument("--job", type=Path, default=EXAMPLE)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "main-job")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = secrets.randbelow(1_000_000) if args.seed is None else args.seed
    job = spec.load(args.job)
    fault = draw(job, seed)
    say(f"seed {seed} (repeat with: make run ARGS='--seed {seed}')")
    say(f"the node of rank {fault.rank} will be killed in step {fault.at_step}, before its micro-batch {fault.micro_batch}")
    args.home.mkdir(parents=True, exist_ok=True)
    with start_local(job, home=args.home, on_progress=say) as session:
        runs = []
        for name, faults in (("undisturbed", ()), ("one-node-lost", (fault,))):
            say(f"---- {name}")
            named = replace(job, name=f"{job.name}-{name}", checkpoint=replace(job.checkpoint, uri=""))
            with make_view(Console(stderr=True), live=True, bytewise=True) as view:
                runs.append(run_job(session.client, named, faults=faults, on_status=view.update))
            if runs[-1].status.outcome != "completed":
                say(f"{name}: {runs[-1].status.phase}: {runs[-1].status.last_word}")
                figures("main-job", seed=seed, completed=0)
                return 1
    calm, stormy = runs
    found = verdict(calm, stormy)
    report = args.home / "report.html"
    write_report(
        report,
        job=stormy.job,
        records=stormy.records,
        status=stormy.status,
        undisturbed=calm.records,
        verdict=[(k, str(v)) for k, v in found.items()],
    )
    say(f"report: {report}")
    figures("main-job", seed=seed, completed=1, **found)
    lost = found["steps_lost"] or found["survivors_restarted"] or not found["digest_equal"] or not found["losses_equal"]
    return 1 if lost or not found["recoveries"] else 0


if __name__ == "__main__":
    sys.exit(main())
