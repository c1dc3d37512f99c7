"""The published cases are what was published, and the cost model meets the bar on them."""

from __future__ import annotations

import pytest

from bench.published import CALIBRATED, WITHIN, WITHIN_MIN, calibrate, outcome, problem_of, strategy_of
from bench.published_cases import MEGATRON_CASES, OTHER_CASES, OUT_OF_MEMORY, SEQUENCE, Case

ALL = (*MEGATRON_CASES, *OTHER_CASES, *OUT_OF_MEMORY)
DAYS = {  # arXiv 2104.04473 table 2: days for 300 billion tokens
    ("Megatron-LM", "175B on 384"): 84,
    ("Megatron-LM", "175B on 768"): 43,
    ("Megatron-LM", "175B on 1536"): 23,
    ("Megatron-LM", "530B on 560"): 156,
    ("Megatron-LM", "530B on 1120"): 80,
    ("Megatron-LM", "530B on 2240"): 42,
    ("DeepSpeed ZeRO-3", "175B on 384"): 90,
    ("DeepSpeed ZeRO-3", "175B on 768"): 74,
    ("DeepSpeed ZeRO-3", "175B on 1536"): 74,
    ("DeepSpeed ZeRO-3", "530B on 640"): 169,
    ("DeepSpeed ZeRO-3", "530B on 1120"): 137,
    ("DeepSpeed ZeRO-3", "530B on 2240"): 140,
}


def label(case: Case) -> str:
    return f"{case.table}-{case.name}"


def days(case: Case, tokens: float) -> float:
    return tokens / (case.batch * SEQUENCE) * case.measured_s / 86_400


def test_step_times_of_table_2_make_the_published_days() -> None:
    """A throughput and a duration were published of each run: the step time made of the one must give the other."""
    rows = {(c.table.split(",")[0], c.name): c for c in OTHER_CASES if "table 2" in c.table}
    assert rows.keys() == DAYS.keys()
    for key, case in rows.items():
        assert days(case, 300e9) == pytest.approx(DAYS[key], rel=0.03), key


def test_step_time_of_the_largest_makes_the_published_days() -> None:
    """arXiv 2104.04473 section 5.1: 84 days for 450 billion tokens, 502 petaFLOP/s."""
    (largest,) = [c for c in MEGATRON_CASES if c.name == "1008B"]
    assert days(largest, 450e9) == pytest.approx(84, abs=1.5)
    assert largest.tflops * largest.devices / 1e3 == pytest.approx(502, abs=2)


@pytest.mark.parametrize("case", ALL, ids=label)
def test_a_split_covers_its_model_and_its_batch(case: Case) -> None:
    problem, strategy = problem_of(case), strategy_of(case)
    assert sum(strategy.cuts) == len(problem.costs.order) == case.layers + 2
    assert max(strategy.cuts) - min(strategy.cuts) <= (2 if case.pipeline == 1 else 1)
    assert strategy.units * strategy.micro_batches == case.batch
    assert strategy.micro_batches % strategy.data == 0
    assert strategy.ranks == case.devices == len(set(strategy.devices)) <= problem.resources.size
    assert problem.costs.tensor_max % case.tensor == 0


def test_the_bar_is_met_and_what_is_published_ran() -> None:
    outcomes = [outcome(c) for c in MEGATRON_CASES]
    assert sum(abs(o.error) <= WITHIN for o in outcomes) >= WITHIN_MIN
    assert [o.case.name for o in outcomes if not o.estimate.fits] == []


def test_more_devices_are_predicted_to_be_faster_on_the_same_batch() -> None:
    times = [outcome(c).estimate.step_s for c in OTHER_CASES if c.table.startswith("Megatron-LM") and c.name.startswith("175B")]
    assert times == sorted(times, reverse=True)
    assert len(times) == 3


def test_calibration_makes_the_mean_error_of_its_rows_nothing() -> None:
    rows = [c for c in MEGATRON_CASES if c.name in CALIBRATED]
    assert len(rows) == len(CALIBRATED)
    pace = calibrate(rows)
    assert sum(outcome(c, pace=pace).error for c in rows) / len(rows) == pytest.approx(0, abs=2e-3)
