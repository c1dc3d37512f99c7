"""The service over real SQLite journals and fake workers, in virtual time: jobs by name, restarts, requests, refusals."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import InjectFault, TakeCheckpoint
from orchestrator.core.supervisor.events import Event, Fault, ScaleRequested, WorkerGone, WorkerHello
from orchestrator.core.supervisor.machine import initial
from orchestrator.core.supervisor.state import CheckpointRef, JobPhase, Outcome, State, WorkerPhase
from orchestrator.runtime.checkpoint_types import ExportType
from orchestrator.runtime.control import BadRequestError, ControlHandler, NotFoundError, NotPossibleError
from orchestrator.runtime.driver import JournalFailed
from orchestrator.runtime.ports import Beat, LogLine, NotReady, Record, Welcome
from orchestrator.runtime.service import RELEASED_FILE, Parts, SupervisorService
from tests.unit.runtime.test_checkpoints import FakeTools
from tests.unit.runtime.world import GRAPH, LoopClock, Silent, World, WorldFleet, job, virtually


class Hub:
    """Stands where a World expects its driver, and goes through the service's callbacks instead."""

    def __init__(self, service: SupervisorService, name: str) -> None:
        self._service = service
        self._name = name

    def welcome(self, worker_id: str) -> Welcome:
        return self._service.welcome(WorkerHello(0, worker_id, "n", 1, "e:1", GRAPH, 0, False, None, None))

    def sink(self, event: Event) -> None:
        self._service.sink(event)

    def beat(self, beat: Beat) -> None:
        self._service.on_beat(beat)

    @property
    def state(self) -> State:
        return self._service._jobs[self._name].driver.state


