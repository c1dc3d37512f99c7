"""Kinds of devices are found, also those that a user's package registers; what a machine does not have is said in words."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch

from orchestrator.core.cluster.kinds import BUILT_IN, Kind
from orchestrator.engine import devices
from orchestrator.engine.devices import ENTRY_POINTS, DeviceUnavailable, kind_of, kinds, model_of, torch_device

MINE = Kind(name="mine", torch_type="cpu", backend="gloo", words="My device", module="no_such_module_of_mine")


def register(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint(name="mine", value=value, group=ENTRY_POINTS)
    monkeypatch.setattr(devices, "entry_points", lambda group: [entry] if group == ENTRY_POINTS else [])


def test_the_processor_is_a_device() -> None:
    assert torch_device(kind_of("cpu")) == torch.device("cpu")
    assert model_of(torch.device("cpu"))
    assert set(kinds()) >= {kind.name for kind in BUILT_IN} == {"cpu", "cuda", "npu"}


def test_a_package_registers_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, f"{__name__}:MINE")
    monkeypatch.setattr(EntryPoint, "load", lambda self: MINE)
    assert kind_of("mine") is MINE
    with pytest.raises(DeviceUnavailable, match="My device: no_such_module_of_mine cannot be imported"):
        torch_device(MINE)


def test_a_package_that_registers_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "json:dumps")
    with pytest.raises(DeviceUnavailable, match=r"mine = json:dumps of orchestrator\.device_kinds is no Kind"):
        kinds()


def test_a_package_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "no_such_package_of_mine:KIND")
    with pytest.raises(DeviceUnavailable, match=r"mine = no_such_package_of_mine:KIND .* cannot be loaded: No module named"):
        kind_of("mine")
    assert kind_of("cpu").name == "cpu", "which no package has a say in"


def test_what_is_not_known_or_not_here_is_said() -> None:
    with pytest.raises(DeviceUnavailable, match='no kind of device is called "tpu" here; known: cpu, cuda, npu'):
        kind_of("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceUnavailable, match="NVIDIA GPU: torch finds none on this machine"):
            torch_device(kind_of("cuda"))
