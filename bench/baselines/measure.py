"""Measures a peer's recovery, for the bench that sets it beside ours: `kill -9` of a worker to the end of the next step.

    python -m bench.baselines.measure --system torchrun --ranks 4 --kills 3 --json

It needs no torch itself: it starts the system in an environment of its own, lets it reach a steady state, kills a
random worker in mid-step, and reads the workers' step log (`steps.py` holds the rules). Kills are spread evenly over
the distance to the last checkpoint, because that distance decides how much torchrun does again. Nothing is left
running, however it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from bench.baselines import proc, steps
from bench.baselines.dims import Dims, add_dims_flags, dims_from
from bench.baselines.systems import CHECKPOINT_EVERY_STEPS, SYSTEMS, Site, System, prepare

T = TypeVar("T")

POLL_S = 0.004
SETTLE_STEPS = 4  # whole steps at full strength before a kill
STEP_TIME_WINDOW = 20
MID_STEP = (0.1, 0.6)  # where in the step the kill falls, in step times after its begin
PREPARE_TIMEOUT_S = 900
START_LIMIT_S = 90.0  # to a steady state before a kill; too late here is no failed recovery


class NotRecovered(Exception):
    """The system did not do in time what was waited for; the message says what."""


@dataclass(slots=True)
class Findings:
    """What a measurement has gathered; times in seconds."""

    times_s: list[float] = field(default_factory=list)
    full_strength_s: list[float] = field(default_factory=list)
    redone: list[int] = field(default_factory=list)
    victims: list[dict[str, int]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    step_times_s: list[float] = field(default_factory=list)


class Run:
    """One life of the system, from its start until it is killed with all that belongs to it."""

    def __init__(self, system: System, site: Site, *, limit_s: float) -> None:
        self._system, self._site, self._limit_s = system, site, limit_s
        self._text, self._offset = "", 0
        self._lines: list[steps.Line] = []

    def lines(self) -> list[steps.Line]:
        """All whole lines so far; reads only what was appended."""
        if self._site.steps_file.exists():
            with self._site.steps_file.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._lines += steps.parse(whole.decode())
        return self._lines

    def wait(self, what: str, check: Callable[[], T | None], *, limit_s: float) -> T:
        """Polls until `check` gives a value; raises NotRecovered after the limit or when the job is over."""
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            self._system.tick()
            if (value := check()) is not None:
                return value
            if (reason := self._system.ended()) is not None:
                raise NotRecovered(f"{what}: {reason}")
            time.sleep(POLL_S)
        raise NotRecovered(f"{what}: not within {limit_s:.0f} s")

    def full_strength(self, *, after_s: float) -> float | None:
        """When all workers, spares too, first finished one and the same step after `after_s`."""
        seen: dict[int, dict[int, float]] = {}
        for line in self.lines():
            if line.event == "step" and line.t_s > after_s:
                ends = seen.setdefault(line.step, {})
                ends[line.worker] = line.t_s
                if len(ends) == self._system.workers:
                    return max(ends.values())
        return None

    def kill_one(self, found: Findings, rng: random.Random, *, phase: int, since_s: float, checkpoints: bool) -> float:
        """Lets it settle, kills one worker, waits until it is whole again. Returns when; raises NotRecovered."""
        ranks = self._site.ranks
        whole_s = self.wait("full strength before the kill", lambda: self.full_strength(after_s=since_s), limit_s=START_LIMIT_S)
        if checkpoints:
            self.wait("first checkpoint", self._checkpointed, limit_s=START_LIMIT_S)

        def settled() -> tuple[int, dict[int, float]] | None:
            done = steps.completions(self.lines(), ranks=ranks, after_s=whole_s)
            newest = max(done, default=0)
            fits = len(done) > SETTLE_STEPS and newest % CHECKPOINT_EVERY_STEPS == phase
            return (newest, done) if fits else None

        step, done = self.wait("a steady state", settled, limit_s=START_LIMIT_S)
        spans = steps.step_times(done)[-STEP_TIME_WINDOW:]
        found.step_times_s += spans
        pause_s = rng.uniform(*MID_STEP) * (steps.median(spans) or 0.0)
        time.sleep(max(0.0, done[step] + pause_s - time.monotonic()))
        rank = rng.randrange(ranks)
        victim = [line for line in self.lines() if line.event == "step" and line.rank == rank][-1]
        found.victims.append({"rank": rank, "worker": victim.worker, "step": step})
        killed_s = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)

        before = steps.newest_step(self.lines(), until_s=killed_s)
        _, end_s = self.wait(
            "a new step after the kill",
            lambda: steps.first_new_step(self.lines(), ranks=ranks, killed_s=killed_s),
            limit_s=self._limit_s,
        )
        found.times_s.append(round(end_s - killed_s, 4))
        found.redone.append(steps.steps_redone(self.lines(), until_step=before, killed_s=killed_s))
        # Back at full strength: the process that replaces the victim has a pid that was not there before.
        again_s = self.wait("full strength after the kill", lambda: self._replaced(victim.pid, killed_s), limit_s=self._limit_s)
        found.full_strength_s.append(round(again_s - killed_s, 4))
        return again_s

    def _checkpointed(self) -> bool | None:
        return any(line.event == "checkpoint" for line in self.lines()) or None

    def _replaced(self, pid: int, killed_s: float) -> float | None:
        lines = self.lines()
        worker = next(line.worker for line in lines if line.pid == pid)
        fresh = [line.t_s for line in lines if line.event == "start" and line.worker == worker and line.t_s > killed_s]
        return self.full_strength(after_s=fresh[-1]) if fresh else None


def output_tail(site: Site) -> str:
    """The last lines of what the system printed."""
    if not site.output_file.exists():
        return ""
    return "\n".join(site.output_file.read_text(errors="replace").splitlines()[-12:])[-1500:]


def measure(name: str, *, python: Path, ranks: int, kills: int, seed: int, dims: Dims, limit_s: float) -> Findings:
    """Kills `kills` times, in one life of the system, or in a new one after each failure to recover."""
    found, rng = Findings(), random.Random(seed)
    first = rng.randrange(CHECKPOINT_EVERY_STEPS)
    phases = [(first + n * CHECKPOINT_EVERY_STEPS // kills) % CHECKPOINT_EVERY_STEPS for n in range(kills)]
    kill = 0
    while kill < kills:
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
            site = Site(folder=Path(folder), python=python, token=uuid.uuid4().hex, ranks=ranks, dims=dims)
            system = SYSTEMS[name](site)
            run, since_s = Run(system, site, limit_s=limit_s), 0.0
            try:
                system.start()
                while kill < kills:
                    killed, recovered = len(found.victims), len(found.times_s)
                    try:
                        checkpoints = name == "torchrun"
                        since_s = run.kill_one(found, rng, phase=phases[kill], since_s=since_s, checkpoints=checkpoints)
                    except NotRecovered as error:
                        outcome = {
                            "killed": len(found.victims) > killed,
                            "recovered": len(found.times_s) > recovered,
                        }
                        found.failures.append({"kill": kill, **outcome, "why": str(error)})
                        print(f"{name} kill {kill}: {error}\n{output_tail(site)}", file=sys.stderr, flush=True)
                        kill += 1
                        break
                    spent = f"{found.times_s[-1]:.2f} s, full strength {found.full_strength_s[-1]:.2f} s"
                    print(f"{name} kill {kill}: {spent}, steps redone {found.redone[-1]}", file=sys.stderr, flush=True)
                    kill += 1
            finally:
                proc.kill_marked(site.token)
    return found


def report(args: argparse.Namespace, dims: Dims) -> dict[str, Any]:
    """All that one call prints; `available` is False, with `why`, where the system cannot be had on this machine."""
    head: dict[str, Any] = {"system": args.system, "ranks": args.ranks, "kills": args.kills, "seed": args.seed}
    prepared = prepare(args.system, timeout_s=PREPARE_TIMEOUT_S)
    if isinstance(prepared, str):
        return head | {"available": False, "why": prepared}
    python, versions = prepared
    started_s = time.monotonic()
    found = measure(
        args.system,
        python=python,
        ranks=args.ranks,
        kills=args.kills,
        seed=args.seed,
        dims=dims,
        limit_s=args.limit_s,
    )
    return head | {
        "available": True,
        "versions": versions,
        "dims": asdict(dims),
        "times_s": found.times_s,
        "median_s": steps.median(found.times_s),
        "full_strength_s": found.full_strength_s,
        "steps_redone": found.redone,
        "median_step_s": steps.median(found.step_times_s),
        "failed": sum(failure["killed"] and not failure["recovered"] for failure in found.failures),
        "failures": found.failures,
        "victims": found.victims,
        "wall_s": round(time.monotonic() - started_s, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=sorted(SYSTEMS), required=True)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=60.0, help="a recovery that takes longer has failed")
    parser.add_argument("--json", action="store_true", help="print one line of JSON (else indented)")
    add_dims_flags(parser)
    args = parser.parse_args()
    if args.ranks < 2 or args.kills < 1:
        parser.error("at least 2 ranks and 1 kill")

    def stop(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    print(json.dumps(report(args, dims_from(args)), indent=None if args.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
