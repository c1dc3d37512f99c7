"""Between processes of one node, the receiver pulls straight out of the sender's memory.

`process_vm_readv` (Linux) copies once, into the place where the bytes belong, and leaves nothing behind to clean up: no segment
in /dev/shm, no descriptor. A process id alone proves nothing (other pid namespaces, ids used again), so the sender shows a
*beacon*, random bytes at an address, and the receiver reads the beacon again with every pull, in the same system call.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

BEACON_WORDS = 6  # process id, address of the nonce, the nonce

_NONCE_BYTES = 32
_RUNS_MAX = 1000  # of the 1024 that a call takes
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_libc = ctypes.CDLL(None, use_errno=True)


class PeerGone(Exception):
    """The memory that was to be read is not there any more; `dead` says that the process has certainly ended."""

    def __init__(self, text: str, *, dead: bool = False) -> None:
        super().__init__(text)
        self.dead = dead


class Beacon:
    """What a sender shows: it holds while this object lives."""

    def __init__(self) -> None:
        self._nonce = ctypes.create_string_buffer(os.urandom(_NONCE_BYTES), _NONCE_BYTES)

    @property
    def words(self) -> list[int]:
        """BEACON_WORDS int64 for `PeerMemory`."""
        nonce = self._nonce.raw
        parts = [int.from_bytes(nonce[at : at + 8], "little", signed=True) for at in range(0, _NONCE_BYTES, 8)]
        return [os.getpid(), ctypes.addressof(self._nonce), *parts]

    def close(self) -> None:
        """Whoever reads on learns that it must not."""
        ctypes.memset(self._nonce, 0, _NONCE_BYTES)


class PeerMemory:
    """What a receiver reads from; `words` are those of the sender's beacon."""

    def __init__(self, words: list[int]) -> None:
        pid, address, *parts = words
        self.pid = pid
        self._address = address
        self._nonce = b"".join(part.to_bytes(8, "little", signed=True) for part in parts)
        self._seen = ctypes.create_string_buffer(_NONCE_BYTES)
        self._read = getattr(_libc, "process_vm_readv", None)
        if self._read is not None:
            self._read.restype = ctypes.c_ssize_t

    def reachable(self) -> bool:
        """Whether this process may read that one, and it is the one that it should be."""
        try:
            self._pull([], 0)
        except (OSError, PeerGone):
            return False
        return True

    def pull(self, runs: Sequence[tuple[int, int]], into: Tensor) -> None:
        """Copy the peer's memory, (address, bytes) run after run, into a dense CPU tensor of as many bytes in all.

        Raises PeerGone when the process has ended, has left (its beacon is out) or has freed that memory.
        """
        target = into.data_ptr()
        try:
            for at in range(0, len(runs), _RUNS_MAX):
                some = runs[at : at + _RUNS_MAX]
                self._pull(some, target)
                target += sum(nbytes for _, nbytes in some)
        except OSError as error:
            raise PeerGone(f"process {self.pid}: {error.strerror}", dead=error.errno == errno.ESRCH) from error

    def _pull(self, runs: Sequence[tuple[int, int]], target: int) -> None:
        """The beacon and the runs in one call."""
        if self._read is None:
            raise OSError("this system has no process_vm_readv")
        left = list(runs)
        while True:
            nbytes = sum(n for _, n in left)
            here = _iovecs([(ctypes.addressof(self._seen), _NONCE_BYTES), (target, nbytes)])
            there = _iovecs([(self._address, _NONCE_BYTES), *left])
            counts = ctypes.c_ulong(2 if left else 1), ctypes.c_ulong(1 + len(left))
            got = self._read(ctypes.c_int(self.pid), here, counts[0], there, counts[1], ctypes.c_ulong(0))
            if got < 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            if got < _NONCE_BYTES or self._seen.raw != self._nonce:
                raise PeerGone(f"process {self.pid} is not the one that was agreed on, or has left")
            if got == _NONCE_BYTES + nbytes:
                return
            if got == _NONCE_BYTES:
                raise PeerGone(f"process {self.pid} has freed the memory")
            target += got - _NONCE_BYTES
            left = _after(left, got - _NONCE_BYTES)


def _iovecs(runs: Sequence[tuple[int, int]]) -> ctypes.Array[ctypes.c_size_t]:
    """struct iovec [n]: base and length."""
    return (ctypes.c_size_t * (2 * len(runs)))(*(word for run in runs for word in run))


def _after(runs: Sequence[tuple[int, int]], done: int) -> list[tuple[int, int]]:
    """The runs without their first `done` bytes."""
    left = []
    for address, nbytes in runs:
        skip = min(done, nbytes)
        done -= skip
        if skip < nbytes:
            left.append((address + skip, nbytes - skip))
    return left


@contextmanager
def readable() -> Iterator[None]:
    """Let processes of the same user read this one meanwhile, where yama asks for that (ptrace_scope 1)."""
    restricted = False
    with suppress(OSError, ValueError):
        restricted = int(_YAMA.read_text()) == 1
    if restricted:
        _libc.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    try:
        yield
    finally:
        if restricted:
            _libc.prctl(_PR_SET_PTRACER, 0, 0, 0, 0)
