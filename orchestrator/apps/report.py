"""The HTML report of a run: one file without any outside resource, to be read by people and kept beside the checkpoints.

It shows the loss curve (over an undisturbed run's, when there is one), a timeline for each failure, where the time went, the
plan, what was predicted of it against what was measured, and the decisions with their reasons. All but the verdict and measured
memory comes from the journal, so a report can be made again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.adapters.files.home import write_atomically
from orchestrator.apps import prediction_words as words
from orchestrator.apps import report_facts as facts
from orchestrator.apps import report_svg as svg
from orchestrator.apps.pages import template
from orchestrator.core.job import Job
from orchestrator.core.plan.layout import total
from orchestrator.core.plan.plan import OPTIMIZER, Plan
from orchestrator.runtime.ledger import Account, Cause, Ledger
from orchestrator.runtime.ports import Record
from orchestrator.runtime.prediction import predictions
from orchestrator.runtime.status_types import JobStatus

TEMPLATE = "report.html.j2"
FAILURES_MAX = 50  # shown in full
DECISIONS_MAX = 400  # the newest three quarters and the oldest quarter of these, when there are more

# The same thing has the same colour here and in a failure's timeline (report_svg.SEGMENTS).
COLOURS = {
    Cause.WAITING: "s3",
    Cause.FENCING: "s2",
    Cause.FORMING: "s4",
    Cause.INTERRUPTED: "s6",
    Cause.REDONE: "s5",
    Cause.PLANNED: "s7",
}

Pairs = Sequence[tuple[str, str]]
NONE_SEEN: Mapping[int, Mapping[str, int]] = {}


def write_report(
    path: Path,
    *,
    job: Job,
    records: Sequence[Record],
    status: JobStatus,
    undisturbed: Sequence[Record] = (),
    verdict: Pairs = (),
    peak_rss_bytes: Mapping[int, Mapping[str, int]] = NONE_SEEN,
) -> None:
    """Write the report, replacing an older one in one instant; folders are made.

    `records` is the journal, oldest first; `undisturbed` that of a run in which nothing failed; `verdict` are (label, value)
    pairs for the top of the page; `peak_rss_bytes` by epoch how large each worker was seen, as far as anybody looked. Raises
    OSError.
    """
    text = render_report(
        job=job, records=records, status=status, undisturbed=undisturbed, verdict=verdict, peak_rss_bytes=peak_rss_bytes
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def render_report(
    *,
    job: Job,
    records: Sequence[Record],
    status: JobStatus,
    undisturbed: Sequence[Record] = (),
    verdict: Pairs = (),
    peak_rss_bytes: Mapping[int, Mapping[str, int]] = NONE_SEEN,
) -> str:
    """The report as HTML text."""
    run, other = facts.loss_curve(records), facts.loss_curve(undisturbed)
    held_out = facts.held_out_curve(records)
    broken = facts.failures(records)
    shown = broken[-FAILURES_MAX:]
    longest_ms = max((f.span_ms for f in shown), default=0)
    account = Ledger.of(records).account()
    plan = facts.newest_plan(records)
    decided, omitted = _decisions(records)
    return template(TEMPLATE).render(
        name=job.name,
        phase=str(status.phase),
        outcome=str(status.outcome),
        last_word=status.last_word,
        made=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        verdict=list(verdict),
        summary=_summary(job, status, records),
        has_curve=bool(run),
        has_other=bool(other),
        has_held_out=bool(held_out),
        curve=svg.loss_chart(run=run, undisturbed=other, held_out=held_out, marks=broken),
        comparison=facts.compare(run, other) if other else "",
        failures=[(f, svg.failure_chart(f, longest_ms=longest_ms)) for f in shown],
        failures_omitted=len(broken) - len(shown),
        segments=[(css, told) for _, _, css, told in svg.SEGMENTS],
        meanings=facts.MEANINGS,
        ledger=_ledger(account),
        ledger_bar=svg.share_bar(_shares(account)),
        goodput=account.goodput,
        ettr=account.ettr,
        plan=plan,
        plan_rows=_plan_rows(plan) if plan else [],
        predictions=_predictions(records, peak_rss_bytes),
        no_prediction=words.NOTHING.capitalize() + ".",
        decisions=decided,
        decisions_omitted=omitted,
    )


def _summary(job: Job, status: JobStatus, records: Sequence[Record]) -> list[tuple[str, str]]:
    bytewise = facts.bytewise(job)
    rows = [
        ("Steps", f"{status.step} of {status.steps}"),
        ("Task", job.task.target),
        ("Ranks", _ranks(job)),
        ("Micro-batches", f"{job.train.micro_batches} a step, {job.train.consistency}, {job.train.precision}"),
        ("Training loss", _loss(status.loss, bytewise)),
        ("Held-out loss", _loss(status.eval_loss, bytewise)),
        ("Recoveries", str(status.recoveries)),
        ("Steps lost", str(status.steps_lost)),
        ("Updates skipped", str(status.skipped)),
        ("Survivors restarted", str(status.survivors_restarted)),
        ("Failure budget", f"{status.budget} of {status.budget_max} left"),
    ]
    if records:
        began = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(records[0].wall_s))
        rows.append(("Began", f"{began}, took {_seconds(records[-1].at_ms - records[0].at_ms)}"))
    if status.checkpoint is not None:
        rows.append(("Newest checkpoint", f"step {status.checkpoint.step} at {status.checkpoint.uri}"))
    return rows


def _ranks(job: Job) -> str:
    p = job.parallel
    if job.planner.auto:
        return "as the planner chose, see the plan"
    axes = [("pipeline", p.pipeline), ("data", p.data), ("tensor", p.tensor)]
    mesh = " x ".join(f"{size} {name}" for name, size in axes if size > 1) or "1"
    return f"{mesh}, ZeRO-{p.zero_stage}, {p.copies} copies" + (f", {p.schedule}" if p.pipeline > 1 else "")


def _loss(nats: float | None, bytewise: bool) -> str:
    if nats is None:
        return "none"
    return f"{nats:.4f} nats" + (f", {nats / math.log(2):.3f} bits per byte" if bytewise else "")


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s"


def _shares(account: Account) -> list[tuple[str, int, str]]:
    lost = [(str(cause), ms, COLOURS[cause]) for cause, ms in account.lost_ms]
    return [("productive", account.productive_ms, "s1"), *lost]


def _ledger(account: Account) -> list[tuple[str, str, str, str]]:
    """(class, name, time, share of the time since the first step)."""
    parts = _shares(account)
    whole = sum(ms for _, ms, _ in parts)
    rows = [(css, name, _seconds(ms), f"{100 * ms / whole:.1f} %" if whole else "-") for name, ms, css in parts]
    return [("", "start-up, before the first step", _seconds(account.startup_ms), ""), *rows]


def _predictions(records: Sequence[Record], peak_rss_bytes: Mapping[int, Mapping[str, int]]) -> list[tuple[str, str, str]]:
    """(epoch, step time, memory) of each epoch that something was predicted of, the prediction against what was measured."""
    told = predictions(records, peak_rss_bytes=peak_rss_bytes)
    return [(str(p.epoch), words.step_words(p), words.memory_words(p)) for p in told]


def _plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Rank, worker, node, layers, micro-batches, elements owned and kept for others."""
    rows: list[tuple[str, ...]] = []
    for seat in plan.seats:
        held = plan.layout(OPTIMIZER).holdings[seat.rank]
        owns, copies = f"{total(held.primary):,}", f"{total(held.extra):,}"
        layers, share = facts.layers_of(plan, seat.rank), facts.numbers(plan.micro_batches_of(seat.rank))
        rows.append((str(seat.rank), seat.worker_id, seat.node_id[:12], layers, share, owns, copies))
    return rows


def _decisions(records: Sequence[Record]) -> tuple[list[tuple[str, str, str, str]], int]:
    """(number, seconds since the start, event, reason) of the records that have a reason, and how many are left out."""
    told = [r for r in records if r.reason]
    omitted = max(0, len(told) - DECISIONS_MAX)
    if omitted:
        oldest = DECISIONS_MAX // 4
        told = [*told[:oldest], *told[oldest - DECISIONS_MAX :]]
    zero = records[0].at_ms if records else 0
    return [(str(r.seq), f"{(r.at_ms - zero) / 1000:.3f}", type(r.event).__name__, r.reason) for r in told], omitted
