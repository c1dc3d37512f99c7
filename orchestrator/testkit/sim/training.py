"""One worker's engine: forms groups, gets its state, trains, and leaves when its groups break or its epoch is over.

It follows docs/decisions/0001 (prepared, commit, roll forward) and the engine's rules for what the ranks settle in the commit
exchange: a wish of any rank counts for all, a step whose loss is not finite is skipped, or left for a rollback. All of it is the
training thread's: it stands still while that thread hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.core.job import BadStep
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, PIPELINE, TENSOR
from orchestrator.core.reshard.recovery import Held
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import (
    BadStepFound,
    CheckpointReported,
    CorruptionFound,
    DigestReported,
    EpochReady,
    StepCommitted,
)
from orchestrator.runtime.ports import Failed, Finished, Left
from orchestrator.testkit.sim import content
from orchestrator.testkit.sim.group import Group
from orchestrator.testkit.sim.memory import Memory, Saved, holders, owned, wanted
from orchestrator.testkit.sim.restoring import Restoring

if TYPE_CHECKING:
    from orchestrator.testkit.sim.worker import Worker

Done = Callable[[Left | Finished | Failed], None]
LEAVE, CHECKPOINT, SAVE = 1, 2, 4  # wishes, as bits; SAVE: a checkpoint of this step, and leave when it is written


class Training:
    """Survives epochs; at most one run at a time."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.world = worker.world
        self.job = worker.world.job
        self.memory = Memory()
        self.run = 0  # counts runs, so that what belonged to an older one does nothing
        self.active = False
        self.newest = self.fenced_epoch = 0
        self.new_rank = -1
        self.cancelled = False
        self.group: Group | None = None
        self.broken_why = ""
        self.on_break: Callable[[], None] | None = None  # what a break does to the memory, where we are now
        self.wishes: dict[int, int] = {}  # by epoch
        self.flip = False  # a fault: change a bit after the next update
        self.work: tuple[Any, dict[tuple[int, int], int]] = (None, {})  # of what, (micro-batch, cell) -> value
        self.section: dict[int, int] = {}  # params of this step, also those that were only gathered for it
        self.digest = ""
        # pulse
        self.phase = "idle"
        self.step = 0
        self.since_us = 0
        self.progress = 0
        self.in_comm = False
        self.mb_ms = 0.0

    # ---- from any thread

    def held(self) -> Held | None:
        """For the supervisor."""
        return self.memory.held()

    def wish(self, epoch: int, wish: int) -> None:
        """What the ranks of this epoch should agree on in their next commit exchange."""
        self.wishes = {epoch: self.wishes.get(epoch, 0) | wish}

    def fence(self, epoch: int) -> None:
        """Abort the groups of this epoch, even if they are yet to be formed."""
        self.fenced_epoch = max(self.fenced_epoch, epoch)
        if self.active and self.newest <= epoch and not self.cancelled:
            self.cancelled = True
            if self.group is not None:
                self.group.drop(self.new_rank, f"epoch {self.newest} was fenced")

    def begin(self, order: RunEpoch, done: Done) -> None:
        """Run an epoch; `done` is told how it ended."""
        self.order, self.done = order, done
        plan = order.plan
        seat = plan.seat_of(self.worker.worker_id)
        if plan.epoch <= self.newest or seat is None:
            done(Left(True, self.held(), f"epoch {plan.epoch} is not newer than {self.newest}"))
            return
        self.newest = plan.epoch
        if plan.epoch <= self.fenced_epoch:
            done(Left(True, self.held(), f"epoch {plan.epoch} was fenced before it began"))
            return
        self.run += 1
        self.active, self.cancelled, self.broken_why, self.on_break, self.digest = True, False, "", None, ""
        self.new_rank = seat.rank
        self.enter("forming", order.resume.step)
        self.group = self.world.group(plan)
        self.group.join(self, seat.rank)
        run = self.run
        self.later(self.worker.timeouts.form_ms, lambda: self._form_limit(run))
        self.gate("form", 0, None, lambda _: Restoring(self, self._ready).start())

    def broke(self, group: Group, why: str) -> None:
        """Its group broke while it waited."""
        if group is self.group and self.active:
            self.broken_why = why
            self.later(self.world.rng.uniform(0.5, 20), self._leave)

    # ---- the thread

    def later(self, delay_ms: float, what: Callable[[], None]) -> None:
        """The training thread does it then, if it is still in this run."""
        run = self.run
        self.worker.later(delay_ms, lambda: what() if self.active and run == self.run else None, thread=True)

    def enter(self, phase: str, step: int) -> None:
        """A phase of the pulse."""
        self.phase, self.step, self.in_comm = phase, step, False
        self.since_us = self.world.timeline.now_us
        self.progress += 1

    def gate(self, kind: str, step: int, part: Any, then: Callable[[dict[int, Any]], None]) -> None:
        """Wait for all ranks; `then` gets what each of them brought."""
        group = self.group
        assert group is not None
        self.in_comm = True

        def through(parts: dict[int, Any]) -> None:
            if self.active and group is self.group:
                self.in_comm = False
                self.progress += 1
                self.on_break = None
                self.world.passed(self, kind, step)
                then(parts)

        # the group calls it as a peer's bytes come in; what follows is the thread's
        group.arrive(self.new_rank, kind, step, part, lambda parts: self.later(0, lambda: through(parts)))

    def stopped(self) -> bool:
        """At a point where the thread looks: leave when fenced."""
        if self.cancelled:
            self.broken_why = f"epoch {self.newest} was fenced"
            self._leave()
        return self.cancelled

    def fatal(self, why: str) -> None:
        """One of our own checks says no."""
        self.world.violation(f"{self.worker.worker_id}: {why}")
        self._end(Failed(self.step, True, why))

    def _form_limit(self, run: int) -> None:
        if run == self.run and self.phase == "forming" and self.group is not None:
            self.group.drop(self.new_rank, "the group was not formed in time")

    def _leave(self) -> None:
        if self.on_break is not None:
            self.on_break()
        self._end(Left(self.cancelled, self.held(), self.broken_why))

    def _end(self, result: Left | Finished | Failed, *, well: bool = False) -> None:
        group, self.group = self.group, None
        self.active, self.on_break = False, None
        self.enter("idle", self.step)
        if group is not None and not well:  # after a good end peers may still be reading
            self.world.left(group, self.new_rank)
        self.done(result)

    def _checked(self) -> bool:
        wrong = self.memory.wrong(self.world.serial)
        if wrong:
            self.fatal(wrong)
        return not wrong

    def _ready(self) -> None:
        if self._checked():
            self.worker.say(EpochReady(0, self.worker.worker_id, self.newest))
            self.world.ready(self.worker.worker_id, self.newest)
            memory = self.memory
            last = memory.applied == self.job.train.steps
            if memory.applied > 0 and (memory.done_step < memory.applied or last):
                self._after(memory.applied, 0)
            else:
                self._next_step()

    # ---- a step

    def _next_step(self) -> None:
        if self.stopped():
            return
        n, plan = self.memory.applied + 1, self.order.plan
        if n > self.job.train.steps:
            self.world.finished(self.worker.worker_id, self.newest, self.digest)
            self._end(Finished(n - 1, self.digest), well=True)
        elif n in self.order.resume.skip_steps:
            self.memory.prepared = n
            self._commit(n, given_up=True)
        elif plan.axis(PIPELINE) > 1 or plan.zero_stage >= 3:  # activations, or params of other owners
            self.enter("batch", n)
            mine = {b: self.memory.params[b] for b in owned(plan, self.new_rank)}
            self.gate("forward", n, mine, lambda parts: self._gathered_weights(n, parts))
        else:
            self._begin_work(n, self.memory.params)

    def _gathered_weights(self, n: int, parts: dict[int, Any]) -> None:
        everything = {b: v for part in parts.values() for b, v in part.items()}
        self._begin_work(n, {**everything, **self.memory.params} if self.order.plan.zero_stage >= 3 else self.memory.params)

    def _begin_work(self, n: int, section: dict[int, int]) -> None:
        plan = self.order.plan
        mine = plan.micro_batches_of(self.new_rank)
        keeps = len(plan.stages) == 1 and plan.zero_stage < 2
        what = (n, mine, self.memory.lineage)
        if not keeps or self.work[0] != what:
            self.work = (what if keeps else None, {})
        self.section = section
        done = {m for m, _ in self.work[1]}
        self._compute(n, [m for m in mine if m not in done])

    def _compute(self, n: int, left: list[int]) -> None:
        if self.stopped():
            return
        if not left:
            self.enter("reduce", n)
            self.memory.prepared = self.memory.applied  # what an earlier epoch had reduced is written over
            self.gate("reduce", n, dict(self.work[1]), lambda parts: self._reduced(n, parts))
            return
        self.enter("forward", n)
        self.worker.in_user_code()
        plan, cells = self.order.plan, self.world.cells
        mine = content.my_cells(plan, self.new_rank, len(self.world.graph.layers))
        share = sum(len(cells[c]) for c in mine) * plan.axis(TENSOR) / self.world.serial.blocks
        took = self.world.mb_ms() * self.worker.slowness * share
        self.mb_ms = took if not self.mb_ms else 0.7 * self.mb_ms + 0.3 * took

        def computed() -> None:
            why = self.world.user_error(self, n)
            if why:
                self._end(Failed(n, False, why))
                return
            for c in mine:
                params = tuple(self.section[b] for b in cells[c])
                self.work[1][left[0], c] = content.micro_batch(n, left[0], c, params)
            self._compute(n, left[1:])

        self.later(took, computed)

    def _reduced(self, n: int, parts: dict[int, Any]) -> None:
        merged = {key: v for rank in sorted(parts) for key, v in parts[rank].items()}
        expected = self.job.train.micro_batches * len(self.world.cells)
        if len(merged) != expected:
            self.fatal(f"step {n} has {len(merged)} of {expected} micro-batches and cells")
            return
        self.memory.grad = content.reduced(merged)
        self.memory.prepared = n
        if not self.stopped():
            self._commit(n, given_up=False)

    def _commit(self, n: int, *, given_up: bool) -> None:
        self.enter("commit", n)
        part = (None if given_up else self.memory.grad, self.wishes.pop(self.newest, 0))
        self.gate("commit", n, part, lambda parts: self._judge(n, parts))

    def _judge(self, n: int, parts: dict[int, Any]) -> None:
        if len({grad for grad, _ in parts.values()}) > 1:
            self.fatal(f"the ranks' gradients of step {n} differ")
            return
        wishes, worker = 0, self.worker
        for _, wish in parts.values():
            wishes |= wish
        given_up = parts[self.new_rank][0] is None
        bad = n in self.world.scenario.bad_steps
        policy = self.job.resilience.on_bad_step
        if bad and not given_up and policy is not BadStep.SKIP:
            why = f"step {n}: the loss is not finite"
            if policy is BadStep.FAIL:
                self._end(Failed(n, True, why))
                return
            worker.say(BadStepFound(0, worker.worker_id, self.newest, n, why))
            self._end(Left(False, self.held(), why))
            return
        before = self.memory.commit
        usual = before.usual_loss if before is not None else 0.0
        commit = self.memory.commit = content.commit_of(n, self.memory.grad, usual=usual, skipped=bad or given_up)
        self.world.committed(self, commit)
        tokens = self.job.train.micro_batches
        lr, ms = 1e-3, 1.0
        worker.say(
            StepCommitted(
                *(0, worker.worker_id, self.newest, n, commit.loss, commit.grad_norm, commit.scale, lr, ms, tokens),
                commit.skipped,
                commit.usual_loss,
            )
        )
        self.enter("update", n)
        if self.cancelled and self.world.rng.random() < 0.5:  # a fence may find it before the update or after it
            self.stopped()
            return
        self.later(self.world.rng.uniform(0.2, 3), lambda: self._update(n, wishes))

    def _update(self, n: int, wishes: int) -> None:
        memory, plan = self.memory, self.order.plan
        assert memory.commit is not None
        memory.apply(memory.commit)
        if memory.commit.skipped or not self.world.lacks(plan):
            self._updated(n, wishes)
            return
        self.enter("gather", n)
        if not self.stopped():
            mine = {b: memory.params[b] for b in owned(plan, self.new_rank)}
            lacking = memory.params.keys() - memory.optim.keys()
            self.gate("gather", n, mine, lambda parts: self._gathered(n, wishes, parts))
            self.on_break = lambda: memory.tear(lacking, self.world.rng)

    def _gathered(self, n: int, wishes: int, parts: dict[int, Any]) -> None:
        memory = self.memory
        for part in parts.values():
            memory.params.update({b: v for b, v in part.items() if b in memory.params and b not in memory.optim})
        memory.params_step = n
        self._updated(n, wishes)

    def _updated(self, n: int, wishes: int) -> None:
        if not self._checked():
            return
        if self.flip:
            self._flip()
        self._after(n, wishes)

    def _flip(self) -> None:
        """A bit changes, in a place that others hold as well."""
        memory, plan = self.memory, self.order.plan
        shared = [
            (name, b) for name in (PARAMS, OPTIMIZER) for b, r in holders(plan, name).items() if len(r) > 1 and self.new_rank in r
        ]
        if not shared:
            return
        name, b = self.world.rng.choice(shared)
        values = memory.params if name == PARAMS else memory.optim
        values[b] ^= 1 << 12
        memory.flipped.add((name, b))
        self.flip = False
        self.world.flips += 1
        self.world.tell_story(f"a bit of {name} block {b} flips in {self.worker.worker_id}")

    # ---- after a step

    def _after(self, n: int, wishes: int) -> None:
        train, checkpoint = self.job.train, self.job.checkpoint

        def due(every: int) -> bool:
            return n == train.steps or (every > 0 and n % every == 0)

        save = bool(checkpoint.uri) and (bool(wishes & (CHECKPOINT | SAVE)) or due(self.order.plan.checkpoint_every))
        if not save and not due(train.digest_every):
            self._through(n, wishes)
            return
        self.enter("digest", n)
        mine = wanted(self.order.plan, self.new_rank)
        values = {PARAMS: self.memory.params, OPTIMIZER: self.memory.optim}
        part = {(name, b): values[name][b] for name, blocks in mine.items() for b in blocks}
        self.gate("digest", n, part, lambda parts: self._digested(n, wishes, parts, save=save))

    def _digested(self, n: int, wishes: int, parts: dict[int, Any], *, save: bool) -> None:
        blocks = range(self.world.serial.blocks)
        agreed: dict[str, list[int]] = {PARAMS: [], OPTIMIZER: []}
        accused: set[int] = set()
        differ = False
        for name, values in agreed.items():
            for b in blocks:
                votes: dict[int, list[int]] = {}
                for rank in sorted(parts):
                    if (name, b) in parts[rank]:
                        votes.setdefault(parts[rank][name, b], []).append(rank)
                ordered = sorted(votes.items(), key=lambda v: (-len(v[1]), v[1]))
                values.append(ordered[0][0])
                if len(ordered) > 1:
                    differ = True
                    if 2 * len(ordered[0][1]) > sum(len(r) for _, r in ordered):
                        accused.update(r for _, ranks in ordered[1:] for r in ranks)
        worker = self.worker
        if differ:
            why = f"after step {n} holders of the same state have different bits"
            worker.say(CorruptionFound(0, worker.worker_id, self.newest, n, tuple(sorted(accused)), why))
            self._end(Left(False, self.held(), why))
            return
        self.digest = content.digest_of(agreed[PARAMS], agreed[OPTIMIZER])
        worker.say(DigestReported(0, worker.worker_id, self.newest, n, self.digest))
        if save and self.new_rank == 0:
            usual = self.memory.commit.usual_loss if self.memory.commit is not None else 0.0
            saved, digest = Saved(n, tuple(agreed[PARAMS]), tuple(agreed[OPTIMIZER]), usual), self.digest
            self.enter("checkpoint", n)
            self.later(self.world.rng.uniform(20, 400), lambda: self._save(saved, wishes, digest))
            if n == self.job.train.steps or wishes & SAVE:
                return
        self._through(n, wishes)

    def _save(self, saved: Saved, wishes: int, digest: str) -> None:
        n = saved.step
        uri = f"{self.job.checkpoint.uri}/{n}"
        full = bool(wishes & SAVE) and self.world.fills_up()
        if not full:
            self.world.checkpoints[uri] = saved
        detail = "no space left on device" if full else digest
        self.worker.say(CheckpointReported(0, self.worker.worker_id, self.newest, n, uri, not full, detail))
        if n == self.job.train.steps or wishes & SAVE:
            self._through(n, wishes)

    def _through(self, n: int, wishes: int) -> None:
        self.memory.done_step = n
        if n == self.job.train.steps or not wishes & (LEAVE | SAVE):
            self._next_step()
        elif wishes & SAVE:
            self.gate("saved", n, None, lambda _: self._agreed(n))
        else:
            self._agreed(n)

    def _agreed(self, n: int) -> None:
        why = f"the ranks agreed to leave epoch {self.newest} after step {n}"
        self._end(Left(False, self.held(), why), well=True)
        self.world.hook("agreed", self.worker)
