"""`make promises ARGS=--published`: the cost model against published step times of other people's runs, without any training.

Each run is described by what was published of it (bench/published_cases.py) and predicted by the same `estimate` that plans our
jobs, with the program it was run by and machines by their data sheets (core/cluster/known.py). No constant is fitted to a row of
these tables, so none is set apart for that; what was looked at is said in PROVENANCE, which is printed with the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from statistics import median

from bench.harness import say
from bench.published_cases import MEGATRON_CASES, OTHER_CASES, OUT_OF_MEMORY, SEQUENCE, Case
from orchestrator.core.cluster.known import DEVICES, LINKS
from orchestrator.core.cluster.resources import Link, NodeResources, Resources
from orchestrator.core.graph.transformer import Attention, Blocks, Transformer, transformer_costs
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.estimate import estimate
from orchestrator.core.planner.cost.programs import DEEPSPEED, MEGATRON
from orchestrator.core.planner.strategy import Estimate, Problem, Program, Reliability, Space, Strategy

WITHIN = 0.15
PER_NODE = 8
GIB = 2.0**30
GB = 1e9
PROGRAMS: Mapping[str, Program] = {p.name: p for p in (MEGATRON, DEEPSPEED)}
PROVENANCE = """\
Provenance of the constants: peak rates, bandwidths, and the share of them that is reachable are those of core/cluster/known.py (data
sheets, cuBLAS and nccl-tests figures), the programs' bytes those of core/planner/cost/programs.py. None was fitted to these rows."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table."""

    case: Case
    estimate: Estimate

    @property
    def error(self) -> float:
        """Relative, positive where the prediction is too slow."""
        return self.estimate.step_s / self.case.measured_s - 1

    @property
    def peak_bytes(self) -> float:
        """Of the fullest device."""
        return max(m.total for m in self.estimate.memory)


@lru_cache(maxsize=64)
def cluster(name: str, nodes: int) -> Resources:
    """Nodes of eight A100 of 80 GB: NVIDIA's Selene, or Jean Zay's partition for BLOOM."""
    if name == "selene":  # arXiv 2104.04473 section 5: eight HDR adapters beside those for storage
        link, adapters = LINKS["hdr"], PER_NODE
    else:  # arXiv 2211.05100 section 3.4: four Omni-Path links of 100 Gbit/s; the rate of EDR
        link, adapters = LINKS["edr"], 4
    return Resources(
        name=name,
        types=(DEVICES["a100-80g"],),
        nodes=tuple(
            NodeResources(
                node_id=f"n{k}",
                device="a100-80g",
                devices=PER_NODE,
                rack="",
                inside=LINKS["nvlink3"],
                network=Link(link.bandwidth, link.latency_s),
                network_total=link.bandwidth * adapters,
            )
            for k in range(nodes)
        ),
    )


def problem_of(case: Case) -> Problem:
    """What was trained, on what."""
    model = Transformer(
        name=case.name,
        blocks=Blocks(name="block", layers=case.layers, hidden=case.hidden, heads=case.heads),
        vocabulary=case.vocabulary,
        sequence=SEQUENCE,
        positions=case.positions,
        tied=case.tied,
        dropout=case.dropout,
        attention=Attention.RECOMPUTED if case.selective else Attention.MATERIALISED,
        sequence_parallel=case.selective,
    )
    return Problem(
        costs=transformer_costs(model),
        resources=cluster(case.cluster, -(-case.devices // PER_NODE)),
        program=PROGRAMS[case.program],
        batch=case.batch,
        space=Space(),
        reliability=Reliability(detect_s=0, restart_s=0, spares=0, checkpoint_s=0, load_s=0),
    )


def strategy_of(case: Case) -> Strategy:
    """How it was split. Blocks lie evenly; embedding and head join the first and the last stage, or count as layers themselves."""
    stages = case.pipeline * case.chunks
    if case.layers % stages == 0:
        cuts = [case.layers // stages] * stages
        cuts[0] += 1
        cuts[-1] += 1
    else:
        cuts = [(case.layers + 2) // stages] * stages
    return Strategy(
        data=case.data,
        tensors=(case.tensor,) * case.pipeline,
        cuts=tuple(cuts),
        schedule=PipelineSchedule.INTERLEAVED if case.chunks > 1 else PipelineSchedule.ONE_F_ONE_B,
        units=case.micro,
        micro_batches=case.batch // case.micro,
        zero=case.zero,
        shard=case.data if case.zero else 1,
        copies=0,
        recompute=(not case.selective,) * stages,
        devices=tuple(range(case.devices)),  # tensor innermost, then data, then pipeline, as all these programs number ranks
    )


def outcome(case: Case) -> Outcome:
    """Predict one run."""
    return Outcome(case, estimate(problem_of(case), strategy_of(case)))


def table(outcomes: Sequence[Outcome]) -> None:
    """Print every row, none left out."""
    for name, rows in groupby(outcomes, key=lambda o: o.case.table):
        say(f"---- {name}")
        say(f"{'model':34} {'t':>2} {'p':>3} {'d':>5} {'measured':>9} {'predicted':>10} {'error':>7}  {'GiB':>5} {'read':>5}  largest terms")
        for row in rows:
            case = row.case
            terms = sorted(row.estimate.terms, key=lambda t: -t.seconds)[:4]
            shares = ", ".join(f"{t.name} {t.seconds / row.estimate.step_s:.0%}" for t in terms)
            read = f"{case.memory_gb * GB / GIB:5.1f}" if case.memory_gb else "    -"
            say(
                f"{case.name:34} {case.tensor:2} {case.pipeline:3} {case.data:5} {case.measured_s:8.2f}s {row.estimate.step_s:9.2f}s"
                f" {row.error:+7.1%}  {row.peak_bytes / GIB:5.1f} {read}  {shares}"
            )
            if case.note:
                say(f"    {case.note}")


def published() -> dict[str, float]:
    """Print the tables, and return their figures."""
    say(PROVENANCE)
    main = [outcome(case) for case in MEGATRON_CASES]
    others = [outcome(case) for case in OTHER_CASES]
    table([*main, *others])
    lost = [outcome(case) for case in OUT_OF_MEMORY]
    say("---- ran out of memory")
    for row in lost:
        say(f"{row.case.name:34} {row.case.tensor:2} {row.case.pipeline:3} {row.case.data:5}  predicted {row.peak_bytes / GIB:.1f} GiB")
    found = {
        "cases": float(len(main)),
        "within_15": float(sum(abs(o.error) <= WITHIN for o in main)),
        "step_error_median": median(abs(o.error) for o in main),
        "step_error_max": max(abs(o.error) for o in main),
        "others_cases": float(len(others)),
        "others_within_15": float(sum(abs(o.error) <= WITHIN for o in others)),
        "others_step_error_median": median(abs(o.error) for o in others),
        "others_step_error_max": max(abs(o.error) for o in others),
        "ran_and_fits": float(sum(o.estimate.fits for o in [*main, *others])),
        "out_of_memory_seen": float(sum(not o.estimate.fits for o in lost)),
    }
    say(
        f"Megatron-LM: {found['within_15']:.0f} of {found['cases']:.0f} within {WITHIN:.0%}, median error {found['step_error_median']:.1%}, "
        f"largest {found['step_error_max']:.1%}; other programs and machines: {found['others_within_15']:.0f} of "
        f"{found['others_cases']:.0f}, median {found['others_step_error_median']:.1%}"
    )
    return found
