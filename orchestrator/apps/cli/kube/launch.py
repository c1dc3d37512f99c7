"""launch --on kubernetes: a job file becomes a TrainingJob; with --wait it is followed to its end.

The file is judged here first, so that most mistakes need no cluster. What the API server finds beyond that is shown at its place
in the file, too: by server-side apply as a dry run, for a POST would drop the keys that its schema lacks. The POST that follows
makes a job or none, so one that is there already is never changed by a launch, also not by two at once.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer
import yaml

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.access import Access, Options, connect
from orchestrator.adapters.kube.refusals import InvalidError
from orchestrator.adapters.kube.resources import APPLY, JSON
from orchestrator.adapters.kube.seen import JobSeen, job_path, job_seen
from orchestrator.apps.cli.base import CliError, Code, complain, data, data_json, say
from orchestrator.apps.cli.jobs import DryRun
from orchestrator.apps.cli.kube.act import MANAGER
from orchestrator.apps.cli.kube.found import (
    Presence,
    accounts_words,
    check_kind,
    check_namespace,
    missing_accounts,
    operator,
)
from orchestrator.apps.cli.kube.patient import Reminder
from orchestrator.apps.cli.kube.progress import Progress
from orchestrator.apps.cli.kube.stay import Watcher, stay
from orchestrator.apps.cli.kube.words import code_of, command, phase_text, status_lines
from orchestrator.runtime.control import NotFoundError, NotPossibleError
from orchestrator.spec.errors import SpecError
from orchestrator.spec.reading import text_of
from orchestrator.spec.training_job import from_training_job, refused_by_server, training_job

Object = dict[str, Any]


def launch(there: Options, file: Path, *, name: str, image: str, dry_run: DryRun | None, stay: bool, as_json: bool) -> None:
    """Make the TrainingJob of a file, or show it. Raises CliError, ControlError; with `stay` always typer.Exit."""
    if dry_run and stay:
        raise CliError("--dry-run makes no job to wait for; leave --wait out", Code.INPUT)
    text, manifest = _read(file, namespace=there.namespace, name=name, image=image)
    if dry_run is DryRun.CLIENT:
        _show(manifest, as_json=as_json)
        return
    access = connect(there)
    namespace = str(manifest["metadata"].setdefault("namespace", access.namespace))
    _check(access, namespace, only_say=dry_run is not None)
    if dry_run:
        _show(_applied_dry(access, manifest, text=text, file=file), as_json=as_json)
        return
    made = _made(access, manifest, text=text, file=file)
    found = operator(access)
    if found.presence is Presence.AWAY:
        say(f"warning: the job is stored, but {found.words}; fix: {found.fix}")
    if not stay:
        if as_json:
            data_json({"job": made.name, "namespace": made.namespace, "uid": made.uid, "server": access.server})
        else:
            data(made.name)
        say(f"see it with: {command('status -w', made.name, there, namespace=made.namespace)}")
        return
    last = _stay(access, there, made)
    code = code_of(last)
    why = "" if code is Code.OK else f"job {last.name} is {phase_text(last)}"
    if as_json:
        data_json({"status": asdict(last), "exit_code": int(code), "digest": last.digest, "why": why})
    else:
        data("\n".join(status_lines(last)))
    if why:
        complain(why, word="" if code is Code.INTERRUPTED else "error")
    raise typer.Exit(code)


def _read(file: Path, *, namespace: str, name: str, image: str) -> tuple[str, Object]:
    """The file's text and its TrainingJob. Raises CliError with every problem."""
    try:
        text = text_of(str(file), kind="job", absent='write one with "orchestrator init"')
        return text, training_job(text, file=str(file), namespace=namespace, name=name, image=image)
    except SpecError as error:
        count = len(error.problems) + error.omitted
        raise CliError(f"{file} has {count} problem{'s' if count > 1 else ''}\n{error.render()}", Code.INPUT) from None


def _check(access: Access, namespace: str, *, only_say: bool) -> None:
    """Raise NotFoundError where kind or namespace are missing, and for missing accounts NotPossibleError, or say it."""
    check_kind(access)
    check_namespace(access, namespace)
    if missing := missing_accounts(access, namespace):
        words = accounts_words(namespace, missing)
        if not only_say:
            raise NotPossibleError(f"the pods of a job could not be made: {words}")
        say(f"warning: {words}")


