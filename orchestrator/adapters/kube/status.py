"""From the supervisor's status to what the agent writes below `.status` of a TrainingJob: pure, so that a test is a table.

The names are those of the CRD. What is not known yet is left out, and server-side apply then takes it away again. A condition
keeps the time of its last change, so whoever makes the next status passes the conditions of the one before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.core.supervisor.state import ChangeKind, JobPhase, Outcome, WorkerPhase
from orchestrator.runtime.status_types import JobStatus

Object = dict[str, Any]

TRAINING: Final = "Training"
DEGRADED: Final = "Degraded"
CHECKPOINTED: Final = "Checkpointed"
SUCCEEDED: Final = "Succeeded"
FAILED: Final = "Failed"
SCALED: Final = "Scaled"  # False, and there only where the supervisor has refused
OURS: Final = (TRAINING, DEGRADED, CHECKPOINTED, SUCCEEDED, FAILED, SCALED)

MESSAGE_CHARS_MAX: Final = 8_000  # of the 32 Ki that a condition may have; a traceback keeps its end, where the error is
DECISION_CHARS_MAX: Final = 1_000
SEATS_MAX: Final = 4_096  # an object has to stay well below the 1.5 MiB that etcd takes
_DECISION: Final = re.compile(r"#(\d+) (.*)", re.DOTALL)
_ENDED: Final = {
    JobPhase.SUCCEEDED: "Succeeded",
    JobPhase.FAILED: "Failed",
    JobPhase.CANCELLED: "Cancelled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What has come of the number of nodes that the spec asks for."""

    nodes: int | None = None  # that the supervisor trains on at full strength; None: it is not known
    refused: int | None = None  # that the spec asks for and the supervisor has refused
    why: str = ""  # in the supervisor's words


NOT_KNOWN: Final = Scaling()


def phase_of(status: JobStatus) -> str:
    """The phase that people see. A planned change is part of running; Recovering means that something was lost."""
    if status.phase.terminal:
        return _ENDED[status.phase]
    if status.suspended:
        return "Suspending"  # until the operator has taken the pods away
    if status.phase is JobPhase.RUNNING or (status.phase is JobPhase.FENCING and status.change is not None):
        return "Running"
    plan = status.plan
    if plan is None or (status.phase is JobPhase.FORMING and plan.epoch == 1):
        return "Starting"
    planned = status.phase is JobPhase.FORMING and plan.reason.startswith(tuple(ChangeKind))
    return "Running" if planned else "Recovering"


def reason_of(status: JobStatus) -> str:
    """One CamelCase word for the phase: of an end the outcome, which the command line's exit code follows from."""
    if status.outcome is not Outcome.NONE:
        return _camel(status.outcome.value)
    return "Suspended" if status.suspended else _camel(status.phase.value)


def parked(status: JobStatus) -> bool:
    """Whether a suspended job has given its machines back: no worker is alive, and none will be asked for."""
    alive = any(w.phase.alive for w in status.workers)
    return bool(status.suspended) and status.phase is JobPhase.WAITING and not alive


def last_told(status: Mapping[str, Any]) -> tuple[int, str]:
    """Number and reason of the newest decision that `.status` tells of; (0, "") when it tells of none."""
    match = _DECISION.match(status.get("lastDecision") or "")
    return (int(match[1]), match[2]) if match else (0, "")


def job_fields(
    status: JobStatus,
    *,
    decision: tuple[int, str],
    digest: str,
    generation: int,
    before: Iterable[Mapping[str, Any]],
    now: str,
    pods: Mapping[str, str],
    scaling: Scaling = NOT_KNOWN,
) -> Object:
    """`.status` without lastReport. `decision`: seq and reason of the newest one that was told of, (0, "") for none; `digest`: of
    the final state; `generation`: of the object that was acted on; `before`: its conditions; `now`: RFC 3339; `pods`: their names
    by IP."""
    message = status.last_word if status.phase.terminal or status.last_word else status.decision.reason if status.decision else ""
    fields: Object = {
        "phase": phase_of(status),
        "reason": reason_of(status),
        "message": _tail(message),
        "step": status.step,
        "steps": status.steps,
        "progress": f"{status.step * 100 // status.steps}%" if status.steps else "0%",
        "loss": status.loss if status.loss is not None and math.isfinite(status.loss) else None,  # JSON has no NaN
        "etaSeconds": round(status.eta_s) if status.eta_s is not None else None,
        "goodput": f"{status.goodput:.2f}" if status.goodput is not None else None,
        "recoveries": status.recoveries,
        "failures": status.budget_max - status.budget,
        "stepsLost": status.steps_lost,
        "epoch": status.epoch,
        "ranks": status.plan.ranks if status.plan is not None else 0,
        "nodes": scaling.nodes,
        "nodesRefused": scaling.refused,
        "spares": sum(1 for w in status.workers if w.phase is WorkerPhase.SPARE),
        "seats": _seats(status, pods) or None,
        "checkpoint": status.checkpoint.step if status.checkpoint is not None else None,
        "digest": digest or None,
        "lastDecision": f"#{decision[0]} {_short(decision[1])}" if decision[0] else None,
    }
    made = {k: v for k, v in fields.items() if v is not None}
    return made | {"conditions": _conditions(status, generation=generation, before=before, now=now, scaling=scaling)}


