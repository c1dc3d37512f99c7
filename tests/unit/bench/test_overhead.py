"""How the overhead bench pairs its blocks, what interval it gives, and how its gate lets systems take turns."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench.gate import Gate, GateError, Gatekeeper
from bench.overhead import cpu_s
from bench.pairs import alternation, median_interval, paired_ratio


def test_neighbours_of_both_kinds_alternate() -> None:
    assert alternation(4) == "ABBAABBA"


def test_the_ratio_is_of_each_pair_and_noise_of_equal_neighbours() -> None:
    found = paired_ratio("ABBAABBA", [2.0, 1.0, 1.0, 3.0, 3.0, 1.0, 2.0, 2.0])
    assert (found.median, found.pairs) == (2.5, 4)  # ratios 2, 3, 3, 1
    assert (found.low, found.high) == (1.0, 3.0)
    assert found.noise == pytest.approx(0.0)  # 1|1, 3|3 and 1|2: the median deviation is none


def test_a_slow_drift_cancels() -> None:
    order = alternation(40)
    times = [(1.1 if letter == "A" else 1.0) * (1 + 0.002 * at) for at, letter in enumerate(order)]
    assert paired_ratio(order, times).median == pytest.approx(1.1, rel=2e-3)


def test_times_and_order_must_fit() -> None:
    with pytest.raises(ValueError, match="in pairs"):
        paired_ratio("AB", [1.0])


def test_the_interval_is_the_sign_tests() -> None:
    assert median_interval([float(x) for x in range(1, 21)]) == (6.0, 15.0)  # the table's ranks for n = 20
    assert median_interval([float(x) for x in range(1, 11)]) == (2.0, 9.0)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)  # too few for 95 %


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = random.Random(5)
    hits = 0
    for _ in range(2000):
        low, high = median_interval([rng.gauss(0.0, 1.0) for _ in range(20)])
        hits += low <= 0.0 <= high
    assert 0.94 < hits / 2000 < 0.98


class Ranks:
    """Two ranks of a variant as threads; `done` holds the steps that each has begun."""

    def __init__(self, path: str, variant: str, *, steps: int) -> None:
        self.done: list[list[int]] = [[], []]
        self.threads = [threading.Thread(target=self._main, args=(path, variant, r, steps), daemon=True) for r in range(2)]
        for thread in self.threads:
            thread.start()

    def _main(self, path: str, variant: str, rank: int, steps: int) -> None:
        gate = Gate(path, variant)
        for step in range(1, steps + 1):
            gate.pass_step(step)
            self.done[rank].append(step)
        gate.close()


def test_systems_take_turns_by_whole_blocks(tmp_path: Path) -> None:
    with Gatekeeper(tmp_path / "gate", ranks=2) as keeper:
        a, b = Ranks(keeper.path, "a", steps=9), Ranks(keeper.path, "b", steps=9)
        keeper.await_all({"a", "b"}, limit_s=30)
        assert a.done == b.done == [[1], [1]]  # the first step is free
        assert keeper.run("a", 3) > 0.0
        assert (a.done, b.done) == ([[1, 2, 3, 4]] * 2, [[1]] * 2)
        keeper.run("b", 2)
        keeper.run("a", 1)
        assert (a.done, b.done) == ([[1, 2, 3, 4, 5]] * 2, [[1, 2, 3]] * 2)
        for variant in ("a", "b"):
            with pytest.raises(GateError, match=f"a rank of {variant} has ended"):
                keeper.run(variant, 100)  # nine steps are all they have
        for thread in a.threads + b.threads:
            thread.join(30)
            assert not thread.is_alive()


def test_ranks_that_never_come_are_named(tmp_path: Path) -> None:
    with Gatekeeper(tmp_path / "gate", ranks=2) as keeper, pytest.raises(GateError, match=r"\{'a': 0\}"):
        keeper.await_all({"a"}, limit_s=0.05)


def test_cpu_time_is_of_the_whole_group_and_of_nobody_else() -> None:
    spin = "while time.process_time() < 0.3: pass"
    code = f"import os, sys, time\nchild = os.fork()\n{spin}\nos.write(1, b'x')\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as leader:
        try:
            assert leader.stdout is not None
            assert leader.stdout.read(2) == b"xx"
            assert 0.55 < cpu_s(leader.pid) < 1.2  # this process has used more
        finally:
            os.killpg(leader.pid, signal.SIGKILL)
