"""What one worker keeps from epoch to epoch: the model, the optimizer of its regions, and how far they are.

Between epochs nothing of it is thrown away; `Held` is its description for the supervisor. Buffers that took part in a
broken collective are replaced here, never used again: the collective may still write into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from orchestrator.core.job import DeviceKind, Job
from orchestrator.core.plan.layout import Interval, Intervals, intersect, merge, subtract
from orchestrator.core.plan.plan import PARAMS, TENSOR, Plan
from orchestrator.core.reshard.recovery import Commit, Held
from orchestrator.engine.accumulate import GradAccumulator
from orchestrator.engine.buffers import BufferPool
from orchestrator.engine.describe import build_seeded, graph_of, named_layers
from orchestrator.engine.extents import Extents, Pages
from orchestrator.engine.groups.base import GroupBroken
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.optim import Reduced, Regions, Scalars, ShardedOptimizer, probe_keys
from orchestrator.engine.task import Task
from orchestrator.engine.tasks.loading import user_traceback
from orchestrator.engine.tensor_parallel import TensorParallel, cut_dim

_LINE_BYTES = 64
_POOL_BYTES_MAX = 4 << 30


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
    """The state of the rank that this worker has (or had), and how far it is. Fields as in core.reshard.recovery.Held.

    The params are in the FlatState's extents; `left_params` is what only the plan before needed. It is there, and `holds` and the
    moments reach beyond what the plan gives, as long as it is not known that all ranks have what they need. A rank that broke
    while it became another tensor coordinate has all its params there.
    """

    plan: Plan
    rank: int
    holds: Intervals  # of the optimizer
    moments: dict[str, Extents]  # by key, over `holds`
    optimizer: ShardedOptimizer | None  # None between a reshard and the agreement that it is complete
    scalars: Scalars
    applied_step: int
    params_step: int
    prepared_step: int
    commit: Commit | None
    done_step: int = -1  # newest step whose digest, evaluation and checkpoint are behind us
    left_params: Extents | None = None

    @property
    def tensor(self) -> int:
        """Degree of tensor parallelism of the vector that this is a part of."""
        return self.plan.axis(TENSOR)

    def latest_scalars(self) -> Scalars:
        """The optimizer's scalars as they are now."""
        return self.optimizer.scalars() if self.optimizer is not None else self.scalars


