"""The supervisor's whole state as a frozen value, and the vocabulary of its phases.

A state is only ever made from another one by `machine.step`; nothing else changes it. What lives here is durable (it can be
rebuilt from the journal); what changes ten times a second (heartbeats) stays in the driver and arrives as observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.core.cluster.measured import WorkerMeasure
from orchestrator.core.cluster.view import ClusterView
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import FailureClass, Job, ParallelSettings
from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.strategy import Choice, Option
from orchestrator.core.reshard.recovery import Commit, Held, Resume
from orchestrator.core.supervisor.commands import Command
from orchestrator.core.supervisor.events import Fault

SAVES_MAX = 3  # times that the ranks of a job that is to be suspended stop to be saved


class JobPhase(StrEnum):
    """Where the job is."""

    WAITING = "waiting"  # for workers: at the start, or because a rank is lost and no spare is there
    FORMING = "forming"  # an epoch was started; ranks form groups and get their state
    RUNNING = "running"
    FENCING = "fencing"  # the epoch was fenced; waiting for every member to leave it or to be lost
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job is over."""
        return self in (JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.CANCELLED)


class WorkerPhase(StrEnum):
    """Where a worker is."""

    REQUESTED = "requested"
    SPARE = "spare"  # warm, without a rank
    MEMBER = "member"  # has a rank in the current epoch
    LEFT = "left"  # had a rank, left the epoch, keeps its state, waits for the next
    LOST = "lost"  # fenced for ever: whatever it says is refused
    ENDED = "ended"  # told to end, or never came up

    @property
    def alive(self) -> bool:
        """Whether it counts as capacity."""
        return self not in (WorkerPhase.LOST, WorkerPhase.ENDED)


class Outcome(StrEnum):
    """Why a finished job ended; the CLI's exit code follows from it."""

    NONE = ""
    COMPLETED = "completed"  # exit 0
    USER_ERROR = "user-error"  # exit 1
    BUDGET_SPENT = "budget-spent"  # exit 3
    CORRUPT_STATE = "corrupt-state"  # exit 3
    UNRECOVERABLE = "unrecoverable"  # exit 3
    CANCELLED = "cancelled"  # exit 130


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process; ids are never used twice."""

    worker_id: str
    node_id: str
    phase: WorkerPhase
    since_ms: int  # when it got into this phase
    pid: int = 0
    endpoint: str = ""
    connected: bool = False
    suspect: str = ""  # why it is shown as unreachable or slow; empty: it is fine
    ready_epoch: int = 0  # newest epoch in which it had its state in place
    left_epoch: int = 0  # newest epoch that it left
    held: Held | None = None
    cause: str = ""  # why it was lost or ended
    fault_step: int = -1  # committed step at which it was lost by a fault that may be its node's; -1: it was not
    stacks_asked: bool = False
    slow_since_ms: int = -1  # since when it has been slow without a break; -1: it is not
    slow_told: bool = False  # it was said that its slowness is confirmed
    unwanted: str = ""  # why it is to give its rank to somebody else; empty: it is not
    without: bool = False  # while it is unwanted: the job may also go on with fewer ranks
    asked_ms: int = -1  # when it was asked to measure itself; -1: it was not
    measure: WorkerMeasure | None = None  # what it measured
    costs: ModelCosts | None = None  # as it measured the model
    pace: float = 1.0  # how many times slower it trains than it was measured to be, held against its peers


class ChangeKind(StrEnum):
    """What a planned change of the plan is for."""

    GROW = "grow"  # more ranks, or peer copies again
    RESHAPE = "reshape"  # as many ranks in another arrangement, as somebody asked for
    MOVE = "move"  # give ranks away: of a drained node, of a slow worker, of one that is to be replaced
    HANDOVER = "handover"  # before a move: the others take over what only the leaving hold
    RECUT = "recut"  # move layers between the ranks of a pipeline
    REPLAN = "replan"  # the planner found a better plan for the workers that there are
    SUSPEND = "suspend"  # give all machines back for a while


@dataclass(frozen=True, slots=True)
class Change:
    """A planned change under way: the ranks were asked to leave the epoch at the end of a step."""

    kind: ChangeKind
    why: str
    asked_ms: int
    layers_per_stage: tuple[int, ...] = ()  # of a recut


@dataclass(frozen=True, slots=True)
class Recovery:
    """One failure, or planned change, and what became of it, for status, reports and the goodput ledger.

    Times are the driver's monotonic ms.
    """

    number: int
    epoch: int  # that broke, or was left
    failure: FailureClass
    lost: tuple[str, ...]
    at_step: int  # last committed step when it began
    began_ms: int
    fenced_ms: int = 0
    planned_ms: int = 0
    ready_ms: int = 0
    stepped_ms: int = 0  # first new step committed
    steps_lost: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A durable checkpoint that can be resumed from."""

    step: int
    uri: str
    digest: str


