"""Workers that measure links, each a process: in the unit tests on this machine, in the lab on machines of their own.

A worker serves a store, leaves its endpoint in a folder that all share, and starts when all have. What it measured it leaves
there too. Told to vanish, it kills or stops itself where the others start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from orchestrator.core.cluster.measured import LinkMeasure
from orchestrator.core.cluster.rounds import rounds
from orchestrator.core.codec import from_json, to_json
from orchestrator.engine.groups import StoreServer
from orchestrator.engine.probe_links import measure_links

ROOT = Path(__file__).parents[3]
HOST = "127.0.0.1"
LIMIT_S = 150.0


@dataclass(frozen=True)
class Order:
    """What one worker is to do."""

    folder: str
    me: int
    host: str
    nodes: Sequence[str]  # of all workers, which are called "w0", "w1", ...
    seconds: float
    vanish: int = 0  # the signal that it sends itself, 0: none
    stop: bool = False  # it is told to stop before it starts

    def argv(self) -> list[str]:
        """The command that does it, to be run in ROOT."""
        return [sys.executable, "-m", "tests.unit.engine.probe_world", json.dumps(asdict(self))]

    def result(self) -> tuple[LinkMeasure, ...]:
        """What it measured. Raises FileNotFoundError where it left nothing."""
        text = (Path(self.folder) / f"{self.me}.json").read_text()
        got: tuple[LinkMeasure, ...] = from_json(tuple[LinkMeasure, ...], json.loads(text))
        return got


def _leave(file: Path, text: str) -> None:
    file.with_suffix(".part").write_text(text)
    file.with_suffix(".part").rename(file)


def main(order: Order) -> None:
    """One worker."""
    torch.set_num_threads(1)
    folder, count = Path(order.folder), len(order.nodes)
    server = StoreServer(order.host)
    _leave(folder / f"{order.me}.at", server.endpoint)
    until = time.monotonic() + LIMIT_S
    files = [folder / f"{k}.at" for k in range(count)]
    while not all(f.exists() for f in files):
        assert time.monotonic() < until, "the others never came"
        time.sleep(0.01)
    if order.vanish:
        os.kill(os.getpid(), order.vanish)
    got = measure_links(
        rounds(order.nodes),
        me=order.me,
        workers=[(f"w{k}", f.read_text()) for k, f in enumerate(files)],
        bind_host=order.host,
        epoch=0,
        number=1,
        seconds=order.seconds,
        stop=lambda: order.stop,
    )
    _leave(folder / f"{order.me}.json", json.dumps(to_json(got)))
    for k in range(count):  # a store serves until all have done
        while not (folder / f"{k}.json").exists() and time.monotonic() < until and not (folder / "over").exists():
            time.sleep(0.01)
    server.close()


@contextmanager
def running(orders: Sequence[Order]) -> Iterator[None]:
    """The workers as processes of this machine, forked from one that has torch; killed at the end."""
    from tests.unit.engine.forking import CONTEXT  # not where a worker has a machine of its own

    started = [CONTEXT.Process(target=main, args=(order,), daemon=True) for order in orders]
    try:
        for process in started:
            process.start()
        yield
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
            process.join(LIMIT_S)


def measured_here(
    folder: Path, nodes: Sequence[str], *, seconds: float, vanish: Mapping[int, signal.Signals] | None = None, stop: bool = False
) -> list[LinkMeasure]:
    """What all workers that did not vanish measured."""
    gone = vanish or {}
    orders = [
        Order(str(folder), me, HOST, nodes, seconds=seconds, vanish=int(gone.get(me, 0)), stop=stop) for me in range(len(nodes))
    ]
    stay = [order for order in orders if order.me not in gone]
    with running(orders):
        until = time.monotonic() + LIMIT_S
        while not all((folder / f"{order.me}.json").exists() for order in stay):
            assert time.monotonic() < until, "they never ended"
            time.sleep(0.02)
        (folder / "over").touch()
    return [link for order in stay for link in order.result()]


if __name__ == "__main__":
    main(Order(**json.loads(sys.argv[1])))
