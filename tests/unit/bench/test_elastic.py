"""What the elastic bench makes of step logs and journals, on hand-written ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.baselines.dims import Dims
from bench.baselines.steps import Line, parse
from bench.bench_task import BenchTask
from bench.elastic import Breath, Growth, Shrink, growth_of, numbers, step_ends, table
from orchestrator.core.planner.planner import first_plan
from orchestrator.core.reshard.recovery import Resume, Source
from orchestrator.core.supervisor.commands import Command, RunEpoch
from orchestrator.core.supervisor.events import Event, StepCommitted, Tick
from orchestrator.runtime.ports import Record
from orchestrator.testkit.jobs import make_graph, make_job


def line(t_s: float, worker: int, step: int, rank: int = 0) -> Line:
    return Line(t_s=t_s, worker=worker, pid=worker, event="step", rank=rank, step=step)


def test_a_step_ends_with_the_last_worker_whatever_micro_batches_they_have() -> None:
    fifth = [line(1.0, 11, 5), line(1.2, 12, 5, rank=1), line(1.5, 12, 5, rank=2)]  # 12 has two micro-batches
    sixth = [line(2.0, 11, 6), line(2.1, 12, 6, rank=1), line(2.2, 13, 6, rank=2)]
    assert step_ends(fifth + sixth, workers=2) == {5: 1.2}
    assert step_ends(fifth + sixth, workers=3) == {6: 2.2}
    assert step_ends(fifth + sixth, workers=3, after_s=2.05) == {}


def test_the_first_micro_batch_of_a_step_says_that_the_one_before_is_done(tmp_path: Path) -> None:
    dims = Dims(vocab=8, seq=4, width=8, heads=1, layers=1, micro_batches_per_rank=2)
    task = BenchTask(dims=json.dumps(asdict(dims)), step_log=str(tmp_path / "log"))
    for step, micro_batch in ((1, 1), (2, 3), (2, 4), (2, 5), (3, 5)):  # a share that begins inside a seat's, as after a shrink
        task.batch(seed=1, step=step, micro_batch=micro_batch)
    lines = [at for at in parse((tmp_path / "log").read_text()) if at.event == "step"]
    assert [(at.step, at.rank) for at in lines] == [(1, 1), (1, 2), (2, 2)]


def record(at_ms: int, event: Event, *, phase: str, step: int, commands: tuple[Command, ...] = ()) -> Record:
    return Record(at_ms, at_ms, 0.0, event, commands, "", phase, 1, step)


def committed(at_ms: int, step: int) -> Record:
    event = StepCommitted(at_ms, "j/w0", 1, step, 1.0, 1.0, 1.0, 1e-3, 100.0, 64, False, 1.0)
    return record(at_ms, event, phase="running", step=step)


def run_epoch(ranks: int) -> RunEpoch:
    workers = [(f"j/w{n}", f"n{n}") for n in range(ranks)]
    plan = first_plan(job=make_job(data=ranks), graph=make_graph(4096), workers=workers, epoch=2)
    return RunEpoch("j/w0", plan, Resume(Source.INIT, 0, None, (), (0, 1), "", 0, ()), "h:1")


def tick(at_ms: int, phase: str, step: int, *commands: Command) -> Record:
    return record(at_ms, Tick(at_ms, ()), phase=phase, step=step, commands=commands)


SHRUNK = (tick(10_050, "fencing", 7), tick(10_060, "forming", 7, run_epoch(3)), tick(10_100, "running", 7), committed(10_400, 8))
GROWN = (committed(20_300, 9), tick(20_350, "forming", 9, run_epoch(4)), tick(20_500, "running", 9), committed(20_800, 10))


def test_the_growth_is_found_by_its_plan_and_begins_with_the_last_commit_before() -> None:
    assert growth_of([*SHRUNK, *GROWN[:1]], ranks=4) is None
    assert growth_of([*SHRUNK, *GROWN], ranks=4) == (9, 20.3, GROWN)
    assert growth_of([committed(9_000, 7), *SHRUNK], ranks=3) == (7, 9.0, (committed(9_000, 7), *SHRUNK))


def shrink(*, took_s: float, step_s: float = 0.25) -> Shrink:
    return Shrink(1, 10.0, 10.0 + took_s, step_s, SHRUNK)


def growth(*, end_s: float, step_s: float = 0.25) -> Growth:
    return Growth(20.3, end_s, step_s, GROWN)


def test_bars_and_milestones() -> None:
    assert shrink(took_s=1.5).over_bar == pytest.approx(1.0)  # 2 steps and 1 s
    assert growth(end_s=20.3 + 0.25 + 0.75).over_bar == pytest.approx(1.0)  # 1 step and 0.5 s beyond a usual step
    down, up = shrink(took_s=0.5).milestones(), growth(end_s=20.9).milestones()
    assert down == pytest.approx({"leaving": 0.05, "planned": 0.06, "ready": 0.1, "committed": 0.4, "step done": 0.5})
    assert up == pytest.approx({"planned": 0.05, "ready": 0.2, "committed": 0.5, "step done": 0.6})


def test_figures_are_medians_and_the_first_layout_is_the_claims() -> None:
    first = Breath("zero1", [shrink(took_s=t) for t in (0.75, 1.5, 3.0)], [growth(end_s=20.3 + 0.25 + 0.375)])
    other = Breath("dp", [shrink(took_s=0.3)], [growth(end_s=21.0)] * 2, steps_lost=1)
    found = numbers([first, other], {"zero1": True, "dp": True})
    assert (found["shrink_over_bar"], found["shrink_s"]) == (1.0, 1.5)
    assert (found["grow_over_bar"], found["grow_s"]) == (0.5, 0.375)
    assert found["dp_shrink_over_bar"] == 0.2
    assert (found["rounds"], found["steps_lost"], found["digest_equal"]) == (1, 1, 1)
    assert numbers([first], {"zero1": False})["digest_equal"] == 0
    assert numbers([first], {})["digest_equal"] == 0  # nothing was compared
    assert "nan" not in table([first, other])
