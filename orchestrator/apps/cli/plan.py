"""`orchestrator plan`: how a job, or a model that is only described, would be split over a cluster, and why.

It starts nothing: the job's model is looked at without memory and timed for some seconds, this machine is measured, a cluster or
a model may come from a file instead. Progress goes to stderr, the plan to stdout, page and picture to files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from orchestrator.apps.cli.base import CliError, Code, data, data_json, job_from, say
from orchestrator.apps.cli.options import AsJson

if TYPE_CHECKING:
    from orchestrator.apps.plan_facts import Preview
    from orchestrator.core.cluster.resources import Resources
    from orchestrator.core.graph.costs import ModelCosts
    from orchestrator.core.job import Job
    from orchestrator.core.planner.strategy import Program

T = TypeVar("T")

ALTERNATIVES = 3
ALTERNATIVES_MAX = 100
NOTHING = "name a job file, or describe a model with --model FILE"


def programs(incomplete: str) -> list[str]:
    """Names of the training programs whose costs are known, for completion."""
    return [name for name in _programs() if name.startswith(incomplete)]


def plan(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The job file (job.yaml); not needed with --model.", show_default=False),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="FILE", help="Plan for this cluster (YAML), not for this machine.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="Plan for this model (YAML), not for the job's task.", show_default=False),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Samples in a step, for a model without a job.", show_default=False),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(
            "--program",
            help="Training program whose memory and overheads count, for a model without a job: ours, megatron or deepspeed; "
            "absent: ours.",
            show_default=False,
            autocompletion=programs,
        ),
    ] = None,
    graph: Annotated[bool, typer.Option("--graph", help="Print the graph view (layers and their costs), plan nothing.")] = False,
    alternatives: Annotated[
        int, typer.Option("--alternatives", min=0, max=ALTERNATIVES_MAX, help="How many other plans to show.")
    ] = ALTERNATIVES,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write a page with pictures and tables.", show_default=False),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="Also write a picture of ranks, layers and one step.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a job (or a described model) would be split over a cluster, what that is predicted to do, and why."""
    job = job_from(file)[0] if file is not None else None
    described = _model_from(model) if model is not None else None
    if job is not None and (batch is not None or program is not None):
        raise CliError("--batch and --program are for a model without a job: leave them out, or leave the job out", Code.INPUT)
    if graph:
        if any(option is not None for option in (cluster, batch, program, html, svg)):
            raise CliError("--graph plans nothing: leave out --cluster, --batch, --program, --html and --svg", Code.INPUT)
        _show_graph(described if described is not None else _traced(job), as_json=as_json)
        return
    for path in (html, svg):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise CliError(f"{path} cannot be written: name a file in a folder that is there", Code.INPUT)
    resources = _cluster_from(cluster) if cluster is not None else None
    if job is not None:
        preview = _of_job(job, described, resources, alternatives=alternatives)
    else:
        preview = _of_model(described, resources, batch=batch, program=program or "ours", alternatives=alternatives)
    _write(preview, html=html, svg=svg, alternatives=alternatives)
    _show(preview, alternatives=alternatives, as_json=as_json)
    if preview.findings:
        raise CliError("the plan must not run: " + "; ".join(preview.findings), Code.INFRA)


def _of_job(job: Job, described: ModelCosts | None, resources: Resources | None, *, alternatives: int) -> Preview:
    from orchestrator.apps.plan_making import preview_job
    from orchestrator.apps.wiring import describe, local_resources
    from orchestrator.engine.devices import DeviceUnavailable

    if described is None:
        say("building the model once to look at it ...")
        with _whose_fault(job):
            graph = describe(job)
        costs = _traced(job, timed=resources is None)
    else:
        graph, costs = None, described
    described_cluster = resources is not None
    if resources is None:
        say("measuring this machine ...")
        try:
            resources = local_resources(job)
        except DeviceUnavailable as error:
            raise CliError(f"{error}; or plan for a described cluster with --cluster FILE", Code.INFRA) from None
    _say_searching(resources)
    with _no_plan("change parallel or cluster in the job file"):
        return preview_job(
            job, graph=graph, costs=costs, resources=resources, every_device=described_cluster, runners=alternatives
        )


def _of_model(
    costs: ModelCosts | None, resources: Resources | None, *, batch: int | None, program: str, alternatives: int
) -> Preview:
    from orchestrator.apps.plan_making import preview_model

    if costs is None:
        raise CliError(NOTHING, Code.INPUT)
    if resources is None:
        raise CliError("a model without a job needs a cluster: describe one with --cluster FILE", Code.INPUT)
    if batch is None:
        raise CliError("a model without a job needs the samples in a step: --batch N", Code.INPUT)
    known = _programs()
    if program not in known:
        raise CliError(f"--program {program} is not known; there are {', '.join(known)}", Code.INPUT)
    _say_searching(resources)
    with _no_plan("take another batch, or a cluster with more devices or memory"):
        return preview_model(costs, resources, batch=batch, program=known[program], runners=alternatives)


