"""What the workers of a job printed, read from the log of the agent in its head pod.

The agent prints each worker's lines with their rank; its own words are left out. A stream that breaks is resumed by the kubelet's
time stamps. Another head pod begins with everything that is kept, so there what was shown is skipped, by worker; only for a
moment, as not all may be kept. Where no head is up, the worker pods' own logs are what there is.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.adapters.kube.access import Access
from orchestrator.adapters.kube.follow import PASSING, Patience
from orchestrator.adapters.kube.names import AGENT_CONTAINER, HEAD, LABEL_INCARNATION, LABEL_ROLE, WORKER_CONTAINER
from orchestrator.adapters.kube.refusals import InvalidError, QuietError
from orchestrator.adapters.kube.resources import PODS
from orchestrator.adapters.kube.seen import JobSeen, job_path, job_seen, of_job, pods_path, seconds
from orchestrator.adapters.kube.streams import newest
from orchestrator.apps.cli.base import CliError, Code, say
from orchestrator.runtime.control import NotFoundError

SKIP_S = 10.0  # by the kubelet's clock: lines that were kept arrive at once; what comes later is new

_LINE = re.compile(r"\[(?:rank (?P<rank>\d+)|spare) (?P<worker>[^\]\s]+)\] ")

Pod = Mapping[str, Any]


class Lines:
    """The lines of one job, of one rank or (None) of all."""

    def __init__(self, access: Access, job: JobSeen, *, rank: int | None) -> None:
        self._access = access
        self._job = job
        self._rank = rank
        self._patience = Patience.of(job.detect_within_ms)
        self._shown: Counter[str] = Counter()
        self._skip: Counter[str] = Counter()
        self._pod = ""  # uid of the head pod that was read last
        self._began_s = 0.0  # when its first line of a worker was printed
        self._since = ""  # time stamp of the line that was read last
        self._waiting = ""  # what was said about waiting

    def now(self) -> Iterator[str]:
        """What there is at this moment. Raises ControlError, CliError."""
        head = newest(self._pods(HEAD), key=LABEL_INCARNATION)
        if head is not None and _started(head, AGENT_CONTAINER):
            with self._log(head, AGENT_CONTAINER) as lines:
                for line in lines:
                    if self._wanted(text := _text(line)):
                        yield text
            return
        yield from self._of_workers("its head is not up" if head is not None else "it has no head pod")

    def follow(self) -> Iterator[str]:
        """What there is and what comes, until the job is over. Raises ControlError, CliError."""
        pause_s, answered_s = self._patience.pause_s, time.monotonic()
        over = False
        while True:
            read = False
            try:
                over = self._over()
                answered_s = time.monotonic()
                head = newest(self._pods(HEAD), key=LABEL_INCARNATION)
                if head is not None and _started(head, AGENT_CONTAINER):
                    for text in self._read(head):
                        self._said("")
                        read = True
                        yield text
                elif not over:
                    self._said(f"the head of job {self._job.name} is not up yet; waiting for it")
                if over:
                    return
            except QuietError:  # nothing was printed for a while: look whether the job is over
                if over:
                    return
                continue
            except (*PASSING, InvalidError) as error:  # invalid: the container is about to start, or has just gone
                self._said(f"{error} (trying again)")
                if time.monotonic() - answered_s > self._patience.give_up_s:
                    raise
            pause_s = self._patience.pause_s if read else min(self._patience.pause_max_s, 2 * pause_s)
            time.sleep(pause_s)

    def _over(self) -> bool:
        """Whether no more will come. What is deleted is over, too."""
        try:
            now = job_seen(self._access.get(job_path(self._job.namespace, self._job.name)))
        except NotFoundError:
            return True
        return now.uid != self._job.uid or now.phase.terminal

    def _read(self, head: Pod) -> Iterator[str]:
        """One stream of one head pod."""
        uid = str(head["metadata"]["uid"])
        if uid != self._pod:
            self._pod, self._since, self._began_s = uid, "", 0.0
            self._skip = Counter(self._shown)
        query = {"follow": "true", "timestamps": "true"} | ({"sinceTime": _whole(self._since)} if self._since else {})
        with self._log(head, AGENT_CONTAINER, quiet_s=self._patience.watch_s, **query) as lines:
            for line in lines:
                stamp, _, text = _text(line).partition(" ")
                if self._since and _moment(stamp) <= _moment(self._since):
                    continue
                self._since = stamp
                match = _LINE.match(text)
                if match is None:
                    continue
                worker, now_s = match["worker"], seconds(stamp)
                self._began_s = self._began_s or now_s
                if self._skip[worker] > 0 and now_s - self._began_s < SKIP_S:
                    self._skip[worker] -= 1
                    continue
                self._shown[worker] += 1
                if self._wanted(text):
                    yield text

    def _of_workers(self, why: str) -> Iterator[str]:
        """The worker pods' own logs, with the pod in front."""
        pods = sorted((p for p in self._pods("") if _started(p, WORKER_CONTAINER)), key=lambda p: str(p["metadata"]["name"]))
        name = self._job.name
        if not pods:
            over = self._job.phase.terminal
            fix = "the pods of a job go when it is over; look where your cluster keeps logs" if over else "try again later"
            raise CliError(f"there are no logs of job {name} to read: {why}, and no worker pod runs; {fix}", Code.INFRA)
        if self._rank is not None:
            raise CliError(f"job {name}: {why}, and only its agent knows who has which rank; leave --rank out", Code.INFRA)
        say(f"job {name}: {why}; these are the worker pods' own logs")
        for pod in pods:
            with self._log(pod, WORKER_CONTAINER) as lines:
                for line in lines:
                    yield f"[{pod['metadata']['name']}] {_text(line)}"

    def _pods(self, role: str) -> list[Pod]:
        query = of_job(self._job.name, **({LABEL_ROLE: role} if role else {}))
        return list(self._access.get(pods_path(self._job.namespace), query=query)["items"])

    def _log(self, pod: Pod, container: str, *, quiet_s: float | None = None, **query: str) -> Any:
        path = PODS.path(namespace=self._job.namespace, name=str(pod["metadata"]["name"]), subresource="log")
        return self._access.lines(path, query={"container": container, **query}, quiet_s=quiet_s or self._patience.watch_s)

    def _wanted(self, text: str) -> bool:
        match = _LINE.match(text)
        return match is not None and (self._rank is None or match["rank"] == str(self._rank))

    def _said(self, text: str) -> None:
        """Say something about waiting, once until it is over."""
        if text and not self._waiting:
            say(text)
        self._waiting = text


def _started(pod: Pod, container: str) -> bool:
    """Whether a container runs or has run, so that there is a log."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status.get("name") == container:
            return "waiting" not in (status.get("state") or {"waiting": {}})
    return False


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")


def _moment(stamp: str) -> tuple[str, str]:
    """A time stamp with nanoseconds, all in the same zone, for comparing: its whole seconds, and the fraction, filled up."""
    whole, _, fraction = stamp.partition(".")
    digits = re.match(r"\d*", fraction)
    return whole.removesuffix("Z"), (digits[0] if digits else "").ljust(9, "0")


def _whole(stamp: str) -> str:
    """The same, as the query `sinceTime` takes it: whole seconds."""
    whole, _, fraction = stamp.partition(".")
    zone = re.sub(r"^\d*", "", fraction)
    return f"{whole}{zone}" if fraction else whole
