"""One container of a pod over its lives: started, probed, restarted with back-off, and ended as its pod's grace period says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.kube import container, logs, probes
from tests.kube.api import Object, now

BACKOFF_S: Final = (0.0, 1.0, 2.0, 4.0, 8.0)  # before each restart, the last one for all further; a real kubelet's go up to 300
LAST_CHANCE_S: Final = 2.0  # after SIGTERM, when the preStop hook has used up the grace period
COLLAPSE_S: Final = 20.0  # within which a killed container must be gone


@dataclass(frozen=True, slots=True)
class Order:
    """All that is needed to start it."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    uid: int
    gid: int
    groups: Sequence[int]
    mounts: Sequence[tuple[str, str, bool]]
    sandbox: int
    read_only_root: bool
    no_new_privileges: bool
    drop_all: bool


@dataclass(slots=True)
class _Life:
    process: subprocess.Popen[bytes]
    pid: int  # of its process 1, in the node's numbering
    keeper: threading.Thread  # of its words
    started: str = field(default_factory=now)
    began_s: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)


class Container:
    """`prepare` gives what it takes to start it and may raise NotYet's reason; `changed` is called when its status is another."""

    def __init__(
        self, spec: Object, *, folder: Path, restart: str, grace_s: float, restarts: int = 0, changed: Callable[[], None]
    ) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.restarts = restarts
        self.state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self.last: Object = {}
        self.ready = False
        self.started = False
        self._folder = folder
        self.address = ""  # of its pod, once that has one
        self._policy = restart
        self._grace_s = grace_s
        self._changed = changed
        self._stop = threading.Event()
        self._life: _Life | None = None
        self._order: Order | None = None
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        """It ended and will not be started again."""
        return "terminated" in self.state

    @property
    def busy(self) -> bool:
        """It has a process."""
        return self._life is not None and not self._life.over.is_set()

    @property
    def exit_code(self) -> int:
        """Of its last life."""
        code: int = self.state["terminated"]["exitCode"]
        return code

    def wait(self, reason: str, message: str) -> None:
        """Say why it does not start yet."""
        state = {"waiting": {"reason": reason, "message": message[:1000]}}
        if state != self.state:
            self.state = state
            self._changed()

    def lost(self, reason: str) -> None:
        """It ended while nobody could see it."""
        self._ended(137, now(), reason)

    def run(self, order: Order) -> None:
        """Its lives, one after the other, until it is over. In a thread of its own."""
        self._order = order
        while True:
            with self._lock:
                if self._stop.is_set():
                    if not self.over:
                        self._ended(137, now(), "ContainerStatusUnknown")
                    return
                life = self._life = self._start(order)
            self.state, self.started = {"running": {"startedAt": life.started}}, "startupProbe" not in self.spec
            self.ready = self.started and "readinessProbe" not in self.spec
            self._changed()
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                if kind in self.spec:
                    threading.Thread(target=self._probe, args=(kind, life, order), daemon=True).start()
            code = life.process.wait()
            life.keeper.join()
            life.over.set()
            self._ended(code, life.started, "Completed" if code == 0 else "Error")
            if self._stop.is_set() or self._policy == "Never" or (self._policy == "OnFailure" and code == 0):
                self._changed()
                return
            self._back_off(life)

    def _ended(self, code: int, started: str, reason: str) -> None:
        self.ready = self.started = False
        self.state = {"terminated": {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()}}

    def _back_off(self, life: _Life) -> None:
        wait_s = BACKOFF_S[min(self.restarts, len(BACKOFF_S) - 1)]
        over = self.state
        if wait_s:
            self.last = over
            self.wait("CrashLoopBackOff", f"back-off {wait_s:g}s restarting failed container={self.name}")
            if self._stop.wait(wait_s):
                self.state = over
                return
        self.last = over
        self.restarts += 1

    def _start(self, order: Order) -> _Life:
        sent = {
            "argv": list(order.argv),
            "env": dict(order.env),
            "cwd": order.cwd,
            "uid": order.uid,
            "gid": order.gid,
            "groups": list(order.groups),
            "mounts": [{"source": s, "target": t, "readOnly": ro} for s, t, ro in sorted(order.mounts, key=lambda m: m[1])],
            "sandbox": order.sandbox,
            "root": str(self._folder / f"root-{self.name}"),
            "readOnlyRoot": order.read_only_root,
            "noNewPrivileges": order.no_new_privileges,
            "dropAll": order.drop_all,
        }
        told, tells = os.pipe()
        sent["answer"] = tells
        try:
            process = subprocess.Popen(
                [sys.executable, "-S", "-I", container.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[tells],
            )
        finally:
            os.close(tells)
        with os.fdopen(told) as answer:
            assert process.stdin is not None
            assert process.stdout is not None
            file = self.log(self.restarts)
            file.touch()
            keeper = threading.Thread(target=logs.keep, args=(process.stdout, file), daemon=True)
            keeper.start()
            with process.stdin as stdin:
                stdin.write(json.dumps(sent).encode())
            pid = answer.readline()
        return _Life(process, int(pid or 0), keeper)

    def log(self, life: int) -> Path:
        """What its nth life has said; the first is 0."""
        return self._folder / f"{self.name}.{life}.log"

    # ---- probes

    def _probe(self, kind: str, life: _Life, order: Order) -> None:
        probe: Object = {**probes.DEFAULTS, **self.spec[kind]}
        good = bad = 0
        if life.over.wait(probe["initialDelaySeconds"]):
            return
        while not life.over.is_set() and not self._stop.is_set():
            if kind == "startupProbe" or self.started:
                wrong = probes.check(
                    probe, life.pid, spec=self.spec, address=self.address, env=order.env, uid=order.uid, gid=order.gid
                )
                good, bad = (0, bad + 1) if wrong else (good + 1, 0)
                if life.over.is_set():
                    return
                if kind == "startupProbe" and good:
                    self.started, self.ready = True, "readinessProbe" not in self.spec
                    self._changed()
                    return
                if kind == "readinessProbe":
                    self._set_ready((self.ready and bad < probe["failureThreshold"]) or good >= probe["successThreshold"])
                elif bad >= probe["failureThreshold"]:
                    self._kill_one(life)
                    return
            life.over.wait(min(probe["periodSeconds"], 1) if not self.started else probe["periodSeconds"])

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._changed()

    def _kill_one(self, life: _Life) -> None:
        """End this life only; the policy says whether there is another."""
        self._signal(life, signal.SIGTERM)
        if not life.over.wait(self._grace_s):
            self._signal(life, signal.SIGKILL)

    # ---- the end

    def end(self, deadline: Callable[[], float], *, hook: bool) -> None:
        """preStop, SIGTERM, SIGKILL, by a deadline on the monotonic clock, which may come nearer. Returns when it is gone."""
        with self._lock:
            self._stop.set()
            life = self._life
        if life is None or life.over.is_set():
            return
        pre_stop = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and pre_stop and self._order is not None:
            self._pre_stop(pre_stop, life, self._order, deadline)
        self._signal(life, signal.SIGTERM)
        last_s = time.monotonic() + LAST_CHANCE_S
        while not life.over.wait(0.1):
            if time.monotonic() > max(deadline(), last_s):
                self._signal(life, signal.SIGKILL)
                life.over.wait(COLLAPSE_S)
                return

    def _pre_stop(self, hook: Object, life: _Life, order: Order, deadline: Callable[[], float]) -> None:
        done = threading.Event()

        def work() -> None:
            limit_s = max(0.0, deadline() - time.monotonic())
            if "exec" in hook:
                argv = hook["exec"]["command"]
                wrong = probes.command(life.pid, argv, env=order.env, uid=order.uid, gid=order.gid, limit_s=limit_s)
            else:
                probe = {**hook, "timeoutSeconds": limit_s}
                wrong = probes.check(
                    probe, life.pid, spec=self.spec, address=self.address, env=order.env, uid=order.uid, gid=order.gid
                )
            if wrong:
                print(f"preStop of {self.name}: {wrong}", flush=True)
            done.set()

        threading.Thread(target=work, daemon=True).start()
        while not done.wait(0.1) and not life.over.is_set() and time.monotonic() < deadline():
            continue

    def _signal(self, life: _Life, number: int) -> None:
        if not life.over.is_set() and life.pid:
            try:
                os.kill(life.pid, number)
            except ProcessLookupError:
                return

    def status(self) -> Object:
        """As the pod's status shows it."""
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "lab",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }
