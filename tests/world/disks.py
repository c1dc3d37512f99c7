"""A small disk that can be full: a tmpfs of its own, for as long as the context lasts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

SIZE_MIB: Final = 8


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mounted at `folder`, which is made. Takes CAP_SYS_ADMIN; raises CalledProcessError."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Nothing can be written there meanwhile."""
    filler = folder / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        with suppress(OSError):  # somebody else may have taken some of it by now
            os.posix_fallocate(fd, 0, shutil.disk_usage(folder).free)
        with suppress(OSError):
            while os.write(fd, bytes(1 << 12)):
                os.lseek(fd, 0, os.SEEK_END)
        yield
    finally:
        os.close(fd)
        filler.unlink()
