"""What a node's first process turns into once the node is up: it reaps children, adopted ones too, until none is left.

On the head it also brings back what the cluster cannot do without. A GCS that ends is started again on its port, with the store
it left; a head whose raylet ends is ended whole and started again around the same store. Both happen a bounded number of times
a minute, so that what cannot live is given up rather than restarted for ever.

It is run by path with `python -I -S`, so that it costs a few megabytes and no more, and it must therefore import only the
standard library. SIGINT and SIGHUP are ignored: the end of a terminal is not the end of a job.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence

RESTARTS_MAX = 5  # within the window
WINDOW_S = 60.0
_PAUSE_S = 0.05  # between rounds of killing, while the orphans of the killed are handed to us


class Head:
    """What the keeper of a head restarts: the GCS (`gcs_command`), and the whole head (`again` replaces this very process)."""

    def __init__(self, *, gcs_pid: int, gcs_command: Sequence[str], raylet_pid: int, again: Sequence[str]) -> None:
        self._gcs_pid = gcs_pid
        self._gcs_command = list(gcs_command)
        self._raylet_pid = raylet_pid
        self._again = list(again)
        self._restarts: list[float] = []

    def ended(self, pid: int) -> None:
        """A child has ended; does not return where the head is started again."""
        if pid == self._raylet_pid and self._may_restart("the head's raylet"):
            _end_children()
            os.execv(self._again[0], self._again)
        if pid == self._gcs_pid and self._may_restart("the GCS"):
            self._gcs_pid = os.posix_spawn(self._gcs_command[0], self._gcs_command, os.environ)

    def _may_restart(self, what: str) -> bool:
        now_s = time.monotonic()
        self._restarts = [t for t in self._restarts if now_s - t < WINDOW_S]
        allowed = len(self._restarts) < RESTARTS_MAX
        self._restarts.append(now_s)
        doing = "starting it again" if allowed else f"giving it up after {RESTARTS_MAX} restarts within {WINDOW_S:.0f} s"
        print(f"{what} has ended: {doing}", file=sys.stderr, flush=True)
        return allowed


def keep(head: Head | None) -> None:
    """Reap until there is no child left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while True:
        try:
            pid, _ = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if head is not None:
            head.ended(pid)


def _end_children() -> None:
    """SIGKILL every descendant and reap it: we adopt the orphans, so at last all are our own children."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            children = [int(p) for p in file.read().split()]
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    keep(Head(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else None)
