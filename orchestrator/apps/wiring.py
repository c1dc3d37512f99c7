"""The only place that knows concrete classes: how a person's command reaches a supervisor, and starts one where there is none.

`start_local` makes a whole cluster on this machine, `attach` joins one that runs, `find` talks to a supervisor that is up, and
`down` ends what `start_local` made, also after its launcher died.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from orchestrator.adapters.files.home import ClusterEndpoint, Home
from orchestrator.adapters.files.journal import JournalDamaged, SqliteJournal
from orchestrator.adapters.files.token import ensure_token, put_token, read_token
from orchestrator.adapters.grpc.client import CALL_MS, ControlClient
from orchestrator.core.cluster.measured import failure_rates, type_name
from orchestrator.core.cluster.resources import DeviceType, NodeResources, Resources
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.runtime.control import ControlError
from orchestrator.runtime.entry import CLUSTER_FILE, put_past
from orchestrator.runtime.ports import CheckpointTools
from orchestrator.runtime.replay import replay

if TYPE_CHECKING:
    from orchestrator.adapters.ray.local_cluster import LocalCluster

SUPERVISOR_START_MS = 60_000
LOCAL = "local"
LOCAL_COSTS_S = 3.0
LOCAL_PROBE_S = 1.0

Progress = Callable[[str], None]


class NotRunning(Exception):
    """There is no supervisor to talk to; the message says what to do."""


class Session:
    """A connection to a supervisor. `stop` ends everything that this session started, and nothing else."""

    def __init__(self, *, client: ControlClient, address: str, end: Callable[[], None] = lambda: None) -> None:
        self.client = client
        self.address = address
        self._end = end
        self._stopped = False

    def stop(self) -> None:
        """End it; idempotent."""
        if not self._stopped:
            self._stopped = True
            self.client.close()
            self._end()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def start_local(job: Job, *, home: Path, cluster: str = LOCAL, on_progress: Progress) -> Session:
    """An embedded cluster with the job's nodes and spares on this machine, and a supervisor on it.

    Raises NotRunning when one runs under this name already, and the cluster's own error when it cannot be started; then
    nothing is left running.
    """
    from orchestrator.adapters.ray import connection
    from orchestrator.adapters.ray.local_cluster import LocalCluster

    place = Home(home)
    local = LocalCluster(
        nodes=job.cluster.nodes + job.cluster.spares,
        slots_per_node=job.cluster.slots_per_node,
        run_dir=place.cluster(cluster),
    )
    if local.node_ids:
        raise NotRunning(f"the cluster {cluster} of {home} runs already: use it (status, cancel) or end it (orchestrator down)")
    _clean(place, cluster)
    _put_aside(place, cluster, keep=job.name, on_progress=on_progress)
    on_progress(f"starting an embedded Ray cluster of {job.cluster.nodes} nodes and {job.cluster.spares} spare(s)")
    try:
        local.start(on_progress)
        address = local.address
        connection.connect(address, token_path=local.token_path)
        try:
            on_progress("starting the supervisor")
            endpoint, token = _supervisor(place, cluster, address, loopback=True)
        finally:
            connection.disconnect()
    except BaseException:
        _end_local(place, cluster, local)
        raise
    client = ControlClient(address=endpoint, token=token)
    return Session(client=client, address=endpoint, end=lambda: _end_local(place, cluster, local))


def attach(address: str, *, home: Path, on_progress: Progress) -> Session:
    """The supervisor of an existing Ray cluster (host:port, or `auto`); it is started where there is none yet."""
    from orchestrator.adapters.ray import connection

    place = Home(home)
    cluster = re.sub(r"[^a-z0-9]+", "-", f"ray-{address}".lower()).strip("-")[:63]
    on_progress(f"joining the Ray cluster at {address}")
    connection.connect(address)
    try:
        endpoint, token = _supervisor(place, cluster, address, loopback=False)
    finally:
        connection.disconnect()
    place.write_endpoint(cluster, ClusterEndpoint(endpoint, address, 0))
    return Session(client=ControlClient(address=endpoint, token=token), address=endpoint)


def find(*, home: Path, cluster: str | None, timeout_ms: int = CALL_MS) -> Session:
    """A running supervisor. Without a name there must be exactly one. Raises NotRunning."""
    place = Home(home)
    name = cluster or _only_cluster(place)
    try:
        endpoint = place.read_endpoint(name)
        token = read_token(place.token_file(name))
    except (OSError, ValueError) as error:
        raise NotRunning(f"the cluster {name} of {home} cannot be reached: {error}") from error
    if endpoint is None:
        raise NotRunning(f"no supervisor of a cluster {name} runs in {home}; start a job with `orchestrator run job.yaml`")
    client = ControlClient(address=endpoint.address, token=token, timeout_ms=timeout_ms)
    return Session(client=client, address=endpoint.address)


def checkpoint_tools() -> CheckpointTools:
    """Looks at checkpoints from this process."""
    from orchestrator.engine.checkpoint_tools import Tools

    return Tools()


def checkpoint_uri(job: str, *, home: Path) -> str:
    """Where a job of this home has its checkpoints, as its journal says; "" when it has none or is not known here."""
    try:
        journal = SqliteJournal(Home(home).jobs / job, read_only=True)
    except FileNotFoundError:
        return ""
    try:
        return journal.job().checkpoint.uri if journal.exists else ""
    finally:
        journal.close()


def down(*, home: Path, cluster: str | None) -> list[str]:
    """End every recorded cluster (or the one named), and say what was ended. A cluster that is not ours is left running."""
    from orchestrator.adapters.ray.local_cluster import stop_recorded

    place = Home(home)
    ended = []
    for name in [cluster] if cluster else _clusters(place):
        endpoint = place.read_endpoint(name)
        heard = endpoint is not None and _shut_down(home, name)
        killed = stop_recorded(place.cluster(name))
        if killed:
            ended.append(f"cluster {name}: {killed} processes")
        elif endpoint is not None:
            what = "was asked to end" if heard else "does not answer, it is only forgotten"
            ended.append(f"cluster {name}: its supervisor at {endpoint.address} {what}")
        _clean(place, name)
    return ended


def describe(job: Job) -> GraphView:
    """What the job's model consists of. Raises TaskError."""
    from orchestrator.engine.describe import describe as of

    return of(job)


