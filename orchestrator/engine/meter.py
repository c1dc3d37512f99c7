"""What a stretch of PyTorch code does to memory: bytes its operators move, bytes alive at once, bytes kept for the backward pass.

It works on real tensors and on fake ones (on the `meta` device, with no storage behind them) alike, because it only looks at
shapes and at which storage belongs to whom. A storage counts once, however many tensors are views of it, and it counts whole: a
view that is kept keeps all of it. Scratch that a kernel takes for itself is not seen.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

_aten = torch.ops.aten
_NO_TRAFFIC = frozenset({_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided})
_ROWS_ONLY = frozenset({_aten.embedding, _aten.index_select, _aten.gather, _aten.index})  # read as much as they write


def _attention_flops(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], products: int) -> int:
    """Of `products` matrix products between queries, keys and values of shape [batch, heads, length, width]."""
    return products * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _attention_forward(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: Any, **__: Any) -> int:
    return _attention_flops(q, k, v, 2)  # two products of two FLOPs each, over halves of (q + v)


def _attention_backward(_: Any, q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *__: Any, **___: Any) -> int:
    return _attention_flops(q, k, v, 5)  # scores again, and the gradients of scores, queries, keys and values


_CPU_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flop_counter() -> FlopCounterMode:
    """torch's own, which also knows the attention kernel of the CPU. A multiply-add is two; a causal mask saves nothing."""
    return FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """What a tensor lies in; None for a layout that has none (sparse)."""
    return tensor.untyped_storage() if tensor.layout is torch.strided else None


class Meter(TorchDispatchMode):
    """Inside, operators are watched; their inputs that were there before do not count as alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = 0  # bytes that operators have read and written
        self.live = 0  # bytes in storages that were made inside and are still there
        self.peak = 0  # the most that was alive since `mark`
        self._known: Any = WeakIdKeyDictionary()

    def mark(self) -> None:
        """The peak begins anew."""
        self.peak = self.live

    def made(self, tensor: Tensor) -> None:
        """Count a tensor that was made outside as alive."""
        self._enter(storage_of(tensor), counts=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operator."""
        inputs = _tensors((args, kwargs or {}))
        for t in inputs:
            self._enter(storage_of(t), counts=False)
        out = func(*args, **(kwargs or {}))
        outputs = _tensors(out)
        before = {id(storage_of(t)) for t in inputs}
        aliases = all(id(storage_of(t)) in before for t in outputs)
        for t in outputs:
            self._enter(storage_of(t), counts=True)
        packet = getattr(func, "overloadpacket", None)
        if outputs and packet not in _NO_TRAFFIC and (not aliases or func._schema.is_mutable):
            written = sum(map(_bytes, outputs))
            self.moved += 2 * written if packet in _ROWS_ONLY else written + sum(map(_bytes, inputs))
        return out

    def _enter(self, storage: torch.UntypedStorage | None, *, counts: bool) -> None:
        if storage is None or storage in self._known:
            return
        nbytes = storage.nbytes() if counts else 0
        self._known[storage] = nbytes
        if nbytes:
            self.live += nbytes
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._leave, nbytes)

    def _leave(self, nbytes: int) -> None:
        self.live -= nbytes


class Kept:
    """Storages that autograd keeps for the backward pass, those of `outside` (parameters, buffers) left out."""

    def __init__(self, outside: Iterable[Tensor]) -> None:
        self._outside: Any = WeakIdKeyDictionary()
        self._kept: Any = WeakIdKeyDictionary()
        for t in outside:
            storage = storage_of(t)
            if storage is not None:
                self._outside[storage] = 0

    def watching(self) -> AbstractContextManager[object]:
        """Inside, what autograd saves is noted."""
        return torch.autograd.graph.saved_tensors_hooks(self._note, lambda saved: saved)

    def add(self, *tensors: Tensor) -> None:
        """What is kept by other hands."""
        for t in tensors:
            self._note(t)

    def bytes(self, without: Tensor | None = None) -> int:
        """What is kept now, but for the storage of one tensor."""
        left_out = storage_of(without) if without is not None else None
        return sum(n for storage, n in self._kept.items() if storage is not left_out)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = storage_of(tensor)
        if storage is not None and storage not in self._outside:
            self._kept[storage] = storage.nbytes()
        return tensor


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Elements that there are, not those that an expanded view repeats."""
    storage = storage_of(tensor)
    nbytes = tensor.numel() * tensor.element_size()
    return nbytes if storage is None else min(nbytes, storage.nbytes())
