"""The command line against a real API server, and a job whose status a test writes by hand, as operator and agent would.

No operator runs here: what the command line shows and waits for is in the objects alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from typer.testing import CliRunner, Result

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.access import Options, connect
from orchestrator.adapters.kube.api import Object
from orchestrator.adapters.kube.events import event
from orchestrator.adapters.kube.resources import EVENTS, TRAINING_JOBS
from orchestrator.apps.cli.main import app
from tests.kube.agents import CRD, LIMIT_S, until

BARE = """\
name: {name}
task: gpt
train:
  steps: 40
cluster: {{nodes: 2, spares: 1}}
kubernetes:
  image: registry.example/train@sha256:{digest}
"""
DIGEST = "ab" * 32


class Cluster(Protocol):
    """What is needed of a control plane or a site."""

    kubeconfig: Path

    def kubectl(self, *argv: str, input: str | None = None, check: bool = True) -> str:
        """What kubectl prints."""
        ...

    def stop_api(self) -> None:
        """The API server is gone at once."""
        ...

    def start_api(self) -> None:
        """It is back."""
        ...


class Place:
    """One namespace of a cluster, ready for jobs."""

    def __init__(self, plane: Cluster, namespace: str, *, folder: Path) -> None:
        self.plane = plane
        self.namespace = namespace
        self.folder = folder
        self.api = connect(Options(kubeconfig=str(plane.kubeconfig)), timeout_s=LIMIT_S).api

    def accounts(self) -> None:
        """What manifests/namespace makes."""
        for account in (names.AGENT, names.WORKER_ACCOUNT):
            self.plane.kubectl("-n", self.namespace, "create", "serviceaccount", account)

    def kubeconfig_of(self, account: str, written: Callable[[str], str]) -> Path:
        """A kubeconfig that speaks as a service account; `written` makes its text of a token."""
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        raw = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        token = self.plane.kubectl("create", "--raw", raw, "-f", "-", input=json.dumps(asked))
        path = self.folder / f"{account}.kubeconfig"
        path.write_text(written(json.loads(token)["status"]["token"]))
        return path

    def file(self, name: str, *, text: str = BARE) -> Path:
        """A job file."""
        path = self.folder / f"{name}.yaml"
        path.write_text(text.format(name=name, digest=DIGEST))
        return path

    def cli(self, *arguments: str | Path, namespace: str = "", kubeconfig: Path | None = None) -> Result:
        """Run a command in this process."""
        typed = self._typed(arguments, namespace=namespace)
        return CliRunner().invoke(app, typed, env=self._env(kubeconfig))

    def started(self, *arguments: str | Path) -> Started:
        """Start a command as a process of its own."""
        return Started(self._typed(arguments, namespace=""), self._env(None))

    def launched(self, name: str) -> Object:
        """A job that was just launched."""
        self.launch(self.file(name))
        return self.job(name)

    def launch(self, path: Path) -> None:
        """Launch the job of a file."""
        done = self.cli("launch", path)
        assert done.exit_code == 0, done.output

    def job(self, name: str) -> Object:
        """The object."""
        found = self.api.get(TRAINING_JOBS, name, namespace=self.namespace)
        assert found is not None, f"there is no job {name}"
        return found

    def agent_says(self, name: str, **status: Any) -> None:
        """Write fields of the status as the agent does."""
        self._say(name, names.AGENT, status)

    def operator_says(self, name: str, **status: Any) -> None:
        """Write fields of the status as the operator does, about the present generation."""
        self._say(name, names.OPERATOR, {"observedGeneration": self.job(name)["metadata"]["generation"], **status})

    def decided(self, name: str, seq: int, *, reason: str, message: str, at: datetime, warning: bool = False) -> None:
        """Make the Event of a decision, as the agent does."""
        about = self.job(name)
        made = event(about, reason=reason, message=message, warning=warning, component=names.AGENT, now=at)
        made["metadata"]["name"] = f"{name}.{about['metadata']['uid'][:8]}.{seq:06d}"
        assert self.api.create(EVENTS, made)

    def operator_tells(self, name: str, *, reason: str, message: str, at: datetime) -> None:
        """Make an Event as the operator does."""
        made = event(self.job(name), reason=reason, message=message, warning=False, component=names.OPERATOR, now=at)
        assert self.api.create(EVENTS, made)

    def _say(self, name: str, manager: str, status: Mapping[str, Any]) -> None:
        body = {"metadata": {"name": name, "namespace": self.namespace}, "status": dict(status)}
        self.api.apply(TRAINING_JOBS, body, manager=manager, subresource="status")

    def _typed(self, arguments: Sequence[str | Path], *, namespace: str) -> list[str]:
        verb, *rest = (str(a) for a in arguments)
        return [verb, *rest, "--on", "kubernetes", "-n", namespace or self.namespace]

    def _env(self, kubeconfig: Path | None) -> dict[str, str]:
        return {
            "KUBECONFIG": str(kubeconfig or self.plane.kubeconfig),
            "ORCHESTRATOR_HOME": str(self.folder / "home"),
            "COLUMNS": "200",
            "PYTHONUNBUFFERED": "1",
        }


class Started:
    """A command that runs. Use as a context: it is gone afterwards."""

    def __init__(self, typed: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.apps.cli.main", *typed],
            env={**{k: v for k, v in os.environ.items() if not k.startswith("KUBE")}, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._out: list[str] = []
        self._talk: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self._process.stdout, self._out), (self._process.stderr, self._talk))
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(LIMIT_S)
        for reader in self._readers:
            reader.join(LIMIT_S)

    @property
    def out(self) -> str:
        """stdout so far."""
        return "".join(self._out)

    @property
    def talk(self) -> str:
        """stderr so far."""
        return "".join(self._talk)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def until(self, words: str) -> None:
        """Wait for words on stdout or stderr; AssertionError with all of both when they do not come."""
        until(lambda: self.out + self.talk, lambda seen: words in seen or not self.running, what=words)
        if words not in self.out + self.talk:
            self.end()
            assert words in self.out + self.talk, f"it ended without {words!r}: {self.out}{self.talk}"

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Wait for its end; the exit code."""
        code = self._process.wait(LIMIT_S)
        for reader in self._readers:
            reader.join(LIMIT_S)
        return code

    def _read(self, pipe: Any, lines: list[str]) -> None:
        with pipe:
            for line in iter(pipe.readline, ""):
                lines.append(line)


