"""Text to train on, cut once into a training and a held-out part that share no line.

The default is real text that every machine already has: the documentation topics of Python itself
(`pydoc_data.topics`). The text is cut into pieces at line ends and every n-th piece is held out, so both parts look
alike even if the text is sorted. The cut depends on the text alone; encoding happens once per process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

import torch
from torch import Tensor

from orchestrator.engine.task import TaskError
from orchestrator.engine.tasks.loading import user_traceback
from orchestrator.engine.tasks.tokenizer import BYTES, Tokenizer

TEXT_BYTES_MAX = 256 * 2**20
FILES_MAX = 100_000
PIECE_CHARS_MAX = 16_384
PIECES_MIN = 64  # a short text is cut finer, to hold out close to the fraction asked for
CACHE_MAX = 4

Files = tuple[tuple[Path, int, int], ...]
"""The files to read with size (bytes) and time of change (ns), which make the cache notice an edited file."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Encoded text. `train` and `held_out` are 1-D int tensors (uint8 for bytes, int32 otherwise); never written to."""

    train: Tensor
    held_out: Tensor
    vocab_size: int
    text_bytes: int  # UTF-8 bytes of the whole text

    @property
    def tokens_per_byte(self) -> float:
        """Of the whole text; 1.0 for the byte tokenizer."""
        return (self.train.numel() + self.held_out.numel()) / self.text_bytes

    def windows(self, *, held_out: bool, count: int, context: int, seed: int) -> tuple[Tensor, Tensor]:
        """`count` random windows: inputs and the targets one token later, both int64 [count, context], drawn from
        `seed` alone.
        """
        tokens = self.held_out if held_out else self.train
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(tokens.numel() - context, (count, 1), generator=generator)
        rows = tokens[starts + torch.arange(context + 1)].to(torch.int64)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


_CACHE: dict[tuple[Files, float, int], tuple[Tokenizer, Corpus]] = {}  # holds the tokenizer, so that its id stays its own


def load_corpus(text: str, *, base_dir: Path, val_fraction: float, tokenizer: Tokenizer = BYTES) -> Corpus:
    """The corpus of a file or folder (relative to `base_dir`), or the embedded one for the empty string; cached per
    process.

    A folder means all files in it, sorted by path, hidden ones left out. Raises TaskError if the text is missing,
    empty, too long or not UTF-8, or if the tokenizer fails.
    """
    if not 0.0 < val_fraction < 1.0:
        raise TaskError(f"val_fraction must be between 0 and 1, not {val_fraction}")
    files = _files(base_dir / text) if text else ()
    key = (files, val_fraction, id(tokenizer))
    if key not in _CACHE:
        corpus = _encode(files, val_fraction, tokenizer)
        while len(_CACHE) >= CACHE_MAX:
            del _CACHE[next(iter(_CACHE))]
        _CACHE[key] = (tokenizer, corpus)
    return _CACHE[key][1]


def embedded_text() -> str:
    """The documentation topics of the Python that runs this, sorted by name: about 0.5 MB of English with code."""
    return "\n\n".join(f"{name}\n\n{body}" for name, body in sorted(topics.topics.items()))


def split_text(text: str, val_fraction: float) -> tuple[list[str], list[str]]:
    """Training and held-out pieces of a text; together they are the text, and each part has at least one if there are
    two.
    """
    size = max(1, min(PIECE_CHARS_MAX, len(text) // PIECES_MIN))
    pieces: list[str] = []
    at = 0
    while at < len(text):
        line_end = text.find("\n", at + size - 1, at + 2 * size)
        stop = line_end + 1 if line_end >= 0 else at + size
        pieces.append(text[at:stop])
        at = stop
    wanted = min(max(1, round(len(pieces) * val_fraction)), max(1, len(pieces) - 1))
    chosen = {(2 * i + 1) * len(pieces) // (2 * wanted) for i in range(wanted)}
    return [p for i, p in enumerate(pieces) if i not in chosen], [p for i, p in enumerate(pieces) if i in chosen]


def _files(path: Path) -> Files:
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = []
        for folder, subfolders, names in os.walk(path):
            subfolders[:] = [s for s in subfolders if not s.startswith(".")]
            found += [Path(folder) / n for n in names if not n.startswith(".")]
        found.sort(key=lambda f: f.relative_to(path).parts)
        if not found:
            raise TaskError(f"text: the folder {path} has no files")
        if len(found) > FILES_MAX:
            raise TaskError(f"text: the folder {path} has {len(found)} files, more than {FILES_MAX}; join them")
    else:
        raise TaskError(f"text: there is no file or folder {path}; relative paths start in the folder of job.yaml")
    stats = [(f, s.st_size, s.st_mtime_ns) for f in found for s in [f.stat()]]
    total = sum(size for _, size, _ in stats)
    if total > TEXT_BYTES_MAX:
        raise TaskError(f"text: {path} holds {total / 2**20:.0f} MiB, more than {TEXT_BYTES_MAX // 2**20} MiB; train on a part")
    return tuple(stats)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"text: {path} is not UTF-8 (byte {error.start}: {error.reason}); convert it, or take it out") from error
    except OSError as error:
        raise TaskError(f"text: {path} cannot be read: {error.strerror}") from error


def _encode(files: Files, val_fraction: float, tokenizer: Tokenizer) -> Corpus:
    text = "\n\n".join(_read(path) for path, _, _ in files) if files else embedded_text()
    if not text.strip():
        raise TaskError(f"text: {files[0][0]} is empty" if len(files) == 1 else "text: all files are empty")
    train, held_out = (_tokens(pieces, tokenizer) for pieces in split_text(text, val_fraction))
    return Corpus(train, held_out, tokenizer.vocab_size, len(text.encode("utf-8")))


def _tokens(pieces: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    if tokenizer is BYTES:
        data = bytearray("".join(pieces).encode("utf-8"))
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    try:
        parts = [torch.tensor(list(tokenizer.encode(piece)), dtype=torch.int32) for piece in pieces]
    except Exception as error:
        raise TaskError(f"the tokenizer failed on the text:\n{user_traceback(error)}") from error
    tokens = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.vocab_size:
        raise TaskError(f"the tokenizer gave ids {int(tokens.min())}..{int(tokens.max())}, outside 0..{tokenizer.vocab_size - 1}")
    return tokens