class Place:
    """A home for jobs, with one world of workers per job, which outlive the service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worlds: dict[str, World] = {}
        self.checkpoint: CheckpointRef | None = None
        self.tools = FakeTools()
        self.failures: list[tuple[str, BaseException]] = []
        self.clock = LoopClock()

    def world(self, made: Job) -> World:
        return self.worlds.setdefault(made.name, World(made))

    def service(self, cluster: str = "local") -> SupervisorService:
        """A new supervisor process."""
        places = self

        class AllWorkers:
            async def send(self, command: Any) -> bool:
                return await places.worlds[command.worker_id.partition("/")[0]].send(command)

            def refuse(self, worker_id: str, why: str) -> None:
                places.worlds[worker_id.partition("/")[0]].refuse(worker_id, why)

        class Prober:
            async def refused(self, endpoint: str, timeout_ms: int) -> bool:
                return await places.worlds[endpoint.partition("/")[0]].refused(endpoint, timeout_ms)

        async def newest_checkpoint(_: Job) -> CheckpointRef | None:
            return self.checkpoint

        service = SupervisorService(
            jobs_dir=self.folder,
            cluster=cluster,
            parts=Parts(
                open_journal=SqliteJournal,
                make_fleet=lambda made: WorldFleet(self.world(made)),
                make_telemetry=lambda _: Silent(),
                newest_checkpoint=newest_checkpoint,
                checkpoint_tools=lambda: self.tools,
                workers=AllWorkers(),
                prober=Prober(),
                clock=self.clock,
            ),
            on_failure=lambda name, error: self.failures.append((name, error)),
        )
        handler: ControlHandler = service  # it is one
        assert handler is service
        return service

    async def submitted(self, service: SupervisorService, made: Job) -> World:
        world = self.world(made)
        world.driver = Hub(service, made.name)  # type: ignore[assignment]
        await service.submit(job=made, yaml_text="name: j\n")
        return world


Story = Callable[[Callable[[Place], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    def tell(main: Callable[[Place], Coroutine[Any, Any, None]]) -> None:
        virtually(lambda: main(Place(tmp_path)))

    return tell


def test_two_jobs_run_side_by_side_and_each_hears_of_its_own_workers(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        assert await service.start() == ()
        await place.submitted(service, job(name="a"))
        await place.submitted(service, job(name="b", steps=12))
        a, b = await service.finished("a"), await service.finished("b")
        assert (a.phase, a.committed_step) == (JobPhase.SUCCEEDED, 30)
        assert (b.phase, b.committed_step) == (JobPhase.SUCCEEDED, 12)
        statuses = await service.list_jobs()
        assert [(s.name, s.step) for s in statuses] == [("a", 30), ("b", 12)]
        assert statuses[0].goodput == 1.0
        assert (place.folder / "a/job.yaml").read_text() == "name: j\n"
        await service.close()

    story(main)


def test_submitting_a_running_job_again_is_no_error_and_another_of_its_name_is(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        assert await service.submit(job=job(), yaml_text="") == "j"
        with pytest.raises(NotPossibleError, match="another job called j is running"):
            await service.submit(job=job(steps=99), yaml_text="")
        assert (await service.finished("j")).epoch == 1
        await service.close()

    story(main)


def test_a_job_that_is_over_starts_anew_and_no_worker_id_is_used_twice(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        await place.submitted(service, job())
        first = await service.finished("j")
        place.worlds.clear()
        place.checkpoint = CheckpointRef(20, "file:///c", "d")
        await place.submitted(service, job())
        second = await service.finished("j")
        assert second.phase is JobPhase.SUCCEEDED
        assert not set(first.workers) & set(second.workers)
        records = [r async for r in service.watch_events("j", after_seq=0, follow=False)]
        assert records[0].committed_step == 20  # from the newest checkpoint
        old = SqliteJournal(place.folder / ".past/j.1", read_only=True)
        assert old.records(limit=10_000)[-1].phase == "succeeded"
        old.close()
        await service.close()
        again = place.service()
        assert await again.start() == ()
        assert [s.phase for s in await again.list_jobs()] == [JobPhase.SUCCEEDED]
        await again.close()

    story(main)


def test_a_new_service_takes_up_what_is_not_over_and_shows_what_is(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        done = await place.submitted(service, job(name="done", steps=5))
        await service.finished("done")
        world = await place.submitted(service, job(name="going"))
        await world.until(lambda s: s.committed_step >= 10)
        seen = len([r async for r in service.watch_events("going", after_seq=0, follow=False)])
        await service.close()
        for worker in world.workers.values():
            worker.connected = False
        assert not world.closed
        await asyncio.sleep(0.3)

        service = place.service()
        world.driver, done.driver = Hub(service, "going"), Hub(service, "done")  # type: ignore[assignment]
        assert await service.start() == ("going",)
        for worker in list(world.workers.values()):
            worker.connect()
        state = await service.finished("going")
        assert (state.phase, state.epoch, state.committed_step) == (JobPhase.SUCCEEDED, 1, 30)
        assert (await service.finished("done")).phase is JobPhase.SUCCEEDED
        assert [(s.name, s.phase.value) for s in await service.list_jobs()] == [("done", "succeeded"), ("going", "succeeded")]
        assert (await service.account("going")).steps == 30
        assert len([r async for r in service.watch_events("going", after_seq=0, follow=False)]) > seen
        await service.close()

    story(main)


def test_the_jobs_of_another_cluster_are_left_alone(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        await service.close()  # as when the machine goes down: the job is not over
        other = place.service("ray-10-0-0-1")
        assert await other.start() == ()
        assert await other.list_jobs() == []
        with pytest.raises(NotPossibleError, match="a job j of the cluster local already"):
            await other.submit(job=job(), yaml_text="")
        await other.close()
        again = place.service()
        assert await again.start() == ("j",)
        await again.close()

    story(main)


def test_workers_that_outlive_a_job_which_is_over_are_ended_by_the_next_supervisor(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        await service.cancel("j", who="me")
        await service.close()  # at once: it was journaled that the job is over, and nothing else was done
        assert not world.closed
        service = place.service()
        world.driver = Hub(service, "j")  # type: ignore[assignment]
        assert await service.start() == ()
        assert (await service.finished("j")).phase is JobPhase.CANCELLED
        assert sorted(world.adopted) == ["j/w0", "j/w1", "j/w2"]
        assert world.closed, "which releases them"
        await service.close()
        world.closed = False
        service = place.service()
        await service.start()
        assert (await service.finished("j")).phase is JobPhase.CANCELLED
        assert not world.closed, "once is enough"
        await service.close()

    story(main)


def test_a_journal_that_is_damaged_keeps_no_other_job_from_going_on(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job(name="good"))
        await world.until(lambda s: s.committed_step >= 3)
        await service.close()
        damaged(place.folder / "bad")
        (place.folder / "empty").mkdir()  # killed before its journal was made
        service = place.service()
        world.driver = Hub(service, "good")  # type: ignore[assignment]
        assert await service.start() == ("good",)
        for call in (service.get("bad"), service.submit(job=job(name="bad"), yaml_text="")):
            with pytest.raises(NotPossibleError, match=r"journal of job bad cannot be used: JournalDamaged"):
                await call
        with pytest.raises(NotFoundError, match="no job called empty; there are: good"):
            await service.get("empty")
        await service.close()

    story(main)


def damaged(folder: Path) -> None:
    folder.mkdir()
    (folder / "journal.db").write_bytes(b"no database, but long enough to look like one to SQLite" * 30)


def test_a_driver_that_stops_is_told_of_and_its_job_shows_why(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        service._jobs["j"].journal.append = full  # type: ignore[method-assign]
        with pytest.raises(JournalFailed):
            await service.finished("j")
        assert [name for name, _ in place.failures] == ["j"]
        status = await service.get("j")
        assert status.phase is JobPhase.RUNNING
        assert status.last_word.startswith("the supervisor stopped, the workers train on: the journal cannot be written")
        with pytest.raises(NotPossibleError, match="has stopped"):
            await service.cancel("j", who="me")
        assert not world.closed
        await service.close()

    story(main)


def test_events_can_be_followed_to_the_end(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        await place.submitted(service, job())
        records = [r async for r in service.watch_events("", after_seq=0, follow=True)]
        assert [r.seq for r in records] == list(range(1, len(records) + 1))
        assert records[-1].phase == "succeeded"
        late = [r async for r in service.watch_events("j", after_seq=records[-3].seq, follow=True)]
        assert late == records[-2:]
        await service.finished("j")
        await service.close()

    story(main)


def test_the_status_can_be_watched_to_the_end(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        await place.submitted(service, job())
        seen = [s async for s in service.watch_status("j")]
        assert seen[0].phase is JobPhase.WAITING
        assert seen[-1].phase is JobPhase.SUCCEEDED
        assert all(a != b for a, b in itertools.pairwise(seen))
        steps = [s.step for s in seen]
        assert steps == sorted(steps)
        assert len(set(steps)) > 10
        await service.finished("j")
        await service.close()

    story(main)


def test_a_fault_is_journaled_and_reaches_its_rank(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.phase is JobPhase.RUNNING)
        fault = Fault("hang", 1, "", 5, 0, 0)
        await service.inject("j", fault=fault, who="me")
        await service.finished("j")
        assert [c.fault for w in world.workers.values() for c in w.commands if isinstance(c, InjectFault)] == [fault]
        await service.close()

    story(main)


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        (Fault("explode", 0, "", 0, 0, 0), BadRequestError, "no fault is called 'explode'"),
        (Fault("hang", -1, "", 0, 0, 0), BadRequestError, "either a rank or a node"),
        (Fault("hang", 0, "n0", 0, 0, 0), BadRequestError, "either a rank or a node"),
        (Fault("hang", 0, "", -1, 0, 0), BadRequestError, "not negative"),
        (Fault("hang", -1, "n", 0, 0, 0), BadRequestError, "beginning of 4 nodes"),
        (Fault("hang", -1, "zz", 0, 0, 0), NotFoundError, "no node zz; there are n0, n1, n2, n3"),
        (Fault("hang", 17, "", 0, 0, 0), NotPossibleError, "has no target"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(story: Story, fault: Fault, error: type[Exception], match: str) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.phase is JobPhase.RUNNING)
        with pytest.raises(error, match=match):
            await service.inject("j", fault=fault, who="me")
        await service.close()

    story(main)


def test_a_drain_empties_the_node_or_says_why_not(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        node = world.rank(0).node_id
        await service.drain("j", node_id=node, who="me", why="maintenance")
        await world.until(lambda s: s.phase is JobPhase.RUNNING and s.epoch == 2)
        assert world.rank(0).node_id != node
        with pytest.raises(NotFoundError):
            await service.drain("j", node_id="zz", who="me", why="")
        assert (await service.finished("j")).steps_lost == 0
        await service.close()

    story(main)


def test_a_node_that_is_said_to_be_gone_is_swapped_at_once_and_silence_is_no_evidence(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        node = world.rank(0).node_id
        with pytest.raises(BadRequestError, match="silence is no evidence"):
            await service.node_gone("j", node_id=node, who="me", evidence="")
        decided = await service.node_gone("j", node_id=node, who="me", evidence="its Node object was deleted")
        assert "its Node object was deleted" in decided.reason
        await world.until(lambda s: s.phase is JobPhase.RUNNING and s.epoch == 2)
        assert world.rank(0).node_id != node
        await service.node_gone("j", node_id=node, who="me", evidence="again")  # no error
        assert (await service.finished("j")).steps_lost == 0
        await service.close()

    story(main)


def test_a_suspended_job_ends_its_workers_and_goes_on_when_asked_to(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        await service.go_on("j", who="me")  # no error
        await service.suspend("j", who="me", why="the queue")
        await world.until(lambda s: bool(s.suspended) and not any(w.phase.alive for w in s.workers.values()))
        assert (await service.get("j")).suspended == "me (the queue)"
        await service.suspend("j", who="me", why="")  # no error
        await service.go_on("j", who="me")
        state = await service.finished("j")
        assert (state.phase, state.suspended, state.budget) == (JobPhase.SUCCEEDED, "", state.job.resilience.failure_budget)
        await service.close()

    story(main)


def test_a_scale_is_decided_on_and_carried_out(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job(ranks=3, steps=60))
        await world.until(lambda s: s.committed_step >= 3)
        decided = await service.scale("j", nodes=2, layers_per_stage=(), who="me")
        assert "data 2" in decided.reason
        record = (await collected(service.watch_events("j", after_seq=decided.seq - 1, follow=False)))[0]
        assert record.event == ScaleRequested(record.at_ms, 2, (), "me")
        again = await service.scale("j", nodes=2, layers_per_stage=(), who="me")
        assert "nothing to do" in again.reason, "asking twice is no error"
        await world.until(lambda s: s.phase is JobPhase.RUNNING and s.epoch == 2)
        status = await service.get("j")
        assert [(a.name, a.size) for a in status.target] == [("pipeline", 1), ("data", 2), ("tensor", 1)]
        assert status.plan is not None
        assert (status.plan.ranks, status.shrunk) == (2, False)
        assert (await service.finished("j")).steps_lost == 0
        await service.close()

    story(main)


@pytest.mark.parametrize(
    ("nodes", "layers", "error", "match"),
    [
        (0, (), BadRequestError, "say what is to change"),
        (-1, (), BadRequestError, "not negative"),
        (2, (1, 0), BadRequestError, "at least one layer"),
        (99, (), NotPossibleError, "cannot feed"),
        (0, (9, 9), NotPossibleError, "do not add up"),
    ],
)
def test_a_scale_that_cannot_be_is_refused(
    story: Story, nodes: int, layers: tuple[int, ...], error: type[Exception], match: str
) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        with pytest.raises(error, match=match):
            await service.scale("j", nodes=nodes, layers_per_stage=layers, who="me")
        await service.close()

    story(main)


@pytest.mark.parametrize("by", ["rank", "name", "number"])
def test_a_worker_is_replaced_by_a_spare(story: Story, by: str) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job(steps=60))
        await world.until(lambda s: s.committed_step >= 3 and any(w.phase is WorkerPhase.SPARE for w in s.workers.values()))
        old = world.rank(1).worker_id
        name = {"rank": "", "name": old, "number": old.rpartition("/")[2]}[by]
        decided = await service.replace_worker("j", worker_id=name, rank=None if name else 1, who="me")
        assert "to be replaced, says me" in decided.reason
        await world.until(lambda s: s.phase is JobPhase.RUNNING and s.epoch == 2)
        assert world.rank(1).worker_id != old
        with pytest.raises(NotFoundError, match=f"no worker {old} any more"):
            await service.replace_worker("j", worker_id=old, rank=None, who="me")
        with pytest.raises(NotFoundError, match="ranks 0 to 1"):
            await service.replace_worker("j", worker_id="", rank=7, who="me")
        with pytest.raises(BadRequestError, match="either a worker or a rank"):
            await service.replace_worker("j", worker_id=old, rank=1, who="me")
        assert (await service.finished("j")).steps_lost == 0
        await service.close()

    story(main)


def test_a_checkpoint_is_asked_for_where_there_is_a_place_for_it(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job(name="without"))
        await world.until(lambda s: s.committed_step >= 3)
        with pytest.raises(NotPossibleError, match="no place for checkpoints"):
            await service.take_checkpoint("without", who="me")
        with pytest.raises(NotPossibleError, match=r"sets no checkpoint\.uri"):
            await service.list_checkpoints("without", uri="")
        made = job(name="with")
        world = await place.submitted(service, replace(made, checkpoint=replace(made.checkpoint, uri="/c")))
        await world.until(lambda s: s.committed_step >= 3)
        decided = await service.take_checkpoint("with", who="me")
        assert "checkpoint for me" in decided.reason
        await world.until(lambda s: any(isinstance(c, TakeCheckpoint) for w in world.workers.values() for c in w.commands))
        await service.close()

    story(main)


async def test_checkpoints_are_looked_at_where_the_job_has_them(tmp_path: Path) -> None:
    """In real time, since storage is real: a job that is over can be looked at too."""
    place = Place(tmp_path)
    made = replace(job(name="j"), checkpoint=replace(job().checkpoint, uri="/c"))
    journal = SqliteJournal(tmp_path / "j")
    journal.create(made)
    over = replace(initial(made, checkpoint=None, now_ms=0), phase=JobPhase.CANCELLED, outcome=Outcome.CANCELLED)
    journal.snapshot(0, over)
    journal.close()
    (tmp_path / "j" / RELEASED_FILE).touch()
    service = place.service()
    await service.start()
    assert await service.list_checkpoints("j", uri="") == ()
    assert place.tools.places == ["/c"]
    with pytest.raises(NotFoundError, match="no checkpoint of step 7"):
        await service.verify_checkpoint("j", uri="/d", step=7)
    with pytest.raises(BadRequestError, match="no absolute path"):
        await service.export_checkpoint("j", uri="", step=None, path="m.safetensors", dtype=ExportType.FP32)
    exported = await service.export_checkpoint("j", uri="", step=None, path="/m", dtype=ExportType.BF16)
    assert (exported.path, exported.dtype) == ("/m", ExportType.BF16)
    assert place.tools.places == ["/c", "/d", "/c"]
    await service.close()


async def collected(records: AsyncGenerator[Record, None]) -> list[Record]:
    return [r async for r in records]


def test_cancel_returns_when_it_is_journaled_and_after_the_end_it_is_refused(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        await service.cancel("j", who="me")
        assert (await service.get("j")).phase is JobPhase.CANCELLED
        await service.finished("j")
        with pytest.raises(NotPossibleError, match="job j is over: cancelled"):
            await service.cancel("j", who="me")
        await service.close()

    story(main)


def test_a_shutdown_ends_every_job_and_takes_no_new_one(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        worlds = [await place.submitted(service, job(name=name)) for name in ("a", "b")]
        await worlds[1].until(lambda s: s.committed_step >= 3)
        await service.shutdown(who="me")
        await service.wait_shut_down()
        assert [s.phase for s in await service.list_jobs()] == [JobPhase.CANCELLED] * 2
        assert all(w.closed for w in worlds)
        with pytest.raises(NotPossibleError, match="shutting down"):
            await service.submit(job=job(), yaml_text="")
        await service.close()

    story(main)


def test_a_decision_can_be_explained(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 10)
        world.rank(1).die(kill=True)
        await service.finished("j")
        records = [r async for r in service.watch_events("j", after_seq=0, follow=False)]
        gone = next(r for r in records if isinstance(r.event, WorkerGone))
        told = await service.explain("j", seq=gone.seq)
        text = "\n".join(told.lines)
        assert told.record == gone
        for part in ("refuses connections", "what led to it", "probing it", "KillWorker", "starting epoch 2"):
            assert part in text
        with pytest.raises(NotFoundError, match="no record 99999"):
            await service.explain("j", seq=99_999)
        await service.close()

    story(main)


def test_lines_and_stacks_of_workers_are_kept_with_their_job(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        service.on_log(LogLine("j/w0", 0, "hello"))
        service.on_stacks(world.rank(1).worker_id, "Thread 1\n  here")
        service.on_log(LogLine("unknown/w0", 0, "dropped"))
        lines = [item.text async for item in service.tail_logs("j", rank=None, follow=False)]
        assert lines == ["hello", "---- stacks of all threads:", "Thread 1", "  here", "---- end of stacks"]
        assert len([item async for item in service.tail_logs("j", rank=1, follow=False)]) == 4
        await service.close()

    story(main)


def test_workers_of_no_job_are_refused_and_what_they_say_is_dropped(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        world = await place.submitted(service, job())
        await world.until(lambda s: s.committed_step >= 3)
        for worker_id in ("other/w0", "w0", "j/w99", ""):
            answer = service.welcome(WorkerHello(0, worker_id, "n", 1, "e:1", GRAPH, 0, False, None, None))
            assert not answer.accepted
            assert answer.why
        service.sink(WorkerGone(0, "other/w0", "x"))
        service.on_beat(Beat("other/w0", 1, 1, "forward", 0, 0, False, False, 0, 0))
        service.on_stacks("other/w0", "x")
        assert (await service.finished("j")).phase is JobPhase.SUCCEEDED
        await service.close()

    story(main)


def test_a_worker_is_not_refused_where_it_is_not_known_whether_it_is_wanted(story: Story) -> None:
    """A refusal ends it; a supervisor that is just starting, or cannot read a journal, must not do that."""

    async def main(place: Place) -> None:
        hello = WorkerHello(0, "bad/w0", "n", 1, "e:1", GRAPH, 1, True, None, None)
        damaged(place.folder / "bad")
        service = place.service()
        with pytest.raises(NotReady):
            service.welcome(hello)
        await service.start()
        with pytest.raises(NotReady):
            service.welcome(hello)
        assert not service.welcome(replace(hello, worker_id="other/w0")).accepted
        await service.close()
        with pytest.raises(NotReady):
            service.welcome(replace(hello, worker_id="other/w0"))

    story(main)


def test_names_are_asked_for_where_there_are_several(story: Story) -> None:
    async def main(place: Place) -> None:
        service = place.service()
        await service.start()
        with pytest.raises(NotFoundError, match=r"there is no job$"):
            await service.get("")
        with pytest.raises(NotPossibleError, match="has seen the cluster"):
            await service.cluster()
        world = await place.submitted(service, job(name="a"))
        assert (await service.get("")).name == "a"
        await world.until(lambda s: s.cluster is not None)
        assert [n.node_id for n in (await service.cluster()).nodes] == ["n0", "n1", "n2", "n3"]
        await place.submitted(service, job(name="b"))
        with pytest.raises(BadRequestError, match="name one of the jobs: a, b"):
            await service.get("")
        await service.close()

    story(main)
