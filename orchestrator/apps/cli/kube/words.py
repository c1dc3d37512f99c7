"""A TrainingJob and its Events as text, and the exit code that its end means. Plain strings, as in render.py."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from types import MappingProxyType

from orchestrator.adapters.kube.access import Options
from orchestrator.adapters.kube.seen import Condition, EventSeen, JobSeen, Phase
from orchestrator.apps.cli.base import Code
from orchestrator.apps.cli.render import loss, table
from orchestrator.apps.units import duration

USER_REASONS = MappingProxyType({"UserError": Code.USER, "InvalidSpec": Code.INPUT})  # else a failed job is infrastructure's

SEATS_SHOWN_MAX = 16  # JSON has them all


def code_of(job: JobSeen) -> Code:
    """The exit code that a job's phase and reason mean, as `run` has them."""
    if job.phase is Phase.SUCCEEDED:
        return Code.OK
    if job.phase is Phase.CANCELLED:
        return Code.INTERRUPTED
    return USER_REASONS.get(job.reason, Code.INFRA) if job.phase is Phase.FAILED else Code.INFRA


def phase_text(job: JobSeen) -> str:
    """`Failed (BudgetSpent)`, with what is special about it."""
    text = f"{job.phase} ({job.reason})" if job.reason and job.reason != job.phase else str(job.phase)
    return f"{text}, being deleted" if job.leaving else text


def progress_text(job: JobSeen) -> str:
    """Where a job is, in one line."""
    parts = [phase_text(job)]
    if job.step is not None:
        parts.append(f"step {job.step}/{job.steps}" if job.steps else f"step {job.step}")
    parts += [job.progress] if job.progress else []
    parts += [f"loss {loss(job.loss)}"] if job.loss is not None else []
    parts += [f"goodput {job.goodput}"] if job.goodput else []
    parts += [f"ETA {duration(job.eta_s)}"] if job.eta_s is not None else []
    if job.ranks is not None:
        parts.append(f"{job.ranks} ranks + {job.spares or 0} spare")
    elif job.replicas is not None:
        parts.append(f"{job.ready or 0} of {job.replicas} nodes ready")
    return ", ".join(parts)


def status_lines(job: JobSeen) -> list[str]:
    """Everything about a job."""
    facts = [("job", f"{job.name} (namespace {job.namespace})"), ("phase", phase_text(job))]
    if job.step is not None:
        epoch = f", epoch {job.epoch}" if job.epoch is not None else ""
        facts.append(("progress", f"step {job.step} of {job.steps or '?'} {f'({job.progress})' if job.progress else ''}{epoch}"))
    if job.loss is not None:
        facts.append(("loss", loss(job.loss)))
    if job.eta_s is not None:
        facts.append(("ETA", duration(job.eta_s)))
    goodput = f", goodput {job.goodput}" if job.goodput else ""
    recoveries = f"{job.recoveries} recover{'y' if job.recoveries == 1 else 'ies'}"
    counted = f", {job.failures} failure{'' if job.failures == 1 else 's'} counted" if job.failures else ""
    facts.append(("resilience", f"{recoveries}, {job.steps_lost} steps lost{goodput}{counted}"))
    ranks = f"; {job.ranks} ranks, {job.spares or 0} spare" if job.ranks is not None else ""
    ready = f"{job.ready or 0} of {job.replicas} ready" if job.replicas is not None else "none yet"
    facts.append(("nodes", f"{job.nodes} wanted, {ready}{ranks}"))
    if 0 < len(job.seats) <= SEATS_SHOWN_MAX:
        facts.append(("ranks", ", ".join(f"{rank}: {pod}" for rank, pod in enumerate(job.seats))))
    if job.checkpoint is not None:
        facts.append(("checkpoint", f"step {job.checkpoint}"))
    if job.last_decision:
        facts.append(("decision", job.last_decision))
    if job.digest:
        facts.append(("digest", job.digest))
    lines = table(facts)
    if job.conditions:
        rows = [("CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE")]
        lines += ["", *table(rows + [_condition_row(c) for c in job.conditions])]
    if job.message:
        lines += ["", job.message.rstrip()]
    return lines


def list_lines(jobs: Iterable[JobSeen], *, now_s: float) -> list[str]:
    """A table of jobs."""
    rows = [("JOB", "PHASE", "STEP", "PROGRESS", "LOSS", "GOODPUT", "RECOVERIES", "NODES", "AGE")]
    for j in jobs:
        step = "-" if j.step is None else f"{j.step}/{j.steps or '?'}"
        nats = "-" if j.loss is None else f"{j.loss:.4f}"
        nodes = f"{j.ready or 0}/{j.nodes}"
        age = duration(max(0.0, now_s - j.created_s))
        rows.append((j.name, phase_text(j), step, j.progress or "-", nats, j.goodput or "-", str(j.recoveries), nodes, age))
    return table(rows)


def event_line(event: EventSeen) -> str:
    """One Event: its number in the journal (a dash: it is not the supervisor's), time, reason, message."""
    at = time.strftime("%H:%M:%S", time.localtime(event.wall_s))
    number = f"#{event.seq}" if event.seq else "-"
    again = f" (x{event.count})" if event.count > 1 else ""
    who = "" if event.seq or not event.source else f" [{event.source}]"
    warning = "WARNING " if event.warning else ""
    return f"{number}  {at}  {warning}{event.reason}: {' '.join(event.message.split())}{again}{who}"


def _condition_row(condition: Condition) -> tuple[str, str, str, str, str]:
    since = time.strftime("%H:%M:%S", time.localtime(condition.since_s)) if condition.since_s else "-"
    first = (condition.message.strip().splitlines() or [""])[0]
    return condition.type, condition.status, since, condition.reason, first


def command(verb: str, job: str, there: Options, *, namespace: str) -> str:
    """A command about a job, for messages, that reaches the same cluster as this one did."""
    said = {"--kubeconfig": there.kubeconfig, "--context": there.context, "-n": namespace}
    way = " ".join(f"{option} {shlex.quote(value)}" for option, value in said.items() if value)
    return f"orchestrator {verb} {job} --on kubernetes {way}"
