"""The bearer token of a cluster: whoever can read this file may command the cluster, so only its owner can.

It is created once, in one instant (two processes that start together end up with one token), with mode 600. A token that others
could have read is refused rather than used: a quiet repair of the mode would hide that it may already be known.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from orchestrator.adapters.files.home import sync_folder, write_atomically, write_temporary

TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


class TokenRefused(PermissionError):
    """The token file must not be trusted; the message says why and what to do."""


def ensure_token(path: Path) -> str:
    """The cluster's token; it is created when there is none. Raises TokenRefused and OSError."""
    try:
        return read_token(path)
    except FileNotFoundError:
        pass
    temporary = write_temporary(path, secrets.token_urlsafe(TOKEN_BYTES) + "\n", mode=0o600)
    try:
        os.link(temporary, path)  # unlike a rename, a link never replaces the token that another process has just made
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return read_token(path)


def put_token(path: Path, token: str) -> None:
    """Keep a token that a running supervisor has told us, in place of the one that was here. Raises OSError."""
    write_atomically(path, token + "\n", mode=0o600)


def read_token(path: Path) -> str:
    """The token in this file. Raises FileNotFoundError, OSError, or TokenRefused when it is not private or not a token."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd, encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise TokenRefused(f"{path} has mode {mode:03o}, so others may know the token; remove it and start the cluster again")
        if status.st_uid != os.geteuid():
            raise TokenRefused(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}")
        text = file.read(1024).strip()
    if not _TOKEN.fullmatch(text):
        raise TokenRefused(f"{path} holds no token; remove it and start the cluster again")
    return text
