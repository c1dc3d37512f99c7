"""The shape of a cluster file: groups of equal machines, what their devices and links can do, and how often they fail.

As in a job file each field has its bounds, its default and its explanation, which become the JSON Schema. Numbers carry their
units (quantities.py); devices and links that are well known go by name.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, WithJsonSchema, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from orchestrator.core.cluster.known import DEVICES, LINKS
from orchestrator.spec.errors import closest, quoted
from orchestrator.spec.model import NODES_MAX, SLOTS_MAX
from orchestrator.spec.quantities import Bandwidth, Bytes, Duration, Flops, Latency, Work
from orchestrator.spec.section import Section
from orchestrator.spec.values import JobName, refused

GROUPS_MAX = 1_000
TYPES_MAX = 100


def _known_link(name: str) -> str:
    if name in LINKS:
        return name
    nearest = "" if "/" in name else closest(name, LINKS)  # "25 GB/s" is no misspelt name
    fix = f"write {nearest}" if nearest else "write {bandwidth: 25 GB/s, latency: 10 us}"
    raise refused(f"{quoted(name)} is no known link", nearest=nearest, fix=fix, allowed=tuple(LINKS))


LinkName = Annotated[str, AfterValidator(_known_link), WithJsonSchema({"type": "string", "enum": list(LINKS)})]


class LinkSpec(Section):
    """A link, one direction. In the file it may also be just the name of a known one."""

    like: LinkName | None = Field(default=None, description="A known link, for what is not given here.")
    bandwidth: Bandwidth | None = Field(default=None, description="That one flow reaches. Absent: as `like` has it.")
    latency: Latency | None = Field(default=None, description="Of a small message. Absent: as `like` has it.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"like": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        section = handler.resolve_ref_schema(handler(core_schema))
        whole = dict(section)
        section.clear()
        section.update({"anyOf": [{"type": "string", "enum": list(LINKS)}, whole]})
        return section


class SharedLinkSpec(LinkSpec):
    """A link that several devices or machines share. In the file it may also be just the name of a known one."""

    total: Bandwidth | None = Field(
        default=None,
        description="Of all flows together. Absent: of a machine's network, what one flow reaches; of a rack's uplink, no limit.",
    )


class DeviceSpec(Section):
    """A kind of device that is not known by name. All rates are what a healthy one reaches, not a data sheet's peaks."""

    name: JobName = Field(description="What node groups call it.")
    kind: JobName = Field(description="cpu, cuda, npu, or a kind that a package of yours registers.")
    flops: Flops = Field(description="That large matrix products reach, in the precision of the job.")
    bandwidth: Bandwidth = Field(description="That elementwise work reaches on its memory, bytes read and written.")
    memory: Bytes = Field(description="What one rank may use.")
    half_flops: Work = Field(
        default="0 FLOP",
        description="Work of one layer and direction at which half of flops is reached; 0 FLOP: small work is as fast as large.",
    )


class NodeGroupSpec(Section):
    """Equal machines."""

    name: JobName = Field(default="node", description="Its machines are called <name>-0, <name>-1, ...")
    count: int = Field(default=1, ge=1, le=NODES_MAX, description="How many machines.")
    device: str = Field(description=f"A name out of `devices`, or a known device: {', '.join(DEVICES)}.")
    devices: int = Field(ge=1, le=SLOTS_MAX, description="Devices in each machine.")
    inside: LinkSpec = Field(description="Between two devices of one machine.")
    network: SharedLinkSpec = Field(description="From a device to another machine of its rack.")
    rack: JobName | None = Field(default=None, description="All of them stand in this rack (or at this switch).")
    nodes_per_rack: Annotated[int, Field(ge=1, le=NODES_MAX)] | None = Field(
        default=None,
        description="They stand in racks of so many, none shared with another group. Absent, and no rack either: one rack.",
    )
    pace: float = Field(
        default=1.0,
        ge=0.01,
        le=1_000,
        description="Seconds that they take for what takes a healthy device one; 2 is half as fast.",
    )
    failures_per_hour: Annotated[float, Field(ge=0, le=3_600)] | None = Field(
        default=None, description="Of each machine. Absent: from mtbf."
    )
    mtbf: Duration | None = Field(
        default=None, description="Mean time between two failures of one machine. Absent: it never fails."
    )
    healthy: bool = Field(default=True, description="false: they are there, and not used.")


class ClusterSpec(Section):
    """cluster.yaml: a cluster to plan for, whether it is there or not."""

    name: JobName = Field(description="What reports call it; a DNS label.")
    devices: Annotated[tuple[DeviceSpec, ...], Field(max_length=TYPES_MAX)] = Field(
        default=(), description="Devices that are not known by name."
    )
    nodes: tuple[NodeGroupSpec, ...] = Field(max_length=GROUPS_MAX, description="The machines, as groups of equal ones.")
    uplink: SharedLinkSpec | None = Field(
        default=None, description="From a rack to the others. Absent: as the network inside a rack, with no limit in all."
    )
