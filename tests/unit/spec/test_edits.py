"""What an edit of a spec means to the job that was submitted with another: which keys act, which do not, and what is said."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from orchestrator.spec.edits import CHANGES_SHOWN_MAX, Edited, edited, listed
from orchestrator.spec.errors import SpecError
from tests.unit.apps.operator.toy import manifest

Object = dict[str, Any]


def merged(tree: Any, change: Object) -> Any:
    """A JSON merge patch of it."""
    made = dict(tree) if isinstance(tree, dict) else {}
    for key, value in change.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merged(made.get(key), value) if isinstance(value, dict) else value
    return made


def edit(change: Object, *, section: Object | None = None) -> Edited:
    """A job of two nodes whose spec was changed so after it was submitted."""
    obj = manifest()
    submitted = copy.deepcopy(obj["spec"])
    return edited({**obj, "spec": merged(obj["spec"], change)}, submitted=submitted, section=section)


def paths(found: Edited) -> tuple[list[str], list[str]]:
    """Of the keys that do not act, and of those that reach new pods."""
    return [change.path for change in found.ignored], [change.path for change in found.for_new_pods]


@pytest.mark.parametrize(
    ("change", "ignored", "for_new_pods"),
    [
        ({}, [], []),
        ({"cluster": {"nodes": 3}, "suspend": True}, [], []),
        ({"kubernetes": {"activeDeadline": "1h", "ttlAfterFinished": "1h", "gangTimeout": "20s"}}, [], []),
        ({"train": {"steps": 77}}, ["spec.train.steps"], []),
        ({"train": {"optimizer": {"lr": 0.5}}}, ["spec.train.optimizer.lr"], []),
        ({"cluster": {"spares": 2}}, ["spec.cluster.spares"], []),
        ({"resilience": {"detect_within": "9s"}}, ["spec.resilience.detect_within"], []),
        ({"task": {"options": {"new": 1}}}, ["spec.task.options.new"], []),
        ({"checkpoint": {"uri": "s3://b/r"}}, ["spec.checkpoint"], []),
        ({"kubernetes": {"image": "x:2"}}, [], ["spec.kubernetes.image"]),
        ({"kubernetes": {"worker": {"cpu": "2"}}}, [], ["spec.kubernetes.worker"]),
        ({"kubernetes": {"backend": "pods"}}, ["spec.kubernetes.backend"], []),
        ({"kubernetes": {"queue": "q"}}, ["spec.kubernetes.queue"], []),
        ({"kubernetes": {"scheduler": "volcano"}}, ["spec.kubernetes.scheduler"], []),
        ({"kubernetes": {"head": {"storage": "5Gi", "cpu": "1"}}}, ["spec.kubernetes.head.storage"], ["spec.kubernetes.head"]),
        (
            {"train": {"seed": 9}, "cluster": {"nodes": 3}, "kubernetes": {"image": "x:2"}},
            ["spec.train.seed"],
            ["spec.kubernetes.image"],
        ),
    ],
)
def test_each_key_acts_at_once_or_for_new_pods_or_not_at_all(change: Object, ignored: list[str], for_new_pods: list[str]) -> None:
    found = edit(change)
    assert (found.invalid, paths(found)) == ("", (ignored, for_new_pods))
    assert found.job == edit({}).job, "the job is the one that was submitted"


def test_what_is_written_otherwise_and_means_the_same_is_no_edit() -> None:
    as_written, otherwise = "4s", "4000ms"
    obj = manifest(detect_within=as_written)
    now = merged(obj["spec"], {"resilience": {"detect_within": otherwise}, "kubernetes": {"head": {}}})
    assert now != obj["spec"]
    found = edited({**obj, "spec": now}, submitted=obj["spec"], section=None)
    assert paths(found) == ([], [])


def test_new_pods_get_the_settings_as_they_are_now_but_for_what_stays() -> None:
    found = edit({"kubernetes": {"image": "x:2", "activeDeadline": "1h", "backend": "pods", "head": {"storage": "5Gi"}}})
    assert (found.kubernetes.image, found.kubernetes.active_deadline_s) == ("x:2", 3600)
    assert (found.kubernetes.backend, found.kubernetes.head.storage) == ("auto", "1Gi")


def test_a_job_that_cannot_be_run_as_it_is_now_keeps_what_it_was_and_new_pods_get_the_settings_all_the_same() -> None:
    found = edit({"checkpoint": {"uri": "/nowhere"}, "kubernetes": {"image": "x:2"}})
    assert "spec.checkpoint.uri: /nowhere is on no volume" in found.invalid
    assert (paths(found)[0], found.kubernetes.image) == (["spec.checkpoint"], "x:2")


TWICE = [{"claim": "a", "path": "/a"}, {"claim": "b", "path": "/a"}]


@pytest.mark.parametrize(("section", "image"), [(None, "x:1"), ({"image": "x:2"}, "x:2")])
def test_settings_that_cannot_be_read_leave_those_that_could_be_read_last(section: Object | None, image: str) -> None:
    found = edit({"kubernetes": {"image": "x:3", "volumes": TWICE}}, section=section)
    assert 'two volumes have the path "/a"' in found.invalid
    assert (found.kubernetes.image, found.ignored) == (image, ())


def test_settings_that_fit_only_a_job_edited_with_them_are_refused() -> None:
    home = [{"claim": "c", "path": "/here"}]
    obj = manifest(kubernetes={"volumes": home})
    obj["spec"]["checkpoint"] = {"uri": "/here/run"}
    moved = merged(
        obj["spec"], {"checkpoint": {"uri": "/there/run"}, "kubernetes": {"volumes": [{"claim": "c", "path": "/there"}]}}
    )
    found = edited({**obj, "spec": moved}, submitted=obj["spec"], section=None)
    assert found.invalid.startswith("spec.kubernetes does not fit the job as it was submitted: ")
    assert [volume.path for volume in found.kubernetes.volumes] == ["/here"]


def test_what_was_submitted_and_cannot_be_read_is_an_error() -> None:
    obj = manifest()
    with pytest.raises(SpecError):
        edited(obj, submitted={"kubernetes": {"image": "x"}, "train": {"a key of later": 1}}, section=None)


def test_values_are_shown_where_they_are_short_and_no_secret() -> None:
    change = {
        "train": {"steps": 77},
        "task": {"options": {"text": "x" * 500, "odd": "\x1b[31m"}},
        "kubernetes": {"env": {"TOKEN": "s3cret"}, "image": "x:2"},
    }
    found = edit(change)
    said = listed((*found.ignored, *found.for_new_pods))
    assert "spec.train.steps (12 before, 77 now)" in said
    assert "spec.task.options.text (another value)" in said
    assert 'spec.kubernetes.image ("x:1" before, "x:2" now)' in said
    assert "spec.kubernetes.env (another value)" in said
    assert "s3cret" not in said
    assert "\x1b" not in said


def test_a_long_list_of_changes_is_cut() -> None:
    found = edit({"task": {"options": {f"key{n}": n for n in range(CHANGES_SHOWN_MAX + 4)}}})
    assert listed(found.ignored).endswith(" and 4 more")
