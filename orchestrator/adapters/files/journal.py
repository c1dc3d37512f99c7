"""The journal of one job: an SQLite file in WAL mode that outlives the supervisor, Ray and the machine's good mood.

Every record is one transaction, in order, in the hands of the operating system when `append` returns (a `kill -9` of the
supervisor loses nothing), and with `durable` flushed to the disk together with all that came before it (a power cut loses
nothing either). A lock on a file beside it sees to it that one supervisor owns the journal; readers need no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.core.codec import from_json, to_json
from orchestrator.core.job import Job
from orchestrator.core.supervisor.state import State
from orchestrator.runtime.ports import Record

FORMAT = 3
BUSY_MS = 5_000  # a reader may hold the file for a moment
FILE_NAME = "journal.db"

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS snapshots (seq INTEGER PRIMARY KEY, state TEXT NOT NULL)",
)


class JournalOwned(BlockingIOError):
    """Another supervisor owns this journal; the message names its process."""


class JournalDamaged(OSError):
    """The file is no journal of this program, or of another version of it."""


class SqliteJournal:
    """runtime.ports.Journal in `folder`/journal.db. Raises JournalOwned, JournalDamaged or OSError at construction.

    With `read_only` it takes no lock, may be open beside the owner, and refuses to write; FileNotFoundError when there is none.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.path = folder / FILE_NAME
        self._lock = -1
        if read_only and not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, "no journal", str(self.path))
        if not read_only:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _own(folder / f"{FILE_NAME}.lock")
        try:
            self._db = _open(self.path, read_only=read_only)
        except BaseException:
            self._unlock()
            raise
        try:
            self._check_format()
            self._last = self._last_seq()
        except BaseException:
            self.close()
            raise

    def create(self, job: Job) -> None:
        """Start it; raises FileExistsError when this job already has one."""
        self._must_own()
        if self.exists:
            raise FileExistsError(errno.EEXIST, "this job already has a journal", str(self.path))
        with self._transaction(durable=True) as db:
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
            db.execute("INSERT INTO meta VALUES ('job', ?)", (_dump(job),))

    @property
    def exists(self) -> bool:
        """Whether a job was ever started here (a crash inside `create` leaves an empty file, which is as good as none)."""
        with _as_os_error(self.path):
            found = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone()
            return found is not None and self._meta("job") is not None

    def append(self, record: Record, *, durable: bool) -> None:
        """Write one record; with durable it is on the disk when this returns. Raises OSError when that is impossible."""
        self._must_own()
        if record.seq != self._last + 1:
            raise ValueError(f"record {record.seq} does not follow {self._last}")
        with self._transaction(durable=durable) as db:
            db.execute("INSERT INTO records VALUES (?, ?)", (record.seq, _dump(record)))
        self._last = record.seq

    def snapshot(self, seq: int, state: State) -> None:
        """Remember the state after record `seq`; the snapshots before it are forgotten. Raises OSError."""
        self._must_own()
        if seq > self._last:
            raise ValueError(f"no record {seq} to take a snapshot after, the last one is {self._last}")
        with self._transaction(durable=False) as db:
            db.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?)", (seq, _dump(state)))
            db.execute("DELETE FROM snapshots WHERE seq < ?", (seq,))

    def load(self) -> tuple[State | None, int, Sequence[Record]]:
        """Newest snapshot (None: only the job is known), its seq, and the records after it."""
        with _as_os_error(self.path):
            row = self._db.execute("SELECT seq, state FROM snapshots ORDER BY seq DESC LIMIT 1").fetchone()
        if row is None:
            return None, 0, self._read(after=0, limit=-1)
        state: State = from_json(State, json.loads(row[1]))
        return state, row[0], self._read(after=row[0], limit=-1)

    def job(self) -> Job:
        """The job that it belongs to; FileNotFoundError before `create`."""
        text = self._meta("job") if self.exists else None
        if text is None:
            raise FileNotFoundError(errno.ENOENT, "no job was started in this journal", str(self.path))
        job: Job = from_json(Job, json.loads(text))
        return job

    def records(self, *, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """At most `limit` records with seq > after, in order."""
        return self._read(after=after, limit=max(0, limit))

    def close(self) -> None:
        """Close the file and give the journal up; idempotent."""
        self._db.close()
        self._unlock()

    def _must_own(self) -> None:
        if self._lock < 0:
            raise OSError(errno.EROFS, "this journal was opened for reading, or was closed", str(self.path))

    def _read(self, *, after: int, limit: int) -> list[Record]:
        if not self.exists:  # a reader may come before the job is in it
            return []
        with _as_os_error(self.path):
            rows = self._db.execute("SELECT body FROM records WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)).fetchall()
        return [from_json(Record, json.loads(body)) for (body,) in rows]

    def _last_seq(self) -> int:
        if not self.exists:
            return 0
        with _as_os_error(self.path):
            last: int = self._db.execute("SELECT COALESCE(MAX(seq), 0) FROM records").fetchone()[0]
        return last

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _check_format(self) -> None:
        if self.exists and self._meta("format") != str(FORMAT):
            found = self._meta("format")
            raise JournalDamaged(errno.EINVAL, f"journal format {found}, this program reads {FORMAT}", str(self.path))

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        # FULL flushes the whole write-ahead log at commit, and with it the records before this one; NORMAL only writes it.
        with _as_os_error(self.path):
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _open(path: Path, *, read_only: bool) -> sqlite3.Connection:
    with _as_os_error(path):
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}",
            uri=True,
            isolation_level=None,  # transactions are begun and ended here, by name
            timeout=BUSY_MS / 1000,
            check_same_thread=False,  # an actor may build it in another thread than its loop's; calls never overlap
        )
        try:
            if not read_only:
                os.chmod(path, 0o600)
                mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                if mode != "wal":
                    raise OSError(errno.ENOTSUP, f"SQLite cannot keep a write-ahead log here (got {mode})", str(path))
        except BaseException:
            db.close()
            raise
        return db


def _own(lock_path: Path) -> int:
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise JournalOwned(errno.EWOULDBLOCK, f"another supervisor (pid {owner}) owns this journal", str(lock_path)) from None
    except OSError:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


@contextlib.contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        full = "full" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, f"journal: {error}", str(path)) from error
    except sqlite3.DatabaseError as error:
        raise JournalDamaged(errno.EIO, f"journal: {error}", str(path)) from error


def _dump(value: Any) -> str:
    return json.dumps(to_json(value), ensure_ascii=False, separators=(",", ":"))
