"""How the training programs behave whose plans we cost: ours, and those of the published figures we hold the model against.

Bytes are per parameter. The constants of OURS are read off the engine, module by module; `act_s`, `call_s`, `step_s` and
`rank_bytes` are of a CPU worker and are to be replaced by what is measured where that is known. Those of others are from their
papers where one is named; what is marked as assumed has no source but plausibility.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.planner.strategy import Program

MIB = 1 << 20
SUM_BYTES = 8  # memory traffic per element and micro-batch of the canonical tree: half of the leaves are zeroed, half are added

OURS = Program(
    name="ours",
    weight_bytes=4,  # engine/model_state.py: one flat fp32 vector; bf16 is by autocast, which keeps no weights
    gradient_bytes=4,  # engine/accumulate.py: flat fp32 sums of whole stages; engine/optim.py: and a reduced one of what is held
    optimizer_bytes=8,  # AdamW's two moments in fp32; the master weights are the weights
    exchanged_bytes=4,  # engine/reduce.py sends fp32, every partial sum of a rank
    gathered_bytes=4,  # engine/training.py _gather, engine/weights.py _gather
    overlap=0.0,  # engine/training.py: reduces after the last micro-batch, updates, gathers, in turn
    act_s=2e-4,  # assumed: seeding, phases, a gloo header
    call_s=3.5e-3,  # on a CPU: DTensor's dispatch 2, measured with a group that does nothing; the rest from bench.plan_accuracy
    step_s=3e-3,  # assumed: the commit exchange and the report of a step
    update_bytes=104.0,  # AdamW's nine kernels 80, clip 8, norm and fold of the reduced gradient 16; measured 95 to 130
    rank_bytes=330 * MIB,  # measured: 290 to 320 of a process that trains next to nothing, and holes that its allocator keeps
    bucket_bytes=64 * MIB,  # engine/reduce.py SCRATCH_BYTES
    peer_reads=True,  # engine/training.py: copies are sent the reduced gradient and make the same update
    sums_kept=True,  # engine/accumulate.py
    straight=True,  # engine/reduce.py, engine/weights.py
    scattered=False,  # engine/pipeline.py: each coordinate sends all of its boundary
)

# Under `consistency: fast` a rank has one sum (engine/accumulate.py); from ZeRO-2 on it streams as OURS does (engine/weights.py).
FAST = replace(OURS, name="ours, fast", sums_kept=False)

MEGATRON = Program(
    name="megatron",  # mixed precision as in arXiv 2104.04473 section 5; memory as in arXiv 1910.02054 section 3.1
    weight_bytes=2,
    gradient_bytes=4,  # main gradients in fp32
    optimizer_bytes=12,  # fp32 weights and two moments
    exchanged_bytes=4,
    gathered_bytes=2,
    overlap=0.0,  # arXiv 2104.04473: gradients are all-reduced after the pipeline flush
    act_s=0.0,  # assumed: hidden, for kernels are queued ahead
    call_s=0.0,
    step_s=0.0,  # assumed: as little
    update_bytes=36.0,  # fused Adam: gradient 4, weights and moments read and written 24, half weights 2, norm 4, zeroing 2
    rank_bytes=2 * 1024 * MIB,  # assumed: CUDA context and library buffers
    bucket_bytes=512 * MIB,  # assumed
    peer_reads=False,
    sums_kept=False,
    straight=False,
    scattered=True,
)

DEEPSPEED = Program(
    name="deepspeed",  # arXiv 1910.02054 section 3.1 and 5: 2 + 2 + 12 bytes per parameter
    weight_bytes=2,
    gradient_bytes=2,
    optimizer_bytes=12,
    exchanged_bytes=2,
    gathered_bytes=2,
    overlap=0.8,  # assumed; section 5.2: buckets are reduced during the backward pass; the last one is not hidden
    act_s=0.0,  # assumed, as above
    call_s=0.0,
    step_s=0.0,
    update_bytes=34.0,  # as above with gradients of two bytes
    rank_bytes=2 * 1024 * MIB,  # assumed, as above
    bucket_bytes=1024 * MIB,  # reduce and gather buckets of 5e8 bytes, its default
    peer_reads=False,
    sums_kept=False,
    straight=False,
    scattered=True,
)
