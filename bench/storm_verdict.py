"""What is said of a run when its storm is over, from its journals, its checkpoints and its processes alone.

Bits: every committed loss, every digest, every durable checkpoint and the final digest are those of an undisturbed run that skips
the same steps. Status: at no time did it show as well what had been dead for longer than it may take to notice; the end it tells
is the end there was, with a last word; nothing that was given up lives on. What ended badly beside a durable checkpoint must go
on from it when it is submitted again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.storm_plan import DETECT_S, common, resilience
from bench.storm_strikes import Weather
from orchestrator.core.supervisor.commands import KillWorker
from orchestrator.core.supervisor.events import DigestReported, Fault, StepCommitted, WorkerHello
from orchestrator.core.supervisor.state import Outcome, WorkerPhase
from orchestrator.engine.checkpoint_files import BadCheckpoint, list_steps, verify
from orchestrator.runtime.status_types import JobStatus
from tests.world.facts import Facts
from tests.world.jobs import tiny_job
from tests.world.processes import System

LOOK_S: Final = 0.25
NOTICE_S: Final = 2 * DETECT_S + 2.0  # a dead worker is shown as well for no longer; twice, because the machine may be busy
LEAVE_S: Final = 12.0  # until every process of a job that is over has ended


@dataclass(slots=True)
class Verdict:
    """What was wrong, in words; nothing where nothing was."""

    survived: bool = False
    digest: list[str] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    resume: list[str] = field(default_factory=list)
    end: str = ""

    @property
    def troubles(self) -> list[str]:
        """All of it."""
        kinds = (("wrong digest", self.digest), ("wrong status", self.status), ("unresumable", self.resume))
        return [f"{kind}: {text}" for kind, texts in kinds for text in texts]


@dataclass(frozen=True, slots=True)
class Truth:
    """An undisturbed run."""

    losses: dict[int, float]
    digests: dict[int, str]  # by step

    @property
    def final(self) -> str:
        """Of the last step."""
        return self.digests[max(self.digests)]


class Truths:
    """Undisturbed runs on one rank, by the steps that they skip; each is made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[tuple[int, ...], Truth] = {}

    async def of(self, skips: tuple[int, ...]) -> Truth:
        """The run that skips these steps."""
        if skips not in self._known:
            job = tiny_job("calm", **{**common(), "pace_ms": 0}, nodes=1, spares=0, resilience=resilience(rollback=False))
            async with System(self._root / f"calm-{'-'.join(map(str, skips)) or 'all'}") as system:
                run = await system.run(job, *(Fault("nan", 0, "", s, 0, 0) for s in skips))
            if run.state is None or run.state.outcome is not Outcome.COMPLETED or skips_of([run]) != skips:
                raise RuntimeError(f"the undisturbed run that skips {skips} did not come about:\n{run}")
            self._known[skips] = Truth(run.losses, digests_of([run]))
        return self._known[skips]


def skips_of(runs: Sequence[Facts]) -> tuple[int, ...]:
    """Steps whose update was not applied; the newest commit of a step counts."""
    newest = {r.event.step: r.event.skipped for run in runs for r in run.records if isinstance(r.event, StepCommitted)}
    return tuple(s for s, skipped in sorted(newest.items()) if skipped)


def digests_of(runs: Sequence[Facts]) -> dict[int, str]:
    """Step -> the newest digest that a rank reported."""
    return {r.event.step: r.event.digest for run in runs for r in run.records if isinstance(r.event, DigestReported)}


# ---- while it rages


async def look(weather: Weather, verdict: Verdict) -> None:
    """Hold the status against the truth, again and again; until it is cancelled."""
    late_s = 0.0
    while True:
        began = time.monotonic()
        await asyncio.sleep(LOOK_S)
        late_s += max(0.0, time.monotonic() - began - 2 * LOOK_S)  # this process stood still: so did the supervisor
        status = await weather.system.supervisor.service.get(weather.job.name)
        wrong = shown_as_well(status, weather, limit_s=NOTICE_S + late_s)
        if wrong and wrong not in verdict.status:
            verdict.status.append(wrong)


def shown_as_well(status: JobStatus, weather: Weather, *, limit_s: float) -> str:
    """Who is shown as a member that is fine though it has been dead for too long; empty when nobody is."""
    if status.phase.terminal:
        return ""
    for w in status.workers:
        if w.phase is WorkerPhase.REQUESTED:
            continue  # nobody claims that it is there; it may take long to come
        harm = weather.harmed.get(w.worker_id)
        if harm is not None and w.phase.alive and not w.suspect and time.monotonic() - harm.since_s > limit_s:
            return f"{w.worker_id}, {harm.how}, is shown as {w.phase} and nothing is said of it after {limit_s:.0f} s"
    return ""


