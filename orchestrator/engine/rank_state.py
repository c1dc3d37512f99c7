"""What one worker keeps from epoch to epoch: the model, the optimizer of its regions, and how far they are.

Between epochs nothing of it is thrown away; `Held` is its description for the supervisor. Buffers that took part in a
broken collective are replaced here, never used again: the collective may still write into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import DeviceKind, Job
from orchestrator.core.plan.plan import Plan
from orchestrator.core.reshard.recovery import Commit, Held
from orchestrator.engine.accumulate import GradAccumulator
from orchestrator.engine.buffers import BufferPool
from orchestrator.engine.groups.base import GroupBroken
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.optim import MomentStore, ShardedOptimizer, StateKeys
from orchestrator.engine.task import Task
from orchestrator.engine.tasks.loading import user_traceback

_LINE_BYTES = 64


class UserError(Exception):
    """The user's code raised; the message is the traceback."""


class FatalCheck(Exception):
    """One of our own checks says that the run must not go on."""


@contextmanager
def user_code() -> Iterator[None]:
    """Whatever is raised in here is the user's error, `sys.exit()` too."""
    try:
        yield
    except (GroupBroken, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise UserError(user_traceback(error)) from error


@dataclass(slots=True)
class RankState:
    """The state of the rank that this worker has (or had), and how far it is. Fields as in core.reshard.recovery.Held."""

    plan: Plan  # whose layout describes the regions
    rank: int
    optimizer: ShardedOptimizer
    applied_step: int
    params_step: int
    prepared_step: int
    commit: Commit | None
    done_step: int = -1  # newest step whose digest, evaluation and checkpoint are behind us

    def held(self) -> Held:
        """For the supervisor."""
        return Held(
            plan_epoch=self.plan.epoch,
            rank=self.rank,
            applied_step=self.applied_step,
            params_step=self.params_step,
            prepared_step=self.prepared_step,
            commit=self.commit,
        )


@dataclass(slots=True)
class StepWork:
    """Micro-batches of one step that are computed already. They outlive an epoch as long as they are still wanted."""

    step: int
    mine: range
    lineage: int
    sums: GradAccumulator
    losses: dict[int, float]


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it that begins at a whole cache line."""
    strided = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return tensor.clone() if strided and tensor.data_ptr() % _LINE_BYTES else tensor


class Body:
    """Everything of a worker that is expensive to make: built once, touched by the training thread only."""

    def __init__(self, *, job: Job, task: Task, module: nn.Module, state: FlatState, graph: GraphView, keys: StateKeys) -> None:
        self.job = job
        self.task = task
        self.module = module
        self.state = state
        self.graph = graph
        self.keys = keys
        self.device = self.state.device
        self.moments = MomentStore(self.device)
        self.pool = BufferPool(device=self.device, free_bytes_max=self._pool_bytes())
        self.pristine = True  # params are still those of the seed
        self.adds_once = False  # backward adds each parameter's gradient in one piece (seen in the warm-up)
        self.lineage = 0  # grows whenever the state is not the continuation of the one before
        self.rank: RankState | None = None
        self.work: StepWork | None = None
        self._reduced: Tensor | None = None
        self._bound: Tensor | None = None

    def _pool_bytes(self) -> int:
        runs = self.job.train.micro_batches
        return (256 << 20) + (runs.bit_length() + 3) * 4 * self.state.padded_numel

    @property
    def reduced(self) -> Tensor:
        """fp32 [padded_numel]: the step's mean gradient where this rank holds state; anything elsewhere."""
        if self._reduced is None:
            self._reduced = self.pool.take(self.state.padded_numel)
        return self._reduced

    def drop_reduced(self) -> None:
        """A broken reduction may still write into it."""
        self._reduced = None

    def drop_flat(self) -> None:
        """A broken operation may still write into the params: go on with a copy."""
        copy = self.pool.take(self.state.padded_numel)  # most likely pages that were touched before
        self.state.rebind(copy.copy_(self.state.flat))

    def bind_grads(self, buffer: Tensor) -> None:
        """Backward adds into `buffer` from here on."""
        if self._bound is not buffer:
            self.state.bind_grads(buffer)
            self._bound = buffer

    def to_device(self, batch: object) -> object:
        """The batch's tensors where the model is.

        On the CPU at whole cache lines: MKL sums in another order where memory that came from numpy or a file begins elsewhere.
        """
        if self.job.cluster.device is DeviceKind.CPU:
            return pytree.tree_map_only(Tensor, aligned, batch)
        return pytree.tree_map_only(Tensor, lambda t: t.to(self.device, non_blocking=True), batch)

    def fresh(self) -> None:
        """Forget the rank and its work."""
        if self.rank is not None:
            self.moments.give(self.rank.optimizer.buffers.values())
        self.rank = None
        self.work = None
        self.lineage += 1

    def prefault(self, *, ranks: int, zero_stage: int, copies: int) -> None:
        """Touch the memory that a rank of such a plan will need: the first touch of a page costs ten times a copy."""
        with torch.no_grad():
            run = -(-self.job.train.micro_batches // ranks)
            vectors = [self.pool.take(self.state.padded_numel) for _ in range(run.bit_length() + 1)]
            for vector in vectors:
                self.pool.give(vector.zero_())
            if zero_stage == 0 or self.state.padded_numel <= 64 << 20:
                self.reduced.fill_(0.0)
            blocks = -(-self.state.n_blocks // ranks)
            share = blocks * self.state.block * (1 + copies) if zero_stage else self.state.padded_numel
            self.moments.prefault(min(share, self.state.padded_numel), [d for _, d in self.keys.elementwise])
