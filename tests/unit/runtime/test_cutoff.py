"""Only a worker that stands still in a collective, out of reach of a mute supervisor's machine, leaves its epoch by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.core.timeouts import derive
from orchestrator.runtime.cutoff import CutOff
from orchestrator.runtime.ports import Pulse

TIMEOUTS = derive(4_000)
LOOK_MS = 100


class Story:
    """A worker in epoch 3, whose time passes in looks; asking a mute machine takes all the time that was given."""

    def __init__(self, *, mute: bool, takes_ms: int = 60_000) -> None:
        self.now_ms = 0
        self.mute = mute
        self.takes_ms = takes_ms
        self.epoch = 3
        self.progress = 7
        self.in_comm = True
        self.asked: list[int] = []
        self.fenced: list[tuple[int, int]] = []
        self.fenced_at_ms = -1
        self.during: Callable[[], None] = lambda: None
        self.guard = CutOff(
            pulse=lambda: Pulse(5, "reduce", 0, self.progress, self.in_comm, 10),
            epoch=lambda: self.epoch,
            answers=self._answers,
            fence=self._fence,
            timeouts=TIMEOUTS,
            clock_s=lambda: self.now_ms / 1000,
        )

    def _answers(self, limit_ms: int) -> bool:
        self.asked.append(self.now_ms)
        self.now_ms += 1 if not self.mute else min(limit_ms, self.takes_ms)
        self.during()
        return not self.mute

    def _fence(self, epoch: int, stood_ms: int) -> None:
        self.fenced.append((epoch, stood_ms))
        self.fenced_at_ms = self.now_ms
        self.epoch = 0

    def passes(self, ms: int) -> Story:
        """Look now and then for so long."""
        until_ms = self.now_ms + ms
        while self.now_ms < until_ms:
            self.now_ms += LOOK_MS
            self.guard.look()
        return self


def test_it_fences_itself_within_detect_within() -> None:
    story = Story(mute=True).passes(10_000)
    ((epoch, stood_ms),) = story.fenced
    assert epoch == 3
    assert TIMEOUTS.lost_ms <= stood_ms <= 4_000
    assert story.fenced_at_ms <= 4_000


@pytest.mark.parametrize("takes_ms", [1, 400, 1_200])
def test_a_network_that_knows_no_route_is_given_as_long(takes_ms: int) -> None:
    ((_, stood_ms),) = Story(mute=True, takes_ms=takes_ms).passes(10_000).fenced
    assert TIMEOUTS.lost_ms <= stood_ms <= 4_000


def test_a_machine_that_answers_keeps_it_in_its_epoch_and_is_not_asked_all_the_time() -> None:
    story = Story(mute=False).passes(60_000)
    assert story.fenced == []
    assert 20 <= len(story.asked) <= 60_000 // TIMEOUTS.suspect_ms


def test_nobody_is_asked_while_it_gets_on_or_computes_or_is_in_no_epoch() -> None:
    for change in ("progress", "computes", "idle"):
        story = Story(mute=True)
        for _ in range(100):
            story.progress += change == "progress"
            story.in_comm = change != "computes"
            story.epoch = 0 if change == "idle" else 3
            story.passes(LOOK_MS)
        assert (story.asked, story.fenced) == ([], [])


def test_a_collective_that_ends_while_the_machine_is_asked_is_no_reason() -> None:
    story = Story(mute=True)

    def gets_on() -> None:
        story.progress += 1

    story.during = gets_on
    assert story.passes(60_000).fenced == []


def test_a_machine_that_falls_mute_later_is_given_the_full_time_from_there() -> None:
    story = Story(mute=False).passes(20_000)
    story.mute = True
    before_ms = story.now_ms
    story.passes(10_000)
    assert len(story.fenced) == 1
    assert story.fenced_at_ms - before_ms >= TIMEOUTS.lost_ms - TIMEOUTS.suspect_ms
    assert story.fenced_at_ms - before_ms <= 4_000