def at(second: int) -> datetime:
    """A moment, for Events."""
    return datetime(2026, 11, 29, 9, 0, second, tzinfo=UTC)


def condition(kind: str, *, true: bool, reason: str, message: str, generation: int) -> Object:
    """A condition as the agent writes it."""
    return {
        "type": kind,
        "status": "True" if true else "False",
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-11-29T09:00:00Z",
        "observedGeneration": generation,
    }


def installed(plane: Cluster) -> None:
    """The CRD as this program has it, and served."""
    plane.kubectl("apply", "-f", str(CRD))
    until(
        lambda: plane.kubectl("get", "trainingjobs", "-A", "-o", "name", check=False),
        lambda said: "error" not in said.lower(),
        what="the kind is served",
    )


def no_operator(plane: Cluster) -> None:
    """As where none has ever run: whichever test ran one is over."""
    plane.kubectl("-n", names.SYSTEM_NAMESPACE, "delete", "lease", names.OPERATOR, "--ignore-not-found")


@contextmanager
def lease_held(plane: Cluster) -> Iterator[None]:
    """A lease as an operator that works holds it."""
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": names.SYSTEM_NAMESPACE}}
    plane.kubectl("apply", "-f", "-", input=json.dumps(space))
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    spec = {"holderIdentity": "pod-1", "leaseDurationSeconds": 600, "renewTime": now}
    meta = {"name": names.OPERATOR, "namespace": names.SYSTEM_NAMESPACE}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
    plane.kubectl("apply", "-f", "-", input=json.dumps(lease))
    yield
    no_operator(plane)
