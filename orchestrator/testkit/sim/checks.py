"""What must hold in every run, checked after every step against the truth that only the world knows.

Safety: one epoch acts at a time and nobody joins an older one; what the journal says was committed was committed, once, and
holds what the serial run holds; the state goes on from the newest step that the survivors hold; status tells the truth;
nothing is done that the journal does not durably hold. Cost: decisions and commands per virtual second are bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.core.plan.lint import lint
from orchestrator.core.reshard.recovery import Commit, Source
from orchestrator.core.supervisor.commands import Command, RunEpoch, SpawnWorker
from orchestrator.core.supervisor.events import CorruptionFound, NodeGone, ScaleRequested
from orchestrator.core.supervisor.handover import missing
from orchestrator.core.supervisor.state import JobPhase, Outcome, State, WorkerPhase
from orchestrator.runtime.ports import Beat, Record
from orchestrator.testkit.sim.scenario import Kind
from orchestrator.testkit.sim.sizes import Sizes

if TYPE_CHECKING:
    from orchestrator.testkit.sim.group import Gate, Group
    from orchestrator.testkit.sim.training import Training
    from orchestrator.testkit.sim.worker import Worker
    from orchestrator.testkit.sim.world import World

COMMANDS_MAX = 150  # for free
COMMANDS_PER_S_MAX = 30
RECORDS_PER_S_MAX = 120


class Checks:
    """Of one run. Also the driver's Telemetry."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.issued: set[Command] = set()
        self.state: State | None = None
        self.ready: set[tuple[str, int]] = set()
        self.finished: dict[tuple[str, int], str] = {}
        self.formed = 0  # newest epoch whose group was formed
        self.passed = 0  # newest step that somebody is past the commit of
        self.commands = 0
        self.records = 0
        self.accused: set[str] = set()  # workers that a majority of the holders contradicts
        self.was_safe = False  # the plan before the present one was on two machines
        self.gone: set[str] = set()  # nodes that the supervisor knows to be gone
        self.sizes = Sizes(world)

    # ---- the journal and the commands

    def journaled(self, record: Record, durable: bool) -> None:
        """A record is written."""
        self.records += 1
        self.commands += len(record.commands)
        if record.commands and not durable:
            self.world.violation(f"record {record.seq} has commands and was not written durably")
        if durable:
            self.issued.update(record.commands)

    def carried_out(self, command: Command) -> None:
        """The supervisor acts."""
        if command not in self.issued:
            self.world.violation(f"{type(command).__name__} of {command.worker_id} acts before it is in the journal")  # type: ignore[union-attr]

    # ---- decisions (runtime.ports.Telemetry)

    def resumed(self, state: State) -> None:
        """A new supervisor believes this."""
        self.state = state
        self.gone &= set(state.drained)  # what was not written durably is forgotten

    def ticked(self, state: State, beats: Iterable[Beat]) -> None:
        """Nothing to check."""

    def decided(self, record: Record, state: State) -> None:
        """A decision was made and written. Telemetry may not raise, so bugs of the checks are violations as well."""
        try:
            before = self.state
            if before is not None:
                self._decided(record, before, state)
            self.state = state
        except Exception as error:
            self.world.violation(f"the checks broke: {error!r}")
            raise

    def _decided(self, record: Record, before: State, state: State) -> None:
        say = self.world.violation
        if record.commands and not record.reason:
            say(f"record {record.seq} commands without a reason")
        if before.phase.terminal:
            say(f"record {record.seq} decides after the end of the job")
        if not before.epoch <= state.epoch <= before.epoch + 1:
            say(f"epoch {before.epoch} is followed by epoch {state.epoch}")
        if isinstance(record.event, CorruptionFound) and before.plan is not None and record.event.epoch == before.epoch:
            self.accused.update(s.worker_id for s in before.plan.seats if s.rank in record.event.accused)
        if isinstance(record.event, ScaleRequested):
            self.sizes.asked()
        if isinstance(record.event, NodeGone) and before.cluster is not None and before.cluster.node(record.event.node_id):
            self.gone.add(record.event.node_id)
        for command in record.commands:
            if isinstance(command, SpawnWorker) and command.node_id in self.gone:
                say(f"{command.worker_id} is to start on {command.node_id}, which is known to be gone")
        if state.suspended:
            self._gives_back(before, state)
        if state.epoch > before.epoch:
            self._new_epoch(record, before, state)
            self.sizes.new_epoch(before, state)
        if self.world.scenario.kind is Kind.PLANNED and (state.budget < before.budget or lost_steps(before, state)):
            say("nothing failed, and a planned change cost a step or a unit of the budget")
        if state.phase is JobPhase.RUNNING and before.phase is not JobPhase.RUNNING:
            assert state.plan is not None
            late = [s.rank for s in state.plan.seats if (s.worker_id, state.epoch) not in self.ready]
            if late:
                say(f"epoch {state.epoch} is said to run, and ranks {late} have no state yet")
        lost = state.steps_lost - before.steps_lost
        if state.committed_step < before.committed_step and lost != before.committed_step - state.committed_step:
            say(f"committed step {before.committed_step} became {state.committed_step} with {lost} steps counted as lost")
        if state.committed_step > before.committed_step:
            self._step(before, state)
        if state.phase.terminal:
            self._end(before, state)

    def _step(self, before: State, state: State) -> None:
        say, n = self.world.violation, state.committed_step
        if n > self.passed:
            say(f"step {n} is said to be committed, and nobody is past step {self.passed}")
        elif state.commit != self.world.serial.commit[n]:
            say(f"the commit of step {n} is {state.commit}, the serial run's {self.world.serial.commit[n]}")
        self.sizes.stepped(state)

    def _new_epoch(self, record: Record, before: State, state: State) -> None:
        say, plan, resume = self.world.violation, state.plan, state.resume
        assert plan is not None
        assert resume is not None
        for finding in lint(plan):
            say(f"plan of epoch {plan.epoch}: {finding}")
        self.was_safe = before.plan is not None and len(self.world.machines_of(before.plan)) > 1
        asked = [c.worker_id for c in record.commands if isinstance(c, RunEpoch)]
        if asked != [s.worker_id for s in plan.seats] or plan.epoch != state.epoch:
            say(f"epoch {plan.epoch} starts on {asked} and its seats are {[s.worker_id for s in plan.seats]}")
        if resume.step < state.committed_step:
            say(f"epoch {plan.epoch} resumes at step {resume.step}, step {state.committed_step} is committed")
        gone = [s.node_id for s in plan.seats if s.node_id in self.gone]
        if gone:
            say(f"epoch {plan.epoch} has ranks on {', '.join(gone)}, known to be gone")
        moved_apart = before.plan is not None and not before.plan.copies and not plan.copies  # the next change lays them
        for machine in () if moved_apart else sorted(self.alone_with_state(state)):
            say(f"epoch {plan.epoch} has state on {machine} that no other of its machines holds")
        old = before.plan
        stay: list[Training] = []
        for seat in old.seats if old is not None else ():
            worker = self.world.workers[seat.worker_id]
            fenced = state.workers[seat.worker_id].phase is WorkerPhase.LOST
            if worker.inside and worker.epoch == before.epoch and not fenced:
                say(f"epoch {plan.epoch} starts while {worker.worker_id} is inside epoch {before.epoch} and not fenced")
            if not fenced:
                stay.append(worker.training)
        seated = {seat.worker_id for seat in old.seats} if old is not None else set()
        stay += [
            self.world.workers[i].training
            for i, w in before.workers.items()
            if w.phase is WorkerPhase.LEFT and i not in seated and state.workers[i].phase is not WorkerPhase.LOST
        ]
        accused = [s.worker_id for s in plan.seats if s.worker_id in self.accused]
        if accused:
            say(f"epoch {plan.epoch} has ranks for {accused}, whose state is known to be wrong")
        if state.cold or before.cold:
            return
        best = newest_step(stay, before.commit)
        if resume.source is Source.MEMORY and resume.step != best:
            say(f"epoch {plan.epoch} resumes at step {resume.step}, its survivors hold step {best}")
        if resume.source is not Source.MEMORY and best is not None and best > resume.step:
            say(f"epoch {plan.epoch} takes step {resume.step} from {resume.source}, its survivors hold step {best}")

    def _gives_back(self, before: State, state: State) -> None:
        """A suspended job ends its workers only when what they hold is durable: no step is lost."""
        there = {i for i, w in before.workers.items() if w.phase in (WorkerPhase.MEMBER, WorkerPhase.LEFT)}
        ended = [i for i in there if state.workers[i].phase is WorkerPhase.ENDED]
        best = newest_step([self.world.workers[i].training for i in ended], before.commit)
        if best is not None and best > state.saved_step and not before.cold and not state.phase.terminal:
            self.world.violation(f"the machines go, step {state.saved_step} is saved, and the workers there hold step {best}")

    def alone_with_state(self, state: State) -> set[str]:
        """Machines of the plan whose loss would take state along, though the job wants copies and there is another one."""
        plan = state.plan
        assert plan is not None
        machines = self.world.machines_of(plan)
        if len(machines) < 2 or not self.world.job.parallel.copies:
            return set()
        of = {m: [s.rank for s in plan.seats if self.world.node(s.node_id).machine == m] for m in machines}
        return {m for m, ranks in of.items() if missing(plan, ranks)}

    def _end(self, before: State, state: State) -> None:
        say = self.world.violation
        if not state.last_word.strip() or state.outcome is Outcome.NONE:
            say(f"the job {state.phase} without a last word")
        if state.phase is JobPhase.SUCCEEDED:
            steps = self.world.job.train.steps
            if state.committed_step != steps:
                say(f"the job succeeded at step {state.committed_step} of {steps}")
            for seat in state.plan.seats if state.plan else ():
                if self.finished.get((seat.worker_id, state.epoch)) != self.world.serial.digest(steps):
                    say(f"the job succeeded, and rank {seat.rank} did not finish with the serial run's state")
        if state.outcome is Outcome.CORRUPT_STATE and not self.world.flips and not self.world.scenario.bad_steps:
            say(f"the state is corrupt: {state.last_word}")
        if state.outcome is Outcome.UNRECOVERABLE and state.plan is not None:
            there = [i for i, w in before.workers.items() if w.phase in (WorkerPhase.MEMBER, WorkerPhase.LEFT)]
            ended = [i for i in there if state.workers[i].phase is WorkerPhase.ENDED]
            best = newest_step([self.world.workers[w].training for w in ended], state.commit)
            if best is not None and not self.world.scenario.fails_by_policy and not state.cold:
                say(f"the job gives up, and its survivors hold step {best}")

    # ---- what happens in the world

    def welcomed(self, worker_id: str, state: State) -> None:
        """The hub lets a worker in."""
        worker = state.workers.get(worker_id)
        if worker is None or not worker.phase.alive:
            self.world.violation(f"{worker_id} is let in, and it is {worker.phase if worker else 'unknown'}")

    def joins(self, worker: Worker, old: int, new: int) -> None:
        """A worker takes an order."""
        if new <= old:
            self.world.violation(f"{worker.worker_id} goes from epoch {old} to epoch {new}")

    def seated(self, group: Group, worker_id: str) -> None:
        """A worker joins a group."""
        if self.state is not None and group.epoch > self.state.epoch:
            self.world.violation(f"{worker_id} joins epoch {group.epoch}, the journal is at epoch {self.state.epoch}")

    def opened(self, group: Group, gate: Gate) -> None:
        """All members of a group came to a gate."""
        if gate.kind == "form":
            self.formed = max(self.formed, group.epoch)
        if group.epoch < self.formed:
            self.world.violation(
                f"epoch {group.epoch} acts ({gate.kind} of step {gate.step}) after epoch {self.formed} was formed"
            )

    def committed(self, training: Training, commit: Commit) -> None:
        """A worker is past the commit of a step."""
        step = commit.step
        if step > self.passed + 1:
            self.world.violation(f"step {step} is committed and step {self.passed + 1} was skipped")
        self.passed = max(self.passed, step)
        if commit != self.world.serial.commit[step]:
            self.world.violation(f"step {step} is committed as {commit}, in the serial run as {self.world.serial.commit[step]}")
        if not commit.skipped and training.memory.grad != self.world.serial.grad[step]:
            self.world.violation(f"step {step} is committed with another gradient than the serial run's")

    # ---- the whole run

    def cost(self, virtual_s: float) -> None:
        """What it cost."""
        if self.commands > COMMANDS_MAX + COMMANDS_PER_S_MAX * virtual_s:
            self.world.violation(f"{self.commands} commands in {virtual_s:.1f} s")
        if self.records > COMMANDS_MAX + RECORDS_PER_S_MAX * virtual_s:
            self.world.violation(f"{self.records} records in {virtual_s:.1f} s")


def lost_steps(before: State, state: State) -> int:
    """Steps that a decision gave up."""
    return state.steps_lost - before.steps_lost


def newest_step(trainings: Iterable[Training], known: Commit | None) -> int | None:
    """The newest step that these workers can get to by themselves, from what their memory holds; None when a block is missing."""
    memories = [t.memory for t in trainings if t.memory.plan is not None]
    commits = {m.commit.step: m.commit for m in memories if m.commit is not None}
    if known is not None:
        commits.setdefault(known.step, known)
    for step in sorted({m.applied for m in memories} | commits.keys(), reverse=True):
        optim: set[int] = set()
        params: set[int] = set()
        blocks = 0
        for m in memories:
            if m.applied == step or (m.applied == step - 1 and m.prepared == step and step in commits):
                assert m.plan is not None
                blocks = m.plan.layouts[0].numel // m.plan.block
                optim |= m.optim.keys()
                skipped = step in commits and commits[step].skipped and m.params_step == step - 1
                params |= m.optim.keys() | (m.all_params().keys() if m.params_step == step or skipped else set())
        if blocks and len(optim) == blocks and len(params) == blocks:
            return step
    return None
