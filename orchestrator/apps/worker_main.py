"""The main of a worker process: engine, link and shell joined, then one life until it is told to end.

A fleet starts it with plain settings; the job travels as text, so a worker needs no file of the supervisor's machine. What it
prints goes to its own output and, line by line, to the supervisor's log of this worker.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping

from orchestrator.adapters.grpc.link import GrpcLink
from orchestrator.adapters.tcp.probe import Sign, sign_of
from orchestrator.core.codec import from_json
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import WorkerHello
from orchestrator.core.timeouts import derive
from orchestrator.runtime.cutoff import CutOff
from orchestrator.runtime.ports import Beat, WorkerCommand
from orchestrator.runtime.tee import LineTee
from orchestrator.runtime.worker import Link, WorkerShell, end_process

_collects = gc.isenabled()
gc.disable()  # most of what torch makes while it is loaded stays: looking through it hundreds of times takes half a second
try:
    import torch._dynamo  # noqa: F401  torch.optim loads it at its first step, in any case

    from orchestrator.engine.engine import TorchEngine
finally:
    if _collects:
        gc.enable()


def live(settings: Mapping[str, str], resolve: Callable[[], str | None]) -> None:
    """Live as a worker. Settings: job (JSON of core.codec), worker_id, node_id, endpoint, token, bind_host.

    `resolve` says where the supervisor is now, when the worker has lost it. Does not return: the process ends with the worker.
    """
    job: Job = from_json(Job, json.loads(settings["job"]))
    timeouts = derive(job.resilience.detect_within_ms)
    links: list[GrpcLink] = []

    def make_link(
        *,
        hello: Callable[[], WorkerHello],
        pulse: Callable[[], Beat],
        on_command: Callable[[WorkerCommand], None],
        on_refused: Callable[[str], None],
    ) -> Link:
        link = GrpcLink(
            worker_id=settings["worker_id"],
            endpoint=settings["endpoint"],
            token=settings["token"],
            timeouts=timeouts,
            hello=hello,
            pulse=pulse,
            on_command=on_command,
            on_refused=on_refused,
            resolve=resolve,
        )
        links.append(link)
        gc.collect()
        gc.freeze()  # the engine is warm: all that is imported and built stays, and to look through it once takes 0.2 s
        return link

    def sign_of_supervisor(limit_ms: int) -> Sign:
        return sign_of(links[0].endpoint if links else settings["endpoint"], limit_ms)

    engine = TorchEngine(
        job,
        settings["bind_host"],
        may_commit=lambda: sign_of_supervisor(timeouts.lost_ms) is Sign.ACCEPTS,
    )
    shell = WorkerShell(
        worker_id=settings["worker_id"],
        node_id=settings["node_id"],
        engine=engine,
        make_link=make_link,
        timeouts=timeouts,
        end=end_process,
        parent_pid=os.getppid(),
    )
    CutOff(
        pulse=engine.pulse,
        epoch=shell.inside,
        answers=lambda limit_ms: sign_of_supervisor(limit_ms) is not Sign.MUTE,
        fence=shell.cut_off,
        timeouts=timeouts,
    ).start()
    sys.stdout = LineTee(sys.stdout, shell.log)
    sys.stderr = LineTee(sys.stderr, shell.log)
    shell.run()


if __name__ == "__main__":  # a worker as a plain process: its settings come as JSON on standard input
    live(json.load(sys.stdin), lambda: None)
