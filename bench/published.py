"""`make promises ARGS=--published`: the cost model against published step times of other people's runs, without any training.

Each run is described by what was published of it (bench/published_cases.py) and predicted by the same `estimate` that plans our
jobs, with the program it was run by and machines by their data sheets (core/cluster/known.py). Two groups are kept apart:
Megatron-LM's tables of weak scaling and of recomputation, which were looked at, and all others.
"""

# These rows are no blind test of the model as it is now. Blind was the first run only: 17 of the 18 Megatron-LM rows within 15
# %, median error 6.4 %, most predicted too fast; 11 of 29 others, median 17.6 %. What came after was prompted by the errors,
# and its effect on the rows was seen before it was kept: the memory traffic of the two products of attention
# (core/graph/transformer.py), a ring for each adapter of a node and boundaries scattered over tensor ranks (core/planner/cost),
# and 0.85 of the data sheet's memory bandwidth (core/cluster/known.py). Tried and not kept: launch times of 200 and 300 us
# instead of 100. The rings made DeepSpeed's ZeRO-3 rows much worse (from -13..-27 % to -34..-77 %), and FSDP's were added after
# that, to see whether a newer program agrees. BLOOM's trials keep gradients twice, as their authors say; that was added after
# their memory was looked at. The pace is fitted on the rows CALIBRATED, chosen (once, all errors known) because they have no
# pipeline; its figures exclude them.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
CALIBRATED = ("1.7B", "18.4B")  # no pipeline; without and with tensor parallelism
WITHIN_MIN = 6  # configurations that must be predicted so well
PER_NODE = 8
GIB = 2.0**30
GB = 1e9
BIGSCIENCE = replace(MEGATRON, name="megatron-deepspeed", gradient_bytes=6)  # bf16 gradients beside their sums in fp32
PROGRAMS: Mapping[str, Program] = {p.name: p for p in (MEGATRON, DEEPSPEED, BIGSCIENCE)}
PROVENANCE = """\
Constants are those of core/cluster/known.py and core/planner/cost/programs.py. NOT a blind test: after a first, blind run
(Megatron-LM 17 of 18 within 15 %, median 6.4 %; others 11 of 29, median 17.6 %) the model was changed with these errors in
view, the share of memory bandwidth that is reached (0.85) among other things; bench/published.py lists all of it, and what
was tried and not kept."""


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


@lru_cache(maxsize=256)
def cluster(name: str, nodes: int, pace: float) -> Resources:
    """Nodes of eight A100 of 80 GB and NVLink; `pace` is what their computing takes of what their constants say."""
    link, adapters = {
        "selene": (LINKS["hdr"], PER_NODE),  # arXiv 2104.04473 section 5: eight HDR adapters beside those for storage
        "jean-zay": (LINKS["edr"], 4),  # arXiv 2211.05100 section 3.4: four Omni-Path links of 100 Gbit/s; the rate of EDR
        "roce": (LINKS["hdr"], PER_NODE * 1.25),  # arXiv 2304.11277 section 5.1: 2 Tbit/s
    }[name]
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
                pace=pace,
            )
            for k in range(nodes)
        ),
    )


