"""What layered training means, written down as plainly as it goes, and pipelines of real processes to compare with it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.core.job import Precision
from orchestrator.core.plan.plan import MeshAxis, PipelineSchedule, Plan, Seat, Stage
from orchestrator.engine.task import Task, seed_drawing, seed_everything
from tests.unit.engine.forking import CONTEXT

SEED, STEP, SCALE = 3, 5, 1 / 6
Grads = dict[str, Tensor]


def build(task: Task) -> nn.Module:
    """The model as the engine has it: what is tied across layers is a parameter of each, gradients lie ready."""
    seed_everything(seed=SEED, step=-1, micro_batch=0)
    model = task.build_model()
    seen: set[int] = set()
    for _, layer in task.stack(model):
        mine = {id(p) for p in layer.parameters()}
        for owner in layer.modules():
            for key, p in owner._parameters.items():
                if p is not None and id(p) in seen:
                    owner._parameters[key] = nn.Parameter(p.detach().clone())
        seen |= mine
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    return model


def bare(task: Task, numbers: Sequence[int], precision: Precision = Precision.FP32) -> tuple[list[float], Grads]:
    """What training means, in ten lines: no stage, no cut, one graph."""
    model, losses = build(task), []
    for number in numbers:
        seed_drawing(seed=SEED, step=STEP, micro_batch=number)
        batch = task.batch(seed=SEED, step=STEP, micro_batch=number)
        x = task.inputs(batch)
        for k, (_, layer) in enumerate(task.stack(model)):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision is Precision.BF16):
                seed_everything(seed=SEED, step=STEP, micro_batch=number, layer=k)
                x = layer(x).contiguous()
            if k:
                x.register_hook(Tensor.contiguous)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is Precision.BF16):
            loss = task.criterion(x, batch)
        (loss * SCALE).backward()
        losses.append(loss.item())
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: tuple[list[float], Grads], wanted: tuple[list[float], Grads]) -> None:
    assert found[0] == wanted[0]
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(found[1][name], gradient), name


# ------------------------------------------------------------------------------------------------------------- pipelines


def make_plan(
    layers: int,
    *,
    pipeline: int = 1,
    data: int = 1,
    tensor: int = 1,
    per_rank: int = 1,
    schedule: PipelineSchedule = PipelineSchedule.ONE_F_ONE_B,
    recompute: bool = False,
) -> Plan:
    """As much of a plan as computing needs; the first stages have the odd layers."""
    n, size = pipeline * per_rank, pipeline * data * tensor
    bounds = [-(-layers * s // n) for s in range(n + 1)]
    return Plan(
        job="j",
        epoch=1,
        parent=0,
        mesh=(MeshAxis("pipeline", pipeline), MeshAxis("data", data), MeshAxis("tensor", tensor)),
        zero_stage=0,
        shard=data,
        copies=0,
        micro_batches=6,
        shares=(),
        block=1024,
        section=1024,
        stages=tuple(Stage(bounds[s], bounds[s + 1], 0, 0) for s in range(n)),
        schedule=schedule,
        recompute=(recompute,) * n,
        checkpoint_every=0,
        seats=tuple(Seat(r, f"w{r}", f"n{r}") for r in range(size)),
        layouts=(),
        reason="",
    )


@dataclass
class Told:
    """What one rank of a test has to say."""

    losses: list[dict[int, float]] = field(default_factory=list)  # of each run
    grads: Grads = field(default_factory=dict)  # of its own layers
    evaluated: dict[int, float] = field(default_factory=dict)


def _rank(link: Connection, endpoint: str, rank: int, plan: Plan, task: Task, runs: Sequence[Sequence[int]]) -> None:
    try:
        link.send(_train(endpoint, rank, plan, task, runs))
    except BaseException:
        link.send(traceback.format_exc())
    link.recv()  # peers may still be reading from our group
    os._exit(0)


def _train(endpoint: str, rank: int, plan: Plan, task: Task, runs: Sequence[Sequence[int]]) -> Told:
    from orchestrator.engine.control import Control
    from orchestrator.engine.faults import FaultBox
    from orchestrator.engine.layered import LayeredStage
    from orchestrator.engine.pipeline import PipelineRunner
    from tests.unit.engine.groups_world import form

    torch.set_num_threads(1)
    model = build(task)
    layers = [layer for _, layer in task.stack(model)]
    stages = {
        s: LayeredStage(
            task,
            model,
            seed=SEED,
            scale=SCALE,
            stage=s,
            first=plan.stages[s].first,
            last=plan.stages[s].last,
            recompute=plan.recompute[s],
        )
        for s in plan.stages_of(rank)
    }
    own = {id(p) for s in stages.values() for k in s.layers for p in layers[k].parameters()}
    group = form(endpoint, rank=rank, size=plan.size)
    runner = PipelineRunner(plan=plan, rank=rank, group=group, stages=stages, control=Control(), faults=FaultBox())
    replica, replicas = plan.coordinates(rank)[1], plan.axis("data")
    told = Told()
    for numbers in runs:
        told.losses.append(runner.run(STEP, numbers[replica::replicas]))
    told.evaluated = runner.evaluate(list(range(replica, 5, replicas)))
    told.grads = {n: p.grad for n, p in model.named_parameters() if id(p) in own and p.grad is not None}
    return told


def run_plan(task: Task, plan: Plan, *runs: Sequence[int]) -> list[Told]:
    """Each run's micro-batches, dealt out to the plan's replicas, on a process per rank; gradients add up over the runs."""
    from orchestrator.engine.groups import StoreServer
    from tests.unit.engine.groups_world import DEADLINE_S, HOST

    with closing(StoreServer(HOST)) as server:
        links, processes = [], []
        try:
            for rank in range(plan.size):
                here, there = CONTEXT.Pipe()
                arguments = (there, server.endpoint, rank, plan, task, runs)
                processes.append(CONTEXT.Process(target=_rank, args=arguments, daemon=True))
                processes[-1].start()
                there.close()
                links.append(here)
            answers: list[Any] = []
            for rank, link in enumerate(links):
                assert link.poll(2 * DEADLINE_S), f"rank {rank} said nothing within {2 * DEADLINE_S} s"
                answers.append(link.recv())
            wrong = [f"rank {rank}: {answer}" for rank, answer in enumerate(answers) if isinstance(answer, str)]
            assert not wrong, "\n".join(wrong)
            for link in links:
                link.send(None)
            return answers
        finally:
            for process in processes:
                process.kill()
                process.join(DEADLINE_S)
