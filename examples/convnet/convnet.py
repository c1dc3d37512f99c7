"""A convolutional net with BatchNorm on images of digits: somebody's own model, run by the orchestrator as it is.

Nothing is downloaded: the images are drawn from 5 x 7 dot-matrix glyphs, turned, scaled, shifted and buried in noise.
In job.yaml:

    task: examples/convnet/convnet.py:Digits
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator import Task, TaskError
from orchestrator.engine.task import stable_seed

GLYPHS = """
.###. ..#.. .###. ##### ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# ...#. ..##. #.... .#... ....# #...# #...#
#..## ..#.. ....# ..#.. .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ...#. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ...#.
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .##..
"""
SIDE = 20


def glyphs() -> Tensor:
    """The ten digits, float32 [10, 1, 20, 20] with 1 for ink."""
    rows = [line.split() for line in GLYPHS.split("\n") if line]
    dots = torch.tensor([[[float(c == "#") for c in row[digit]] for row in rows] for digit in range(10)])
    large = dots.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)  # [10, 14, 10]
    return F.pad(large, (5, 5, 3, 3)).unsqueeze(1)


class ConvNet(nn.Module):
    """float32 [batch, 1, 20, 20] -> logits [batch, 10]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classify = nn.Linear(2 * width * (SIDE // 4) ** 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits."""
        return cast(Tensor, self.classify(self.features(images).flatten(1)))


class Digits(Task):
    """Which digit is it? A batch is (images float32 [batch_size, 1, 20, 20], labels int64 [batch_size])."""

    width: int = 12
    batch_size: int = 32
    noise: float = 0.3  # standard deviation; the ink is 1

    def setup(self) -> None:
        """Draws the clean digits."""
        if self.width < 1 or self.batch_size < 2:
            raise TaskError("digits: width must be at least 1 and batch_size at least 2 (BatchNorm needs a batch)")
        self._glyphs = glyphs()

    def build_model(self) -> nn.Module:
        """The net."""
        return ConvNet(self.width)

    def batch(self, *, seed: int, step: int, micro_batch: int) -> tuple[Tensor, Tensor]:
        """Training images."""
        return self._draw(stable_seed("train", seed, step, micro_batch))

    def eval_batch(self, *, seed: int, index: int) -> tuple[Tensor, Tensor]:
        """Held-out images: drawn from other seeds, so none was trained on."""
        return self._draw(stable_seed("held-out", seed, index))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy in nats per image."""
        images, labels = batch
        return F.cross_entropy(cast(Tensor, model(images)), labels)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """`perplexity`: among how many digits the net still hesitates, 10 at first and 1 at best."""
        return {"loss": mean_loss, "perplexity": math.exp(mean_loss)}

    @property
    def tokens_per_micro_batch(self) -> int:
        """Images in a micro-batch."""
        return self.batch_size

    def _draw(self, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        n = self.batch_size
        labels = torch.randint(10, (n,), generator=generator)
        angle, scale, dx, dy = (torch.rand(4, n, generator=generator) * 2 - 1) * torch.tensor([[0.25], [0.15], [0.2], [0.2]])
        cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
        theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
        grid = F.affine_grid(theta, [n, 1, SIDE, SIDE], align_corners=False)
        images = F.grid_sample(self._glyphs[labels], grid, align_corners=False)
        return images + self.noise * torch.randn(images.shape, generator=generator), labels
