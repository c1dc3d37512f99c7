"""The probe of a device: what its numbers mean, that they hold together, and that it stops when asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from orchestrator.core.cluster.known import KERNELS_OF_LAYER
from orchestrator.core.job import Precision
from orchestrator.engine import probe
from orchestrator.engine.probe import ProbeStopped, fitted, measure_device

CPU = torch.device("cpu")


def test_the_fit_finds_a_rate_and_what_starting_costs() -> None:
    rate, half = 50e9, 1e6
    works = [2.0 * n**3 for n in (32, 128, 512, 4096)]
    flops, found = fitted([(work, (work + half) / rate) for work in works])
    assert flops == pytest.approx(rate, rel=1e-3)
    assert found == pytest.approx(half, rel=0.01)


def test_where_small_is_as_fast_as_large_nothing_is_lost() -> None:
    assert fitted([(1e6, 1e-4), (1e9, 1e-1)]) == (1e10, 0.0)


def test_a_slower_device_is_measured_as_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(factor: float) -> object:
        """Every product takes (work + 1e5) / (1e9 / factor) seconds, every sum 12 bytes / 1e9 per element."""

        def of(device: torch.device) -> object:
            return lambda work, calls: calls * factor * ((2 * work().shape[0] ** 3 + 1e5) / 1e9 if work().dim() == 2 else 0.1)

        return of

    monkeypatch.setattr(probe, "_SIZES_CPU", (16, 32, 64))
    monkeypatch.setattr(probe, "_VECTOR_CPU", 1000)
    found = []
    for factor in (1.0, 2.0):
        monkeypatch.setattr(probe, "_clock", clock(factor))
        found.append(measure_device(CPU, slots=1, seconds=0.0))
    fast, slow = found
    assert fast.flops == pytest.approx(2 * slow.flops)
    assert fast.bandwidth == pytest.approx(2 * slow.bandwidth) == 12 * 1000 / 0.1
    assert fast.half_flops == pytest.approx(slow.half_flops)
    assert 0 < fast.half_flops < 1e5 * KERNELS_OF_LAYER


def test_this_machine_with_one_thread() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        got = measure_device(CPU, slots=2, seconds=0.2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert (got.kind, bool(got.model)) == ("cpu", True)
    assert 1e8 < got.flops < 1e13
    assert 1e8 < got.bandwidth < 1e12
    assert got.half_flops < got.flops
    assert got.memory_bytes > 1 << 20


def test_products_are_of_the_jobs_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def clock(device: torch.device) -> object:
        def of(work: Callable[[], torch.Tensor], calls: int) -> float:
            seen.add((work().dim(), work().dtype))
            return float(calls)

        return of

    monkeypatch.setattr(probe, "_SIZES_CPU", (16,))
    monkeypatch.setattr(probe, "_VECTOR_CPU", 1000)
    monkeypatch.setattr(probe, "_clock", clock)
    measure_device(CPU, slots=1, precision=Precision.BF16, seconds=0.0)
    assert seen == {(2, torch.bfloat16), (1, torch.float32)}


def test_it_stops() -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(ProbeStopped):
        measure_device(CPU, slots=1, stop=stop)
    assert len(asked) == 3


def test_products_that_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def product(device: torch.device, n: int, *_: object) -> float:
        sizes.append(n)
        return 2.0 * n**3 / 1e6  # a very slow device

    monkeypatch.setattr(probe, "_product_s", product)
    monkeypatch.setattr(probe, "_bandwidth", lambda *_: 1.0)
    assert measure_device(CPU, slots=1).flops == 1e6
    assert sizes == [32, 64]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    got = measure_device(device, slots=1, precision=Precision.BF16)
    assert got.kind == "cuda"
    assert got.model == torch.cuda.get_device_name(device)
    assert 1e12 < got.flops < 1e16
    assert 1e11 < got.bandwidth < 1e14
    assert 1 << 30 < got.memory_bytes <= torch.cuda.mem_get_info(device)[1]
