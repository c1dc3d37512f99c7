"""The model of the baselines as a Task of ours, so that every bench trains the same 12.6 M parameters.

Micro-batch m of a step is what rank m of a plain data-parallel loop draws, so both see the same batches. With a gate the
training thread stops before a step until the driver lets it go on: that is how a bench interleaves systems. With a step log it
writes what the peers' loops write, when they write it: that a seat has finished a step, once everything of that step is done.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from bench.baselines.common_model import CLIP_NORM, StepLog, batch_of, build_model, loss_of
from bench.baselines.dims import Dims
from bench.gate import Gate
from orchestrator.core.job import Consistency, Job, TaskRef
from orchestrator.engine.task import Task
from orchestrator.testkit.jobs import make_job

ROOT = Path(__file__).resolve().parent.parent
DETECT_WITHIN_MS = 4_000  # as shipped
DIGEST_EVERY = 10


class BenchTask(Task):
    """`dims` is a Dims as JSON; `gate` the socket of a driver and `step_log` a file, or empty."""

    dims: str
    gate: str = ""
    variant: str = ""
    step_log: str = ""

    def setup(self) -> None:
        """The sizes, as one value."""
        self._dims = Dims(**json.loads(self.dims))
        self._gate = Gate(self.gate, self.variant) if self.gate else None
        self._log = StepLog(self.step_log, worker=os.getpid()) if self.step_log else None
        self._drawn = 0  # newest step that a micro-batch was drawn for

    def build_model(self) -> nn.Module:
        """The decoder of the baselines."""
        return build_model(self._dims)

    def batch(self, *, seed: int, step: int, micro_batch: int) -> tuple[Tensor, Tensor]:
        """What seat micro_batch // k draws as its micro-batch micro_batch % k, where a rank has k of them.

        A worker's first micro-batch of a step says that it is done with the one before, whatever the size of the job.
        """
        if self._gate is not None:
            self._gate.pass_step(step)
        rank, own = divmod(micro_batch, self._dims.micro_batches_per_rank)
        if self._log is not None and (own == 0 or step > self._drawn) and step > 1:
            self._log.step_done(rank=rank, step=step - 1)
        self._drawn = step
        return batch_of(self._dims, step=step, rank=rank, micro_batch=own)

    def eval_batch(self, *, seed: int, index: int) -> tuple[Tensor, Tensor]:
        """Held out by its negative step."""
        return batch_of(self._dims, step=-1, rank=index, micro_batch=0)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross entropy."""
        return loss_of(model, *batch)

    @property
    def tokens_per_micro_batch(self) -> int:
        """Tokens."""
        return self._dims.batch * self._dims.seq


def bench_job(
    name: str,
    dims: Dims,
    *,
    ranks: int,
    steps: int,
    zero_stage: int = 0,
    copies: int = 0,
    consistency: Consistency = Consistency.EXACT,
    spares: int = 0,
    gate: str = "",
    step_log: str = "",
    failure_budget: int = 3,
) -> Job:
    """One rank per node, everything on as shipped, digests each 10 steps, the learning rate held."""
    options = {"dims": json.dumps(asdict(dims), sort_keys=True), "gate": gate, "step_log": step_log, "variant": name}
    return make_job(
        name=name,
        task=TaskRef("bench.bench_task:BenchTask", json.dumps(options, sort_keys=True), str(ROOT)),
        steps=steps,
        seed=dims.data_seed,
        micro_batches=ranks * dims.micro_batches_per_rank,
        consistency=consistency,
        lr=3e-4,
        warmup_steps=0,
        min_lr_ratio=1.0,
        clip_grad_norm=CLIP_NORM,
        digest_every=DIGEST_EVERY,
        data=ranks,
        zero_stage=zero_stage,
        copies=copies,
        spares=spares,
        keep=2,
        detect_within_ms=DETECT_WITHIN_MS,
        failure_budget=failure_budget,
        budget_refill_steps=10,
        slow_factor=3.0,
    )
