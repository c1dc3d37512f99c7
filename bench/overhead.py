"""`make bench-overhead`: what surviving costs while nothing fails.

Two systems at a time train the same model with the same batches on two ranks. They take turns in one process tree, ten steps
each, ABBA; each pair of neighbouring blocks gives one ratio, and the median of those counts. Whoever is not on its turn is
stopped with all its processes, supervisor included, so that each block pays for its own system and for nothing else. Ten steps
hold exactly one digest. Ours is the product: supervisor, gRPC streams, heartbeats, journal, worker processes (without Ray, which
takes no part in a step).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.baselines.dims import Dims, add_dims_flags, dims_from
from bench.baselines.proc import die_with_parent, free_port
from bench.gate import Gatekeeper, pause_group, resume_group
from bench.harness import figures, say
from bench.pairs import Ratio, alternation, paired_ratio

ROOT = Path(__file__).resolve().parent.parent
RANKS = 2
BLOCK_STEPS = 10  # one digest in each
SETTLE_STEPS = 2  # after a stop, not timed
SETTLE_S = 0.15  # for heartbeats that waited
START_LIMIT_S = 120.0
STEPS = 1_000_000  # nobody gets there


@dataclass(frozen=True, slots=True)
class Variant:
    """One system; `ours` False is the plain loop, whatever the other fields say."""

    name: str
    ours: bool = True
    consistency: str = "fast"
    zero_stage: int = 0
    copies: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """`ours` over `base` must not be more than `bar`."""

    key: str
    ours: Variant
    base: Variant
    bar: float
    what: str


CLAIMS = (
    Claim("dp", Variant("dp-fast"), Variant("plain-ddp", ours=False), 1.03, "DP, fast, everything on / plain DDP loop"),
    Claim(
        "copy",
        Variant("zero1-copies", consistency="exact", zero_stage=1, copies=1),
        Variant("zero1-alone", consistency="exact", zero_stage=1),
        1.05,
        "ZeRO-1 with peer copies / without",
    ),
    Claim("exact", Variant("dp-exact", consistency="exact"), Variant("dp-fast"), 1.10, "DP, exact / fast"),
)


# ------------------------------------------------------------------------------------------------------------ one system


async def _serve_ours(variant: Variant, dims: Dims, gate: str, home: Path) -> None:
    from bench.bench_task import bench_job
    from orchestrator.core.job import Consistency
    from tests.world.processes import System

    job = bench_job(
        variant.name,
        dims,
        ranks=RANKS,
        steps=STEPS,
        zero_stage=variant.zero_stage,
        copies=variant.copies,
        consistency=Consistency(variant.consistency),
        gate=gate,
    )
    async with System(home) as system:
        await system.supervisor.service.submit(job=job, yaml_text="")
        await system.supervisor.service.finished(job.name)


def _serve_plain(variant: Variant, dims: Dims, gate: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "bench.ddp_loop", f"--ranks={RANKS}", f"--port={port}", f"--gate={gate}"]
    command += [f"--variant={variant.name}", *dims.as_flags()]
    ranks = [subprocess.Popen([*command, f"--rank={r}"], stdin=subprocess.DEVNULL) for r in range(RANKS)]
    for rank in ranks:
        rank.wait()


def _child(args: argparse.Namespace, dims: Dims) -> int:
    """The main of a variant's process group."""
    die_with_parent()
    variant = next(v for c in CLAIMS for v in (c.ours, c.base) if v.name == args.variant)
    if variant.ours:
        asyncio.run(_serve_ours(variant, dims, args.gate, Path(args.home)))
    else:
        _serve_plain(variant, dims, args.gate)
    return 1  # it was not told to end


@contextmanager
def _running(variant: Variant, dims: Dims, gate: str, folder: Path) -> Iterator[int]:
    """Start a variant as a process group of its own; its id. Everything of it is dead afterwards."""
    command = [sys.executable, "-m", "bench.overhead", f"--variant={variant.name}", f"--gate={gate}"]
    command += [f"--home={folder / variant.name}", *dims.as_flags()]
    log = folder / f"{variant.name}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process.pid
    except BaseException:
        say(f"---- the end of what {variant.name} printed\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]))
        raise
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ------------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True)
class Result:
    """One claim, measured; step times are medians over blocks, milliseconds.

    `ratio` is of times, `work` of the CPU seconds that went into the same blocks: other load disturbs those less.
    """

    claim: Claim
    ratio: Ratio
    work: Ratio
    ours_ms: float
    base_ms: float


