"""One rank of the loop that people write by hand: DistributedDataParallel over gloo, AdamW, clipping by global norm.

It is what our overhead is measured against: no checkpoint, no heartbeat, nothing looked at. Same model, same batches and the
same optimizer as ours (torch's fused AdamW, which is faster than AdamW as it comes), one thread.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bench.baselines.common_model import CLIP_NORM, batch_of, build_model, build_optimizer, loss_of
from bench.baselines.dims import add_dims_flags, dims_from
from bench.baselines.proc import die_with_parent
from bench.gate import Gate


def main() -> None:
    """Until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gate", required=True)
    parser.add_argument("--variant", required=True)
    add_dims_flags(parser)
    args = parser.parse_args()
    dims = dims_from(args)
    die_with_parent()
    torch.set_num_threads(1)
    gate = Gate(args.gate, args.variant)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=args.rank, world_size=args.ranks)
    model = build_model(dims)
    ddp = DistributedDataParallel(model)
    optimizer = build_optimizer(model)
    step = 0
    while True:
        step += 1
        gate.pass_step(step)
        optimizer.zero_grad()
        for own in range(dims.micro_batches_per_rank):
            ddp.require_backward_grad_sync = own == dims.micro_batches_per_rank - 1
            loss = loss_of(ddp, *batch_of(dims, step=step, rank=args.rank, micro_batch=own))
            (loss / dims.micro_batches_per_rank).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()


if __name__ == "__main__":
    main()
