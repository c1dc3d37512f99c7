"""Published training runs of which enough is known to predict their step time: model, split, machines, and what was measured.

Megatron-LM on Selene: arXiv 2104.04473 tables 1 and 2, and 2205.05198 table 5. The tables were written down from memory and then
compared with public copies: a transcription of the first paper; NVIDIA/Megatron-LM examples/sc21/run_table_1.sh for splits,
micro-batches and interleaving of table 1; calculon-ai/calculon (calculon/llm/validation.py, validation/) for times and splits of
table 5. PyTorch FSDP: arXiv 2304.11277, read in a public transcription. Megatron-DeepSpeed on Jean Zay: read in
bigscience-workshop/bigscience, train/tr11-176B-ml/chronicles-prequel.md, all trials of the last round (02-28).
"""

from __future__ import annotations

from dataclasses import dataclass

SEQUENCE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run. `tflops` per device as published (eq. 3 of arXiv 2104.04473), or seconds of a step."""

    table: str
    name: str
    heads: int
    hidden: int
    layers: int
    tensor: int
    pipeline: int
    data: int
    batch: int  # sequences in a step
    micro: int  # sequences in a micro-batch
    chunks: int = 1  # stages per pipeline rank; more than 1: interleaved
    selective: bool = False  # attention alone recomputed, sequence parallel; else all blocks are recomputed
    zero: int = 0
    vocabulary: int = 51200
    tied: bool = True
    positions: bool = True
    dropout: bool = True
    program: str = "megatron"
    cluster: str = "selene"
    tflops: float = 0.0
    step_s: float = 0.0
    memory_gb: float = 0.0  # of the fullest device, as read from the driver; 0: not published

    @property
    def devices(self) -> int:
        """All that were used."""
        return self.tensor * self.pipeline * self.data

    @property
    def measured_s(self) -> float:
        """Seconds of a step: as published, or what the published throughput makes of the FLOPs of arXiv 2104.04473 eq. 3."""
        if self.step_s:
            return self.step_s
        s, h, n = SEQUENCE, self.hidden, self.layers
        flops = 96.0 * self.batch * s * n * h * h * (1 + s / (6 * h) + self.vocabulary / (16 * n * h))
        return flops / (self.tflops * 1e12 * self.devices)


def _table1() -> tuple[Case, ...]:
    """Weak scaling, section 5.1: all blocks recomputed, interleaved where the script says so."""
    rows = (  # billions, heads, hidden, layers, tensor, pipeline, devices, batch, TFLOP/s, micro, stages per rank
        ("1.7B", 24, 2304, 24, 1, 1, 32, 512, 137, 16, 1),
        ("3.6B", 32, 3072, 30, 2, 1, 64, 512, 138, 16, 1),
        ("7.5B", 32, 4096, 36, 4, 1, 128, 512, 142, 16, 1),
        ("18.4B", 48, 6144, 40, 8, 1, 256, 1024, 135, 8, 1),
        ("39.1B", 64, 8192, 48, 8, 2, 512, 1536, 138, 4, 1),
        ("76.1B", 80, 10240, 60, 8, 4, 1024, 1792, 140, 2, 3),
        ("145.6B", 96, 12288, 80, 8, 8, 1536, 2304, 148, 2, 2),
        ("310.1B", 128, 16384, 96, 8, 16, 1920, 2160, 155, 1, 2),
        ("529.6B", 128, 20480, 105, 8, 35, 2520, 2520, 163, 1, 3),
        ("1008B", 160, 25600, 128, 8, 64, 3072, 3072, 163, 1, 1),
    )
    return tuple(
        Case(
            table="Megatron-LM, 2104.04473 table 1",
            name=name,
            heads=heads,
            hidden=hidden,
            layers=layers,
            tensor=tensor,
            pipeline=pipeline,
            data=devices // (tensor * pipeline),
            batch=batch,
            micro=micro,
            chunks=chunks,
            tflops=tflops,
        )
        for name, heads, hidden, layers, tensor, pipeline, devices, batch, tflops, micro, chunks in rows
    )


def _table5() -> tuple[Case, ...]:
    """Times of one replica: full recomputation, and selective recomputation with sequence parallelism."""
    rows = (  # name, heads, hidden, layers, pipeline, batch, micro, stages per rank, full s, selective s
        ("22B", 64, 6144, 48, 1, 4, 4, 1, 1.42, 1.10),
        ("175B", 96, 12288, 96, 8, 64, 1, 3, 18.13, 13.75),
        ("530B", 128, 20480, 105, 35, 280, 1, 3, 49.05, 37.83),
        ("1T", 160, 25600, 128, 64, 512, 1, 1, 94.42, 71.49),
    )
    return tuple(
        Case(
            table="Megatron-LM, 2205.05198 table 5",
            name=f"{name} {'selective' if selective else 'full'}",
            heads=heads,
            hidden=hidden,
            layers=layers,
            tensor=8,
            pipeline=pipeline,
            data=1,
            batch=batch,
            micro=micro,
            chunks=chunks,
            selective=selective,
            step_s=present if selective else full,
        )
        for name, heads, hidden, layers, pipeline, batch, micro, chunks, full, present in rows
        for selective in (False, True)
    )


def _table2() -> tuple[Case, ...]:
    """Section 5.2: pipeline, tensor and data parallel beside DeepSpeed's ZeRO-3 without model parallelism.

    Not published: stages per rank; assumed are those of table 1 and of examples/sc21/run_figure_18.sh (175B, pipeline 12).
    """
    gpt3, turing = ("175B", 96, 12288, 96), ("530B", 128, 20480, 105)
    megatron = (  # model, pipeline, stages per rank, devices, batch, TFLOP/s
        (gpt3, 12, 4, 384, 1536, 153),
        (gpt3, 12, 4, 768, 1536, 149),
        (gpt3, 12, 4, 1536, 1536, 141),
        (turing, 35, 3, 560, 2240, 171),
        (turing, 35, 3, 1120, 2240, 167),
        (turing, 35, 3, 2240, 2240, 159),
    )
    deepspeed = (  # model, devices, batch, micro, TFLOP/s
        (gpt3, 384, 1536, 4, 144),
        (gpt3, 768, 1536, 2, 88),
        (gpt3, 1536, 1536, 1, 44),
        (turing, 640, 2560, 4, 138),
        (turing, 1120, 2240, 2, 98),
        (turing, 2240, 2240, 1, 48),
    )
    split = tuple(
        Case(
            table="Megatron-LM, 2104.04473 table 2",
            name=f"{model[0]} on {devices}",
            heads=model[1],
            hidden=model[2],
            layers=model[3],
            tensor=8,
            pipeline=pipeline,
            data=devices // (8 * pipeline),
            batch=batch,
            micro=1,
            chunks=chunks,
            tflops=tflops,
        )
        for model, pipeline, chunks, devices, batch, tflops in megatron
    )
    return split + tuple(
        Case(
            table="DeepSpeed ZeRO-3, 2104.04473 table 2",
            name=f"{model[0]} on {devices}",
            heads=model[1],
            hidden=model[2],
            layers=model[3],
            tensor=1,
            pipeline=1,
            data=devices,
            batch=batch,
            micro=micro,
            zero=3,
            program="deepspeed",
            tflops=tflops,
        )
        for model, devices, batch, micro, tflops in deepspeed
    )


def _bigscience() -> tuple[Case, ...]:
    """Splits tried for BLOOM on 48 nodes; bf16 with fp32 gradients, ZeRO-1, embedding and head count as layers in the cuts.

    The trials that ran out of memory are OUT_OF_MEMORY below.
    """
    rows = (  # hidden, layers, data, tensor, pipeline, micro, heads, memory GB, seconds (0: did not fit)
        (12288, 106, 8, 4, 12, 2, 64, 67, 116.54),
        (12288, 106, 8, 4, 12, 2, 96, 65, 118.79),
        (12288, 106, 8, 4, 12, 2, 128, 67, 121.42),
        (12288, 106, 8, 4, 12, 4, 96, 79, 120.34),
        (12288, 100, 8, 8, 6, 2, 64, 61, 139.72),
        (12288, 100, 8, 8, 6, 4, 64, 72, 120.96),
        (13312, 82, 4, 8, 12, 4, 64, 52, 111.79),
        (13312, 82, 8, 4, 12, 2, 64, 63, 104.45),
        (13312, 82, 8, 4, 12, 2, 104, 62, 123.71),
        (13312, 82, 8, 4, 12, 2, 128, 60, 108.78),
        (13312, 82, 8, 4, 12, 4, 64, 74, 104.82),
        (13312, 94, 8, 4, 12, 2, 128, 67, 124.10),
        (14336, 70, 4, 8, 12, 2, 64, 40, 121.63),
        (14336, 70, 8, 4, 12, 2, 64, 59, 102.03),
        (14336, 70, 8, 4, 12, 2, 112, 59, 104.50),
        (14336, 70, 8, 4, 12, 2, 128, 60, 105.89),
        (14336, 70, 8, 4, 12, 4, 64, 73, 102.27),
        (12288, 100, 16, 4, 6, 2, 64, 0, 0.0),
        (12288, 100, 16, 4, 6, 1, 64, 0, 0.0),
        (14336, 82, 8, 4, 12, 2, 128, 0, 0.0),
    )
    return tuple(
        Case(
            table="Megatron-DeepSpeed, BLOOM's trials",
            name=f"{hidden} x {layers}, {heads} heads, {micro} a time",
            heads=heads,
            hidden=hidden,
            layers=layers,
            tensor=tensor,
            pipeline=pipeline,
            data=data,
            batch=2048,
            micro=micro,
            zero=1,
            vocabulary=250_880,
            positions=False,
            dropout=False,
            program="megatron-deepspeed",
            cluster="jean-zay",
            step_s=seconds,
            memory_gb=memory,
        )
        for hidden, layers, data, tensor, pipeline, micro, heads, memory, seconds in rows
    )


def _fsdp() -> tuple[Case, ...]:
    """PyTorch FSDP, section 5.4: "more than" so much at one and two sequences per device, linear from 128 to 512 devices.

    Two numbers were published, so there are two rows. Assumed: the throughput counts recomputation (if not, a step took three
    quarters of the time below), and the network of 2 Tbit/s is that of a node.
    """
    return tuple(
        Case(
            table="PyTorch FSDP, 2304.11277 section 5.4",
            name=f"175B on {devices}, {micro} a time",
            heads=96,
            hidden=12288,
            layers=96,
            tensor=1,
            pipeline=1,
            data=devices,
            batch=devices * micro,
            micro=micro,
            zero=3,
            vocabulary=50_000,
            tied=False,
            program="deepspeed",
            cluster="roce",
            tflops=tflops,
        )
        for devices, micro, tflops in ((512, 1, 173), (512, 2, 186))
    )


MEGATRON_CASES = (*_table1(), *_table5())
OTHER_CASES = (*_table2(), *_fsdp(), *(case for case in _bigscience() if case.step_s))
OUT_OF_MEMORY = tuple(case for case in _bigscience() if not case.step_s)
