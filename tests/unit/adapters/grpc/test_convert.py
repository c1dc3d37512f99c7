"""Every value that crosses the wire survives it, and nothing that makes no sense gets through."""

from __future__ import annotations

import dataclasses
import math
import typing
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.adapters.grpc import convert
from orchestrator.adapters.grpc.mirror import TEXT_MAX, ConvertError, shape_of
from orchestrator.adapters.grpc.pb.v1 import control_pb2, types_pb2, worker_pb2
from orchestrator.core.cluster.view import ClusterView
from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import Command, FenceEpoch, InjectFault, RunEpoch
from orchestrator.core.supervisor.events import EpochReady, Event, Fault, LeftEpoch, StepCommitted, Tick, WorkerHello
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, ExportedModel
from orchestrator.runtime.control import Decided, Explanation
from orchestrator.runtime.ports import Beat, LogLine, Record, Welcome, WorkerCommand
from orchestrator.runtime.status_types import JobStatus
from orchestrator.runtime.worker import WorkerReport
from tests.unit.adapters.grpc.strategies import TEXT, values
from tests.unit.adapters.grpc.support import hello

REPORTS = typing.get_args(WorkerReport)
COMMANDS = typing.get_args(WorkerCommand)
EVENTS = typing.get_args(Event)
ALL_COMMANDS = typing.get_args(Command)


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


# ---- messages mirror dataclasses

MIRRORS: list[tuple[type, Any, set[str]]] = [
    (WorkerHello, worker_pb2.Hello.DESCRIPTOR, {"at_ms"}),
    (Beat, worker_pb2.Beat.DESCRIPTOR, {"worker_id"}),
    *((r, worker_pb2.DESCRIPTOR.message_types_by_name[r.__name__], {"at_ms", "worker_id"}) for r in REPORTS),
    (Welcome, worker_pb2.Welcome.DESCRIPTOR, set()),
    *((c, worker_pb2.DESCRIPTOR.message_types_by_name[c.__name__], {"worker_id"}) for c in COMMANDS),
    (Fault, types_pb2.Fault.DESCRIPTOR, set()),
    (ClusterView, types_pb2.ClusterView.DESCRIPTOR, set()),
    (JobStatus, control_pb2.JobStatus.DESCRIPTOR, set()),
    (LogLine, control_pb2.LogLine.DESCRIPTOR, set()),
    (Decided, control_pb2.Decided.DESCRIPTOR, set()),
    (CheckpointInfo, control_pb2.CheckpointInfo.DESCRIPTOR, set()),
    (CheckpointVerdict, control_pb2.CheckpointVerdict.DESCRIPTOR, set()),
    (ExportedModel, control_pb2.ExportedModel.DESCRIPTOR, set()),
]