@dataclass(frozen=True, slots=True)
class State:
    """Everything the supervisor knows that must survive it."""

    job: Job
    began_ms: int = 0
    phase: JobPhase = JobPhase.WAITING
    phase_since_ms: int = 0
    outcome: Outcome = Outcome.NONE
    last_word: str = ""  # the reason for the terminal state, or the traceback
    cluster: ClusterView | None = None
    graph: GraphView | None = None
    drained: tuple[str, ...] = ()  # node ids
    failing: tuple[str, ...] = ()  # too many workers were lost on these nodes; one that is drained as well is so for that alone
    scaled: ParallelSettings | None = None  # full strength as somebody changed it; None: as the job says
    costs: ModelCosts | None = None  # of the model, where the planner chooses
    chosen: Job | None = None  # the job as the planner cuts it now; None: it has not chosen
    choice: Choice | None = None  # its newest answer
    predicted: Option | None = None  # what is expected of the plan that runs
    measurings: int = 0  # how often workers were asked to measure together
    weighed: tuple[str, ...] = ()  # workers and paces that it has weighed last, so that it does not do so after every event
    recut: tuple[int, ...] = ()  # layers per stage that spare a slow rank; empty: the pipeline is cut as it should be
    change: Change | None = None  # a planned one that is under way
    sized_step: int = 0  # committed step at which the number of ranks last changed
    grown_step: int = -1  # the same for when it last grew; -1: it never did
    grow_pause: int = 0  # committed steps without a change of size before the job grows
    change_step: int = -1  # no planned change before a step after this one is committed: the last one came to nothing
    faults: tuple[Fault, ...] = ()  # asked for while no epoch ran; handed out when one does
    workers: Mapping[str, Worker] = field(default_factory=dict)
    next_worker: int = 0
    missing: str = ""  # why the first epoch cannot start, as it was said last; empty while workers are on their way
    plan: Plan | None = None  # of the current (or broken) epoch
    resume: Resume | None = None  # what the current epoch was started with
    epoch: int = 0  # newest epoch ever started
    committed_step: int = 0
    commit: Commit | None = None  # newest commit that was reported
    cold: str = ""  # why the state in memory must not be used by the next epoch; empty: it may
    skip_steps: tuple[int, ...] = ()  # steps whose update is not applied when they come again
    skipped: int = 0  # committed steps whose update was not applied
    suspended: str = ""  # why the job has (or is about to have) no workers for a while; empty: it is to train
    unsaved_tries: int = 0  # how often its ranks stopped to be saved for it, and what they hold could not be written
    unsaved_why: str = ""  # what went wrong with the newest checkpoint that was written for it
    continued: bool = False  # it was suspended and has committed no step since: what is missing is nobody's failure
    checkpoint_wish: int = -1  # somebody wants a checkpoint of a later step than this; -1: nobody does
    loss: float | None = None
    eval_loss: float | None = None
    eval_step: int = -1
    digests: Mapping[str, str] = field(default_factory=dict)  # rank -> digest, of digest_step
    digest_step: int = -1
    finished: Mapping[str, str] = field(default_factory=dict)  # worker id -> final digest
    budget: int = 0
    budget_step: int = 0  # committed step at which the budget was last refilled or spent
    spawn_failures: int = 0
    retry_spawn_ms: int = 0
    recoveries: tuple[Recovery, ...] = ()
    checkpoint: CheckpointRef | None = None
    older_checkpoints: tuple[CheckpointRef, ...] = ()  # newest first; for when `checkpoint` turns out to be damaged
    steps_lost: int = 0
    survivors_restarted: int = 0

    @property
    def goal(self) -> ParallelSettings:
        """Full strength."""
        return self.scaled or (self.chosen or self.job).parallel

    @property
    def trained_step(self) -> int:
        """Newest step that is known to be committed, also by what survivors that have left the epoch hold."""
        held = [w.held for w in self.workers.values() if w.phase is WorkerPhase.LEFT and w.held is not None]
        commits = [h.commit.step for h in held if h.commit is not None]
        return max([self.committed_step, *(h.applied_step for h in held), *commits])

    @property
    def parked(self) -> bool:
        """Whether the job is to have no workers: it is suspended, and nobody holds anything that could still be saved."""
        if not self.suspended or not self.job.checkpoint.uri or self.plan is None or self.unsaved_tries >= SAVES_MAX:
            return bool(self.suspended)
        phases = {w.phase for w in self.workers.values()}
        if WorkerPhase.MEMBER in phases:
            return False  # it trains, or it is not known yet what it holds
        return WorkerPhase.LEFT not in phases or self.saved_step >= self.trained_step

    @property
    def saved_step(self) -> int:
        """Of the newest durable checkpoint; 0 when there is none."""
        return self.checkpoint.step if self.checkpoint is not None else 0

    def alive_on(self, node_id: str) -> list[Worker]:
        """The workers that live on a node, with a rank or without."""
        return [w for w in self.workers.values() if w.node_id == node_id and w.phase.alive]

    @property
    def planned(self) -> bool:
        """Whether the planner chooses the plan: the job leaves it to the planner, and nobody has fixed the size since."""
        return self.job.planner.auto and self.scaled is None

    @property
    def ranks_wanted(self) -> int:
        """Workers that are asked for, beside spares: those of full strength, or all that the planner may choose from."""
        return max(self.goal.ranks, self.job.planner.space.ranks_max) if self.planned else self.goal.ranks


@dataclass(frozen=True, slots=True)
class Decision:
    """What `step` makes of an event. `reason` is empty only when nothing changed and nothing is to be done."""

    state: State
    commands: tuple[Command, ...]
    reason: str
