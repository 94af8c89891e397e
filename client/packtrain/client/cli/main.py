"""The command line `packtrain`. Each command is a thin layer over `Packtrain` and `up`; see `packtrain --help`.

Exit codes: 0 done; 1 this machine or fleet needs a change; 2 the request is wrong; 3 the job ended without a result;
4 try again later; 130 interrupted. A user's mistake never shows a traceback.
"""

from __future__ import annotations

import sys

import typer

from packtrain.broker.errors import InvalidRequest, JobError, PacktrainError, TryLater
from packtrain.client.cli import (
    broker_commands,
    bulk_commands,
    fleet_commands,
    flower_commands,
    health_commands,
    job_commands,
    join_commands,
    journal_commands,
    keys_commands,
    logs_commands,
    model_commands,
    node_commands,
    pull_commands,
    serve_commands,
    simulation_commands,
    top_commands,
    upgrade_commands,
)

app = typer.Typer(
    name="packtrain",
    help="One queue in front of all your computers: batched GGUF inference.",
    epilog=(
        "Begin with `packtrain up` in one terminal, `packtrain models` and `packtrain run MODEL PROMPT` in another. "
        "PACKTRAIN_URL names a fleet elsewhere. Exit codes: 0 done, 1 this machine or fleet needs a change, 2 the "
        "request is wrong, 3 the job ended without a result, 4 try again later."
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
fleet_commands.add_to(app)
node_commands.add_to(app)
join_commands.add_to(app)
serve_commands.add_to(app)
flower_commands.add_to(app)
keys_commands.add_to(app)
model_commands.add_to(app)
pull_commands.add_to(app)
job_commands.add_to(app)
bulk_commands.add_to(app)
broker_commands.add_to(app)
journal_commands.add_to(app)
simulation_commands.add_to(app)
top_commands.add_to(app)
logs_commands.add_to(app)
health_commands.add_to(app)
upgrade_commands.add_to(app)


def exit_code(error: PacktrainError) -> int:
    """The exit code that tells a script what it may do about an error."""
    match error:
        case InvalidRequest():
            return 2
        case JobError():
            return 3
        case TryLater():
            return 4
        case _:
            return 1


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except PacktrainError as error:
        sys.stderr.write(f"packtrain: {error}\n")
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
