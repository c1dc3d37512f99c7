"""kubectl as a function, and waiting for what it shows."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

LIMIT_S: Final = 180.0
POLL_S: Final = 0.05


class KubectlError(RuntimeError):
    """kubectl refused; the text is what it said."""


def kubectl(
    *argv: str, kubeconfig: Path, cache: Path, input: str | None = None, check: bool = True, limit_s: float = LIMIT_S
) -> str:
    """What kubectl prints (stdout; with check=False also stderr). Raises KubectlError when it fails, if `check`."""
    done = subprocess.run(
        ["kubectl", f"--kubeconfig={kubeconfig}", f"--cache-dir={cache}", *argv],
        input=input if input is not None else "",
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    if check and done.returncode:
        raise KubectlError(f"kubectl {' '.join(argv)} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
    return done.stdout if check else done.stdout + done.stderr


def until(condition: Callable[[], object], what: str, *, limit_s: float = LIMIT_S, poll_s: float = POLL_S) -> None:
    """Wait for it. Raises TimeoutError that says what did not come."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(poll_s)
