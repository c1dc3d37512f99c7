"""Devices and links by name hold together: no device reaches its peak, links are faster the nearer they are."""

from __future__ import annotations

from orchestrator.core.cluster.kinds import BUILT_IN
from orchestrator.core.cluster.known import DEVICES, LINKS

PEAKS = {"v100-32g": 125e12, "a100-40g": 312e12, "a100-80g": 312e12, "h100": 989e12, "h200": 989e12, "ascend-910": 256e12}


def test_devices_reach_less_than_their_peak_and_say_so_in_plain_units() -> None:
    for name, peak in PEAKS.items():
        assert 0.6 * peak < DEVICES[name].flops < 0.9 * peak
        assert DEVICES[name].name == name
        assert 0 < DEVICES[name].half_flops < DEVICES[name].flops / 1000
    assert DEVICES["a100-80g"].memory_bytes == 81_251 << 20
    assert DEVICES["a100-80g"].bandwidth == 0.85 * 2039e9, "between 0.75 and 0.90 of the data sheet's"
    assert {t.kind for t in DEVICES.values()} <= {kind.name for kind in BUILT_IN}


def test_generations_of_a_link_get_faster() -> None:
    for family in (
        ("pcie3", "pcie4", "pcie5"),
        ("nvlink2", "nvlink3", "nvlink4"),
        ("10gbe", "25gbe", "100gbe"),
        ("edr", "hdr", "ndr"),
    ):
        rates = [LINKS[name].bandwidth for name in family]
        assert rates == sorted(rates)
        assert len(set(rates)) == 3
    assert LINKS["hdr"].bandwidth < 200e9 / 8
    assert LINKS["nvlink3"].latency_s < LINKS["pcie4"].latency_s < LINKS["hdr"].latency_s < LINKS["10gbe"].latency_s
