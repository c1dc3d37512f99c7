"""Many seeds: run in two processes with different hash seeds, told about, and summed up in one line of JSON.

Both processes (`python -m orchestrator.testkit.sim.runner FIRST RUNS VERBOSE`) run all seeds and print one line of JSON for
each. What the order of a set could change shows as two digests of one seed's journal.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import mean

from orchestrator.testkit.sim.run import Result, simulate

HASH_SEEDS = ("1", "4711")
STORY_MAX = 400  # lines of a failing seed's story
STORIES_MAX = 5
PROGRESS_EVERY = 100


@dataclass(frozen=True, slots=True)
class Figures:
    """What the runs came to. Sums over the seeds, each counted once."""

    runs: int
    violations: int  # seeds with at least one
    hash_seeds_agree: int  # 1: every seed gave one digest of its journal in both processes
    faults: int
    machines: int  # lost one at a time
    recoveries: int  # planned changes included
    planned: int
    shrunk: int
    grown: int
    supervisor_restarts: int
    steps_lost: int
    seeds_unrecoverable: int
    commands_per_virtual_s: float
    virtual_s: float


def several(*, first: int, runs: int, verbose: bool) -> Figures:
    """Run them all in two processes; prints and returns the figures. Raises RuntimeError when a process breaks."""
    parts = [_start(hash_seed, first=first, runs=runs, verbose=verbose) for hash_seed in HASH_SEEDS]
    results: dict[int, Result] = {}
    digests: dict[int, list[str]] = {}
    told = 0
    try:
        for result in _read(parts):
            digests.setdefault(result.seed, []).append(result.digest)
            if result.seed in results:
                continue
            results[result.seed] = result
            if result.violations and told < STORIES_MAX:
                told += 1
                tell(result)
            elif verbose:
                tell(result)
            if len(results) % PROGRESS_EVERY == 0:
                bad = sum(bool(r.violations) for r in results.values())
                print(f"{len(results)} of {runs} seeds, {bad} with violations", file=sys.stderr, flush=True)
    finally:
        for process in parts:
            process.kill()
            process.wait()
    differ = sorted(s for s, d in digests.items() if len(d) != len(HASH_SEEDS) or len(set(d)) > 1)
    if differ:
        print(f"PYTHONHASHSEED changes what happens in seeds {differ[:20]}", file=sys.stderr)
    return show([results[s] for s in sorted(results)], agree=not differ)


def one(seed: int, *, verbose: bool) -> Figures:
    """One seed: here, with its story if it fails, and in two processes for the digests."""
    quiet()
    result = simulate(seed, verbose=verbose)
    if verbose or result.violations:
        tell(result)
    else:
        print(summary(result), file=sys.stderr)
    parts = [_start(hash_seed, first=seed, runs=1, verbose=False) for hash_seed in HASH_SEEDS]
    digests = {r.digest for r in _read(parts)}
    return show([result], agree=digests == {result.digest})


def show(results: Sequence[Result], *, agree: bool) -> Figures:
    """Print the line of JSON."""
    virtual_s = sum(r.virtual_s for r in results)
    figures = Figures(
        runs=len(results),
        violations=sum(bool(r.violations) for r in results),
        hash_seeds_agree=int(agree),
        faults=sum(r.faults for r in results),
        machines=sum(r.machines for r in results),
        recoveries=sum(r.recoveries for r in results),
        planned=sum(r.planned for r in results),
        shrunk=sum(r.shrunk for r in results),
        grown=sum(r.grown for r in results),
        supervisor_restarts=sum(r.restarts for r in results),
        steps_lost=sum(r.steps_lost for r in results),
        seeds_unrecoverable=sum(r.outcome == "unrecoverable" for r in results),
        commands_per_virtual_s=round(mean(r.commands / max(1.0, r.virtual_s) for r in results), 2),
        virtual_s=round(virtual_s),
    )
    print(json.dumps({"bench": "sim", "figures": asdict(figures)}), flush=True)
    return figures


def summary(result: Result) -> str:
    """One line."""
    return (
        f"seed {result.seed} ({result.kind}): {result.outcome or 'no outcome'} after {result.virtual_s:.1f} virtual s, "
        f"{result.faults} faults, {result.recoveries} recoveries ({result.planned} planned), "
        f"{result.restarts} supervisor restarts, {result.steps_lost} steps lost"
    )


def tell(result: Result) -> None:
    """The story, and how to see it again."""
    for line in result.story[-STORY_MAX:]:
        print(line, file=sys.stderr)
    print(summary(result), file=sys.stderr)
    for violation in result.violations:
        print(f"  VIOLATION {violation}", file=sys.stderr)
    if result.violations:
        print(f"  replay it: make sim SEED={result.seed}", file=sys.stderr, flush=True)


def quiet() -> None:
    """The driver logs what goes wrong, which here is everything."""
    logging.getLogger("orchestrator").setLevel(logging.CRITICAL)


def _start(hash_seed: str, *, first: int, runs: int, verbose: bool) -> subprocess.Popen[str]:
    args = [sys.executable, "-m", "orchestrator.testkit.sim.runner", str(first), str(runs), str(int(verbose))]
    return subprocess.Popen(args, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})


def _read(parts: Iterable[subprocess.Popen[str]]) -> Iterator[Result]:
    """Results of both, as they come, one of each in turn."""
    waiting = list(parts)
    while waiting:
        for process in list(waiting):
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                data = json.loads(line)
                yield Result(**{**data, "violations": tuple(data["violations"]), "story": tuple(data["story"])})
                continue
            waiting.remove(process)
            process.stdout.close()
            if process.wait() != 0:
                raise RuntimeError(f"a simulating process ended with status {process.returncode}")


def _part(argv: Sequence[str]) -> None:
    first, runs, verbose = (int(a) for a in argv)
    quiet()
    for seed in range(first, first + runs):
        print(json.dumps(asdict(simulate(seed, verbose=bool(verbose)))), flush=True)


if __name__ == "__main__":
    _part(sys.argv[1:])
