"""A world that tells the supervisor's core anything, in any order, and holds every decision against what must always be true.

Half of it is a cast that behaves (workers say hello, leave when fenced, get ready, commit), so that the deep phases are reached;
the other half says arbitrary things: of unknown workers, of old and future epochs, too early, twice, or in contradiction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.codec import from_json, to_json
from orchestrator.core.job import Action, DeviceKind, FailureClass, Job
from orchestrator.core.plan.layout import Interval
from orchestrator.core.plan.lint import lint
from orchestrator.core.reshard.recovery import Commit, Held
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, EndJob, ExpectEpoch, FenceEpoch, KillWorker, RunEpoch, SpawnWorker
from orchestrator.core.supervisor.machine import initial, refusal, step
from orchestrator.core.supervisor.state import CheckpointRef, Decision, JobPhase, State, Worker, WorkerPhase
from orchestrator.core.timeouts import derive
from orchestrator.spec.policies import LOSSES, policies
from tests.scenarios.story import DEEP, held_of, make_job

NODES = 6
SEATED = (WorkerPhase.MEMBER, WorkerPhase.LEFT)
flags = st.booleans()
picks = st.integers(0, 10_000)
offsets = st.sampled_from([0, 0, -1, -2, 1])
subsets = st.lists(st.integers(0, NODES - 1), max_size=3).map(lambda picked: sum(1 << i for i in set(picked)))


def _commit(n: int) -> Commit:
    return Commit(n, 1.0, 1.0, 1.0, False, 1.0)


def check(before: State, event: ev.Event, decision: Decision) -> None:
    """What holds for every decision whatever was said."""
    state, commands = decision.state, decision.commands
    assert not commands or decision.reason, f"commands without a reason: {commands}"
    assert step(before, event) == decision, "the same input gives the same decision"
    if before.phase.terminal:
        assert (state, commands, decision.reason) == (before, (), ""), "what is over stays as it is"
    assert before.epoch <= state.epoch <= before.epoch + 1
    assert 0 <= state.budget <= state.job.resilience.failure_budget
    assert state.steps_lost >= before.steps_lost
    if state.committed_step < before.committed_step:
        assert state.steps_lost - before.steps_lost >= before.committed_step - state.committed_step, "steps vanished"
    assert state.phase.terminal == bool(state.outcome)
    assert bool([c for c in commands if isinstance(c, EndJob)]) == (state.phase.terminal and not before.phase.terminal)
    _check_workers(before, event, state)
    _check_commands(before, state, commands)


def _check_workers(before: State, event: ev.Event, state: State) -> None:
    for worker_id, old in before.workers.items():
        new = state.workers[worker_id]  # none is forgotten as long as there are few
        assert old.phase.alive or new.phase is old.phase, f"{worker_id} came back from {old.phase}"
        assert new.node_id == old.node_id
    seated = [w.worker_id for w in state.workers.values() if w.phase in SEATED]
    if state.plan is None:
        assert not seated
        return
    assert lint(state.plan) == ()
    assert state.plan.epoch == state.epoch
    seats = [s.worker_id for s in state.plan.seats]
    unseated = set(seated) - set(seats)
    assert all(state.workers[i].phase is WorkerPhase.LEFT for i in unseated), "who has a rank has one seat"
    assert not unseated or state.phase is not JobPhase.RUNNING, "who gave its seat away stays until the next epoch runs"
    if state.phase.terminal:
        assert not any(w.phase.alive for w in state.workers.values())
    if state.epoch > before.epoch:
        speaker = getattr(event, "worker_id", "")
        for w in before.workers.values():
            still = w.phase is WorkerPhase.MEMBER and w.worker_id != speaker
            assert not (still and state.workers[w.worker_id].phase.alive), f"{w.worker_id} was still inside the older epoch"


def _check_commands(before: State, state: State, commands: tuple[Command, ...]) -> None:
    for c in commands:
        if isinstance(c, EndJob | ExpectEpoch):
            continue
        worker = state.workers[c.worker_id]
        if worker.phase is WorkerPhase.LOST:
            assert isinstance(c, KillWorker) or before.workers[c.worker_id].phase is not WorkerPhase.LOST, "it is fenced"
        if isinstance(c, SpawnWorker):
            assert worker.phase is WorkerPhase.REQUESTED or state.phase.terminal
        if isinstance(c, FenceEpoch):
            assert c.epoch == state.epoch or c.epoch == before.epoch
        if isinstance(c, RunEpoch):
            assert state.phase.terminal or (c.plan, c.resume, c.plan.epoch) == (state.plan, state.resume, state.epoch)
    started = {c.worker_id for c in commands if isinstance(c, RunEpoch)}
    if state.epoch > before.epoch and state.plan is not None:
        assert started == {s.worker_id for s in state.plan.seats}, "every rank is told to start"


class Chaos(RuleBasedStateMachine):
    """One job and everything that can be said to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.generation = 0
        self.told: list[ev.Event] = []

    @initialize(
        data=st.integers(1, 4),
        pipeline=st.sampled_from([1, 1, 2]),
        actions=st.permutations(list(Action)),
        grow_after=st.integers(0, 4),
        kind=st.sampled_from([0, 1, 2]),
        spares=st.integers(0, 2),
        slots=st.integers(1, 2),
        budget=st.sampled_from([50] * 10 + [1, 0]),
        resumed=flags,
        launched=st.sampled_from([True, True, False]),
    )
    def begin(
        self, data: int, pipeline: int, kind: int, spares: int, slots: int, budget: int, resumed: bool, launched: bool,
        actions: list[Action], grow_after: int,
    ) -> None:  # fmt: skip
        """A job: replicated, sharded, or sharded with copies; new or from a checkpoint."""
        copies = int(kind == 2 and data > 1)
        self.job: Job = make_job(
            data=data, pipeline=pipeline, spares=spares, zero=min(kind, 1), budget=budget, slots=slots, copies=copies,
            policies=policies(dict.fromkeys((*LOSSES, FailureClass.WORKER_SLOW, FailureClass.CORRUPT_STATE), tuple(actions))),
            grow_after=grow_after, nodes=data * pipeline,
        )  # fmt: skip
        self.slots = slots
        self.first = initial(self.job, checkpoint=CheckpointRef(3, "file:///c/3", "d") if resumed else None, now_ms=0)
        self.state = self.first
        if launched:
            self.all_goes_well(steps=2)

    @rule(steps=st.integers(0, 6))
    def all_goes_well(self, steps: int) -> None:
        """Whatever the phase: who is fenced leaves, who was asked for comes, who has a rank gets ready and trains."""
        self._view(NODES, 0, 0)
        for _ in range(3):
            if self.state.phase is JobPhase.FENCING:
                self.everybody_leaves(ahead=7)
            self.now += 19_000  # in all of them together, past most pauses between attempts to start workers
            self.tell(ev.Tick(self.now, ()))
            self.everybody_comes_up()
            self.everybody_gets_ready()
        self.steps_are_committed(0, steps)

    # ------------------------------------------------------------------------------------------------------- the means

    def tell(self, event: ev.Event) -> tuple[Command, ...]:
        """One event, checked."""
        decision = step(self.state, event)
        check(self.state, event, decision)
        self.state = decision.state
        self.told.append(event)
        return decision.commands

    def anyone(self, pick: int) -> str:
        """The id of a worker of any phase, or one that nobody knows."""
        ids = [*self.state.workers, "j/w999", "other/w0"]
        return ids[pick % len(ids)]

    def someone(self, pick: int, *phases: WorkerPhase) -> Worker | None:
        """A worker in one of the phases, if there is any."""
        there = [w for w in self.state.workers.values() if w.phase in phases]
        return there[pick % len(there)] if there else None

    def say_hello(
        self, worker_id: str, *, epoch: int = 0, running: bool = False, held: Held | None = None, graph: int = 0
    ) -> None:
        """A hello; `graph` 1 is another model."""
        node = self.state.workers[worker_id].node_id if worker_id in self.state.workers else "n0"
        model = replace(DEEP, fingerprint="x") if graph else DEEP
        self.tell(ev.WorkerHello(self.now, worker_id, node, 1, f"e:{worker_id}", model, epoch, running, held, None))

    def true_held(self, worker: Worker, *, ahead: bool = False) -> Held | None:
        """What a member that behaves would hold: the newest committed step, under the plan it has."""
        plan = self.state.plan
        seat = plan.seat_of(worker.worker_id) if plan else None
        if plan is None or seat is None:
            return None
        at, commit = self.state.committed_step, self.state.commit
        if worker.ready_epoch != plan.epoch:
            return worker.held
        if ahead:
            return held_of(plan, seat.rank, at=at + 1, params=-1, commit=_commit(at + 1))
        return held_of(plan, seat.rank, at=at, prepared=True, commit=commit)

    def wild_held(self, a: int, b: int, c: int, torn: bool) -> Held:
        """Something that nobody who behaves would hold."""
        at = max(0, self.state.committed_step + b % 5 - 2)
        lo, hi = a % 9 * 1024, b % 11 * 1024
        some = (Interval(min(lo, hi), max(lo, hi) + 1024),)
        return Held(
            plan_epoch=max(0, a % (self.state.epoch + 3) - 1),
            rank=b % 6,
            tensor=1 + (c % 7 == 0),
            applied_step=at,
            params_step=-1 if torn else at,
            prepared_step=at + c % 2,
            optimizer=some if c % 5 else (),
            params=some if c % 4 else (),
            commit=_commit(at + c % 2) if c % 3 else None,
        )

    # --------------------------------------------------------------------------------------------- those that behave

    @rule(nodes=st.integers(NODES - 2, NODES))
    def cluster_grows_or_shrinks(self, nodes: int) -> None:
        """So many nodes, all well."""
        self._view(nodes, 0, 0)

    @rule(nodes=st.integers(1, NODES), dead=subsets, closed=subsets, old=flags)
    def cluster_changes(self, nodes: int, dead: int, closed: int, old: bool) -> None:
        """Any nodes dead, closed or not there at all; now and then an old view comes late."""
        self._view(nodes, dead, closed, old=old)

    def _view(self, nodes: int, dead: int, closed: int, *, old: bool = False) -> None:
        self.generation += not old
        kind, memory = DeviceKind.CPU, 1 << 30
        view = ClusterView(
            self.generation,
            tuple(
                NodeView(f"n{i}", "127.0.0.1", kind, self.slots, memory, not dead >> i & 1, not closed >> i & 1)
                for i in range(nodes)
            ),
        )
        self.tell(ev.ClusterChanged(self.now, view))

    @rule()
    def everybody_comes_up(self) -> None:
        """All that were asked for say hello, on a cluster that is well."""
        if self.state.cluster is None:
            self._view(NODES, 0, 0)
        for w in list(self.state.workers.values()):
            if w.phase is WorkerPhase.REQUESTED:
                self.say_hello(w.worker_id)

    @rule()
    def everybody_gets_ready(self) -> None:
        """All members have their state."""
        for w in list(self.state.workers.values()):
            if w.phase is WorkerPhase.MEMBER:
                self.tell(ev.EpochReady(self.now, w.worker_id, self.state.epoch))

    @rule(pick=picks, steps=st.integers(1, 6))
    def steps_are_committed(self, pick: int, steps: int) -> None:
        """A member tells of the next steps."""
        worker = self.someone(pick, WorkerPhase.MEMBER)
        for _ in range(steps if worker else 0):
            self._commit(worker.worker_id if worker else "", self.state.epoch, self.state.committed_step + 1)

    def _commit(self, worker_id: str, epoch: int, at: int) -> None:
        self.tell(ev.StepCommitted(self.now, worker_id, epoch, at, 2.0, 1.0, 1.0, 1e-3, 100.0, 64, False, 2.0))

    @precondition(lambda self: self.state.phase is JobPhase.FENCING)
    @rule(ahead=picks)
    def everybody_leaves(self, ahead: int) -> None:
        """All members leave the fenced epoch; one may be past a commit that nobody heard of."""
        members = [w for w in self.state.workers.values() if w.phase is WorkerPhase.MEMBER]
        for i, w in enumerate(members):
            held = self.true_held(w, ahead=ahead % 8 == i)
            self.tell(ev.LeftEpoch(self.now, w.worker_id, self.state.epoch, True, held, "fenced"))

    @rule(pick=picks, empty=flags, fenced=flags)
    def a_member_leaves(self, pick: int, empty: bool, fenced: bool) -> None:
        """Its groups broke, or it was told to; with or without state."""
        worker = self.someone(pick, WorkerPhase.MEMBER)
        if worker:
            held = None if empty else self.true_held(worker)
            self.tell(ev.LeftEpoch(self.now, worker.worker_id, self.state.epoch, fenced, held, "reset"))

    @rule(pick=picks)
    def a_worker_dies(self, pick: int) -> None:
        """Evidence that a live one has ended."""
        worker = self.someone(pick, WorkerPhase.REQUESTED, WorkerPhase.SPARE, *SEATED)
        if worker:
            self.tell(ev.WorkerGone(self.now, worker.worker_id, "refused"))

    @rule(pick=picks, running=flags)
    def a_stream_comes_back(self, pick: int, running: bool) -> None:
        """A live one says hello again, inside its epoch or out of it."""
        worker = self.someone(pick, WorkerPhase.SPARE, *SEATED)
        if worker:
            self.say_hello(worker.worker_id, epoch=self.state.epoch, running=running, held=self.true_held(worker))

    @rule(all_of_them=st.sampled_from([False] * 15 + [True]))
    def everybody_finishes(self, all_of_them: bool) -> None:
        """All members are done, with one digest; mostly the last of them is not heard."""
        for w in list(self.state.workers.values()):
            if w.phase is WorkerPhase.MEMBER and (all_of_them or len(self.state.finished) < self.job.parallel.ranks - 1):
                self.tell(ev.RankFinished(self.now, w.worker_id, self.state.epoch, self.job.train.steps, "d"))

    @rule(ms=st.sampled_from([0, 1, 50, 1_000, 4_000, 70_000]))
    def time_passes(self, ms: int) -> None:
        """And everybody is well."""
        self.now += ms
        seen = [ev.Observation(w.worker_id, 0, 0, 100, False, False, 50) for w in self.state.workers.values() if w.phase.alive]
        self.tell(ev.Tick(self.now, tuple(seen)))

    @rule()
    def supervisor_restarts(self) -> None:
        """Another process takes over."""
        self.tell(ev.SupervisorRestarted(self.now))

    # ------------------------------------------------------------------------------------------------- anything at all

    @rule(
        pick=picks, epoch=offsets, running=flags, kind=st.sampled_from(["none", "true", "wild"]), a=picks, b=picks, c=picks,
        torn=flags, graph=st.sampled_from([0, 0, 0, 1]),
    )  # fmt: skip
    def any_hello(self, pick: int, epoch: int, running: bool, kind: str, a: int, b: int, c: int, torn: bool, graph: int) -> None:
        """Anybody, in any phase, of any epoch, with anything in hand."""
        worker_id = self.anyone(pick)
        held = {"none": None, "wild": self.wild_held(a, b, c, torn)}.get(kind)
        if kind == "true" and worker_id in self.state.workers:
            held = self.true_held(self.state.workers[worker_id])
        self.say_hello(worker_id, epoch=max(0, self.state.epoch + epoch), running=running, held=held, graph=graph)

    @rule(pick=picks, epoch=offsets, fenced=flags, a=picks, b=picks, c=picks, torn=flags)
    def any_leave(self, pick: int, epoch: int, fenced: bool, a: int, b: int, c: int, torn: bool) -> None:
        """Anybody leaves any epoch with anything in hand."""
        held = self.wild_held(a, b, c, torn)
        self.tell(ev.LeftEpoch(self.now, self.anyone(pick), self.state.epoch + epoch, fenced, held, "?"))

    @rule(pick=picks, epoch=offsets, at=st.integers(-3, 8), kind=st.integers(0, 9), flag=flags)
    def any_word(self, pick: int, epoch: int, at: int, kind: int, flag: bool) -> None:
        """Any report or evidence, of any worker, about any epoch and step."""
        now, who, e = self.now, self.anyone(pick), self.state.epoch + epoch
        n = max(0, self.state.committed_step + at)
        words: tuple[ev.Event, ...] = (
            ev.EpochReady(now, who, e),
            ev.StepCommitted(now, who, e, n, 2.0, 1.0, 1.0, 1e-3, 100.0, 64, flag, 2.0),
            ev.EvalReported(now, who, e, n, 2.5),
            ev.DigestReported(now, who, e, n, "d"),
            ev.CheckpointReported(now, who, e, n, f"file:///c/{n}", flag, "digest"),
            ev.RankFinished(now, who, e, n, "d"),
            ev.WorkerDisconnected(now, who, "EOF"),
            ev.WorkerGone(now, who, "refused"),
            ev.SpawnFailed(now, who, "no room"),
            ev.FaultRequested(now, ev.Fault("hang", at, f"n{n % 7}", n, 0, 0), "me"),
        )
        self.tell(words[kind])

    @rule(pick=picks, epoch=offsets, kind=st.sampled_from([9] * 30 + [0, 1, 2, 3, 4]))
    def a_fatal_word(self, pick: int, epoch: int, kind: int) -> None:
        """What may end the job; rarely, so that most lives are long."""
        now, who, e = self.now, self.anyone(pick), self.state.epoch + epoch
        words: tuple[ev.Event, ...] = (
            ev.TaskFailed(now, who, e, 1, False, "Traceback\nValueError"),
            ev.TaskFailed(now, who, e, 1, True, ""),
            ev.RankFinished(now, who, e, 1, "another"),
            ev.DigestReported(now, who, e, self.state.committed_step, "another"),
            ev.CancelRequested(now, "me"),
        )
        if kind < len(words):
            self.tell(words[kind])

    @rule(node=st.integers(0, NODES))
    def a_drain(self, node: int) -> None:
        """Somebody wants a node to be emptied, be it there or not."""
        self.tell(ev.DrainRequested(self.now, f"n{node}", "me", "spot"))

    @rule(node=st.integers(0, NODES))
    def a_node_that_is_known_to_be_gone(self, node: int) -> None:
        """Somebody who knows says so, of any node, also of one that nobody knows."""
        self.tell(ev.NodeGone(self.now, f"n{node}", "me", "its pod failed"))

    @rule(on=flags)
    def suspended_or_not(self, on: bool) -> None:
        """The job is to give its machines back, or to go on, whether or not it has."""
        self.tell(ev.SuspendRequested(self.now, "me", "") if on else ev.ContinueRequested(self.now, "me"))

    @rule(nodes=st.integers(0, NODES), cut=st.sampled_from([(), (), (3, 1), (2, 2), (1, 1, 2), (4,), (5,)]))
    def a_scale(self, nodes: int, cut: tuple[int, ...]) -> None:
        """Somebody wants more, fewer, or other ranks, be it possible or not."""
        self.tell(ev.ScaleRequested(self.now, nodes, cut, "me"))

    @rule(pick=picks)
    def a_replacement(self, pick: int) -> None:
        """Somebody wants a worker replaced, be it there or not."""
        self.tell(ev.ReplaceRequested(self.now, self.anyone(pick), "me"))

    @rule()
    def a_checkpoint(self) -> None:
        """Somebody wants a checkpoint."""
        self.tell(ev.CheckpointRequested(self.now, "me"))

    @rule(pick=picks, epoch=offsets, ranks=st.lists(st.integers(0, 9), max_size=3), at=st.integers(0, 2))
    def something_is_wrong(self, pick: int, epoch: int, ranks: list[int], at: int) -> None:
        """A vote on corrupt state, or a bad step."""
        who, e, n = self.anyone(pick), self.state.epoch + epoch, self.state.committed_step + at
        bad = ev.BadStepFound(self.now, who, e, n, "nan")
        self.tell(bad if at else ev.CorruptionFound(self.now, who, e, n, tuple(ranks), "sums differ"))

    @precondition(lambda self: self.state.change is not None)
    @rule(torn=flags)
    def the_ranks_leave_as_asked(self, torn: bool) -> None:
        """All of them, after one more step; now and then one breaks on the way."""
        self.steps_are_committed(0, 1)
        for w in [w for w in self.state.workers.values() if w.phase is WorkerPhase.MEMBER]:
            held = self.true_held(w)
            if held is not None:
                held = replace(held, params_step=-1 if torn else held.params_step)
            self.tell(ev.LeftEpoch(self.now, w.worker_id, self.state.epoch, False, held, "as asked"))

    @rule(
        picked=st.lists(picks, max_size=6),
        silence=st.sampled_from([0, 1_999, 2_000, 3_500, 200_000]),
        stalled=st.sampled_from([0, 2_700, 3_500, 7_000, 200_000]),
        usual=st.sampled_from([0, 100, 3_000]),
        comm=flags, orphaned=st.sampled_from([False] * 5 + [True]), pace=st.sampled_from([0, 50, 500]),
        back=st.integers(-10, 200_000),
    )  # fmt: skip
    def any_tick(
        self, picked: list[int], silence: int, stalled: int, usual: int, comm: bool, orphaned: bool, pace: int, back: int
    ) -> None:
        """Anybody, even twice, seen silent, stuck, orphaned or slow, at a time that may even run backwards."""
        worst = picked[0] if picked else 0
        seen = []
        for p in picked:
            bad = p == worst
            seen.append(
                ev.Observation(self.anyone(p), silence if bad else 0, stalled, usual, comm, orphaned and bad, pace if bad else 50)
            )
        self.now = max(0, self.now + back)
        self.tell(ev.Tick(self.now, tuple(seen)))

    @rule(comm=flags)
    def everybody_waits(self, comm: bool) -> None:
        """All stand still for long: in a collective, or in their own code."""
        limit = derive(self.job.resilience.detect_within_ms).lost_ms
        seen = [
            ev.Observation(w.worker_id, 0, 2 * limit if comm else 0, 100, comm, False, 50) for w in self.state.workers.values()
        ]
        self.tell(ev.Tick(self.now, tuple(seen)))

    # ------------------------------------------------------------------------------------------------------- the end

    def teardown(self) -> None:
        """The journal alone, as text, gives the same state; the state comes back from its own text; doors stay shut."""
        if not hasattr(self, "state"):
            return
        state = self.first
        for line in [json.dumps(to_json(e)) for e in self.told]:
            state = step(state, from_json(ev.Event, json.loads(line))).state
        assert state == self.state, "a replay of the journal differs"
        assert from_json(State, json.loads(json.dumps(to_json(state)))) == state
        workers: Mapping[str, Worker] = state.workers
        for worker_id, worker in workers.items():
            assert bool(refusal(state, worker_id)) == (not worker.phase.alive)
        assert refusal(state, "other/w0").startswith("other/w0 is not a worker of job j")
