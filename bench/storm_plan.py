"""What happens in one storm, drawn from its seed: a job and the faults that strike it, one after another.

The first fault's kind goes round with the seed, so that a few tens of seeds have seen every kind; everything else is drawn. A
fault waits for an occasion in the run (a step, the fencing or the forming of an epoch), never for a time, and picks its victim
among those that are there then: that is as far as real processes let a seed be repeated.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.core.job import Job
from tests.world.jobs import tiny_job

STEPS: Final = 36
DETECT_WITHIN: Final = "2s"
DETECT_S: Final = 2.0
PACE_MS: Final = 4  # of a micro-batch
BUDGET: Final = 25
GROW_AFTER: Final = 3  # steps

# kind -> (what it needs, how often it is drawn)
KINDS: Final[dict[str, int]] = {
    "kill": 4,  # SIGKILL of a rank before a micro-batch of its own
    "kill-now": 3,  # of any worker, whatever it does
    "stop": 2,  # SIGSTOP until it was given up; then it is continued and must be refused
    "pause": 1,  # SIGSTOP for less than what is noticed
    "node": 3,  # power off, and perhaps on again
    "nodes": 2,  # two at once
    "partition": 3,  # a cable is pulled until the machine was given up; then it is back
    "blip": 1,  # for less than what is noticed
    "slow-link": 1,
    "corrupt": 1,  # bits flip on the wire in every reshard of the run; the fault that makes one is a kill
    "flip": 1,  # a bit of a replica
    "nan": 2,
    "disk": 1,  # full, for a while
    "supervisor": 2,  # crashes
    "cancel": 1,  # somebody ends the job; submitted again it must go on from its checkpoint
}
NEEDS_HOSTS: Final = frozenset({"node", "nodes", "partition", "blip", "slow-link", "disk"})
LOSSES: Final = frozenset({"kill", "kill-now", "stop", "node", "nodes", "partition", "corrupt", "flip"})
DEALT: Final = tuple(KINDS)


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault. `occasion`: "step" (so many steps after the one before), or the phase of a recovery that is under way."""

    kind: str
    occasion: str  # step | fencing | forming
    steps: int
    draw: int  # what the strike draws its victim and its details from

    def __str__(self) -> str:
        return f"{self.kind}@{'+' + str(self.steps) if self.occasion == 'step' else self.occasion}"


@dataclass(frozen=True, slots=True)
class Storm:
    """One run."""

    seed: int
    shape: str
    zero: int
    pipeline: int
    ranks: int
    spares: int
    checkpoints: bool
    kill_lost: bool  # false: what was declared lost lives on
    flips: float  # share of what is received in a reshard that arrives changed
    strikes: tuple[Strike, ...]

    @property
    def name(self) -> str:
        """Of the job."""
        return f"storm-{self.seed}"

    @property
    def needs_hosts(self) -> bool:
        """Whether it takes network namespaces and mounts."""
        return any(s.kind in NEEDS_HOSTS for s in self.strikes)

    @property
    def small_disk(self) -> bool:
        """Whether its checkpoints go to a disk that can be filled."""
        return any(s.kind == "disk" for s in self.strikes)

    def job(self, checkpoints: Path) -> Job:
        """The job."""
        return tiny_job(
            self.name,
            **common(),
            zero=self.zero,
            pipeline=self.pipeline,
            nodes=self.ranks,
            spares=self.spares,
            detect_within=DETECT_WITHIN,
            failures=BUDGET,
            on_loss=("swap", "shrink", "wait"),
            checkpoint=checkpoints if self.checkpoints else None,
            checkpoint_every=4,
            resilience=resilience(rollback=self.checkpoints),
        )

    def __str__(self) -> str:
        spares = f"{self.spares} spare{'' if self.spares == 1 else 's'}"
        words = ((self.checkpoints, "checkpoints"), (not self.kill_lost, "zombies"), (bool(self.flips), "bits flip"))
        extra = "".join(f", {word}" for true, word in words if true)
        return f"{self.shape} on {self.ranks} ranks, {spares}{extra}: {' '.join(map(str, self.strikes))}"


def common() -> dict[str, Any]:
    """What all jobs share, so that one undisturbed run serves them all."""
    return {"steps": STEPS, "layers": 2, "pace_ms": PACE_MS, "digest_every": 1}


def resilience(*, rollback: bool) -> dict[str, Any]:
    """More of the job's section of that name."""
    actions = ["swap", "shrink", "wait"]
    corrupt = ["swap", "shrink", *(["rollback"] if rollback else []), "fail"]
    return {"on_bad_step": "skip", "grow_after_steps": GROW_AFTER, "policy": {"default": actions, "corrupt-state": corrupt}}


SHAPES: Final = (  # name, ZeRO stage, pipeline, ranks
    ("DP", 0, 1, (3, 4)),
    ("ZeRO-1", 1, 1, (3, 4)),
    ("ZeRO-3", 3, 1, (3, 4)),
    ("pipeline x data", 0, 2, (4,)),
)


def draw_storm(seed: int) -> Storm:
    """The storm of this seed."""
    r = random.Random(seed)
    first = DEALT[seed % len(DEALT)]
    shape, zero, pipeline, sizes = SHAPES[0] if first == "flip" else r.choice(SHAPES)
    ranks, spares = r.choice(sizes), r.choice((0, 1, 1, 2))
    kinds = [
        first,
        *r.choices([k for k in DEALT if k not in ("corrupt", "flip", "disk", "cancel")], _weights(), k=r.randint(2, 3)),
    ]
    strikes = []
    for n, kind in enumerate(kinds):
        hurried = n > 0 and kinds[n - 1] in LOSSES and r.random() < 0.5
        occasion = r.choice(("fencing", "forming")) if hurried else "step"
        strikes.append(Strike("kill" if kind == "corrupt" else kind, occasion, r.randint(2, 5), r.randrange(1 << 30)))
    hard = any(s.kind in ("nodes", "disk", "cancel") or s.occasion != "step" for s in strikes)
    return Storm(
        seed=seed,
        shape=shape,
        zero=zero,
        pipeline=pipeline,
        ranks=ranks,
        spares=spares,
        checkpoints=hard or r.random() < 0.4,
        kill_lost=r.random() < 0.6,
        flips=0.5 if first == "corrupt" or r.random() < 0.1 else 0.0,
        strikes=tuple(strikes),
    )


def _weights() -> list[int]:
    return [w for k, w in KINDS.items() if k not in ("corrupt", "flip", "disk", "cancel")]
