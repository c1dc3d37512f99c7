"""What a process inside one of a job's pods knows from its environment, and the one child that it looks after: `ray start`.

The operator sets the environment; whatever is missing is said with its name. Secrets are mounted as files whose mode and owner
Kubernetes decides, while our readers demand private files, so they are copied once into the pod's own scratch folder. As the
first process of a container we also reap what others leave behind.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from orchestrator.adapters.files.home import write_atomically
from orchestrator.adapters.kube import names
from orchestrator.adapters.ray.connection import authentication
from orchestrator.adapters.ray.settings import CLUSTER_SETTINGS, OBJECT_STORE_BYTES, THREAD_SETTINGS
from orchestrator.core.job import DeviceKind

# Where things lie, for whoever runs these programs outside of a pod; in pods the defaults hold.
ENV_HOME_DIR: Final = "ORCHESTRATOR_HOME_DIR"
ENV_TOKEN_DIR: Final = "ORCHESTRATOR_TOKEN_DIR"
ENV_SCRATCH_DIR: Final = "ORCHESTRATOR_SCRATCH_DIR"
ENV_HEAD: Final = "ORCHESTRATOR_HEAD"  # host of the head's Service, where names of Services do not resolve

SCRATCH_PATH: Final = "/tmp"
CLUSTER: Final = "kubernetes"  # the name of the job's Ray cluster in the head's home
STOP_LIMIT_S: Final = 15.0  # from SIGTERM to SIGKILL of what we started
EXIT_BUG: Final = 1  # exit codes of the programs in pods: a traceback stands above,
EXIT_SETUP: Final = 2  # the pod is not set up as it must be,
EXIT_NO_HEAD: Final = 3  # no head came,
EXIT_RAY: Final = 4  # Ray ended though nobody asked for it,
EXIT_STOPPED: Final = 128 + signal.SIGTERM  # it was told to stop. No 0: Kueue never replaces a pod that has succeeded
LEAVE_MARGIN_S: Final = 5.0  # of the grace period, from the end of handing over to the end of the pod
_POLL_S: Final = 0.1

# A raylet whose GCS is away ends itself after a minute by default, and its workers with it. Here the head's pod may have to be
# scheduled anew and pull its image first; whether the job should go on without it is the supervisor's to decide, not Ray's.
POD_SETTINGS: Final[dict[str, str]] = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}

log = logging.getLogger(__name__)


class PodError(RuntimeError):
    """The pod is not set up as it must be, or what it needs does not come; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Pod:
    """This pod."""

    job: str
    namespace: str
    name: str
    address: str
    slots: int
    device: DeviceKind
    grace_s: float
    home: Path
    tokens: Path
    scratch: Path
    head: str  # host of the head's Service
    machine: str  # the Node that the pod runs on; "" when nobody says

    @staticmethod
    def of(environment: Mapping[str, str]) -> Pod:
        """Read it. Raises PodError that names every variable that is missing or wrong."""
        required = (names.ENV_JOB, names.ENV_NAMESPACE, names.ENV_POD, names.ENV_POD_IP)
        troubles = [f"{name} is not set" for name in required if not environment.get(name)]
        job = environment.get(names.ENV_JOB, "")
        slots, grace = environment.get(names.ENV_SLOTS, "1"), environment.get(names.ENV_GRACE_S, "30")
        device = environment.get(names.ENV_DEVICE, DeviceKind.CPU.value)
        if not slots.isdigit() or not int(slots):
            troubles.append(f"{names.ENV_SLOTS} is {slots!r}, no number of slots")
        if not grace.isdigit():
            troubles.append(f"{names.ENV_GRACE_S} is {grace!r}, no number of seconds")
        if device not in [d.value for d in DeviceKind]:
            troubles.append(f"{names.ENV_DEVICE} is {device!r}, not one of {', '.join(DeviceKind)}")
        if troubles:
            raise PodError(f"this is no pod of a TrainingJob: {'; '.join(troubles)} (the operator sets them)")
        return Pod(
            job=job,
            namespace=environment[names.ENV_NAMESPACE],
            name=environment[names.ENV_POD],
            address=environment[names.ENV_POD_IP],
            slots=int(slots),
            device=DeviceKind(device),
            grace_s=float(grace),
            home=Path(environment.get(ENV_HOME_DIR, names.HOME_PATH)),
            tokens=Path(environment.get(ENV_TOKEN_DIR, names.TOKEN_PATH)),
            scratch=Path(environment.get(ENV_SCRATCH_DIR, SCRATCH_PATH)),
            head=environment.get(ENV_HEAD) or _service_host(environment, names.head_service(job)),
            machine=environment.get(names.ENV_NODE, ""),
        )

    @property
    def gcs_address(self) -> str:
        """host:port of Ray's GCS, by the head's Service: it outlives the head's pod."""
        return f"{self.head}:{names.GCS_PORT}"

    @property
    def leaving_file(self) -> Path:
        """There once the preStop hook has begun to hand over what is here."""
        return self.scratch / "leaving"

    @property
    def control_address(self) -> str:
        """host:port of the supervisor's control API, by the head's Service."""
        return f"{self.head}:{names.CONTROL_PORT}"

    def token(self, key: str) -> str:
        """A token of the job's Secret. Raises PodError."""
        try:
            found = (self.tokens / key).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise PodError(f"the job's Secret has to be mounted at {self.tokens}: {error}") from error
        if not found:
            raise PodError(f"{self.tokens / key} is empty: the Secret {names.token_secret(self.job)} lacks a value for {key}")
        return found

    def ray_token_file(self) -> Path:
        """Ray's token, in a private file of ours. Raises PodError."""
        path = self.scratch / "ray-token"
        write_atomically(path, self.token(names.RAY_TOKEN), mode=0o600)
        return path

    def ray_environment(self, extra: Mapping[str, str] = {}) -> dict[str, str]:
        """For `ray start` and all that comes of it."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        ours = {**CLUSTER_SETTINGS, **POD_SETTINGS, **THREAD_SETTINGS, **authentication(self.ray_token_file()), **extra}
        return {**inherited, **ours, "PYTHONUNBUFFERED": "1"}

    def ray_command(self, *role: str) -> list[str]:
        """`ray start`, in the foreground, for this pod."""
        lean = ["--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}", "--block"]
        where = [f"--node-ip-address={self.address}", f"--temp-dir={self.scratch / 'ray'}"]
        return [str(Path(sys.executable).with_name("ray")), "start", *role, *where, *lean]


class Child:
    """The child, and whether we were told to stop it, once or again. Made on the main thread, once."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.stopping = False
        self.hurried = False
        self.code: int | None = None
        self._listen()
        self._process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True, cwd="/"
        )

    def _listen(self) -> None:
        """Take the signals; again and again, since Ray's library takes them for itself when it joins a cluster."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.hurried = self.stopping
        self.stopping = True  # and no word: a signal may come in the middle of one, and streams are not entered twice

    def lives(self) -> bool:
        """Whether it runs; reaps whatever else has ended below us."""
        while self.code is None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.code = 1  # somebody else took its exit status
                break
            if not pid:
                break
            if pid == self._process.pid:
                self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
        return self.code is None

    def until(self, done: Callable[[], bool], *, limit_s: float, what: str) -> bool:
        """Wait for something while it lives and we may go on; False when either ended. Raises PodError after the limit."""
        due_s = time.monotonic() + limit_s
        while self.lives() and not self.stopping:
            if done():
                return True
            if time.monotonic() > due_s:
                raise PodError(f"{what} did not come up within {limit_s:.0f} s")
            self._listen()
            time.sleep(_POLL_S)
        return False

    def tend(self) -> None:
        """Until it ends, or we are told to stop."""
        while self.lives() and not self.stopping:
            self._listen()
            time.sleep(_POLL_S)

    def end(self) -> None:
        """SIGTERM, and after a while SIGKILL, to all of its session; idempotent."""
        due_s = time.monotonic() + STOP_LIMIT_S
        if self.lives():
            log.info("told to stop: ending Ray" if self.stopping else "ending Ray")
            self._process.terminate()
        while self.lives() and time.monotonic() < due_s:
            time.sleep(_POLL_S)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        while self.lives():
            time.sleep(_POLL_S)


def _service_host(environment: Mapping[str, str], service: str) -> str:
    """The name of a Service; its address where the kubelet told it, so that a broken DNS stops nobody."""
    return environment.get(f"{service.upper().replace('-', '_')}_SERVICE_HOST") or service


def talk() -> None:
    """Log to the container's output."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s", force=True)
