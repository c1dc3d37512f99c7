"""From a state in place to the end of a job or an epoch: steps, and after some of them a digest, an evaluation, a checkpoint."""

from __future__ import annotations

import math
import time

import torch

from orchestrator.core.plan.plan import DATA, Plan
from orchestrator.core.supervisor.events import CheckpointReported, DigestReported, EvalReported
from orchestrator.engine.checkpoint import CheckpointWriter
from orchestrator.engine.checkpoint_files import BadCheckpoint
from orchestrator.engine.commit import CHECKPOINT, LEAVE, SAVE
from orchestrator.engine.control import Control
from orchestrator.engine.digest import Digester
from orchestrator.engine.faults import FaultBox
from orchestrator.engine.groups import EpochGroup
from orchestrator.engine.rank_state import Body
from orchestrator.engine.training import Trainer
from orchestrator.runtime.ports import Finished, Report

_POLL_S = 0.005
_TOGETHER_S = 0.05  # ranks that wait for each other's parts of a checkpoint ask each other this often
_FINAL_CHECKPOINT_S = 600.0
_CHECKPOINT_WAIT_S = 120.0  # for the one before; storage that hangs costs checkpoints, not the run


class Agreed(Exception):
    """The ranks have agreed to leave the epoch; every one has its state complete."""


