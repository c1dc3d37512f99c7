"""Whatever a job file holds, the answer is a Job or a SpecError: never another exception, never an endless read.

Three kinds of text: any characters, pieces of YAML in any order, and nearly right job files with one value replaced.
"""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.core.job import Job
from orchestrator.spec import SpecError, load_text
from orchestrator.spec.model import JobSpec

PIECES = [
    *("name", "task", "train", "steps", "optimizer", "betas", "parallel", "data", "cluster", "checkpoint", "options"),
    *(": ", ":", "\n", "\n  ", "\n    ", "- ", "[", "]", "{", "}", ", ", '"', "'", "|\n", ">\n", "# ", "\t", "---\n"),
    *("&a ", "*a", "!", "!!int ", "<<", "? ", "%YAML 1.1\n", "%TAG ! x\n", "...\n", "@", "`", "\\", "\\x9", "\\uD800"),
    *("1", "-1", "1.5", "1e999", "0x", "0o8", ".nan", "true", "no", "~", "gpt", "a.py:B", "4s", "s3://b", "é"),
    *("\ufeff", "\u2028", "\\U00110000"),
]  # fmt: skip
LINE_ENDS = "\n\r\x85\u2028\u2029"


def judged(text: str) -> Job | None:
    """The job, or None after a refusal that was held to its own promises."""
    try:
        job = load_text(text, file="job.yaml", base_dir="/jobs")
    except SpecError as refused:
        error = refused
    else:
        json.loads(job.task.options_json)
        assert job.train.micro_batches >= job.parallel.data >= 1
        return job
    lines = 1 + sum(text.count(end) for end in LINE_ENDS)
    assert error.problems
    assert all(0 <= problem.line <= lines and problem.message for problem in error.problems)
    error.render().encode()
    return None


@given(st.text())
@example("\ud800")
@example("\x00")
@example('"\\UFFFFFFFF"')
@example("%YAML " + "9" * 5000 + ".1\n---\na")
@example("[" * 5000)
@example("{" * 5000)
@example("? " * 5000)
@example("- " * 5000)
@example("name: a\ntrain: {seed: " + "9" * 5000 + "}")
@example("name: a\ntrain: {seed: '1e310'}")
@example("name: a\ntask: {options: {x: " + "9" * 99 + "}}")
def test_any_text(text: str) -> None:
    judged(text)


@settings(max_examples=3 * settings().max_examples)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_pieces_of_yaml(text: str) -> None:
    judged(text)


def paths_of(tree: object, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [above]
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += paths_of(value, (*above, key))
    return found


DEFAULTS = JobSpec.model_validate({"name": "a", "checkpoint": {"uri": "x"}}).model_dump(mode="json", exclude_none=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(PIECES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=3 * settings().max_examples)
@given(st.dictionaries(st.sampled_from(paths_of(DEFAULTS)[1:]), JSON, min_size=1, max_size=3))
def test_nearly_right_files(changes: dict[tuple[str, ...], object]) -> None:
    tree = json.loads(json.dumps(DEFAULTS))
    for path, value in changes.items():
        section = tree
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[path[-1]] = value
    judged(json.dumps(tree))


def test_the_fuzz_starts_from_a_file_that_loads() -> None:
    assert judged(json.dumps(DEFAULTS)) is not None
