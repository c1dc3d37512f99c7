"""Between processes of one node, the receiver pulls straight out of the sender's memory.

`process_vm_readv` (Linux) copies once, into the place where the bytes belong, and leaves nothing behind to clean up: no segment
in /dev/shm, no descriptor. A process id alone proves nothing (other pid namespaces, ids used again), so the sender shows a
*beacon*, random bytes at an address, and the receiver reads the beacon again with every pull, in the same system call.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

BEACON_WORDS = 6  # process id, address of the nonce, the nonce

_NONCE_BYTES = 32
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


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
            self._pull(0, 0, 0)
        except (OSError, PeerGone):
            return False
        return True

    def pull(self, address: int, into: Tensor) -> None:
        """Copy the peer's bytes from `address` on into a dense CPU tensor.

        Raises PeerGone when the process has ended, has left (its beacon is out) or has freed that memory.
        """
        try:
            self._pull(address, into.data_ptr(), into.nbytes)
        except OSError as error:
            raise PeerGone(f"process {self.pid}: {error.strerror}", dead=error.errno == errno.ESRCH) from error

    def _pull(self, source: int, target: int, nbytes: int) -> None:
        if self._read is None:
            raise OSError("this system has no process_vm_readv")
        done = 0
        while True:
            here = (_Iovec * 2)(_Iovec(ctypes.addressof(self._seen), _NONCE_BYTES), _Iovec(target + done, nbytes - done))
            there = (_Iovec * 2)(_Iovec(self._address, _NONCE_BYTES), _Iovec(source + done, nbytes - done))
            count = 2 if nbytes else 1
            got = self._read(ctypes.c_int(self.pid), here, ctypes.c_ulong(count), there, ctypes.c_ulong(count), ctypes.c_ulong(0))
            if got < 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            if got < _NONCE_BYTES or self._seen.raw != self._nonce:
                raise PeerGone(f"process {self.pid} is not the one that was agreed on, or has left")
            if got == _NONCE_BYTES and done < nbytes:
                raise PeerGone(f"process {self.pid} has freed the memory")
            done += got - _NONCE_BYTES
            if done == nbytes:
                return


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