def _say_searching(resources: Resources) -> None:
    from orchestrator.apps.units import plural

    say(f"searching plans for {plural(resources.size, 'device')} ...")


def _traced(job: Job | None, *, timed: bool = True) -> ModelCosts:
    """What the job's model costs: measured on this machine if it has the job's kind of device. Raises CliError.

    `timed` false: nothing is measured, as what this machine takes says nothing about a cluster that is described.
    """
    from orchestrator.apps.wiring import local_costs, traced_costs
    from orchestrator.engine.devices import DeviceUnavailable

    if job is None:
        raise CliError(NOTHING, Code.INPUT)
    with _whose_fault(job):
        if timed:
            say("timing each kind of layer on this machine ...")
            try:
                return local_costs(job)
            except DeviceUnavailable as error:
                say(f"nothing is timed: {error}")
        return traced_costs(job)


def _model_from(path: Path) -> ModelCosts:
    from orchestrator.spec.model_file import load_model

    return _read(path, load_model)


def _cluster_from(path: Path) -> Resources:
    from orchestrator.spec.cluster_file import load_cluster

    return _read(path, load_cluster)


def _read(path: Path, load: Callable[[Path], T]) -> T:
    """What a file describes; raises CliError with every problem of it."""
    from orchestrator.spec import SpecError

    try:
        return load(path)
    except SpecError as error:
        count = len(error.problems) + error.omitted
        raise CliError(f"{path} has {count} problem{'s' if count > 1 else ''}\n{error.render()}", Code.INPUT) from None


def _programs() -> dict[str, Program]:
    from orchestrator.core.planner.cost.programs import DEEPSPEED, MEGATRON, OURS

    return {p.name: p for p in (OURS, MEGATRON, DEEPSPEED)}


@contextmanager
def _whose_fault(job: Job) -> Iterator[None]:
    """What keeps a job from being looked at, as an error of whoever can mend it."""
    from orchestrator.engine.task import TaskError
    from orchestrator.engine.tasks.loading import user_traceback

    try:
        yield
    except TaskError as error:
        raise CliError(str(error), Code.INPUT) from None
    except Exception as error:  # the task's own code
        told = user_traceback(error)
        raise CliError(f"{job.task.target} raised while its model was built:\n{told}\nput it right there", Code.USER) from None


@contextmanager
def _no_plan(fix: str) -> Iterator[None]:
    from orchestrator.core.planner.errors import PlanError

    try:
        yield
    except PlanError as error:
        raise CliError(f"no plan: {error}; {fix}", Code.INPUT) from None


def _write(preview: Preview, *, html: Path | None, svg: Path | None, alternatives: int) -> None:
    """The page and the picture, where they are asked for."""
    if html is None and svg is None:
        return
    from orchestrator.apps.plan_making import spans_of
    from orchestrator.apps.plan_page import render_page
    from orchestrator.apps.plan_svg import document, pictures

    spans, micro_batches = spans_of(preview)
    drawings = pictures(preview, spans, micro_batches=micro_batches)
    if svg is not None:
        _to_file(svg, document(drawings, title=f"Plan of {preview.name}"))
    if html is not None:
        _to_file(html, render_page(preview, drawings, alternatives=alternatives))


def _to_file(path: Path, text: str) -> None:
    from orchestrator.adapters.files.home import write_atomically

    try:
        write_atomically(path, text)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}; name a file that you may write", Code.INPUT) from None
    say(f"written: {path}")


def _show(preview: Preview, *, alternatives: int, as_json: bool) -> None:
    if as_json:
        data_json(_document(preview, alternatives=alternatives))
        return
    from orchestrator.apps.cli import plan_words, render

    lines = plan_words.preview_lines(preview, alternatives=alternatives)
    if preview.plan is not None:
        lines += ["", *render.seat_lines(preview.plan)]
    data("\n".join(lines))


def _show_graph(costs: ModelCosts, *, as_json: bool) -> None:
    from orchestrator.apps.cli.plan_words import graph_lines
    from orchestrator.core.codec import to_json

    if as_json:
        data_json({"model": to_json(costs)})
    else:
        data("\n".join(graph_lines(costs)))


def _document(preview: Preview, *, alternatives: int) -> dict[str, Any]:
    """Everything as JSON: the Plan (null where nobody is seated), the question, what is shown and what was chosen."""
    from orchestrator.apps.cli.render import state_bytes
    from orchestrator.core.codec import to_json

    made = preview.plan
    return {
        "name": preview.name,
        "fixed": preview.fixed,
        "shown": to_json(preview.shown),
        "fits": preview.shown.estimate.fits,
        "choice": to_json(preview.choice),
        "no_choice": preview.no_choice,
        "alternatives": [to_json(o) for o in preview.runners_up[:alternatives]],
        "problem": to_json(preview.problem),
        "plan": to_json(made),
        "graph": to_json(preview.graph),
        "ranks": [{"rank": s.rank, "state_bytes": state_bytes(made, s.rank)} for s in made.seats] if made is not None else [],
        "lint": list(preview.findings),
    }
