"""The builder of jobs: any field by its name, and nothing else."""

from __future__ import annotations

from dataclasses import fields

import pytest

from orchestrator.core.graph.space import space_of
from orchestrator.core.job import CheckpointSettings, DeviceKind, Job
from orchestrator.core.plan.lint import lint
from orchestrator.core.planner.planner import first_plan
from orchestrator.testkit.jobs import make_graph, make_job


def sections(job: Job) -> dict[str, object]:
    """Every part of a job that has fields of its own."""
    return {
        "job": job,
        "task": job.task,
        "train": job.train,
        "optimizer": job.train.optimizer,
        "parallel": job.parallel,
        "cluster": job.cluster,
        "checkpoint": job.checkpoint,
        "resilience": job.resilience,
    }


def test_no_two_sections_share_a_name() -> None:
    names = [f.name for part in sections(make_job()).values() for f in fields(part)]  # type: ignore[arg-type]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "value", "section"),
    [
        ("name", "x", "job"),
        ("base_dir", "/x", "task"),
        ("steps", 3, "train"),
        ("lr", 0.5, "optimizer"),
        ("pipeline", 3, "parallel"),
        ("device", DeviceKind.CUDA, "cluster"),
        ("keep", 7, "checkpoint"),
        ("ranks_min", 2, "resilience"),
        ("checkpoint", CheckpointSettings("/c", 1, 2), "job"),
    ],
)
def test_a_field_goes_where_it_belongs(name: str, value: object, section: str) -> None:
    assert getattr(sections(make_job(**{name: value}))[section], name) == value


def test_there_are_as_many_nodes_as_the_ranks_need() -> None:
    assert make_job(data=3, pipeline=3, slots_per_node=2).cluster.nodes == 5
    assert make_job(data=3, nodes=9).cluster.nodes == 9


def test_what_no_job_has_is_refused() -> None:
    with pytest.raises(TypeError, match="a job has no datta, stepz"):
        make_job(stepz=1, datta=2)


def test_the_default_job_has_a_plan() -> None:
    plan = first_plan(job=make_job(), graph=make_graph(), workers=[("a", "n0"), ("b", "n1")], epoch=1)
    assert lint(plan) == ()


@pytest.mark.parametrize("block", [0, 4])
def test_a_graph_has_one_parameter_per_layer(block: int) -> None:
    graph = make_graph(5, 4000, block=block)
    assert [(t.layer, t.shape) for t in graph.tensors] == [(0, (5,)), (1, (4000,))]
    assert graph.block == (block or 1024)
    assert space_of(graph, 1).section == graph.padded_numel == graph.layers[-1].stop
