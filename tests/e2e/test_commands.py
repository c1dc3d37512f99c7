"""A person changes a running job from a shell: the real program, over gRPC, with real workers; and no bit of the job changes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_model
from typer.testing import CliRunner

from orchestrator.apps.cli.main import app
from orchestrator.core.supervisor.events import DigestReported
from orchestrator.engine.describe import build_seeded
from orchestrator.engine.tasks.loading import load_task
from tests.e2e.conftest import Calm
from tests.world.facts import Facts, at_step, starts
from tests.world.jobs import tiny_job
from tests.world.processes import System

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

STEPS = 300  # more than there will be: the job is cancelled when all is seen
PACE_MS = 200  # of a micro-batch: the fewer steps there are meanwhile, the fewer are compared
COMMAND_S = 200  # one command, on a machine that is busy with other tests


class Shell:
    """Runs the program in processes of its own; `--json` everywhere."""

    def __init__(self, home: Path) -> None:
        self._home = home

    async def run(self, *arguments: str, code: int = 0) -> Any:
        """What it printed, parsed; AssertionError when it ends with another code, or not at all."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "orchestrator.apps.cli.main", *arguments, "--json"),
            env={**os.environ, "ORCHESTRATOR_HOME": str(self._home), "PYTHONFAULTHANDLER": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        talk = asyncio.create_task(process.communicate())
        ended, _ = await asyncio.wait([talk], timeout=COMMAND_S)
        if not ended:
            process.send_signal(signal.SIGABRT)  # faulthandler tells where it stands
        out, err = await talk
        assert ended, f"{arguments}: not within {COMMAND_S} s\n{out.decode()}\n{err.decode()}"
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{out.decode()}\n{err.decode()}"
        return json.loads(out) if out else None


def home_with_token(folder: Path, token: str) -> None:
    """As the launcher of an embedded cluster leaves it."""
    path = folder / "clusters" / "test" / "token"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{token}\n")
    path.chmod(0o600)


def digests(run: Facts) -> dict[int, str]:
    """Step -> digest of the whole state, as the ranks agreed on it every few steps."""
    return {r.event.step: r.event.digest for r in run.records if isinstance(r.event, DigestReported)}


@pytest.mark.timeout(900)
async def test_a_job_is_saved_scaled_moved_and_exported_while_it_trains(tmp_path: Path, calm: Calm) -> None:
    home, checkpoints = tmp_path / "home", tmp_path / "checkpoints"
    job = tiny_job("told", zero=1, nodes=3, spares=1, steps=STEPS, pace_ms=PACE_MS, checkpoint=checkpoints, checkpoint_every=0)
    shell = Shell(home)
    async with System(home) as system:
        home_with_token(home, "t" * 43)
        await system.submit(job)
        await system.until(job, at_step(2))

        saved = await shell.run("checkpoint", "now", job.name, "--wait")
        at = int(saved["uri"].rsplit("-", 1)[-1])
        assert saved["uri"] == f"{checkpoints}/step-{at:08d}"
        assert at >= 3

        refused = await shell.run("scale", job.name, "--nodes", "99", code=2)
        assert refused is None

        replaced = await shell.run("replace", job.name, "--rank", "1", "--wait")
        assert "has no rank any more" in replaced["done"]
        await system.until(job, starts(2))

        scaled = await shell.run("scale", job.name, "--nodes", "2", "--wait")
        assert scaled["done"].startswith("job told trains on 2 nodes: data 2, ZeRO-1")
        status = await shell.run("status", job.name)
        assert (status["plan"]["ranks"], status["shrunk"]) == (2, False)

        node = next(w["node_id"] for w in status["workers"] if w["rank"] == 0)
        drained = await shell.run("drain", job.name, node, "--why", "maintenance", "--wait")
        assert drained["done"] == f"node {node} holds no state any more"

        again = await shell.run("checkpoint", "now", job.name, "--wait")
        last = int(again["uri"].rsplit("-", 1)[-1])
        found = await shell.run("checkpoint", "list", job.name)
        assert [(c["step"], c["complete"], c["ranks"]) for c in found] == [(last, True, 2), (at, True, 3)]
        verdicts = await shell.run("checkpoint", "verify", job.name, "--all")
        assert [(v["info"]["step"], v["trouble"], v["digest"] == v["info"]["digest"]) for v in verdicts] == [
            (last, "", True),
            (at, "", True),
        ]
        model = tmp_path / "model.safetensors"
        made = await shell.run("checkpoint", "export", job.name, "-o", str(model))
        assert (made["step"], made["digest"], made["path"]) == (last, found[0]["digest"], str(model))

        await system.supervisor.service.cancel(job.name, who="test")
        run = await system.finish(job)
        assert run.state is not None
        assert run.state.steps_lost == run.steps_lost == 0
        assert run.state.budget == job.resilience.failure_budget
        undisturbed = await calm(steps=STEPS, until=len(run.losses))
        assert len(run.losses) >= last > at
        assert run.losses == {s: undisturbed.losses[s] for s in run.losses}
        told, expected = digests(run), digests(undisturbed)
        common = told.keys() & expected.keys()  # a checkpoint comes with a digest of its own
        assert len(common) >= last // 5
        assert {s: told[s] for s in common} == {s: expected[s] for s in common}
        assert (told[at], told[last]) == (found[1]["digest"], found[0]["digest"])

    built = build_seeded(load_task(job.task), seed=5)
    missing, unexpected = load_model(built, model)
    assert not missing
    assert not unexpected

    damaged = next((checkpoints / f"step-{last:08d}").glob("*.distcp"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (verdict,) = await shell.run("checkpoint", "verify", "--uri", str(checkpoints), code=3)
    assert [d["name"] for d in verdict["damaged"]] == [damaged.name]
    export = ["checkpoint", "export", "--uri", str(checkpoints), "-o", str(model), "--dtype", "bf16", "--json"]
    exported = CliRunner().invoke(app, export)  # in this process, which has imported torch already
    assert exported.exit_code == 0, exported.output
    made = json.loads(exported.stdout)
    assert (made["step"], made["dtype"]) == (at, "bf16"), "the newest one that is complete"
