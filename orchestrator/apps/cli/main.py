"""The program `orchestrator`: one function per command, joined here.

stdout is data, stderr is talk. Exit codes: 0 ok; 1 the job failed by the user's code; 2 bad input; 3 infrastructure, or the
failure budget is spent; 130 interrupted or cancelled.
"""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.apps.cli import act, change, checkpoints, doctor, files, jobs, look, plan
from orchestrator.apps.cli.base import Commands, data

EPILOG = "Exit codes: 0 ok, 1 job failed by its own code, 2 bad input, 3 infrastructure or budget spent, 130 interrupted."

app = typer.Typer(
    name="orchestrator",
    cls=Commands,
    help="Keeps long PyTorch training jobs going: a lost worker or node is swapped for a spare and no step is lost.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        data(version("orchestrator"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Options of the program itself."""


WRITE, RUN, LOOK, ACT, MACHINE = "Job files", "Run jobs", "Look at jobs", "Change jobs", "This machine"
app.command(rich_help_panel=WRITE)(files.init)
app.command(rich_help_panel=WRITE)(files.validate)
app.command(rich_help_panel=WRITE)(plan.plan)
app.command(rich_help_panel=RUN)(jobs.run)
app.command(cls=jobs.Launch, rich_help_panel=RUN)(jobs.launch)
app.command(rich_help_panel=LOOK)(look.status)
app.command(rich_help_panel=LOOK)(look.logs)
app.command(rich_help_panel=LOOK)(look.events)
app.command(rich_help_panel=LOOK)(look.explain)
app.command("list", rich_help_panel=LOOK)(look.list_jobs)
app.command(rich_help_panel=ACT)(change.scale)
app.command(rich_help_panel=ACT)(change.drain)
app.command(rich_help_panel=ACT)(change.replace)
app.add_typer(checkpoints.group, rich_help_panel=ACT)
app.command(rich_help_panel=ACT)(act.chaos)
app.command(rich_help_panel=ACT)(act.cancel)
app.command(rich_help_panel=ACT)(act.suspend)
app.command(rich_help_panel=ACT)(act.resume)
app.command(rich_help_panel=MACHINE)(doctor.doctor)
app.command(rich_help_panel=MACHINE)(act.down)


def main() -> None:
    """Entry point of the installed program."""
    app()


if __name__ == "__main__":
    main()
