"""Plans with ownership at random, block by block: more than any planner would make, so that recovery is tested beyond ours.

Pipelines, replicas and tensor coordinates; replicated, sharded, sharded with params, with and without copies of every region
somewhere else. All plans of one `Model` cut the same state vector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import strategies as st

from orchestrator.core.plan.layout import Holding, Interval, Intervals, StateLayout, merge, subtract
from orchestrator.core.plan.plan import DATA, OPTIMIZER, PARAMS, PIPELINE, TENSOR, MeshAxis, PipelineSchedule, Plan, Seat, Stage


@dataclass(frozen=True)
class Model:
    """What all plans of a job share."""

    block: int
    layers: int  # of one block each
    tensor: int

    @property
    def section(self) -> int:
        """Elements of one tensor coordinate."""
        return self.block * self.layers

    @property
    def numel(self) -> int:
        """Elements of the vector."""
        return self.section * self.tensor


models = st.builds(Model, block=st.integers(1, 3), layers=st.integers(1, 6), tensor=st.integers(1, 2))


@st.composite
def plans(draw: st.DrawFn, model: Model, *, epoch: int = 1) -> Plan:
    """A plan of up to 3 pipeline ranks x 3 replicas x the model's tensor degree, its workers named after the epoch."""
    pipeline, data = draw(st.integers(1, min(3, model.layers))), draw(st.integers(1, 3))
    n = pipeline * data * model.tensor
    cuts = sorted(draw(st.permutations(range(1, model.layers)))[: pipeline - 1])
    nodes = draw(st.lists(st.sampled_from("abcd"), min_size=n, max_size=n))
    shell = Plan(
        job="j",
        epoch=epoch,
        parent=epoch - 1,
        mesh=(MeshAxis(PIPELINE, pipeline), MeshAxis(DATA, data), MeshAxis(TENSOR, model.tensor)),
        zero_stage=draw(st.integers(0, 3)),
        shard=data,
        copies=draw(st.integers(0, 1)),
        micro_batches=n,
        shares=(),
        block=model.block,
        section=model.section,
        stages=tuple(Stage(a, b, a * model.block, b * model.block) for a, b in pairwise([0, *cuts, model.layers])),
        schedule=PipelineSchedule.ONE_F_ONE_B,
        recompute=(False,) * pipeline,
        checkpoint_every=0,
        seats=tuple(Seat(r, f"e{epoch}w{r}", node) for r, node in enumerate(nodes)),
        layouts=(),
        reason="test",
    )
    primary: list[list[Interval]] = [[] for _ in range(n)]
    copies: list[list[Interval]] = [[] for _ in range(n)]
    for start in range(0, model.numel, model.block):
        part = (Interval(start, start + model.block),)
        homes = [r for r in range(n) if not subtract(part, shell.section_of(r))]
        owner = draw(st.sampled_from(homes))
        primary[owner] += part
        if shell.copies and n > 1:
            copies[draw(st.sampled_from([r for r in range(n) if r != owner]))] += part
    return with_layouts(shell, [merge(p) for p in primary], [merge(c) for c in copies])


def with_layouts(shell: Plan, primary: list[Intervals], copies: list[Intervals]) -> Plan:
    """The plan with these owners, and holders of copies, of the optimizer state; params as its ZeRO stage has them."""
    section = [shell.section_of(r) for r in range(shell.size)]
    replicated = shell.zero_stage == 0
    optimizer = [
        Holding(p, subtract(merge((*c, *s)) if replicated else c, p)) for p, c, s in zip(primary, copies, section, strict=True)
    ]
    params = [
        o if shell.zero_stage == 3 else Holding(o.primary, subtract(merge((*o.extra, *s)), o.primary))
        for o, s in zip(optimizer, section, strict=True)
    ]
    numel = shell.section * shell.axis(TENSOR)
    layouts = (StateLayout(PARAMS, numel, tuple(params)), StateLayout(OPTIMIZER, numel, tuple(optimizer)))
    return replace(shell, layouts=layouts)
