"""One rank's training, epoch after epoch, in one process that survives its peers.

An epoch is: form the group, get the state, train until the end or until something breaks. Whatever breaks, the
process, the model and all that was computed stay; the next epoch starts from there. This module joins the parts;
training.py has the step, restore.py the state, checkpoint.py what outlives everybody.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Consistency, DeviceKind, Job
from orchestrator.core.plan.plan import TENSOR
from orchestrator.core.reshard.recovery import Held, Source
from orchestrator.core.supervisor.commands import MeasureWorker, RunEpoch
from orchestrator.core.supervisor.events import (
    BadStepFound,
    CheckpointReported,
    CorruptionFound,
    EpochReady,
    Fault,
    WorkerMeasured,
)
from orchestrator.core.timeouts import derive
from orchestrator.engine.checkpoint import CheckpointWriter, always
from orchestrator.engine.checkpoint_files import BadCheckpoint, read_manifest
from orchestrator.engine.commit import CHECKPOINT, LEAVE, SAVE
from orchestrator.engine.control import Control, Hook
from orchestrator.engine.costs import trace
from orchestrator.engine.device_memory import give_back
from orchestrator.engine.digest import CopiesDiffer
from orchestrator.engine.epoch import Agreed, Epoch
from orchestrator.engine.faults import FaultBox
from orchestrator.engine.groups import EpochGroup, GroupBroken, StoreClient, StoreServer, connect_store, form_group
from orchestrator.engine.layered import LayeredStage
from orchestrator.engine.measuring import measure_worker
from orchestrator.engine.rank_state import Body, FatalCheck, UserError
from orchestrator.engine.restore import restore
from orchestrator.engine.task import seed_drawing
from orchestrator.engine.tasks.loading import load_task
from orchestrator.engine.training import BadStepLeft
from orchestrator.runtime.ports import Failed, Finished, Left, Pulse, Report

_POLL_S = 0.005
MEASURE_S_MAX = 10.0
T = TypeVar("T")


class TorchEngine:
    """Implements runtime.ports.Engine with torch. `bind_host` is the address that peers reach this worker at.

    `may_commit` is asked in a background thread before a checkpoint is made to count; see CheckpointWriter.
    """

    def __init__(self, job: Job, bind_host: str, *, may_commit: Callable[[], bool] = always) -> None:
        torch.set_num_threads(1)  # the order of sums inside a kernel must not depend on the machine
        self._job = job
        self._bind_host = bind_host
        self._store = StoreServer(bind_host)
        self._control = Control()
        self._faults = FaultBox()
        self._checkpoints = CheckpointWriter(job, may_commit=may_commit)
        self._timeouts = derive(job.resilience.detect_within_ms)
        self._body: Body | None = None
        self._costs: ModelCosts | None = None
        self._groups: list[EpochGroup] = []

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

    def leave_after_step(self, epoch: int, *, save: bool) -> None:
        """Wish that all ranks leave this epoch at the end of the step under way; with `save`, once it is in a checkpoint."""
        self._control.wish(epoch, SAVE if save else LEAVE)

    def take_checkpoint(self, epoch: int) -> None:
        """Wish for a durable checkpoint after the step under way."""
        self._control.wish(epoch, CHECKPOINT)

    def held(self) -> Held | None:
        """What it holds, while it is in no epoch."""
        return None if self._body is None or self._control.running else self._body.held()

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
        self._drop_groups()
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
        body = Body(job=job, task=task, device=torch.device(job.cluster.device.value))
        self._throw_away(body)
        give_back()  # a whole model's activations were there once, more than a step will need
        body.prefault()
        if job.planner.auto:
            self._costs = trace(job, task=task)
        self._body = body
        self._control.phase("idle")
        return body.graph

    def costs(self) -> ModelCosts | None:
        """What the model costs, where the planner is to choose; after `warm`."""
        return self._costs

    def measure(self, order: MeasureWorker, stop: Callable[[], bool]) -> WorkerMeasured | None:
        """Measure device, links and model while it is in no epoch; None when `stop` said yes first. Raises TaskError."""
        body = self._require_body()
        assert self._costs is not None, "the job leaves its plan to the planner"
        self._control.phase("measuring")
        try:
            found = measure_worker(
                order,
                body,
                self._costs,
                bind_host=self._bind_host,
                limit_s=min(MEASURE_S_MAX, self._timeouts.measure_ms / 2e3),  # a loaded machine may take twice as long
                stop=stop,
            )
        finally:
            give_back()  # gradients and activations of a whole model were there again
            self._control.phase("idle")
        return None if found is None else WorkerMeasured(0, order.worker_id, *found)

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

        state, train = body.state, self._job.train
        trained = [p for p in body.module.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(count) for p in trained] + [p.register_hook(look) for p in trained]
        buffer = body.pool.take(body.graph.padded_numel).zero_()
        layers = range(len(state.layer_names))
        state.bind_grads(layers, 0, buffer)
        state.restore_all_buffers(layers)
        stage = LayeredStage(
            body.task,
            body.module,
            seed=train.seed,
            scale=1.0,
            precision=train.precision,
            device=body.device,
            to_device=body.to_device,
        )
        loss = float(stage.forward(0, None, step=1, number=0))
        stage.backward(0, None)
        for hook in hooks:
            hook.remove()
        if train.consistency is Consistency.EXACT:
            first_loss = f"{body.graph.fingerprint} {loss.hex()}"
            body.graph = replace(body.graph, fingerprint=hashlib.sha256(first_loss.encode()).hexdigest())
        body.adds_once = max(added.values(), default=0) <= 1
        state.restore_all_buffers(layers)
        state.drop_grads()  # the buffer ends with this

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
        except Agreed as agreed:
            finished = True
            return Left(fenced=False, held=self._held_now(), detail=str(agreed))
        except GroupBroken as error:
            return Left(fenced=self._control.cancelled.is_set(), held=self._held_now(), detail=str(error))
        except BadStepLeft as bad:
            report(BadStepFound(0, order.worker_id, order.plan.epoch, bad.step, bad.why))
            return Left(fenced=False, held=self._held_now(), detail=str(bad))
        except CopiesDiffer as error:
            step = self._control.pulse().step
            report(CorruptionFound(0, order.worker_id, order.plan.epoch, step, error.accused, str(error)))
            return Left(fenced=False, held=self._held_now(), detail=str(error))
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
        except FatalCheck as error:
            return Failed(step=self._control.pulse().step, fatal_check=True, traceback=f"{type(error).__name__}: {error}")
        except Exception:
            return Failed(step=self._control.pulse().step, fatal_check=True, traceback=traceback.format_exc())
        finally:
            if not finished:  # after a good end peers may still be reading from us: close with the next epoch
                self._checkpoints.cancel()
                self._drop_groups()
            self._control.leave()

    def _held_now(self) -> Held | None:
        return self._body.held() if self._body is not None else None

    def _forget_unfinished(self) -> None:
        """After an exception in the middle of a micro-batch or an update."""
        if self._body is None:
            return
        self._body.work = None
        if self._body.rank is not None and self._control.pulse().phase == "update":
            self._body.rank = None

    def _drop_groups(self) -> None:
        groups, self._groups = self._groups, []
        if self._body is not None and self._body.tensor is not None:
            self._body.tensor.uninstall()
        for group in groups:
            group.close()

    def _run(self, order: RunEpoch, report: Report) -> Finished:
        body, plan = self._require_body(), order.plan
        torch.set_num_threads(1)  # the user's setup or model may have asked for more
        seat = next(s for s in plan.seats if s.worker_id == order.worker_id)
        self._drop_groups()
        group = self._form(order, seat.rank)
        epoch = Epoch(
            body=body,
            plan=plan,
            group=group,
            control=self._control,
            faults=self._faults,
            checkpoints=self._checkpoints,
            report=report,
            worker=order.worker_id,
            skip_steps=order.resume.skip_steps,
        )
        if order.resume.source is Source.CHECKPOINT:
            self._read(order, epoch, rank=seat.rank, group=group)
        else:
            restore(body, plan=plan, rank=seat.rank, group=group, resume=order.resume, control=self._control)
        if body.tensor is not None:
            body.tensor.install(self._groups[1])
        report(EpochReady(at_ms=0, worker_id=order.worker_id, epoch=plan.epoch))
        return epoch.train()

    def _read(self, order: RunEpoch, epoch: Epoch, *, rank: int, group: EpochGroup) -> None:
        """The state from a checkpoint; it counts only when all ranks together have read what the manifest promises.

        Raises BadCheckpoint for whatever is wrong with it, GroupBroken, UserError; then this rank holds nothing.
        """
        body, resume = self._require_body(), order.resume
        try:
            restore(body, plan=order.plan, rank=rank, group=group, resume=resume, control=self._control)
            manifest = read_manifest(resume.checkpoint_uri)
            if manifest.tensor == order.plan.axis(
                TENSOR
            ):  # else it is the digest of another vector; every file had its CRC checked
                epoch.check_loaded(manifest.digest, resume.step)
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
        """The group of all ranks, and that of this rank's tensor axis where there is one."""
        self._control.phase("forming", order.resume.step)
        plan, deadline_s = order.plan, self._timeouts.form_ms / 1e3
        cancelled = self._control.cancelled
        with self._control.comm():
            store = _interruptible(
                lambda: connect_store(order.store_endpoint, deadline_s), cancelled=cancelled, deadline_s=deadline_s
            )
            world = self._form_one(store, "world", plan.epoch, rank, plan.size)
            if plan.axis(TENSOR) > 1:
                pipe, replica, coordinate = plan.coordinates(rank)
                self._form_one(store, f"tensor-{pipe}-{replica}", plan.epoch, coordinate, plan.axis(TENSOR))
        return world

    def _form_one(self, store: StoreClient, name: str, epoch: int, rank: int, size: int) -> EpochGroup:
        group = form_group(
            "gloo" if self._job.cluster.device is DeviceKind.CPU else "nccl",
            store,
            name=name,
            epoch=epoch,
            rank=rank,
            size=size,
            bind_host=self._bind_host,
            deadline_s=self._timeouts.form_ms / 1e3,
            cancelled=self._control.cancelled,
            op_timeout_s=self._timeouts.collective_ms / 1e3,
        )
        self._groups.append(group)
        self._control.attach(group)
        return group


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
