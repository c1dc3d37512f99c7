"""How text becomes tokens: bytes by default, or an object that the user names.

A language model's loss is reported in bits per byte, which compares models of different tokenizers; so whatever the
tokenizer does, the corpus counts the bytes of the text that went in.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from orchestrator.engine.task import TaskError
from orchestrator.engine.tasks.loading import load_object, user_traceback


@runtime_checkable
class Tokenizer(Protocol):
    """What a user's tokenizer must offer. Token ids are in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int:
        """How many different tokens there are."""

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""


class ByteTokenizer:
    """One token per UTF-8 byte."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of the text."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes; a character that was cut is replaced."""
        return bytes(ids).decode("utf-8", errors="replace")


BYTES = ByteTokenizer()


@functools.lru_cache(maxsize=8)  # one object per process, by which the corpus caches what it encoded
def load_tokenizer(target: str, *, base_dir: str | Path) -> Tokenizer:
    """The tokenizer `path/to/file.py:name` or `module:name`, or bytes for the empty string.

    `name` is the object itself, or a class or function that makes it without arguments. Raises TaskError.
    """
    if not target:
        return BYTES
    found = load_object(target, base_dir=base_dir)
    if isinstance(found, type) or (callable(found) and not hasattr(found, "encode")):
        try:
            found = found()
        except Exception as error:
            raise TaskError(f"tokenizer {target} could not be made:\n{user_traceback(error)}") from error
    if not isinstance(found, Tokenizer):
        missing = [n for n in ("vocab_size", "encode", "decode") if not hasattr(found, n)]
        raise TaskError(f"tokenizer {target} lacks {', '.join(missing)}: it needs vocab_size, encode(str) and decode(ids)")
    size: object = found.vocab_size
    if not isinstance(size, int) or size < 1:
        raise TaskError(f"tokenizer {target}: vocab_size must be a positive int, not {size!r}")
    return found
