"""What was not taken, and why, in classes that people ask about: another tensor degree, another pipeline, another ZeRO stage.

A class is one value of one axis. It is rejected with the least that is known of all its strategies: how much memory the one
that needs least lacks, or how much slower than the choice its best one is.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.planner.search.shapes import Mesh, Shape, shape_of
from orchestrator.core.planner.strategy import Option, Rejected, Strategy

_GIB = float(1 << 30)
_Key = tuple[str, *tuple[int | str, ...]]  # axis and value of a class


@dataclass(slots=True)
class _Class:
    count: int = 0
    bound: float = float("inf")  # the least of those that were only bounded
    value: float = float("inf")  # the best of those that were weighed and fit
    need: float = float("inf")  # bytes of the fullest rank of the strategy that needs least, of those that do not fit
    room: float = 0.0  # and what there is

    def lacks(self, need: float, room: float) -> None:
        """One that does not fit."""
        if need < self.need:
            self.need, self.room = need, room

    def words(self) -> str:
        """How much memory is needed and there."""
        return f"needs {self.need / _GIB:.1f} GiB on a device of {self.room / _GIB:.1f}"


class Ledger:
    """Counts strategies and shapes by class."""

    def __init__(self) -> None:
        self._classes: dict[_Key, _Class] = {}
        self.count = 0

    def _class(self, key: _Key) -> _Class:
        found = self._classes.get(key)
        if found is None:
            found = self._classes[key] = _Class()
        return found

    def bounded(self, what: Mesh | Shape, bound: float, count: int = 1) -> None:
        """So many strategies of a mesh or a shape are worth no less than this."""
        self.count += count
        for key in _keys(what):
            kept = self._class(key)
            kept.count += count
            if bound < kept.bound:
                kept.bound = bound

    def weighed(self, option: Option, value: float) -> None:
        """One strategy was weighed."""
        self.count += 1
        fullest = max(option.estimate.memory, key=lambda m: m.total / m.limit)
        for key in _keys(shape_of(option.strategy)):
            kept = self._class(key)
            kept.count += 1
            kept.value = min(kept.value, value)
            if not option.estimate.fits:
                kept.lacks(fullest.total, fullest.limit)

    def lacking(self, shape: Shape, need: float, room: float) -> None:
        """No strategy of a shape fits: some rank needs at least so many bytes, and no device has more than `room`."""
        self.count += 1
        for key in _keys(shape):
            kept = self._class(key)
            kept.count += 1
            kept.lacks(need, room)

    def shortest(self) -> str:
        """In words what the least of them all needs; for when none fits."""
        found = [k for k in self._classes.values() if k.room]
        least = min(found, key=lambda k: k.need / k.room, default=None)
        return least.words() if least is not None else "the space is empty"

    def rejected(self, best: Strategy, value: float) -> tuple[Rejected, ...]:
        """The classes that the best strategy is not in, those nearest to it first."""
        own = set(_keys(shape_of(best)))
        found: list[tuple[float, tuple[str, str], Rejected]] = []
        for key, kept in self._classes.items():
            if key not in own:
                least = min(kept.bound, kept.value)
                name = _named(key)
                found.append((least, name, Rejected(" ".join(name).strip(), _why(kept, value), kept.count)))
        return tuple(r for _, _, r in sorted(found, key=lambda f: (f[0], f[1])))


def _keys(what: Mesh | Shape) -> list[_Key]:
    mesh = what if isinstance(what, Mesh) else what.mesh
    out: list[_Key] = [
        ("tensor parallel", *mesh.degrees),
        ("pipeline", len(mesh.tensors)),
        ("replicas:", mesh.data),
        ("units per micro-batch:", mesh.units),
    ]
    if isinstance(what, Shape):
        whole = what.zero == 0 or what.shard == mesh.data
        out += [
            ("schedule", what.schedule, what.stages_per_rank),
            ("", what.zero, 0 if whole else what.shard),
            ("copies:", what.copies),
        ]
    return out


def _named(key: _Key) -> tuple[str, str]:
    """The axis, and the value in words."""
    axis, *value = key
    if axis == "schedule":
        return axis, f"{value[0]}, {value[1]} stages per rank" if value[1] != 1 else f"{value[0]}"
    if axis:
        return axis, "+".join(map(str, value))
    return axis, f"ZeRO-{value[0]} in groups of {value[1]}" if value[1] else f"ZeRO-{value[0]}"


def _why(kept: _Class, best: float) -> str:
    if kept.value == kept.bound == float("inf"):
        return kept.words()
    at_least, weighed = _slower(kept.bound / best), _slower(kept.value / best)
    if kept.value <= kept.bound:
        return weighed or "no faster"
    if kept.value == float("inf"):
        return f"at least {at_least}" if at_least else "may be as fast: not weighed"
    return f"{weighed or 'no slower'} as far as weighed" + (f", at least {at_least}" if at_least else "")


def _slower(ratio: float) -> str:
    return f"{ratio - 1:.1%} slower" if 1.0005 <= ratio < float("inf") else ""
