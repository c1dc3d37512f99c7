"""Only the newest epoch may commit checkpoints: a rank 0 that was cut off must not, when its link comes back.

Rank 0 of an epoch writes its number into a small file beside the checkpoints before its first one, and looks at it again just
before each commit. An epoch that finds another mark than its own then, or that of a newer one at its first checkpoint, is over.
Epochs of another run of the job count from 1 again: a mark that was there when this worker started is none of a newer epoch. On a
file system that renames, the newer epoch also sweeps
away what older ones have under way, so that between the look and the rename nothing can be lost but that one checkpoint.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from dataclasses import dataclass
from urllib.parse import quote

from orchestrator.engine.checkpoint_files import BadCheckpoint, Place

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Mark:
    epoch: int
    token: str


class Fence:
    """One per worker; looks at the place once, in the background, when it is made. `claim` and `check` from one thread."""

    def __init__(self, uri: str, job: str) -> None:
        self._uri = uri
        self._name = mark_name(job)
        self._mine: _Mark | None = None
        self._seen: _Mark | None = None  # when this worker started
        self._look = threading.Thread(target=self._look_once, name="checkpoint-fence", daemon=True)
        self._look.start()

    def _look_once(self) -> None:
        try:
            self._seen = self._read(Place(self._uri))
        except Exception as error:  # whatever a file system raises; the first checkpoint reports it
            log.debug("%s cannot be looked at: %s", self._uri, error)

    def claim(self, root: Place, epoch: int) -> None:
        """This epoch writes checkpoints from now on; once. Raises BadCheckpoint when another one has begun to since, OSError."""
        if self._mine is not None and self._mine.epoch == epoch:
            self.check(root)
            return
        self._look.join()
        found = self._read(root)
        if found is not None and found.epoch > epoch and found != self._seen:
            raise BadCheckpoint(
                f"epoch {found.epoch} writes checkpoints in {root.uri}: epoch {epoch} is over "
                f"(if it belongs to another run that has ended, remove {self._name})"
            )
        mark = _Mark(epoch, secrets.token_hex(8))
        root.make()
        root.write_text(self._name, json.dumps({"epoch": mark.epoch, "token": mark.token}))
        self._mine = mark

    def check(self, root: Place) -> None:
        """Nobody has claimed the place since. Raises BadCheckpoint, OSError."""
        found = self._read(root)
        if found != self._mine:
            newer = f"epoch {found.epoch} has begun to write checkpoints" if found is not None else "the mark was removed"
            raise BadCheckpoint(f"{newer} in {root.uri}: not committed")

    def _read(self, root: Place) -> _Mark | None:
        if not root.exists(self._name):
            return None
        try:
            data = json.loads(root.read_text(self._name))
            return _Mark(int(data["epoch"]), str(data["token"]))
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s/%s cannot be read and is written anew: %r", root.uri, self._name, error)
            return None


def mark_name(job: str) -> str:
    """Name of the file that says who writes."""
    return f".epoch-{quote(job, safe='')}.json"