@pytest.mark.parametrize(("cls", "descriptor", "untold"), MIRRORS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_message_has_the_fields_of_its_dataclass(cls: type, descriptor: Any, untold: set[str]) -> None:
    shapes = {s.name: s for s in shape_of(cls)}
    assert untold <= set(shapes)
    assert set(descriptor.fields_by_name) == set(shapes) - untold
    for name, field in descriptor.fields_by_name.items():
        assert field.is_repeated == shapes[name].repeated, name
        if shapes[name].optional:
            assert field.has_presence, name
        if field.message_type is not None:
            test_a_message_has_the_fields_of_its_dataclass(shapes[name].kind, field.message_type, set())


# ---- round trips


@pytest.mark.parametrize("cls", REPORTS, ids=lambda c: c.__name__)
@given(data=st.data())
def test_reports_survive(cls: type, data: st.DataObject) -> None:
    report = data.draw(values(cls, at_ms=11, worker_id="w1"))
    message = over_the_wire(convert.from_worker_to_proto(report))
    assert convert.from_worker(message, worker_id="w1", at_ms=11) == report


@given(value=values(WorkerHello, at_ms=11))
def test_hellos_survive(value: WorkerHello) -> None:
    message = over_the_wire(convert.from_worker_to_proto(value))
    assert convert.from_worker(message, worker_id="", at_ms=11) == value


@given(value=values(Beat, worker_id="w1"))
def test_beats_survive(value: Beat) -> None:
    message = over_the_wire(convert.from_worker_to_proto(value))
    assert convert.from_worker(message, worker_id="w1", at_ms=0) == value


@given(texts=st.lists(TEXT, min_size=1, max_size=4), rank=st.integers(-1, 9))
def test_talk_survives(texts: list[str], rank: int) -> None:
    lines = convert.LogLines(tuple(LogLine("w1", rank, t) for t in texts))
    for value in (lines, convert.Stacks(texts[0]), convert.Goodbye(texts[0])):
        message = over_the_wire(convert.from_worker_to_proto(value))
        assert convert.from_worker(message, worker_id="w1", at_ms=0) == value


@pytest.mark.parametrize("cls", COMMANDS, ids=lambda c: c.__name__)
@given(data=st.data())
def test_commands_survive(cls: type, data: st.DataObject) -> None:
    command = data.draw(values(cls, worker_id="w1"))
    message = over_the_wire(convert.from_supervisor_to_proto(command))
    assert convert.from_supervisor(message, worker_id="w1") == command


@given(value=values(Welcome))
def test_welcomes_survive(value: Welcome) -> None:
    assert convert.from_supervisor(over_the_wire(convert.from_supervisor_to_proto(value)), worker_id="w1") == value


@pytest.mark.parametrize("cls", EVENTS, ids=lambda c: c.__name__)
@settings(max_examples=30)  # their parts are drawn by the hundred above
@given(data=st.data())
def test_records_of_every_event_survive(cls: type, data: st.DataObject) -> None:
    record = Record(7, 5, 6.5, data.draw(values(cls)), (), "why", "running", 2, 40)
    assert convert.record_from_proto(over_the_wire(convert.record_to_proto(record))) == record


@pytest.mark.parametrize("cls", ALL_COMMANDS, ids=lambda c: c.__name__)
@settings(max_examples=30)
@given(data=st.data())
def test_records_of_every_command_survive(cls: type, data: st.DataObject) -> None:
    record = Record(7, 5, 6.5, Tick(5, ()), (data.draw(values(cls)),), "why", "running", 2, 40)
    explanation = Explanation(record, ("a", "b"))
    message = over_the_wire(convert.explanation_to_proto(explanation))
    assert convert.explanation_from_proto(message) == explanation


@given(decided=values(Decided), info=values(CheckpointInfo), verdict=values(CheckpointVerdict), exported=values(ExportedModel))
def test_what_is_told_of_requests_and_checkpoints_survives(
    decided: Decided, info: CheckpointInfo, verdict: CheckpointVerdict, exported: ExportedModel
) -> None:
    assert convert.decided_from_proto(over_the_wire(convert.decided_to_proto(decided))) == decided
    assert convert.checkpoint_from_proto(over_the_wire(convert.checkpoint_to_proto(info))) == info
    assert convert.verdict_from_proto(over_the_wire(convert.verdict_to_proto(verdict))) == verdict
    assert convert.exported_from_proto(over_the_wire(convert.exported_to_proto(exported))) == exported


@given(value=values(JobStatus))
def test_status_survives(value: JobStatus) -> None:
    assert convert.status_from_proto(over_the_wire(convert.status_to_proto(value))) == value


@given(view=values(ClusterView), line=values(LogLine), job=values(Job), fault=values(Fault, rank=3, node_id=""))
def test_the_rest_of_the_control_api_survives(view: ClusterView, line: LogLine, job: Job, fault: Fault) -> None:
    assert convert.cluster_from_proto(over_the_wire(convert.cluster_to_proto(view))) == view
    assert convert.log_line_from_proto(over_the_wire(convert.log_line_to_proto(line))) == line
    assert convert.job_from_json(convert.job_to_json(job)) == job
    assert convert.fault_from_proto(over_the_wire(convert.fault_to_proto(fault))) == fault


def test_a_loss_that_is_not_a_number_survives() -> None:
    report = StepCommitted(0, "w1", 1, 4, math.nan, math.inf, 1.0, 1e-3, 12.0, 64, False, 2.0)
    back = convert.from_worker(over_the_wire(convert.from_worker_to_proto(report)), worker_id="w1", at_ms=0)
    assert isinstance(back, StepCommitted)
    assert math.isnan(back.loss)
    assert dataclasses.replace(back, loss=0.0) == dataclasses.replace(report, loss=0.0)


def test_text_that_utf8_cannot_carry_or_without_end_is_made_to_fit() -> None:
    message = convert.from_worker_to_proto(LeftEpoch(0, "w1", 1, False, None, "bad \udcff byte"))
    assert message.left_epoch.detail == "bad ? byte"
    message = convert.from_worker_to_proto(convert.Stacks("a" + "x" * (2 * TEXT_MAX) + "z"))
    assert len(message.stacks.text) < TEXT_MAX + 100
    assert message.stacks.text[0] == "a"
    assert message.stacks.text[-1] == "z"
    assert "left out" in message.stacks.text


# ---- refusals


def bad(**kind: Any) -> worker_pb2.WorkerMessage:
    return worker_pb2.WorkerMessage(**kind)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (bad(), "no kind"),
        (bad(hello=worker_pb2.Hello(worker_id="w")), "graph is missing"),
        (bad(hello=worker_pb2.Hello(graph=types_pb2.GraphView())), "worker_id is empty"),
        (bad(epoch_ready=worker_pb2.EpochReady(epoch=-1)), r"EpochReady\.epoch is -1, less than 0"),
        (bad(left_epoch=worker_pb2.LeftEpoch(held=types_pb2.Held(params_step=-2))), r"held\.params_step is -2"),
        (bad(log_lines=worker_pb2.LogLines(rank=-2)), "rank is -2"),
    ],
)
def test_what_a_worker_says_must_make_sense(message: worker_pb2.WorkerMessage, words: str) -> None:
    with pytest.raises(ConvertError, match=words):
        convert.from_worker(message, worker_id="w1", at_ms=0)


