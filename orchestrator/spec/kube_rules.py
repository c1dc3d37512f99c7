"""What a job that is right elsewhere must also have on Kubernetes, where pods share no disk and come back empty.

As in rules.py the first field that the file really holds gets the blame.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from orchestrator.spec.document import Path
from orchestrator.spec.kube_values import ENV_WORKDIR, WORKDIR
from orchestrator.spec.model import JobSpec
from orchestrator.spec.rules import Violation
from orchestrator.spec.values import is_url

READS: tuple[Path, ...] = (("checkpoint",), ("kubernetes",))


def violations(spec: JobSpec) -> Iterator[Violation]:
    """Everything that cannot work in pods. It reads the sections of READS."""
    if spec.kubernetes is None or spec.checkpoint is None or is_url(spec.checkpoint.uri):
        return
    uri, home = spec.checkpoint.uri, "/tmp"
    written = home + uri[1:] if uri.startswith("~") else uri
    place = posixpath.normpath(posixpath.join(spec.kubernetes.env.get(ENV_WORKDIR, WORKDIR), written))
    under = [volume for volume in spec.kubernetes.volumes if f"{place}/".startswith(f"{volume.path}/")]
    if not under:
        yield Violation(
            blame=(("checkpoint", "uri"),),
            message=f"{place} is on no volume, so each pod would have checkpoints of its own and lose them with itself",
            fix=f"mount a claim there (kubernetes.volumes: [{{claim: NAME, path: {place}}}]), or write a URL such as s3://bucket/run",
        )
    elif max(under, key=lambda volume: len(volume.path)).read_only:
        yield Violation(
            blame=(("checkpoint", "uri"),),
            message=f"{place} is on a volume that is mounted readOnly",
            fix="remove readOnly, or choose another place",
        )
