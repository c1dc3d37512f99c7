"""The group `orchestrator checkpoint`: take one now, list them, verify one, export its model.

A job's checkpoints are read by its supervisor, which is sure to reach them; when none runs, by this program, from where the job's
journal says. `--uri` needs neither job nor supervisor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.apps import units
from orchestrator.apps.cli import render
from orchestrator.apps.cli.base import CliError, Code, complain, data, data_json, running, say, who
from orchestrator.apps.cli.look import client_of
from orchestrator.apps.cli.options import DEFAULT_HOME, AsJson, Cluster, HomeDir, JobName, MaybeJobName, Wait, resolved
from orchestrator.apps.cli.waiting import wait
from orchestrator.core.codec import to_json
from orchestrator.core.supervisor.events import CheckpointReported
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, ExportedModel, ExportType

if TYPE_CHECKING:
    from orchestrator.adapters.grpc.client import ControlClient
    from orchestrator.runtime.ports import CheckpointTools, Record
    from orchestrator.runtime.status_types import JobStatus

Uri = Annotated[
    str,
    typer.Option(
        "--uri", help="Where they are, or one of them: a path or URL. Needs no job and no supervisor.", show_default=False
    ),
]
Step = Annotated[int | None, typer.Option("--step", min=0, help="Of this step; absent: the newest.", show_default=False)]

group = typer.Typer(name="checkpoint", help="Take, list, verify and export durable checkpoints.", no_args_is_help=True)


@group.command()
def now(
    job: JobName,
    stay: Wait = False,
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
) -> None:
    """Take a durable checkpoint after the step under way."""
    with client_of(home, cluster) as client:
        decided = client.take_checkpoint(job, who=who())
        say(f"#{decided.seq} {decided.reason}")

        def judge(record: Record | None, _: JobStatus) -> str:
            event = record.event if record is not None else None
            if not isinstance(event, CheckpointReported):
                return ""
            if not event.ok:
                raise CliError(f"the checkpoint of step {event.step} failed: {event.detail}", Code.INFRA)
            return event.uri

        uri = wait(client, job, decided, judge) if stay else ""
    if as_json:
        data_json({"job": job, "seq": decided.seq, "reason": decided.reason, "uri": uri})
    elif uri:
        data(uri)
    else:
        say(f"see: orchestrator checkpoint list {job}")


@group.command("list")
def list_(
    job: MaybeJobName = "", uri: Uri = "", as_json: AsJson = False, home: HomeDir = DEFAULT_HOME, cluster: Cluster = None
) -> None:
    """List what lies there: step, digest, size, complete or not, the plan that wrote it."""
    with _tools(job, uri, home=home, cluster=cluster) as (tools, place):
        found = tools.list(place)
    if as_json:
        data_json([to_json(c) for c in found])
    elif found:
        data("\n".join(render.checkpoint_lines(found)))
    else:
        say(f"there are no checkpoints{f' at {place}' if place else ''}")


@group.command()
def verify(
    job: MaybeJobName = "",
    uri: Uri = "",
    step: Step = None,
    every: Annotated[bool, typer.Option("--all", help="Every one that is complete, not just one.")] = False,
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
) -> None:
    """Read every byte, compute the digest anew, say which file is damaged. Exit code 3 when something is wrong."""
    if every and step is not None:
        raise CliError("either --step N or --all", Code.INPUT)
    verdicts: list[CheckpointVerdict] = []
    with _tools(job, uri, home=home, cluster=cluster) as (tools, place):
        steps: Sequence[int | None] = [c.step for c in tools.list(place) if c.complete] if every else [step]
        if not steps:
            raise CliError(f"there is no complete checkpoint{f' at {place}' if place else ''}", Code.INPUT)
        for wanted in steps:
            say(f"reading {'the newest checkpoint' if wanted is None else f'the checkpoint of step {wanted}'} ...")
            verdicts.append(tools.verify(place, step=wanted))
            if not as_json:
                data("\n".join(render.verdict_lines(verdicts[-1])))
    if as_json:
        data_json([to_json(v) for v in verdicts])
    bad = [v for v in verdicts if v.trouble]
    if bad:
        complain("; ".join(f"step {v.info.step}: {v.trouble}" for v in bad))
        raise typer.Exit(Code.INFRA)


@group.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The safetensors file.", show_default=False)],
    job: MaybeJobName = "",
    uri: Uri = "",
    step: Step = None,
    dtype: Annotated[ExportType, typer.Option("--dtype", help="Of floating-point tensors.")] = ExportType.FP32,
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
) -> None:
    """Write a checkpoint's model as a plain safetensors file, under the names of its state_dict()."""
    path = output.expanduser().absolute()
    with _tools(job, uri, home=home, cluster=cluster) as (tools, place):
        made = tools.export(place, step=step, path=str(path), dtype=dtype)
    if as_json:
        data_json(to_json(made))
    else:
        data(made.path)
        say(f"{made.tensors} tensors, {units.size(made.size_bytes)}, {made.dtype}, of step {made.step}, digest {made.digest}")


class _BySupervisor:
    """runtime.ports.CheckpointTools, where the supervisor runs; an empty `uri` is where the job's checkpoints are."""

    def __init__(self, client: ControlClient, job: str) -> None:
        self._client = client
        self._job = job

    def list(self, uri: str) -> Sequence[CheckpointInfo]:
        return self._client.list_checkpoints(self._job, uri=uri)

    def verify(self, uri: str, *, step: int | None) -> CheckpointVerdict:
        return self._client.verify_checkpoint(self._job, uri=uri, step=step)

    def export(self, uri: str, *, step: int | None, path: str, dtype: ExportType) -> ExportedModel:
        return self._client.export_checkpoint(self._job, uri=uri, step=step, path=path, dtype=dtype)


@contextmanager
def _tools(job: str, uri: str, *, home: Path, cluster: str | None) -> Iterator[tuple[CheckpointTools, str]]:
    """Who reads, and what to give it as the place. Raises CliError."""
    from orchestrator.apps.wiring import checkpoint_tools, checkpoint_uri

    if uri:
        if job:
            raise CliError("name either a job or --uri, not both", Code.INPUT)
        yield checkpoint_tools(), uri if "://" in uri else str(Path(uri).expanduser().absolute())
        return
    try:
        session = running(home=resolved(home), cluster=cluster)
    except CliError:
        place = checkpoint_uri(job, home=resolved(home)) if job else ""
        if not place:
            raise
        say(f"no supervisor runs; looking at {place} from here")
        yield checkpoint_tools(), place
        return
    try:
        yield _BySupervisor(session.client, job), ""
    finally:
        session.stop()
