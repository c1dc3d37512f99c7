"""Small jobs: a GPT of a few thousand parameters, whose step takes some hundredths of a second on four ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator import spec
from orchestrator.core.job import Job

ROOT = Path(__file__).resolve().parents[2]
STAGED = "tests.world.tasks:Staged"
SMALL = {"layers": 1, "width": 32, "heads": 2, "context": 32, "batch_size": 1}


def document(
    name: str,
    *,
    zero: int = 0,
    steps: int = 12,
    nodes: int = 4,
    spares: int = 1,
    detect_within: str = "4s",
    target: str = STAGED,
    failures: int = 5,
    on_loss: Sequence[str] = ("swap", "wait"),
    checkpoint: Path | None = None,
    checkpoint_every: int = 5,
    pipeline: int = 1,
    digest_every: int = 5,
    resilience: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A job file as a mapping. A rank on each of `nodes`, `pipeline` of them in a row.

    `on_loss`: what is done about lost workers; unlike the product's default it never shrinks, because most stories are told of
    ranks that stay the same. `resilience`: more keys of that section. `parallel`: that section, instead of what the others say.
    """
    return {
        "name": name,
        "task": {"target": target, "options": {**SMALL, **options}},
        "train": {
            "steps": steps,
            "seed": 1,
            "micro_batches": 8,
            "digest_every": digest_every,
            "eval_every": 0,
            "eval_micro_batches": 2,
            "optimizer": {"lr": 0.01, "warmup_steps": 2},
        },
        "parallel": parallel or {"data": nodes // pipeline, "zero": zero, "pipeline": pipeline},
        "cluster": {"nodes": nodes, "spares": spares},
        "resilience": {
            "detect_within": detect_within,
            "failures": failures,
            "refill_after_steps": 50,
            "policy": {"default": list(on_loss)},
            **(resilience or {}),
        },
        **({"checkpoint": {"uri": str(checkpoint), "every": checkpoint_every, "keep": 3}} if checkpoint else {}),
    }


def tiny_job(name: str, **settings: Any) -> Job:
    """A Job; `settings` are those of `document`."""
    return spec.load_text(json.dumps(document(name, **settings)), base_dir=ROOT)


def auto_job(*, steps: int, checkpoints: Path, **settings: Any) -> Job:
    """Three ranks and no spare, cut as the planner says, which may go on with fewer."""
    return tiny_job(
        "auto",
        parallel={"plan": "auto", "tensor": 1},
        nodes=3,
        spares=0,
        steps=steps,
        pace_ms=10,
        detect_within="20s",  # so long may measuring take on a busy machine; who is killed is missed at once all the same
        on_loss=("swap", "shrink", "wait"),
        checkpoint=checkpoints,
        checkpoint_every="auto",
        **settings,
    )
