"""Measures the device that this worker computes on, in the way that the engine uses it: one thread, or one accelerator.

Large matrix products tell FLOP/s, small ones how much of a pass is lost to starting it, a sum of two long vectors the bandwidth
of its memory. Other processes take time away and never give any, so of several runs of each the fastest counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from orchestrator.core.cluster.known import KERNELS_OF_LAYER
from orchestrator.core.cluster.measured import DeviceMeasure
from orchestrator.core.job import Precision
from orchestrator.engine.device_memory import usable_bytes
from orchestrator.engine.devices import model_of, module_of

SECONDS: Final = 1.5
_SIZES_CPU: Final = (32, 64, 128, 256, 512, 1024)  # rows of square matrices
_SIZES_ACCELERATOR: Final = (256, 512, 1024, 2048, 4096, 8192)
_VECTOR_CPU: Final = 8 << 20  # elements; several times what caches hold
_VECTOR_ACCELERATOR: Final = 64 << 20
_RUNS_MIN: Final = 3  # of one product: the first one, one to see how long it takes, one that counts
_STRETCH_S: Final = 0.002  # runs are repeated until they take this long, and timed together


class ProbeStopped(Exception):
    """`stop` has said so."""


def measure_device(
    device: torch.device,
    *,
    slots: int,
    precision: Precision = Precision.FP32,
    seconds: float = SECONDS,
    stop: Callable[[], bool] = lambda: False,
) -> DeviceMeasure:
    """Takes about `seconds`; large products are left out where they would take longer than their share.

    `slots`: workers that share the memory of this machine (of no matter for an accelerator, which has its own). `precision`: that
    of the job's matrix products. Raises ProbeStopped; torch.OutOfMemoryError where even this small work finds no room.
    """
    dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
    accelerated = device.type != "cpu"
    sizes = _SIZES_ACCELERATOR if accelerated else _SIZES_CPU
    share = seconds / (len(sizes) + 1)
    until = time.monotonic() + seconds - share
    products: list[tuple[float, float]] = []
    with _one_thread(), torch.inference_mode():
        for n in sizes:
            work = 2.0 * n**3
            ahead = products[-1][1] / products[-1][0] * work * _RUNS_MIN if products else 0.0
            if len(products) > 1 and (ahead > share or time.monotonic() + ahead > until):
                break
            products.append((work, _product_s(device, n, dtype, share, stop)))
        bandwidth = _bandwidth(device, _VECTOR_ACCELERATOR if accelerated else _VECTOR_CPU, share, stop)
    flops, half_of_kernel = fitted(products)
    return DeviceMeasure(
        kind=device.type,
        model=model_of(device),
        flops=flops,
        bandwidth=bandwidth,
        memory_bytes=usable_bytes(device, slots=slots),
        half_flops=half_of_kernel * KERNELS_OF_LAYER,
    )


def fitted(products: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """FLOP/s of large products, and the work at which half of it is reached, from (FLOPs, seconds) of products of each size.

    The rate is the best one seen. A product of f FLOPs takes (f + half) / rate: half is what all sizes together say, by least
    squares of what their times exceed f / rate, relative to their times.
    """
    flops = max(work / took for work, took in products)
    above = sum((took - work / flops) / took**2 for work, took in products)
    weight = sum(1 / took**2 for _, took in products)
    return flops, flops * above / weight


def _product_s(device: torch.device, n: int, dtype: torch.dtype, seconds: float, stop: Callable[[], bool]) -> float:
    a = torch.ones(n, n, dtype=dtype, device=device)
    b = torch.ones(n, n, dtype=dtype, device=device)
    out = torch.empty_like(a)
    return _fastest(device, lambda: torch.mm(a, b, out=out), seconds, stop)


def _bandwidth(device: torch.device, elements: int, seconds: float, stop: Callable[[], bool]) -> float:
    """Bytes/s, two vectors read and one written; always in fp32, as most of elementwise work is."""
    a = torch.ones(elements, device=device)
    b = torch.ones(elements, device=device)
    out = torch.empty_like(a)
    return 3 * 4 * elements / _fastest(device, lambda: torch.add(a, b, out=out), seconds, stop)


def _fastest(device: torch.device, work: Callable[[], Tensor], seconds: float, stop: Callable[[], bool]) -> float:
    """Seconds of one call, of the fastest of several stretches of calls."""
    clock = _clock(device)
    work()  # the first one allocates and chooses kernels
    once = clock(work, 1)
    calls = max(1, int(_STRETCH_S / max(once, 1e-7)))
    until = time.monotonic() + seconds
    best, runs = once, 0
    while not runs or time.monotonic() < until:
        if stop():
            raise ProbeStopped
        best = min(best, clock(work, calls) / calls)
        runs += 1
    return best


def _clock(device: torch.device) -> Callable[[Callable[[], Tensor], int], float]:
    """What times a number of calls: by the accelerator's own events where there is one."""

    def by_wall(work: Callable[[], Tensor], calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return time.perf_counter() - began

    def by_events(work: Callable[[], Tensor], calls: int) -> float:
        module = module_of(device)
        began, ended = module.Event(enable_timing=True), module.Event(enable_timing=True)
        began.record()
        for _ in range(calls):
            work()
        ended.record()
        module.synchronize(device)
        return float(began.elapsed_time(ended)) / 1e3

    return by_wall if device.type == "cpu" else by_events


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
