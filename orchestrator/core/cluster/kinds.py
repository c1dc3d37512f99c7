"""Kinds of devices: what torch calls them, what their process groups are built with, how people say it.

A kind that is not built in comes from a package of the user's own, which names a `Kind` in its entry points; `engine/devices.py`
finds it there. Nothing but that table changes for a new kind: torch reaches every accelerator through the same few calls.

    [project.entry-points."orchestrator.device_kinds"]
    hpu = "my_package:HPU"              # HPU = Kind(name="hpu", torch_type="hpu", backend="hccl", words=..., module=...)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of device."""

    name: str  # as in DeviceType.kind
    torch_type: str  # of torch.device
    backend: str  # of torch.distributed, for tensors on it
    words: str
    module: str = ""  # what has to be imported before torch knows the device; "": torch knows it by itself


BUILT_IN: Final = (
    Kind(name="cpu", torch_type="cpu", backend="gloo", words="CPU slot (one thread)"),
    Kind(name="cuda", torch_type="cuda", backend="nccl", words="NVIDIA GPU"),
    Kind(name="npu", torch_type="npu", backend="hccl", words="Ascend NPU", module="torch_npu"),
)
