"""What is wrong with a job file, said so that the reader can put it right without opening the documentation.

A problem is a value, not a sentence: place, path, message, nearest known key, allowed values and the fix are kept
apart, so the command line, an editor and the operator can each show them in their own way. All problems of a file
travel in one SpecError.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PROBLEMS_MAX = 100
SHOWN_TEXT_MAX = 60  # characters of a user's text that a message repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong. `line` and `column` count from 1, line 0 means the whole file; `path` is empty at the root."""

    file: str
    line: int
    column: int
    path: str
    message: str
    nearest: str = ""  # the known key or value that was probably meant
    allowed: tuple[str, ...] = ()
    fix: str = ""

    def render(self) -> str:
        """One line, `file:line:column: path: message...`, and the fix indented below it where there is one."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        head = ": ".join(part for part in (place, self.path, self.message) if part)
        if self.nearest:
            head += f'; did you mean "{self.nearest}"?'
        if self.allowed:
            head += f"{'' if self.nearest else ';'} allowed: {', '.join(self.allowed)}"
        return f"{head}\n    fix: {self.fix}" if self.fix else head


class SpecError(Exception):
    """The job file is at fault: every problem found in it, in the order of their places, at most PROBLEMS_MAX.

    `unworded` counts errors that were found and not made into problems; `omitted` holds all that are not shown.
    """

    def __init__(self, problems: Iterable[Problem], *, unworded: int = 0) -> None:
        ordered = sorted(problems, key=lambda problem: (problem.line, problem.column, problem.path, problem.message))
        assert ordered, "a SpecError needs a problem"
        self.problems: tuple[Problem, ...] = tuple(ordered[:PROBLEMS_MAX])
        self.omitted: int = len(ordered) - len(self.problems) + unworded
        super().__init__(self.problems)

    def render(self) -> str:
        """All problems, a block each, without a newline at the end."""
        blocks = [problem.render() for problem in self.problems]
        if self.omitted:
            blocks.append(f"... and {self.omitted} more")
        return "\n".join(blocks)

    def __str__(self) -> str:
        return self.render()


def quoted(text: str) -> str:
    """The user's text between quotes, shortened, with everything that a terminal would act on escaped."""
    short = text if len(text) <= SHOWN_TEXT_MAX else text[:SHOWN_TEXT_MAX] + "..."
    return json.dumps(short, ensure_ascii=not short.isprintable())


def described(value: object) -> str:
    """A value as a message names it: `the text "4"`, `1.5`, `true`, `a list`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if isinstance(value, (int, float)):
        text = repr(value)
        return text if len(text) <= SHOWN_TEXT_MAX else f"a number of {len(text)} characters"
    return "a mapping" if isinstance(value, dict) else "a list"


def dotted(path: Sequence[str | int]) -> str:
    """`("train", "optimizer", "betas", 1)` -> `train.optimizer.betas[1]`; odd keys are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        plain = part.isascii() and part.replace("_", "").replace("-", "").isalnum() and len(part) <= SHOWN_TEXT_MAX
        text += ("." if text else "") + (part if plain else quoted(part))
    return text


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or an empty text."""
    folded = word[:SHOWN_TEXT_MAX].lower().replace("-", "_")
    found = difflib.get_close_matches(folded, list(known), n=1, cutoff=0.6)
    return found[0] if found else ""
