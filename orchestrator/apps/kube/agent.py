"""The agent beside the head: it carries the TrainingJob to the supervisor, and the supervisor's word to Kubernetes.

It decides nothing about the job and nothing about pods. What it was last told is in the API server and in the journal, so one
that is started again goes on where the one before stopped. Workers' lines go to stdout, its own words to stderr.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

if __name__ == "__main__":
    # process 1 of a container is not ended by a signal that it leaves alone, and what follows takes seconds from a cold disk
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

from orchestrator.adapters.grpc.client import ControlClient
from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.access import Access, Options, connect
from orchestrator.adapters.kube.api import KubeError
from orchestrator.adapters.kube.events import event
from orchestrator.adapters.kube.resources import EVENTS, TRAINING_JOBS
from orchestrator.adapters.kube.status import last_told
from orchestrator.adapters.kube.watching import Watching
from orchestrator.apps.cli.render import log_line
from orchestrator.apps.kube.acting import Acting
from orchestrator.apps.kube.pod import EXIT_BUG, EXIT_SETUP, Pod, PodError
from orchestrator.apps.kube.reporting import StatusWriter, Told, passing
from orchestrator.apps.kube.supervising import Supervising
from orchestrator.core.job import Job
from orchestrator.core.timeouts import DETECT_WITHIN_MS, derive
from orchestrator.runtime.control import BadRequestError, ControlError, NotPossibleError, UnreachableError
from orchestrator.runtime.ports import LogLine
from orchestrator.spec.errors import SpecError
from orchestrator.spec.kube_values import ENV_WORKDIR
from orchestrator.spec.training_job import WORKDIR, from_training_job

ENV_SUPERVISOR: Final = "ORCHESTRATOR_SUPERVISOR"  # host:port of the control API, where it is not in this pod
READY_FILE: Final = "agent-ready"  # in the scratch folder: it has spoken to supervisor and API server
ALIVE_FILE: Final = "agent-alive"  # touched in each round
ROUND_S: Final = 1.0
RETRY_S: Final = 1.0
FOR_GOOD: Final = ("request is too large", "not declared in schema")  # said with a 500: of etcd's limit, and of an older CRD

log = logging.getLogger("agent")


class Agent:
    """One agent; `run` is its life."""

    def __init__(self, *, pod: Pod, access: Access, client: ControlClient, base_dir: str) -> None:
        self._pod = pod
        self._api = access.api
        self._client = client
        self._base_dir = base_dir
        self._stop = threading.Event()
        self._changed = threading.Event()
        self._watching = Watching(
            access,
            namespace=pod.namespace,
            job=pod.job,
            stop=self._stop,
            changed=self._changed.set,
            detect_within_ms=DETECT_WITHIN_MS,
        )

    def stop(self) -> None:
        """End `run` soon."""
        self._stop.set()
        self._changed.set()

    def thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        """A thread that a bug has ended would leave an agent that sees half of what happens: end, and be started again."""
        if not self._stop.is_set():
            log.critical("the thread %s has failed", failed.thread and failed.thread.name, exc_info=failed.exc_value)
            os._exit(EXIT_BUG)

    def run(self) -> None:
        """Until `stop`: submit or adopt the job, then report and act, round after round; quietly when the job is over."""
        self._watching.start()
        found = self._until_submitted()
        if found is None:
            return
        job, acting, detect_within_ms = found
        newest = last_told(job.get("status") or {})
        told = Told(self._api, about=self._object, pod=self._pod.name, newest=newest, stop=self._stop)
        supervising = Supervising(
            self._client,
            job=self._pod.job,
            after_seq=told.newest[0],
            detect_within_ms=detect_within_ms,
            scratch=self._pod.scratch,
            stop=self._stop,
            changed=self._changed.set,
            tell=told.tell,
            show=show,
        )
        supervising.start()
        writer = StatusWriter(self._api)
        ended_s: float | None = None
        grace_s = derive(detect_within_ms).measure_ms / 1000  # for the last decisions to be told before the end is written
        while not self._stop.is_set():
            self._touch(ALIVE_FILE)
            heard, picture = supervising.heard(), self._watching.picture()
            if heard.status is not None and picture.job is not None:
                if heard.status.phase.terminal:
                    ended_s = ended_s if ended_s is not None else time.monotonic()
                elif heard.reachable:
                    acting.act(picture, heard.status)
                ended = ended_s is not None and (heard.over or time.monotonic() - ended_s > grace_s)
                # what was heard before the supervisor went away is no news: whoever knows better may say so meanwhile
                if ended or (ended_s is None and heard.reachable):
                    digest = heard.digest if heard.status.phase.terminal else ""
                    pods = {p.address: p.name for p in picture.pods if p.address and not p.over and not p.gone}
                    scaling = acting.scaling(picture.job)
                    if writer.write(picture.job, heard.status, decision=told.newest, digest=digest, pods=pods, scaling=scaling):
                        self._touch(READY_FILE)
            self._changed.wait(ROUND_S)
            self._changed.clear()
            if not writer.final:
                self._stop.wait(ROUND_S / 5)  # news come in heaps
        supervising.close()

    def _until_submitted(self) -> tuple[Any, Acting, int] | None:
        """The TrainingJob, once the supervisor knows its job; None when we are told to stop before."""
        said, refused = "", False
        while not self._stop.is_set():
            self._touch(ALIVE_FILE)
            found = self._object()
            words = f"there is no {names.KIND} {self._pod.namespace}/{self._pod.job} yet, or nobody may see it"
            if found is not None:
                try:
                    job, recorded = self._job_of(found, anew=refused)
                    acting = Acting(self._client, job, agent=self._pod.name)
                    acting.adopt_or_submit(None if recorded else partial(self._record, found))
                    return found, acting, job.resilience.detect_within_ms
                except (SpecError, BadRequestError, NotPossibleError) as error:
                    refused, words = True, f"the job cannot be submitted: {error}"
                    if words != said:
                        self._tell(found, words)
                except ControlError as error:
                    refused, words = refused or not isinstance(error, UnreachableError), str(error)
                except KubeError as error:
                    words = f"the job is submitted once it can be written down with what spec: {error}"
            if words != said:
                said = words
                log.warning("%s", words)
            self._changed.wait(RETRY_S)
            self._changed.clear()
        return None

    def _job_of(self, found: Any, *, anew: bool) -> tuple[Job, bool]:
        """The job that was submitted, and True. What the spec says now, where no record of it can be read, or with `anew`: the
        supervisor would not take it, so that people have to put it right. Raises SpecError.
        """
        submitted = (found.get("status") or {}).get("submitted")
        if submitted is not None and not anew:
            with suppress(SpecError):  # another version of this program wrote it
                return from_training_job({**found, "spec": submitted}, base_dir=self._base_dir, begun=True)[0], True
        return from_training_job(found, base_dir=self._base_dir, begun=True)[0], False  # begun: else there was no pod

    def _record(self, found: Any) -> None:
        """Write into the status with what spec the job is submitted, so that an edit can be told from it. Raises KubeError."""
        meta = {key: found["metadata"][key] for key in ("name", "namespace", "uid")}
        body = {"metadata": meta, "status": {"submitted": found["spec"]}}
        try:
            self._api.apply(TRAINING_JOBS, body, manager=names.SUBMITTER, subresource="status")
        except KubeError as error:
            if passing(error) and not any(words in error.message for words in FOR_GOOD):
                raise
            log.error("with what spec the job is submitted cannot be written down, so nobody will be told of edits: %s", error)

    def _tell(self, about: Any, words: str) -> None:
        """As an Event too: as long as the supervisor has no job there are no decisions to be told."""
        made = event(
            dict(about), reason="NotSubmitted", message=words, warning=True, component=names.AGENT, now=datetime.now(UTC)
        )
        try:
            self._api.create(EVENTS, made)
        except KubeError as error:
            log.warning("that cannot be told as an Event: %s", error)

    def _object(self) -> Any:
        return self._watching.picture().job

    def _touch(self, name: str) -> None:
        (self._pod.scratch / name).touch()


def show(line: LogLine) -> None:
    """A worker's line, for `kubectl logs -f` and `orchestrator logs -f`."""
    print(log_line(line), flush=True)


def main() -> int:
    """Run it in a pod (or beside one). Returns 0 when it was told to stop."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="agent: %(asctime)s %(levelname)s %(message)s", force=True)
    try:
        pod = Pod.of(os.environ)
        token = pod.token(names.CONTROL_TOKEN)
        access = connect(Options(namespace=pod.namespace))
    except (PodError, ControlError) as error:
        log.error("%s", error)
        return EXIT_SETUP
    address = os.environ.get(ENV_SUPERVISOR) or f"{pod.address}:{names.CONTROL_PORT}"
    with ControlClient(address=address, token=token) as client:
        agent = Agent(pod=pod, access=access, client=client, base_dir=os.environ.get(ENV_WORKDIR) or WORKDIR)
        threading.excepthook = agent.thread_failed
        for number in (signal.SIGTERM, signal.SIGINT):
            # in a thread, for the main one may just hold the lock of an event that `stop` sets
            signal.signal(number, lambda *_: threading.Thread(target=agent.stop, daemon=True).start())
        log.info("serving TrainingJob %s/%s, supervisor at %s, API server at %s", pod.namespace, pod.job, address, access.server)
        agent.run()
    log.info("the agent ends, as it was told to")
    return 0


if __name__ == "__main__":
    sys.exit(main())
