"""Arguments and options that several commands share, each written once so that they read alike everywhere.

The home directory follows `--home`, then `$ORCHESTRATOR_HOME`, then `~/.orchestrator`. Where a job is follows `--on`, then
`$ORCHESTRATOR_ON`; the options of Kubernetes mean nothing elsewhere and are refused there.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.adapters.kube.access import INSTALL, Options
from orchestrator.apps.cli import complete
from orchestrator.apps.cli.base import CliError, Code

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


class Place(StrEnum):
    """Where a job is."""

    RAY = "ray"  # a Ray cluster: on this machine, or one that is reached directly
    KUBERNETES = "kubernetes"  # a TrainingJob, reached over the API server


_PANEL = "Kubernetes"
On = Annotated[
    Place,
    typer.Option("--on", envvar="ORCHESTRATOR_ON", help="Where the job is.", rich_help_panel=_PANEL),
]
Namespace = Annotated[
    str,
    typer.Option(
        "--namespace",
        "-n",
        help="Absent: the context's.",
        show_default=False,
        rich_help_panel=_PANEL,
        autocompletion=complete.namespaces,
    ),
]
Context = Annotated[
    str,
    typer.Option(
        "--context",
        help="Of the kubeconfig; absent: its current one.",
        show_default=False,
        rich_help_panel=_PANEL,
        autocompletion=complete.contexts,
    ),
]
Kubeconfig = Annotated[
    str,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        help="Absent: $KUBECONFIG, ~/.kube/config, or the pod's service account.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]

DEFAULT_HOME = Path("~/.orchestrator")


def resolved(home: Path) -> Path:
    """The home directory, absolute."""
    return home.expanduser().resolve()


def kubernetes(
    on: Place, *, namespace: str, context: str, kubeconfig: str, not_there: Mapping[str, object] | None = None
) -> Options | None:
    """The way to the API server when the job is on Kubernetes, else None. Raises CliError for options that do not fit.

    `not_there`: options that mean nothing on Kubernetes, with what was given for them.
    """
    if on is Place.KUBERNETES:
        only_on(Place.RAY, not_there or {})
        if find_spec("kubernetes") is None:
            raise CliError(f"the Python package `kubernetes` is not installed; fix: {INSTALL}", Code.INFRA)
        return Options(namespace=namespace, context=context, kubeconfig=kubeconfig)
    only_on(Place.KUBERNETES, {"--namespace": namespace, "--context": context, "--kubeconfig": kubeconfig})
    return None


def only_on(place: Place, given: Mapping[str, object]) -> None:
    """Raise CliError when one of these options, which mean something in another place only, was given."""
    used = [option for option, value in given.items() if value not in (None, "", False, [], 0)]
    if not used:
        return
    names = " and ".join(used)
    here = Place.RAY if place is Place.KUBERNETES else Place.KUBERNETES
    fix = f"add --on {place}" if place is Place.KUBERNETES else f"leave {names} out"
    raise CliError(f"{names} mean{'' if len(used) > 1 else 's'} nothing on {here}; {fix}", Code.INPUT)
