"""Model files: the examples have the parameters of the released models, and every bad file is refused with the text beside it.

After a deliberate change of a message: `SPEC_GOLDEN=write pytest tests/unit/spec/test_model_file.py`.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.graph.costs import Timing
from orchestrator.spec.document import read
from orchestrator.spec.errors import SpecError
from orchestrator.spec.model_file import load_model, model_of, render

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
EXAMPLES = ROOT / "examples" / "models"
BAD = HERE / "bad_models"
NAMES = sorted(path.stem for path in BAD.glob("*.yaml"))
SEEN_BY_THE_SCHEMA = [
    *("01-misspelt-key", "05-out-of-bounds", "06-in-a-further-module", "08-attention", "09-layer-without-costs", "10-no-layers"),
    *("11-flops-in-quotes", "14-a-job-file", "15-key-of-the-other-level", "17-timing", "18-layers-is-a-mapping"),
]

PARAMETERS = {  # elements of the released checkpoints, or, where there is none, as published in billions
    "bloom-176b": 176_247_271_424 - 2 * 14_336,  # without the norm after the embedding
    "gpt-neox-20b": 20_554_567_680,
    "llama-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192,
    "resnet-50": 25_557_032,
    "gpt3-175b": 174.6e9,  # arXiv 2104.04473, table 2
    "opt-175b": 174.6e9,
    "mt-nlg-530b": 529.6e9,  # arXiv 2104.04473, table 1
    "megatron-1t": 1008.0e9,
    "ernie-titan-260b": 260.9e9 + 2 * 85e6 + 40_000 * 12_288,  # universal blocks, task modules, embedding
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: str(p.stem))
def test_an_example_has_the_parameters_of_its_model(path: Path) -> None:
    costs = load_model(path)
    assert costs.name == path.stem
    expected = PARAMETERS[path.stem]
    assert costs.params == (expected if isinstance(expected, int) else pytest.approx(expected, rel=1e-3))
    assert costs.splits


def test_listed_layers_are_unfolded_in_order() -> None:
    costs = load_model(EXAMPLES / "resnet-50.yaml")
    assert [layer.name for layer in costs.layers][:4] == ["stem", "stage1-first", "stage1", "stage1"]
    assert len(costs.kinds) == 10
    assert sum(layer.forward_flops for layer in costs.layers) / 1e9 == pytest.approx(8.2, abs=0.05)  # 4.1 G multiply-adds


def test_every_key_of_a_listed_layer_arrives() -> None:
    costs = model_of(
        """
name: net
samples_per_unit: 32
tensor_max: 8
layers:
  - name: a
    count: 2
    params: 1001
    buffers: 3
    flops: 100
    backward_flops: 150
    moved_bytes: 7
    kept_bytes: 20
    work_bytes: 5
    output_bytes: 4
    cut: 0.5
    reduced_bytes: 8
    timings: [{device: a100, forward_ms: 1.5, backward_ms: 4}]
  - {name: b, params: 1, flops: 10, kept_bytes: 0, output_bytes: 4}
"""
    )
    a, b = costs.kinds
    assert costs.order == (0, 0, 1)
    assert (costs.samples_per_unit, costs.tensor_max) == (32.0, 8)
    assert (a.params, a.cut_params, a.buffers) == (1001, 500, 3)
    assert (a.forward_flops, a.cut_forward_flops, a.backward_flops, a.cut_backward_flops) == (100, 50, 150, 75)
    assert (a.moved_bytes, a.kept_bytes, a.cut_kept_bytes, a.work_bytes) == (7, 20, 10, 5)
    assert (a.boundary_bytes, a.reduced_bytes) == (4, 8)
    assert a.timings == (Timing("a100", 0.0015, 0.004),)
    assert (b.backward_flops, b.work_bytes, b.timings) == (20, 8, ())


def test_the_dimensions_of_a_transformer_arrive() -> None:
    text = "name: t\ntransformer: {{layers: 2, hidden: 64, heads: 4, vocabulary: 100, sequence: 16{more}}}\n"
    plain = model_of(text.format(more=""))
    assert plain.params == 2 * (12 * 64 * 64 + 13 * 64) + 100 * 64 + 16 * 64 + 2 * 64
    assert model_of(text.format(more=", positions: false")).params == plain.params - 16 * 64
    assert model_of(text.format(more=", tied: false")).params == plain.params + 100 * 64
    assert model_of(text.format(more=", ffn: 64")).params == plain.params - 2 * (6 * 64 * 64 + 3 * 64)
    assert model_of(text.format(more=", kv_heads: 2")).tensor_max == 2
    block = plain.kinds[1]
    assert model_of(text.format(more=", dropout: false")).kinds[1].kept_bytes < block.kept_bytes
    assert model_of(text.format(more=", attention: flash")).kinds[1].kept_bytes < block.kept_bytes
    assert model_of(text.format(more=", activation_bytes: 4")).kinds[1].boundary_bytes == 2 * block.boundary_bytes
    parallel = model_of(text.format(more=", sequence_parallel: true")).kinds[1]
    assert parallel.cut_kept_bytes == parallel.kept_bytes == block.kept_bytes


def test_there_are_enough_bad_ones() -> None:
    assert len(NAMES) >= 20
    assert {path.stem for path in BAD.glob("*.txt")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_message_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(SpecError) as caught:
        load_model(f"{name}.yaml")
    golden = BAD / f"{name}.txt"
    if os.environ.get("SPEC_GOLDEN") == "write":
        golden.write_text(caught.value.render() + "\n", encoding="utf-8")
    assert caught.value.render() + "\n" == golden.read_text(encoding="utf-8")


def test_a_file_that_is_not_there_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no such file\n    fix: name a model file"):
        load_model(tmp_path / "model.yaml")
    with pytest.raises(SpecError, match="is a folder, not a model file"):
        load_model(tmp_path)


def test_absurd_sizes_are_refused_quickly() -> None:
    with pytest.raises(SpecError, match="9999991 heads do not divide"):
        model_of("name: t\ntransformer: {layers: 1, hidden: 9999973, heads: 9999991, vocabulary: 1, sequence: 1}\n")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: str(p.stem))
def test_the_schema_accepts_the_examples(path: Path) -> None:
    validator().validate(read(path.read_text(encoding="utf-8"), file=path.name).root)


@pytest.mark.parametrize("name", SEEN_BY_THE_SCHEMA)
def test_the_schema_refuses_what_it_can_see(name: str) -> None:
    assert not validator().is_valid(read((BAD / f"{name}.yaml").read_text(encoding="utf-8"), file=name).root)


def validator() -> Any:
    jsonschema = importlib.import_module("jsonschema")  # comes with Ray; ships no types
    jsonschema.Draft202012Validator.check_schema(json.loads(render()))
    return jsonschema.Draft202012Validator(json.loads(render()))


def test_the_schema_in_docs_is_current() -> None:
    assert (ROOT / "docs" / "model.schema.json").read_text(encoding="utf-8") == render()
    assert json.loads(render())["title"] == "model.yaml"
