"""The GPT task: the same batches in every process, honest bits per byte, and it learns."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orchestrator.core.job import OptimizerSettings, TaskRef
from orchestrator.engine.layered import LayeredStage
from orchestrator.engine.task import NamedShard, Task, TaskError, seed_everything
from orchestrator.engine.tasks.gpt import GPT, Block
from orchestrator.engine.tasks.loading import load_task

ROOT = Path(__file__).parents[3]
SETTINGS = OptimizerSettings(
    lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, warmup_steps=0, min_lr_ratio=0.1, clip_grad_norm=0.0
)
PAIRS = """
class Pairs:
    vocab_size = 1 << 16
    def encode(self, text):
        data = text.encode() + b" " * (len(text.encode()) % 2)
        return [data[i] << 8 | data[i + 1] for i in range(0, len(data), 2)]
    def decode(self, ids): return b"".join(bytes([i >> 8, i & 255]) for i in ids).decode()

pairs = Pairs()

class Liar(Pairs):
    vocab_size = 100

class Deaf:
    vocab_size = 3
    def encode(self, text): return []
"""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def train(task: Task, *, steps: int, seed: int = 0) -> list[float]:
    """The bare loop of one rank; what the engine does, without ranks."""
    seed_everything(seed=seed, step=-1, micro_batch=0)
    model = task.build_model()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = task.build_optimizer([NamedShard(name, p, p.ndim, 0, p.numel()) for name, p in named], SETTINGS)
    stage = LayeredStage(task, model, seed=seed, scale=1.0)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(stage.forward(0, None, step=step, number=0).item())
        stage.backward(0, None)
        optimizer.step()
    return losses


def batch_digest() -> str:
    task = GPT(batch_size=3, context=32)
    digest = hashlib.sha256()
    for step in range(3):
        for micro_batch in range(2):
            for tensor in task.batch(seed=5, step=step, micro_batch=micro_batch):
                digest.update(bytes(tensor.numpy()))
        for tensor in task.eval_batch(seed=5, index=step):
            digest.update(bytes(tensor.numpy()))
    return digest.hexdigest()


def test_batches_are_equal_in_any_order() -> None:
    task = GPT(batch_size=3, context=32)
    later = task.batch(seed=5, step=9, micro_batch=1)
    task.batch(seed=5, step=0, micro_batch=0)
    assert torch.equal(later[0], task.batch(seed=5, step=9, micro_batch=1)[0])
    assert not torch.equal(later[0], task.batch(seed=5, step=9, micro_batch=0)[0])
    assert not torch.equal(later[0], task.batch(seed=6, step=9, micro_batch=1)[0])


@pytest.mark.slow
def test_batches_are_equal_in_another_process() -> None:
    """Whose strings have other hashes."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_gpt; print(test_gpt.batch_digest())"
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    env = {**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT, env=env, timeout=200
    )
    assert done.stdout.strip() == batch_digest()


def test_the_default_model_has_about_a_million_parameters_and_tied_embeddings() -> None:
    model = GPT().build_model()
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1.1e6
    names = [name for name, _ in model.named_parameters()]
    assert "embed.tokens.weight" in names
    assert "last.head.weight" not in names


def test_its_layers_in_a_row_are_the_model() -> None:
    task = GPT(layers=3, width=16, heads=2, context=16)
    model = task.build_model()
    batch = task.batch(seed=0, step=0, micro_batch=0)
    assert [name for name, _ in task.stack(model)] == ["embed", "block0", "block1", "block2", "head"]
    assert (
        sum(p.numel() for _, layer in task.stack(model) for p in set(layer.parameters()))
        == sum(p.numel() for p in model.parameters()) + 256 * 16
    ), "the tied weights belong to both ends"
    assert task.loss(model, batch) == task.criterion(model(task.inputs(batch)), batch)


