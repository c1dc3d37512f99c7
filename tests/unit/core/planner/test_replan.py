"""From any plan to any other: valid, balanced, and with the least that has to move."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.job import Job
from orchestrator.core.plan.layout import Interval, merge
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import DATA, OPTIMIZER, PARAMS, PIPELINE, PipelineSchedule, Plan
from orchestrator.core.planner.planner import PlanError, first_plan, replan
from orchestrator.core.reshard.recovery import Held
from orchestrator.testkit.jobs import make_graph, make_job
from tests.unit.core.planner.world import Workers, blocks, held_by, missing, workers_on

GRAPH = make_graph(*[30 * 16] * 4, block=16)  # 4 layers of 30 blocks
NODES = [f"n{i}" for i in range(8)]
SHAPES = [(1, n) for n in range(1, 9)] + [(2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (4, 1), (4, 2)]
KINDS = [(0, 0, 0), (1, 0, 0), (1, 0, 1), (2, 2, 1), (3, 0, 0), (3, 0, 1), (3, 2, 0)]  # zero stage, shard, copies


def job_of(pipeline: int, data: int, *, zero: int = 1, shard: int = 0, copies: int = 0, tensor: int = 1) -> Job:
    """A job of a shape."""
    return make_job(
        pipeline=pipeline,
        data=data,
        tensor=tensor,
        zero_stage=zero,
        shard=shard if data % (shard or 1) == 0 else 0,
        copies=copies,
    )


def start(job: Job, workers: Workers | None = None) -> Plan:
    """The first plan of a job, on a node per worker."""
    if job.parallel.ranks == 1:
        job = replace(job, parallel=replace(job.parallel, copies=0))
    return first_plan(job=job, graph=GRAPH, workers=workers or workers_on(NODES), epoch=1)


def seated(plan: Plan) -> Workers:
    """Its workers."""
    return [(s.worker_id, s.node_id) for s in plan.seats]


def all_held(plan: Plan) -> dict[str, Held]:
    """What everybody holds."""
    return {w: held_by(plan, w) for w, _ in seated(plan)}


def move(
    parent: Plan, job: Job, shape: tuple[int, int], *, workers: Workers, held: dict[str, Held], layers: tuple[int, ...] = ()
) -> Plan:
    """To a shape."""
    return replan(
        parent=parent,
        job=job,
        graph=GRAPH,
        workers=workers,
        held=held,
        epoch=parent.epoch + 1,
        pipeline=shape[0],
        data=shape[1],
        layers_per_stage=layers,
        reason="test",
    )


def balanced(plan: Plan) -> bool:
    """Whether the replicas of a section hold equal parts of it (to the block), and own equal parts of that."""
    for rank in range(plan.size):
        section = blocks(plan.section_of(rank), plan.block)
        held = [len(blocks(plan.layout(OPTIMIZER).holdings[r].primary, plan.block) & section) for r in plan.replicas(rank)]
        if max(held) - min(held) > (1 if plan.shard in (1, plan.axis(DATA)) else 2):
            return False
    return True


@pytest.mark.parametrize(("zero", "shard", "copies"), KINDS)
def test_every_pair_of_shapes(zero: int, shard: int, copies: int) -> None:
    jobs = {before: job_of(*before, zero=zero, shard=shard, copies=copies) for before in SHAPES}
    parents = {before: start(job) for before, job in jobs.items()}
    for before, after in product(SHAPES, SHAPES):
        job, parent = jobs[before], parents[before]
        plan = move(parent, job, after, workers=workers_on(NODES), held=all_held(parent))
        assert lint(plan) == (), (before, after)
        assert balanced(plan), (before, after)
        assert (plan.axis(PIPELINE), plan.axis(DATA), plan.copies) == (*after, copies if plan.size > 1 else 0)
        assert plan == move(parent, job, after, workers=workers_on(NODES)[::-1], held=all_held(parent)), "order means nothing"
        if before == after:
            assert plan.layouts == parent.layouts
            assert plan.seats == parent.seats
            assert missing(plan, all_held(parent)) == 0


@settings(max_examples=3 * settings().max_examples // 2)
@given(st.data())
def test_a_life_of_losses_and_growth(data: st.DataObject) -> None:
    """Many changes one after the other, with workers lost on the way; nothing drifts out of balance."""
    zero, shard, copies = data.draw(st.sampled_from(KINDS))
    tensor = data.draw(st.sampled_from([1, 1, 2]))
    shapes = [s for s in SHAPES if s[0] * s[1] * tensor <= 8]
    job = job_of(*data.draw(st.sampled_from(shapes)), zero=zero, shard=shard, copies=copies, tensor=tensor)
    nodes = data.draw(st.lists(st.sampled_from("abcd"), min_size=8, max_size=8))
    workers, number = workers_on(nodes), 8
    try:
        plan = first_plan(job=job, graph=GRAPH, workers=workers, epoch=1)
    except PlanError:
        return
    for _ in range(data.draw(st.integers(1, 4))):
        lost = data.draw(st.sets(st.sampled_from([w for w, _ in seated(plan)]), max_size=2))
        held = {w: h for w, h in all_held(plan).items() if w not in lost}
        workers = [w for w in workers if w[0] not in lost]
        fresh = workers_on(data.draw(st.lists(st.sampled_from("abcd"), min_size=len(lost), max_size=len(lost))), first=number)
        workers, number = workers + fresh, number + len(fresh)
        plan = move(plan, job, data.draw(st.sampled_from(shapes)), workers=workers, held=held)
        assert lint(plan) == ()
        assert balanced(plan)
        assert plan.copies == (copies if len({n for _, n in seated(plan)}) > 1 else 0)


@given(st.integers(2, 8), st.data())
def test_when_ranks_leave_only_what_they_had_moves(ranks: int, data: st.DataObject) -> None:
    job = job_of(1, ranks)
    parent = start(job)
    left = data.draw(st.lists(st.sampled_from(seated(parent)), min_size=1, unique=True))
    held = {w: h for w, h in all_held(parent).items() if w in dict(left)}
    plan = move(parent, job, (1, len(left)), workers=left, held=held)
    gone = [h for s, h in zip(parent.seats, parent.layout(OPTIMIZER).holdings, strict=True) if s.worker_id not in held]
    assert missing(plan, held) == sum(len(blocks(h.primary, parent.block)) for h in gone)


@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3]))
def test_when_ranks_join_only_what_they_get_moves(ranks: int, more: int, zero: int) -> None:
    job = job_of(1, ranks, zero=zero)
    parent = start(job)
    new = min(8, ranks + more)
    held = all_held(parent)
    plan = move(parent, job, (1, new), workers=workers_on(NODES), held=held)
    fresh = [h for s, h in zip(plan.seats, plan.layout(OPTIMIZER).holdings, strict=True) if s.worker_id not in held]
    assert len(fresh) == new - ranks
    assert missing(plan, held) == sum(len(blocks(h.primary, plan.block)) for h in fresh)


def test_a_quarter_moves_when_one_of_four_leaves_and_when_it_comes_back() -> None:
    job = job_of(1, 4)
    parent = start(job)
    shrunk = move(parent, job, (1, 3), workers=seated(parent)[:3], held={w: held_by(parent, w) for w, _ in seated(parent)[:3]})
    assert missing(shrunk, all_held(parent)) == 30
    assert shrunk.reason == (
        "test: data parallel with sharded optimizer state (ZeRO-1) over 3 ranks on 3 nodes; 25% of the optimizer state moves"
    )
    grown = move(shrunk, job, (1, 4), workers=workers_on(NODES), held=all_held(shrunk))
    assert missing(grown, all_held(shrunk)) == 30


def most_copies(plan: Plan) -> int:
    """The largest number of blocks that one rank keeps for others."""
    return max(len(blocks(h.extra, plan.block)) for h in plan.layout(OPTIMIZER).holdings)


@pytest.mark.parametrize("zero", [1, 3])
@pytest.mark.parametrize("ranks", range(3, 9))
def test_with_copies_a_lost_rank_costs_what_it_held(ranks: int, zero: int) -> None:
    """Its shard, whose copy is promoted or kept, needs another copy, and the copy that it kept needs a place."""
    job = job_of(1, ranks, zero=zero, copies=1)
    parent = start(job)
    for lost in seated(parent):
        left = [w for w in seated(parent) if w != lost]
        held = {w: held_by(parent, w) for w, _ in left}
        plan = move(parent, job, (1, ranks - 1), workers=left, held=held)
        assert lint(plan) == ()
        holding = parent.layout(OPTIMIZER).holdings[next(s.rank for s in parent.seats if s.worker_id == lost[0])]
        assert missing(plan, held) == len(blocks(holding.everything, parent.block))
        assert most_copies(plan) <= -(-120 // (ranks - 1))
        grown = move(plan, job, (1, ranks), workers=[*left, ("j/w9", "n9")], held=all_held(plan))
        assert lint(grown) == ()
        assert most_copies(grown) <= -(-120 // ranks)


@pytest.mark.parametrize("after", [(2, 2), (2, 1), (4, 1)])
def test_pipeline_ranks_stay_with_their_layers(after: tuple[int, int]) -> None:
    job = job_of(2, 2, zero=0)
    parent = start(job)
    plan = move(parent, job, after, workers=workers_on(NODES)[::-1], held=all_held(parent))
    held = all_held(parent)
    for seat in plan.seats:
        section = blocks(plan.section_of(seat.rank), plan.block)
        assert not section - blocks(held[seat.worker_id].optimizer, plan.block), "halves of halves need no byte"


def test_who_holds_most_of_a_section_gets_it() -> None:
    """Four stages become two, and four replicas of nothing else: stage 1 goes to those who had layers of it."""
    job = job_of(4, 2, zero=0)
    parent = start(job)
    held = all_held(parent)
    plan = move(parent, job, (2, 4), workers=workers_on(NODES), held=held)
    for seat in plan.seats:
        assert blocks(held[seat.worker_id].optimizer, plan.block) <= blocks(plan.section_of(seat.rank), plan.block)


def test_a_replica_whose_tensor_peer_is_lost_is_the_one_to_go() -> None:
    job = job_of(1, 3, zero=0, tensor=2)
    parent = start(job)
    lost = parent.seats[2].worker_id  # replica 1, coordinate 0
    left = [w for w in seated(parent) if w[0] != lost]
    plan = move(parent, job, (1, 2), workers=left, held={w: held_by(parent, w) for w, _ in left})
    assert [s.worker_id for s in plan.seats] == [parent.seats[r].worker_id for r in (0, 1, 4, 5)]


def test_survivors_keep_their_places_and_the_fresh_fill_the_holes() -> None:
    job = job_of(1, 4)
    parent = start(job)
    left = [w for w in seated(parent) if w[0] != "j/w1"]
    plan = move(parent, job, (1, 4), workers=[*left, ("j/w9", "n9")], held={w: held_by(parent, w) for w, _ in left})
    assert [s.worker_id for s in plan.seats] == ["j/w0", "j/w9", "j/w2", "j/w3"]
    assert plan.layouts == parent.layouts


def test_a_fresh_worker_goes_where_its_node_is_not_yet() -> None:
    job = job_of(2, 2, zero=0)
    parent = start(job, workers_on("abcc"))
    assert [n for _, n in seated(parent)] == ["a", "b", "c", "c"]
    left = [w for w in seated(parent) if w[1] != "b"]
    plan = move(parent, job, (2, 2), workers=[*left, ("j/w8", "a"), ("j/w9", "c")], held={w: held_by(parent, w) for w, _ in left})
    assert seated(plan)[:2] == [("j/w0", "a"), ("j/w9", "c")], "replicas on one node die together, stages do so anyway"


def test_whoever_holds_state_goes_before_who_does_not() -> None:
    job = job_of(1, 3)
    parent = start(job, workers_on("def"))
    plan = move(parent, job, (1, 2), workers=[("a/w8", "a"), ("a/w9", "b"), *seated(parent)[1:]], held=all_held(parent))
    assert {s.worker_id for s in plan.seats} == {"j/w1", "j/w2"}


def test_state_of_another_step_or_degree_does_not_count() -> None:
    job = job_of(1, 2)
    parent = start(job)
    held = all_held(parent)
    held["j/w0"] = replace(held["j/w0"], applied_step=4, params_step=4, prepared_step=4)
    held["j/w1"] = replace(held["j/w1"], tensor=2)
    plan = move(parent, job, (1, 2), workers=seated(parent), held=held)
    assert plan.reason.endswith("100% of the optimizer state moves")
    held["j/w0"] = replace(held["j/w0"], prepared_step=5)
    plan = move(parent, job, (1, 2), workers=seated(parent), held=held)
    assert plan.reason.endswith("50% of the optimizer state moves"), "who is prepared can roll forward"


def test_half_a_reshard_counts() -> None:
    """A worker that broke out of a reshard holds what it had and what it has received."""
    job = job_of(1, 2)
    parent = start(job)
    held = all_held(parent)
    half = (Interval(0, 960), Interval(1200, 1440))  # its own half of the vector, and a bit of the other's
    held["j/w0"] = replace(held["j/w0"], optimizer=merge(half))
    plan = move(parent, job, (1, 1), workers=[("j/w0", "n0")], held={"j/w0": held["j/w0"]})
    assert plan.reason.endswith(f"{1 - 1200 / 1920:.0%} of the optimizer state moves")


def test_on_the_last_node_there_are_no_copies_and_the_reason_says_so() -> None:
    job = job_of(1, 2, copies=1)
    parent = start(job, workers_on("ab"))
    plan = move(parent, job, (1, 1), workers=seated(parent)[:1], held=all_held(parent))
    assert plan.copies == 0
    assert "everything on one rank, without copies because there is no other node" in plan.reason
    again = move(plan, job, (1, 2), workers=seated(parent), held=all_held(plan))
    assert again.copies == 1, "and they come back"
    assert lint(again) == ()


def test_more_ranks_than_blocks() -> None:
    graph = make_graph(16 * 3, block=16)
    job = make_job(data=4, zero_stage=1, copies=1)
    parent = first_plan(job=job, graph=graph, workers=workers_on(NODES), epoch=1)
    plan = replan(
        parent=parent,
        job=job,
        graph=graph,
        workers=workers_on(NODES),
        held=all_held(parent),
        epoch=2,
        pipeline=1,
        data=8,
        reason="grow",
    )
    assert lint(plan) == ()
    assert sum(len(blocks(h.primary, 16)) for h in plan.layout(OPTIMIZER).holdings) == 3


def layers(plan: Plan) -> list[int]:
    """Layers of each stage."""
    return [s.last - s.first for s in plan.stages]


def test_stages_stay_until_their_number_changes() -> None:
    job = make_job(pipeline=2, data=2, layers_per_stage=(1, 3))
    parent = start(job)
    held = all_held(parent)
    workers = workers_on(NODES)
    assert layers(parent) == [1, 3]
    recut = move(parent, job, (2, 2), workers=workers, held=held, layers=(3, 1))
    assert layers(recut) == [3, 1]
    shrunk = move(recut, job, (2, 1), workers=workers, held=held)
    assert layers(shrunk) == [3, 1], "as they are"
    short = move(shrunk, job, (1, 1), workers=workers, held=held)
    assert layers(short) == [4]
    assert layers(move(short, job, (2, 1), workers=workers, held=held)) == [1, 3], "the job's own"
    assert layers(move(short, job, (4, 1), workers=workers, held=held)) == [1, 1, 1, 1], "balanced"


def test_the_schedule_follows_the_stages() -> None:
    job = make_job(pipeline=2, data=1, stages_per_rank=2, schedule=PipelineSchedule.INTERLEAVED)
    parent = start(job)
    assert len(parent.stages) == 4
    plan = move(parent, job, (3, 1), workers=workers_on(NODES), held=all_held(parent))
    assert (len(plan.stages), plan.schedule) == (3, PipelineSchedule.ONE_F_ONE_B)
    assert lint(plan) == ()


@pytest.mark.parametrize(
    ("shape", "layers_per_stage", "words"),
    [
        ((1, 9), (), "^9 ranks need 9 workers, 8 are there$"),
        ((2, 3), (), "^2 micro-batches cannot feed 3 replicas$"),
        ((5, 1), (), "^5 pipeline stages need as many layers, and the model names 4$"),
        ((2, 1), (1, 1), "^layers_per_stage adds up to 2 layers, and the model has 4$"),
        ((3, 1), (4,), "^layers_per_stage lists 1 stages, and the pipeline has 3$"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, int], layers_per_stage: tuple[int, ...], words: str) -> None:
    job = make_job(data=2, micro_batches=2)
    parent = start(job)
    with pytest.raises(PlanError, match=words):
        move(parent, job, shape, workers=workers_on(NODES), held=all_held(parent), layers=layers_per_stage)


def test_beyond_the_exact_assignment() -> None:
    """More workers than are assigned exactly: still everything of a pipeline stays where it is."""
    graph = make_graph(*[40 * 16] * 4, block=16)
    job = make_job(pipeline=4, data=20, zero_stage=1, micro_batches=32)
    workers = workers_on([f"n{i // 4}" for i in range(80)])
    parent = first_plan(job=job, graph=graph, workers=workers, epoch=1)
    held = all_held(parent)
    plan = replan(
        parent=parent, job=job, graph=graph, workers=workers[::-1], held=held, epoch=2, pipeline=4, data=19, reason="less"
    )
    assert lint(plan) == ()
    before = {s.worker_id: parent.coordinates(s.rank)[0] for s in parent.seats}
    assert all(before[s.worker_id] == plan.coordinates(s.rank)[0] for s in plan.seats)
    assert missing(plan, held) == 4 * 2, "a twentieth of each section"
    assert merge(i for h in plan.layout(PARAMS).holdings for i in h.primary) == (Interval(0, plan.section),)
