"""Draws docs/state-machine.md from the transition table; the drift check keeps the two together."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from orchestrator.core.supervisor import table

P = TypeVar("P", bound=StrEnum)


def render() -> str:
    """The page, Markdown with Mermaid diagrams."""
    return "\n".join(
        [
            "# The supervisor's state machine",
            "",
            "Generated from `orchestrator/core/supervisor/table.py` by `python -m orchestrator.core.supervisor.diagram`.",
            "",
            *_section("The job", table.JOB),
            *_section("A worker", table.WORKER),
        ]
    )


def _section(title: str, transitions: Mapping[tuple[P, P], str]) -> list[str]:
    rows = [f"| {a} | {b} | {why} |" for (a, b), why in transitions.items()]
    arrows = [f"    {a} --> {b}" for a, b in transitions]
    return [
        f"## {title}",
        "",
        "```mermaid",
        "stateDiagram-v2",
        *arrows,
        "```",
        "",
        "| from | to | when |",
        "|---|---|---|",
        *rows,
        "",
    ]


if __name__ == "__main__":
    print(render(), end="")
