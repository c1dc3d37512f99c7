"""How each measured system is started and what restarts its dead workers, stdlib only.

torchrun's own agent restarts; torchft expects a scheduler outside to bring a dead group back, and `tick` plays it.
Every time-out that was tuned in a peer's favour stands here, next to the reason.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.baselines import proc
from bench.baselines.dims import Dims

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_EVERY_STEPS = 10
RESTARTS_MAX = 100

HEARTBEAT_TIMEOUT_MS = 1_000  # torchft ships 5,000
JOIN_TIMEOUT_MS = 1_000  # torchft ships 60,000; no longer than the heartbeat's, or it would be the longer wait
QUORUM_TICK_MS = 20  # torchft ships 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where one run lives: its scratch folder, its interpreter, and the token that marks its processes."""

    folder: Path
    python: Path
    token: str
    ranks: int
    dims: Dims

    @property
    def steps_file(self) -> Path:
        return self.folder / "steps.jsonl"

    @property
    def output_file(self) -> Path:
        return self.folder / "output.log"

    def environment(self) -> dict[str, str]:
        """The caller's environment with one thread, loopback only, and the marks of this run."""
        inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return inherited | {
            proc.TOKEN_VARIABLE: self.token,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else torchrun's restarts hang or die in about 4 of 9 tries
        }

    def spawn(self, argv: list[str]) -> subprocess.Popen[bytes]:
        return proc.start(argv, env=self.environment(), cwd=ROOT, log=self.output_file)


class System(Protocol):
    """A training job that can lose a worker."""

    @property
    def workers(self) -> int:
        """Workers at full strength, spares included."""

    def start(self) -> None: ...

    def tick(self) -> None:
        """Called every few milliseconds: restarts what an outside scheduler would restart."""

    def ended(self) -> str | None:
        """Why the whole job is over, or None while it lives."""


class Torchrun:
    """One elastic agent with a worker per rank; after a death it stops and starts all of them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._agent: subprocess.Popen[bytes] | None = None

    @property
    def workers(self) -> int:
        return self._site.ranks

    def start(self) -> None:
        site = self._site
        self._agent = site.spawn(
            [
                str(site.python),
                "-m",
                "torch.distributed.run",
                "--nnodes=1",
                f"--nproc-per-node={site.ranks}",
                f"--max-restarts={RESTARTS_MAX}",
                "--monitor-interval=0.1",
                "--rdzv-backend=c10d",
                f"--rdzv-endpoint=127.0.0.1:{proc.free_port()}",
                f"--rdzv-id={site.token}",
                "--local-addr=127.0.0.1",
                "-m",
                "bench.baselines.torchrun_train",
                f"--step-log={site.steps_file}",
                f"--checkpoint={site.folder / 'checkpoint.pt'}",
                f"--checkpoint-every={CHECKPOINT_EVERY_STEPS}",
                *site.dims.as_flags(),
            ]
        )

    def tick(self) -> None:
        pass  # the agent restarts by itself

    def ended(self) -> str | None:
        status = self._agent.poll() if self._agent else None
        return None if status is None else f"torchrun ended with status {status}"


class Torchft:
    """A lighthouse, N replica groups of one worker and one more as a spare; a dead one is started again at once."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lighthouse: subprocess.Popen[bytes] | None = None
        self._port = proc.free_port()
        self._replicas: list[subprocess.Popen[bytes]] = []
        self._restarts = 0

    @property
    def workers(self) -> int:
        return self._site.ranks + 1

    def start(self) -> None:
        site = self._site
        self._lighthouse = site.spawn(
            [
                str(site.python.parent / "torchft_lighthouse"),
                f"--bind=127.0.0.1:{self._port}",
                f"--min_replicas={site.ranks}",
                f"--join_timeout_ms={JOIN_TIMEOUT_MS}",
                f"--heartbeat_timeout_ms={HEARTBEAT_TIMEOUT_MS}",
                f"--quorum_tick_ms={QUORUM_TICK_MS}",
            ]
        )
        self._replicas = [self._spawn_replica(worker) for worker in range(self.workers)]

    def _spawn_replica(self, worker: int) -> subprocess.Popen[bytes]:
        site = self._site
        return site.spawn(
            [
                str(site.python),
                "-m",
                "bench.baselines.torchft_train",
                f"--step-log={site.steps_file}",
                f"--lighthouse=http://127.0.0.1:{self._port}",
                f"--worker={worker}",
                f"--ranks={site.ranks}",
                *site.dims.as_flags(),
            ]
        )

    def tick(self) -> None:
        for worker, replica in enumerate(self._replicas):
            if replica.poll() is not None and self._restarts < RESTARTS_MAX:
                self._restarts += 1
                self._replicas[worker] = self._spawn_replica(worker)

    def ended(self) -> str | None:
        if self._lighthouse is not None and self._lighthouse.poll() is not None:
            return f"the lighthouse ended with status {self._lighthouse.returncode}"
        if self._restarts >= RESTARTS_MAX:
            return f"replicas were restarted {RESTARTS_MAX} times"
        return None


SYSTEMS: dict[str, type[Torchrun] | type[Torchft]] = {"torchrun": Torchrun, "torchft": Torchft}


def prepare(name: str, *, timeout_s: int) -> tuple[Path, str] | str:
    """Makes the system's environment on demand: (its python, its versions), or the reason why there is none."""
    setup = ["bash", str(ROOT / "bench/baselines/setup.sh"), name]
    # timeout(1) ends pip too, which subprocess.run's own time-out would leave running.
    made = _run(["timeout", "-k", "5", str(timeout_s), *setup])
    if made.returncode == 124:
        return f"setup.sh {name} did not end within {timeout_s} s"
    if made.returncode != 0:
        return f"setup.sh {name} ended with status {made.returncode}: {made.stderr.strip()[-800:]}"
    python = Path(made.stdout.strip().splitlines()[-1])
    probe = "import torch; print('torch', torch.__version__, end='')"
    if name == "torchft":
        probe += "; import torchft, importlib.metadata as m; print(', torchft', m.version('torchft'))"
    tried = _run(["timeout", "-k", "5", "120", str(python), "-c", probe])
    if tried.returncode != 0:
        return f"{name} does not import (status {tried.returncode}): {tried.stderr.strip()[-800:]}"
    return python, tried.stdout.strip()


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
