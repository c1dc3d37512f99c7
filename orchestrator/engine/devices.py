"""Devices by kind, as torch has them: which kinds there are here, and the few calls in which every accelerator is alike.

Kinds that are not built in are found in the entry points of installed packages (core/cluster/kinds.py says how they get there).
Beyond the processor all of them are reached through torch.get_device_module, which serves out-of-tree devices too.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import torch

from orchestrator.core.cluster.kinds import BUILT_IN, Kind

ENTRY_POINTS: Final = "orchestrator.device_kinds"
_CPU_INFO: Final = Path("/proc/cpuinfo")


class DeviceUnavailable(Exception):
    """This machine has no device of the kind, or no such kind is known here; the text says what to do."""


def kinds() -> Mapping[str, Kind]:
    """All kinds known here, by name; of two of one name the built-in or first one.

    Raises DeviceUnavailable where what a package registers cannot be loaded or is no Kind.
    """
    known = {kind.name: kind for kind in BUILT_IN}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            kind = entry.load()
        except Exception as error:  # that package's own code
            raise DeviceUnavailable(f"{entry.name} = {entry.value} of {ENTRY_POINTS} cannot be loaded: {error}") from error
        if not isinstance(kind, Kind):
            raise DeviceUnavailable(f"the entry point {entry.name} = {entry.value} of {ENTRY_POINTS} is no Kind")
        known.setdefault(kind.name, kind)
    return known


def kind_of(name: str) -> Kind:
    """The kind of that name; packages are asked only for what is not built in. Raises DeviceUnavailable."""
    built_in = {kind.name: kind for kind in BUILT_IN}
    known = built_in if name in built_in else kinds()
    if name not in known:
        raise DeviceUnavailable(f'no kind of device is called "{name}" here; known: {", ".join(known)}')
    return known[name]


def torch_device(kind: Kind) -> torch.device:
    """The device of this kind that a worker of this machine computes on. Raises DeviceUnavailable where there is none."""
    if kind.module:
        try:
            importlib.import_module(kind.module)
        except ImportError as error:
            raise DeviceUnavailable(f"{kind.words}: {kind.module} cannot be imported: {error}") from error
    if kind.torch_type == "cpu":
        return torch.device("cpu")
    if not module_of(torch.device(kind.torch_type)).is_available():
        raise DeviceUnavailable(f"{kind.words}: torch finds none on this machine")
    return torch.device(kind.torch_type, module_of(torch.device(kind.torch_type)).current_device())


def module_of(device: torch.device) -> Any:
    """`torch.cuda` and its like: synchronize, Event, mem_get_info, memory_reserved, get_device_name."""
    return torch.get_device_module(device)


def model_of(device: torch.device) -> str:
    """What its maker calls the device."""
    if device.type != "cpu":
        return str(module_of(device).get_device_name(device))
    try:
        lines = _CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, "") or platform.processor() or platform.machine() or "cpu"
