"""The network of another machine of a lab, entered by one thread. Standard library only: the kubelets of a lab use it too."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

CLONE_NEWNET: Final = 0x40000000


def enter(namespace: str | Path) -> None:
    """This thread, and those that it starts, use the network of a namespace (by name, or by file). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    try:
        if libc.setns(fd, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"setns {namespace}: {os.strerror(number)}")
    finally:
        os.close(fd)
