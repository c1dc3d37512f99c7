"""The edge where a cluster file becomes Resources: clusters that are not there can be planned for like those that are.

The models say what each field alone may be (cluster_model.py); here are the rules between fields, judged once each field is
right, and the groups are counted out into machines. Errors are those of a job file: place, path, nearest known word, fix.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.core.cluster.known import DEVICES, LINKS
from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.spec.cluster_model import ClusterSpec, DeviceSpec, LinkSpec, NodeGroupSpec, SharedLinkSpec
from orchestrator.spec.document import Document, Path
from orchestrator.spec.errors import Problem, SpecError, closest, quoted
from orchestrator.spec.explain import problem_at
from orchestrator.spec.quantities import Dimension, amount
from orchestrator.spec.reading import parse_as, text_of
from orchestrator.spec.schema_export import render_model

MACHINES_MAX = 10_000
DEVICES_MAX = 65_536


def load_cluster(path: str | os.PathLike[str]) -> Resources:
    """Read a cluster file. Raises SpecError with all problems, nothing else."""
    file = os.fspath(path)
    return load_cluster_text(text_of(file, kind="cluster", absent="take one of examples/clusters to start from"), file=file)


def load_cluster_text(text: str, *, file: str = "<text>") -> Resources:
    """Read a cluster from text. `file` only names it in messages. Raises SpecError with all problems, nothing else."""
    spec, document = parse_as(ClusterSpec, text, file=file)
    problems = list(_contradictions(spec, document))
    if problems:
        raise SpecError(problems)
    return _resources(spec)


def render() -> str:
    """The JSON Schema of cluster files: `python -m orchestrator.spec.cluster_file`; docs/cluster.schema.json holds it."""
    return render_model(ClusterSpec, title="cluster.yaml")


# ------------------------------------------------------------------------------------------------------------------- rules


def _contradictions(spec: ClusterSpec, document: Document) -> Iterator[Problem]:
    def problem(path: Path, message: str, fix: str, **more: Any) -> Problem:
        return problem_at(path, document, message=message, fix=fix, **more)

    if not spec.nodes:
        yield problem(("nodes",), "must hold a group", "list at least one group of machines")
    for n, device in enumerate(spec.devices):
        if device.name in [other.name for other in spec.devices[:n]]:
            yield problem(("devices", n, "name"), f"{quoted(device.name)} is there already", "give each device its own name")
    known = tuple(dict.fromkeys([*(device.name for device in spec.devices), *DEVICES]))
    for n, group in enumerate(spec.nodes):
        here: Path = ("nodes", n)
        if group.device not in known:
            nearest = closest(group.device, known)
            fix = f"write {nearest}" if nearest else "describe it under devices"
            yield problem((*here, "device"), f"{quoted(group.device)} is no known device", fix, nearest=nearest, allowed=known)
        yield from _incomplete(group.inside, (*here, "inside"), problem)
        yield from _incomplete(group.network, (*here, "network"), problem)
        if group.rack is not None and group.nodes_per_rack is not None:
            yield problem((*here, "nodes_per_rack"), "contradicts rack", "remove one of the two", of_key=True)
        if group.mtbf is not None and group.failures_per_hour is not None:
            yield problem((*here, "mtbf"), "contradicts failures_per_hour", "remove one of the two", of_key=True)
    if spec.uplink is not None:
        yield from _incomplete(spec.uplink, ("uplink",), problem)
    machines = sum(group.count for group in spec.nodes)
    devices = sum(group.count * group.devices for group in spec.nodes)
    if machines > MACHINES_MAX:
        yield problem(("nodes",), f"{machines} machines are too many", f"keep it within {MACHINES_MAX}", of_key=True)
    elif devices > DEVICES_MAX:
        yield problem(("nodes",), f"{devices} devices are too many", f"keep it within {DEVICES_MAX}", of_key=True)


def _incomplete(link: LinkSpec, path: Path, problem: Callable[..., Problem]) -> Iterator[Problem]:
    """What a link lacks, and a total below what one of its flows reaches."""
    if link.like is None:
        for key, example in (("bandwidth", "25 GB/s"), ("latency", "10 us")):
            if getattr(link, key) is None:
                yield problem((*path, key), "required key is missing", f'add "{key}: {example}", or "like:" with a known link')
                return
    if isinstance(link, SharedLinkSpec) and link.total is not None:
        one = _link(link).bandwidth
        if amount(link.total, Dimension.BANDWIDTH) < one * (1 - 1e-9):
            message = f"must be at least what one flow reaches, {one / 1e9:g} GB/s, not {link.total}"
            yield problem((*path, "total"), message, "raise it, or lower bandwidth")


# --------------------------------------------------------------------------------------------------------------- resources


def _resources(spec: ClusterSpec) -> Resources:
    own = {device.name: _device(device) for device in spec.devices}
    used = dict.fromkeys(group.device for group in spec.nodes)
    return Resources(
        name=spec.name,
        types=tuple(own.get(name) or DEVICES[name] for name in used),
        nodes=tuple(_nodes(spec.nodes)),
        uplink=None if spec.uplink is None else _link(spec.uplink),
        uplink_total=0.0 if spec.uplink is None or spec.uplink.total is None else amount(spec.uplink.total, Dimension.BANDWIDTH),
    )


def _nodes(groups: tuple[NodeGroupSpec, ...]) -> Iterator[NodeResources]:
    named: dict[str, int] = {}  # machines of each name so far: groups may share one
    racks = 0
    for group in groups:
        inside, network = _link(group.inside), _link(group.network)
        total = network.bandwidth if group.network.total is None else amount(group.network.total, Dimension.BANDWIDTH)
        for i in range(group.count):
            number = named.get(group.name, 0)
            named[group.name] = number + 1
            rack = group.rack or ""
            if group.nodes_per_rack is not None:
                rack = f"#{racks + i // group.nodes_per_rack}"  # no name that a file may hold
            yield NodeResources(
                node_id=f"{group.name}-{number}",
                device=group.device,
                devices=group.devices,
                rack=rack,
                inside=inside,
                network=network,
                network_total=max(total, network.bandwidth),
                pace=group.pace,
                failures_per_hour=_failures_per_hour(group),
                healthy=group.healthy,
            )
        racks += 0 if group.nodes_per_rack is None else -(-group.count // group.nodes_per_rack)


def _failures_per_hour(group: NodeGroupSpec) -> float:
    if group.mtbf is not None:
        return 3600.0 / amount(group.mtbf, Dimension.DURATION)
    return group.failures_per_hour or 0.0


def _link(link: LinkSpec) -> Link:
    like = None if link.like is None else LINKS[link.like]
    bandwidth = amount(link.bandwidth, Dimension.BANDWIDTH) if link.bandwidth is not None else like.bandwidth if like else 0.0
    latency = amount(link.latency, Dimension.LATENCY) if link.latency is not None else like.latency_s if like else 0.0
    return Link(bandwidth=bandwidth, latency_s=latency)


def _device(device: DeviceSpec) -> DeviceType:
    return DeviceType(
        name=device.name,
        kind=device.kind,
        flops=amount(device.flops, Dimension.FLOPS),
        bandwidth=amount(device.bandwidth, Dimension.BANDWIDTH),
        memory_bytes=int(amount(device.memory, Dimension.BYTES)),
        half_flops=amount(device.half_flops, Dimension.WORK),
    )


if __name__ == "__main__":
    sys.stdout.write(render())
