"""What the benches make of digests in a journal, on hand-written ones."""

from __future__ import annotations

import pytest

from bench.watch import digests_of, equal_digests
from orchestrator.core.supervisor.events import DigestReported
from orchestrator.runtime.ports import Record


def digest(step: int, worker: str, text: str) -> Record:
    return Record(step, step, 0.0, DigestReported(step, worker, 1, step, text), (), "", "running", 1, step)


def test_digests_count_only_where_ranks_agree() -> None:
    records = [digest(10, "a", "x"), digest(10, "b", "x"), digest(20, "a", "y"), digest(20, "b", "z"), digest(30, "a", "w")]
    assert digests_of(records) == {10: "x", 30: "w"}


@pytest.mark.parametrize(
    ("stormy", "until", "equal"),
    [
        ({10: "x", 20: "y"}, 20, True),
        ({10: "x", 20: "y"}, 10, True),
        ({10: "x", 20: "other"}, 20, False),
        ({20: "y"}, 20, False),  # one is missing
        ({10: "x", 20: "y", 30: "z"}, 30, False),  # the undisturbed run did not get there
        ({}, 0, False),  # nothing was compared
    ],
)
def test_runs_are_equal_when_every_digest_is(stormy: dict[int, str], until: int, equal: bool) -> None:
    assert equal_digests({10: "x", 20: "y"}, stormy, until=until) is equal
