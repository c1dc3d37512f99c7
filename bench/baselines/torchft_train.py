"""One torchft replica group of one worker, tuned as far as its public interface goes, so that it is at its best.

Of N + 1 groups, N take part and one is a spare that contributes zeros (FIXED_WITH_SPARES). Tuned beyond the example
that torchft ships: the spare skips the maths; the batch follows the seat in the quorum, so that a swap changes no
number; gradients are one flat buffer (one all-reduce); and a survivor that saw the error drops its process group at
once, which tells the survivors that are not neighbours in gloo's ring and would otherwise sit until the time-out.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torchft import Manager, ProcessGroupGloo  # type: ignore[import-not-found]
from torchft.manager import WorldSizeMode  # type: ignore[import-not-found]

from bench.baselines.common_model import (
    CLIP_NORM,
    StepLog,
    batch_of,
    build_model,
    build_optimizer,
    loss_of,
)
from bench.baselines.dims import add_dims_flags, dims_from
from bench.baselines.proc import die_with_parent


def flat_gradients(model: torch.nn.Module) -> torch.Tensor:
    """Gives each parameter a gradient that is a view of one flat float32 buffer [parameters], and returns that."""
    parameters = list(model.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters))
    offset = 0
    for parameter in parameters:
        parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-log", required=True)
    parser.add_argument("--lighthouse", required=True)
    parser.add_argument("--worker", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--steps-max", type=int, default=100_000)
    parser.add_argument("--group-timeout-ms", type=int, default=5_000)
    parser.add_argument("--manager-timeout-ms", type=int, default=10_000)
    parser.add_argument("--heartbeat-interval-ms", type=int, default=100)
    parser.add_argument("--keep-group-on-error", action="store_true", help="do not drop the group after an error")
    add_dims_flags(parser)
    args = parser.parse_args()
    dims = dims_from(args)

    die_with_parent()
    torch.set_num_threads(1)
    log = StepLog(args.step_log, worker=args.worker)
    model = build_model(dims)
    optimizer = build_optimizer(model)
    flat = flat_gradients(model)

    def state_dict() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def load_state_dict(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = ProcessGroupGloo(timeout=timedelta(milliseconds=args.group_timeout_ms))
    timeout = timedelta(milliseconds=args.manager_timeout_ms)
    manager = Manager(
        pg=group,
        load_state_dict=load_state_dict,
        state_dict=state_dict,
        min_replica_size=args.ranks,
        timeout=timeout,
        quorum_timeout=timedelta(seconds=60),
        connect_timeout=timeout,
        rank=0,
        world_size=1,
        world_size_mode=WorldSizeMode.FIXED_WITH_SPARES,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=args.lighthouse,
        replica_id=f"replica_{args.worker}",
        hostname="127.0.0.1",
        heartbeat_interval=timedelta(milliseconds=args.heartbeat_interval_ms),
        init_sync=False,
    )

    while manager.current_step() < args.steps_max:
        manager.start_quorum()
        seat = manager.participating_rank()
        taking_part = manager.is_participating()
        flat.zero_()
        if taking_part:
            step = manager.current_step()
            for micro_batch in range(dims.micro_batches_per_rank):
                loss = loss_of(model, *batch_of(dims, step=step, rank=seat, micro_batch=micro_batch))
                (loss / dims.micro_batches_per_rank).backward()
        manager.allreduce(flat).wait()
        if manager.errored() and not args.keep_group_on_error:
            group.abort()
        if manager.should_commit():
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            log.step_done(rank=seat if taking_part else -1, step=manager.current_step())


if __name__ == "__main__":
    main()
