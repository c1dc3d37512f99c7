"""One worker's engine: forms groups, gets its state, trains, and leaves when its groups break or its epoch is fenced.

It follows docs/decisions/0001 (prepared, commit, roll forward) and the rules by which the real engine keeps what it holds:
nothing is thrown away between epochs, and a restore makes the new layout count only once every rank has all it needs. All of
it is the training thread's: it stands still while that thread hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.core.plan.layout import Intervals
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.core.reshard.recovery import Commit, Held, Source
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import CheckpointReported, DigestReported, EpochReady, StepCommitted
from orchestrator.runtime.ports import Failed, Finished, Left
from orchestrator.testkit.sim import content
from orchestrator.testkit.sim.group import Group

if TYPE_CHECKING:
    from orchestrator.testkit.sim.worker import Worker

Done = Callable[[Left | Finished | Failed], None]


class Training:
    """Survives epochs; at most one run at a time."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.world = worker.world
        self.job = worker.world.job
        self.run = 0  # counts runs, so that what belonged to an older one does nothing
        self.active = False
        self.newest = self.fenced_epoch = 0
        self.cancelled = False
        self.group: Group | None = None
        self.broken_why = ""
        # what it holds
        self.plan: Plan | None = None
        self.rank = -1
        self.applied = self.params_step = self.prepared = 0
        self.commit: Commit | None = None
        self.params: list[int] = []
        self.optim: dict[int, int] = {}
        self.grad = 0
        self.work: tuple[int, int, dict[int, int]] = (0, 0, {})  # step, hash of the params it was computed from, parts
        self.done_step = -1
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
        if self.plan is None:
            return None
        return Held(self.plan.epoch, self.rank, self.applied, self.params_step, self.prepared, self.commit)

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
        epoch = order.plan.epoch
        seat = order.plan.seat_of(self.worker.worker_id)
        if epoch <= self.newest or seat is None:
            done(Left(True, self.held(), f"epoch {epoch} is not newer than {self.newest}"))
            return
        self.newest = epoch
        if epoch <= self.fenced_epoch:
            done(Left(True, self.held(), f"epoch {epoch} was fenced before it began"))
            return
        self.run += 1
        self.active, self.cancelled, self.broken_why = True, False, ""
        self.new_rank = seat.rank
        self._enter("forming", order.resume.step, comm=True)
        self.group = self.world.group(order.plan)
        self.group.join(self, seat.rank)
        run = self.run
        self._later(self.worker.timeouts.form_ms, lambda: self._form_limit(run))
        self._gate("form", 0, None, lambda _: self._restore())

    def broke(self, group: Group, why: str) -> None:
        """Its group broke while it waited."""
        if group is self.group and self.active:
            self.broken_why = why
            self._thread(self.world.rng.uniform(0.5, 20), self._leave)

    # ---- the thread

    def _later(self, delay_ms: float, what: Callable[[], None]) -> None:
        run = self.run
        self.worker.later(delay_ms, lambda: what() if self.active and run == self.run else None, thread=True)

    _thread = _later

    def _enter(self, phase: str, step: int, *, comm: bool = False) -> None:
        self.phase, self.step, self.in_comm = phase, step, comm
        self.since_us = self.world.timeline.now_us
        self.progress += 1

    def _gate(self, kind: str, step: int, part: Any, then: Callable[[dict[int, Any]], None]) -> None:
        group = self.group
        assert group is not None
        self.in_comm = True

        def through(parts: dict[int, Any]) -> None:
            if self.active and group is self.group:
                self.in_comm = False
                self.progress += 1
                self.world.passed(self, kind, step)
                then(parts)

        # the group calls it as a peer's bytes come in; what follows is the thread's
        group.arrive(self.new_rank, kind, step, part, lambda parts: self._later(0, lambda: through(parts)))

    def _form_limit(self, run: int) -> None:
        if run == self.run and self.phase == "forming" and self.group is not None:
            self.group.drop(self.new_rank, "the group was not formed in time")

    def _stopped(self) -> bool:
        """At a point where the thread looks: leave when fenced."""
        if self.cancelled:
            self.broken_why = f"epoch {self.newest} was fenced"
            self._leave()
        return self.cancelled

    def _leave(self) -> None:
        if self.plan is not None and self.params_step == -1:
            self._tear()
        self._end(Left(self.cancelled, self.held(), self.broken_why))

    def _end(self, result: Left | Finished | Failed) -> None:
        group, self.group = self.group, None
        self.active = False
        self._enter("idle", self.step)
        if group is not None and not isinstance(result, Finished):
            self.world.left(group, self.new_rank)
        self.done(result)

    def _fatal(self, why: str) -> None:
        self.world.violation(f"{self.worker.worker_id}: {why}")
        self._end(Failed(self.step, True, why))

    # ---- restoring

    def _restore(self) -> None:
        resume = self.order.resume
        self._enter("restoring", resume.step)
        if resume.source is not Source.MEMORY:
            saved = self.world.initial() if resume.source is Source.INIT else self.world.checkpoint(resume.checkpoint_uri)
            if saved is None or saved[0] != resume.step:
                self._fatal(f"no checkpoint of step {resume.step} at {resume.checkpoint_uri}")
                return
            self._install(saved[1], {b: saved[2][b] for b in self._wanted()})
            if resume.source is Source.INIT:
                self._later(self.world.rng.uniform(1, 30), self._restored)
            else:  # what the ranks have read together is compared with the manifest
                self._later(
                    self.world.rng.uniform(1, 30), lambda: self._gate("loaded", resume.step, None, lambda _: self._restored())
                )
            return
        if self.new_rank in resume.fresh:
            self.plan, self.optim, self.params, self.commit = None, {}, [0] * len(self.world.serial.params[0]), None
            self.done_step = -1
        else:
            self._roll_forward()
            if self.plan is None or self.applied != resume.step:
                self._fatal(
                    f"it holds step {self.applied if self.plan else None} and epoch {self.newest} resumes at {resume.step}"
                )
                return
        self._later(self.world.rng.uniform(1, 10), self._exchange)

    def _roll_forward(self) -> None:
        resume = self.order.resume
        if self.plan is None or resume.commit is None or self.applied == resume.step:
            return
        if self.applied == resume.step - 1 and self.prepared == resume.step == resume.commit.step:
            self._apply(resume.commit)

    def _exchange(self) -> None:
        if self._stopped():
            return
        mine = [t for t in self.order.resume.transfers if t.dst == self.new_rank]
        if any(t.tensor == PARAMS for t in mine) and self.plan is not None:
            self.params_step = -1
        sent: dict[tuple[str, int, int], int] = {}  # (tensor, receiver, block) -> value
        for t in self.order.resume.transfers:
            if t.src == self.new_rank:
                for b in range(t.start // content.BLOCK, -(-t.stop // content.BLOCK)):
                    if t.tensor == OPTIMIZER and b not in self.optim:
                        self._fatal(f"it is to send optimizer block {b}, which it does not hold")
                        return
                    sent[t.tensor, t.dst, b] = self.optim[b] if t.tensor == OPTIMIZER else self.params[b]
        self._gate("exchange", self.order.resume.step, sent, self._received)

    def _received(self, parts: dict[int, Any]) -> None:
        optim = dict(self.optim)
        params = list(self.params)
        for rank in sorted(parts):
            for (tensor, dst, b), value in parts[rank].items():
                if dst == self.new_rank:
                    if tensor == OPTIMIZER:
                        optim[b] = value
                    else:
                        params[b] = value
        self.params = params  # in place, so a break from here on finds them changed
        missing = [b for b in self._wanted() if b not in optim]
        if missing:
            self._fatal(f"optimizer blocks {missing} were not sent to rank {self.new_rank}")
            return
        wanted = {b: optim[b] for b in self._wanted()}
        fresh = self.plan is None
        if fresh:  # what was received is held from here on, should the barrier break
            self._install(tuple(params), wanted)
        self._later(self.world.rng.uniform(0.5, 10), lambda: self._barrier(wanted, fresh))

    def _barrier(self, optim: dict[int, int], fresh: bool) -> None:
        if not self._stopped():
            done_step = None if fresh else self.done_step
            self._gate("restored", self.order.resume.step, done_step, lambda done: self._everybody_has(optim, fresh, done))

    def _everybody_has(self, optim: dict[int, int], fresh: bool, done: dict[int, Any]) -> None:
        """What only the old layout needed may go."""
        step = self.order.resume.step
        self._install(tuple(self.params), optim, keep=not fresh)
        self.done_step = step if min((d for d in done.values() if d is not None), default=step) >= step else -1
        self._restored()

    def _restored(self) -> None:
        self._check_content()
        if self.active:
            self.digest = ""
            self.worker.say(EpochReady(0, self.worker.worker_id, self.newest))
            self.world.ready(self.worker.worker_id, self.newest)
            self._next_step()

    def _install(self, params: tuple[int, ...], optim: dict[int, int], *, keep: bool = False) -> None:
        resume = self.order.resume
        self.params, self.optim = list(params), dict(optim)
        self.plan, self.rank = self.order.plan, self.new_rank
        self.applied = self.params_step = self.prepared = resume.step
        if resume.commit is not None:
            self.commit = resume.commit
        elif not keep:
            self.commit = None
        if not keep:
            self.done_step = -1

    def _blocks(self, intervals: Intervals) -> list[int]:
        return [b for i in intervals for b in range(i.start // content.BLOCK, -(-i.stop // content.BLOCK))]

    def _wanted(self) -> list[int]:
        return self._blocks(self.order.plan.layout(OPTIMIZER).holdings[self.new_rank].everything)

    def _check_content(self) -> None:
        """Everything that it holds is what the serial run holds."""
        serial, step = self.world.serial, self.applied
        wrong = [b for b, v in sorted(self.optim.items()) if v != serial.optim[step][b]]
        torn = [
            b for b, v in enumerate(self.params) if v != serial.params[step][b] and (self.params_step == step or b in self.optim)
        ]
        if wrong or torn:
            self._fatal(f"after step {step} optimizer blocks {wrong} and param blocks {torn} differ from the serial run")

    # ---- steps

    def _next_step(self) -> None:
        if self._stopped():
            return
        n = self.applied + 1
        if self.done_step < self.applied and self.applied > 0:
            self._after_step()
            return
        if n > self.job.train.steps:
            if self.digest:
                self._finish()
            else:
                self._gather_digest(self.applied)
            return
        key = hash(tuple(self.params))
        if self.work[:2] != (n, key):
            self.work = (n, key, {})
        self._compute(n, [m for m in self.order.plan.micro_batch_range(self.rank) if m not in self.work[2]])

    def _compute(self, n: int, left: list[int]) -> None:
        if self._stopped():
            return
        self._enter("forward", n)
        if not left:
            mine = {m: v for m, v in self.work[2].items() if m in self.order.plan.micro_batch_range(self.rank)}
            self._enter("reduce", n)
            self.prepared = self.applied  # what an earlier epoch had reduced is written over
            self._gate("reduce", n, mine, lambda parts: self._prepared(n, parts))
            return
        self.worker.in_user_code()
        took = self.world.mb_ms() * self.worker.slowness
        self.mb_ms = took if not self.mb_ms else 0.7 * self.mb_ms + 0.3 * took

        def computed() -> None:
            why = self.world.user_error(self, n)
            if why:
                self._end(Failed(n, False, why))
                return
            self.work[2][left[0]] = content.micro_batch(n, left[0], tuple(self.params))
            self._compute(n, left[1:])

        self._later(took, computed)

    def _prepared(self, n: int, parts: dict[int, Any]) -> None:
        merged = {m: v for rank in sorted(parts) for m, v in parts[rank].items()}
        self.grad = content.reduced(merged)
        self.prepared = n
        self._enter("commit", n)
        if not self._stopped():
            self._gate("commit", n, self.grad, lambda grads: self._committed(n, grads))

    def _committed(self, n: int, grads: dict[int, Any]) -> None:
        if len(set(grads.values())) > 1:
            self._fatal(f"the ranks' gradients of step {n} differ")
            return
        commit = self.commit = Commit(n, content.loss_of(self.grad), 1.0, 1.0)
        self.world.committed(self, n)
        job = self.job
        report = StepCommitted(
            0, self.worker.worker_id, self.newest, n, commit.loss, 1.0, 1.0, 1e-3, 1.0, job.train.micro_batches
        )
        self.worker.say(report)
        self._enter("update", n)
        if self.cancelled and self.world.rng.random() < 0.5:  # a fence may find it before the update or after it
            self._stopped()
            return
        self._later(self.world.rng.uniform(0.2, 3), lambda: self._updated(n))

    def _updated(self, n: int) -> None:
        assert self.commit is not None
        self._apply(self.commit)
        if not self.order.plan.zero_stage:
            self._check_content()
            if self.active:
                self._next_step()
            return
        self._enter("gather", n)
        if not self._stopped():
            mine = {b: self.params[b] for b in self._blocks(self.order.plan.layout(OPTIMIZER).holdings[self.rank].primary)}
            self._gate("gather", n, mine, self._gathered)

    def _apply(self, commit: Commit) -> None:
        for b in self.optim:
            self.optim[b] = content.optim_after(self.optim[b], self.grad, b)
            self.params[b] = content.params_after(self.params[b], self.optim[b], b)
        assert self.plan is not None
        self.applied = commit.step
        self.params_step = commit.step if self.plan.zero_stage == 0 else -1
        self.commit = commit

    def _gathered(self, parts: dict[int, Any]) -> None:
        for rank in sorted(parts):
            for b, value in parts[rank].items():
                self.params[b] = value
        self.params_step = self.applied
        self._check_content()
        if self.active:
            self._next_step()

    def _tear(self) -> None:
        """A broken gather or transfer has filled some of the params, or none."""
        for b in range(len(self.params)):
            if b not in self.optim and self.world.rng.random() < 0.5:
                self.params[b] = hash((7, b, self.applied))

    # ---- after a step

    def _after_step(self) -> None:
        n, train = self.applied, self.job.train
        every = self.job.checkpoint.every if self.job.checkpoint.uri else 0
        last = n == train.steps
        if last or (train.digest_every and n % train.digest_every == 0) or (every and n % every == 0):
            self._gather_digest(n)
        else:
            self.done_step = n
            self._next_step()

    def _gather_digest(self, n: int) -> None:
        self._enter("digest", n)
        mine = {b: self.optim[b] for b in self._blocks(self.order.plan.layout(OPTIMIZER).holdings[self.rank].primary)}
        self._gate("digest", n, mine, lambda parts: self._digested(n, parts))

    def _digested(self, n: int, parts: dict[int, Any]) -> None:
        optim = {b: v for rank in sorted(parts) for b, v in parts[rank].items()}
        self.digest = content.digest_of(self.params, [optim[b] for b in sorted(optim)])
        if self.done_step >= n:  # the last step was done before this epoch began
            self._finish()
            return
        self.worker.say(DigestReported(0, self.worker.worker_id, self.newest, n, self.digest))
        self.done_step = n
        last = n == self.job.train.steps
        if self.job.checkpoint.uri and self.rank == 0 and (last or n % self.job.checkpoint.every == 0):
            values = tuple(self.params), tuple(optim[b] for b in sorted(optim))
            digest = self.digest
            self._enter("checkpoint", n)
            self._later(self.world.rng.uniform(20, 400), lambda: self._save(n, values, digest))
            if last:
                return
        self._next_step()

    def _save(self, n: int, values: tuple[tuple[int, ...], tuple[int, ...]], digest: str) -> None:
        uri = f"{self.job.checkpoint.uri}/{n}"
        self.world.checkpoints[uri] = (n, *values)
        self.worker.say(CheckpointReported(0, self.worker.worker_id, self.newest, n, uri, True, digest))
        if n == self.job.train.steps:
            self._finish()

    def _finish(self) -> None:
        self.world.finished(self.worker.worker_id, self.newest, self.digest)
        self._end(Finished(self.applied, self.digest))
