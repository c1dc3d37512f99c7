"""job.yaml -> JobSpec -> Job: the one place where what a person wrote is judged, and where absent values get their
meaning.

`load` and `load_text` give a complete Job or raise a SpecError that holds every problem with its line, path and fix.
Nothing behind this package looks at the file again.
"""

from __future__ import annotations

from orchestrator.spec.errors import Problem, SpecError
from orchestrator.spec.loader import load, load_text, parse
from orchestrator.spec.model import JobSpec
from orchestrator.spec.resolve import resolve

__all__ = ["JobSpec", "Problem", "SpecError", "load", "load_text", "parse", "resolve"]
