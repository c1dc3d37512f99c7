"""The Dockerfile, as far as it can be checked without a container engine: it is read, and the one check that it runs is run.

What this cannot show is that the image builds and runs; docs/kubernetes.md says so.
"""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.adapters.kube.objects.pods import USER

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "LABEL", "USER", "CMD"}  # those that this file may use


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of the Dockerfile, its continuation lines joined; a stage counts from 0, -1 is before the first."""

    stage: int
    word: str
    rest: str


def instructions() -> list[Instruction]:
    """The Dockerfile's instructions in order."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    found: list[Instruction] = []
    stage = -1
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        found.append(Instruction(stage, word, rest.strip()))
    return found


def stage_names() -> list[str]:
    return [i.rest.partition(" AS ")[2] for i in instructions() if i.word == "FROM"]


def test_only_known_instructions_are_used() -> None:
    """ADD (fetches), HEALTHCHECK and EXPOSE (ignored by Kubernetes) and misspelt words would show here."""
    assert {i.word for i in instructions()} == INSTRUCTIONS


def test_stages_build_on_each_other_and_the_last_one_is_fresh() -> None:
    assert stage_names() == ["dependencies", "package", ""]
    bases = [i.rest.split()[0] for i in instructions() if i.word == "FROM"]
    assert bases == ["${PYTHON_IMAGE}", "dependencies", "${PYTHON_IMAGE}"]
    references = [reference for i in instructions() for reference in re.findall(r"--?(?:from=|mount=\S*from=)(\w+)", i.rest)]
    assert references
    assert set(references) <= set(stage_names())


def test_the_base_image_is_a_slim_python_of_the_locked_version_and_names_no_registry() -> None:
    image = next(i.rest for i in instructions() if i.word == "ARG" and i.stage == -1).removeprefix("PYTHON_IMAGE=")
    name, tag = image.split(":")
    assert "/" not in name
    assert tag.startswith("3.11-slim")
    assert "from Python 3.11" in (ROOT / "requirements.lock").read_text()


def test_the_last_word_on_the_user_is_a_number_that_is_not_root() -> None:
    """Kubernetes can hold `runAsNonRoot` only against a number."""
    last = [i for i in instructions() if i.stage == 2]
    user = next(i.rest for i in reversed(last) if i.word == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    after = last[[i.word for i in last].index("USER") :]
    assert not [i for i in after if i.word in ("RUN", "COPY")], "what comes after USER must not need another one"


def test_the_user_is_the_one_that_pods_and_operator_run_as() -> None:
    """Another number would own nothing in the image and on the volumes."""
    user = next(i.rest for i in reversed(instructions()) if i.word == "USER")
    made = next(i.rest for i in instructions() if "useradd" in i.rest)
    operator = (ROOT / "manifests/base/operator.yaml").read_text()
    assert user == f"{USER}:{USER}"
    assert f"--uid {USER} --gid {USER} " in made
    assert set(re.findall(r"(runAsUser|runAsGroup|fsGroup): (\d+)", operator)) == {
        (key, str(USER)) for key in ("runAsUser", "runAsGroup", "fsGroup")
    }


def test_no_secret_and_no_address_is_baked_in() -> None:
    for i in instructions():
        assert not re.search(r"https?://|password|passwd|api[_-]?key|PIP_(EXTRA_)?INDEX_URL", i.rest, re.IGNORECASE), i
        assert i.word not in ("ARG", "ENV") or "token" not in i.rest.lower(), i
    mounts = [i.rest for i in instructions() if "type=secret" in i.rest]
    assert mounts, "how pip reaches its index comes in as a secret"
    assert all(re.search(r"--mount=type=secret,id=pip,target=/etc/pip.conf\b", rest) for rest in mounts)


def ignored(path: str) -> bool:
    """What .dockerignore says of a path: the last line that fits it, or a folder above it, decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = path.split("/")
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        names = parts if pattern.startswith("**/") else above
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            verdict = not line.startswith("!")
    return verdict


def test_everything_that_is_copied_exists_and_reaches_the_build() -> None:
    copies = [i.rest for i in instructions() if i.word == "COPY" and "--from=" not in i.rest]
    sources = [source for rest in copies for source in rest.split()[:-1]]
    assert {"orchestrator", "requirements.lock", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert not ignored("orchestrator/apps/kube/__init__.py")


@pytest.mark.parametrize(
    "path", [".git", ".venv", "runs", "tests", "shared", "orchestrator/__pycache__", "orchestrator/core/__pycache__"]
)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert ignored(path)


def torch_check() -> str:
    """The shell command that compares the build of torch with what was asked for, run with this interpreter."""
    command = next(i.rest for i in instructions() if i.word == "RUN" and "torch.version" in i.rest)
    return command.replace("/opt/orchestrator/bin/python", sys.executable)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["cpu", "gpu"])
def test_a_build_of_torch_that_was_not_asked_for_stops_the_build(wanted: str) -> None:
    import torch

    here = "gpu" if torch.version.cuda else "cpu"
    ran = subprocess.run(
        ["sh", "-c", torch_check()], env={**os.environ, "TORCH": wanted}, capture_output=True, text=True, timeout=200, check=False
    )
    assert (ran.returncode == 0) == (wanted == here), ran.stderr
    if wanted != here:
        assert f"TORCH={wanted}, but the index gave the {here} build" in ran.stderr
