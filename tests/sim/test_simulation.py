"""Seeds that must hold: a few in the quick tier, more in the full one. A failing seed prints its story and how to replay it."""

from __future__ import annotations

import ast
import inspect
import logging
from collections.abc import Iterator

import pytest

from orchestrator.adapters.grpc import link as real_link
from orchestrator.testkit.sim import links
from orchestrator.testkit.sim.run import Result, simulate
from orchestrator.testkit.sim.runner import several, summary
from orchestrator.testkit.sim.scenario import Kind, scenario

QUICK = 30
FULL = 170


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("orchestrator")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # the driver logs what goes wrong, which here is everything
    yield
    logger.setLevel(before)


def fails(result: Result) -> str:
    """What to print of a failing seed."""
    return "\n".join([*result.story[-120:], summary(result), *result.violations, f"replay it: make sim SEED={result.seed}"])


@pytest.mark.parametrize("seed", range(QUICK))
def test_nothing_is_violated(seed: int) -> None:
    result = simulate(seed)
    assert not result.violations, fails(result)


@pytest.mark.slow
def test_nothing_is_violated_in_many_seeds() -> None:
    results = [simulate(seed) for seed in range(QUICK, FULL)]
    bad = [r for r in results if r.violations]
    assert not bad, fails(bad[0])
    assert {r.kind for r in results} == set(Kind), "every class of seeds was there"
    assert sum(r.recoveries for r in results) > FULL / 3
    assert sum(r.restarts for r in results) > FULL / 10


def test_some_jobs_leave_their_plan_to_the_planner() -> None:
    kinds = {made.kind for seed in range(QUICK) if (made := scenario(seed)).job.planner.auto}
    assert len(kinds) > 1


def test_hash_seeds_do_not_matter(capfd: pytest.CaptureFixture[str]) -> None:
    figures = several(first=0, runs=6, verbose=False)
    assert (figures.runs, figures.violations, figures.hash_seeds_agree) == (6, 0, 1)
    assert capfd.readouterr().out.splitlines()[-1].startswith('{"bench": "sim", "figures": {"runs": 6, "violations": 0')


def test_a_seed_is_one_run() -> None:
    once, again = simulate(11), simulate(11)
    assert once == again
    assert once.digest != simulate(12).digest


def test_links_look_for_the_supervisor_as_the_real_ones_do() -> None:
    assert (links.RESOLVE_AFTER, links.BACKOFF_MAX) == (real_link.RESOLVE_AFTER, real_link.BACKOFF_MAX)


def test_the_simulator_draws_from_its_seeds_only() -> None:
    """No clock and no unseeded randomness anywhere in the package."""
    import orchestrator.testkit.sim as package

    for name in ("checks", "content", "faults", "group", "hub", "links", "run", "scenario", "training", "worker", "world"):
        module = __import__(f"{package.__name__}.{name}", fromlist=["_"])
        tree = ast.parse(inspect.getsource(module))
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not imported & {"time", "datetime", "secrets", "uuid", "threading", "os"}, name
