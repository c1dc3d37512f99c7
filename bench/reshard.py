"""`make bench-reshard`: how fast optimizer state moves from four ranks to three and back, beside what the wire could do.

Four processes hold 1 GiB of optimizer state (two fp32 moments) by interval lists, as the planner deals it out. To shrink, the
fourth gives its quarter to the three; to grow, the three give it a quarter. In the same processes, turn by turn: the same bytes
between the same pairs by nothing but gloo sends and receives, our move with local memory (processes of one node), and our move
over the group alone (as between nodes). Then DCP: four ranks save, three load what they own afterwards, on tmpfs.

Ours includes the handshake, the memory for what arrives (touched before, as in a run) and the sums of every part at both ends;
what arrived is compared with what it should be, outside the time.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from bench.baselines.proc import die_with_parent, free_port
from bench.harness import figures, say
from orchestrator.core.plan.layout import Interval, Intervals, subtract, total
from orchestrator.core.plan.plan import OPTIMIZER
from orchestrator.core.planner.dealing import deal
from orchestrator.core.reshard.regions import in_place
from orchestrator.core.reshard.schedule import Party, ReshardSchedule
from orchestrator.core.reshard.senders import make_schedule
from orchestrator.engine.control import Control
from orchestrator.engine.extents import Extents, Pages
from orchestrator.engine.groups import EpochGroup, StoreServer, connect_store, form_group
from orchestrator.engine.transfer import move

HOST = "127.0.0.1"
RANKS = 4
MOMENTS = 2
BLOCK = 4096  # elements
GIB = 1 << 30
LIMIT_S = 120.0
TMPFS = Path("/dev/shm")
KINDS = ("raw", "raw-pieces", "local", "group")
BARS = "of_wire >= 0.8, bytes_over_minimum 1.00, moved_over_state <= 0.26, dcp_ratio >= 8"


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the two reshards: who holds what before and after, by rank of the larger plan."""

    name: str
    old: tuple[Intervals, ...]
    new: tuple[Intervals, ...]
    schedule: ReshardSchedule


@dataclass(frozen=True, slots=True)
class Timing:
    """One rank's part of one measurement; the clock is the machine's."""

    began: float
    ended: float
    received: int = 0
    minimum: int = 0
    extra: int = 0  # bytes of resident memory beyond sources and targets, at the peak
    wrong: int = 0  # elements


def make_turns(numel: int) -> tuple[Turn, Turn]:
    """Shrink and growth of a vector of `numel` elements."""
    whole = (Interval(0, numel),)

    def dealt(ranks: int, held: Sequence[Intervals]) -> tuple[Intervals, ...]:
        parts = deal(whole, takers=[(r,) for r in range(ranks)], held=dict(enumerate(held)), prefer={}, block=BLOCK)
        return tuple(parts) + ((),) * (RANKS - ranks)

    four = dealt(4, ())
    three = dealt(3, four[:3])
    turns = []
    for name, old, new in (("shrink", four, three), ("grow", three, dealt(4, three[:3]))):
        parties = [Party(r, "node", {OPTIMIZER: in_place(new[r])}, {OPTIMIZER: in_place(old[r])}, True) for r in range(RANKS)]
        turns.append(Turn(name, old, new, make_schedule(parties, element_bytes={OPTIMIZER: 4 * MOMENTS})))
    return turns[0], turns[1]


# ------------------------------------------------------------------------------------------------------- the four processes


