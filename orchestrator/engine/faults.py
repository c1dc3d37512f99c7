"""Faults that strike inside the training loop, addressed by (step, micro-batch) and never by a sleep.

They end or stop real processes the way the world does it: SIGKILL, SIGSTOP, a slow device, an exception in the user's
code. A fault whose step is 0 strikes at once, in the thread that brought it, because a training thread that is stuck
would never look.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

from orchestrator.core.supervisor.events import FAULT_KINDS, Fault


class InjectedError(RuntimeError):
    """Stands for an exception in the user's loss; handled exactly like one."""


class FaultBox:
    """Faults waiting for their step. `add` from any thread, `strike` from the training thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []
        self._slow_s = 0.0
        self._raise_now = False
        self._poison = False
        self._flip = False

    def add(self, fault: Fault) -> None:
        """Take a fault; one for step 0 strikes now.

        Raises ValueError for an unknown kind, RuntimeError when a node is to be killed and this process is no child of a raylet.
        """
        if fault.kind not in FAULT_KINDS:
            raise ValueError(f"unknown fault {fault.kind!r}; known: {', '.join(FAULT_KINDS)}")
        if fault.kind in ("kill-node", "kill-raylet"):
            _raylet()
        if fault.at_step == 0:
            self._carry_out(fault)
            return
        with self._lock:
            self._waiting.append(fault)

    def strike(self, *, step: int, micro_batch: int) -> None:
        """Before own micro-batch number `micro_batch` of `step` (or after the last one): carry out what is due.

        Raises InjectedError for the kind `raise`. A fault whose step has passed strikes at the next opportunity.
        """
        if self._waiting:
            now = (step, micro_batch)
            with self._lock:
                due = [f for f in self._waiting if (f.at_step, f.micro_batch) <= now]
                self._waiting = [f for f in self._waiting if f not in due]
            for fault in due:
                self._carry_out(fault)
        if self._raise_now:
            self._raise_now = False
            raise InjectedError(f"injected fault: raised in step {step} before own micro-batch {micro_batch}")

    def drag(self) -> None:
        """The delay that a `slow` fault adds to each micro-batch."""
        if self._slow_s > 0.0:
            time.sleep(self._slow_s)

    def poisoned(self, loss: float) -> float:
        """The loss of a micro-batch, or not a number where a `nan` fault struck."""
        poison, self._poison = self._poison, False
        return math.nan if poison else loss

    def flips(self) -> bool:
        """Whether a bit of this rank's params is to flip now (`flip`: silent corruption); once per fault."""
        flip, self._flip = self._flip, False
        return flip

    def _carry_out(self, fault: Fault) -> None:
        if fault.kind == "slow":
            self._slow_s = fault.amount_ms / 1000.0
        elif fault.kind == "raise":
            self._raise_now = True
        elif fault.kind == "nan":
            self._poison = True
        elif fault.kind == "flip":
            self._flip = True
        elif fault.kind == "hang":
            _stop_self(fault.amount_ms)
        elif fault.kind == "kill-worker":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            _kill_raylet(whole_node=fault.kind == "kill-node")


def _stop_self(amount_ms: int) -> None:
    """SIGSTOP this process; a helper process continues it after `amount_ms` (0: nobody does)."""
    if amount_ms > 0:
        code = "import os,signal,sys,time; time.sleep(float(sys.argv[2])); os.kill(int(sys.argv[1]), signal.SIGCONT)"
        subprocess.Popen(
            [sys.executable, "-S", "-c", code, str(os.getpid()), str(amount_ms / 1000.0)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    os.kill(os.getpid(), signal.SIGSTOP)


def _raylet() -> psutil.Process:
    parent = psutil.Process().parent()
    if parent is None or "raylet" not in parent.name():
        raise RuntimeError(f"the parent of this worker is {parent.name() if parent else 'gone'}, not a raylet: no node to kill")
    return parent


def _kill_raylet(*, whole_node: bool) -> None:
    """SIGKILL the parent raylet, for a whole node with all that it started, this process last."""
    raylet = _raylet()
    others = [p for p in raylet.children(recursive=True) if p.pid != os.getpid()] if whole_node else []
    for process in (raylet, *others):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if whole_node:
        os.kill(os.getpid(), signal.SIGKILL)
