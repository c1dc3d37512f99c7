"""Public models on public clusters, as far as they are public: what `bench.plan_rules` plans for.

Models and some clusters are those of examples/, each of which names its source; the others are written here. Numbers of devices
and batches are from the papers; what a paper does not say (mostly the network of a machine) is marked "assumed". Machines never
fail here, so that the goodput is 1 and the step time decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.core.cluster.resources import Resources
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.planner.cost.programs import MEGATRON
from orchestrator.core.planner.strategy import Problem, Reliability, Space
from orchestrator.spec.cluster_file import load_cluster, load_cluster_text
from orchestrator.spec.model_file import load_model

EXAMPLES = Path(__file__).parents[1] / "examples"
TITAN, TITAN_NPU, TWO_SPEED = "ERNIE 3.0 Titan, V100", "ERNIE 3.0 Titan, Ascend 910", "GPT-NeoX-20B, two speeds"


@dataclass(frozen=True, slots=True)
class Case:
    """A problem with where it is from."""

    name: str
    source: str
    problem: Problem


def problem(costs: ModelCosts, resources: Resources, batch: int) -> Problem:
    """With what Megatron offers: ZeRO-0 and 1, any schedule, micro-batches of up to 8 sequences, no copies."""
    return Problem(
        costs=costs,
        resources=replace(resources, nodes=tuple(replace(n, failures_per_hour=0.0) for n in resources.nodes)),
        program=MEGATRON,
        batch=batch,
        space=Space(units=(1, 2, 4, 8), zeros=(0, 1), copies=(0,)),
        reliability=Reliability(detect_s=30.0, restart_s=60.0, checkpoint_s=30.0, load_s=300.0),
    )


def machines(name: str, count: int, device: str, network: str, total: str) -> Resources:
    """Machines of eight devices with NVLink; `network` is one adapter, `total` what all of a machine's reach."""
    inside = "nvlink2" if device.startswith("v100") else "nvlink3"
    return load_cluster_text(
        f"name: {name}\nnodes:\n"
        f"  - {{count: {count}, device: {device}, devices: 8, inside: {inside}, network: {{like: {network}, total: {total}}}}}\n"
    )


def _model(name: str) -> ModelCosts:
    return load_model(EXAMPLES / "models" / f"{name}.yaml")


def _cluster(name: str) -> Resources:
    return load_cluster(EXAMPLES / "clusters" / f"{name}.yaml")


def cases() -> tuple[Case, ...]:
    """All of them."""
    titan = _model("ernie-titan-260b")
    return (
        Case(
            "GPT-3 175B",
            "arXiv 2104.04473: 768 A100-80G, batch 1536; one HDR adapter per device (section 5)",
            problem(_model("gpt3-175b"), machines("selene", 96, "a100-80g", "hdr", "160 GB/s"), 1536),
        ),
        Case(
            "BLOOM 176B",
            "arXiv 2211.05100: 48 machines of 8 A100-80G with four links of 100 Gbit/s, batch 2048",
            problem(_model("bloom-176b"), machines("jean-zay", 48, "a100-80g", "edr", "40 GB/s"), 2048),
        ),
        Case(
            "OPT-175B",
            "arXiv 2205.01068: 992 A100-80G, batches of 2 M tokens; one HDR adapter per device assumed",
            problem(_model("opt-175b"), machines("opt", 124, "a100-80g", "hdr", "160 GB/s"), 1024),
        ),
        Case(
            "LLaMA-65B",
            "arXiv 2302.13971: 2048 A100-80G, batches of 4 M tokens; one HDR adapter per device assumed",
            problem(_model("llama-65b"), machines("llama", 256, "a100-80g", "hdr", "160 GB/s"), 2048),
        ),
        Case(
            "GPT-NeoX-20B",
            "arXiv 2204.06745: 12 machines of 8 A100-40G with four adapters, HDR assumed; batches of 1538 sequences, here 1536",
            problem(_model("gpt-neox-20b"), machines("neox", 12, "a100-40g", "hdr", "80 GB/s"), 1536),
        ),
        Case(
            TITAN,
            "arXiv 2112.12731 and examples/clusters/titan-v100.yaml; batch 2048 assumed",
            problem(titan, _cluster("titan-v100"), 2048),
        ),
        Case(
            TITAN_NPU,
            "arXiv 2112.12731 and examples/clusters/ascend-910.yaml; batch 2048 assumed",
            problem(titan, _cluster("ascend-910"), 2048),
        ),
        Case(
            TWO_SPEED,
            "made up: 8 machines with A100-80G, 8 with V100-32G of which one has become slow (examples/clusters/two-speed.yaml)",
            problem(_model("gpt-neox-20b"), _cluster("two-speed"), 1536),
        ),
    )
