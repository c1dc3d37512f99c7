"""How much memory a worker may use: what its accelerator has free, or its share of what the machine or its container has.

A container's limit is not what the kernel calls total memory, so both generations of control groups are asked, from the
process's own group up to the root; the tightest counts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import torch

from orchestrator.engine.devices import module_of

_MOUNT: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def usable_bytes(device: torch.device, *, slots: int) -> int:
    """What a worker on `device` may use in all, with what it uses already. `slots`: workers that share the machine's memory."""
    if slots < 1:
        raise ValueError(f"a node has at least one slot, not {slots}")
    if device.type != "cpu":
        module = module_of(device)
        free, _ = module.mem_get_info(device)
        return int(free) + int(module.memory_reserved(device))
    free = min([int(psutil.virtual_memory().available), *group_rooms()])
    return free // slots + int(psutil.Process().memory_info().rss)


def group_rooms(*, mount: Path = _MOUNT, own: Path = _OWN) -> Iterator[int]:
    """Bytes that each control group of this process still allows, page cache that can be dropped not counted as used."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, usage, cache = mount, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage, cache = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inner = root / path.lstrip("/")
        for group in (inner, *inner.parents):
            if not group.is_relative_to(root):
                break
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and used is not None:
                yield max(0, most - max(0, used - _dropped(group / "memory.stat", cache)))


def _number(file: Path) -> int | None:
    """None where there is no such file, as for a group outside a container's view, or no limit."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _dropped(stat: Path, key: str) -> int:
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), 0)


def give_back() -> None:
    """Return memory that is freed but still with the process to the system, where its C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