def test_the_rows_of_qkv_are_head_by_head() -> None:
    """A block with half of the rows (and columns behind them) computes half of the heads."""
    torch.manual_seed(0)
    block = Block(width=16, heads=4, dropout=0.0)
    x = torch.randn(2, 8, 16)
    half = Block(width=16, heads=4, dropout=0.0)
    half.load_state_dict(block.state_dict())
    mixed = []
    for rows, columns in ((slice(0, 24), slice(0, 8)), (slice(24, 48), slice(8, 16))):
        half.qkv.weight.data, half.qkv.bias.data = block.qkv.weight.data[rows], block.qkv.bias.data[rows]
        half.attention_out.weight.data = block.attention_out.weight.data[:, columns]
        half.attention_out.bias.data = torch.zeros(16)
        half.mlp_out.weight.data, half.mlp_out.bias.data = torch.zeros(16, 64), torch.zeros(16)
        mixed.append(half(x) - x)
    block.mlp_out.weight.data.zero_()
    block.mlp_out.bias.data.zero_()
    torch.testing.assert_close(mixed[0] + mixed[1] + block.attention_out.bias, block(x) - x)


def test_it_learns_and_its_bits_per_byte_start_at_eight() -> None:
    task = GPT(layers=2, width=32, heads=2, context=32, batch_size=8)
    losses = train(task, steps=20)
    assert task.metrics(losses[0])["bits_per_byte"] == pytest.approx(8.0, abs=0.2)
    assert sum(losses[-3:]) / 3 < losses[0] - 1.5
    assert train(task, steps=20) == losses


def test_dropout_is_drawn_from_the_seed_of_the_micro_batch() -> None:
    task = GPT(layers=1, width=16, heads=2, context=16, batch_size=2, dropout=0.2)
    assert train(task, steps=4) == train(task, steps=4)
    model = task.build_model()
    batch = task.batch(seed=0, step=0, micro_batch=0)
    drawn = []
    for micro_batch in (0, 1, 0):
        seed_everything(seed=0, step=0, micro_batch=micro_batch)
        drawn.append(task.loss(model, batch).item())
    assert drawn[0] == drawn[2] != drawn[1]


def test_no_position_sees_the_future() -> None:
    model = GPT(layers=2, width=16, heads=2, context=16).build_model().eval()
    ids = torch.randint(256, (1, 16))
    changed = ids.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 256
    a, b = model(ids), model(changed)
    assert torch.allclose(a[:, :9], b[:, :9], atol=1e-6)
    assert not torch.allclose(a[:, 9:], b[:, 9:], atol=1e-3)


@pytest.mark.parametrize("name", ["pairs", "Pairs"])
def test_bits_per_byte_count_the_bytes_behind_a_token(tmp_path: Path, name: str) -> None:
    (tmp_path / "tok.py").write_text(PAIRS)
    options = json.dumps({"tokenizer": f"tok.py:{name}", "layers": 1, "width": 8, "heads": 1, "context": 8})
    task = load_task(TaskRef(target="gpt", options_json=options, base_dir=str(tmp_path)))
    assert isinstance(task, GPT)
    bits = task.metrics(math.log(2))["bits_per_byte"]  # one bit a token, and a token stands for two bytes
    assert bits == pytest.approx(0.5, rel=1e-3)
    inputs, _ = task.batch(seed=0, step=0, micro_batch=0)
    assert inputs.max() > 255
    assert task.loss(task.build_model(), task.batch(seed=0, step=0, micro_batch=0)).item() == pytest.approx(
        math.log(1 << 16), rel=0.05
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "tok.py:Liar"}, r"the tokenizer gave ids \d+\.\.\d+, outside 0\.\.99"),
        ({"tokenizer": "tok.py:Deaf"}, "lacks decode: it needs vocab_size"),
        ({"heads": 3}, "width 128 must be a multiple of heads 3"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"text": "short.txt"}, r"the (training|held-out) text has \d+ tokens, a window needs 129; use more text"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    (tmp_path / "tok.py").write_text(PAIRS)
    (tmp_path / "short.txt").write_text("too short to train on\n" * 3)
    with pytest.raises(TaskError, match=message):
        GPT(base_dir=tmp_path, **options)


def test_another_persons_convnet_runs_through_the_same_loop() -> None:
    ref = TaskRef(target="convnet.py:Digits", options_json="{}", base_dir=str(ROOT / "examples" / "convnet"))
    task = load_task(ref)
    losses = train(task, steps=50)
    assert losses[0] > 2.0
    assert sum(losses[-5:]) / 5 < 0.7
