"""How a model may be split over a cluster, what is asked, and what is answered: the values that the planner works on.

A Strategy says everything that costs depend on, and nothing of workers, epochs or intervals; `core/planner/planner.py` makes a
Plan of it. Ranks are numbered as in a Plan: pipeline-major, then replica, tensor innermost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from orchestrator.core.cluster.resources import Resources
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.plan.plan import PipelineSchedule


@dataclass(frozen=True)
class Strategy:
    """One way to split. Frozen; helper tables are computed once."""

    data: int  # replicas
    tensors: tuple[int, ...]  # tensor degree of each pipeline rank; all equal but for what-if plans of unlike devices
    cuts: tuple[
        int, ...
    ]  # layers of each stage in forward order; a multiple of the pipeline ranks, stage s is run by rank s % them
    schedule: PipelineSchedule
    units: int  # of one micro-batch
    micro_batches: int  # in a step, over all replicas: units * micro_batches is the problem's batch
    zero: int
    shard: int  # replicas that a sharded state is spread over; divides data; 1 under ZeRO-0
    copies: int  # 0 or 1, as Plan.copies
    recompute: tuple[bool, ...]  # per stage
    devices: tuple[int, ...]  # of each rank, index into the devices of Resources; all different
    shares: tuple[int, ...] = ()  # micro-batches of each replica; empty: as even as can be

    @property
    def pipeline(self) -> int:
        """Pipeline ranks."""
        return len(self.tensors)

    @property
    def tensor(self) -> int:
        """The (highest) tensor degree."""
        return max(self.tensors)

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.data * sum(self.tensors)

    @property
    def stages_per_rank(self) -> int:
        """Stages on each pipeline rank; more than 1: interleaved."""
        return len(self.cuts) // len(self.tensors)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """[first, last) layers of each stage."""
        out, at = [], 0
        for size in self.cuts:
            out.append((at, at + size))
            at += size
        return tuple(out)

    @cached_property
    def first_rank(self) -> tuple[int, ...]:
        """The first rank of each pipeline rank's block of data * tensor ranks."""
        out, at = [], 0
        for t in self.tensors:
            out.append(at)
            at += t * self.data
        return tuple(out)

    def rank_at(self, pipe: int, replica: int, coordinate: int) -> int:
        """The rank at a place of the mesh."""
        return self.first_rank[pipe] + replica * self.tensors[pipe] + coordinate

    def share(self, replica: int) -> int:
        """Micro-batches of a replica in a step."""
        if self.shares:
            return self.shares[replica]
        m, n = self.micro_batches, self.data
        return m * (replica + 1) // n - m * replica // n


@dataclass(frozen=True, slots=True)
class Program:
    """How the training program behaves that will run the plan; ours and those of published figures are in cost/programs.py."""

    name: str
    weight_bytes: int  # per parameter that a rank computes with
    gradient_bytes: int  # per parameter, gradient kept until the update
    optimizer_bytes: int  # per parameter, moments and master weights: what ZeRO-1 shards
    exchanged_bytes: int  # per parameter, in the reduction of gradients over the data axis
    gathered_bytes: int  # per parameter, when sharded weights are gathered
    overlap: float  # share of the data axis' traffic hidden behind the backward pass, 0 to 1, never more than there is of it
    act_s: float  # overhead of each forward or backward pass of one stage and micro-batch
    call_s: float  # overhead of each all-reduce over the tensor axis on a CPU; an accelerator's kernels are queued ahead
    step_s: float  # overhead of each step
    update_bytes: float  # memory traffic of the optimizer per parameter it updates
    rank_bytes: int  # memory of a process beside the model: runtime, context, library buffers
    bucket_bytes: int  # communication buffers at most
    peer_reads: bool  # copies are refreshed by reduced gradients (exchanged_bytes per copied parameter and step)
    sums_kept: bool  # exact sums keep up to log2(micro-batches of a replica) partial gradients more; where `straight`
    straight: (
        bool  # gradients go straight to the owner of each part, from ZeRO-2 on layer by layer in tree order; else round a ring
    )
    scattered: bool  # tensor ranks send a boundary in parts and gather it on the other side (arXiv 2104.04473 section 4.1)

    def adds_in_tree(self, zero: int) -> bool:
        """Whether gradients of micro-batches are added up in the order of the canonical tree under a ZeRO stage."""
        return self.sums_kept or (self.straight and zero >= 2)


