"""Runs the Kubernetes tests in two processes and ends with one line of JSON, whatever became of them.

Whole jobs train in one of them, which mostly waits, while the other does the rest.

    python -m tests.kube [arguments of pytest]

The figures are how many there were, and what tests handed to the fixture `figure`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from tests.kube.existing import KUBECONFIG
from tests.world.jobs import ROOT

FIGURE = "figure:"
COUNTS = ("passed", "failed", "skipped")


def figures(cases: Iterable[ET.Element]) -> dict[str, float]:
    """From the test cases of a JUnit report. A test that failed once, in whatever phase, has failed."""
    ends: dict[tuple[str | None, str | None], str] = {}
    told: dict[str, float] = {}
    for case in cases:
        key = case.get("classname"), case.get("name")
        failed = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None
        end = "failed" if failed else "skipped" if skipped else "passed"
        if ends.get(key) != "failed":
            ends[key] = end
        for item in case.iterfind("properties/property"):
            name, value = item.get("name", ""), item.get("value", "")
            if name.startswith(FIGURE):
                told[name.removeprefix(FIGURE)] = float(value)
    return {"total": len(ends), **{count: list(ends.values()).count(count) for count in COUNTS}, **told}


def main() -> int:
    """Exit code of pytest; 1 where all that ran has passed but something was skipped, unless the cluster is the reader's own."""
    with tempfile.TemporaryDirectory(prefix="kube-report-") as folder:
        report = Path(folder) / "report.xml"
        asked = sys.argv[1:]
        where = [] if any((ROOT / word.partition("::")[0]).exists() for word in asked) else ["tests/kube"]
        side_by_side = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
        told = ["-o", "junit_family=xunit1", f"--junit-xml={report}"]  # xunit2 has no place for figures
        argv = [sys.executable, "-m", "pytest", "-m", "kube", *side_by_side, *told, *where, *asked]
        code = subprocess.run(argv, cwd=ROOT).returncode
        counted = figures(ET.parse(report).iter("testcase") if report.exists() else ())  # none: pytest itself came to grief
    print(json.dumps({"bench": "kube", "figures": counted}), flush=True)
    if not code and counted["skipped"] and KUBECONFIG not in os.environ:
        print(f"{counted['skipped']:.0f} test(s) were skipped, which is no pass; fix: see the reasons above", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
