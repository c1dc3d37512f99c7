"""What a worker measures of itself before the planner chooses: its links, its device, and what the model takes on it.

All workers of a job do so at once and without a rank, links first because those need two of them; so devices of one machine are
measured sharing it, as in training. Each part has its share of the time there is; the supervisor waits for twice as long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from orchestrator.core.cluster.measured import WorkerMeasure, type_name
from orchestrator.core.cluster.rounds import rounds
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.supervisor.commands import MeasureWorker
from orchestrator.engine.devices import kind_of
from orchestrator.engine.probe import ProbeStopped, measure_device
from orchestrator.engine.probe_links import measure_links
from orchestrator.engine.profile import with_timings
from orchestrator.engine.rank_state import Body

LINKS_SHARE, DEVICE_SHARE, MODEL_SHARE = 0.3, 0.2, 0.3  # of the time there is; the rest is for what takes longer than it should

log = logging.getLogger(__name__)


def measure_worker(
    order: MeasureWorker, body: Body, costs: ModelCosts, *, bind_host: str, limit_s: float, stop: Callable[[], bool]
) -> tuple[WorkerMeasure, ModelCosts] | None:
    """The measure, and the costs with timings of this device; None when `stop` said yes. Takes less than `limit_s` as a rule.

    `body` is in no epoch; its gradients and buffers are as before afterwards. Raises TaskError.
    """
    began = time.monotonic()
    me = next(n for n, w in enumerate(order.workers) if w.worker_id == order.worker_id)
    job = body.job
    links = measure_links(
        rounds([w.node_id for w in order.workers]),
        me=me,
        workers=[(w.worker_id, w.endpoint) for w in order.workers],
        backend=kind_of(job.cluster.device.value).backend,
        device=body.device,
        bind_host=bind_host,
        epoch=order.epoch,
        number=order.number,
        seconds=LINKS_SHARE * limit_s,
        stop=stop,
    )
    for link in links:
        if link.problem:
            log.warning("the link from %s to %s was not measured: %s", link.senders, link.receivers, link.problem)
    try:
        device = measure_device(
            body.device,
            slots=job.cluster.slots_per_node,
            precision=job.train.precision,
            seconds=DEVICE_SHARE * limit_s,
            stop=stop,
        )
    except ProbeStopped:
        return None
    timed = with_timings(
        costs,
        job,
        device_name=type_name(device.kind, device.model),
        limit_s=MODEL_SHARE * limit_s,
        stop=stop,
        task=body.task,
        module=body.module,
        to_device=body.to_device,
    )
    log.info("measured in %.1f s", time.monotonic() - began)
    return None if stop() else (WorkerMeasure(device, links), timed)
