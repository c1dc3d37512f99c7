"""The transition table: which phase may follow which, and on what.

The table is the specification. `Turn` refuses a transition that is not in it, a test walks it, and docs/state-machine.md is drawn
from it (`python -m orchestrator.core.supervisor.diagram`).
"""

from __future__ import annotations

from orchestrator.core.supervisor.state import JobPhase, WorkerPhase

J, W = JobPhase, WorkerPhase

JOB: dict[tuple[JobPhase, JobPhase], str] = {
    (J.WAITING, J.FORMING): "enough workers are ready for a plan; where the planner chooses, they measured or had time to",
    (J.FORMING, J.RUNNING): "every rank has its state",
    (J.FORMING, J.FENCING): "a member was lost, its groups broke, or the epoch did not prove itself in time",
    (J.RUNNING, J.FENCING): "a member was lost, its groups broke, its state is wrong, or its ranks leave for a planned change",
    (J.FENCING, J.FORMING): "every member has left the epoch or is lost, and the policy finds workers for a plan",
    (J.FENCING, J.WAITING): "every member has left the epoch or is lost, and workers are missing or the job is suspended",
    (J.RUNNING, J.SUCCEEDED): "every rank finished, with equal digests",
    **{(p, J.FAILED): "user error, budget spent, corrupt or unrecoverable state" for p in J if not p.terminal},
    **{(p, J.CANCELLED): "somebody cancelled the job" for p in J if not p.terminal},
}

WORKER: dict[tuple[WorkerPhase, WorkerPhase], str] = {
    (W.REQUESTED, W.SPARE): "it said hello; without a rank it measures itself where the planner chooses",
    (W.SPARE, W.MEMBER): "it was given a rank",
    (W.MEMBER, W.LEFT): "it left the epoch, fenced or because its groups broke",
    (W.LEFT, W.MEMBER): "it has a seat in the next epoch",
    (W.LEFT, W.SPARE): "the next epoch has no seat for it, and a spare is wanted",
    **{(p, W.LOST): "evidence or deadline says that it is lost" for p in (W.REQUESTED, W.SPARE, W.MEMBER, W.LEFT)},
    **{(p, W.ENDED): "it was told to end, or never came up" for p in (W.REQUESTED, W.SPARE, W.MEMBER, W.LEFT)},
}