def _made(access: Access, manifest: Object, *, text: str, file: Path) -> JobSeen:
    """The job as it is stored now. Raises NotPossibleError where another one has its name."""
    found = _existing(access, manifest)
    if found is None:
        try:
            _applied_dry(access, manifest, text=text, file=file)
            made = job_seen(_created(access, manifest, text=text, file=file))
        except NotPossibleError:
            found = _existing(access, manifest)  # somebody was quicker
            if found is None:
                raise
        else:
            say(f"{names.KIND} {made.name} is made in namespace {made.namespace} at {access.server}")
            return made
    before = job_seen(found)
    end = f"`orchestrator down {before.name} --on kubernetes -n {before.namespace} --wait`"
    if before.phase.terminal or before.leaving:
        raise NotPossibleError(
            f"job {before.name} is there already in namespace {before.namespace}: {phase_text(before)};"
            f" fix: delete it with {end}, or give another name with --name"
        )
    if not _same(manifest, found):
        raise NotPossibleError(
            f"job {before.name} is there already in namespace {before.namespace}, with another content ({phase_text(before)});"
            f" fix: give another name with --name, or delete it with {end}; nodes are changed by `orchestrator scale`"
        )
    say(f"job {before.name} is there already in namespace {before.namespace}, with the same content: {phase_text(before)}")
    return before


def _existing(access: Access, manifest: Object) -> Object | None:
    try:
        found: Object = access.get(job_path(manifest["metadata"]["namespace"], manifest["metadata"]["name"]))
    except NotFoundError:
        return None
    return found


def _same(manifest: Object, found: Object) -> bool:
    """Whether both are read as one job, whatever each leaves out or writes otherwise."""
    try:
        return from_training_job(manifest) == from_training_job(found)
    except SpecError:  # it was changed since, or made by others
        return False


def _applied_dry(access: Access, manifest: Object, *, text: str, file: Path) -> Object:
    """The object as the API server would store it. Raises ControlError; CliError with the causes at their places in the file."""
    path = job_path(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
    return _asked(access, "PATCH", path, manifest, text=text, file=file, dryRun="All")


def _created(access: Access, manifest: Object, *, text: str, file: Path) -> Object:
    """The object as it is stored. Raises the same, and NotPossibleError where there is one of its name."""
    return _asked(access, "POST", job_path(manifest["metadata"]["namespace"]), manifest, text=text, file=file)


def _asked(access: Access, method: str, path: str, manifest: Object, *, text: str, file: Path, **query: str) -> Object:
    sent = APPLY if method == "PATCH" else JSON
    try:
        made: Object = access.call(method, path, query={"fieldManager": MANAGER, **query}, body=manifest, content_type=sent)
    except InvalidError as error:
        raise CliError(_placed(error, text=text, file=file), Code.INPUT) from None
    return made


def _placed(error: InvalidError, *, text: str, file: Path) -> str:
    """What the API server refuses, each cause at its line."""
    problems = []
    for field, message in error.causes:
        where = re.sub(r"\[[^\]]*\]", "", field)
        fix = f"see `kubectl explain tj.{where}`" if where else "see `kubectl explain tj`"
        problems.append(replace(refused_by_server(text, file=str(file), field=field, message=message), fix=fix))
    if not problems:
        return f"the API server refuses the job of {file}: {error}; `orchestrator doctor --on kubernetes` compares its CRD"
    return (
        f"the API server refuses the job of {file}, which this program takes:"
        f" its CRD may be another (`orchestrator doctor --on kubernetes` compares), or a rule of the cluster says no\n"
        f"{SpecError(problems).render()}"
    )


def _show(manifest: Object, *, as_json: bool) -> None:
    """The object on stdout, in the form that kubectl takes."""
    manifest["metadata"].pop("managedFields", None)
    if as_json:
        data_json(manifest)
    else:
        data(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True).rstrip("\n"))


def _stay(access: Access, there: Options, job: JobSeen) -> JobSeen:
    """Until the job is over. Raises CliError on Ctrl-C, which the job does not notice, and when it is deleted."""
    progress, reminder = Progress(), Reminder(access, generation=1)
    watcher = Watcher(on_job=progress.job, on_event=progress.event, on_idle=reminder.look)
    progress.job(job)
    try:
        last = stay(access, job, watcher, events=True)
    except KeyboardInterrupt:
        see, end = (command(verb, job.name, there, namespace=job.namespace) for verb in ("status -w", "down"))
        raise CliError(f"not waiting any longer; the job goes on. See it: {see}; end it: {end}", Code.INTERRUPTED) from None
    if last is None:
        raise CliError(f"job {job.name} was deleted before it was over", Code.INTERRUPTED)
    return last
