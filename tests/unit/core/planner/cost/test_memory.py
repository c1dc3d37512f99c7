"""Memory against sums made by hand."""

from __future__ import annotations

import pytest

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.estimate import Costing
from orchestrator.core.planner.cost.memory import ARRIVED, sums_of
from orchestrator.core.planner.cost.programs import FAST, MEGATRON, OURS
from orchestrator.core.planner.strategy import Memory
from tests.unit.core.planner.cost.problems import cluster, layer, model, problem, strategy

E = 2_000_000  # elements of two layers
TWO = model(layer(), layer())


def memory_of(program: str = "ours", nodes: int = 2, devices: int = 2, batch: int = 8, **changes: object) -> tuple[Memory, ...]:
    made = strategy(**{"cuts": (2,), "micro_batches": batch, **changes})
    return Costing(problem(TWO, cluster(nodes, devices), batch=batch, program=program)).memory(made)


def test_one_rank_keeps_weights_moments_sums_and_one_micro_batch() -> None:
    (m,) = memory_of()
    assert (m.weights, m.optimizer) == (4 * E, 8 * E)
    assert m.gradients == 4 * (4 + 1) * E  # 8 micro-batches: memory for five is taken beforehand, which sums never need
    first, _ = memory_of(tensors=(1, 1), cuts=(1, 1))
    assert first.gradients == 4 * (3 + 1) * E / 2  # three sums of the tree at once, and the reduced gradient
    (cut,) = memory_of(tensors=(2,))
    assert cut.gradients == 4 * (3 + 1) * 0.75 * E
    assert (m.activations, m.work) == (2 * 8e6, 2e6)
    assert (m.copies, m.buffers, m.other) == (0.0, 0.0, OURS.rank_bytes)
    assert m.total == m.weights + m.gradients + m.optimizer + m.activations + m.work + m.other
    assert m.limit == 8 << 30


def test_zero_stages_shard_one_after_the_other() -> None:
    """Rajbhandari et al., arXiv 1910.02054, figure 1: 2 + 2 + 12 bytes, here with 4 for fp32 main gradients."""
    by_stage = [memory_of("megatron", data=4, zero=z, shard=4 if z else 1)[0] for z in range(4)]
    assert [m.weights / E for m in by_stage] == [2, 2, 2, 0.5]
    assert [m.gradients / E for m in by_stage] == [4, 4, 1, 1]
    assert [m.optimizer / E for m in by_stage] == [12, 3, 3, 3]
    assert by_stage[0].other == MEGATRON.rank_bytes


def test_our_streamed_gradients_and_weights_pass_through_buffers_of_each_layers_size() -> None:
    unlike = model(layer(params=1_000_000), layer(params=2_000_000), layer(params=2_000_000), layer(params=3_000_000))
    costing = Costing(problem(unlike, cluster(2, 1)))
    two, three = (costing.memory(strategy(data=2, cuts=(4,), micro_batches=8, zero=z, shard=2))[0].work for z in (2, 3))
    assert two == 2e6 + 4 * max(4 * 3e6, 2 * (1e6 + 2e6 + 3e6))
    assert three == two + 4 * 6e6


def test_shards_inside_groups_are_larger() -> None:
    assert memory_of("megatron", data=4, zero=1, shard=2)[0].optimizer == 6 * E


def test_tensor_ranks_have_their_cut() -> None:
    (m,) = memory_of(tensors=(2,))
    assert m.weights == 4 * 0.75 * E
    assert m.activations == 2 * (4e6 + 2e6)


def test_our_reduction_needs_two_rounds_of_pieces_where_no_sum_has_left_room() -> None:
    (m,) = memory_of(data=2, batch=8, tensors=(1,), zero=1, shard=2)
    assert m.gradients == 4 * (4 + 0.5) * E  # 4 micro-batches of each: memory for four sums, two are needed
    assert m.buffers == 0.0
    wide = memory_of(data=2, tensors=(2,), zero=1, shard=2)[0]
    assert wide.gradients == 4 * (2 + 0.5) * 0.75 * E
    assert wide.buffers == 2 * 4 * 0.75 * E / 2


