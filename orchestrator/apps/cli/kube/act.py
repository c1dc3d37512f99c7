"""suspend, resume, scale and down of jobs on Kubernetes: each changes one field of the TrainingJob, or deletes it.

The operator and the agent in the pods carry it out; with `--wait` it is followed until it is so. Giving up waiting takes nothing
back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.adapters.kube.access import Access, Options, connect
from orchestrator.adapters.kube.follow import Changed, Listed, Patience, Removed, Trouble
from orchestrator.adapters.kube.resources import MERGE
from orchestrator.adapters.kube.seen import JobSeen, Phase, job_path, job_seen, of_job, pods_path
from orchestrator.adapters.kube.status import SCALED
from orchestrator.adapters.kube.streams import Streams
from orchestrator.apps.cli.base import CliError, Code, data_json, say
from orchestrator.apps.cli.kube.found import job_at
from orchestrator.apps.cli.kube.patient import Reminder
from orchestrator.apps.cli.kube.progress import Progress
from orchestrator.apps.cli.kube.stay import Watcher, stay
from orchestrator.apps.cli.kube.words import command, phase_text
from orchestrator.core.timeouts import derive
from orchestrator.runtime.control import NotPossibleError

MANAGER = "orchestrator"  # field manager of what people do with this program

Judge = Callable[[JobSeen], str]  # what is to be told once it is so; empty before


def _never(_: JobSeen) -> str:
    return ""


def suspend(there: Options, job: str, *, wanted: bool, stay: bool, as_json: bool) -> None:
    """Suspend a job, or let it go on. Raises CliError, ControlError."""
    access = connect(there)
    seen = _living(job_at(access, job))
    if seen.suspend == wanted:
        say(f"job {seen.name} is already to {'wait' if wanted else 'run'}: {phase_text(seen)}")
    else:
        seen = _patch(access, seen, {"suspend": wanted})
        say(f"job {seen.name}: {'saves its state and gives its pods back' if wanted else 'asks for its pods again and goes on'}")
    generation = seen.generation

    def suspended(now: JobSeen) -> str:
        done = now.observed_generation >= generation and now.phase is Phase.SUSPENDED
        return f"job {now.name} is suspended; nothing of it runs" if done else ""

    def goes_on(now: JobSeen) -> str:
        done = now.observed_generation >= generation and now.phase is Phase.RUNNING
        return f"job {now.name} runs again" if done else ""

    _finish(access, there, seen, suspended if wanted else goes_on, stays=stay, as_json=as_json)


def scale(there: Options, job: str, *, nodes: int, stay: bool, as_json: bool) -> None:
    """Train on so many nodes. Raises CliError, ControlError."""
    access = connect(there)
    before = _living(job_at(access, job))
    if before.nodes == nodes:
        say(f"job {before.name} is already to train on {nodes} nodes: {phase_text(before)}")
        seen = before
    else:
        seen = _patch(access, before, {"cluster": {"nodes": nodes}})
        say(f"job {seen.name}: from {before.nodes} to {nodes} nodes")
    epoch = -1 if before.nodes == nodes or before.epoch is None else before.epoch

    def judge(now: JobSeen) -> str:
        trains = now.phase is Phase.RUNNING and now.holds("Training", generation=seen.generation) and not now.holds("Degraded")
        placed = now.observed_generation >= seen.generation and (now.ready or 0) >= nodes and (now.epoch or 0) > epoch
        return f"job {now.name} trains on {nodes} nodes, {now.ranks or 0} ranks" if trains and placed else ""

    def refused(now: JobSeen) -> str:
        said = (c for c in now.conditions if c.type == SCALED and c.status == "False" and c.generation >= seen.generation)
        return next((f"job {now.name} does not train on {nodes} nodes: {c.message}" for c in said), "")

    _finish(access, there, seen, judge, refused, stays=stay, as_json=as_json)


def down(there: Options, job: str, *, stay: bool, as_json: bool) -> None:
    """Delete a job; with `stay` until nothing of it is left. Raises CliError, ControlError."""
    access = connect(there)
    seen = job_at(access, job)
    body = {"propagationPolicy": "Background", "preconditions": {"uid": seen.uid}}
    access.call("DELETE", job_path(seen.namespace, seen.name), body=body)
    say(f"job {seen.name} in namespace {seen.namespace} is being deleted, with its pods, Secret and volume")
    if stay:
        try:
            _until_gone(access, seen)
        except KeyboardInterrupt:
            raise CliError(f"not waiting any longer; job {seen.name} is deleted all the same", Code.INTERRUPTED) from None
        say(f"nothing of job {seen.name} is left")
    if as_json:
        data_json({"job": seen.name, "namespace": seen.namespace, "gone": stay})


def _living(job: JobSeen) -> JobSeen:
    """The job, unless it is over or about to go; then CliError."""
    if job.phase.terminal or job.leaving:
        raise CliError(f"job {job.name} is {phase_text(job)}: nothing of it can be changed any more", Code.INPUT)
    return job


def _patch(access: Access, job: JobSeen, spec: dict[str, Any]) -> JobSeen:
    """Change parts of the spec of just this object. Raises ControlError."""
    body = {"metadata": {"uid": job.uid}, "spec": spec}
    path = job_path(job.namespace, job.name)
    return job_seen(access.call("PATCH", path, query={"fieldManager": MANAGER}, body=body, content_type=MERGE))


def _finish(
    access: Access, there: Options, job: JobSeen, judge: Judge, refused: Judge = _never, *, stays: bool, as_json: bool
) -> None:
    """With `stays` wait for what comes of it, or until it is `refused`; tell it."""
    done = _wait(access, there, job, judge, refused) if stays else ""
    if as_json:
        data_json({"job": job.name, "namespace": job.namespace, "generation": job.generation, "done": done})
    else:
        say(done or f"see: {command('status -w', job.name, there, namespace=job.namespace)}")


def _wait(access: Access, there: Options, job: JobSeen, judge: Judge, refused: Judge) -> str:
    progress, reminder = Progress(), Reminder(access, generation=job.generation)
    watcher = Watcher(
        on_job=progress.job,
        on_idle=reminder.look,
        enough=lambda now: bool(judge(now) or refused(now)) or now.phase.terminal or now.leaving,
    )
    try:
        last = stay(access, job, watcher, events=False)
    except KeyboardInterrupt:
        see = command("status -w", job.name, there, namespace=job.namespace)
        raise CliError(f"not waiting any longer; what was asked for goes on, see: {see}", Code.INTERRUPTED) from None
    if last is None:
        raise CliError(f"job {job.name} was deleted before that was done", Code.INFRA)
    if why := refused(last):
        raise NotPossibleError(why)
    if not (told := judge(last)):
        raise CliError(f"job {job.name} is {phase_text(last)} before that was done", Code.INFRA)
    return told


def _until_gone(access: Access, job: JobSeen) -> None:
    """Until the object and its pods are gone. Raises CliError for pods that stay."""
    reminder = Reminder(access, generation=0, deleting=True)
    stay(access, job, Watcher(on_idle=reminder.look, enough=lambda _: False), events=False)
    left: dict[str, str] = {}
    listed = False
    limit_s = derive(job.detect_within_ms).leave_ms / 1000
    pods = {"pods": (pods_path(job.namespace), of_job(job.name))}
    with Streams(access, pods, patience=Patience.of(job.detect_within_ms)) as arriving:
        while left or not listed:
            got = arriving.take(limit_s)
            if got is None:
                names = ", ".join(sorted(left.values())) or "they cannot be listed"
                raise CliError(
                    f"job {job.name} is gone, but pods of it still end: {names}; those on a dead node stay until the node"
                    " answers or its Node object is deleted",
                    Code.INFRA,
                )
            news = got[1]
            if isinstance(news, Trouble):
                if news.why:
                    say(news.why)
                continue
            objects = news.objects if isinstance(news, Listed) else (news.object,)
            owned = {str(o["metadata"]["uid"]): str(o["metadata"]["name"]) for o in objects if _of(o, job.uid)}
            if isinstance(news, Listed):
                listed, left = True, owned
            elif isinstance(news, Changed):
                left |= owned
            elif isinstance(news, Removed):
                left.pop(str(news.object["metadata"]["uid"]), None)


def _of(pod: Any, uid: str) -> bool:
    """Whether a pod is of this job, and not of a newer one of its name. KubeRay's belong to the RayCluster in between."""
    owners = pod["metadata"].get("ownerReferences") or []
    return not any(o.get("kind") == "TrainingJob" and o.get("uid") != uid for o in owners)