def local_costs(job: Job, *, limit_s: float = LOCAL_COSTS_S) -> ModelCosts:
    """What the job's model costs, each kind of layer timed on this machine.

    Raises TaskError, and DeviceUnavailable where this machine has no device of the job's kind.
    """
    from orchestrator.engine.costs import trace
    from orchestrator.engine.devices import kind_of, model_of, torch_device
    from orchestrator.engine.profile import with_timings

    device = torch_device(kind_of(job.cluster.device.value))
    costs = trace(job)
    return with_timings(costs, job, device_name=type_name(device.type, model_of(device)), limit_s=limit_s)


def traced_costs(job: Job) -> ModelCosts:
    """What the job's model costs in FLOPs and bytes; needs no device. Raises TaskError."""
    from orchestrator.engine.costs import trace

    return trace(job)


def local_resources(job: Job) -> Resources:
    """The cluster that the job asks for, every node as this machine is: its device, and TCP over its loopback as the network.

    Raises DeviceUnavailable where this machine has no such device.
    """
    from orchestrator.adapters.tcp.loopback import loopback_link
    from orchestrator.engine.devices import kind_of, torch_device
    from orchestrator.engine.probe import measure_device

    c = job.cluster
    device = measure_device(
        torch_device(kind_of(c.device.value)),
        slots=c.slots_per_node * c.nodes,
        precision=job.train.precision,
        seconds=LOCAL_PROBE_S,
    )
    link = loopback_link()
    kind = DeviceType(
        type_name(device.kind, device.model), device.kind, device.flops, device.bandwidth, device.memory_bytes, device.half_flops
    )
    nodes = [f"node-{n + 1}" for n in range(c.nodes)]
    rates = failure_rates(dict.fromkeys(nodes, kind.name), losses={}, hours={})
    return Resources(
        name="this machine, as often as the job asks for",
        types=(kind,),
        nodes=tuple(
            NodeResources(n, kind.name, c.slots_per_node, "", link, link, link.bandwidth, failures_per_hour=rates[n])
            for n in nodes
        ),
    )


def _supervisor(place: Home, cluster: str, ray_address: str, *, loopback: bool) -> tuple[str, str]:
    from orchestrator.adapters.ray.supervisor_actor import ensure_supervisor
    from orchestrator.apps.ray_supervisor import SUPERVISOR_MAIN

    token = ensure_token(place.token_file(cluster))
    settings = {
        "home": str(place.root),
        "cluster": cluster,
        "ray_address": ray_address,
        "token": token,
        "loopback": "1" if loopback else "0",
    }
    endpoint, kept = ensure_supervisor(SUPERVISOR_MAIN, settings, timeout_ms=SUPERVISOR_START_MS)
    if kept["token"] != token:  # it was launched from another machine, with that one's token
        put_token(place.token_file(cluster), kept["token"])
    return endpoint, kept["token"]


def _shut_down(home: Path, cluster: str) -> bool:
    """Ask the supervisor to end; whether it was heard."""
    try:
        with find(home=home, cluster=cluster) as session:
            session.client.shutdown(who="orchestrator down")
    except (NotRunning, ControlError):
        return False
    return True


def _put_aside(place: Home, cluster: str, *, keep: str, on_progress: Progress) -> None:
    """Jobs that an earlier cluster of this name left unfinished when it died: the one to be run goes on, the others must not
    take its nodes. Their folders move to jobs/.past; run again, they resume from their newest checkpoint. So does any folder
    whose journal this version cannot read.
    """
    for folder in sorted(p for p in place.jobs.iterdir() if p.is_dir() and not p.name.startswith(".")):
        owner = folder / CLUSTER_FILE
        if not owner.is_file() or owner.read_text(encoding="utf-8").strip() != cluster:
            continue
        try:
            journal = SqliteJournal(folder, read_only=True)
        except JournalDamaged as error:
            on_progress(f"the journal of job {folder.name} cannot be read ({error}): it is now in {put_past(folder)}")
            continue
        try:
            state = replay(journal).state if journal.exists else None
        finally:
            journal.close()
        if folder.name != keep and (state is None or not state.phase.terminal):
            aside = put_past(folder)
            on_progress(f"job {folder.name} was left unfinished by an earlier cluster: its journal is now in {aside}")


def _end_local(place: Home, cluster: str, local: LocalCluster) -> None:
    local.stop()
    _clean(place, cluster)


def _clean(place: Home, cluster: str) -> None:
    """Forget an embedded cluster that is gone; its logs stay."""
    place.remove_endpoint(cluster)
    shutil.rmtree(place.cluster(cluster) / "cluster" / "ray", ignore_errors=True)


def _clusters(place: Home) -> list[str]:
    folder = place.root / "clusters"
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _only_cluster(place: Home) -> str:
    running = [name for name in _clusters(place) if place.endpoint_file(name).exists()]
    if len(running) != 1:
        told = (
            f"several run: {', '.join(running)}; name one with --cluster"
            if running
            else "none runs; start one with `orchestrator run job.yaml`"
        )
        raise NotRunning(f"no cluster to talk to in {place.root}: {told}")
    return running[0]
