"""Numbers with units: each way to write one, and what is said of one that cannot be read."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from orchestrator.spec.quantities import Dimension, amount

GOOD = [
    ("80 GiB", Dimension.BYTES, 80 * 2**30),
    ("80GB", Dimension.BYTES, 80e9),
    ("1.5 KiB", Dimension.BYTES, 1536),
    ("300 GB/s", Dimension.BANDWIDTH, 300e9),
    ("25 Gbit/s", Dimension.BANDWIDTH, 3.125e9),
    ("1 MiB/s", Dimension.BANDWIDTH, 2**20),
    ("10 us", Dimension.LATENCY, 1e-5),
    ("0 s", Dimension.LATENCY, 0.0),
    ("20 us", Dimension.LATENCY, 2e-5),
    ("30 days", Dimension.DURATION, 30 * 86400),
    ("90 min", Dimension.DURATION, 5400),
    ("312 TFLOP/s", Dimension.FLOPS, 312e12),
    ("2.5e1 GFLOP", Dimension.WORK, 25e9),
]
BAD = [
    ("80", Dimension.BYTES, "is no number with a unit", ""),
    ("GiB", Dimension.BYTES, "is no number with a unit", ""),
    ("-1 GiB", Dimension.BYTES, "is no number with a unit", ""),
    ("80 Gib", Dimension.BYTES, '"Gib" is no unit here', "GiB"),
    ("80 GB/s", Dimension.BYTES, '"GB/s" is no unit here', "GB"),
    ("25 Gbps", Dimension.BANDWIDTH, '"Gbps" is no unit here', "Gbit/s"),
    ("25 Gb/s", Dimension.BANDWIDTH, '"Gb/s" is no unit here', "Gbit/s or GB/s"),
    ("10 \u00b5s", Dimension.LATENCY, "is no unit here", "us"),
    ("312 TFLOPS", Dimension.FLOPS, '"TFLOPS" is no unit here', "TFLOP/s"),
    ("30 d", Dimension.DURATION, '"d" is no unit here', "days"),
    ("11 s", Dimension.LATENCY, "must be from 0 s to 10 s", ""),
    ("2 PiB", Dimension.BYTES, "must be from 1 B to 1 PiB", ""),
]


@pytest.mark.parametrize(("text", "dimension", "value"), GOOD)
def test_amounts(text: str, dimension: Dimension, value: float) -> None:
    assert amount(text, dimension) == value


@pytest.mark.parametrize(("text", "dimension", "message", "nearest"), BAD)
def test_refusals(text: str, dimension: Dimension, message: str, nearest: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        amount(text, dimension)
    assert caught.value.context is not None
    assert message in caught.value.context["message"]
    assert caught.value.context["nearest"] == nearest
    assert caught.value.context["fix"]


@given(st.text(max_size=20), st.sampled_from(Dimension))
def test_any_text_is_an_amount_or_a_refusal(text: str, dimension: Dimension) -> None:
    with suppress(PydanticCustomError):
        assert amount(text, dimension) >= 0