PLAN = types_pb2.Plan(
    job="j",
    schedule="1f1b",
    seats=[types_pb2.Seat(worker_id="w1")],
    layouts=[types_pb2.StateLayout(holdings=[types_pb2.Holding(primary=[types_pb2.Interval(start=5, stop=5)])])],
)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, "no kind"),
        ({"run_epoch": worker_pb2.RunEpoch()}, "plan is missing"),
        ({"run_epoch": worker_pb2.RunEpoch(plan=types_pb2.Plan(schedule="1f1b"))}, "resume is missing"),
        (
            {"run_epoch": worker_pb2.RunEpoch(plan=types_pb2.Plan(schedule="1f1b"), resume=types_pb2.Resume(source="hope"))},
            r"resume\.source is 'hope', not one of 'init', 'memory', 'checkpoint'",
        ),
        (
            {"run_epoch": worker_pb2.RunEpoch(plan=PLAN, resume=types_pb2.Resume(source="init"))},
            r"plan\.layouts\[0\]\.holdings\[0\]\.primary\[0\]: empty or negative interval",
        ),
        ({"inject_fault": worker_pb2.InjectFault(fault=types_pb2.Fault(kind="flood"))}, "not one of kill-worker, kill-node"),
    ],
)
def test_what_the_supervisor_says_must_make_sense(message: dict[str, Any], words: str) -> None:
    with pytest.raises(ConvertError, match=words):
        convert.from_supervisor(worker_pb2.SupervisorMessage(**message), worker_id="w1")


@pytest.mark.parametrize(
    "fault",
    [
        types_pb2.Fault(kind="kill-node", rank=-1),
        types_pb2.Fault(kind="kill-node", rank=1, node_id="n1"),
        types_pb2.Fault(kind="", rank=1),
        types_pb2.Fault(kind="hang", rank=-2),
        types_pb2.Fault(kind="hang", at_step=-1),
    ],
)
def test_a_fault_must_hit_somebody_and_exist(fault: types_pb2.Fault) -> None:
    with pytest.raises(ConvertError):
        convert.fault_from_proto(fault)


@given(text=st.one_of(TEXT, st.just("[" * 100_000), st.just("[]"), st.just('{"name": 3}'), st.just('{"train": {}}')))
def test_no_text_crashes_the_parser_of_jobs(text: str) -> None:
    with pytest.raises(ConvertError):
        convert.job_from_json(text)


@given(raw=st.binary(max_size=60))
def test_no_bytes_crash_the_stream(raw: bytes) -> None:
    with suppress(DecodeError, ConvertError):  # gRPC itself answers the first, the hub the second; anything else is a bug
        message = worker_pb2.WorkerMessage.FromString(raw)
        value = convert.from_worker(message, worker_id="w1", at_ms=0)
        assert isinstance(value, convert.FromWorker)


def test_a_worker_cannot_say_what_only_the_supervisor_knows() -> None:
    with pytest.raises(TypeError, match="Tick"):
        convert.from_worker_to_proto(Tick(0, ()))  # type: ignore[arg-type]


def test_every_kind_of_message_is_known() -> None:
    up = {f.name for f in worker_pb2.WorkerMessage.DESCRIPTOR.oneofs_by_name["kind"].fields}
    said: list[Any] = [hello("w"), convert.Stacks(""), convert.LogLines(()), convert.Goodbye("")]
    names = {convert.from_worker_to_proto(v).WhichOneof("kind") for v in said}
    assert up == names | set(convert._UP.values())
    down = {f.name for f in worker_pb2.SupervisorMessage.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert down == set(convert._DOWN.values())
    assert {RunEpoch, FenceEpoch, InjectFault} < set(convert._DOWN)
    assert EpochReady in convert._UP