class Rank:
    """What one process does when it is told to."""

    def __init__(self, rank: int, endpoint: str, numel: int) -> None:
        torch.set_num_threads(1)
        self.rank = rank
        self.turns = {t.name: t for t in make_turns(numel)}
        with closing(connect_store(endpoint, LIMIT_S)) as store:
            self.group: EpochGroup = form_group(
                "gloo",
                store,
                name="bench",
                epoch=1,
                rank=rank,
                size=RANKS,
                bind_host=HOST,
                deadline_s=LIMIT_S,
                cancelled=threading.Event(),
                op_timeout_s=LIMIT_S,
            )
        self.pages = Pages()
        self.pages.prefault(MOMENTS * numel // 3, torch.float32)
        self.moments: list[Extents] = []

    def hold(self, name: str) -> None:
        """The state before a turn."""
        self.give(self.moments)
        self.moments = [self.pages.extents(self.turns[name].old[self.rank], torch.float32, zero=False) for _ in range(MOMENTS)]
        for k, extents in enumerate(self.moments):
            for interval, tensor in extents:
                tensor.copy_(expected(k, interval))

    def give(self, moments: Sequence[Extents]) -> None:
        """Memory that is free again."""
        for extents in moments:
            for tensor in extents.drop(extents.intervals):
                self.pages.give(tensor)

    def measure(self, name: str, kind: str) -> Timing:
        """One turn of one kind."""
        turn = self.turns[name]
        missing = subtract(turn.new[self.rank], turn.old[self.rank])
        if kind.startswith("raw"):
            return self._raw(turn, missing, one_message=kind == "raw")
        memory = PeakMemory()
        self.group.barrier()
        began = time.monotonic()
        targets = [self.pages.extents(missing, torch.float32, zero=False) for _ in range(MOMENTS)]
        report = move(
            self.group,
            turn.schedule.transfers,
            rank=self.rank,
            nodes=["node"] * RANKS,
            sources={OPTIMIZER: self.moments},
            targets={OPTIMIZER: targets},
            control=Control(),
            local=kind == "local",
        )
        ended = time.monotonic()
        extra = memory.extra
        wrong = sum(int((t != expected(k, i)).sum()) for k, extents in enumerate(targets) for i, t in extents)
        self.give(targets)
        minimum = 4 * MOMENTS * total(missing)
        return Timing(began, ended, report.bytes_received, minimum, max(extra, report.peak_extra_bytes), wrong)

    def _raw(self, turn: Turn, missing: Intervals, *, one_message: bool) -> Timing:
        """gloo alone: for each pair and moment one message, or one for each transfer, all posted at once; touched memory."""
        pg = cast(Any, self.group)._pg
        sizes: dict[tuple[int, int], list[int]] = {}
        for t in turn.schedule.transfers:
            sizes.setdefault((t.src, t.dst), []).append(t.numel)
        messages = [(pair, n) for pair, ns in sizes.items() for n in ([sum(ns)] if one_message else ns) for _ in range(MOMENTS)]
        mine = [(pair, torch.ones(n)) for pair, n in messages if self.rank in pair]
        self.group.barrier()
        began = time.monotonic()
        works = [pg.recv([t], src, 9) for (src, dst), t in mine if dst == self.rank]
        works += [pg.send([t], dst, 9) for (src, dst), t in mine if src == self.rank]
        for work in works:
            work.wait()
        ended = time.monotonic()
        return Timing(began, ended, sum(t.nbytes for (_, dst), t in mine if dst == self.rank), 4 * MOMENTS * total(missing))

    def dcp_save(self, port: int, path: str) -> Timing:
        """All four, each what it owns, cut where the new owners' parts begin so that nobody has to read more than it needs."""
        return self._dcp(
            RANKS, port, self._named(self.turns["shrink"].old[self.rank], fill=True), lambda s: dcp_save(s, checkpoint_id=path)
        )

    def dcp_load(self, port: int, path: str) -> Timing:
        """The three, all that they own afterwards, as after a restart."""
        if self.rank == RANKS - 1:
            return Timing(0.0, 0.0)
        state = self._named(self.turns["shrink"].new[self.rank], fill=False)
        timing = self._dcp(RANKS - 1, port, state, lambda s: dcp_load(s, checkpoint_id=path))
        right = self._named(self.turns["shrink"].new[self.rank], fill=True)
        wrong = sum(int((state[name] != right[name]).sum()) for name in state)
        return Timing(timing.began, timing.ended, wrong=wrong)

    def _dcp(self, size: int, port: int, state: dict[str, Tensor], do: Callable[[dict[str, Tensor]], object]) -> Timing:
        dist.init_process_group("gloo", init_method=f"tcp://{HOST}:{port}", rank=self.rank, world_size=size)
        dist.barrier()
        began = time.monotonic()
        do(state)
        dist.barrier()
        ended = time.monotonic()
        dist.destroy_process_group()
        return Timing(began, ended)

    def _named(self, intervals: Intervals, *, fill: bool) -> dict[str, Tensor]:
        turn = self.turns["shrink"]
        cuts = sorted({x for part in (*turn.old, *turn.new) for i in part for x in (i.start, i.stop)})
        out: dict[str, Tensor] = {}
        for i in intervals:
            inner = [i.start, *(c for c in cuts if i.start < c < i.stop), i.stop]
            for lo, hi in itertools.pairwise(inner):
                for k in range(MOMENTS):
                    out[f"moment{k}.{lo}"] = expected(k, Interval(lo, hi)) if fill else torch.ones(hi - lo)
        return out


def expected(moment: int, interval: Interval) -> Tensor:
    """fp32 [interval.numel]; no two neighbours alike."""
    return torch.arange(interval.start, interval.stop, dtype=torch.int32).view(torch.float32) + float(moment)


class PeakMemory:
    """Resident memory of this process at its peak since this was made, beyond what it had then, in bytes."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = self._status("VmHWM")

    @property
    def extra(self) -> int:
        return max(0, self._status("VmHWM") - self._before)

    @staticmethod
    def _status(key: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) * 1024


def serve(pipe: Connection, rank: int, endpoint: str, numel: int) -> None:
    """A process: does what it is told until it is told nothing more."""
    die_with_parent()
    actor = Rank(rank, endpoint, numel)
    pipe.send("ready")
    with suppress(EOFError):
        while True:
            order, *arguments = pipe.recv()
            pipe.send(getattr(actor, order)(*arguments))
    os._exit(0)


# ------------------------------------------------------------------------------------------------------------- the driver


class Ranks:
    """The four processes, from outside; use as a context."""

    def __init__(self, numel: int) -> None:
        self._server = StoreServer(HOST)
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(RANKS):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, rank, self._server.endpoint, numel), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        self._answers()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5.0)
            process.kill()
        self._server.close()

    def tell(self, *order: object) -> list[Any]:
        """The same order to all; their answers by rank."""
        for pipe in self._pipes:
            pipe.send(order)
        return self._answers()

    def _answers(self) -> list[Any]:
        out = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(LIMIT_S):
                raise TimeoutError(f"rank {rank} said nothing within {LIMIT_S:.0f} s")
            out.append(pipe.recv())
        return out


def seconds(timings: Sequence[Timing]) -> float:
    """From the first rank's start to the last one's end."""
    took = [t for t in timings if t.ended > 0.0]
    return max(t.ended for t in took) - min(t.began for t in took)


def checked(timings: Sequence[Timing]) -> Sequence[Timing]:
    """Raises SystemExit when something has not arrived as it should: then no number means anything."""
    wrong = sum(t.wrong for t in timings)
    if wrong:
        raise SystemExit(f"{wrong} elements arrived changed")
    return timings


def measure_dcp(ranks: Ranks, repeats: int) -> list[float]:
    """Seconds of save and load together."""
    out = []
    for n in range(repeats):
        path = TMPFS / f"bench-reshard-{os.getpid()}-{n}"
        try:
            save = seconds(ranks.tell("dcp_save", free_port(), str(path)))
            load = seconds(checked(ranks.tell("dcp_load", free_port(), str(path))))
        finally:
            shutil.rmtree(path, ignore_errors=True)
        say(f"  DCP on tmpfs: save {save:.2f} s, load {load:.2f} s")
        out.append(save + load)
    return out


def room_for(state_bytes: int) -> int:
    """`state_bytes`, or less where memory is short: sources, targets, pools, gloo's twins and DCP's files want six times that."""
    room = min(psutil.virtual_memory().available // 6, shutil.disk_usage(TMPFS).free // 2)
    size = state_bytes
    while size > room and size > 64 << 20:
        size //= 2
    if size < state_bytes:
        say(f"memory is short: {size / GIB:.3f} GiB of state instead of {state_bytes / GIB:.3f}")
    return size


def main() -> None:
    """Prints the figures; nothing is kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.0, help="optimizer state in all (default 1)")
    parser.add_argument("--repeats", type=int, default=7, help="of each kind of move; medians count (default 7)")
    parser.add_argument("--dcp-repeats", type=int, default=3, help="of DCP's save and load (default 3)")
    arguments = parser.parse_args()
    state_bytes = room_for(int(arguments.gib * GIB))
    numel = state_bytes // (4 * MOMENTS) // (12 * BLOCK) * 12 * BLOCK
    state_bytes = numel * 4 * MOMENTS
    out: dict[str, float] = {}
    shrink_s = 0.0
    with Ranks(numel) as ranks:
        for turn in make_turns(numel):
            ranks.tell("hold", turn.name)
            took: dict[str, list[float]] = {kind: [] for kind in KINDS}
            extra = 0
            moved = minimum = 0
            for n in range(arguments.repeats + 1):  # the first warms up
                for kind in KINDS if n % 2 else KINDS[::-1]:
                    timings = checked(ranks.tell("measure", turn.name, kind))
                    if n:
                        took[kind].append(seconds(timings))
                        extra = max(extra, sum(t.extra for t in timings))
                    moved, minimum = sum(t.received for t in timings), sum(t.minimum for t in timings)
            median = {kind: statistics.median(values) for kind, values in took.items()}
            raw = min(median["raw"], median["raw-pieces"])
            say(
                f"{turn.name}: {moved / 2**20:.0f} MiB of {state_bytes / 2**20:.0f}; "
                + ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in median.items())
            )
            out[f"of_wire_{turn.name}"] = raw / median["local"]
            out[f"of_wire_{turn.name}_group"] = raw / median["group"]
            out[f"{turn.name}_ms"] = 1e3 * median["local"]
            out[f"{turn.name}_raw_ms"] = 1e3 * raw
            out["bytes_over_minimum"] = max(out.get("bytes_over_minimum", 0.0), moved / minimum)
            out["moved_over_state"] = max(out.get("moved_over_state", 0.0), moved / state_bytes)
            out["peak_extra_over_state"] = max(out.get("peak_extra_over_state", 0.0), extra / state_bytes)
            shrink_s = median["local"] if turn.name == "shrink" else shrink_s
        out["dcp_ratio"] = statistics.median(measure_dcp(ranks, arguments.dcp_repeats)) / shrink_s
    say(f"bars: {BARS}")
    figures("reshard", state_gib=round(state_bytes / GIB, 3), **{k: round(v, 4) for k, v in out.items()})


if __name__ == "__main__":
    main()
