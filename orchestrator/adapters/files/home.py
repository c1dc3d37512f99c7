"""Where the orchestrator keeps its state on this machine, and how a small file is replaced in one instant.

Everything lives below one directory, by default `~/.orchestrator`, readable by its owner only, because tokens lie in it. A reader
of any file here sees the old content or the new one, never a half: writes go to a temporary file, are flushed to the disk, and
are renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.core.codec import from_json

NAME_PATTERN = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"


@dataclass(frozen=True, slots=True)
class ClusterEndpoint:
    """How to reach the supervisor of one cluster."""

    address: str  # host:port of the control API
    ray_address: str
    pid: int  # of the supervisor process; for people, it proves nothing


@dataclass(frozen=True, slots=True)
class Home:
    """The layout of the state directory. Names are DNS labels; others raise ValueError, so that no name leads out of it."""

    root: Path

    def cluster(self, name: str) -> Path:
        """Folder of one cluster, created when absent."""
        return self._folder("clusters", name)

    def token_file(self, cluster: str) -> Path:
        """Where the bearer token of a cluster lies."""
        return self.cluster(cluster) / "token"

    def endpoint_file(self, cluster: str) -> Path:
        """Where the address of a cluster's supervisor lies."""
        return self.cluster(cluster) / "endpoint.json"

    @property
    def jobs(self) -> Path:
        """Folder of all jobs, created when absent."""
        return _private(self.root, self.root / "jobs")

    def job(self, name: str) -> Path:
        """Folder of one job (journal, logs, report), created when absent."""
        return self._folder("jobs", name)

    def write_endpoint(self, cluster: str, endpoint: ClusterEndpoint) -> None:
        """Publish the address of a cluster's supervisor. Raises OSError."""
        write_atomically(self.endpoint_file(cluster), json.dumps(asdict(endpoint), indent=1) + "\n", mode=0o600)

    def read_endpoint(self, cluster: str) -> ClusterEndpoint | None:
        """The published address, or None when there is none. Raises ValueError when the file is damaged."""
        path = self.endpoint_file(cluster)
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        try:
            endpoint: ClusterEndpoint = from_json(ClusterEndpoint, json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it and start the cluster again") from error
        return endpoint

    def remove_endpoint(self, cluster: str) -> None:
        """Withdraw the address; harmless when there is none."""
        self.endpoint_file(cluster).unlink(missing_ok=True)

    def _folder(self, kind: str, name: str) -> Path:
        if not re.fullmatch(NAME_PATTERN, name, re.ASCII):
            raise ValueError(f"{name!r} is no DNS label: use a-z, 0-9 and inner hyphens, at most 63 characters")
        return _private(self.root, self.root / kind, self.root / kind / name)


def _private(*folders: Path) -> Path:
    """The last of these folders, each inside the one before; all are made when absent, with mode 700."""
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folders[-1]


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file: temporary file beside it, fsync, rename, fsync of the folder. Raises OSError, leaving the old content."""
    temporary = write_temporary(path, text, mode=mode)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_temporary(path: Path, text: str, *, mode: int) -> Path:
    """A flushed temporary file with this content and mode in the folder of `path`; the caller renames, links or removes it."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return Path(name)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
