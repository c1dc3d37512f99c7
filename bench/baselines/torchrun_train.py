"""The training script as its users write it for torchrun: DDP, and a checkpoint each few steps to resume from.

torchrun answers a dead worker by stopping all workers and starting all again, so what was done since the last
checkpoint is done once more. Run by `measure.py` as `torchrun ... -m bench.baselines.torchrun_train`.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-log", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--checkpoint-every", type=int, default=10)
    parser.add_argument("--steps-max", type=int, default=100_000)
    add_dims_flags(parser)
    args = parser.parse_args()
    dims = dims_from(args)

    die_with_parent()
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    log = StepLog(args.step_log, worker=rank)
    dist.init_process_group("gloo")
    model = build_model(dims)
    ddp = DistributedDataParallel(model)
    optimizer = build_optimizer(model)
    step = 0
    if os.path.exists(args.checkpoint):
        saved = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]

    while step < args.steps_max:
        optimizer.zero_grad()
        for micro_batch in range(dims.micro_batches_per_rank):
            last = micro_batch == dims.micro_batches_per_rank - 1
            ddp.require_backward_grad_sync = last
            loss = loss_of(ddp, *batch_of(dims, step=step, rank=rank, micro_batch=micro_batch))
            (loss / dims.micro_batches_per_rank).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        step += 1
        log.step_done(rank=rank, step=step)
        if rank == 0 and step % args.checkpoint_every == 0:
            partial = f"{args.checkpoint}.partial"
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
            os.replace(partial, args.checkpoint)
            log.checkpoint_done(step=step)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
