"""Backward passes in two halves, on graphs that are awkward to cut: the bits of the whole, each gradient added once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.engine.halves import first_half

Graph = Callable[[Tensor, Tensor, Tensor], Tensor]

GRAPHS: dict[str, tuple[Graph, str]] = {
    "a layer": (lambda x, w, v: F.gelu(F.linear(x, w)) * v[0], "joints"),
    "residual": (lambda x, w, v: x + F.linear(torch.tanh(x), w) + v.sum(), "joints"),
    "made of two": (lambda x, w, v: F.linear(x, w * torch.sigmoid(v)), "joints"),
    "two in one place": (lambda x, w, v: x @ (w @ v) @ x.transpose(0, 1), "joints"),
    "one three times": (lambda x, w, v: F.linear(torch.sin(F.linear(torch.cos(F.linear(x, w)), w, v[0])), w, v[0]), "joints"),
    "one three times as it is": (lambda x, w, v: torch.sin(torch.sin(x * w) * w) * w + v, "ready"),
    "one inside and outside": (lambda x, w, v: (x + torch.tanh(w * v)) * w, "ready"),
    "x plays no part": (lambda x, w, v: F.linear(w, v), "rest"),
}


def leaves() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, w, v = (torch.randn(6, 6, requires_grad=True) for _ in range(3))
    for p in (w, v):
        p.grad = torch.full_like(p, 0.1)
    return x, w, v


@pytest.mark.parametrize("name", GRAPHS)
def test_the_halves_make_the_whole(name: str) -> None:
    graph, left = GRAPHS[name]
    x, w, v = leaves()
    y = graph(x, w, v)
    dy = torch.randn_like(y)
    y.backward(dy)
    wanted = [x.grad, w.grad, v.grad]
    x, w, v = leaves()
    before = [p.grad.clone() for p in (w, v) if p.grad is not None]
    dx, second = first_half(graph(x, w, v), dy, x, [w, v])
    assert [p.grad.equal(b) for p, b in zip((w, v), before, strict=True) if p.grad is not None] == [True, True]
    assert bool(getattr(second, left)), "it is cut where it can be"
    second.run()
    for found, whole in zip((dx, w.grad, v.grad), wanted, strict=True):
        assert (found is None) == (whole is None)
        assert found is None or (whole is not None and torch.equal(found, whole))


def test_an_input_without_gradient_leaves_all_to_the_second_half() -> None:
    x, w, v = leaves()
    dx, second = first_half(F.linear(x.detach(), w) * v, torch.ones(6, 6), x.detach(), [w, v])
    assert dx is None
    second.run()
    assert w.grad is not None
    assert not torch.equal(w.grad, torch.full_like(w, 0.1))
