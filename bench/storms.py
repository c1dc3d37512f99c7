"""Storms: seeded runs of mixed faults on real processes, each judged by its journal, its checkpoints and its bits.

The supervisor, the gRPC streams, the groups, the engine and the checkpoints are the real ones; only Ray is not there. Each
machine is a network namespace on a bridge, so a cable can be pulled. Where namespaces cannot be made (no CAP_SYS_ADMIN) the
storms that need them are counted as not run. `make chaos RUNS=30`; `make chaos SEED=n` replays one and shows its story.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Final

from bench.harness import figures
from bench.storm_plan import Storm, draw_storm
from bench.storm_strikes import Weather
from bench.storm_verdict import Truths, Verdict, judge, leftovers, look, overlooked, resume
from tests.netlab.lab import Lab, cannot, missing_tools
from tests.world.disks import small_disk
from tests.world.facts import Facts
from tests.world.machines import LOOPBACK, Machines, inside
from tests.world.processes import System

MACHINES: Final = 7  # one for the supervisor, four ranks, two spares
LIMIT_S: Final = 90.0  # a run that takes longer is stuck
LOST_BAR: Final = 15  # one run in so many may be lost


async def run_storm(storm: Storm, *, root: Path, lab: Lab | None, truths: Truths) -> tuple[Verdict, Weather]:
    """One run, judged."""
    verdict = Verdict()
    machines = Machines(lab)
    host = lab.node(0).address if lab is not None else LOOPBACK
    system = System(root / "home", kill_lost=storm.kill_lost, machines=machines, host=host, flips=storm.flips)
    disk = root / "checkpoints"
    job = storm.job(disk)
    weather = Weather(storm, job, system, disk)
    try:
        with small_disk(disk) if storm.small_disk else nullcontext():
            async with system:
                await system.submit(job)
                await _under_way(weather, verdict, truths)
    except AssertionError as error:  # the journal does not replay
        verdict.status.append(f"{error}")
    finally:
        machines.repair()
    return verdict, weather


async def _under_way(weather: Weather, verdict: Verdict, truths: Truths) -> None:
    watcher = asyncio.create_task(look(weather, verdict))
    rage = asyncio.create_task(weather.rage())
    try:
        end = await _end(weather, rage)
        if end is None:
            await _stuck(weather, verdict)
        else:
            await _aftermath(weather, verdict, end, truths)
    finally:
        tasks = [watcher, rage, *weather.later]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _end(weather: Weather, rage: asyncio.Task[None]) -> Facts | None:
    """How the job ended after the storm; None when it does not end. Raises what the storm itself raised."""
    try:
        async with asyncio.timeout(LIMIT_S):
            await rage
            end = await weather.system.finish(weather.job)
            await weather.settle()
            return end
    except TimeoutError:
        return None


async def _stuck(weather: Weather, verdict: Verdict) -> None:
    status = await weather.system.supervisor.service.get(weather.job.name)
    word = status.decision.reason if status.decision else ""
    verdict.end = f"stuck {status.phase}"
    verdict.status.append(f"not over after {LIMIT_S:.0f} s: {status.phase}, step {status.step} of {status.steps}; {word}")


async def _aftermath(weather: Weather, verdict: Verdict, end: Facts, truths: Truths) -> None:
    await judge(weather, verdict, end, truths)
    verdict.status += await leftovers(weather)
    verdict.status += overlooked(weather, end)
    if weather.storm.flips:
        log = await weather.system.log(weather.job)
        again = sum(int(n) for n in re.findall(r"(\d+) part\(s\) fetched again", log))
        weather.struck.append(f"{again} part(s) arrived changed and were fetched again")
    await resume(weather, verdict, end, truths, lambda: weather.system.finish(weather.job))


# ---- many of them


async def run_all(seeds: list[int], *, root: Path, lab: Lab | None, tell_story: bool) -> bool:
    """Run, print, count; whether the bars are met."""
    truths = Truths(root)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    for seed in seeds:
        storm = draw_storm(seed)
        if storm.needs_hosts and lab is None:
            counts["not_run"] += 1
            print(f"seed {seed:>4}  not run: {cannot() or missing_tools()}  {storm}", flush=True)
            continue
        started = time.monotonic()
        folder = root / f"run-{seed}"
        verdict, weather = await run_storm(storm, root=folder, lab=lab, truths=truths)
        counts["runs"] += 1
        counts["faults"] += len(weather.struck)
        counts["survived"] += verdict.survived
        for name, troubles in (
            ("wrong_digest", verdict.digest),
            ("wrong_status", verdict.status),
            ("unresumable", verdict.resume),
        ):
            counts[name] += bool(troubles)
        word = "ok  " if verdict.survived and not verdict.troubles else "FAIL"
        print(f"seed {seed:>4}  {word} {time.monotonic() - started:5.1f} s  {verdict.end:<22} {storm}", flush=True)
        print(f"           {'; '.join(weather.struck) or 'nothing struck'}", flush=True)
        for trouble in verdict.troubles:
            print(f"           {trouble}", flush=True)
        if word == "FAIL" or tell_story:
            print(f"           replay: make chaos SEED={seed}    journal, logs: {keep(folder, seed)}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    ran = counts["runs"]
    figures(
        "chaos",
        runs=ran,
        not_run=counts["not_run"],
        faults=counts["faults"],
        survived=counts["survived"],
        wrong_digest=counts["wrong_digest"],
        wrong_status=counts["wrong_status"],
        unresumable=counts["unresumable"],
        seconds=round(time.monotonic() - began, 1),
    )
    wrong = counts["wrong_digest"] + counts["wrong_status"] + counts["unresumable"]
    return not wrong and counts["survived"] >= ran - ran // LOST_BAR


def keep(folder: Path, seed: int) -> Path:
    """What a run left, without its checkpoints, where it can be looked at."""
    kept = Path(tempfile.gettempdir()) / f"orchestrator-storm-{seed}"
    shutil.rmtree(kept, ignore_errors=True)
    if (folder / "home").is_dir():
        shutil.copytree(folder / "home", kept)
    return kept


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)  # workers are lost all the time here
    seeds = [options.seed] if options.seed is not None else list(range(options.first, options.first + options.runs))
    root = Path(tempfile.mkdtemp(prefix="storms-")).resolve()
    why_not = cannot() or missing_tools()
    if why_not:
        print(f"STORMS THAT NEED REAL HOSTS ARE NOT RUN: {why_not}", flush=True)
    try:
        with ExitStack() as stack:
            lab = None if why_not else stack.enter_context(Lab(nodes=MACHINES, root=root / "lab"))
            if lab is not None:
                stack.enter_context(inside(lab.node(0).namespace))
            good = asyncio.run(run_all(seeds, root=root, lab=lab, tell_story=options.seed is not None))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