@dataclass(frozen=True, slots=True)
class Space:
    """What a search may choose from. An empty tuple leaves an axis free."""

    tensors: tuple[int, ...] = ()
    pipelines: tuple[int, ...] = ()
    datas: tuple[int, ...] = ()
    zeros: tuple[int, ...] = (0, 1, 2, 3)
    groups: bool = True  # sharding inside groups of the data axis (shard < data)
    units: tuple[int, ...] = (1,)  # units of a micro-batch
    schedules: tuple[PipelineSchedule, ...] = tuple(PipelineSchedule)
    stages_per_rank_max: int = 4
    recompute: tuple[bool, ...] = (False, True)  # per stage where both
    copies: tuple[int, ...] = (0, 1)  # 1 is asked for: 0 only where it is no use (replicas) or impossible
    uneven: bool = True  # unequal cuts, and shares for unlike replicas
    mixed_tensors: bool = False  # another tensor degree on some pipeline ranks; the engine has one
    ranks_min: int = 1
    ranks_max: int = 0  # 0: all healthy devices


@dataclass(frozen=True, slots=True)
class Parent:
    """The plan that runs, for a re-plan."""

    strategy: Strategy  # devices as numbered in the new Resources; -1 for a device that is lost
    steps_left: int
    move_bandwidth: float  # bytes/s at which one rank receives state


@dataclass(frozen=True, slots=True)
class Reliability:
    """What a failure costs, in seconds of wall time; rates are with the nodes.

    Spares are not in it: how long a run without them stays smaller depends on repair times that nobody states.
    """

    detect_s: float
    restart_s: float  # forming groups and the like, swap included, without moving state
    checkpoint_s: float  # that a durable checkpoint costs the run
    load_s: float  # restart from a durable checkpoint, when all holders of some region are lost


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything that a choice depends on."""

    costs: ModelCosts
    resources: Resources
    program: Program
    batch: int  # units in a step over all ranks
    space: Space
    reliability: Reliability

    @property
    def call_s(self) -> float:
        """The program's, where there are CPUs among the devices."""
        return self.program.call_s if any(t.kind == "cpu" for t in self.resources.types) else 0.0


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the step time, on the critical path."""

    name: str  # forward, backward, recompute, tensor, boundary, bubble, gradients, weights, update, copies, overhead
    seconds: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest rank of a pipeline rank, at its peak."""

    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float
    work: float  # transient: activations under way, gathered weights
    buffers: float  # of collectives
    other: float  # process and context
    limit: int  # of the smallest of its devices

    @property
    def total(self) -> float:
        """The peak."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.copies
            + self.activations
            + self.work
            + self.buffers
            + self.other
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a strategy is predicted to do."""

    step_s: float
    terms: tuple[Term, ...]  # they add up to step_s
    memory: tuple[Memory, ...]  # by pipeline rank
    goodput: float  # expected share of wall time in steps that count, with the failure rates of the nodes it uses
    checkpoint_every: int  # steps, from the checkpoint's cost and the rate of what only it can mend; 0: never worth it
    loss_s: float  # what one node's loss costs, seconds of wall time

    @property
    def fits(self) -> bool:
        """Whether every rank has room."""
        return all(m.total <= m.limit for m in self.memory)

    @property
    def effective_s(self) -> float:
        """Seconds of wall time per step that counts: what a search minimises."""
        return self.step_s / self.goodput if self.goodput > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Option:
    """A strategy with its estimate; `move_s` is what getting there from the parent costs once."""

    strategy: Strategy
    estimate: Estimate
    move_s: float = 0.0
    moved_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Rejected:
    """Strategies that were not taken, as a class, with the reason in words and the best of them."""

    what: str  # e.g. "tensor parallel 8"
    why: str  # e.g. "needs 91 GiB on a device of 80", "at least 12 % slower"
    count: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer of a search."""

    best: Option
    runners_up: tuple[Option, ...]  # of other shapes, best first
    rejected: tuple[Rejected, ...]
    proven: bool  # nothing in the space can be better than `best` under this cost model; never where tensor degrees may be mixed
    bound_s: float  # no strategy of the space takes less effective seconds per step
    weighed: int  # strategies whose cost was computed or bounded
    reason: str
