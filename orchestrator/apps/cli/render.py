"""Values as text for people: status, nodes, plans, events, one line each where that is possible.

Plain strings without colour and without wrapping, so that they read the same in a terminal, in a pipe and in a test; the live
view builds on the same words.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

from orchestrator.apps.prediction_words import NOTHING, memory_words, step_words
from orchestrator.apps.report_facts import layers_of, numbers
from orchestrator.apps.units import count, duration, size
from orchestrator.core.plan.layout import total
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, MeshAxis, Plan
from orchestrator.core.supervisor.state import WorkerPhase
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict
from orchestrator.runtime.ports import LogLine, Record
from orchestrator.runtime.status_types import ChangeStatus, JobStatus, NodeStatus, WorkerStatus

DIGEST_CHARS = 12
ID_CHARS = 12  # of a node id, enough to tell nodes apart and to name one
DOING_SHOWN_MS = 1_000  # a phase that lasts longer is shown with its time
SILENCE_SHOWN_MS = 1_000
FP32_BYTES = 4
MOMENTS = 2  # of Adam, each as large as the parameters


def loss(nats: float | None, *, bytewise: bool = False) -> str:
    """2.3456 nats (3.384 bits/byte) when a token is a byte; a dash for none."""
    if nats is None:
        return "-"
    return f"{nats:.4f} nats" + (f" ({nats / math.log(2):.3f} bits/byte)" if bytewise else "")


def table(rows: Sequence[Sequence[str]], *, indent: str = "") -> list[str]:
    """Rows as aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [(indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip() for row in rows]


def node_of(status: JobStatus, wanted: str) -> tuple[NodeStatus, ...]:
    """The nodes that a person may mean: by id, by the beginning of it, or by address."""
    exact = tuple(n for n in status.nodes if n.node_id == wanted)
    return exact or tuple(n for n in status.nodes if n.node_id.startswith(wanted) or n.address == wanted)


def worker_text(worker: WorkerStatus) -> str:
    """`rank 2: step 31 forward`, with what is unusual behind it."""
    who = f"rank {worker.rank}" if worker.rank >= 0 else str(worker.phase)
    what = f"step {worker.step} {worker.doing}" if worker.rank >= 0 and worker.doing else worker.doing
    if worker.rank >= 0 and worker.phase is not WorkerPhase.MEMBER:
        what = f"{worker.phase} {what}".strip()
    if what and worker.doing_ms >= DOING_SHOWN_MS:
        what += f" for {worker.doing_ms / 1000:.1f} s"
    notes = []
    if worker.suspect:
        notes.append(f"SUSPECT: {worker.suspect}")
    elif worker.silence_ms >= SILENCE_SHOWN_MS and worker.phase is not WorkerPhase.REQUESTED:
        notes.append(f"silent for {worker.silence_ms / 1000:.1f} s")
    if not worker.connected and worker.phase is not WorkerPhase.REQUESTED:
        notes.append("stream broken")
    text = f"{who}: {what}" if what and what != who else who
    return f"{text} [{'; '.join(notes)}]" if notes else text


def training_nodes(status: JobStatus) -> frozenset[str]:
    """Ids of the nodes whose workers have a rank in the present epoch."""
    return frozenset(w.node_id for w in status.workers if w.phase is WorkerPhase.MEMBER)


def mesh_text(mesh: Sequence[MeshAxis]) -> str:
    """pipeline 2 x data 2; axes of one rank are left out."""
    return " x ".join(f"{a.name} {a.size}" for a in mesh if a.size > 1) or "one rank"


def at_full_strength(status: JobStatus) -> bool:
    """Whether the mesh that trains is the one that should."""
    plan = status.plan
    return plan is not None and not status.shrunk and _axes(plan.mesh) == _axes(status.target)


def _axes(mesh: Sequence[MeshAxis]) -> set[tuple[str, int]]:
    return {(a.name, a.size) for a in mesh if a.size > 1}


def plan_text(status: JobStatus) -> str:
    """The mesh that trains, the one that should, and what is being done about the difference."""
    plan = status.plan
    if plan is None:
        return f"none yet, wanted: {mesh_text(status.target)}"
    text = f"{mesh_text(plan.mesh)}, ZeRO-{plan.zero_stage}, {plan.copies} copies"
    if len(plan.layers_per_stage) > 1:
        text += f", layers per stage {','.join(map(str, plan.layers_per_stage))}"
    if status.shrunk:
        text += f"; SHRUNK, full strength is {mesh_text(status.target)}"
    elif not at_full_strength(status):
        text += f"; wanted: {mesh_text(status.target)}"
    return text


def change_text(change: ChangeStatus) -> str:
    """A planned change that is under way."""
    return f"{change.kind}: {change.why}"


def node_rows(status: JobStatus) -> list[tuple[str, str, str]]:
    """(node, its condition, what its workers do), one row a node."""
    rows = []
    for node in status.nodes:
        condition = "ok" if node.healthy and node.schedulable else "drained" if node.healthy else "LOST"
        workers = [w for w in status.workers if w.node_id == node.node_id and w.phase.alive]
        rows.append((node.node_id[:ID_CHARS], condition, " | ".join(worker_text(w) for w in workers) or "nobody"))
    return rows


def progress_text(status: JobStatus, *, bytewise: bool = False) -> str:
    """Progress in one line."""
    parts = [f"step {status.step}/{status.steps}", f"{100 * status.step // max(1, status.steps)} %", f"{status.phase}"]
    if status.loss is not None:
        parts.append(f"loss {loss(status.loss, bytewise=bytewise)}")
    if status.eval_loss is not None:
        parts.append(f"held out {loss(status.eval_loss, bytewise=bytewise)}")
    if status.tokens_per_s is not None:
        parts.append(f"{count(status.tokens_per_s)} tokens/s")
    if status.eta_s is not None:
        parts.append(f"ETA {duration(status.eta_s)}")
    members = [w for w in status.workers if w.phase is WorkerPhase.MEMBER]
    spares = [w for w in status.workers if w.phase is WorkerPhase.SPARE]
    if status.plan is not None:
        parts.append(f"{len(members)}/{status.plan.ranks} ranks{' (SHRUNK)' if status.shrunk else ''} + {len(spares)} spare")
    if status.change is not None:
        parts.append(change_text(status.change))
    parts += [f"SUSPECT {worker_text(w)}" for w in status.workers if w.suspect]
    return ", ".join(parts)


def resilience_text(status: JobStatus) -> str:
    """Recoveries, what they cost, and the budget."""
    text = (
        f"{status.recoveries} recover{'y' if status.recoveries == 1 else 'ies'}, {status.steps_lost} steps lost, "
        f"{status.survivors_restarted} survivors restarted, budget {status.budget} of {status.budget_max} left"
    )
    if status.skipped:
        text += f", {status.skipped} update(s) skipped"
    return f"{text}, goodput {100 * status.goodput:.1f} %" if status.goodput is not None else text


def status_lines(status: JobStatus, *, bytewise: bool = False) -> list[str]:
    """Everything about a job for a terminal, without a view."""
    ended = f" ({status.outcome})" if status.outcome else ""
    facts = [("job", status.name), ("phase", f"{status.phase}{ended}")]
    facts.append(("progress", f"step {status.step} of {status.steps}, epoch {status.epoch}"))
    facts.append(("loss", f"train {loss(status.loss, bytewise=bytewise)}, held out {loss(status.eval_loss, bytewise=bytewise)}"))
    if status.tokens_per_s is not None:
        eta = f", ETA {duration(status.eta_s)}" if status.eta_s is not None else ""
        facts.append(("throughput", f"{count(status.tokens_per_s)} tokens/s{eta}"))
    facts.append(("resilience", resilience_text(status)))
    facts.append(("plan", plan_text(status)))
    if status.plan is not None:
        facts.append(("", status.plan.reason))
    if status.prediction is not None:
        facts += [("step time", step_words(status.prediction)), ("memory", memory_words(status.prediction))]
    elif status.plan is not None:
        facts.append(("prediction", NOTHING))
    if status.change is not None:
        facts.append(("change", change_text(status.change)))
    if status.checkpoint is not None:
        facts.append(("checkpoint", f"step {status.checkpoint.step} at {status.checkpoint.uri}"))
    if status.decision is not None:
        facts.append(("decision", f"#{status.decision.seq} {status.decision.event}: {status.decision.reason}"))
    lines = table(facts)
    if status.nodes:
        lines += ["", *table([("NODE", "STATE", "WORKERS"), *node_rows(status)])]
    lost = [w for w in status.workers if w.phase is WorkerPhase.LOST]
    if lost:
        lines += ["", *table([("LOST", "CAUSE"), *((w.worker_id, w.cause) for w in lost)])]
    if status.last_word:
        lines += ["", status.last_word.rstrip()]
    return lines


def list_lines(jobs: Iterable[JobStatus]) -> list[str]:
    """A table of jobs."""
    rows = [("JOB", "PHASE", "STEP", "LOSS", "RECOVERIES", "BUDGET")]
    for s in jobs:
        nats = "-" if s.loss is None else f"{s.loss:.4f}"
        rows.append((s.name, str(s.phase), f"{s.step}/{s.steps}", nats, str(s.recoveries), f"{s.budget}/{s.budget_max}"))
    return table(rows)


def event_line(record: Record) -> str:
    """One record: number, time, where the job is, what happened, what was decided and why."""
    at = time.strftime("%H:%M:%S", time.localtime(record.wall_s)) + f".{int(record.wall_s * 1000) % 1000:03}"
    where = f"{record.phase} e{record.epoch} s{record.committed_step}"
    commands = ", ".join(dict.fromkeys(type(c).__name__ for c in record.commands))
    what = f"{type(record.event).__name__}: {record.reason}" if record.reason else type(record.event).__name__
    return f"#{record.seq}  {at}  [{where}]  {what}" + (f"  -> {commands}" if commands else "")


def log_line(line: LogLine) -> str:
    """One line that a worker printed, with who printed it."""
    who = f"rank {line.rank}" if line.rank >= 0 else "spare"
    return f"[{who} {line.worker_id}] {line.text}"


def seat_lines(plan: Plan) -> list[str]:
    """Who sits where in a plan, what each rank computes and holds."""
    rows = [("RANK", "NODE", "LAYERS", "MICRO-BATCHES", "OWNS", "COPIES", "STATE")]
    for seat in plan.seats:
        held = plan.layout(OPTIMIZER).holdings[seat.rank]
        layers, share = layers_of(plan, seat.rank), numbers(plan.micro_batches_of(seat.rank))
        owns, copies = total(held.primary), total(held.extra)
        state = state_bytes(plan, seat.rank)
        rows.append((str(seat.rank), seat.node_id[:ID_CHARS], layers, share, count(owns), count(copies), size(state)))
    return [*table(rows), "", "OWNS, COPIES: parameters whose optimizer state a rank updates, keeps for another"]


def checkpoint_lines(found: Sequence[CheckpointInfo]) -> list[str]:
    """A table of checkpoints."""
    rows = [("STEP", "STATE", "SIZE", "WRITTEN BY", "DIGEST", "WHERE")]
    for c in found:
        state = "complete" if c.complete else f"incomplete: {c.trouble}"
        rows.append((str(c.step), state, size(c.size_bytes), c.plan or "-", c.digest[:DIGEST_CHARS] or "-", c.uri))
    return table(rows)


def verdict_lines(verdict: CheckpointVerdict) -> list[str]:
    """What came of verifying one checkpoint: one line when it is well, else every damaged file."""
    c = verdict.info
    head = f"step {c.step} at {c.uri}: "
    if not verdict.trouble:
        return [f"{head}ok, {c.files} files, {size(c.size_bytes)}, digest {verdict.digest}"]
    return [f"{head}DAMAGED, {verdict.trouble}", *table([(f.name, f.why) for f in verdict.damaged], indent="  ")]


def state_bytes(plan: Plan, rank: int) -> int:
    """Bytes of parameters and Adam's two moments that a rank holds (fp32), its copies for others included."""
    params = total(plan.layout(PARAMS).holdings[rank].everything)
    moments = MOMENTS * total(plan.layout(OPTIMIZER).holdings[rank].everything)
    return FP32_BYTES * (params + moments)
