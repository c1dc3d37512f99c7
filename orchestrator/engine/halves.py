"""A backward pass in two halves (zero-bubble pipelines, arXiv 2401.10241): the input's gradient now, the parameters' later.

Nodes of the graph that lead to the input are the *chain*. The first half runs the chain, and autograd skips what only parameters
need; kept is what arrives at those chain nodes that parameters hang on. The second half has each of these make the rest, and lets
that flow to the parameters as an ordinary backward pass does: the bits are the same. Where a parameter hangs on the graph in a
way that would let it be counted twice or added in another order (used at several places of one layer, mostly), everything is
computed in the first half, and the second only adds it. torch.distributed.pipelining has such halves too; it groups parameters,
and fails on graphs of the latter kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge


@dataclass(slots=True)
class _Joint:
    """A chain node, its edges that leave the chain towards parameters, and the gradients that arrived at it."""

    node: Node
    leaving: list[GradientEdge]
    arrived: tuple[Tensor | None, ...] = ()

    def arrive(self, gradients: Any) -> None:
        """The engine is about to run the node."""
        self.arrived = gradients


@dataclass(slots=True)
class SecondHalf:
    """What is left to do; run it once."""

    joints: list[_Joint] = field(default_factory=list)
    ready: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # parameter and gradient, where all is computed already
    rest: tuple[GradientEdge, Tensor] | None = None  # output and its gradient, where nothing is

    def run(self) -> None:
        """Adds to the parameters' `.grad`."""
        if self.rest is not None:
            torch.autograd.backward(*self.rest)
        with torch.no_grad():
            for param, gradient in self.ready:
                param.grad = gradient if param.grad is None else param.grad.add_(gradient)
        edges: list[GradientEdge] = []
        gradients: list[Tensor] = []
        while self.joints:
            joint = self.joints.pop()
            given = [(GradientEdge(joint.node, i), g) for i, g in enumerate(joint.arrived) if g is not None]
            if not given:
                continue
            made = torch.autograd.grad([edge for edge, _ in given], joint.leaving, [g for _, g in given], allow_unused=True)
            for edge, gradient in zip(joint.leaving, made, strict=True):
                if gradient is not None:
                    edges.append(edge)
                    gradients.append(gradient)
        if edges:
            torch.autograd.backward(edges, gradients)


def first_half(y: Tensor, dy: Tensor, x: Tensor, params: Sequence[Tensor]) -> tuple[Tensor | None, SecondHalf]:
    """The gradient of the leaf `x`, None where y does not depend on it, and what is left to do for the leaves `params`."""
    root = get_gradient_edge(y)
    order, edges_in = _walk(root.node)
    end = get_gradient_edge(x).node if x.requires_grad else None
    chain: set[Node] = set()
    for node in order:  # children come first
        if node is end or any(child in chain for child, _ in _children(node)):
            chain.add(node)
    if root.node not in chain:
        return None, SecondHalf(rest=(root, dy))
    joints = [joint for joint in (_joint(node, chain) for node in order if node in chain) if joint.leaving]
    if any(edges_in[edge.node] > 1 for joint in joints for edge in joint.leaving):
        made: list[Tensor | None] = [*torch.autograd.grad(y, [x, *params], dy, allow_unused=True)]
        return made[0], SecondHalf(ready=[(p, g) for p, g in zip(params, made[1:], strict=True) if g is not None])
    hooks = [joint.node.register_prehook(joint.arrive) for joint in joints]
    try:
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    finally:
        for hook in hooks:
            hook.remove()
    return dx, SecondHalf(joints=joints)


def _children(node: Node) -> Iterator[tuple[Node | None, int]]:
    return iter(node.next_functions)


def _joint(node: Node, chain: set[Node]) -> _Joint:
    return _Joint(node, [GradientEdge(c, i) for c, i in _children(node) if c is not None and c not in chain])


def _walk(root: Node) -> tuple[list[Node], dict[Node, int]]:
    """Every node of the graph after its children, and how many edges lead to it."""
    order: list[Node] = []
    edges_in: dict[Node, int] = {root: 0}
    path: list[tuple[Node, Iterator[tuple[Node | None, int]]]] = [(root, _children(root))]
    while path:
        node, children = path[-1]
        child = next(children, None)
        if child is None:
            path.pop()
            order.append(node)
        elif child[0] is not None:
            seen = child[0] in edges_in
            edges_in[child[0]] = edges_in.get(child[0], 0) + 1
            if not seen:
                path.append((child[0], _children(child[0])))
    return order, edges_in