def _seats(status: JobStatus, pods: Mapping[str, str]) -> list[str]:
    """The pod of each rank; `?` where a rank has none now, or none that was seen. Nothing when the job is over, or too large."""
    ranks = status.plan.ranks if status.plan is not None and not status.phase.terminal else 0
    if not 0 < ranks <= SEATS_MAX:
        return []
    addresses = {n.node_id: n.address for n in status.nodes}
    found = {w.rank: pods.get(addresses.get(w.node_id, ""), "?") for w in status.workers if w.phase is WorkerPhase.MEMBER}
    return [found.get(rank, "?") for rank in range(ranks)]


def _conditions(
    status: JobStatus, *, generation: int, before: Iterable[Mapping[str, Any]], now: str, scaling: Scaling
) -> Sequence[Object]:
    why = _tail(status.last_word or (status.decision.reason if status.decision else ""))
    running = status.phase is JobPhase.RUNNING
    held = [(TRAINING, running, _camel(status.phase.value), f"step {status.step} of {status.steps}, epoch {status.epoch}")]
    trouble = _trouble(status)
    held.append((DEGRADED, bool(trouble), "Degraded" if trouble else "FullStrength", trouble or "every rank has a worker"))
    if status.suspended:
        done = parked(status)
        word, words = _saving(status, done=done)
        held.append((CHECKPOINTED, done, word, f"{words}; {why}"))
    if scaling.refused is not None and not status.phase.terminal:
        held.append((SCALED, False, "Refused", f"{scaling.why}; the job goes on as before; fix: ask for another number of nodes"))
    if status.phase.terminal:
        word = _camel(status.outcome.value) or _ENDED[status.phase]
        held.append((SUCCEEDED, status.phase is JobPhase.SUCCEEDED, word, why))
        held.append((FAILED, status.phase is JobPhase.FAILED, word, why))
    known = {c.get("type"): c for c in before}
    out = []
    for kind, true, reason, message in held:
        truth = "True" if true else "False"
        old = known.get(kind) or {}
        since = old["lastTransitionTime"] if old.get("status") == truth and old.get("lastTransitionTime") else now
        out.append(
            {
                "type": kind,
                "status": truth,
                "reason": reason,
                "message": message,
                "lastTransitionTime": since,
                "observedGeneration": generation,
            }
        )
    return out


def _saving(status: JobStatus, *, done: bool) -> tuple[str, str]:
    """(reason, words) of a suspended job, `done` when no worker of it is left."""
    if not done:
        return "Suspending", "the job saves its state and leaves its machines"
    unsaved = status.step - (status.checkpoint.step if status.checkpoint is not None else 0)
    if unsaved <= 0:
        return "Parked", "the machines may go"
    return "ParkedUnsaved", f"the machines may go; {unsaved} step(s) are in no checkpoint and will be trained again"


def _trouble(status: JobStatus) -> str:
    """Why the job is not as strong as it should be; empty when it is."""
    if status.phase.terminal or status.suspended or status.plan is None:
        return ""
    if status.phase is JobPhase.WAITING:
        return "workers are missing"
    if status.shrunk:
        return f"{status.plan.ranks} rank(s) train, fewer than at full strength"
    suspects = [w.worker_id for w in status.workers if w.suspect and w.phase.alive]
    return f"not well: {', '.join(suspects)}" if suspects else ""


def _camel(words: str) -> str:
    return "".join(w.capitalize() for w in re.split(r"[^a-z0-9]+", words.lower()))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= DECISION_CHARS_MAX else f"{line[: DECISION_CHARS_MAX - 3]}..."


def _tail(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS_MAX else f"...{text[3 - MESSAGE_CHARS_MAX :]}"
