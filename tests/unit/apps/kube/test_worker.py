"""A worker pod's first process that is told to stop: a real process, with a child in place of Ray, that asks a real control API.

The supervisor behind it moves the pod's rank when it is asked to drain, at once or never.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from orchestrator.adapters.grpc.hub import WorkerHub
from orchestrator.adapters.grpc.server import SupervisorServer
from orchestrator.adapters.kube import names
from orchestrator.apps.kube.pod import EXIT_RAY, EXIT_STOPPED
from orchestrator.runtime.control import Decided
from orchestrator.runtime.status_types import JobStatus, NodeStatus
from tests.unit.adapters.grpc.support import TIMEOUTS, TOKEN, FakeControl, Heard, StepClock
from tests.unit.adapters.kube.test_agent_words import STATUS, WORKER
from tests.unit.apps.kube.test_pod import ENV

ROOT = Path(__file__).resolve().parents[4]
WAIT_S = 60.0  # far beyond anything that happens; only a failing test waits that long
NODE = NodeStatus(node_id="ray0", address=ENV["POD_IP"], healthy=True, schedulable=True, slots=1, workers=1)
WORKS = """
    import sys
    from orchestrator.apps.kube import pod, worker
    ray = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit('ray ends')); print('ray', flush=True)"
    ray += "; time.sleep({life_s})"
    pod.Pod.ray_command = lambda self, *role: [sys.executable, "-c", ray]
    worker.wait_for_head = lambda address, limit_s: True
    sys.exit(worker.main())
"""


class Supervisor(FakeControl):
    """Has rank 2 of the job on the pod's node; `moves`: until it is asked to drain that."""

    def __init__(self, *, moves: bool) -> None:
        super().__init__()
        self._moves = moves
        self.asked = asyncio.Event()
        self.drained = False

    async def get(self, name: str) -> JobStatus:
        there = "ray1" if self.drained and self._moves else "ray0"
        return replace(STATUS, nodes=(NODE,), workers=(replace(WORKER, node_id=there, rank=2),))

    async def drain(self, name: str, *, node_id: str, who: str, why: str) -> Decided:
        self.drained = True
        self.asked.set()
        return self._decided("j", ("drain", node_id, who, why))


@dataclass
class Pod:
    """The processes of one pod."""

    supervisor: Supervisor
    env: dict[str, str]
    said: list[str] = field(default_factory=list)

    async def run(self, *argv: str) -> asyncio.subprocess.Process:
        """One of them."""
        return await asyncio.create_subprocess_exec(
            sys.executable, *argv, env=self.env, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )

    async def worker(self, *, life_s: float = 600.0) -> asyncio.subprocess.Process:
        """The first one, once Ray runs in it."""
        process = await self.run("-c", textwrap.dedent(WORKS).format(life_s=life_s))
        await self.until(process, "ray")
        return process

    async def until(self, process: asyncio.subprocess.Process, words: str) -> None:
        """Reads until it says so."""
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while not self.said or words not in self.said[-1]:
                line = await process.stdout.readline()
                assert line, self.said
                self.said.append(line.decode().rstrip())

    async def end(self, process: asyncio.subprocess.Process) -> int:
        """Its exit code."""
        async with asyncio.timeout(WAIT_S):
            rest, _ = await process.communicate()
        self.said += rest.decode().splitlines()
        assert process.returncode is not None
        return process.returncode

    @property
    def order(self) -> list[str]:
        """Which of what matters was said, in order."""
        words = ("draining node", "no rank is here any more", "nearly over", "ending Ray", "ray ends")
        return [word for line in self.said for word in words if word in line]


@asynccontextmanager
async def a_pod(root: Path, *, moves: bool = True, grace_s: int = 60) -> AsyncIterator[Pod]:
    """A pod whose job's supervisor serves at the port that all have, at a loopback address of its own."""
    host = f"127.77.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"
    supervisor = Supervisor(moves=moves)
    hub = WorkerHub(clock=StepClock(), timeouts=TIMEOUTS, queue_max=64)
    hub.attach(Heard().handlers())
    server = SupervisorServer(hub=hub, control=supervisor, token=TOKEN, timeouts=TIMEOUTS)
    await server.start(host=host, port=names.CONTROL_PORT)
    (root / names.RAY_TOKEN).write_text("r" * 43)
    (root / names.CONTROL_TOKEN).write_text(TOKEN)
    places = {name: str(root) for name in ("ORCHESTRATOR_TOKEN_DIR", "ORCHESTRATOR_SCRATCH_DIR", "ORCHESTRATOR_HOME_DIR")}
    mine = {**ENV, **places, "ORCHESTRATOR_HEAD": host, "PYTHONPATH": str(ROOT), names.ENV_GRACE_S: str(grace_s)}
    try:
        yield Pod(supervisor, {**os.environ, **mine})
    finally:
        await server.stop()


async def test_sigterm_alone_hands_over_before_ray_is_ended(tmp_path: Path) -> None:
    async with a_pod(tmp_path) as pod:
        process = await pod.worker()
        process.send_signal(signal.SIGTERM)
        assert await pod.end(process) == EXIT_STOPPED == 143
        assert pod.order == ["draining node", "no rank is here any more", "ending Ray", "ray ends"]
        assert pod.supervisor.calls == [("drain", "ray0", f"pod {ENV['POD_NAME']}", "its pod has to go")]


@pytest.mark.parametrize("moves", [True, False])
async def test_what_the_hook_has_seen_to_is_not_waited_for_again(tmp_path: Path, moves: bool) -> None:
    async with a_pod(tmp_path, moves=moves, grace_s=60 if moves else 6) as pod:
        process = await pod.worker()
        hook = await pod.run("-m", "orchestrator.apps.kube.leave")
        assert await pod.end(hook) == 0
        process.send_signal(signal.SIGTERM)
        assert await pod.end(process) == EXIT_STOPPED
        assert pod.order == ["draining node", "no rank is here any more" if moves else "nearly over", "ending Ray", "ray ends"]
        assert len(pod.supervisor.calls) == 1


async def test_a_second_sigterm_ends_the_waiting(tmp_path: Path) -> None:
    async with a_pod(tmp_path, moves=False, grace_s=3600) as pod:
        process = await pod.worker()
        process.send_signal(signal.SIGTERM)
        await pod.until(process, "are still here")
        process.send_signal(signal.SIGTERM)
        assert await pod.end(process) == EXIT_STOPPED
        assert pod.order == ["draining node", "ending Ray", "ray ends"]


async def test_it_waits_no_longer_than_the_pod_may(tmp_path: Path) -> None:
    async with a_pod(tmp_path, moves=False, grace_s=9) as pod:
        process = await pod.worker()
        process.send_signal(signal.SIGTERM)
        assert await pod.end(process) == EXIT_STOPPED
        assert pod.order[-2:] == ["ending Ray", "ray ends"]


async def test_where_ray_ends_meanwhile_nothing_is_left_to_wait_for(tmp_path: Path) -> None:
    async with a_pod(tmp_path, moves=False, grace_s=3600) as pod:
        process = await pod.worker(life_s=4.0)
        process.send_signal(signal.SIGTERM)
        assert await pod.end(process) == EXIT_STOPPED


async def test_ray_that_ends_by_itself_is_another_end(tmp_path: Path) -> None:
    async with a_pod(tmp_path) as pod:
        process = await pod.worker(life_s=0.0)
        assert await pod.end(process) == EXIT_RAY
        assert pod.supervisor.calls == []
