"""Good job files become complete jobs: defaults filled in, paths absolute, values as they were meant.

The defaults that depend on other fields are stated here as tables, and so is every way to write a number, a duration
and a target.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from orchestrator.core.job import (
    Action,
    BadStep,
    CheckpointSettings,
    ClusterSettings,
    Consistency,
    DeviceKind,
    FailureClass,
    FailurePolicy,
    Job,
    OptimizerSettings,
    ParallelSettings,
    PlannerSettings,
    Precision,
    ResilienceSettings,
    TaskRef,
    TrainSettings,
)
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.strategy import Space
from orchestrator.spec import JobSpec, SpecError, load, load_text, resolve
from orchestrator.spec.values import duration_ms

GOOD = Path(__file__).parent / "good"
ROOT = Path(__file__).parents[3]


def job_of(body: str) -> Job:
    return load_text(f"name: a\n{body}\n", base_dir="/jobs")


def test_a_name_is_enough() -> None:
    assert load(GOOD / "minimal.yaml") == Job(
        name="a",
        task=TaskRef(target="gpt", options_json="{}", base_dir=str(GOOD)),
        train=TrainSettings(
            steps=200,
            seed=1,
            micro_batches=8,
            consistency=Consistency.EXACT,
            precision=Precision.FP32,
            optimizer=OptimizerSettings(
                lr=3e-4,
                beta1=0.9,
                beta2=0.95,
                eps=1e-8,
                weight_decay=0.1,
                warmup_steps=20,
                min_lr_ratio=0.1,
                clip_grad_norm=1.0,
            ),
            digest_every=10,
            eval_every=50,
            eval_micro_batches=4,
        ),
        parallel=ParallelSettings(
            data=4,
            zero_stage=0,
            shard=0,
            copies=0,
            tensor=1,
            pipeline=1,
            stages_per_rank=1,
            layers_per_stage=(),
            schedule=PipelineSchedule.ONE_F_ONE_B,
            recompute=(False,),
            shares=(),
        ),
        planner=PlannerSettings(auto=False, space=Space(), checkpoint=False),
        cluster=ClusterSettings(nodes=4, spares=1, slots_per_node=1, device=DeviceKind.CPU),
        checkpoint=CheckpointSettings(uri="", every=0, keep=1),
        resilience=ResilienceSettings(
            detect_within_ms=4000,
            failure_budget=5,
            budget_refill_steps=50,
            slow_factor=2.0,
            policies=(
                FailurePolicy(FailureClass.WORKER_EXITED, (Action.SWAP, Action.SHRINK, Action.WAIT)),
                FailurePolicy(FailureClass.NODE_LOST, (Action.SWAP, Action.SHRINK, Action.WAIT)),
                FailurePolicy(FailureClass.WORKER_HUNG, (Action.SWAP, Action.SHRINK, Action.WAIT)),
                FailurePolicy(FailureClass.WORKER_SLOW, (Action.REPORT,)),
                FailurePolicy(FailureClass.CORRUPT_STATE, (Action.SWAP, Action.SHRINK, Action.FAIL)),
            ),
            ranks_min=1,
            grow_after_steps=10,
            on_bad_step=BadStep.FAIL,
            loss_spike_factor=0.0,
        ),
    )


def test_every_key_is_heard() -> None:
    assert load(GOOD / "full.yaml") == Job(
        name="full-job-1",
        task=TaskRef(
            target="my_models.nets:ConvNet",
            options_json='{"deep":{"a":"yes","b":[1,null,true]},"text":"\\u00e9","width":8}',
            base_dir=str(GOOD),
        ),
        train=TrainSettings(
            steps=1000,
            seed=0,
            micro_batches=16,
            consistency=Consistency.FAST,
            precision=Precision.BF16,
            optimizer=OptimizerSettings(
                lr=3e-4,
                beta1=0.0,
                beta2=0.999,
                eps=1e-6,
                weight_decay=0.0,
                warmup_steps=0,
                min_lr_ratio=1.0,
                clip_grad_norm=0.0,
            ),
            digest_every=0,
            eval_every=0,
            eval_micro_batches=1,
        ),
        parallel=ParallelSettings(
            data=4,
            zero_stage=3,
            shard=2,
            copies=0,
            tensor=2,
            pipeline=2,
            stages_per_rank=2,
            layers_per_stage=(3, 1, 1, 2),
            schedule=PipelineSchedule.INTERLEAVED,
            recompute=(True, False, False, True),
            shares=(),
        ),
        planner=PlannerSettings(auto=False, space=Space(), checkpoint=False),
        cluster=ClusterSettings(nodes=8, spares=0, slots_per_node=2, device=DeviceKind.CUDA),
        checkpoint=CheckpointSettings(uri="s3://bucket/run", every=0, keep=1),
        resilience=ResilienceSettings(
            detect_within_ms=1500,
            failure_budget=0,
            budget_refill_steps=1,
            slow_factor=1.25,
            policies=(
                FailurePolicy(FailureClass.WORKER_EXITED, (Action.SHRINK, Action.FAIL)),
                FailurePolicy(FailureClass.NODE_LOST, (Action.WAIT,)),
                FailurePolicy(FailureClass.WORKER_HUNG, (Action.FAIL,)),
                FailurePolicy(FailureClass.WORKER_SLOW, (Action.RECUT, Action.SWAP, Action.REPORT)),
                FailurePolicy(FailureClass.CORRUPT_STATE, (Action.ROLLBACK, Action.FAIL)),
            ),
            ranks_min=8,
            grow_after_steps=0,
            on_bad_step=BadStep.ROLLBACK,
            loss_spike_factor=2.5,
        ),
    )


def test_no_value_of_a_job_has_a_wrong_type() -> None:
    job = job_of("train: {optimizer: {lr: 1, weight_decay: 0}}\nresilience: {slow_factor: 3}")
    for section in (job.train, job.train.optimizer, job.parallel, job.cluster, job.checkpoint, job.resilience):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            assert str(field.type).partition("[")[0] == type(value).__name__, (field.name, value)


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*/job.yaml")), ids=lambda path: path.parent.name)
def test_the_examples_load(example: Path) -> None:
    assert load(example).task.base_dir == str(example.parent)


def test_the_main_example_is_what_the_main_job_needs() -> None:
    job = load(ROOT / "examples/gpt-docs/job.yaml")
    assert (job.name, job.task.target, job.train.steps, job.train.micro_batches) == ("gpt-docs", "gpt", 60, 8)
    p = job.parallel
    assert (p.data, p.zero_stage, p.copies, p.tensor, p.pipeline) == (4, 1, 1, 1, 1)
    assert (job.cluster.nodes, job.cluster.spares) == (4, 1)
    assert json.loads(job.task.options_json)["width"] == 128


@pytest.mark.parametrize(
    ("body", "data", "copies"),
    [
        ("cluster: {nodes: 2, slots_per_node: 3}", 6, 0),
        ("cluster: {nodes: 2, slots_per_node: 3}\nparallel: {zero: 1}", 6, 1),
        ("cluster: {nodes: 1, slots_per_node: 3}\nparallel: {zero: 1}", 3, 0),
        ("parallel: {zero: 1, data: 1}", 1, 0),
        ("parallel: {zero: 1, data: 2}", 2, 1),
        ("parallel: {zero: 1, copies: 0}", 4, 0),
        ("parallel: {pipeline: 2}", 2, 1),
        ("parallel: {pipeline: 4}", 1, 1),
        ("parallel: {tensor: 3}", 1, 1),
        ("cluster: {nodes: 9}\nparallel: {pipeline: 2, tensor: 2}\nresilience: {min_ranks: 8}", 2, 1),
        ("cluster: {nodes: 1, slots_per_node: 4}\nparallel: {pipeline: 2}", 2, 0),
    ],
)
def test_defaults_that_depend_on_the_cluster(body: str, data: int, copies: int) -> None:
    parallel = job_of(body).parallel
    assert (parallel.data, parallel.copies) == (data, copies)


@pytest.mark.parametrize(
    ("body", "schedule", "shard"),
    [
        ("", "1f1b", 0),
        ("parallel: {pipeline: 2, stages_per_rank: 2}", "interleaved", 0),
        ("parallel: {pipeline: 2, schedule: zero-bubble}", "zero-bubble", 0),
        ("parallel: {zero: 3, shard: 4}", "1f1b", 0),
        ("parallel: {zero: 3, shard: 2}", "1f1b", 2),
    ],
)
def test_defaults_that_depend_on_the_plan(body: str, schedule: str, shard: int) -> None:
    parallel = job_of(body).parallel
    assert (parallel.schedule, parallel.shard) == (schedule, shard)


def test_a_policy_is_completed() -> None:
    asked = "resilience:\n  policy:\n    default: [swap]\n    node-lost: [shrink, wait]\n    worker-slow: [swap]\n"
    settings = job_of(asked).resilience
    assert settings.actions(FailureClass.WORKER_EXITED) == (Action.SWAP, Action.FAIL), "what is always possible ends a list"
    assert settings.actions(FailureClass.WORKER_HUNG) == (Action.SWAP, Action.FAIL)
    assert settings.actions(FailureClass.NODE_LOST) == (Action.SHRINK, Action.WAIT)
    assert settings.actions(FailureClass.WORKER_SLOW) == (Action.SWAP, Action.REPORT), "a slow worker that must stay is shown"
    assert settings.actions(FailureClass.CORRUPT_STATE) == (Action.SWAP, Action.FAIL)
    slow = job_of("resilience: {policy: {default: [fail]}}").resilience.actions(FailureClass.WORKER_SLOW)
    assert slow == (Action.REPORT,), "the default is not about slow workers"


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (9, 0), (10, 1), (60, 6), (1_000, 100), (100_000, 100)])
def test_the_default_warmup_follows_the_steps(steps: int, warmup: int) -> None:
    assert job_of(f"train: {{steps: {steps}}}").train.optimizer.warmup_steps == warmup


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("./checkpoints", "/jobs/checkpoints"),
        ("../ck", "/ck"),
        ("/abs/ck", "/abs/ck"),
        ("~/ck", "/home/user/ck"),
        ("s3://bucket/run", "s3://bucket/run"),
        ("file:///abs/ck", "file:///abs/ck"),
        ("simplecache::s3://bucket/run", "simplecache::s3://bucket/run"),
    ],
)
def test_checkpoint_places(uri: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    assert job_of(f'checkpoint: {{uri: "{uri}"}}').checkpoint == CheckpointSettings(uri=meant, every=50, keep=3)


def test_relative_paths_start_at_the_file_not_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "job.yaml").write_text("name: a\ncheckpoint: {uri: ck}\n")
    monkeypatch.chdir(tmp_path)
    job = load(os.path.join("jobs", "job.yaml"))
    assert job.checkpoint.uri == str(tmp_path / "jobs" / "ck")
    assert job.task.base_dir == str(tmp_path / "jobs")


@pytest.mark.parametrize(
    "target",
    ["gpt", "net:Net", "pkg.mod:Class", "net.py:Net", "./a b/net.py:Net", "/abs/net.py:Net", "../net.py:Net_1"],
)
def test_task_targets(target: str) -> None:
    assert job_of(f'task: "{target}"').task.target == target
    assert job_of(f'task: {{target: "{target}"}}').task.target == target


@pytest.mark.parametrize(
    "target",
    [
        "",
        "GPT",
        ":",
        ":Net",
        "net:",
        "net.py",
        "a..b:Net",
        "net.py:a.b",
        "a/b:Net",
        ".py:Net",
        "x/.py:N",
        "a:class",
        "1a:N",
    ],
)
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(SpecError) as caught:
        job_of(f'task: "{target}"')
    assert [problem.path for problem in caught.value.problems] == ["task"]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("500ms", 500), ("4s", 4_000), ("1.5s", 1_500), ("1m", 60_000), ("0.1m", 6_000), ("2h", 7_200_000), ("0.001s", 1)],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert duration_ms(text) == milliseconds


@pytest.mark.parametrize("text", ["", "4", "s", "4 s", "-4s", "4S", "1e3s", "0.5ms", "1.s", ".5s", "4s\n", "٤s", "9" * 99 + "s"])
def test_texts_that_are_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no "):
        duration_ms(text)


@pytest.mark.parametrize("text", ["1s", "1000ms", "10m", "600s"])
def test_the_ends_of_the_range_of_detect_within(text: str) -> None:
    assert 1_000 <= job_of(f"resilience: {{detect_within: {text}}}").resilience.detect_within_ms <= 600_000


@pytest.mark.parametrize("text", ["999ms", "10.001m", "1h", "0s"])
def test_just_outside_the_range_of_detect_within(text: str) -> None:
    with pytest.raises(SpecError, match="must be from 1s to 10m"):
        job_of(f"resilience: {{detect_within: {text}}}")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("3e-4", 3e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("0x10", 16),
        ("0o17", 15),
        ("-0", 0),
        ("+7", 7),
        ("TRUE", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("010", "010"),
        ("'4'", "4"),
        ('"no"', "no"),
        ("|\n   two\n   lines", "two\nlines\n"),
    ],
)
def test_scalars_follow_the_core_rules_of_yaml_1_2(written: str, meant: object) -> None:
    options = json.loads(job_of(f"task:\n options:\n  x: {written}").task.options_json)
    assert options == {"x": meant}
    assert type(options["x"]) is type(meant)


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: a\r\ntrain:\r\n  steps: 7\r\n")
    assert load(path).train.steps == 7
    path.write_bytes(b"\xef\xbb\xbfname: a\r\ntrain:\r\n  stepz: 7\r\n")
    with pytest.raises(SpecError, match=r"job\.yaml:3:3: train\.stepz: unknown key"):
        load(path)


def test_a_spec_built_in_python_is_held_to_the_same_rules() -> None:
    assert resolve(JobSpec.model_validate({"name": "a", "task": "gpt"}), base_dir="/jobs") == job_of("")
    with pytest.raises(ValueError, match="data ranks do not fit"):
        resolve(JobSpec.model_validate({"name": "a", "parallel": {"data": 5}}), base_dir="/jobs")


@pytest.mark.parametrize("text", ["parallel: auto", "parallel: {plan: auto}"])
def test_the_planner_may_choose_everything_but_what_the_cluster_gives(text: str) -> None:
    job = job_of(f"{text}\ncluster: {{nodes: 3, slots_per_node: 2}}\nresilience: {{min_ranks: 2}}\ntrain: {{micro_batches: 4}}")
    assert job.planner == PlannerSettings(auto=True, space=Space(copies=(1,), ranks_min=2, ranks_max=6), checkpoint=False)
    assert job.parallel.ranks == 4, "to begin with: as many data ranks as there is work for"


def test_what_the_file_gives_stays_fixed() -> None:
    axes = "tensor: 2, pipeline: 2, data: 1, zero: 0, schedule: zero-bubble, recompute: false, copies: 0"
    job = job_of(f"parallel: {{plan: auto, {axes}}}\ncluster: {{nodes: 8}}")
    assert job.planner.space == Space(
        tensors=(2,),
        pipelines=(2,),
        datas=(1,),
        zeros=(0,),
        schedules=(PipelineSchedule.ZERO_BUBBLE,),
        recompute=(False,),
        copies=(0,),
        ranks_max=8,
    )


def test_the_planner_may_choose_the_interval_of_checkpoints() -> None:
    job = job_of("parallel: auto\ncheckpoint: {uri: ./c, every: auto}")
    assert job.planner.checkpoint
    assert job.checkpoint.every == 50, "until it has chosen"
    assert not job_of("parallel: auto\ncheckpoint: {uri: ./c, every: 7}").planner.checkpoint


def test_recomputation_and_shares_by_hand() -> None:
    job = job_of("parallel: {pipeline: 2, data: 2, recompute: [true, false], shares: [3, 5]}\ncluster: {nodes: 4}")
    assert (job.parallel.recompute, job.parallel.shares) == ((True, False), (3, 5))
    assert job_of("parallel: {recompute: true}").parallel.recompute == (True,)
