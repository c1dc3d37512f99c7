"""The formulas against published parameter counts, FLOPs and kept bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.graph.transformer import Attention, Blocks, Transformer, transformer_costs

GPT3 = Transformer(
    name="gpt3-175b",
    blocks=Blocks(name="block", layers=96, hidden=12288, heads=96),
    vocabulary=51200,
    sequence=2048,
)
NEOX = Transformer(
    name="gpt-neox-20b",
    blocks=Blocks(name="block", layers=44, hidden=6144, heads=64),
    vocabulary=50432,
    sequence=2048,
    positions=False,
    tied=False,
    dropout=False,
)
LLAMA = Transformer(
    name="llama-65b",
    blocks=Blocks(name="block", layers=80, hidden=8192, heads=64, ffn=22016, gated=True, bias=False),
    vocabulary=32000,
    sequence=2048,
    positions=False,
    tied=False,
    dropout=False,
    attention=Attention.FLASH,
)
TITAN = Transformer(
    name="ernie-3.0-titan",
    blocks=Blocks(name="universal", layers=48, hidden=12288, heads=192, ffn=196608),
    further=(
        Blocks(name="understanding", layers=12, hidden=768, heads=12, cut=False),
        Blocks(name="generation", layers=12, hidden=768, heads=12, cut=False),
    ),
    vocabulary=46000,
    sequence=512,
    tied=False,
)


def test_parameters_are_those_of_the_released_checkpoints() -> None:
    # numbers of elements of the released weights (Hugging Face: huggyllama/llama-65b, EleutherAI/gpt-neox-20b)
    assert transformer_costs(NEOX).params == 20_554_567_680
    assert transformer_costs(LLAMA).params == 65_285_660_672


@pytest.mark.parametrize(
    ("billions", "heads", "hidden", "layers"),
    [(1.7, 24, 2304, 24), (7.5, 32, 4096, 36), (39.1, 64, 8192, 48), (145.6, 96, 12288, 80), (1008.0, 160, 25600, 128)],
)
def test_parameters_and_flops_are_those_of_megatron(billions: float, heads: int, hidden: int, layers: int) -> None:
    """arXiv 2104.04473: table 1, eq. 2 and eq. 3 (a step with all blocks recomputed)."""
    blocks = Blocks(name="block", layers=layers, hidden=hidden, heads=heads)
    costs = transformer_costs(replace(GPT3, blocks=blocks))
    assert costs.params / 1e9 == pytest.approx(billions, abs=0.06)
    v, s = 51200, 2048
    closed = 12 * layers * hidden**2 * (1 + 13 / (12 * hidden) + (v + s) / (12 * layers * hidden))
    assert costs.params - 2 * hidden == pytest.approx(closed, rel=1e-12)  # eq. 2 leaves out the last norm
    block, head = costs.kinds[1], costs.kinds[2]
    step = layers * (2 * block.forward_flops + block.backward_flops) + head.forward_flops + head.backward_flops
    assert step == pytest.approx(96 * s * layers * hidden**2 * (1 + s / (6 * hidden) + v / (16 * layers * hidden)), rel=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 8])
def test_kept_bytes_of_a_block_are_those_of_korthikanti(degree: int) -> None:
    """arXiv 2205.05198, table 2."""
    s, h, a = 2048, 12288, 96

    def kept(model: Transformer) -> float:
        block = transformer_costs(model).kinds[1]
        return block.kept_bytes - block.cut_kept_bytes + block.cut_kept_bytes / degree

    assert kept(GPT3) == pytest.approx(s * h * (10 + 24 / degree + 5 * a * s / (h * degree)))
    assert kept(replace(GPT3, sequence_parallel=True)) == pytest.approx(s * h / degree * (34 + 5 * a * s / h))
    assert kept(replace(GPT3, attention=Attention.RECOMPUTED)) == pytest.approx(s * h * (10 + 24 / degree))
    both = replace(GPT3, attention=Attention.RECOMPUTED, sequence_parallel=True)
    assert kept(both) == pytest.approx(34 * s * h / degree)


def test_the_head_keeps_what_korthikanti_counts() -> None:
    """arXiv 2205.05198 section 4.3: 4 s h (1 + v / h)."""
    head = transformer_costs(GPT3).kinds[-1]
    assert head.kept_bytes == 4 * 2048 * 12288 * (1 + 51200 / 12288)


def test_selective_recomputation_adds_the_share_of_flops_that_korthikanti_counts() -> None:
    """arXiv 2205.05198 section 5: of a block, 72 s h^2 (1 + s / 6h), and the two products of attention once more."""
    s, h = 2048, 12288

    def step(attention: Attention) -> float:
        block = transformer_costs(replace(GPT3, attention=attention)).kinds[1]
        return block.forward_flops + block.backward_flops

    assert step(Attention.MATERIALISED) == pytest.approx(72 * s * h**2 * (1 + s / (6 * h)))
    assert step(Attention.RECOMPUTED) - step(Attention.MATERIALISED) == pytest.approx(4 * s * s * h)
    assert step(Attention.FLASH) - step(Attention.MATERIALISED) == pytest.approx(2 * s * s * h)


def test_a_block_reduces_its_activations_twice_in_each_direction() -> None:
    """arXiv 2104.04473 section 3.2: two all-reduces of b s h forward; embedding and head add one in each direction."""
    costs = transformer_costs(GPT3)
    assert costs.kinds[1].reduced_bytes == 2 * 2048 * 12288 * 2
    assert costs.kinds[0].reduced_bytes + costs.kinds[2].reduced_bytes == 2048 * 12288 * 2


def test_titan_has_260_billion_parameters_and_unlike_layers() -> None:
    costs = transformer_costs(TITAN)
    universal = sum(layer.params for layer in costs.layers if layer.name == "universal")
    assert universal / 1e9 == pytest.approx(260.9, abs=0.1)  # 48 (4 h^2 + 2 h ffn), arXiv 2112.12731
    names = [layer.name for layer in costs.layers]
    assert len(names) == 1 + 48 + 2 * 14
    assert names[48:51] == ["universal", "understanding.projection", "understanding"]
    assert names[-1] == "generation.head"
    small = costs.kinds[costs.order[-2]]
    assert small.params / 1e6 == pytest.approx(85 / 12, rel=0.01)  # "about 85 M" in 12 layers
    assert small.cut_params == small.cut_forward_flops == small.cut_kept_bytes == small.reduced_bytes == 0
    assert costs.tensor_max == 192


def test_flash_attention_keeps_no_scores() -> None:
    plain = transformer_costs(replace(LLAMA, attention=Attention.MATERIALISED)).kinds[1]
    flash = transformer_costs(LLAMA).kinds[1]
    assert plain.kept_bytes - flash.kept_bytes == 64 * 2048 * (2048 * 2 - 4)
    assert plain.work_bytes >= flash.work_bytes


def test_fewer_heads_of_keys_make_smaller_matrices_and_a_smaller_degree() -> None:
    grouped = transformer_costs(replace(LLAMA, blocks=replace(LLAMA.blocks, kv_heads=8)))
    assert transformer_costs(LLAMA).kinds[1].params - grouped.kinds[1].params == 2 * 8192 * (8192 - 1024)
    assert grouped.tensor_max == 8


def test_single_precision_doubles_what_is_no_mask() -> None:
    half = transformer_costs(NEOX).kinds[1]
    single = transformer_costs(replace(NEOX, activation_bytes=4)).kinds[1]
    assert single.kept_bytes == 2 * half.kept_bytes
    assert single.boundary_bytes == 2 * half.boundary_bytes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 7}, "heads divide hidden"),
        ({"kv_heads": 5}, "kv_heads divide heads"),
        ({"layers": 0}, "at least 1"),
        ({"ffn": -1}, "at least 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(NEOX.blocks, **change)  # type: ignore[arg-type]


def test_heads_of_further_modules_cannot_be_tied() -> None:
    with pytest.raises(ValueError, match="tied"):
        replace(TITAN, tied=True)
    with pytest.raises(ValueError, match="at least 1"):
        replace(TITAN, sequence=0)
