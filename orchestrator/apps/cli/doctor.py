"""The command `doctor`: is this machine (on Kubernetes: the cluster) fit to run jobs, and which time-outs follow from
`detect_within`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator.apps.cli import render
from orchestrator.apps.cli.base import CliError, Code, data, data_json, milliseconds, say
from orchestrator.apps.cli.options import (
    DEFAULT_HOME,
    AsJson,
    Context,
    HomeDir,
    Kubeconfig,
    Namespace,
    On,
    Place,
    kubernetes,
    resolved,
)
from orchestrator.core.timeouts import derive, ladder

MEANINGS = {
    "tick_ms": "the supervisor looks at its clocks",
    "heartbeat_ms": "a worker reports",
    "reconnect_ms": "pause between attempts to reach the supervisor",
    "probe_ms": "one probe of a worker's port",
    "suspect_ms": "silence after which a worker is shown as unreachable; nothing is done",
    "lost_ms": "silence or standstill after which it is declared lost",
    "form_ms": "forming the process groups of an epoch",
    "prove_ms": "start of an epoch until every rank has its state",
    "leave_ms": "asking an epoch's ranks to leave after a step until they are made to",
    "spawn_ms": "asking for a worker until it says hello",
    "first_step_ms": "standstill in a phase that was never timed before",
    "orphan_ms": "a worker that hears of no supervisor ends itself",
    "measure_ms": "asking an idle worker to measure itself until it goes without",
    "collective_ms": "the communication library's own limit, a backstop",
}


def doctor(
    detect_within: Annotated[str, typer.Option("--detect-within", help="Show the time-outs for this setting.")] = "4s",
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Check this machine: versions, ports, clock, loopback, memory, disk; or a cluster. And print the ladder of time-outs."""
    from orchestrator.apps.cli.measure import Level, everything

    there = kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig)
    detect_ms = milliseconds(detect_within, option="--detect-within")
    try:
        timeouts = derive(detect_ms)
    except ValueError as error:
        raise CliError(f"--detect-within: {error}", Code.INPUT) from None
    if there is not None:
        from orchestrator.apps.cli.kube.doctor import everything as of_cluster

        checks = of_cluster(there)
    else:
        checks = everything(resolved(home), timeouts, say)
    failed = [c for c in checks if c.level is Level.FAIL]
    steps = ladder(timeouts)
    if as_json:
        data_json(
            {
                "ok": not failed,
                "checks": [asdict(c) for c in checks],
                "detect_within_ms": detect_ms,
                "ladder_ms": dict(steps),
            }
        )
    else:
        data("\n".join(render.table([(c.level.upper(), c.name, c.value) for c in checks])))
        fixes = [f"{c.name}: {c.fix}" for c in checks if c.fix]
        if fixes:
            data("\n" + "\n".join(fixes))
        rows = [(name.removesuffix("_ms").replace("_", " "), f"{ms} ms", MEANINGS[name]) for name, ms in steps]
        data(f"\ntime-outs for detect_within {detect_within}")
        data("\n".join(render.table(rows, indent="  ")))
    if failed:
        raise CliError(f"{len(failed)} check(s) failed: {', '.join(c.name for c in failed)}; see what to do above", Code.INFRA)