# ---- when it is over


async def judge(weather: Weather, verdict: Verdict, end: Facts, truths: Truths) -> None:
    """The job is over: compare what there is with what should be."""
    state = end.state
    assert state is not None
    runs = [*weather.facts, end]
    verdict.end = f"{state.phase}: {state.outcome}"
    if state.outcome is Outcome.COMPLETED:
        before = len(verdict.digest)
        await _compare(runs, verdict, truths, completed=True)
        verdict.survived = len(verdict.digest) == before
    else:
        await _compare(runs, verdict, truths, completed=False)
        if not state.last_word.strip():
            verdict.status.append(f"{verdict.end} without a last word")
        if state.outcome is Outcome.UNRECOVERABLE and state.checkpoint is not None:
            verdict.status.append(f"{verdict.end} beside the checkpoint of step {state.checkpoint.step}: {state.last_word}")
    await _checkpoints(weather, runs, verdict, truths)
    status = await weather.system.supervisor.service.get(weather.job.name)
    if (status.phase, status.outcome) != (state.phase, state.outcome) or not status.phase.terminal:
        verdict.status.append(f"the status says {status.phase}: {status.outcome} of what is {verdict.end}")


async def _compare(runs: Sequence[Facts], verdict: Verdict, truths: Truths, *, completed: bool) -> None:
    truth = await truths.of(skips_of(runs))
    losses = {step: loss for run in runs for step, loss in run.losses.items()}
    wrong = [
        s for s, loss in losses.items() if loss != truth.losses[s] and not (math.isnan(loss) and math.isnan(truth.losses[s]))
    ]
    if wrong:
        verdict.digest.append(f"losses of steps {wrong} differ")
    told = digests_of(runs)
    wrong = [s for s, digest in told.items() if digest != truth.digests[s]]
    if wrong:
        verdict.digest.append(f"digests of steps {wrong} differ")
    if completed and runs[-1].digest != truth.final:
        verdict.digest.append(f"the final digest is {runs[-1].digest[:12] or 'none'}, not {truth.final[:12]}")
    if completed and losses.keys() != truth.losses.keys():
        verdict.digest.append(f"steps {sorted(truth.losses.keys() - losses.keys())} were never committed")


async def _checkpoints(weather: Weather, runs: Sequence[Facts], verdict: Verdict, truths: Truths) -> None:
    if not weather.job.checkpoint.uri:
        return
    truth = await truths.of(skips_of(runs))
    for step, uri in list_steps(weather.job.checkpoint.uri):
        try:
            found = verify(uri)
        except (BadCheckpoint, OSError) as error:
            verdict.digest.append(f"the checkpoint of step {step} is damaged: {error}")
            continue
        if found.digest != truth.digests[step]:
            verdict.digest.append(f"the checkpoint of step {step} has another digest")


async def resume(weather: Weather, verdict: Verdict, end: Facts, truths: Truths, finish: Callable[[], Awaitable[Facts]]) -> None:
    """What failed beside a durable checkpoint is submitted again, with a calm sky: it must end well."""
    uri = weather.job.checkpoint.uri
    if end.state is None or end.state.outcome is Outcome.COMPLETED or not uri or not list_steps(uri):
        return
    await weather.system.supervisor.service.submit(job=weather.job, yaml_text="")
    again = await finish()
    told = Verdict()
    await _compare([*weather.facts, end, again], told, truths, completed=True)
    assert again.state is not None
    if again.state.outcome is not Outcome.COMPLETED:
        told.digest.append(f"{again.state.outcome}: {again.state.last_word}")
    verdict.resume += told.digest


def overlooked(weather: Weather, end: Facts) -> list[str]:
    """Who had come, was harmed long before the end and was never declared lost."""
    came = {r.event.worker_id for r in end.records if isinstance(r.event, WorkerHello)}
    told = {c.worker_id for r in end.records for c in r.commands if isinstance(c, KillWorker)}
    over_s = end.records[-1].at_ms / 1000  # of the clock that harm is noted by
    missed = [h for w, h in weather.harmed.items() if w in came - told and over_s - h.since_s > NOTICE_S]
    return [f"{h.worker_id}, {h.how}, was never declared lost" for h in missed]


async def leftovers(weather: Weather) -> list[str]:
    """Processes that live on although the job is over, everything can be reached, and nobody is stopped."""
    system = weather.system
    deadline = time.monotonic() + LEAVE_S
    while left := [w for w, p in system.processes.items() if p.returncode is None]:
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(LOOK_S)
    return [f"{w} (pid {system.processes[w].pid}) lives on: {system.processes[w].said()[-300:]}" for w in left]
