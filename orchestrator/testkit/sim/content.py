"""What training computes, as numbers that give every mistake away.

Each block of the parameters and of the optimizer state is one integer, chained by a hash from step to step over the gradient,
which is a hash over all micro-batches, each of which sees all parameters. A region that is stale, torn, mixed up or updated
twice differs from the serial run from then on, everywhere. Hashes are of tuples of integers: equal in every process, whatever
PYTHONHASHSEED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BLOCK = 1024  # elements


def micro_batch(step: int, index: int, params: tuple[int, ...]) -> int:
    """The gradient of one micro-batch."""
    return hash((1, step, index, params))


def reduced(parts: Mapping[int, int]) -> int:
    """The gradient of a step, from all its micro-batches."""
    return hash((2, *(parts[m] for m in sorted(parts))))


def optim_after(optim: int, grad: int, block: int) -> int:
    """Optimizer state of a block after an update."""
    return hash((3, optim, grad, block))


def params_after(params: int, optim: int, block: int) -> int:
    """Parameters of a block after an update that left `optim`."""
    return hash((4, params, optim, block))


def loss_of(grad: int) -> float:
    """The loss that goes with a gradient."""
    return (grad & 0xFFFF) / 16384


def digest_of(params: Sequence[int], optim: Sequence[int]) -> str:
    """Of the whole state."""
    return f"{hash((tuple(params), tuple(optim))) & (2**64 - 1):016x}"


class Serial:
    """The run in which nothing failed: params[n], optim[n] by block and grad[n], after step n."""

    def __init__(self, *, blocks: int, micro_batches: int, steps: int) -> None:
        self.params: list[tuple[int, ...]] = [tuple(hash((5, b)) for b in range(blocks))]
        self.optim: list[tuple[int, ...]] = [tuple(hash((6, b)) for b in range(blocks))]
        self.grad = [0]
        for n in range(1, steps + 1):
            p, o = self.params[-1], self.optim[-1]
            grad = reduced({m: micro_batch(n, m, p) for m in range(micro_batches)})
            after = tuple(optim_after(o[b], grad, b) for b in range(blocks))
            self.grad.append(grad)
            self.optim.append(after)
            self.params.append(tuple(params_after(p[b], after[b], b) for b in range(blocks)))

    def digest(self, step: int) -> str:
        """Of the whole state after a step."""
        return digest_of(self.params[step], self.optim[step])
