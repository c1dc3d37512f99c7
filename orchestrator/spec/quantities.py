"""Numbers with their unit, as cluster and model files hold them: "80 GiB", "25 Gbit/s", "10 us", "312 TFLOP/s", "30 days".

A bare number is refused, and so is a unit of another kind or one that people read in two ways (Gb/s): the refusal names the unit
that was probably meant. k, M, G, T, P are powers of 1000, Ki, Mi, Gi, Ti powers of 1024; the text is kept, `amount` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from orchestrator.spec.errors import closest, described, quoted
from orchestrator.spec.values import refused

_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?(?:[eE][-+]?[0-9]{1,2})?) ?([A-Za-z\u00b5\u03bc][A-Za-z/]{0,15})")
_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SECONDS = {
    **{"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    **{"day": 86400.0, "days": 86400.0, "hours": 3600.0},
}
_OTHERS = {  # others' words, folded -> ours
    **{"gbps": "Gbit/s", "gb/s": "Gbit/s or GB/s", "gbit": "Gbit/s", "mbps": "Mbit/s", "mb/s": "Mbit/s or MB/s"},
    **{"tflops": "TFLOP/s", "tflop": "TFLOP/s", "gflops": "GFLOP/s", "pflops": "PFLOP/s", "flops": "FLOP/s", "gbyte/s": "GB/s"},
    **{"m": "min", "d": "days", "sec": "s", "seconds": "s", "minutes": "min", "hour": "h", "\u00b5s": "us", "\u03bcs": "us"},
}


@dataclass(frozen=True, slots=True)
class _Kind:
    units: Mapping[str, float]
    low: str
    high: str
    example: str


class Dimension(Enum):
    """What is measured, with its units, its bounds and an example."""

    BYTES = _Kind({f"{p}B": n for p, n in {**_DECIMAL, **_BINARY}.items()}, "1 B", "1 PiB", "80 GiB")
    BANDWIDTH = _Kind(
        {**{f"{p}B/s": n for p, n in {**_DECIMAL, **_BINARY}.items()}, **{f"{p}bit/s": n / 8 for p, n in _DECIMAL.items()}},
        "1 kB/s",
        "1 PB/s",
        "25 GB/s",
    )
    LATENCY = _Kind({u: _SECONDS[u] for u in ("ns", "us", "ms", "s")}, "0 s", "10 s", "5 us")
    DURATION = _Kind({u: _SECONDS[u] for u in ("s", "min", "h", "hours", "day", "days")}, "1 s", "100000 days", "30 days")
    FLOPS = _Kind({f"{p}FLOP/s": n for p, n in _DECIMAL.items()}, "1 kFLOP/s", "1000 PFLOP/s", "250 TFLOP/s")
    WORK = _Kind({f"{p}FLOP": n for p, n in _DECIMAL.items()}, "0 FLOP", "1 PFLOP", "25 GFLOP")


def amount(text: str, dimension: Dimension) -> float:
    """Bytes, bytes/s, seconds, FLOP/s or FLOPs. Raises pydantic's custom error, worded for the file, for any other text."""
    kind = dimension.value
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise refused(f"{quoted(text)} is no number with a unit", fix=f"write it as in {kind.example}", allowed=tuple(kind.units))
    unit = match[2]
    if unit not in kind.units:
        nearest = _meant(unit, kind)
        fix = f"write {match[1]} {nearest}" if nearest in kind.units else f"write it as in {kind.example}"
        raise refused(f"{quoted(unit)} is no unit here", nearest=nearest, fix=fix, allowed=tuple(kind.units))
    value = _value(f"{match[1]} {unit}", kind)
    if not _value(kind.low, kind) <= value <= _value(kind.high, kind):
        raise refused(f"must be from {kind.low} to {kind.high}, not {text}", fix="write a value in that range")
    return value


def _value(text: str, kind: _Kind) -> float:
    number, unit = text.split()
    return float(Decimal(number) * Decimal(str(kind.units[unit])))  # the nearest float: 20 us is 2e-05


def _meant(unit: str, kind: _Kind) -> str:
    """The unit that was probably meant, or both where two readings are common; an empty text where nothing is near."""
    other = _OTHERS.get(unit.lower(), "")
    if any(word in kind.units for word in other.split(" or ")):
        return other
    folded = {known.lower(): known for known in kind.units}
    return folded.get(unit.lower()) or folded.get(closest(unit, folded), "")


def _of(dimension: Dimension) -> tuple[BeforeValidator, AfterValidator, WithJsonSchema]:
    kind = dimension.value

    def with_unit(value: object) -> object:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            raise refused(f"must have its unit, not {described(value)}", fix=f"write it as in {kind.example}")
        return value

    def checked(text: str) -> str:
        amount(text, dimension)
        return text

    units = "|".join(re.escape(unit) for unit in kind.units)
    pattern = rf"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)? ?({units})$"
    schema = {"type": "string", "pattern": pattern, "examples": [kind.example]}
    return BeforeValidator(with_unit), AfterValidator(checked), WithJsonSchema(schema)


Bytes = Annotated[str, *_of(Dimension.BYTES)]
Bandwidth = Annotated[str, *_of(Dimension.BANDWIDTH)]
Latency = Annotated[str, *_of(Dimension.LATENCY)]
Duration = Annotated[str, *_of(Dimension.DURATION)]
Flops = Annotated[str, *_of(Dimension.FLOPS)]
Work = Annotated[str, *_of(Dimension.WORK)]
