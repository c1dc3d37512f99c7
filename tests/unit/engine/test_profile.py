"""Seconds of each kind of layer, measured: complete, interruptible, and without a trace in what a worker holds."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.core.job import Job, TaskRef
from orchestrator.engine.costs import trace
from orchestrator.engine.describe import build_seeded
from orchestrator.engine.profile import with_timings
from orchestrator.engine.task import TaskError
from orchestrator.engine.tasks.loading import load_task
from orchestrator.testkit.jobs import make_job

HERE = str(Path(__file__).parent)


def job_of(target: str, **options: object) -> Job:
    return make_job(task=TaskRef(target, json.dumps(options, sort_keys=True), HERE))


@pytest.mark.parametrize("target", ["layered_task.py:Layered", "engine_task.py:Tiny", "gpt"])
def test_every_kind_gets_its_seconds(target: str) -> None:
    job = job_of(target)
    costs = trace(job)
    timed = with_timings(costs, job, device_name="cpu", limit_s=0.05)
    for kind in timed.kinds:
        timing = kind.timing("cpu")
        assert timing is not None
        assert timing.forward_s > 0
        assert timing.backward_s > 0
    assert replace(timed, kinds=costs.kinds) == costs
    assert tuple(replace(k, timings=()) for k in timed.kinds) == costs.kinds


def test_a_second_profile_replaces_the_first_and_leaves_other_devices() -> None:
    job = job_of("layered_task.py:Layered")
    costs = trace(job)
    for name in ("old", "cpu", "cpu"):
        costs = with_timings(costs, job, device_name=name, limit_s=0.0)
    assert [t.device for t in costs.kinds[0].timings] == ["old", "cpu"]


def test_it_stops_when_told() -> None:
    job = job_of("layered_task.py:Layered")
    costs = trace(job)
    asked = itertools.count()
    assert with_timings(costs, job, device_name="cpu", limit_s=60.0, stop=lambda: next(asked) >= 3) == costs
    assert next(asked) == 4, "it was asked between runs"
    asked = itertools.count()
    enough = with_timings(costs, job, device_name="cpu", limit_s=60.0, stop=lambda: next(asked) >= 12)
    assert all(k.timing("cpu") for k in enough.kinds), "5 warm-ups and one round"


def test_what_a_worker_holds_stays_as_it_is() -> None:
    job = job_of("engine_task.py:Tiny")
    task = load_task(job.task)
    module = build_seeded(task, seed=1)
    gradients = {n: torch.ones_like(p) for n, p in module.named_parameters() if p.requires_grad}
    for name, p in module.named_parameters():
        p.grad = gradients.get(name)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with_timings(trace(job), job, device_name="cpu", limit_s=0.0, task=task, module=module)
    for name, t in module.state_dict().items():
        assert torch.equal(t, before[name]), name
    for name, p in module.named_parameters():
        assert p.grad is gradients.get(name)
        assert p.grad is None or torch.equal(p.grad, torch.ones_like(p))


def test_a_mistake_of_the_users() -> None:
    job = job_of("costs_task.py:Stack")
    with pytest.raises(TaskError, match="the user's own mistake"):
        with_timings(trace(job), job_of("costs_task.py:Stack", fails=True), device_name="cpu", limit_s=0.0)
