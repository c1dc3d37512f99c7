"""What a seed stands for: the shape of the job and the cluster, and the faults that strike.

A fault is an action with a trigger: a moment, or the n-th time that some point of the protocol is reached (a gate opens, a
rank passes the commit, a fence arrives, a decision is written down), which is how the narrow windows are hit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.core.job import Action, BadStep, FailureClass, Job, PlannerSettings
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.strategy import Space
from orchestrator.spec.policies import LOSSES as LOSS_CLASSES
from orchestrator.spec.policies import policies
from orchestrator.testkit.jobs import make_job


class Kind(StrEnum):
    """Classes of seeds."""

    CALM = "calm"  # nothing happens
    PAUSES = "pauses"  # 3 s pauses, slow disk: nobody may be lost
    SINGLE = "single"  # one fault: no step may be lost
    CHAOS = "chaos"
    STINGY = "stingy"  # chaos with a small budget
    USER = "user"  # the user's code raises
    CANCEL = "cancel"
    PLANNED = "planned"  # only wishes: nothing is lost and nothing is charged
    ELASTIC = "elastic"  # no spares, and what is lost comes back: at full strength in the end
    BAD = "bad"  # a step whose loss is not finite
    CORRUPT = "corrupt"  # bits flip
    SLOW = "slow"  # a worker is slow for long
    MACHINES = "machines"  # machines with several nodes are lost one at a time: no step may be lost, without any checkpoint


AUTO_SHARE = 0.2  # of the jobs that can be
SUSPEND_SHARE = 0.2  # of the kinds in which somebody may suspend the job for a while
MACHINES_SHARE = 0.4  # of the seeds: several of their nodes share machines
ONE_BY_ONE_SHARE = 0.5  # of the kinds for which that is much the same
NODES_MAX = 3  # on a machine
LOSE_A_MACHINE = "lose a machine"  # once the job has recovered from the one before
IN_A_CHANGE = "in a planned change"  # a point at which that happens, if there is one soon

WEIGHTS = {
    Kind.CALM: 2,
    Kind.PAUSES: 10,
    Kind.SINGLE: 20,
    Kind.CHAOS: 40,
    Kind.STINGY: 3,
    Kind.USER: 2,
    Kind.CANCEL: 3,
    Kind.PLANNED: 12,
    Kind.ELASTIC: 16,
    Kind.BAD: 4,
    Kind.CORRUPT: 7,
    Kind.SLOW: 4,
}

# Points of the protocol, and how often each is reached in a run at least, mostly. Per rank:
POINTS = (
    ("pass commit", 8),
    ("pass commit", 8),
    ("pass reduce", 8),
    ("pass gather", 8),
    ("pass forward", 4),
    ("pass form", 1),
    ("pass restored", 1),
    ("pass digest", 1),
    ("finished", 1),
    ("run", 1),
    ("join", 1),
    ("journal", 5),
    ("journal with commands", 1),
    ("open commit", 2),
)
# The same in the first recovery: per rank, and what comes before it per rank.
RECOVERY_POINTS = (
    ("fence", 0),
    ("left", 0),
    ("run", 1),
    ("join", 1),
    ("pass form", 1),
    ("pass exchange", 0),
    ("pass exchange", 0),
    ("pass exchange", 1),
    ("pass restored", 0),
    ("pass restored", 1),
)
# Where planned changes are hit: while the ranks are asked to leave, and when they have.
CHANGE_POINTS = (
    ("leave", 0),
    ("leave", 1),
    ("agreed", 0),
    ("agreed", 0),
    ("agreed", 1),
    ("pass exchange", 0),
    ("pass exchange", 1),
)
# Where a job has steps to lose.
STEADY_POINTS = tuple((point, n) for point in ("pass commit", "pass reduce", "open commit") for n in (1, 2, 4, 8))

LOSSES = ("kill", "kill", "kill", "node off", "node killed", "node killed", "stop", "hang", "raylet")
HARMLESS = ("supervisor", "supervisor", "supervisor", "break stream", "slow disk", "add node", "checkpoint")  # beside one loss
WISHES = ("drain", "scale", "scale", "recut", "replace", "replace", "checkpoint", "add node")
ACTIONS = (
    *("kill",) * 6,
    *("kill two",) * 2,
    *("node off", "node killed") * 2,
    *("stop",) * 3,
    *("stop and go",) * 3,
    "hang",
    "hang and go",
    "slow",
    *("cut",) * 3,
    *("cut control",) * 2,
    "cut for good",
    *("break stream",) * 2,
    "break all streams",
    "raylet",
    *("supervisor",) * 6,
    "slow disk",
    "bad spawns",
    "bad node",
    "add node",
    *("drain",) * 2,
    "scale",
    "recut",
    "replace",
    "checkpoint",
)

_LOSS_POLICIES = (
    (Action.SWAP, Action.SHRINK, Action.WAIT),
    (Action.SWAP, Action.SHRINK, Action.WAIT),
    (Action.SWAP, Action.SHRINK, Action.WAIT),
    (Action.SWAP, Action.WAIT),
    (Action.SHRINK, Action.WAIT),
    (Action.SHRINK, Action.SWAP, Action.WAIT),
    (Action.SWAP, Action.SHRINK, Action.FAIL),
    (Action.WAIT,),
)
_CORRUPT_POLICIES = (
    (Action.SWAP, Action.SHRINK, Action.FAIL),
    (Action.SWAP, Action.SHRINK, Action.ROLLBACK),
    (Action.ROLLBACK,),
    (Action.SHRINK, Action.WAIT),
)
_SLOW_POLICIES = ((Action.REPORT,), (Action.SWAP, Action.RECUT, Action.SHRINK), (Action.SHRINK,), (Action.RECUT, Action.SWAP))


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens when. `at_ms` counts when `point` is empty."""

    action: str
    at_ms: float
    point: str
    nth: int
    delay_ms: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """A seed, spelt out."""

    seed: int
    kind: Kind
    job: Job
    nodes: int
    machines: tuple[int, ...]  # of each node, its number; empty: every node is one
    layers: tuple[int, ...]  # blocks of each
    faults: tuple[Fault, ...]
    bad_steps: tuple[int, ...]  # whose loss is not finite
    micro_batch_ms: tuple[float, float]  # least and most that the run's usual time is drawn from
    calm_after_ms: float  # no fault strikes after that, cuts are healed, and there is room
    lossy_disk: bool  # a crash of the supervisor loses what was not written durably
    moves: bool  # a new supervisor has another address

    @property
    def fails_by_policy(self) -> bool:
        """Whether a policy for losses ends the job when it finds nothing better."""
        return any(Action.FAIL in self.job.resilience.actions(c) for c in LOSS_CLASSES)


