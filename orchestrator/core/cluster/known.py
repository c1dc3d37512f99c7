"""Devices and links by name: what their makers' data sheets say, and how much of it large matrix products reach.

A cluster file may name these instead of numbers; the probe's measurements always win over them. `flops` is not the data sheet's
peak but what is reachable of it, and `half_flops` is what is computed while the kernels of a layer's pass start and drain.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from orchestrator.core.cluster.resources import DeviceType, Link

# Of the peak, in half precision, for matrices of several thousand rows: where the curves of A100 level off in NVIDIA's "Matrix
# Multiplication Background User's Guide". Power keeps V100 and H100 below that share. Ascend 910: as V100, an assumption.
REACHABLE: Final = 0.8
# Of the memory's peak bandwidth, by elementwise kernels: calculon (github.com/calculon-ai/calculon, systems/a100_80g.json) takes
# 0.75 for accesses from 10 MB, 0.90 from 100 MB. The value between them was chosen after its effect on published runs was seen.
STREAMED: Final = 0.85
KERNELS_OF_LAYER: Final = 20  # of one layer and direction, in a transformer: products, norms, softmax, additions
KERNEL_S: Final = 5e-6  # that one takes beyond its work; a launch on CUDA (NVIDIA's "CUDA graphs" articles name 2 to 10 us)

GB: Final = 1e9
MIB: Final = 2**20
TERA: Final = 1e12


def _device(name: str, kind: str, *, peak: float, bandwidth: float, mib: int, reachable: float = REACHABLE) -> DeviceType:
    flops = peak * reachable
    half_flops = flops * KERNELS_OF_LAYER * KERNEL_S
    return DeviceType(name, kind, flops=flops, bandwidth=bandwidth * STREAMED, memory_bytes=mib * MIB, half_flops=half_flops)


def _named(*types: DeviceType) -> Mapping[str, DeviceType]:
    return MappingProxyType({t.name: t for t in types})


# Peaks: dense, half precision (fp16 or bf16) with fp32 accumulation. `mib`: what the driver reports as total, in MiB.
DEVICES: Final = _named(
    # NVIDIA V100 Tensor Core GPU data sheet (2020): SXM2 125 TFLOP/s, 900 GB/s
    _device("v100-16g", "cuda", peak=125 * TERA, bandwidth=900 * GB, mib=16_160, reachable=0.75),
    _device("v100-32g", "cuda", peak=125 * TERA, bandwidth=900 * GB, mib=32_510, reachable=0.75),
    # NVIDIA A100 Tensor Core GPU data sheet (2021): 312 TFLOP/s; SXM4 1555 GB/s (40 GB), 2039 GB/s (80 GB)
    _device("a100-40g", "cuda", peak=312 * TERA, bandwidth=1555 * GB, mib=40_536),
    _device("a100-80g", "cuda", peak=312 * TERA, bandwidth=2039 * GB, mib=81_251),
    # NVIDIA H100 Tensor Core GPU data sheet (2023): SXM5 1979 TFLOP/s with sparsity, so 989 dense; 3.35 TB/s
    _device("h100", "cuda", peak=989 * TERA, bandwidth=3350 * GB, mib=81_559, reachable=0.7),
    # NVIDIA H200 data sheet (2024): as H100; 141 GB at 4.8 TB/s
    _device("h200", "cuda", peak=989 * TERA, bandwidth=4800 * GB, mib=143_771, reachable=0.7),
    # Huawei, Hot Chips 31 (2019), "A scalable unified architecture for neural network computing": 256 TFLOP/s fp16,
    # HBM2 of 1.2 TB/s; 32 GB: white paper of Atlas 800, model 9000
    _device("ascend-910", "npu", peak=256 * TERA, bandwidth=1200 * GB, mib=32_768, reachable=0.75),
)


def _link(gigabytes: float, *, micros: float, reachable: float = REACHABLE) -> Link:
    return Link(bandwidth=gigabytes * GB * reachable, latency_s=micros / 1e6)


# One direction of one device or adapter; NVIDIA's data sheets of NVLink add up both. Four fifths of the line rate is what NCCL
# reaches with large messages (all_reduce_perf of nccl-tests on 8 A100: bus bandwidth 230 to 240 of 300 GB/s). Latencies are one
# step of a ring in NCCL's own model (NVIDIA/nccl, src/graph/tuning.cc, hwLat, Ring, Simple); of TCP they are an assumption.
_NVLINK_US: Final = 3.4
_PCIE_US: Final = 5.7
_NET_US: Final = 14.0
_TCP_US: Final = 30.0

LINKS: Final[Mapping[str, Link]] = MappingProxyType(
    {
        "pcie3": _link(15.75, micros=_PCIE_US),  # PCI Express base specification 3.0, 16 lanes
        "pcie4": _link(31.5, micros=_PCIE_US),  # 4.0, 16 lanes
        "pcie5": _link(63.0, micros=_PCIE_US),  # 5.0, 16 lanes
        "nvlink2": _link(150, micros=_NVLINK_US),  # V100 data sheet: 300 GB/s in both directions
        "nvlink3": _link(300, micros=_NVLINK_US),  # A100 data sheet: 600 GB/s
        "nvlink4": _link(450, micros=_NVLINK_US),  # H100 data sheet: 900 GB/s
        "hccs": _link(90, micros=_PCIE_US),  # Ascend 910: three ports of 240 Gbit/s, to the others of its four (Hot Chips 31)
        "10gbe": _link(1.25, micros=_TCP_US),  # IEEE 802.3
        "25gbe": _link(3.125, micros=_TCP_US),
        "100gbe": _link(12.5, micros=_NET_US),  # RoCE
        "edr": _link(12.5, micros=_NET_US),  # InfiniBand Trade Association's roadmap, 4 lanes: EDR 100 Gbit/s
        "hdr": _link(25, micros=_NET_US),  # HDR 200 Gbit/s
        "ndr": _link(50, micros=_NET_US),  # NDR 400 Gbit/s
    }
)
