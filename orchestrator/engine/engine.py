"""One rank's training, epoch after epoch, in one process that survives its peers.

An epoch is: form the group, get the state, train until the end or until something breaks. Whatever breaks, the
process, the model and all that was computed stay; the next epoch starts from there. This module joins the parts;
training.py has the step, restore.py the state, checkpoint.py what outlives everybody.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Consistency, DeviceKind, Job
from orchestrator.core.plan.plan import Plan
from orchestrator.core.reshard.recovery import Held, Source
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import CheckpointReported, DigestReported, EpochReady, EvalReported, Fault
from orchestrator.core.timeouts import derive
from orchestrator.engine.checkpoint import CheckpointWriter
from orchestrator.engine.checkpoint_files import BadCheckpoint, read_manifest
from orchestrator.engine.control import Control, Hook
from orchestrator.engine.describe import build_seeded, graph_of
from orchestrator.engine.digest import CopiesDiffer, Digester
from orchestrator.engine.faults import FaultBox
from orchestrator.engine.groups import EpochGroup, GroupBroken, StoreServer, connect_store, form_group
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.optim import probe_keys
from orchestrator.engine.rank_state import Body, FatalCheck, UserError, user_code
from orchestrator.engine.restore import restore
from orchestrator.engine.task import seed_drawing, seed_everything
from orchestrator.engine.tasks.loading import load_task
from orchestrator.engine.training import Trainer, autocast
from orchestrator.runtime.ports import Failed, Finished, Left, Pulse, Report

_POLL_S = 0.005
_FINAL_CHECKPOINT_S = 600.0
_CHECKPOINT_WAIT_S = 120.0  # for the one before; storage that hangs costs checkpoints, not the run
T = TypeVar("T")


class TorchEngine:
    """Implements runtime.ports.Engine with torch. `bind_host` is the address that peers reach this worker at."""

    def __init__(self, job: Job, bind_host: str) -> None:
        torch.set_num_threads(1)  # the order of sums inside a kernel must not depend on the machine
        self._job = job
        self._bind_host = bind_host
        self._store = StoreServer(bind_host)
        self._control = Control()
        self._faults = FaultBox()
        self._checkpoints = CheckpointWriter(job)
        self._timeouts = derive(job.resilience.detect_within_ms)
        self._body: Body | None = None
        self._group: EpochGroup | None = None

    @property
    def hook(self) -> Hook | None:
        """Called with (phase, step) by the training thread at each phase; for tests."""
        return self._control.hook

    @hook.setter
    def hook(self, hook: Hook | None) -> None:
        self._control.hook = hook

    # ------------------------------------------------------------------------------------------------- from any thread

    def fence(self, epoch: int) -> None:
        """Abort the groups of this and older epochs, even if they are yet to be formed; returns at once."""
        self._control.fence(epoch)

    def held(self) -> Held | None:
        """What it holds, while it is in no epoch."""
        rank = self._body.rank if self._body is not None else None
        return None if rank is None or self._control.running else rank.held()

    def pulse(self) -> Pulse:
        """Where it is."""
        return self._control.pulse()

    def inject(self, fault: Fault) -> None:
        """Take a fault; it strikes at its step and micro-batch. Raises ValueError for an unknown kind."""
        self._faults.add(fault)

    def store_endpoint(self) -> str:
        """host:port of this worker's store, whose listening socket is its liveness port too."""
        return self._store.endpoint

    def close(self) -> None:
        """Release groups and store."""
        self._checkpoints.cancel()
        if self._group is not None:
            self._group.close()
            self._group = None
        self._store.close()

    # ---------------------------------------------------------------------------------------------------------- warm

    def warm(self) -> GraphView:
        """Build the model, touch the memory, run one throw-away micro-batch. Raises TaskError, UserError."""
        if self._body is not None:
            return self._body.graph
        torch.set_num_threads(1)
        self._control.phase("warming")
        job = self._job
        if job.cluster.device is DeviceKind.CUDA and job.train.consistency is Consistency.EXACT:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses cuBLAS in deterministic mode
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        seed_drawing(seed=job.train.seed, step=-1, micro_batch=0)  # what setup() draws is equal on all ranks too
        task = load_task(job.task)
        with user_code():
            module = build_seeded(task, seed=job.train.seed).to(torch.device(job.cluster.device.value))
        state = FlatState(module)
        with user_code():
            keys = probe_keys(task, job.train.optimizer, state)
        body = Body(job=job, task=task, module=module, state=state, graph=graph_of(job, task, state), keys=keys)
        body.prefault(ranks=job.parallel.data, zero_stage=job.parallel.zero_stage, copies=job.parallel.copies)
        self._throw_away(body)
        self._body = body
        self._control.phase("idle")
        return body.graph

    def _throw_away(self, body: Body) -> None:
        """One micro-batch forward and backward, so that nothing is done for the first time in earnest.

        Its loss joins the fingerprint of an exact job: workers whose data, code or arithmetic differ must not train together.
        It also tells whether backward adds each gradient in one piece; code that runs a backward inside the backward
        (reentrant activation checkpointing) may not, and then micro-batches cannot share a buffer and stay exact.
        """
        added: dict[int, int] = {}

        def count(param: torch.Tensor) -> None:
            added[id(param)] = added.get(id(param), 0) + 1

        def look(grad: torch.Tensor) -> None:  # a sparse one is added row by row, as often as a row occurs
            if grad.layout is not torch.strided:
                added[id(grad)] = 2

        trained = [p for p in body.module.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(count) for p in trained] + [p.register_hook(look) for p in trained]
        buffer = body.pool.take(body.state.padded_numel).zero_()
        body.bind_grads(buffer)
        with user_code():
            seed_drawing(seed=self._job.train.seed, step=1, micro_batch=0)
            batch = body.to_device(body.task.batch(seed=self._job.train.seed, step=1, micro_batch=0))
            seed_everything(seed=self._job.train.seed, step=1, micro_batch=0)
            with autocast(body):
                loss = body.task.loss(body.module, batch)
            loss.backward()
        for hook in hooks:
            hook.remove()
        if self._job.train.consistency is Consistency.EXACT:
            first_loss = f"{body.graph.fingerprint} {float(loss.detach()).hex()}"
            body.graph = replace(body.graph, fingerprint=hashlib.sha256(first_loss.encode()).hexdigest())
        body.adds_once = max(added.values(), default=0) <= 1
        body.state.restore_buffers()
        body.pool.give(buffer)

    # ---------------------------------------------------------------------------------------------------------- epoch

    def run_epoch(self, order: RunEpoch, report: Report) -> Left | Finished | Failed:
        """Form groups, get the state, train until the end, a break or a fence. Refuses an epoch that is not newer."""
        refusal = self._control.enter(order.plan.epoch)
        if refusal:
            return Left(fenced=True, held=self.held(), detail=refusal)
        finished = False
        try:
            self.warm()
            outcome = self._run(order, report)
            finished = True
            return outcome
        except GroupBroken as error:
            return Left(fenced=self._control.cancelled.is_set(), held=self._held_now(), detail=str(error))
        except UserError as error:
            self._forget_unfinished()
            return Failed(step=self._control.pulse().step, fatal_check=False, traceback=str(error))
        except BadCheckpoint as error:  # the supervisor may know of an older one
            at = order.resume
            report(
                CheckpointReported(
                    at_ms=0,
                    worker_id=order.worker_id,
                    epoch=order.plan.epoch,
                    step=at.step,
                    uri=at.checkpoint_uri,
                    ok=False,
                    detail=str(error),
                )
            )
            return Left(fenced=self._control.cancelled.is_set(), held=None, detail=str(error))
        except (FatalCheck, CopiesDiffer) as error:
            return Failed(step=self._control.pulse().step, fatal_check=True, traceback=f"{type(error).__name__}: {error}")
        except Exception:
            return Failed(step=self._control.pulse().step, fatal_check=True, traceback=traceback.format_exc())
        finally:
            if not finished:  # after a good end peers may still be reading from us: close with the next epoch
                self._checkpoints.cancel()
                self._drop_group()
            self._control.leave()

    def _held_now(self) -> Held | None:
        return self._body.rank.held() if self._body is not None and self._body.rank is not None else None

    def _forget_unfinished(self) -> None:
        """After an exception in the middle of a micro-batch or an update."""
        if self._body is None:
            return
        self._body.work = None
        if self._body.rank is not None and self._control.pulse().phase == "update":
            self._body.rank = None

    def _drop_group(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.close()

    def _run(self, order: RunEpoch, report: Report) -> Finished:
        body, plan = self._require_body(), order.plan
        torch.set_num_threads(1)  # the user's setup or model may have asked for more
        seat = next(s for s in plan.seats if s.worker_id == order.worker_id)
        self._drop_group()
        group = self._form(order, seat.rank)
        epoch = _Epoch(
            body=body,
            plan=plan,
            group=group,
            control=self._control,
            faults=self._faults,
            checkpoints=self._checkpoints,
            report=report,
            worker=order.worker_id,
        )
        if order.resume.source is Source.CHECKPOINT:
            self._read(order, epoch, rank=seat.rank, group=group)
        else:
            restore(body, plan=plan, rank=seat.rank, group=group, resume=order.resume, control=self._control)
        report(EpochReady(at_ms=0, worker_id=order.worker_id, epoch=plan.epoch))
        return epoch.train()

    def _read(self, order: RunEpoch, epoch: _Epoch, *, rank: int, group: EpochGroup) -> None:
        """The state from a checkpoint; it counts only when all ranks together have read what the manifest promises.

        Raises BadCheckpoint for whatever is wrong with it, GroupBroken, UserError; then this rank holds nothing.
        """
        body, resume = self._require_body(), order.resume
        try:
            restore(body, plan=order.plan, rank=rank, group=group, resume=resume, control=self._control)
            epoch.check_loaded(read_manifest(resume.checkpoint_uri).digest, resume.step)
        except (GroupBroken, UserError):
            body.fresh()
            raise
        except Exception as error:  # DCP raises anything when a file is damaged
            body.fresh()
            raise BadCheckpoint(f"{type(error).__name__}: {error}") from error

    def _require_body(self) -> Body:
        assert self._body is not None, "warm() has run"
        return self._body

    def _form(self, order: RunEpoch, rank: int) -> EpochGroup:
        self._control.phase("forming", order.resume.step)
        deadline_s = self._timeouts.form_ms / 1e3
        cancelled = self._control.cancelled
        with self._control.comm():
            store = _interruptible(
                lambda: connect_store(order.store_endpoint, deadline_s), cancelled=cancelled, deadline_s=deadline_s
            )
            self._group = form_group(
                "gloo" if self._job.cluster.device is DeviceKind.CPU else "nccl",
                store,
                name="world",
                epoch=order.plan.epoch,
                rank=rank,
                size=order.plan.size,
                bind_host=self._bind_host,
                deadline_s=deadline_s,
                cancelled=cancelled,
                op_timeout_s=self._timeouts.collective_ms / 1e3,
            )
        self._control.attach(self._group)
        return self._group


class _Epoch:
    """From a state in place to the end: steps, and after some of them a digest, an evaluation, a checkpoint."""

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
    ) -> None:
        self._body, self._plan, self._group, self._control = body, plan, group, control
        self._checkpoints, self._report, self._worker = checkpoints, report, worker
        self._train = body.job.train
        self._trainer = Trainer(body, plan=plan, group=group, control=control, faults=faults, report=report, worker=worker)
        self._digester = Digester(plan=plan, group=group, keys=[k for k, _ in body.keys.elementwise])
        self._digest = ""

    def train(self) -> Finished:
        """Steps until the last one. Raises GroupBroken, UserError, FatalCheck, CopiesDiffer."""
        rank = self._body.rank
        assert rank is not None
        step = rank.applied_step
        last = step == self._train.steps  # its checkpoint may not have been completed: do it all again
        if step > 0 and (rank.done_step < step or last):
            self._after(step)
        while step < self._train.steps:
            step += 1
            self._trainer.run(step)
            self._after(step)
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
        checkpoint = bool(uri) and self._due(step, self._body.job.checkpoint.every)
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
            optimizer = rank.optimizer
            return self._digester.compute(
                step=step, flat=self._body.state.flat, regions=optimizer.regions, moments=optimizer.buffers
            )

    # ----------------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self, step: int) -> None:
        """Mean held-out loss, each micro-batch by one rank; training state stays as it is."""
        self._control.phase("eval", step)
        body, n, size = self._body, self._train.eval_micro_batches, self._plan.size
        runs = [range(n * r // size, n * (r + 1) // size) for r in range(size)]
        mine = runs[self._group.rank]
        width = max(len(r) for r in runs)
        told = torch.zeros(width, dtype=torch.float64)
        modes = [(m, m.training) for m in body.module.modules()]
        body.state.restore_buffers()
        body.module.eval()
        try:
            for k, index in enumerate(mine):
                self._control.check()
                with user_code(), torch.no_grad():
                    seed_drawing(seed=self._train.seed, step=-2, micro_batch=index)
                    batch = body.to_device(body.task.eval_batch(seed=self._train.seed, index=index))
                    seed_everything(seed=self._train.seed, step=-2, micro_batch=index)
                    with autocast(body):
                        told[k] = float(body.task.loss(body.module, batch))
                self._control.advance()
        finally:
            for module, training in modes:
                module.training = training
            body.state.restore_buffers()
        everybody = torch.empty(size * width, dtype=torch.float64, device=body.device)
        with self._control.comm():
            self._group.all_gather_into(everybody, told.to(body.device))
        rows = everybody.cpu().view(size, width)
        losses = [x for row, run in zip(rows, runs, strict=True) for x in row[: len(run)].tolist()]
        if self._group.rank == 0:
            finite = all(map(math.isfinite, losses))
            self._report(
                EvalReported(
                    at_ms=0,
                    worker_id=self._worker,
                    epoch=self._plan.epoch,
                    step=step,
                    loss=math.fsum(losses) / n if finite else math.nan,
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
            optimizer=rank.optimizer,
        )

    def _finish_checkpoint(self) -> None:
        """Wait for this rank's part of the last checkpoint (rank 0: for its commit)."""
        self._control.phase("checkpoint")
        deadline = time.monotonic() + _FINAL_CHECKPOINT_S
        while not self._checkpoints.wait(_POLL_S) and time.monotonic() < deadline:
            self._control.check()
            self._control.advance()
        self._tell_checkpoints()
        if self._checkpoints.busy:
            step, uri = self._train.steps, self._body.job.checkpoint.uri
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


def _interruptible(call: Callable[[], T], *, cancelled: threading.Event, deadline_s: float) -> T:
    """Run a blocking call in a thread of its own and leave it alone when the epoch is fenced or time is up."""
    done = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    deadline = time.monotonic() + deadline_s
    threading.Thread(target=run, name="connect-store", daemon=True).start()
    while not done.wait(_POLL_S):
        if cancelled.is_set() or time.monotonic() > deadline:
            raise GroupBroken("connecting to the store was cancelled" if cancelled.is_set() else "the store is silent")
    if errors:
        raise errors[0]
    return results[0]
