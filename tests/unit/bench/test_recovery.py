"""What the recovery bench makes of step logs, journals and the peers' words, on hand-written ones."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bench.baselines.dims import Dims
from bench.bench_task import bench_job
from bench.recovery import Kill, Storm, numbers, table
from orchestrator.core.planner.planner import first_plan
from orchestrator.core.reshard.recovery import Resume, Source
from orchestrator.core.supervisor.commands import Command, FenceEpoch, RunEpoch
from orchestrator.core.supervisor.events import Tick
from orchestrator.runtime.ports import Record
from orchestrator.testkit.jobs import make_graph

GRAPH = make_graph(4096)
PLAN = first_plan(job=bench_job("j", Dims(), ranks=2, steps=9), graph=GRAPH, workers=[("j/w0", "n0"), ("j/w1", "n1")], epoch=2)
RUN = RunEpoch("j/w0", PLAN, Resume(Source.INIT, 0, None, (), (0, 1), "", 0, ()), "h:1")


def record(at_ms: int, *, phase: str, epoch: int, step: int, commands: tuple[Command, ...] = ()) -> Record:
    return Record(at_ms, at_ms, 0.0, Tick(at_ms, ()), commands, "", phase, epoch, step)


STORY = (
    record(10_010, phase="running", epoch=1, step=5),
    record(10_020, phase="fencing", epoch=1, step=5, commands=(FenceEpoch("j/w0", 1),)),
    record(10_050, phase="forming", epoch=2, step=5, commands=(RUN,)),
    record(10_200, phase="running", epoch=2, step=5),
    record(10_400, phase="running", epoch=2, step=6),
    record(10_700, phase="running", epoch=2, step=7),
)


def kill(what: str = "worker", *, took_s: float = 0.5, step_s: float = 0.2, records: tuple[Record, ...] = STORY) -> Kill:
    return Kill(what, 1, 10.0, 10.0 + took_s, step_s, records)


def test_milestones_are_counted_from_the_kill() -> None:
    found = kill().milestones()
    assert list(found) == ["detected", "planned", "ready", "committed", "step whole"]
    assert list(found.values()) == pytest.approx([0.02, 0.05, 0.2, 0.4, 0.5])


def test_a_story_that_ends_early_has_fewer_milestones() -> None:
    assert list(kill(records=STORY[:2]).milestones()) == ["detected", "step whole"]
    assert list(kill(records=()).milestones()) == ["step whole"]


def test_a_step_of_the_broken_epoch_is_not_the_next_one() -> None:
    late = (STORY[0], record(10_015, phase="running", epoch=1, step=6), *STORY[1:3])
    assert "committed" not in kill(records=late).milestones()


def test_the_bar_is_one_and_a_half_steps_and_three_tenths() -> None:
    assert kill(took_s=0.6, step_s=0.2).over_bar == pytest.approx(1.0)


PEERS: dict[str, dict[str, Any]] = {
    "torchrun": {"available": True, "median_s": 5.0, "times_s": [5.0], "median_step_s": 0.3, "steps_redone": [7]},
    "torchft": {"available": False, "why": "no wheel for this machine"},
}


def test_figures_are_medians_and_a_peer_that_is_missing_has_none() -> None:
    dp = Storm("dp", [kill(took_s=0.4), kill(took_s=0.5), kill(took_s=0.9), kill("node", took_s=2.0)])
    zero1 = Storm("zero1", [kill(took_s=0.6)], steps_lost=1)
    found = numbers([dp, zero1], {"dp": True, "zero1": False}, PEERS)
    assert found["dp_s"] == 0.5
    assert found["dp_over_bar"] == round(0.5 / 0.6, 3)
    assert found["dp_node_s"] == 2.0
    assert found["zero1_over_bar"] == 1.0
    assert (found["steps_lost"], found["digest_equal"], found["kills"]) == (1, 0, 5)
    assert found["torchrun_ratio"] == round(5.0 / 0.55, 2)
    assert "torchft_ratio" not in found
    assert not any(isinstance(v, float) and math.isnan(v) for v in found.values())
    zero1.kills.append(kill("node", records=STORY[:2]))
    shown = table([dp, zero1], PEERS)
    assert "not measured: no wheel for this machine" in shown
    assert "nan" not in shown