class Epoch:
    """One rank's part in one epoch, from the moment its state is in place."""

    def __init__(
        self,
        *,
        body: Body,
        plan: Plan,
        group: EpochGroup,
        control: Control,
        faults: FaultBox,
        checkpoints: CheckpointWriter,
        report: Report,
        worker: str,
        skip_steps: tuple[int, ...],
    ) -> None:
        self._body, self._plan, self._group, self._control = body, plan, group, control
        self._checkpoints, self._report, self._worker = checkpoints, report, worker
        self._faults, self._skip_steps = faults, skip_steps
        self._train = body.job.train
        self._digester = Digester(plan=plan, group=group, keys=[k for k, _ in body.keys.elementwise])
        self._digest = ""
        self._checkpoint_wished = False

    def train(self) -> Finished:
        """Steps until the last one. Raises GroupBroken, UserError, FatalCheck, CopiesDiffer, BadStepLeft, Agreed."""
        rank = self._body.rank
        assert rank is not None
        self._trainer = Trainer(
            self._body,
            plan=self._plan,
            group=self._group,
            control=self._control,
            faults=self._faults,
            report=self._report,
            worker=self._worker,
            skip_steps=self._skip_steps,
        )
        step = rank.applied_step
        last = step == self._train.steps  # its checkpoint may not have been completed: do it all again
        if step > 0 and (rank.done_step < step or last):
            self._after(step)
        while step < self._train.steps:
            step += 1
            wishes = self._trainer.run(step).wishes
            self._checkpoint_wished = bool(wishes & (CHECKPOINT | SAVE))
            self._after(step)
            if step == self._train.steps:
                break
            if wishes & SAVE:
                self._wait_together(step)
            if wishes & (LEAVE | SAVE):
                raise Agreed(f"the ranks agreed to leave epoch {self._plan.epoch} after step {step}")
        self._finish_checkpoint()
        return Finished(step=step, digest=self._digest)

    def check_loaded(self, expected: str, step: int) -> None:
        """The digest of what the ranks have read together is the one that was committed. Raises BadCheckpoint."""
        found = self._compute_digest(step)
        if found != expected:
            raise BadCheckpoint(f"the checkpoint of step {step} has digest {found}, its manifest says {expected}")

    def _due(self, step: int, every: int) -> bool:
        return step == self._train.steps or (every > 0 and step % every == 0)

    def _after(self, step: int) -> None:
        rank, uri = self._body.rank, self._body.job.checkpoint.uri
        assert rank is not None
        checkpoint = bool(uri) and (self._checkpoint_wished or self._due(step, self._plan.checkpoint_every))
        if checkpoint or self._due(step, self._train.digest_every):
            self._digest = self._compute_digest(step)
            self._report(DigestReported(at_ms=0, worker_id=self._worker, epoch=self._plan.epoch, step=step, digest=self._digest))
        if self._train.eval_micro_batches and self._due(step, self._train.eval_every):
            self._evaluate(step)
        if checkpoint:
            self._start_checkpoint(step)
        self._tell_checkpoints()
        rank.done_step = step

    def _compute_digest(self, step: int) -> str:
        rank = self._body.rank
        assert rank is not None
        self._control.phase("digest", step)
        with self._control.comm():
            return self._digester.compute(step=step, params=self._body.state.params, moments=rank.moments)

    # ----------------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self, step: int) -> None:
        """Mean held-out loss, each micro-batch by one replica; training state stays as it is."""
        self._control.phase("eval", step)
        body, plan, n = self._body, self._plan, self._train.eval_micro_batches
        replicas = plan.axis(DATA)
        runs = [range(n * d // replicas, n * (d + 1) // replicas) for d in range(replicas)]
        width = max(len(r) for r in runs)
        mine = runs[plan.coordinates(self._group.rank)[1]]
        numbers = [*mine, *[None] * (width - len(mine) if plan.zero_stage >= 2 else 0)]
        modes = [(m, m.training) for m in body.module.modules()]
        body.module.eval()
        try:
            losses = self._trainer.evaluate(numbers)
        finally:
            for module, training in modes:
                module.training = training
            body.state.restore_all_buffers(body.bound_layers)
        told = torch.zeros(n, dtype=torch.float64)
        if plan.coordinates(self._group.rank)[2] == 0:
            for number, loss in losses.items():
                told[number] = loss
        everybody = torch.empty(plan.size * n, dtype=torch.float64, device=body.device)
        with self._control.comm():
            self._group.all_gather_into(everybody, told.to(body.device))
        if self._group.rank == 0:
            total = everybody.cpu().view(plan.size, n).sum(dim=0).tolist()  # one rank has told each, the others zero
            finite = all(map(math.isfinite, total))
            self._report(
                EvalReported(
                    at_ms=0,
                    worker_id=self._worker,
                    epoch=self._plan.epoch,
                    step=step,
                    loss=math.fsum(total) / n if finite else math.nan,
                )
            )

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def _start_checkpoint(self, step: int) -> None:
        self._control.phase("checkpoint", step)
        deadline = time.monotonic() + _CHECKPOINT_WAIT_S
        while not self._checkpoints.wait(_POLL_S):  # at most one is under way
            self._control.check()
            self._control.advance()
            if time.monotonic() > deadline:
                detail = f"skipped: the one before is still being written after {_CHECKPOINT_WAIT_S:.0f} s"
                uri = self._body.job.checkpoint.uri
                self._report(CheckpointReported(0, self._worker, self._plan.epoch, step, uri, False, detail))
                return
        rank = self._body.rank
        assert rank is not None
        self._checkpoints.start(
            plan=self._plan,
            rank=self._group.rank,
            step=step,
            digest=self._digest,
            state=self._body.state,
            moments=rank.moments,
            scalars=rank.latest_scalars(),
            usual_loss=rank.commit.usual_loss if rank.commit is not None else 0.0,
        )

    def _finish_checkpoint(self) -> None:
        """Wait for this rank's part of the last checkpoint (rank 0: for its commit)."""
        self._control.phase("checkpoint")
        deadline = time.monotonic() + _FINAL_CHECKPOINT_S
        while not self._checkpoints.wait(_POLL_S) and time.monotonic() < deadline:
            self._control.check()
            self._control.advance()
        self._tell_finished(self._train.steps)

    def _wait_together(self, step: int) -> None:
        """Wait for everybody's part of this step's checkpoint and for its commit, or for what went wrong.

        The ranks leave the epoch together: those that wait for the others to leave give them little time. A fence, or the loss
        of a rank, ends the wait as it ends a step.
        """
        self._control.phase("checkpoint")
        deadline = time.monotonic() + _FINAL_CHECKPOINT_S
        busy = torch.ones(self._group.size, device=self._body.device)
        while busy.any():
            done = self._checkpoints.wait(_TOGETHER_S) or time.monotonic() > deadline
            self._control.check()
            with self._control.comm():
                self._group.all_gather_into(busy, torch.full((1,), float(not done), device=self._body.device))
        self._tell_finished(step)

    def _tell_finished(self, step: int) -> None:
        self._tell_checkpoints()
        if self._checkpoints.busy:
            uri = self._body.job.checkpoint.uri
            detail = f"not written within {_FINAL_CHECKPOINT_S:.0f} s"
            self._report(CheckpointReported(0, self._worker, self._plan.epoch, step, uri, False, detail))

    def _tell_checkpoints(self) -> None:
        for outcome in self._checkpoints.outcomes():
            if outcome.committed or not outcome.ok:
                self._report(
                    CheckpointReported(
                        at_ms=0,
                        worker_id=self._worker,
                        epoch=self._plan.epoch,
                        step=outcome.step,
                        uri=outcome.uri,
                        ok=outcome.ok,
                        detail=outcome.detail,
                    )
                )
