"""Quantities as text, alike on every surface: durations, counts, bytes, rates and shares, with their units."""

from __future__ import annotations

DAYS_FROM_S = 100 * 3600.0


def duration(seconds: float) -> str:
    """12.3 s, 4:05, 2:13:20, 5.2 days."""
    if seconds >= DAYS_FROM_S:
        return f"{seconds / 86_400:,.1f} days"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: float) -> str:
    """950, 1.2 k, 3.4 M, 5.6 G, up to E."""
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if abs(number) < 999.5 or unit == " E":
            return f"{number:.0f}" if not unit else f"{number:.3g}{unit}"
        number /= 1000
    raise AssertionError("unreachable")


def size(bytes_: float) -> str:
    """Bytes with a decimal unit: 4.2 MB."""
    return f"{count(bytes_)}B" if abs(bytes_) >= 1000 else f"{bytes_:.0f} B"


def flop(number: float) -> str:
    """Floating-point operations: 2 GFLOP."""
    return f"{count(number)}FLOP" if abs(number) >= 999.5 else f"{number:.0f} FLOP"


def seconds(value: float) -> str:
    """12 us, 3.4 ms, 1.2 s, 2:13:20."""
    if value < 0.9995e-3:
        return f"{value * 1e6:.3g} us"
    return f"{value * 1e3:.3g} ms" if value < 0.9995 else duration(value)


def percent(share: float) -> str:
    """A share as a percentage; small ones, and those near to all, keep a digit."""
    plain = 0.0995 <= share <= 0.95 or share == 0 or share >= 0.9995
    return f"{100 * share:.0f} %" if plain else f"{100 * share:.1f} %"


def rate(bytes_per_s: float) -> str:
    """Bytes per second: 25 GB/s."""
    return f"{size(bytes_per_s)}/s"


def plural(number: int, word: str, ending: str = "s") -> str:
    """1 node, 2 nodes."""
    return f"{number:,} {word}{'' if number == 1 else ending}"