def test_the_first_rank_of_a_pipeline_keeps_most() -> None:
    first, last = memory_of(tensors=(1, 1), cuts=(1, 1))
    assert (first.activations, last.activations) == (2 * 8e6, 8e6)
    assert first.buffers == 2 * 1e6  # an activation and a gradient
    halves = memory_of(tensors=(1, 1), cuts=(1, 1), schedule=PipelineSchedule.ZERO_BUBBLE)
    assert [m.activations for m in halves] == [2 * 8e6, 2 * 8e6 + 2 * ARRIVED * 8e6]  # one is put off, one just comes in
    other = memory_of("megatron", tensors=(1, 1), cuts=(1, 1), schedule=PipelineSchedule.ZERO_BUBBLE)
    assert [m.activations for m in other] == [2 * 8e6, 2 * 8e6]


def test_recomputation_keeps_outputs_and_works_on_a_layer_at_a_time() -> None:
    (m,) = memory_of(recompute=(True,))
    assert (m.activations, m.work) == (2 * 1e6, 8e6 + 2e6)


def test_several_stages_per_rank_keep_more() -> None:
    costs = model(*[layer()] * 4)
    (first, _) = Costing(problem(costs, cluster(1, 2))).memory(
        strategy(tensors=(1, 1), cuts=(1, 1, 1, 1), schedule=PipelineSchedule.INTERLEAVED, micro_batches=8)
    )
    assert first.gradients == 4 * (3 + 1 + 1) * E  # a spare sum of each stage
    assert first.activations == 5 * 8e6  # warm-up 2 (p - 1) + (v - 1) p = 4, and one more


def test_copies_are_kept_where_a_part_has_one_holder_only() -> None:
    assert memory_of(data=4, zero=1, shard=4, copies=1)[0].copies == (8 + 4) * E / 4  # moments and reduced gradient
    assert memory_of(data=4, copies=1)[0].copies == 0.0  # replicas on two nodes hold everything
    assert memory_of(data=2, copies=1, zero=1, shard=2, nodes=1)[0].copies == 0.0  # nowhere to put them
    pipeline = memory_of(tensors=(1, 1), cuts=(1, 1), copies=1, devices=1)
    assert [m.copies for m in pipeline] == [(4 + 8 + 4) * E / 2] * 2  # and weights, of the other stage


def test_the_lasting_state_grows_by_the_bytes_of_an_element() -> None:
    p = problem(TWO, cluster(2, 2))
    costing = Costing(p)
    for zero in range(4):
        shard = 2 if zero else 1
        s = strategy(data=2, tensors=(1, 1), cuts=(1, 1), micro_batches=8, zero=zero, shard=shard)
        each = costing.element_bytes(pipeline=2, tensor=1, zero=zero, shard=shard, shares=(4, 4))
        for m in costing.memory(s):
            assert each * E / 2 == pytest.approx(m.weights + m.gradients + m.optimizer)


def test_fast_sums_need_one_gradient_and_stream_as_exact_ones_do() -> None:
    shares = (3, 3)
    for zero in (0, 1):
        fast = sums_of(FAST, zero=zero, micro_batches=6, shares=shares, pipeline=2, tensor=1)
        assert (fast.whole, fast.own, fast.sent, fast.spare) == (1, 0, 1, 0)
        assert sums_of(OURS, zero=zero, micro_batches=6, shares=shares, pipeline=2, tensor=1).sent == 2
        alone = sums_of(FAST, zero=zero, micro_batches=6, shares=shares, pipeline=1, tensor=1)
        assert alone.whole + alone.spare == 2 + zero, "what is taken beforehand does not depend on the consistency"
    for zero in (2, 3):
        fast, exact = (sums_of(p, zero=zero, micro_batches=6, shares=shares, pipeline=2, tensor=1) for p in (FAST, OURS))
        assert fast == exact
