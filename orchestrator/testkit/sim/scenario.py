"""What a seed stands for: the shape of the job and the cluster, and the faults that strike.

A fault is an action with a trigger: a moment, or the n-th time that some point of the protocol is reached (a gate opens, a
rank passes the commit, a fence arrives, a decision is written down), which is how the narrow windows are hit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.job import Job
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


WEIGHTS = {
    Kind.CALM: 2,
    Kind.PAUSES: 10,
    Kind.SINGLE: 25,
    Kind.CHAOS: 54,
    Kind.STINGY: 4,
    Kind.USER: 2,
    Kind.CANCEL: 3,
}

# Points of the protocol, and how often each is reached in a run at least, mostly. Per rank:
POINTS = (
    ("pass commit", 8),
    ("pass commit", 8),
    ("pass reduce", 8),
    ("pass gather", 8),
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
    ("pass restored", 1),
    ("pass restored", 1),
)

LOSSES = ("kill", "kill", "kill", "node off", "node killed", "node killed", "stop", "hang", "raylet")
HARMLESS = ("supervisor", "supervisor", "supervisor", "break stream", "slow disk", "add node")  # beside one loss
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
    "add node",
    "drain",
)


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
    blocks: int
    faults: tuple[Fault, ...]
    calm_after_ms: float  # no fault strikes after that, cuts are healed, and there is room
    lossy_disk: bool  # a crash of the supervisor loses what was not written durably
    moves: bool  # a new supervisor has another address


def scenario(seed: int) -> Scenario:
    """Of a seed; the same in every process."""
    rng = random.Random(f"scenario {seed}")
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    data = rng.choice((2, 3, 4, 4, 4))
    zero = rng.choice((0, 1, 1))
    slots = rng.choice((1, 2))
    spares = rng.choice((0, 1, 1, 2))
    nodes = max(2, -(-(data + spares) // slots)) + (rng.random() < 0.3)
    uri = "mem:/c" if rng.random() < 0.5 and kind is not Kind.SINGLE else ""
    job = make_job(
        name="sim",
        steps=rng.randint(10, 20),
        seed=seed,
        micro_batches=rng.choice((data, 2 * data, 8)),
        digest_every=rng.choice((0, 3, 5)),
        data=data,
        zero_stage=zero,
        copies=1 if zero else 0,
        nodes=nodes,
        spares=spares,
        slots_per_node=slots,
        uri=uri,
        every=3,
        keep=2,
        failure_budget=1 if kind is Kind.STINGY else 1000,
        budget_refill_steps=5,
    )
    calm_after_ms = rng.uniform(2500, 9000)
    return Scenario(
        seed=seed,
        kind=kind,
        job=job,
        nodes=nodes,
        blocks=rng.choice((5, 8, 9)),
        faults=tuple(_faults(rng, kind=kind, data=data, until_ms=calm_after_ms)),
        calm_after_ms=calm_after_ms,
        lossy_disk=rng.random() < 0.5,
        moves=rng.random() < 0.5,
    )


def _faults(rng: random.Random, *, kind: Kind, data: int, until_ms: float) -> list[Fault]:
    def some(actions: tuple[str, ...], least: int, most: int) -> list[Fault]:
        return [_fault(rng, rng.choice(actions), data=data, until_ms=until_ms) for _ in range(rng.randint(least, most))]

    match kind:
        case Kind.CALM | Kind.USER:
            return []
        case Kind.PAUSES:
            return some(("pause", "pause supervisor", "slow disk"), 1, 6)
        case Kind.SINGLE:
            return some(LOSSES, 1, 1) + (some(HARMLESS, 1, 3) if rng.random() < 0.5 else [])
        case Kind.CANCEL:
            return [*some(ACTIONS, 1, 3), _fault(rng, "cancel", data=data, until_ms=until_ms)]
        case _:
            out = some(ACTIONS, 1, 7)
            for _ in range(rng.choice((0, 0, 1, 2))):  # strikes in what the first fault sets off
                point, before = rng.choice(RECOVERY_POINTS)
                out.append(
                    Fault(
                        rng.choice(ACTIONS), 0, point, before * data + rng.randint(1, data), rng.choice((0, rng.uniform(0, 15)))
                    )
                )
            return out


def _fault(rng: random.Random, action: str, *, data: int, until_ms: float) -> Fault:
    if rng.random() < 0.25:
        return Fault(action, rng.uniform(0, until_ms), "", 0, 0)
    point, per_rank = rng.choice(POINTS)
    delay_ms = rng.choice((0, 0, rng.uniform(0, 3), rng.uniform(0, 40)))
    return Fault(action, 0, point, rng.randint(1, per_rank * data), delay_ms)
