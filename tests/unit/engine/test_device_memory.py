"""A worker's share of memory: of what is free on the machine, and of what its control groups allow, old and new ones."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from orchestrator.engine import device_memory
from orchestrator.engine.device_memory import group_rooms, usable_bytes

CPU = torch.device("cpu")


def group(at: Path, **files: str) -> None:
    at.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (at / name.replace("__", ".")).write_text(text)


def test_second_generation_the_groups_above_count_too(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/pod/job\n")
    group(tmp_path / "fs/pod/job", memory__max="max\n", memory__current="10\n", memory__stat="")
    group(tmp_path / "fs/pod", memory__max="1000\n", memory__current="700\n", memory__stat="anon 1\ninactive_file 200\n")
    assert list(group_rooms(mount=tmp_path / "fs", own=tmp_path / "own")) == [500]


def test_first_generation_and_a_group_that_is_outside_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("5:cpu,cpuacct:/x\n4:memory:/not/here\n")
    files = {"memory__limit_in_bytes": "900\n", "memory__usage_in_bytes": "100\n", "memory__stat": "total_inactive_file 30\n"}
    group(tmp_path / "fs/memory", **files)
    assert list(group_rooms(mount=tmp_path / "fs", own=tmp_path / "own")) == [830]


def test_no_groups_no_limit(tmp_path: Path) -> None:
    assert list(group_rooms(mount=tmp_path, own=tmp_path / "own")) == []


def test_slots_share_the_tighter_of_both_and_what_a_worker_has_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "group_rooms", lambda: iter([4 << 20, 2 << 20]))
    own = psutil.Process().memory_info().rss
    assert usable_bytes(CPU, slots=2) == pytest.approx((1 << 20) + own, rel=0.05)
    monkeypatch.setattr(device_memory, "group_rooms", lambda: iter(()))
    assert usable_bytes(CPU, slots=1) == pytest.approx(psutil.virtual_memory().available + own, rel=0.2)
    with pytest.raises(ValueError, match="at least one slot"):
        usable_bytes(CPU, slots=0)
