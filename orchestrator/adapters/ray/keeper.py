"""What a node's first process turns into once the node is up: it reaps children, adopted ones too, until none is left.

It is run by path with `python -I -S`, so that it costs a few megabytes and no more, and it must therefore import only the
standard library. SIGINT and SIGHUP are ignored: the end of a terminal is not the end of a job.
"""

from __future__ import annotations

import os
import signal


def keep() -> None:
    """Reap until there is no child left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    keep()
