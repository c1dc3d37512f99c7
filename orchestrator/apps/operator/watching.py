"""kopf tells of every change of a TrainingJob or of a pod that belongs to one; what to do about it is looked up afresh.

Of kopf only the watching is used: its handlers here keep nothing in annotations, add no finalizers and post no events. It ends
for good where a watch is refused (a right is missing, the CRD is removed), so it is started again, after a pause.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import kopf

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeApi, KubeError
from orchestrator.adapters.kube.resources import TRAINING_JOBS
from orchestrator.apps.operator.lease import CALL_S
from orchestrator.apps.operator.status import CHECKPOINTED, FAILED
from orchestrator.core.timeouts import DETECT_WITHIN_MS, derive

PAUSE_S: Final = derive(DETECT_WITHIN_MS).suspect_ms / 1000
STREAM_S: Final = derive(DETECT_WITHIN_MS).prove_ms // 2000  # whole seconds: then a watch is opened again where it ended
STOP_LOOK_S: Final = 0.2
RETRIES_S: Final = (0.5, 1.0, 2.0, 2.0)

log = logging.getLogger(__name__)

Wake = Callable[[tuple[str, str]], None]


def watch(api: KubeApi, *, namespace: str, wake: Wake, stop: threading.Event) -> None:
    """Until `stop`; an empty namespace means all. In a thread of its own, which leaves signals to the main thread."""
    said = ""
    while not stop.is_set():
        try:
            if api.serves(TRAINING_JOBS):
                said = ""
                _run(api, namespace=namespace, wake=wake, stop=stop)
                words = ""
            else:
                words = f"the API server does not know {names.PLURAL}.{names.GROUP}; fix: kubectl apply -k manifests/crd"
        except KubeError as error:
            words = f"the API server cannot be asked: {error}"
        except Exception as error:  # whatever ended kopf; kept apart from the turns, which go on by their own clocks
            words = f"watching ended, and begins again: {error}"
        if words and words != said:
            said = words
            log.warning("%s", words)
        stop.wait(PAUSE_S)


def _run(api: KubeApi, *, namespace: str, wake: Wake, stop: threading.Event) -> None:
    registry = kopf.OperatorRegistry()
    seen: dict[tuple[str, str], object] = {}

    async def job_changed(type: str | None, body: kopf.Body, name: str | None, namespace: str | None, **_: Any) -> None:
        key = (namespace or "", name or "")
        news = None if type == "DELETED" else _news(body)
        if seen.get(key) == news:  # how training goes is reported every second, and nothing for us
            return
        if news is None:
            del seen[key]
        else:
            seen[key] = news
        wake(key)

    async def pod_changed(labels: kopf.Labels, namespace: str | None, **_: Any) -> None:
        wake((namespace or "", labels[names.LABEL_JOB]))

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return _credentials(api)

    kopf.on.login(registry=registry)(login)
    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)(job_changed)
    kopf.on.event("", "v1", "pods", labels={names.LABEL_JOB: kopf.PRESENT}, registry=registry)(pod_changed)
    scope: dict[str, Any] = {"namespaces": [namespace]} if namespace else {"clusterwide": True}

    async def run() -> None:
        flag = asyncio.Event()
        checking = asyncio.create_task(_set_with(flag, stop))
        try:
            await kopf.operator(registry=registry, settings=_settings(), standalone=True, stop_flag=flag, **scope)
        finally:
            checking.cancel()

    asyncio.run(run())


async def _set_with(flag: asyncio.Event, stop: threading.Event) -> None:
    """kopf would wait for a threading.Event in a thread, and not end without it."""
    while not stop.is_set():  # noqa: ASYNC110 - what is waited for is set by another thread
        await asyncio.sleep(STOP_LOOK_S)
    flag.set()


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # no rights to watch CRDs and namespaces
    settings.posting.enabled = False
    settings.networking.error_backoffs = RETRIES_S
    settings.networking.request_timeout = CALL_S
    settings.networking.connect_timeout = CALL_S
    settings.watching.server_timeout = STREAM_S
    settings.watching.inactivity_timeout = 2 * STREAM_S
    settings.watching.label_selectors["", "v1", "pods"] = names.LABEL_JOB
    settings.process.ultimate_exiting_timeout = None  # it would kill the whole process
    return settings


def _credentials(api: KubeApi) -> kopf.ConnectionInfo:
    """As our own calls are made; asked for again when a token has expired."""
    config = api.client.configuration
    scheme, _, token = (config.get_api_key_with_prefix("BearerToken") or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=config.host,
        ca_path=config.ssl_ca_cert,
        insecure=not config.verify_ssl,
        username=config.username or None,
        password=config.password or None,
        scheme=scheme or None,
        token=token or None,
        certificate_path=config.cert_file,
        private_key_path=config.key_file,
    )


def _news(body: kopf.Body) -> object:
    """What of a TrainingJob, as others write it, is a reason to look at it."""
    meta, status = body.get("metadata", {}), body.get("status", {})
    told = [
        (c.get("type"), c.get("status"), c.get("observedGeneration"))
        for c in status.get("conditions") or []
        if c.get("type") in (CHECKPOINTED, FAILED)
    ]
    return (
        meta.get("uid"),
        meta.get("generation"),
        meta.get("deletionTimestamp"),
        tuple(meta.get("finalizers") or ()),
        status.get("phase"),
        "submitted" in status,
        status.get("nodes"),
        status.get("nodesRefused"),
        tuple(told),
    )
