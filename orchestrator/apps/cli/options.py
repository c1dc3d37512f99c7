"""Arguments and options that several commands share, each written once so that they read alike everywhere.

The home directory follows `--home`, then `$ORCHESTRATOR_HOME`, then `~/.orchestrator`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.apps.cli import complete

JobFile = Annotated[Path, typer.Argument(metavar="FILE", help="The job file (job.yaml).", show_default=False)]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.", show_default=False, autocompletion=complete.jobs)]
MaybeJobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Name of the job; absent: the only one.", show_default=False, autocompletion=complete.jobs
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until it is done, and show what is decided on the way.")]

HomeDir = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="ORCHESTRATOR_HOME",
        help="Where journals, tokens and addresses are kept.",
        resolve_path=False,
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", help="Name of the cluster; absent: the only one that is known.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
NoView = Annotated[bool, typer.Option("--no-view", help="Plain progress lines instead of the live view.")]
NameOverride = Annotated[str, typer.Option("--name", help="Run it under this name instead of the file's.", show_default=False)]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE", help="Where the HTML report goes; absent: HOME/jobs/NAME/report.html.", show_default=False
    ),
]
ChaosPlan = Annotated[
    list[str],
    typer.Option(
        "--chaos",
        metavar="KIND@STEP[:RANK[:AMOUNT]]",
        help="Inject a fault in mid-step, e.g. kill-node@30 or slow@10:2:300ms; repeatable. RANK absent: the last.",
        default_factory=list,
        show_default=False,
    ),
]

DEFAULT_HOME = Path("~/.orchestrator")


def resolved(home: Path) -> Path:
    """The home directory, absolute."""
    return home.expanduser().resolve()
