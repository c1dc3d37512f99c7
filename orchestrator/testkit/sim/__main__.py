"""`python -m orchestrator.testkit.sim --runs N [--seed S] [--verbose]`: the entry point of `make sim`.

Runs seeds S, S+1, ... in two processes that differ in PYTHONHASHSEED, and whose journals must come out equal to the byte.
Talk goes to stderr, where a failing seed tells its story; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import sys

from orchestrator.testkit.sim.runner import one, several

EXIT_VIOLATION = 1


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 1 when anything was violated or hash seeds disagree."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.testkit.sim", description="Simulate seeds of faults.")
    parser.add_argument("--runs", type=int, default=200, help="how many seeds (default 200)")
    parser.add_argument("--seed", type=int, default=None, help="the first seed (default 0)")
    parser.add_argument("--verbose", action="store_true", help="tell the story of every seed")
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    first = args.seed or 0
    if args.runs == 1:
        figures = one(first, verbose=args.verbose)
    else:
        figures = several(first=first, runs=args.runs, verbose=args.verbose)
    return 0 if figures.violations == 0 and figures.hash_seeds_agree == 1 else EXIT_VIOLATION


if __name__ == "__main__":
    sys.exit(main())