def problem_of(case: Case, *, pace: float = 1.0) -> Problem:
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
        resources=cluster(case.cluster, -(-case.devices // PER_NODE), pace),
        program=PROGRAMS[case.program],
        batch=case.batch,
        space=Space(),
        reliability=Reliability(detect_s=0, restart_s=0, checkpoint_s=0, load_s=0),
    )


def strategy_of(case: Case) -> Strategy:
    """How it was split: blocks evenly, embedding and head with the first and the last, or all layers evenly where that works."""
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


def outcome(case: Case, *, pace: float = 1.0) -> Outcome:
    """Predict one run."""
    return Outcome(case, estimate(problem_of(case, pace=pace), strategy_of(case)))


def calibrate(cases: Sequence[Case]) -> float:
    """The pace at which the mean error of these runs is 0, to a thousandth."""
    low, high = 0.5, 2.0
    while high - low > 1e-3:
        pace = (low + high) / 2
        low, high = (pace, high) if sum(outcome(c, pace=pace).error for c in cases) < 0 else (low, pace)
    return (low + high) / 2


def table(outcomes: Sequence[Outcome]) -> None:
    """Print every row, none left out."""
    for name, rows in groupby(outcomes, key=lambda o: o.case.table):
        say(f"---- {name}")
        head = f"{'model':32} {'t':>2} {'p':>3} {'d':>5} {'measured':>9} {'predicted':>9} {'error':>7}"
        say(f"{head} {'GiB':>6} {'read':>5}  largest terms")
        for row in rows:
            c, e = row.case, row.estimate
            terms = sorted(e.terms, key=lambda t: -t.seconds)[:4]
            shares = ", ".join(f"{t.name} {t.seconds / e.step_s:.0%}" for t in terms)
            read = f"{c.memory_gb * GB / GIB:5.1f}" if c.memory_gb else "    -"
            times = f"{c.measured_s:8.2f}s {e.step_s:8.2f}s {row.error:+7.1%}"
            say(f"{c.name:32} {c.tensor:2} {c.pipeline:3} {c.data:5} {times} {row.peak_bytes / GIB:6.1f} {read}  {shares}")


def published() -> dict[str, float]:
    """Print the tables, and return their figures."""
    say(PROVENANCE)
    main = [outcome(case) for case in MEGATRON_CASES]
    others = [outcome(case) for case in OTHER_CASES]
    lost = [outcome(case) for case in OUT_OF_MEMORY]
    table([*main, *others])
    say("---- ran out of memory")
    for row in lost:
        c, fits = row.case, "fits" if row.estimate.fits else "does not fit"
        say(f"{c.name:32} {c.tensor:2} {c.pipeline:3} {c.data:5}  predicted {row.peak_bytes / GIB:.1f} GiB: {fits}")
    pace = calibrate([c for c in MEGATRON_CASES if c.name in CALIBRATED])
    rest = [outcome(c, pace=pace) for c in MEGATRON_CASES if c.name not in CALIBRATED]
    read = [o for o in others if o.case.memory_gb]
    found = {
        **_errors("", main),
        **_errors("others_", others),
        **_errors("calibrated_", rest),
        **_errors("calibrated_others_", [outcome(c, pace=pace) for c in OTHER_CASES]),
        "calibrated_pace": pace,
        "memory_error_median": median(abs(o.peak_bytes / (o.case.memory_gb * GB) - 1) for o in read),
        "ran_and_fits": float(sum(o.estimate.fits for o in [*main, *others])),
        "out_of_memory_seen": float(sum(not o.estimate.fits for o in lost)),
    }
    rows = " and ".join(CALIBRATED)
    say(f"Last two lines: computing takes {pace:.3f} of what it takes by those constants, as {rows} say on average.")
    for key, words in (
        ("", "Megatron-LM"),
        ("others_", "other splits, programs and machines"),
        ("calibrated_", "Megatron-LM's other rows"),
        ("calibrated_others_", "other splits, programs and machines"),
    ):
        say(
            f"{words}: {found[key + 'within_15']:.0f} of {found[key + 'cases']:.0f} within {WITHIN:.0%},"
            f" median error {found[key + 'step_error_median']:.1%}, largest {found[key + 'step_error_max']:.1%}"
        )
    return found


def _errors(key: str, outcomes: Sequence[Outcome]) -> dict[str, float]:
    errors = [abs(o.error) for o in outcomes]
    return {
        f"{key}cases": float(len(errors)),
        f"{key}within_15": float(sum(e <= WITHIN for e in errors)),
        f"{key}step_error_median": median(errors),
        f"{key}step_error_max": max(errors),
    }
