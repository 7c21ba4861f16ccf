"""`tunewise`: one module per command, imported when the command is used, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys

# Looking for pydantic's plug-ins reads the metadata of every installed package; tunewise has none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from cyclopts import App, CycloptsError, Parameter

import tunewise
from tunewise.errors import InsufficientResources, TunewiseError, is_out_of_memory
from tunewise.quiet import quiet_libraries

COMMANDS = {
    "compare": """Train several methods over seeds, compare and recommend one, write a report.

The same command again does what is missing, and only that.""",
    "sweep": """Run every combination of the lists in a spec file, and write a table.

The same command again does what is missing, and only that; two at once share the runs.""",
    "train": """Train one method once: a run folder with adapter, record and history.

The same command again goes on from the last checkpoint. On several processes, each with a copy of the model and a share
of every batch: torchrun --nproc-per-node 2 -m tunewise train ...""",
    "plan": "Forecast parameters, memory, disk and bounds of every method from a model's config alone.",
    "recommend": """Recommend the cheapest method that is not significantly worse than the best, within limits.

Exit code 5 where no method is within the limits.""",
    "report": "Rebuild the report of finished runs, or print its table as CSV, Markdown or LaTeX.",
    "inspect": """Analyse an adapter: singular values of its update, effective ranks, intruder dimensions.

The weights of the base model are decomposed once and cached.""",
    "bounds": "Compute bounds on the generalization gap of a run or an adapter, with their assumptions.",
    "predict": "Predict new data with a finished run: classes, numbers or texts, and scores.",
    "export": "Write an adapter as stock LoRA, or merged into its model.",
    "runs": "List, show, clean and verify run folders.",
    "aa": """Compare a method with itself: how often are equal methods called different?

Exit code 1 where that is more often than 95 % intervals allow (19 of 200).""",
    "lab": """Test the theorems numerically on a CPU: expectation, plot, verdict.

Exit code 1 where a theorem is refuted.""",
    "paper": "Run the experiments of 'Beyond LoRA' (arXiv 2606.13767); show its tables beside ours.",
}
OPTIONS_ONLY = ("compare", "plan")
"""Commands without positional arguments: their usage line needs no pass over the flags."""
GROUPS_OF_COMMANDS = {
    "runs": {
        "ls": "One line per run, for any number of runs.",
        "show": "Spec, results, costs, measures, files, environment and problems of a run, as YAML.",
        "gc": """Remove what is not needed any more: temporary files, runs without a checkpoint, unused caches.

Finished runs and runs in progress are never removed.""",
        "verify": """Check finished runs: records, checksums, histories, adapters, measures.

One line per fault; exit code 3 if there are any.""",
    },
    "paper": {
        "list": "The 24 presets with their hyperparameters (Table 7), or the 14 data sets.",
        "run": """Run a preset as an ordinary comparison.

What makes it smaller than the paper's is marked in every table.""",
        "table": "Our numbers beside the printed ones, with differences and intervals.",
        "sweep": "Write an ablation as a spec file for `tunewise sweep`.",
    },
}


def build_app() -> App:
    """The command line; the modules of commands are imported by name when used."""
    app = App(
        name="tunewise",
        help="Which fine-tuning method, at which rank, for my model, my data, my budget? Answered with evidence.",
        help_format="plaintext",
        version=f"tunewise {tunewise.__version__}",
        default_parameter=Parameter(allow_repeating=True),  # the last one wins
    )
    for position, (name, text) in enumerate(COMMANDS.items()):
        if name in GROUPS_OF_COMMANDS:
            group = App(name=name, help=text, sort_key=position, help_format="plaintext", version_flags=())
            for inner, inner_text in GROUPS_OF_COMMANDS[name].items():
                group.command(f"tunewise.cli.{name}:{name}_{inner}", name=inner, help=inner_text)
            app.command(group)
        else:
            app.command(f"tunewise.cli.{name}:{name}", name=name, help=text, sort_key=position)
    return app


def _call(words: list[str]) -> object:
    app = build_app()
    if len(words) == 2 and words[0] in COMMANDS and words[1] == "--help":
        command = app[words[0]]
        if words[0] in OPTIONS_ONLY:
            command.usage = f"Usage: tunewise {words[0]} [OPTIONS]"
        app.help_print(words[:1])  # parsing would go through every flag twice more
        return 0
    return app(words, exit_on_error=False, print_error=False, result_action="return_value")


def run() -> None:
    """The console script: what the user can fix is one line on stderr and an exit code, never a traceback."""
    quiet_libraries()
    try:
        result = _call(sys.argv[1:])
    except TunewiseError as error:
        sys.stdout.flush()
        print(f"error: {error}" if error.exit_code != 130 else str(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except CycloptsError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, `head` say, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if is_out_of_memory(error):
            where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
            print(f"error: out of memory{where}; use a smaller batch or model, or a larger machine", file=sys.stderr)
            sys.exit(InsufficientResources.exit_code)
        if not isinstance(error, OSError):
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)