def measure(claim: Claim, dims: Dims, *, pairs: int, folder: Path) -> Result:
    """Start both, let them take turns, end both."""
    folder.mkdir()
    order = alternation(pairs)
    with ExitStack() as stack:
        keeper = stack.enter_context(Gatekeeper(folder / "gate", ranks=RANKS))
        groups: dict[str, tuple[str, int]] = {}
        for letter, v in (("A", claim.ours), ("B", claim.base)):
            pgid = stack.enter_context(_running(v, dims, keeper.path, folder))
            keeper.await_all({v.name}, limit_s=START_LIMIT_S)
            keeper.run(v.name, BLOCK_STEPS)  # first touches, the first digest
            pause_group(pgid)  # before the other starts: whoever stands at its gate for long is taken for hung
            groups[letter] = v.name, pgid
        times, work = [], []
        for letter in order:
            name, pgid = groups[letter]
            resume_group(pgid)
            time.sleep(SETTLE_S)
            keeper.run(name, SETTLE_STEPS)
            before_s = cpu_s(pgid)
            times.append(keeper.run(name, BLOCK_STEPS) / BLOCK_STEPS * 1e3)
            work.append(cpu_s(pgid) - before_s)
            pause_group(pgid)
    by = {x: statistics.median(t for t, letter in zip(times, order, strict=True) if letter == x) for x in "AB"}
    return Result(claim, paired_ratio(order, times), paired_ratio(order, work), by["A"], by["B"])


def cpu_s(pgid: int) -> float:
    """CPU seconds that the living processes of a group have used."""
    used = 0.0
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == pgid:
                times = process.cpu_times()
                used += times.user + times.system
    return used


def table(results: Sequence[Result]) -> str:
    """For people."""
    lines = [f"{'claim':44} {'ours':>9} {'base':>9} {'ratio':>7}  {'95 % interval':16} {'bar':>5} {'noise':>6} {'CPU':>6}  pairs"]
    for r in results:
        interval = f"{r.ratio.low:.3f} .. {r.ratio.high:.3f}"
        lines.append(
            f"{r.claim.what:44} {r.ours_ms:6.1f} ms {r.base_ms:6.1f} ms {r.ratio.median:7.3f}  {interval:16} "
            f"{r.claim.bar:5.2f} {r.ratio.noise:6.3f} {r.work.median:6.3f}  {r.ratio.pairs}"
        )
    return "\n".join(lines)


def main() -> int:
    """Exit status 0 when every ratio is within its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--only", choices=[c.key for c in CLAIMS], action="append")
    parser.add_argument("--variant", default="", help=argparse.SUPPRESS)
    parser.add_argument("--gate", default="", help=argparse.SUPPRESS)
    parser.add_argument("--home", default="", help=argparse.SUPPRESS)
    add_dims_flags(parser)
    args = parser.parse_args()
    dims = dims_from(args)
    if args.variant:
        return _child(args, dims)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as folder:
        for claim in CLAIMS:
            if not args.only or claim.key in args.only:
                say(f"---- {claim.what}, {args.pairs} pairs of {BLOCK_STEPS} steps")
                results.append(measure(claim, dims, pairs=args.pairs, folder=Path(folder) / claim.key))
                say(table(results[-1:]))
    print(table(results))
    found: dict[str, float] = {}
    for r in results:
        found[f"{r.claim.key}_overhead"] = round(r.ratio.median, 4)
        found[f"{r.claim.key}_overhead_low"] = round(r.ratio.low, 4)
        found[f"{r.claim.key}_overhead_high"] = round(r.ratio.high, 4)
        found[f"{r.claim.key}_cpu"] = round(r.work.median, 4)
        found[f"{r.claim.key}_noise"] = round(r.ratio.noise, 4)
        found[f"{r.claim.key}_step_ms"] = round(r.ours_ms, 1)
    figures("overhead", noise=max(r.ratio.noise for r in results), **found)
    return 0 if all(r.ratio.median <= r.claim.bar for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
