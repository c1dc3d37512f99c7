"""The SQLite journal: it survives a kill at any instant, has one owner, and says what is wrong."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.adapters.files.journal import JournalDamaged, JournalOwned, SqliteJournal
from orchestrator.core.supervisor.commands import KillWorker
from orchestrator.core.supervisor.events import WorkerGone
from orchestrator.core.supervisor.machine import initial
from orchestrator.runtime.ports import Record
from tests.unit.runtime.world import job

ROOT = Path(__file__).resolve().parents[4]
JOB = job()


def record(seq: int, *, size: int = 40) -> Record:
    """The record that the writer below writes as number `seq`."""
    gone = WorkerGone(seq, f"j/w{seq}", "x" * size)
    return Record(seq, seq * 10, 1.5 * seq, gone, (KillWorker(f"j/w{seq}", "why"),), f"reason {seq}", "running", 1, seq)


def create(folder: Path, *, records: int = 0) -> SqliteJournal:
    journal = SqliteJournal(folder)
    journal.create(JOB)
    journal.snapshot(0, initial(JOB, checkpoint=None, now_ms=1))
    for seq in range(1, records + 1):
        journal.append(record(seq), durable=False)
    return journal


WRITER = """
import os, sys
from pathlib import Path
from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.core.supervisor.machine import initial
from tests.unit.adapters.files.test_journal import JOB, record

journal = SqliteJournal(Path(sys.argv[1]))
os.write(1, b"open\\n")
if not journal.exists:
    journal.create(JOB)
    journal.snapshot(0, initial(JOB, checkpoint=None, now_ms=1))
seq = len(journal.records(limit=10**9))
while True:
    seq += 1
    journal.append(record(seq), durable=seq % 5 == 0)
    if seq % 50 == 0:
        journal.snapshot(seq, initial(JOB, checkpoint=None, now_ms=seq))
    os.write(1, b"%d\\n" % seq)
