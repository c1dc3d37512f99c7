"""Real engines in processes of their own, and a pocket supervisor that swaps lost ranks as the real one does.

Processes come from a fork server that has torch loaded, so that one costs milliseconds; a worker can be told to kill
itself when its training thread enters a phase of a step.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import CheckpointSettings, Consistency, Job, TaskRef
from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.planner import first_plan, replan, swap_plan
from orchestrator.core.reshard.recovery import Commit, Held, Resume, Source, resolve
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import StepCommitted
from orchestrator.core.supervisor.handover import handover, missing
from orchestrator.runtime.ports import Failed, Finished, Left
from orchestrator.testkit.jobs import make_job
from tests.unit.engine.forking import CONTEXT

HERE = Path(__file__).parent
LIMIT_S = 120.0  # of what must happen; with the first processes comes the start of their fork server


Outcome = Left | Finished | Failed


@dataclass(frozen=True)
class Trap:
    """Strike when the training thread enters `phase` of `step` (`kill`), or tell and wait to be released (`hold`)."""

    phase: str
    step: int
    action: str = "kill"


def job(
    *,
    size: int = 4,
    zero_stage: int = 0,
    copies: int = 0,
    steps: int = 6,
    micro_batches: int = 6,
    consistency: Consistency = Consistency.EXACT,
    checkpoint: CheckpointSettings | None = None,
    digest_every: int = 2,
    clip: float = 0.1,
    target: str = "engine_task.py:Tiny",
    fields: Mapping[str, Any] | None = None,
    **options: object,
) -> Job:
    """A small job over the task in engine_task.py, or another; `fields` are those of the Job that the tests seldom set."""
    return make_job(
        name="tiny",
        task=TaskRef(target, json.dumps(options, sort_keys=True), str(HERE)),
        steps=steps,
        seed=7,
        micro_batches=micro_batches,
        consistency=consistency,
        lr=0.01,
        clip_grad_norm=clip,
        digest_every=digest_every,
        eval_every=3,
        eval_micro_batches=3,
        data=size,
        zero_stage=zero_stage,
        copies=copies,
        spares=1,
        checkpoint=checkpoint or CheckpointSettings("", 0, 2),
        failure_budget=3,
        budget_refill_steps=10,
        slow_factor=3.0,
        **(fields or {}),
    )


def _main(link: Connection, the_job: Job, traps: Sequence[Trap]) -> None:
    """A worker process."""
    from orchestrator.engine.engine import TorchEngine

    engine = TorchEngine(the_job, "127.0.0.1")
    lock, released = threading.Lock(), threading.Event()
    entered: dict[tuple[str, int], int] = {}

    def tell(*message: object) -> None:
        with lock, contextlib.suppress(OSError):
            link.send(message)

    def hook(phase: str, step: int) -> None:
        entered[phase, step] = entered.get((phase, step), 0) + 1
        for trap in traps:
            if (trap.phase, trap.step) == (phase, step):
                if trap.action == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                tell("at", phase, step)
                released.wait(LIMIT_S)

    def run(order: RunEpoch) -> None:
        outcome = engine.run_epoch(order, lambda event: tell("event", event))
        tell("outcome", order.plan.epoch, outcome)

    graph = engine.warm()
    engine.hook = hook
    tell("ready", engine.store_endpoint(), graph)
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, *arguments = link.recv()
            if what == "run":
                threading.Thread(target=run, args=arguments, daemon=True).start()
            elif what == "fence":
                engine.fence(*arguments)
            elif what == "leave":
                engine.leave_after_step(arguments[0], save=arguments[1])
            elif what == "checkpoint":
                engine.take_checkpoint(*arguments)
            elif what == "release":
                released.set()
            elif what == "inject":
                engine.inject(*arguments)
            elif what == "ask":
                tell("answer", {"held": engine.held(), "pulse": engine.pulse(), "entered": dict(entered)}[arguments[0]])
            elif what == "flip":  # a cosmic ray
                body = engine._body
                assert body is not None
                assert body.rank is not None
                target = body.state.params if arguments[0] == "params" else body.rank.moments[arguments[0]]
                target.view(arguments[1], arguments[1] + 1).add_(1.0)
                tell("answer", None)
    os._exit(0)


@dataclass
class Worker:
    """One worker process as its tests see it."""

    worker_id: str
    process: Any
    link: Connection
    endpoint: str = ""
    graph: GraphView | None = None
    events: list[Any] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    at: list[tuple[str, int]] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    dead: bool = False

    def send(self, *message: object) -> None:
        """To the worker; lost if it is dead."""
        with contextlib.suppress(OSError):
            self.link.send(message)

    def commits(self) -> dict[int, StepCommitted]:
        """By step; the last one counts."""
        return {e.step: e for e in self.events if isinstance(e, StepCommitted)}


class World:
    """Workers, and what a supervisor would do with them."""

    def __init__(self, the_job: Job) -> None:
        self.job = the_job
        self.workers: dict[str, Worker] = {}
        self.plan: Plan | None = None
        self.resumes: list[Resume] = []

    def spawn(self, *names: str, traps: Sequence[Trap] = ()) -> list[Worker]:
        """Start workers and wait until they are warm."""
        made = []
        for name in names:
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_main, args=(theirs, self.job, tuple(traps)), daemon=True)
            process.start()
            theirs.close()
            made.append(Worker(name, process, ours))
            self.workers[name] = made[-1]
        self.until(lambda: all(w.graph is not None or w.dead for w in made))
        assert not any(w.dead for w in made), "a worker died while it warmed up"
        return made

    def until(self, done: Callable[[], bool]) -> None:
        """Take messages until `done`."""
        deadline = time.monotonic() + LIMIT_S
        while not done():
            links = {w.link: w for w in self.workers.values() if not w.dead}
            assert time.monotonic() < deadline, [(w.worker_id, w.dead, w.outcomes, w.at) for w in self.workers.values()]
            for link in wait(list(links), timeout=1.0):
                worker = links[link]  # type: ignore[index]
                try:
                    self._take(worker, worker.link.recv())
                except (EOFError, OSError):
                    worker.dead = True

    def _take(self, worker: Worker, message: tuple[Any, ...]) -> None:
        what, *rest = message
        if what == "ready":
            worker.endpoint, worker.graph = rest
        elif what == "event":
            worker.events.append(rest[0])
        elif what == "outcome":
            worker.outcomes[rest[0]] = rest[1]
        elif what == "at":
            worker.at.append((rest[0], rest[1]))
        elif what == "answer":
            worker.answers.append(rest[0])

    def ask(self, worker: Worker, *question: object) -> Any:
        """Put a question to a worker's process and wait for the answer."""
        worker.answers.clear()
        worker.send(*question)
        self.until(lambda: bool(worker.answers))
        return worker.answers[0]

    def members(self) -> list[Worker]:
        """By rank."""
        assert self.plan is not None
        return [self.workers[s.worker_id] for s in self.plan.seats]

    def run(self, plan: Plan, resume: Resume) -> None:
        """Start an epoch on the workers of its seats."""
        self.plan = plan
        self.resumes.append(resume)
        host = self.members()[0].endpoint
        for worker in self.members():
            worker.send("run", RunEpoch(worker.worker_id, plan, resume, host))

    def start(
        self,
        *names: str,
        epoch: int = 1,
        resume: Resume | None = None,
        nodes: Sequence[str] = (),
        cut_as: Job | None = None,
    ) -> None:
        """An epoch from the seed (or as `resume` says), each worker on a node of its own unless told otherwise.

        Cut as the job, or as another one of the same task.
        """
        where = list(zip(names, nodes or [f"node-{n}" for n in names], strict=True))
        plan = first_plan(job=cut_as or self.job, graph=self.graph, workers=where, epoch=epoch)
        self.run(plan, resume or Resume(Source.INIT, 0, None, (), tuple(range(plan.size)), "", 0, ()))

    def outcomes(self) -> list[Outcome]:
        """Wait until every living member has left this epoch; by rank, without the dead."""
        assert self.plan is not None
        epoch = self.plan.epoch
        self.until(lambda: all(w.dead or epoch in w.outcomes for w in self.members()))
        return [w.outcomes[epoch] for w in self.members() if epoch in w.outcomes]

    def finish(self) -> list[str]:
        """Wait for the end; the digests by rank."""
        outcomes = self.outcomes()
        assert all(isinstance(o, Finished) for o in outcomes), outcomes
        assert len(outcomes) == len(self.members())
        return [o.digest for o in outcomes if isinstance(o, Finished)]

    def recover(self, *spares: str, node: str = "") -> Resume:
        """Wait for a death, fence the rest, give the lost ranks to spares and start the next epoch."""
        assert self.plan is not None
        self.until(lambda: sum(w.dead for w in self.members()) >= len(spares))
        epoch = self.plan.epoch
        for worker in self.members():
            worker.send("fence", epoch)
        self.outcomes()
        held: dict[int, Held] = {}
        for rank, worker in enumerate(self.members()):
            if not worker.dead:
                left = worker.outcomes[epoch]
                assert isinstance(left, Left), left
                if left.held is not None:
                    held[rank] = left.held
        lost = [r for r, w in enumerate(self.members()) if w.dead]
        seats = {r: (s, node or self.plan.seats[r].node_id) for r, s in zip(lost, spares, strict=True)}
        plan = swap_plan(self.plan, epoch=epoch + 1, replacements=seats, reason="test")
        resume = resolve(new=plan, held=held, known=self.known(), graph=self.graph)
        self.run(plan, resume)
        return resume

    def survivors(self, victim: str) -> dict[str, Held]:
        """Once the victim is dead the others are fenced; what they hold, by worker."""
        self.until(lambda: self.workers[victim].dead)
        assert self.plan is not None
        epoch = self.plan.epoch
        for worker in self.members():
            worker.send("fence", epoch)
        self.outcomes()
        held: dict[str, Held] = {}
        for worker in self.members():
            if not worker.dead:
                left = worker.outcomes[epoch]
                assert isinstance(left, Left), left
                assert left.held is not None
                held[worker.worker_id] = left.held
        return held

    @property
    def graph(self) -> GraphView:
        """Of any worker: all have the same."""
        return next(w.graph for w in self.workers.values() if w.graph is not None)

    def leave(self) -> dict[str, Held]:
        """All ranks leave the epoch after the step under way; what they hold, by worker.

        Asked right after the epoch was started they leave after its first step; whoever looks at the run before that asks while
        it trains on, and may come too late.
        """
        assert self.plan is not None
        self.members()[-1].send("leave", self.plan.epoch, False)
        return self.left()

    def left(self) -> dict[str, Held]:
        """Wait until all ranks have left the epoch as they agreed; what they hold, by worker."""
        held: dict[str, Held] = {}
        for worker, outcome in zip(self.members(), self.outcomes(), strict=True):
            assert isinstance(outcome, Left), outcome
            assert outcome.held is not None, outcome
            assert not outcome.fenced, outcome
            held[worker.worker_id] = outcome.held
        assert len({h.applied_step for h in held.values()}) == 1
        return held

    def change(self, *, new_job: Job, workers: Sequence[str]) -> Resume:
        """A planned change of a running job: what only the leaving hold is handed over in an epoch of its own."""
        assert self.plan is not None
        held = self.leave()
        going = [s.rank for s in self.plan.seats if s.worker_id not in workers]
        if missing(self.plan, going):
            between = replace(handover(self.plan, going), epoch=self.plan.epoch + 1, parent=self.plan.epoch)
            by_rank = {s.rank: held[s.worker_id] for s in between.seats}
            self.run(between, resolve(new=between, held=by_rank, known=self.known(), graph=self.graph))
            held = self.leave()
        return self.reshard(held, new_job=new_job, workers=workers)

    def reshard(
        self, held: Mapping[str, Held], *, new_job: Job, workers: Sequence[str], skip_steps: tuple[int, ...] = ()
    ) -> Resume:
        """Go on as `new_job` is cut, on these workers."""
        assert self.plan is not None
        parallel = new_job.parallel
        plan = replan(
            parent=self.plan,
            job=new_job,
            graph=self.graph,
            workers=[(w, f"node-{w}") for w in workers],
            held={w: h for w, h in held.items() if w in workers},
            epoch=self.plan.epoch + 1,
            pipeline=parallel.pipeline,
            data=parallel.data,
            layers_per_stage=parallel.layers_per_stage,
            reason="test",
        )
        by_rank = {s.rank: held[s.worker_id] for s in plan.seats if s.worker_id in held}
        resume = resolve(new=plan, held=by_rank, known=self.known(), graph=self.graph, skip_steps=skip_steps)
        self.run(plan, resume)
        return resume

    def known(self) -> Commit | None:
        """The newest commit that anybody reported."""
        every = [e for w in self.workers.values() for e in w.events if isinstance(e, StepCommitted)]
        newest = max(every, key=lambda e: e.step, default=None)
        if newest is None:
            return None
        return Commit(newest.step, newest.loss, newest.grad_norm, newest.scale, newest.skipped, newest.usual_loss)

    def close(self) -> None:
        """End every process."""
        for worker in self.workers.values():
            worker.process.kill()
        for worker in self.workers.values():
            worker.process.join(10)
            worker.link.close()


