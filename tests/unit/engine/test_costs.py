"""What a model costs, traced on fake tensors: counted by hand, and the same as in a run in earnest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.job import Job, Precision, TaskRef
from orchestrator.engine.costs import trace
from orchestrator.engine.describe import describe
from orchestrator.engine.task import TaskError
from orchestrator.testkit.jobs import make_job

HERE = str(Path(__file__).parent)


def job_of(target: str, *, precision: Precision = Precision.FP32, **options: object) -> Job:
    return make_job(task=TaskRef(target, json.dumps(options, sort_keys=True), HERE), precision=precision)


def silent(text: str) -> None:
    raise AssertionError(f"nothing is to be said: {text}")


def traced(target: str, **options: object) -> ModelCosts:
    return trace(make_job(task=TaskRef(target, json.dumps(options, sort_keys=True), HERE)), say=silent)


def test_a_stack_counted_by_hand() -> None:
    costs = traced("costs_task.py:Stack")
    assert costs.order == (0, 1, 2), "the first tower's input wants no gradient, so the second costs more in the backward pass"
    first, second, wide = costs.layers
    b, w, h = 8, 16, 24
    assert [c.params for c in costs.layers] == [2 * w * h + h + w, 2 * w * h + h + w, 4 * w * h + 2 * h + w]
    assert [c.forward_flops for c in costs.layers] == [4 * b * w * h, 4 * b * w * h, 8 * b * w * h]
    assert first.backward_flops == 6 * b * w * h
    assert second.backward_flops == 8 * b * w * h
    assert second.kept_bytes == 4 * (b * w + b * h), "the input, and ReLU's output, which both ReLU and `down` keep"
    assert wide.kept_bytes >= 4 * (b * w + 2 * b * h + b * w), "its output as well: the criterion wants it"
    assert second.boundary_bytes == 4 * b * w
    assert second.work_bytes >= 4 * (b * h + b * w)
    assert costs.samples_per_unit == b
    assert costs.splits


def test_what_tensor_parallelism_cuts() -> None:
    costs = traced("costs_task.py:Stack")
    b, w, h = 8, 16, 24
    for cost, n in zip(costs.layers, (1, 1, 2), strict=True):
        assert cost.cut_params == 2 * w * h * n + h * n, "not the bias of the row-wise one"
        assert cost.cut_forward_flops == cost.forward_flops
        assert cost.cut_backward_flops == cost.backward_flops
        assert cost.cut_kept_bytes == 4 * b * h * n
        assert cost.reduced_bytes == 4 * b * w
    assert costs.tensor_max == 24


def test_a_gpt_by_the_formulas_and_folded() -> None:
    width, length, batch, vocab = 64, 32, 2, 256
    costs = traced("gpt", layers=5, width=width, heads=4, context=length, batch_size=batch)
    assert costs.order == (0, 1, 1, 1, 1, 1, 2)
    assert [k.name for k in costs.kinds] == ["embed", "block", "head"]
    tokens = length * batch
    block, head = costs.kinds[1], costs.kinds[2]
    attention = 4 * length * width * tokens
    assert block.forward_flops == 24 * width**2 * tokens + attention
    assert block.backward_flops == 48 * width**2 * tokens + 2.5 * attention
    assert block.params == 12 * width**2 + 13 * width
    assert head.forward_flops == 2 * width * vocab * tokens
    assert head.boundary_bytes == 4, "a loss"
    assert block.kept_bytes == 4 * tokens * (16 * width + 2 * 2 + 4), (
        "Korthikanti et al., arXiv 2205.05198, in fp32 with flash attention"
    )
    assert costs.tensor_max == 4, "heads"


def test_it_agrees_with_the_state_that_is_laid_out() -> None:
    for target in ("gpt", "layered_task.py:Layered", "engine_task.py:Tiny"):
        job = job_of(target)
        graph = describe(job)
        trainable = sum(t.stop - t.start for t in graph.tensors if t.trainable)
        assert trace(job, say=silent).params == trainable
        assert len(trace(job, say=silent).order) == len(graph.layers)


def test_code_that_looks_at_values_is_run_and_that_is_said() -> None:
    said: list[str] = []
    peeking = trace(job_of("costs_task.py:Stack", peeks=True), say=said.append)
    assert len(said) == 1
    assert "on the CPU instead" in said[0]
    fake = traced("costs_task.py:Stack")
    assert peeking.kinds[:2] == fake.kinds[:2], "fake tensors and real ones are measured alike"
    assert peeking.kinds[2].kept_bytes == fake.kinds[2].kept_bytes


def test_a_task_in_one_piece() -> None:
    costs = traced("engine_task.py:Tiny")
    assert costs.order == (0,)
    assert not costs.splits
    assert costs.tensor_max == 1
    (whole,) = costs.kinds
    assert whole.forward_flops == 2 * 4 * (48 * 96 + 2 * 96 * 48)
    assert whole.buffers == 2 * 96 + 1 + 3, "the batch norm's, and what is frozen"


def test_bf16_keeps_less() -> None:
    half = trace(job_of("gpt", precision=Precision.BF16, layers=1), say=silent)
    full = trace(job_of("gpt", layers=1), say=silent)
    assert half.kinds[1].kept_bytes < 0.9 * full.kinds[1].kept_bytes
    assert half.kinds[1].forward_flops == full.kinds[1].forward_flops


def test_a_mistake_of_the_users() -> None:
    with pytest.raises(TaskError, match="the user's own mistake"):
        trace(job_of("costs_task.py:Stack", fails=True), say=lambda _: None)


def test_a_model_of_any_size() -> None:
    costs = traced("gpt", layers=24, width=8192, heads=64, context=256, batch_size=1)
    assert costs.params > 19e9, "73 GiB, which nobody has touched"
    assert len(costs.kinds) == 3