"""


def test_killed_at_any_instant_it_loads_and_holds_every_record_that_was_acknowledged(tmp_path: Path) -> None:
    dice = random.Random(7)
    known = 0
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"open\n"
            for _ in range(dice.randrange(120)):
                known = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            said = writer.stdout.read().split(b"\n")
        known = int(said[-2]) if len(said) > 1 else known
        journal = SqliteJournal(tmp_path)
        if not journal.exists:
            assert known == 0
            journal.close()
            continue
        held = journal.records(limit=1_000_000)
        assert len(held) >= known
        assert list(held) == [record(n) for n in range(1, len(held) + 1)]
        _, seq, rest = journal.load()
        assert [r.seq for r in rest] == list(range(seq + 1, len(held) + 1))
        known = len(held)
        journal.close()
    assert known > 0


def test_with_a_torn_log_file_it_holds_a_prefix(tmp_path: Path) -> None:
    """A machine that loses power leaves the write-ahead log cut at any byte."""
    journal = create(tmp_path / "whole", records=40)
    wal = (tmp_path / "whole/journal.db-wal").read_bytes()
    dice = random.Random(3)
    lengths = set()
    for n, cut in enumerate([0, len(wal), *(dice.randrange(len(wal)) for _ in range(40))]):
        folder = tmp_path / f"torn{n}"
        folder.mkdir()
        shutil.copy(tmp_path / "whole/journal.db", folder)
        (folder / "journal.db-wal").write_bytes(wal[:cut])
        torn = SqliteJournal(folder)
        if torn.exists:
            held = torn.records()
            assert list(held) == [record(k) for k in range(1, len(held) + 1)]
            lengths.add(len(held))
            torn.append(record(len(held) + 1), durable=True)
        torn.close()
    journal.close()
    assert len(lengths) > 10
    assert 40 in lengths


def test_a_second_owner_is_refused_by_name(tmp_path: Path) -> None:
    journal = create(tmp_path)
    with pytest.raises(JournalOwned, match=rf"another supervisor \(pid {os.getpid()}\) owns this journal"):
        SqliteJournal(tmp_path)
    journal.close()
    SqliteJournal(tmp_path).close()


def test_readers_look_beside_the_owner_and_cannot_write(tmp_path: Path) -> None:
    journal = create(tmp_path, records=3)
    reader = SqliteJournal(tmp_path, read_only=True)
    assert [r.seq for r in reader.records()] == [1, 2, 3]
    journal.append(record(4), durable=False)
    assert [r.seq for r in reader.records()] == [1, 2, 3, 4]
    with pytest.raises(OSError, match="opened for reading"):
        reader.append(record(5), durable=False)
    reader.close()
    journal.close()
    reader = SqliteJournal(tmp_path, read_only=True)
    assert reader.job() == JOB
    reader.close()


def test_a_reader_needs_a_journal(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SqliteJournal(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_inside_create_leaves_a_journal_that_can_be_created(tmp_path: Path) -> None:
    SqliteJournal(tmp_path).close()
    journal = SqliteJournal(tmp_path)
    assert not journal.exists
    with pytest.raises(FileNotFoundError, match="no job was started"):
        journal.job()
    journal.create(JOB)
    assert journal.job() == JOB
    journal.close()


def test_only_the_owner_of_the_files_can_read_them(tmp_path: Path) -> None:
    create(tmp_path, records=1).close()
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_record_out_of_order_is_our_bug(tmp_path: Path) -> None:
    journal = create(tmp_path, records=2)
    with pytest.raises(ValueError, match="record 4 does not follow 2"):
        journal.append(record(4), durable=True)
    with pytest.raises(ValueError, match="no record 3"):
        journal.snapshot(3, initial(JOB, checkpoint=None, now_ms=1))
    journal.close()


def test_durable_means_flushed_with_everything_before_it(tmp_path: Path) -> None:
    journal = create(tmp_path)
    asked: list[str] = []
    journal._db.set_trace_callback(asked.append)
    journal.append(record(1), durable=False)
    journal.append(record(2), durable=True)
    journal._db.set_trace_callback(None)
    assert [a for a in asked if "synchronous" in a] == ["PRAGMA synchronous=NORMAL", "PRAGMA synchronous=FULL"]
    journal.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from orchestrator.adapters.files.journal import SqliteJournal
from tests.unit.adapters.files.test_journal import create, record

journal = create(Path(sys.argv[1]), records=3)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
n = 3
try:
    while n < 1000:
        journal.append(record(n + 1, size=2_000), durable=n % 2 == 0)
        n += 1
except OSError as error:
    print("OSError", n, error, flush=True)
print([r.seq for r in journal.records(limit=10_000)] == list(range(1, n + 1)))
"""


def test_a_disk_without_room_is_an_oserror_and_what_was_written_stays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("OSError")
    assert second == "True"
    journal = SqliteJournal(tmp_path)
    held = len(journal.records(limit=10_000))
    assert held == int(first.split()[1])
    journal.append(record(held + 1), durable=True)  # there is room again
    journal.close()


def test_a_full_database_says_that_there_is_no_room(tmp_path: Path) -> None:
    journal = create(tmp_path, records=1)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages + 1}")
    with pytest.raises(OSError, match="full") as caught:
        journal.append(record(2, size=40_000), durable=False)
    assert caught.value.errno == errno.ENOSPC
    assert [r.seq for r in journal.records()] == [1]
    journal.close()


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"this is something else entirely, and long enough to have a header" * 20)
    with pytest.raises(JournalDamaged, match="not a database"):
        SqliteJournal(tmp_path)
    (tmp_path / "journal.db").unlink()
    SqliteJournal(tmp_path).close()  # the lock was given up


def test_a_journal_of_another_format_is_refused(tmp_path: Path) -> None:
    create(tmp_path).close()
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    db.close()
    with pytest.raises(JournalDamaged, match="journal format 99"):
        SqliteJournal(tmp_path)


def test_a_reader_that_comes_before_the_job_finds_nothing(tmp_path: Path) -> None:
    owner = SqliteJournal(tmp_path)
    reader = SqliteJournal(tmp_path, read_only=True)
    assert list(reader.records()) == []
    reader.close()
    owner.close()