@contextlib.contextmanager
def world(the_job: Job) -> Iterator[World]:
    """A world that leaves nothing running."""
    made = World(the_job)
    try:
        yield made
    finally:
        made.close()


def undisturbed(the_job: Job) -> tuple[str, dict[int, tuple[float, float]]]:
    """Digest and (loss, gradient norm) by step of a run on one rank, in which nothing fails."""
    one = replace(the_job.parallel, data=1, zero_stage=0, shard=0, copies=0, tensor=1, pipeline=1, stages_per_rank=1)
    return _alone(replace(the_job, parallel=replace(one, layers_per_stage=(), recompute=(False,), shares=())))


@functools.cache  # many tests compare with one run
def _alone(the_job: Job) -> tuple[str, dict[int, tuple[float, float]]]:
    with world(the_job) as w:
        w.spawn("alone")
        w.start("alone")
        (digest,) = w.finish()
        return digest, curve(w)


def curve(w: World) -> dict[int, tuple[float, float]]:
    """(loss, gradient norm) by step; every worker that reported a step reported the same."""
    out: dict[int, tuple[float, float]] = {}
    for worker in w.workers.values():
        for e in worker.events:
            if isinstance(e, StepCommitted):
                assert out.setdefault(e.step, (e.loss, e.grad_norm)) == (e.loss, e.grad_norm)
    return dict(sorted(out.items()))
