"""HTML pages from the templates beside this file: the report of a run, the page of a plan."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from orchestrator.apps.units import count, percent


def template(name: str) -> Template:
    """A template by its file name; whatever it is given is escaped, and what it is not given is an error when it is rendered."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "percent": percent}
    return environment.get_template(name)