def scenario(seed: int) -> Scenario:
    """Of a seed; the same in every process."""
    rng = random.Random(f"scenario {seed}")
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    apart = random.Random(f"machines {seed}")  # so that it changes nothing else
    shared = apart.random() < MACHINES_SHARE
    if shared and kind in (Kind.CHAOS, Kind.SINGLE, Kind.ELASTIC) and apart.random() < ONE_BY_ONE_SHARE:
        kind = Kind.MACHINES
    shape = _shape(rng)
    ranks = shape["pipeline"] * shape["data"] * shape["tensor"]
    steps = rng.randint(10, 20)
    if kind in (Kind.ELASTIC, Kind.PLANNED, Kind.PAUSES):
        steps = rng.randint(20, 40)
    elif kind is Kind.MACHINES:
        steps = rng.randint(40, 80)
    layers = _layers(rng, shape)
    slots = rng.choice((1, 1, 2))
    spares = 0 if kind is Kind.ELASTIC else rng.choice((0, 0, 1, 1, 2))
    nodes = max(2, -(-(ranks + spares) // slots)) + (rng.random() < 0.3)
    if kind is Kind.MACHINES:
        nodes += rng.randint(0, 2)
    saves = rng.random() < 0.5 and kind not in (Kind.SINGLE, Kind.MACHINES)
    copies = 1 if kind in (Kind.SINGLE, Kind.ELASTIC, Kind.MACHINES) or rng.random() < 0.75 else 0
    careful = kind in (Kind.SINGLE, Kind.ELASTIC, Kind.CORRUPT, Kind.MACHINES)  # what is lost must be made up for
    job = make_job(
        name="sim",
        steps=steps,
        seed=seed,
        micro_batches=max(rng.choice((shape["data"], 2 * shape["data"], 8)), shape["data"]),
        digest_every=1 if kind is Kind.CORRUPT else rng.choice((0, 3, 5)),
        copies=copies,
        nodes=nodes,
        spares=spares,
        slots_per_node=slots,
        uri="mem:/c" if saves else "",
        every=rng.choice((0, 3, 3)),
        keep=2,
        failure_budget={Kind.STINGY: 1, Kind.CORRUPT: 30}.get(kind, 1000),
        budget_refill_steps=5,
        ranks_min=1 if rng.random() < 0.5 else rng.randint(1, ranks),
        grow_after_steps=rng.randint(1, 5),
        detect_within_ms=1000 if kind is Kind.SLOW else 4000,
        on_bad_step=rng.choice((BadStep.SKIP, BadStep.ROLLBACK, BadStep.ROLLBACK, BadStep.FAIL)),
        policies=_policies(rng, careful=careful),
        **shape,
    )
    job = _left_to_the_planner(job, kind)
    calm_after_ms = rng.uniform(2500, 9000) * {Kind.SLOW: 3, Kind.MACHINES: 4}.get(kind, 1)
    faults = _faults(rng, kind=kind, ranks=ranks, until_ms=calm_after_ms)
    job, faults = _suspended(job, faults, kind=kind, ranks=ranks, until_ms=calm_after_ms)
    return Scenario(
        seed=seed,
        kind=kind,
        job=job,
        nodes=nodes,
        machines=_shared_out(apart, nodes) if shared else (),
        layers=layers,
        faults=tuple(_of_machines(apart, faults, ranks=ranks, until_ms=calm_after_ms) if shared else faults),
        bad_steps=tuple(sorted(rng.sample(range(1, steps), rng.randint(1, 2)))) if kind is Kind.BAD else (),
        micro_batch_ms=(60, 120) if kind is Kind.SLOW else (4, 40),
        calm_after_ms=calm_after_ms,
        lossy_disk=rng.random() < 0.5,
        moves=rng.random() < 0.5,
    )


def _left_to_the_planner(job: Job, kind: Kind) -> Job:
    """Some jobs leave their plan to the planner; that is drawn apart, so that it changes nothing else."""
    drawn = random.Random(f"auto {job.train.seed}").random() < AUTO_SHARE
    if not drawn or kind in (Kind.BAD, Kind.CORRUPT) or job.parallel.tensor > 1:
        return job
    space = Space(tensors=(1,), copies=(job.parallel.copies,), ranks_min=job.resilience.ranks_min, ranks_max=job.parallel.ranks)
    return replace(job, planner=PlannerSettings(auto=True, space=space, checkpoint=False))


def _suspended(job: Job, faults: list[Fault], *, kind: Kind, ranks: int, until_ms: float) -> tuple[Job, list[Fault]]:
    """Some jobs are suspended for a while, and can be saved; drawn apart, so that it changes nothing else."""
    rng = random.Random(f"suspend {job.train.seed}")
    if rng.random() >= SUSPEND_SHARE or kind not in (Kind.SINGLE, Kind.CHAOS, Kind.PLANNED, Kind.ELASTIC):
        return job, faults
    wishes = [_fault(rng, "suspend", ranks=ranks, until_ms=until_ms) for _ in range(rng.randint(1, 2))]
    return replace(job, checkpoint=replace(job.checkpoint, uri="mem:/c")), [*faults, *wishes]


def _shared_out(rng: random.Random, nodes: int) -> tuple[int, ...]:
    """The machine of each node: at least two machines, and at most NODES_MAX nodes on one."""
    out: list[int] = []
    while len(out) < nodes:
        most = min(NODES_MAX, nodes - len(out), nodes - 1)
        out += [out[-1] + 1 if out else 0] * rng.randint(1, most)
    rng.shuffle(out)
    return tuple(out)


def _of_machines(rng: random.Random, faults: list[Fault], *, ranks: int, until_ms: float) -> list[Fault]:
    """The same faults, in which losses are of machines, and with somebody who says that nodes are gone, not always rightly."""
    wider = {"node off": "machine off", "node killed": "machine killed"}
    out = [replace(f, action=wider[f.action]) if f.action in wider and rng.random() < 0.6 else f for f in faults]
    if any(f.action in ("kill", "stop", "raylet") for f in out) and rng.random() < 0.4:
        at = next(n for n, f in enumerate(out) if f.action in ("kill", "stop", "raylet"))
        out[at] = replace(out[at], action="evidence")
    return out


def _shape(rng: random.Random) -> dict[str, int]:
    pipeline = rng.choice((1, 1, 1, 2, 2, 3))
    data = rng.choice({1: (2, 3, 4, 4, 4), 2: (1, 2, 2, 3), 3: (1, 2)}[pipeline])
    tensor = 2 if pipeline == 1 and data == 2 and rng.random() < 0.5 else 1
    zero = rng.choice((0, 1, 1, 2, 3))
    shard = 2 if zero and data == 4 and rng.random() < 0.4 else 0
    stages_per_rank = 2 if pipeline == 2 and rng.random() < 0.3 else 1
    out: dict[str, int] = {
        **{"pipeline": pipeline, "data": data, "tensor": tensor, "zero_stage": zero, "shard": shard},
        "stages_per_rank": stages_per_rank,
    }
    if stages_per_rank > 1:
        out["schedule"] = PipelineSchedule.INTERLEAVED  # type: ignore[assignment]
    return out


def _layers(rng: random.Random, shape: dict[str, int]) -> tuple[int, ...]:
    least = shape["pipeline"] * shape["stages_per_rank"]
    return tuple(rng.randint(1, 3) for _ in range(rng.randint(least, least + 2)))


def _policies(rng: random.Random, *, careful: bool) -> tuple[object, ...]:
    losses = _LOSS_POLICIES[0] if careful else rng.choice(_LOSS_POLICIES)
    chosen = {
        **dict.fromkeys(LOSS_CLASSES, losses),
        FailureClass.CORRUPT_STATE: rng.choice(_CORRUPT_POLICIES),
        FailureClass.WORKER_SLOW: rng.choice(_SLOW_POLICIES),
    }
    return policies(chosen)


def _faults(rng: random.Random, *, kind: Kind, ranks: int, until_ms: float) -> list[Fault]:
    def some(actions: tuple[str, ...], least: int, most: int) -> list[Fault]:
        return [_fault(rng, rng.choice(actions), ranks=ranks, until_ms=until_ms) for _ in range(rng.randint(least, most))]

    def at(points: Sequence[tuple[str, int]], actions: tuple[str, ...]) -> Fault:
        point, before = rng.choice(points)
        nth, delay_ms = before * ranks + rng.randint(1, ranks), rng.choice((0, rng.uniform(0, 15)))
        return Fault(rng.choice(actions), 0, point, nth, delay_ms)

    match kind:
        case Kind.CALM | Kind.USER:
            return []
        case Kind.PAUSES:
            pauses = some(("pause", "pause supervisor", "slow disk"), 1, 5)
            if rng.random() < 0.5:  # both at once
                at_ms = rng.uniform(1500, until_ms)
                pauses += [Fault(a, at_ms + rng.uniform(0, 500), "", 0, 0) for a in ("pause", "pause supervisor")]
            return pauses
        case Kind.SINGLE:
            return some(LOSSES, 1, 1) + (some(HARMLESS, 1, 3) if rng.random() < 0.5 else [])
        case Kind.CANCEL:
            return [*some(ACTIONS, 1, 3), _fault(rng, "cancel", ranks=ranks, until_ms=until_ms)]
        case Kind.PLANNED:
            harmless = [at(CHANGE_POINTS, HARMLESS) for _ in range(rng.choice((0, 1, 2)))]
            return [*some(WISHES, 1, 5), *harmless]
        case Kind.ELASTIC:
            lost = [at(STEADY_POINTS, ("lose and return", "lose and return", "bad node")) for _ in range(rng.randint(1, 3))]
            return [*lost, *(some(HARMLESS, 1, 2) if rng.random() < 0.5 else [])]
        case Kind.BAD:
            return some((*HARMLESS, "kill"), 0, 2)
        case Kind.CORRUPT:
            return [*some(("flip",), 1, 2), *some(HARMLESS, 0, 2)]
        case Kind.MACHINES:
            wishes = some(WISHES, 1, 2) if rng.random() < 0.5 else []
            lost = []
            for _ in range(rng.randint(1, 4)):
                point = IN_A_CHANGE if wishes and rng.random() < 0.5 else ""
                lost.append(Fault(LOSE_A_MACHINE, rng.uniform(0, 2500), point, 0, rng.uniform(0, 20 if point else 400)))
            return [*lost, *some(HARMLESS, 0, 2), *wishes]
        case Kind.SLOW:
            return [Fault("slow for long", rng.uniform(1500, 4000), "", 0, 0), *some(HARMLESS, 0, 2)]
        case _:
            out = some(ACTIONS, 1, 7)
            for _ in range(rng.choice((0, 0, 1, 2))):  # strikes in what the first fault sets off
                out.append(at((*RECOVERY_POINTS, *CHANGE_POINTS), ACTIONS))
            return out


def _fault(rng: random.Random, action: str, *, ranks: int, until_ms: float) -> Fault:
    if rng.random() < 0.25:
        return Fault(action, rng.uniform(0, until_ms), "", 0, 0)
    point, per_rank = rng.choice(POINTS)
    delay_ms = rng.choice((0, 0, rng.uniform(0, 3), rng.uniform(0, 40)))
    return Fault(action, 0, point, rng.randint(1, per_rank * ranks), delay_ms)
