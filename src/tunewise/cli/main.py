"""`tunewise`: one thin file a verb. Torch is imported when a verb needs it, so `--help` answers at once."""

from __future__ import annotations

import sys

import typer

import tunewise
from tunewise.cli import aa as aa_verb
from tunewise.cli import bounds as bounds_verb
from tunewise.cli import compare as compare_verb
from tunewise.cli import export as export_verb
from tunewise.cli import inspect as inspect_verb
from tunewise.cli import lab as lab_verb
from tunewise.cli import paper as paper_verb
from tunewise.cli import plan as plan_verb
from tunewise.cli import recommend as recommend_verb
from tunewise.cli import report as report_verb
from tunewise.cli import runs as runs_verb
from tunewise.cli import sweep as sweep_verb
from tunewise.cli import train as train_verb
from tunewise.errors import NoRoom, TunewiseError, is_out_of_memory

app = typer.Typer(
    help="Which fine-tuning method, at which rank, for my model, my data, my budget? Answered with evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # "rich" takes the "[default: 8]" of a help text for a style, and drops it
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("plan")(plan_verb.plan)
app.command("compare")(compare_verb.compare)
app.command("train")(train_verb.train)
app.command("sweep")(sweep_verb.sweep)
app.command("recommend")(recommend_verb.recommend)
app.command("report")(report_verb.report)
app.command("aa")(aa_verb.aa)
app.add_typer(runs_verb.app, name="runs")
app.command("bounds")(bounds_verb.bounds)
app.command("inspect")(inspect_verb.inspect)
app.command("export")(export_verb.export)
app.command("lab")(lab_verb.lab)
app.add_typer(paper_verb.app, name="paper")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tunewise {tunewise.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    pass


def run() -> None:
    """The console script: what the user can mend is one line on stderr and an exit code, never a traceback."""
    try:
        app()
    except TunewiseError as error:
        sys.stdout.flush()
        print(f"error: {error}" if error.exit_code != 130 else str(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if is_out_of_memory(error):
            where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
            print(f"error: out of memory{where}; use a smaller batch or model, or a larger machine", file=sys.stderr)
            sys.exit(NoRoom.exit_code)
        if not isinstance(error, OSError):
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
