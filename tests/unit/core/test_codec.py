"""Whatever the journal and the control API carry comes back equal; what is not known is refused."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.codec import from_json, to_json
from orchestrator.core.job import DeviceKind, Job
from orchestrator.core.plan.layout import Interval
from orchestrator.core.plan.plan import Plan
from orchestrator.core.reshard.recovery import Resume
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, FenceEpoch
from orchestrator.core.supervisor.state import State, Worker, WorkerPhase
from tests.unit.core.strategies import of_hint


def through_text(cls: Any, value: object) -> Any:
    """To JSON text and back."""
    return from_json(cls, json.loads(json.dumps(to_json(value))))


@pytest.mark.parametrize("kind", typing.get_args(ev.Event), ids=lambda k: k.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_every_event_comes_back(kind: type, data: st.DataObject) -> None:
    event = data.draw(of_hint(kind))
    back = through_text(ev.Event, event)
    assert (type(back), back) == (kind, event)


@pytest.mark.parametrize("kind", typing.get_args(Command), ids=lambda k: k.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_every_command_comes_back(kind: type, data: st.DataObject) -> None:
    command = data.draw(of_hint(kind))
    back = through_text(Command, command)
    assert (type(back), back) == (kind, command)


@pytest.mark.parametrize("kind", [Job, Plan, Resume, State], ids=lambda k: k.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_the_large_values_come_back(kind: type, data: st.DataObject) -> None:
    value = data.draw(of_hint(kind))
    assert through_text(kind, value) == value


@given(st.dictionaries(st.text(max_size=4), of_hint(Worker), max_size=3))
def test_the_workers_of_a_state_keep_their_ids(workers: dict[str, Worker]) -> None:
    back = through_text(Mapping[str, Worker], workers)
    assert back == workers
    assert all(type(w.phase) is WorkerPhase for w in back.values())


@given(st.dictionaries(st.integers(), st.text(max_size=4), max_size=3))
def test_numbers_as_keys_come_back_as_numbers(table: dict[int, str]) -> None:
    assert through_text(dict[int, str], table) == table


def test_a_state_that_was_read_back_goes_through_its_workers_in_the_same_order() -> None:
    """Else a journal of more than ten workers does not replay from a snapshot: "j/w10" sorts before "j/w2"."""
    workers = {f"j/w{i}": i for i in range(12)}
    assert list(through_text(Mapping[str, int], workers)) == list(workers)


def test_a_loss_that_is_no_number_survives() -> None:
    event = ev.EvalReported(0, "w", 1, 1, math.nan)
    assert math.isnan(through_text(ev.Event, event).loss)
    assert through_text(ev.Event, ev.EvalReported(0, "w", 1, 1, math.inf)).loss == math.inf


def test_the_text_says_its_type() -> None:
    assert to_json(FenceEpoch("w", 3)) == {"type": "FenceEpoch", "worker_id": "w", "epoch": 3}


def test_a_whole_number_is_a_float_where_one_is_declared() -> None:
    back = from_json(float, 2)
    assert (back, type(back)) == (2.0, float)


CANCEL = to_json(ev.CancelRequested(1, "me"))
INTERVAL = {"type": "Interval", "start": 0, "stop": 4}


@pytest.mark.parametrize(
    ("cls", "data"),
    [
        pytest.param(ev.Event, {**CANCEL, "more": 1}, id="unknown field"),
        pytest.param(ev.Event, {**CANCEL, "type": "Cancelled"}, id="unknown type"),
        pytest.param(ev.Event, {k: v for k, v in CANCEL.items() if k != "type"}, id="no type in a union"),
        pytest.param(ev.Event, {"type": "CancelRequested", "at_ms": 1}, id="missing field"),
        pytest.param(ev.Event, None, id="nothing where something is due"),
        pytest.param(ev.Event, [CANCEL], id="array for a union"),
        pytest.param(ev.Event, {**CANCEL, "at_ms": "1"}, id="text for a number"),
        pytest.param(ev.Event, {**CANCEL, "at_ms": True}, id="truth for a number"),
        pytest.param(ev.Event, {**CANCEL, "at_ms": 1.5}, id="fraction for a whole number"),
        pytest.param(ev.Event, {**CANCEL, "who": None}, id="null for text"),
        pytest.param(Interval, {**INTERVAL, "stop": 0}, id="refused by the value itself"),
        pytest.param(Interval, 5, id="number for an object"),
        pytest.param(Interval, [0, 4], id="array for an object"),
        pytest.param(tuple[int, ...], {"a": 1}, id="object for an array"),
        pytest.param(tuple[int, ...], "ab", id="text for an array"),
        pytest.param(tuple[int, int], [1], id="too few"),
        pytest.param(tuple[int, int], [1, 2, 3], id="too many"),
        pytest.param(DeviceKind, "tpu", id="unknown choice"),
        pytest.param(dict[int, str], {"x": "a"}, id="key is no number"),
        pytest.param(float | None, "1", id="text for an optional number"),
        pytest.param(bool, 1, id="number for truth"),
        pytest.param(types.NoneType, 0, id="zero for null"),
    ],
)
def test_what_does_not_fit_is_refused(cls: Any, data: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_json(cls, data)


@pytest.mark.parametrize("data", [{**INTERVAL, "type": "Worker"}, {**INTERVAL, "type": None}])
def test_another_type_is_refused_where_one_is_declared(data: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_json(Interval, data)


def test_an_array_is_no_mapping() -> None:
    with pytest.raises((TypeError, ValueError)):
        from_json(dict[str, int], [1])


@dataclass(frozen=True, slots=True)
class Loose:
    """Holds something that has no JSON form."""

    what: object


@pytest.mark.parametrize("what", [[1], {1, 2}, b"x", object(), Interval, {1.5: "x"}], ids=lambda w: type(w).__name__)
def test_what_has_no_json_form_is_refused(what: object) -> None:
    with pytest.raises(TypeError, match="no JSON"):
        to_json(Loose(what))
