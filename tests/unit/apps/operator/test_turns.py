"""Turns in real threads: each job's one after another, woken or by the clock, and again after a failure."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from orchestrator.adapters.kube.api import KubeError
from orchestrator.apps.operator import turns
from orchestrator.apps.operator.turns import Key, Turns

LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses a hundredth as long."""
    for name in ("SETTLE_S", "SETTLE_MAX_S", "RETRY_S", "RETRY_MAX_S", "IDLE_S"):
        monkeypatch.setattr(turns, name, getattr(turns, name) / 100)


@contextmanager
def running(turn: Callable[[Key], float | None], *, may: Callable[[], bool] = lambda: True) -> Iterator[Turns]:
    """Turns that are given."""
    made = Turns(turn, may=may)
    made.start()
    yield made
    made.stop(limit_s=LIMIT_S)


def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    due_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < due_s
        time.sleep(0.001)


def test_a_job_never_has_two_turns_at_once_and_misses_no_change() -> None:
    key, busy, seen = ("n", "j"), threading.Lock(), []
    state = [0]

    def turn(_: Key) -> float | None:
        assert busy.acquire(blocking=False), "two turns at once"
        seen.append(state[0])
        time.sleep(0.002)
        busy.release()
        return 1000.0

    with running(turn) as made:
        for n in range(1, 200):
            state[0] = n
            made.wake(key)
        until(lambda: bool(seen) and seen[-1] == 199)
    assert len(seen) < 200  # changes come in heaps


def test_a_job_at_which_a_look_takes_long_is_not_looked_at_all_the_time() -> None:
    ends: list[float] = []
    begins: list[float] = []

    def turn(_: Key) -> float | None:
        begins.append(time.monotonic())
        time.sleep(0.01)
        ends.append(time.monotonic())
        made.wake(("n", "j"))  # pods change all the time
        return 1000.0

    with running(turn) as made:
        made.wake(("n", "j"))
        until(lambda: len(ends) > 5)
    assert all(begin - end >= 0.01 for begin, end in zip(begins[1:], ends, strict=False))


def test_a_turn_comes_by_itself_when_it_asked_for_one() -> None:
    seen: list[Key] = []

    def turn(key: Key) -> float | None:
        seen.append(key)
        return 0.001

    with running(turn) as made:
        made.wake(("n", "j"))
        until(lambda: len(seen) > 5)


def test_a_job_that_is_gone_gets_none() -> None:
    seen: list[Key] = []

    def turn(key: Key) -> float | None:
        seen.append(key)
        return None

    with running(turn) as made:
        made.wake(("n", "gone"))
        until(lambda: seen == [("n", "gone")])
        made.wake(("n", "other"))
        until(lambda: len(seen) == 2)
        time.sleep(0.05)
    assert len(seen) == 2


def test_failures_are_tried_again_ever_later_and_one_job_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[float] = []
    others: list[Key] = []

    def turn(key: Key) -> float | None:
        if key[1] == "good":
            others.append(key)
            return 0.001
        tried.append(time.monotonic())
        if len(tried) == 1:
            raise KubeError(status=0, reason="Unreachable", message="it does not answer")
        if len(tried) < 6:
            raise RuntimeError("a mistake of ours")
        return 1000.0

    with running(turn) as made:
        made.wake(("n", "bad"))
        made.wake(("n", "good"))
        until(lambda: len(tried) == 6 and len(others) > 5)
    waits = [b - a for a, b in itertools.pairwise(tried)]
    assert all(waited >= 0.005 * 2**n for n, waited in enumerate(waits))
    assert "it does not answer" in caplog.text
    assert "a mistake of ours" in caplog.text


def test_a_refusal_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[Key] = []

    def turn(key: Key) -> float | None:
        tried.append(key)
        if len(tried) < 5:
            raise KubeError(status=403, reason="Forbidden", message="exceeded quota")
        return 1000.0

    with running(turn) as made:
        made.wake(("n", "j"))
        until(lambda: len(tried) == 5)
    assert caplog.text.count("exceeded quota") == 1


def test_nobody_gets_a_turn_while_another_operator_is_at_work() -> None:
    may = threading.Event()
    seen: list[Key] = []

    def turn(key: Key) -> float | None:
        seen.append(key)
        return None

    with running(turn, may=may.is_set) as made:
        made.wake(("n", "j"))
        time.sleep(0.05)
        assert seen == []
        may.set()
        until(lambda: seen == [("n", "j")])