@dataclass(slots=True)
class StepWork:
    """Micro-batches of one step that are computed already. They outlive an epoch as long as they are still wanted."""

    step: int
    mine: tuple[int, ...]
    lineage: int
    stages: dict[int, Interval]  # the stages of `sums`, and where in the vector each lies
    sums: dict[int, GradAccumulator]  # by stage
    losses: dict[int, float]


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it that begins at a whole cache line."""
    strided = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return tensor.clone() if strided and tensor.data_ptr() % _LINE_BYTES else tensor


class Body:
    """Everything of a worker that is expensive to make: built once, touched by the training thread only."""

    def __init__(self, *, job: Job, task: Task, device: torch.device) -> None:
        self.job, self.task, self.device = job, task, device
        self.pages = Pages(device, free_bytes_max=_POOL_BYTES_MAX)
        self.adds_once = False  # backward adds each parameter's gradient in one piece (seen in the warm-up)
        self.lineage = 0  # grows whenever the state is not the continuation of the one before
        self.rank: RankState | None = None
        self.work: StepWork | None = None
        self.tensor: TensorParallel | None = None
        self._reduced: Reduced | None = None
        self._build(degree=1, coordinate=0)
        self.graph = graph_of(job, task, self.state)
        self.pool = BufferPool(device=device, free_bytes_max=self._pool_bytes())
        with user_code():
            self.keys = probe_keys(task, job.train.optimizer, self.state)

    def _build(self, *, degree: int, coordinate: int) -> None:
        """A new module with the values of the seed, all of it."""
        with user_code():
            module = build_seeded(self.task, seed=self.job.train.seed).to(self.device)
            layers = named_layers(self.task, module)
        self.module = module
        self.state = FlatState(module, layers, cut_dim=partial(cut_dim, self.task))
        self._degree, self._coordinate = degree, coordinate
        self.tensor = None
        if degree > 1:
            with user_code():
                self.tensor = TensorParallel(self.task, module, layers, degree=degree, coordinate=coordinate)
        self.pristine = True  # the state is that of the seed, and all of the uncut model
        self._bound_layers: tuple[int, ...] = tuple(range(len(self.state.layer_names)))

    def as_coordinate(self, *, degree: int, coordinate: int) -> None:
        """Become this coordinate of so many tensor ranks: unless it is that already, the module is built anew, from the seed.

        Its state is then that of the uncut model, until `place_tensor`.
        """
        if (self._degree, self._coordinate) != (degree, coordinate):
            self.work = None  # gradients of other parameters
            self._build(degree=degree, coordinate=coordinate)

    def place_tensor(self) -> None:
        """From here on the state's vector is that of the tensor degree."""
        if (self.state.degree, self.state.coordinate) != (self._degree, self._coordinate):
            self.state.place(degree=self._degree, coordinate=self._coordinate, wrapping=self.tensor)

    def _pool_bytes(self) -> int:
        runs = self.job.train.micro_batches
        return (256 << 20) + (runs.bit_length() + 3) * 4 * self.graph.padded_numel

    # --------------------------------------------------------------------------------------------------------- reduced

    def reduced(self, intervals: Intervals) -> Reduced:
        """The step's reduced gradient of these intervals, in the same memory as long as they stay the same."""
        if self._reduced is None or self._reduced.regions.intervals != merge(intervals):
            regions = Regions(intervals)
            self._reduced = Reduced(regions, self.pool.take(regions.numel))
        return self._reduced

    def drop_reduced(self) -> None:
        """A broken reduction may still write into it."""
        self._reduced = None

    # ---------------------------------------------------------------------------------------------------------- params

    @property
    def bound_layers(self) -> tuple[int, ...]:
        """Layers whose parameters are whole in the extents."""
        return self._bound_layers

    def target_params(self, plan: Plan, rank: int, have: Extents) -> Extents:
        """Memory for the params that a plan gives to a rank: what lies right in `have` stays, what lies elsewhere is copied.

        The rest is new memory, to be received into.
        """
        state = self.state
        wanted = plan.layout(PARAMS).holdings[rank].everything
        target = have.merged_with(Extents(torch.float32, self.device))
        target.drop(subtract(target.intervals, wanted))
        for layer in self.layers_of(plan, rank):
            b = state.bounds(layer)
            try:
                target.view(b.start, b.stop)
            except KeyError:
                target.drop((b,))
                vector = torch.zeros(b.numel, dtype=torch.float32, device=self.device)  # padding comes from nowhere
                for i in intersect(have.intervals, (b,)):
                    for lo, hi, view in have.pieces(i.start, i.stop):
                        vector[lo - b.start : hi - b.start] = view
                target.add(b, vector)
        missing = subtract(wanted, target.intervals)
        return target.merged_with(self.pages.extents(missing, torch.float32))

    def layers_of(self, plan: Plan, rank: int) -> tuple[int, ...]:
        """The layers whose parameters a rank keeps whole from step to step."""
        if plan.zero_stage >= 3:
            return ()
        stages = [plan.stages[s] for s in plan.stages_of(rank)]
        return tuple(layer for s in stages for layer in range(s.first, s.last))

    def adopt(self, params: Extents, layers: tuple[int, ...]) -> None:
        """The model works over these extents from here on."""
        self.state.adopt(params, layers)
        self._bound_layers = layers

    def renew(self, intervals: Intervals) -> None:
        """A broken operation may still write into these params: go on with copies of the memory that they lie in."""
        if not intervals:
            return
        fresh = Extents(torch.float32, self.device)
        for i, tensor in self.state.params:
            hit = bool(intersect((i,), intervals))
            fresh.add(i, self.pool.take(i.numel).copy_(tensor) if hit else tensor)
        self.adopt(fresh, self._bound_layers)

    def new_moments(self, intervals: Intervals, *, zero: bool = True) -> dict[str, Extents]:
        """Zeros, or anything if not `zero`, for every elementwise tensor of the optimizer."""
        return {key: self.pages.extents(intervals, dtype, zero=zero) for key, dtype in self.keys.elementwise}

    # ------------------------------------------------------------------------------------------------------------ rank

    def held(self) -> Held | None:
        """What this worker holds, for the supervisor."""
        rank = self.rank
        if rank is None:
            return None
        left = rank.left_params.intervals if rank.left_params is not None else ()
        return Held(
            plan_epoch=rank.plan.epoch,
            rank=rank.rank,
            tensor=rank.tensor,
            applied_step=rank.applied_step,
            params_step=rank.params_step,
            prepared_step=rank.prepared_step,
            optimizer=rank.holds,
            params=merge(self.state.params.intervals + left),
            commit=rank.commit,
        )

    def to_device(self, batch: object) -> object:
        """The batch's tensors where the model is.

        On the CPU at whole cache lines: MKL sums in another order where memory that came from numpy or a file begins elsewhere.
        """
        if self.job.cluster.device is DeviceKind.CPU:
            return pytree.tree_map_only(Tensor, aligned, batch)
        return pytree.tree_map_only(Tensor, lambda t: t.to(self.device, non_blocking=True), batch)

    def fresh(self) -> None:
        """Forget the rank and its work."""
        self.rank = None
        self.work = None
        self.lineage += 1

    def prefault(self) -> None:
        """Touch the memory that a rank of the job will need: the first touch of a page costs ten times a copy.

        Vectors of the whole model only where a rank sums the gradient of all of it.
        """
        parallel, numel = self.job.parallel, self.graph.padded_numel
        sections = parallel.pipeline * parallel.tensor
        self.pool.clear()
        with torch.no_grad():
            if sections == 1 and parallel.zero_stage < 2:
                run = -(-self.job.train.micro_batches // parallel.data)
                vectors = [self.pool.take(numel) for _ in range(run.bit_length() + 1)]
                for vector in vectors:
                    self.pool.give(vector.zero_())
            holders = sections * (parallel.data if parallel.zero_stage else 1)
            share = min(numel, -(-numel // holders) * (1 + parallel.copies))
            for _, dtype in self.keys.elementwise:
                self.pages.prefault(share, dtype)
