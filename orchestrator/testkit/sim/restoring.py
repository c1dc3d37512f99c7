"""How a simulated rank comes by its state at the start of an epoch: the rules of engine/restore.py, gate by gate.

A rank that breaks while transfers travel holds what it had, with stale params torn where it was to receive; one that breaks
after all has arrived, before everybody knows it, holds what both plans give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR
from orchestrator.core.reshard.recovery import Commit, Source
from orchestrator.testkit.sim import content
from orchestrator.testkit.sim.memory import wanted

if TYPE_CHECKING:
    from orchestrator.testkit.sim.training import Training


class Restoring:
    """One restore of one rank; `then` is called when its state is in place."""

    def __init__(self, training: Training, then: Callable[[], None]) -> None:
        self.t = training
        self.memory = training.memory
        self.world = training.world
        self.plan = training.order.plan
        self.resume = training.order.resume
        self.rank = training.new_rank
        self.then = then

    def start(self) -> None:
        """The group is formed."""
        self.t.enter("restoring", self.resume.step)
        if self.resume.source is Source.MEMORY:
            self._from_memory()
        else:
            self._from_outside()

    # ---- from the seed or a checkpoint

    def _from_outside(self) -> None:
        resume, rng = self.resume, self.world.rng
        saved = self.world.initial() if resume.source is Source.INIT else self.world.checkpoint(resume.checkpoint_uri)
        self.memory.forget()
        if saved is None or saved.step != resume.step:
            self.t.fatal(f"no checkpoint of step {resume.step} at {resume.checkpoint_uri}")
            return
        wants, step = wanted(self.plan, self.rank), resume.step
        self.memory.install(
            self.plan,
            self.rank,
            step=step,
            commit=Commit(step, 0.0, 0.0, 1.0, False, saved.usual) if step else None,
            optim={b: saved.optim[b] for b in wants[OPTIMIZER]},
            params={b: saved.params[b] for b in wants[PARAMS]},
            done=step if step else -1,
        )
        if resume.source is Source.INIT:
            self.t.later(rng.uniform(1, 30), self._done)
            return
        # what the ranks have read together is compared with the manifest; who breaks in there holds nothing
        self.t.on_break = self.memory.forget
        self.t.later(rng.uniform(1, 30), lambda: self.t.gate("loaded", step, None, lambda _: self._done()))

    # ---- out of memory

    def _from_memory(self) -> None:
        memory, resume = self.memory, self.resume
        if self.rank in resume.fresh:
            memory.forget()
        else:
            commit = resume.commit
            behind = memory.plan is not None and memory.applied == resume.step - 1 and memory.prepared == resume.step
            if behind and commit is not None and commit.step == resume.step:
                memory.apply(commit)
            if memory.plan is None or memory.applied != resume.step:
                held = memory.applied if memory.plan is not None else None
                self.t.fatal(f"it holds step {held} and epoch {self.plan.epoch} resumes at {resume.step}")
                return
        self.t.later(self.world.rng.uniform(1, 10), self._exchange)

    def _exchange(self) -> None:
        if self.t.stopped():
            return
        memory, step = self.memory, self.resume.step
        values = {PARAMS: memory.all_params(), OPTIMIZER: memory.optim}
        stale = memory.stale(step)
        sent: dict[tuple[int, str, int], int] = {}  # (receiver, tensor, block) -> value
        incoming: set[int] = set()
        for t in self.resume.transfers:
            blocks = range(t.start // content.BLOCK, t.stop // content.BLOCK)
            if t.dst == self.rank and t.tensor == PARAMS:
                incoming.update(blocks)
            if t.src != self.rank:
                continue
            for b in blocks:
                if memory.plan is None or b not in values[t.tensor] or (t.tensor == PARAMS and b in stale):
                    self.t.fatal(f"it is to send {t.tensor} block {b}, which it does not hold")
                    return
                sent[t.dst, t.tensor, b] = values[t.tensor][b]
        place = (self.plan.axis(TENSOR), self.plan.coordinates(self.rank)[2])
        if memory.plan is not None and memory.place != place:
            self.t.on_break = lambda: memory.outlive_module(place)
        elif memory.plan is not None:
            self.t.on_break = lambda: memory.tear(incoming & stale, self.world.rng)
        self.t.gate("exchange", step, sent, self._received)

    def _received(self, parts: dict[int, Any]) -> None:
        mine = self.rank
        got = {(name, b): v for part in parts.values() for (dst, name, b), v in part.items() if dst == mine}
        self.world.moved += len(got)
        step = self.resume.step
        missing = self.memory.arrived(self.plan, mine, step=step, commit=self.resume.commit, got=got)
        if missing:
            self.t.fatal(f"{', '.join(missing)} were not sent to rank {mine}")
            return
        self.t.later(self.world.rng.uniform(0.5, 10), self._agree)

    def _agree(self) -> None:
        if not self.t.stopped():
            done = None if self.rank in self.resume.fresh else self.memory.done_step
            self.t.gate("restored", self.resume.step, done, self._agreed)

    def _agreed(self, parts: dict[int, Any]) -> None:
        step = self.resume.step
        told = [d for d in parts.values() if d is not None]
        self.memory.agreed(step if min(told, default=step) >= step else -1)
        self._done()

    def _done(self) -> None:
        self.t.on_break = None
        self.then()
